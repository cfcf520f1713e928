//! The action on itself: the job of CI in which it swaps on a server, carried out here with the binary in place of the image.

use anyhow::Result;
use testbed::action::Action;
use testbed::workflow::Job;

use crate::support::binary;

const CI: &str = include_str!("../../.github/workflows/ci.yml");

#[tokio::test]
async fn the_job_that_swaps_on_a_server_comes_to_its_end() -> Result<()> {
    let bridge = [("address", "127.0.0.1")];
    let job = Job::rest_of(CI, ("swap", "bridge"), &bridge, &["gpu-server"])?;
    job.carry_out(|config| Action::new(&binary(), config)).await
}
