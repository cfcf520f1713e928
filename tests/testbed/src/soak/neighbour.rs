//! A second service behind the same nginx, whose upstream stands in the same file, and which swaps at the same time.

use std::net::SocketAddr;

use anyhow::{Result, ensure};

use crate::action::Run;
use crate::load::{Load, LoadSpec};
use crate::server::{GpuServer, Ports, default_upstream_file, free_port};
use crate::service::{self, NAME, engine};

use super::LONGEST;

/// How its models' names begin.
pub(super) const MODELS: &str = "Qwen/Code";

/// The second service. Nothing listens behind its upstream before it has moved in.
pub(super) struct Neighbour {
    /// Where nginx listens for it.
    listen: u16,
    /// Its slots.
    a: u16,
    b: u16,
    /// So many times it has swapped.
    swaps: usize,
    is_there: bool,
    load: Option<Load>,
}

impl Neighbour {
    pub(super) fn new() -> Result<Self> {
        let [listen, a, b] = [free_port()?, free_port()?, free_port()?];
        Ok(Self { listen, a, b, swaps: 0, is_there: false, load: None })
    }

    /// The text of nginx's file for both services.
    pub(super) fn upstreams(&self) -> Box<dyn Fn(Ports) -> String + Send> {
        let (listen, a) = (self.listen, self.a);
        Box::new(move |ports| {
            let one = default_upstream_file(ports);
            let other = one
                .replace("upstream llm", "upstream code")
                .replace("http://llm", "http://code")
                .replace(&format!("127.0.0.1:{};", ports.a), &format!("127.0.0.1:{a};"))
                .replace(&format!("127.0.0.1:{};", ports.nginx), &format!("127.0.0.1:{listen};"));
            one + &other
        })
    }

    /// The configuration of the first service made its own.
    pub(super) fn config(&self, first: &str, ports: Ports) -> String {
        let Self { listen, a, b, .. } = self;
        first
            .replace(&format!("service: {NAME}\n"), "service: code\n")
            .replace("upstream: llm\n", "upstream: code\n")
            .replace(&format!("port: {},", ports.a), &format!("port: {a},"))
            .replace(&format!("port: {},", ports.b), &format!("port: {b},"))
            .replace(&format!("127.0.0.1:{}/", ports.nginx), &format!("127.0.0.1:{listen}/"))
    }

    /// Serves from now on, with clients of its own until it rests.
    pub(super) async fn works(&mut self, server: &GpuServer) -> Result<()> {
        if !self.is_there {
            server.start_by_hand(&engine(&model(self.swaps), self.a)?, &[])?;
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
        ([127, 0, 0, 1], self.listen).into()
    }
}

fn model(swaps: usize) -> String {
    format!("{MODELS}{swaps}")
}
