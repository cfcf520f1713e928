//! Somebody sets the server's clock while an agent is at work: deadlines count by the time that passes.

use anyhow::Result;
use testbed::load::{Kind, Load, LoadSpec};
use testbed::server::{Aim, ServerSpec};

use crate::kills::{CLOSED, assert_whole, at_each_record};
use crate::step::Step;
use crate::support::{NAME, NEW, World};

/// How far the clock is set at one record after the other, in seconds: hours, and more than a year. While the old model is
/// drained, which begins with the thirteenth, it is ahead.
const SET_BY: [i64; 4] = [-400 * 86400, 400 * 86400, -5 * 3600, 5 * 3600];

/// What the old model has begun takes longer than the swap, and may take a minute until it is cut: by the clock as it is set
/// that is over at once.
#[tokio::test]
async fn a_clock_that_is_set_at_each_record_cuts_nobody_short() -> Result<()> {
    let spec = ServerSpec { faults: true, ..ServerSpec::default() };
    let mut world = World::on(spec, &["--stub-token-delay", "50ms"]).await?;
    world.settings.retain = "0s".to_owned();
    world.settings.drain = "{ timeout: 60s, on_timeout: cut }".to_owned();
    let long = LoadSpec {
        streams: 4,
        stream_tokens: 200,
        ..LoadSpec::none(world.server.nginx_addr(), NAME)
    };
    let load = Load::start(long);
    load.wait_until(|tally| tally.in_flight(Kind::Stream) == 4).await?;
    world.server.strike(Some(Aim::FreezeAtEach))?;
    let action = world.action("swap", NEW, &[("wait", "retired")])?;
    let run = at_each_record(&world, (Step::start(action)?, CLOSED), async |step, record| {
        world.server.set_clock(SET_BY[record % SET_BY.len()])?;
        Ok(step)
    })
    .await?
    .ended(0, "promoted");
    assert_whole(&run);
    for said in ["will be cut", "kept and watched"] {
        assert!(!run.stdout.contains(said), "{run}");
    }
    assert_eq!(world.serves().await?, NEW);
    assert!(!world.old_runs()?, "{run}");
    load.stop().await.assert_clean();
    Ok(())
}
