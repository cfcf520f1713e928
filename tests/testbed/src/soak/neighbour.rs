//! A second service behind the same nginx, which swaps at the same time.

use std::net::SocketAddr;

use anyhow::{Result, ensure};

use crate::action::Run;
use crate::load::{Load, LoadSpec};
use crate::second::Second;
use crate::server::GpuServer;
use crate::service::{self, NAME, engine};

use super::LONGEST;

/// How its models' names begin.
pub(super) const MODELS: &str = "Qwen/Code";

/// The second service. Nothing listens behind its upstream before it has moved in.
pub(super) struct Neighbour {
    /// Where it is.
    pub(super) at: Second,
    /// So many times it has swapped.
    swaps: usize,
    is_there: bool,
    load: Option<Load>,
}

impl Neighbour {
    pub(super) fn new() -> Result<Self> {
        Ok(Self { at: Second::on_free_ports()?, swaps: 0, is_there: false, load: None })
    }

    /// Serves from now on, with clients of its own until it rests.
    pub(super) async fn works(&mut self, server: &GpuServer) -> Result<()> {
        if !self.is_there {
            server.start_by_hand(&engine(&model(self.swaps), self.at.a)?, &[])?;
            self.is_there = true;
        }
        service::until_serves(self.nginx(), &model(self.swaps)).await?;
        let none = LoadSpec::none(self.nginx(), NAME);
        let spec = LoadSpec { keepalive: 1, fresh: 1, streams: 1, stream_tokens: 40, ..none };
        let load = Load::start(LoadSpec { lasts_at_most: LONGEST, ..spec });
        load.wait_until(|tally| tally.total() > 5).await?;
        self.load = Some(load);
        Ok(())
    }

    /// The model that it swaps to next.
    pub(super) fn next(&self) -> String {
        model(self.swaps + 1)
    }

    /// Its swap has ended.
    pub(super) fn has_swapped(&mut self, run: &Run) -> Result<()> {
        let outcome = run.outputs.get("outcome").map(String::as_str);
        ensure!(outcome == Some("promoted"), "the other service, which nobody disturbs: {run}");
        self.swaps += 1;
        Ok(())
    }

    /// Its clients leave: none has lost a request, and its newest model serves.
    pub(super) async fn rests(&mut self) -> Result<()> {
        let Some(load) = self.load.take() else { return Ok(()) };
        let tally = load.stop().await;
        ensure!(tally.faults() == 0, "the other service lost requests:\n{tally}");
        service::until_serves(self.nginx(), &model(self.swaps)).await
    }

    fn nginx(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.at.nginx).into()
    }
}

fn model(swaps: usize) -> String {
    format!("{MODELS}{swaps}")
}
