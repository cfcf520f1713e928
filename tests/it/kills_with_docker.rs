//! The same as `kills` where the replicas are containers: at the records where what is done is Docker's.

use anyhow::{Context, Result};
use testbed::server::{Aim, ServerSpec};

use crate::kills::{
    CUT_OVER, CUTTING_OVER, PROMOTED, RETIRED, RETIRING, STARTED, STARTING, comes_to_nothing,
    is_the_world_after,
};
use crate::support::docked::{COMPOSED, Docked};

/// A server on which agents can be struck, and whose old model is in a container of somebody else's.
async fn docked() -> Result<Docked> {
    let spec = ServerSpec { faults: true, ..ServerSpec::default() };
    let mut docked = Docked::composed_on(spec, &[]).await?;
    docked.world.settings.retain = "0s".to_owned();
    Ok(docked)
}

/// The containers, and what becomes of the old model's, now and when the Engine starts.
fn found(docked: &Docked) -> Result<(Vec<String>, String)> {
    let state = "{{.State.Status}} {{.HostConfig.RestartPolicy.Name}}";
    Ok((docked.names()?, docked.inspect(COMPOSED, state)?))
}

#[tokio::test]
async fn a_swap_to_a_container_whose_agent_is_killed_before_promote_comes_to_nothing() -> Result<()>
{
    let docked = docked().await?;
    let before = found(&docked)?;
    let aims = [
        Aim::After(STARTING),
        // It runs, and no record tells of it.
        Aim::Within(STARTED),
        Aim::After(CUTTING_OVER),
        Aim::Within(CUT_OVER),
        Aim::After(CUT_OVER),
        Aim::Within(PROMOTED),
    ];
    comes_to_nothing(&docked.world, &aims).await?;
    assert_eq!(found(&docked)?, before);
    Ok(())
}

/// Then a third model has taken the old one's place.
#[tokio::test]
async fn a_swap_to_a_container_whose_agent_is_killed_after_promote_has_promoted() -> Result<()> {
    for aim in [Aim::After(PROMOTED), Aim::After(RETIRING), Aim::Within(RETIRED)] {
        let docked = docked().await?;
        is_the_world_after(&docked.world, aim).await.with_context(|| format!("{aim:?}"))?;
        let names = ["model-swap-chat.a", COMPOSED].map(str::to_owned).to_vec();
        assert_eq!(found(&docked)?, (names, "exited unless-stopped".to_owned()), "{aim:?}");
    }
    Ok(())
}
