//! The main job on every runtime: plain processes, units of systemd, containers of Docker. One story, told three times,
//! under load, with the oracle at zero.

use anyhow::Result;
use testbed::load::{Fault, Kind, Load, LoadSpec};
use testbed::service::NAME;

use crate::drain::{Cut, Unfinished, fingerprint};
use crate::step::Step;
use crate::support::docked::Docked;
use crate::support::guest::{GuestWorld, until};
use crate::support::scene::{Kept, Scene, below};
use crate::support::{NEW, OLD, Run, World};
use crate::uninstall::{UNINSTALL, says};

const NEWER: &str = "Qwen/Newer";
/// Flags of a model that loads for longer than anybody waits.
const LOADING: &str = "--stub-load-time 600s";
const RETIRED: [(&str, &str); 1] = [("wait", "retired")];

/// A test of every scenario on every runtime; in brackets, more flags for the old model.
macro_rules! on_every_runtime {
    ($($scenario:ident $(($flags:expr))?,)*) => {
        on_every_runtime!(process World $($scenario ($($flags)?))*);
        on_every_runtime!(systemd GuestWorld $($scenario ($($flags)?))*);
        on_every_runtime!(docker Docked $($scenario ($($flags)?))*);
    };
    ($runtime:ident $scene:ident $($scenario:ident ($($flags:expr)?))*) => {
        mod $runtime {
            use super::*;
            $(#[test]
            fn $scenario() -> Result<()> {
                <$scene as Scene>::play(concat!($($flags)?), super::$scenario::<$scene>)
            })*
        }
    };
}

on_every_runtime! {
    no_request_notices_a_swap,
    a_rollback_goes_back_to_what_is_warm,
    an_old_model_is_put_away_and_comes_back_by_its_own_means,
    models_of_ours_take_turns_in_the_slots,
    one_that_is_not_healthy_is_undone,
    one_that_dies_while_it_loads_shows_its_last_words,
    // Its streams last for seconds.
    the_old_model_ends_after_its_last_stream_and_its_last_upload("--stub-token-delay 20ms"),
    an_old_model_that_may_be_cut_ends_with_what_is_in_flight("--stub-token-delay 20ms"),
    a_swap_whose_model_loads_is_aborted_at_once,
    a_cancelled_job_gives_its_swap_up,
    the_same_again_moves_nothing,
    a_swap_whose_agent_is_killed_is_brought_to_its_end,
    an_uninstall_leaves_what_serves_and_gives_the_rest_back,
}

async fn no_request_notices_a_swap<S: Scene>(scene: &mut S) -> Result<()> {
    let load = scene.traffic().await?;
    let run = scene.does("swap", NEW, &[]).await?.ended(0, "promoted");
    scene.until_meets(NEW).await?;
    assert_eq!(run.output("slot"), "b");
    assert!(run.output("revision").starts_with("r-"), "{run}");
    assert!(run.output("previous-revision").starts_with("adopted-"), "{run}");
    assert_eq!(scene.ours().await?, [('b', S::SERVING)]);
    assert_eq!(scene.old().await?, S::SERVING, "it is kept warm");
    assert_eq!(scene.claimed()?, ['a', 'b']);
    load.stop().await.assert_clean();
    Ok(())
}

async fn a_rollback_goes_back_to_what_is_warm<S: Scene>(scene: &mut S) -> Result<()> {
    let load = scene.traffic().await?;
    let swap = scene.does("swap", NEW, &[]).await?.ended(0, "promoted");
    let back = scene.does("rollback", NEW, &RETIRED).await?.ended(0, "rolled-back");
    scene.until_meets(OLD).await?;
    assert!(back.stdout.contains("Plan for chat: warm rollback"), "{back}");
    assert!(!back.stdout.contains("start_replica"), "nothing had to start: {back}");
    assert_eq!(back.output("revision"), swap.output("previous-revision"));
    assert_eq!(scene.ours().await?, []);
    assert_eq!(scene.old().await?, S::SERVING);
    assert_eq!(scene.claimed()?, ['a'], "the other slot is anybody's again");

    // And forward again: the old model was adopted once and is the incumbent as before.
    scene.does("swap", NEW, &[]).await?.ended(0, "promoted");
    scene.until_meets(NEW).await?;
    load.stop().await.assert_clean();
    Ok(())
}

async fn an_old_model_is_put_away_and_comes_back_by_its_own_means<S: Scene>(
    scene: &mut S,
) -> Result<()> {
    scene.settings().retain = "0s".to_owned();
    let load = scene.traffic().await?;
    let swap = scene.does("swap", NEW, &RETIRED).await?.ended(0, "promoted");
    for text in
        ["✓ drain a in ", "✓ retire a in ", "slot a is free: its replica is drained and gone"]
    {
        assert!(swap.stdout.contains(text), "no {text:?} in\n{swap}");
    }
    assert!(swap.summary.contains("Slot a is free"), "{swap}");
    assert!(!swap.summary.contains("### Roll back"), "nothing to go back to: {swap}");
    assert_eq!(scene.old().await?, S::PUT_AWAY, "{swap}");
    assert_eq!(scene.ours().await?, [('b', S::SERVING)]);
    assert_eq!(scene.claimed()?, ['b']);

    let back = scene.does("rollback", NEW, &RETIRED).await?.ended(0, "rolled-back");
    assert!(back.stdout.contains("Plan for chat: cold rollback"), "{back}");
    scene.until_meets(OLD).await?;
    assert_eq!(back.output("revision"), swap.output("previous-revision"));
    assert_eq!(scene.old().await?, S::SERVING, "{back}");
    assert_eq!(scene.ours().await?, []);
    let again = scene.does("rollback", NEW, &[]).await?.ended(0, "unchanged");
    assert!(again.stdout.contains("what serves was brought back by"), "{again}");
    load.stop().await.assert_clean();
    Ok(())
}

async fn models_of_ours_take_turns_in_the_slots<S: Scene>(scene: &mut S) -> Result<()> {
    scene.settings().retain = "0s".to_owned();
    let load = scene.traffic().await?;
    let first = scene.does("swap", NEW, &RETIRED).await?.ended(0, "promoted");
    scene.does("swap", NEWER, &RETIRED).await?.ended(0, "promoted");
    scene.until_meets(NEWER).await?;
    assert_eq!(scene.ours().await?, [('a', S::SERVING)]);
    let back = scene.does("rollback", NEW, &RETIRED).await?.ended(0, "rolled-back");
    scene.until_meets(NEW).await?;
    assert_eq!(back.output("revision"), first.output("revision"));
    assert_eq!(scene.ours().await?, [('b', S::SERVING)], "{back}");
    assert_eq!(scene.claimed()?, ['b']);
    load.stop().await.assert_clean();
    Ok(())
}

async fn one_that_is_not_healthy_is_undone<S: Scene>(scene: &mut S) -> Result<()> {
    scene.settings().ready = "1s".to_owned();
    let says = ["was not ready within 1s", "/health answered 503"];
    fails(scene, "--stub-health-status 503", &says).await.map(drop)
}

async fn one_that_dies_while_it_loads_shows_its_last_words<S: Scene>(scene: &mut S) -> Result<()> {
    let says = ["ended before it was ready", "torch.OutOfMemoryError: CUDA out of memory"];
    let flags = "--stub-load-time 10m --stub-die-after 300ms --stub-child";
    let run = fails(scene, flags, &says).await?;
    assert!(run.summary.contains("torch.OutOfMemoryError"), "{run}");
    Ok(())
}

/// Swaps with these flags: it fails in these words, nothing of it is left, and a good swap after it succeeds.
async fn fails<S: Scene>(scene: &mut S, flags: &str, says: &[&str]) -> Result<Run> {
    let workers = scene.workers().await?;
    let load = scene.traffic().await?;
    scene.settings().flags = flags.to_owned();
    let run = scene.does("swap", NEW, &[]).await?.ended(4, "failed");
    for text in [&["✗ await_ready b after ", "Qwen/Old serves from slot a"], says].concat() {
        assert!(run.stdout.contains(text), "no {text:?} in\n{run}");
    }
    assert_eq!(scene.ours().await?, [], "{run}");
    assert!(scene.claimed()?.is_empty(), "{run}");
    assert_eq!(scene.old().await?, S::SERVING);
    assert_eq!(scene.workers().await?, workers, "nginx was reloaded");
    scene.settings().flags = String::new();
    scene.settings().ready = "2m".to_owned();
    scene.does("swap", NEW, &[]).await?.ended(0, "promoted");
    scene.until_meets(NEW).await?;
    load.stop().await.assert_clean();
    Ok(run)
}

async fn the_old_model_ends_after_its_last_stream_and_its_last_upload<S: Scene>(
    scene: &mut S,
) -> Result<()> {
    scene.settings().retain = "0s".to_owned();
    let addr = scene.nginx();
    let old = fingerprint(addr).await?;
    let load = scene.traffic().await?;
    // Six and eight seconds, where all others take two at most: at any moment one of them is in flight.
    let long = |stream_tokens| {
        Load::start(LoadSpec { streams: 1, stream_tokens, ..LoadSpec::none(addr, NAME) })
    };
    let longest = [long(300), long(400)];
    for long in &longest {
        long.wait_until(|tally| tally.in_flight(Kind::Stream) == 1).await?;
    }
    let (head, upload) =
        (Unfinished::begin(addr, Cut::InHead).await?, Unfinished::begin(addr, Cut::InBody).await?);
    let running = scene.step("swap", NEW, &RETIRED)?.spawn()?;
    scene.until_meets(NEW).await?;
    let ended = || longest.iter().map(|long| long.tally().answered_by(&old)).sum::<u64>();
    let before = ended();
    assert_eq!(head.finish().await?, old, "half a head is the old worker's, and the old model's");
    assert_eq!(upload.finish().await?, old, "so is half a body");
    // One that the old model did not outlive would be a fault below.
    until("a stream of the old model ends", async || Ok(ended() > before)).await?;
    let run = running.finish().await?.ended(0, "promoted");
    assert!(run.stdout.contains("slot a is free"), "{run}");
    assert_eq!(scene.old().await?, S::PUT_AWAY, "{run}");
    for long in longest {
        long.stop().await.assert_clean();
    }
    load.stop().await.assert_clean();
    Ok(())
}

/// Its keeper kills it, and does not start it again; a rollback does.
async fn an_old_model_that_may_be_cut_ends_with_what_is_in_flight<S: Scene>(
    scene: &mut S,
) -> Result<()> {
    scene.settings().retain = "0s".to_owned();
    scene.settings().drain = "{ timeout: 2s, on_timeout: cut }".to_owned();
    // It lasts for half an hour.
    let long =
        LoadSpec { streams: 1, stream_tokens: 90_000, ..LoadSpec::none(scene.nginx(), NAME) };
    let stream = Load::start(long);
    stream.wait_until(|tally| tally.in_flight(Kind::Stream) == 1).await?;
    let run = scene.does("swap", NEW, &RETIRED).await?.ended(0, "promoted");
    for text in ["cutting what is left: 1 request in the engine", "had to be killed"] {
        assert!(run.stdout.contains(text), "no {text:?} in\n{run}");
    }
    assert_eq!(scene.old().await?, S::PUT_AWAY, "{run}");
    stream.wait_until(|tally| tally.lost_of(Kind::Stream, Fault::Truncated) == 1).await?;
    drop(stream);
    scene.does("rollback", NEW, &RETIRED).await?.ended(0, "rolled-back");
    scene.until_meets(OLD).await
}

/// A step whose swap waits for a model that loads.
async fn loading<S: Scene>(scene: &mut S) -> Result<Step> {
    scene.settings().flags = LOADING.to_owned();
    scene.settings().ready = "900s".to_owned();
    let mut step = Step::start(scene.step("swap", NEW, &[])?)?;
    step.says("→ await_ready b").await?;
    assert_eq!(scene.ours().await?, [('b', Kept::Runs)], "no boot needs it yet");
    Ok(step)
}

/// Nothing of a swap is left but its record.
async fn given_up<S: Scene>(scene: &S, record: &str) -> Result<()> {
    until("nothing of ours is left", async || Ok(scene.ours().await?.is_empty())).await?;
    until("nothing is claimed", async || Ok(scene.claimed()?.is_empty())).await?;
    assert_eq!(scene.old().await?, S::SERVING);
    scene.until_meets(OLD).await?;
    scene.does("status", NEW, &[]).await?.answered(&["nobody is at work", record]);
    Ok(())
}

async fn a_swap_whose_model_loads_is_aborted_at_once<S: Scene>(scene: &mut S) -> Result<()> {
    let load = scene.traffic().await?;
    let step = loading(scene).await?;
    let abort = Step::run(scene.step("abort", NEW, &[])?).await?.ended(0, "aborted");
    let swap = step.finish().await?.ended(6, "aborted");
    assert_eq!(abort.output("swap-id"), swap.output("swap-id"), "{abort}\n{swap}");
    for text in ["✗ await_ready b after ", " asked to abort", "traffic is where it was: "] {
        assert!(swap.stdout.contains(text), "no {text:?} in\n{swap}");
    }
    assert!(swap.summary.contains("aborted"), "{swap}");
    assert_eq!(scene.ours().await?, [], "{swap}");
    given_up(scene, "aborted      Qwen/New").await?;
    load.stop().await.assert_clean();
    Ok(())
}

async fn a_cancelled_job_gives_its_swap_up<S: Scene>(scene: &mut S) -> Result<()> {
    let load = scene.traffic().await?;
    let step = loading(scene).await?;
    step.signal("-INT")?;
    let run = step.finish().await?.ended(6, "aborted");
    assert!(run.stdout.contains("traffic is where it was: Qwen/Old serves from slot a"), "{run}");
    // The rest is the server's.
    given_up(scene, "aborted      Qwen/New").await?;
    load.stop().await.assert_clean();
    Ok(())
}

async fn the_same_again_moves_nothing<S: Scene>(scene: &mut S) -> Result<()> {
    let load = scene.traffic().await?;
    let first = scene.does("swap", NEW, &[]).await?.ended(0, "promoted");
    scene.until_meets(NEW).await?;
    let workers = scene.workers().await?;
    let again = scene.does("swap", NEW, &[]).await?.ended(0, "unchanged");
    assert!(again.stdout.contains("unchanged: Qwen/New"), "{again}");
    for name in ["swap-id", "revision", "slot", "rollback-until"] {
        assert_eq!(again.output(name), first.output(name), "{again}");
    }
    // Old ones may have gone meanwhile.
    let now = scene.workers().await?;
    assert!(now.is_subset(&workers), "nginx was reloaded: {workers:?} {now:?}");
    assert_eq!(scene.ours().await?, [('b', S::SERVING)]);
    assert_eq!(scene.old().await?, S::SERVING, "it is still kept warm");
    let plan = scene.does("plan", NEW, &[]).await?;
    plan.answered(&["unchanged: Qwen/New"]);
    load.stop().await.assert_clean();
    Ok(())
}

/// Where systemd brings an agent back, that one does it; elsewhere the step asks for another one.
async fn a_swap_whose_agent_is_killed_is_brought_to_its_end<S: Scene>(scene: &mut S) -> Result<()> {
    let load = scene.traffic().await?;
    let step = loading(scene).await?;
    scene.kill_agent().await?;
    // The step follows the successor to the end of the story.
    let run = step.finish().await?.ended(4, "failed");
    assert!(run.stdout.contains("the agent that worked on this swap ended"), "{run}");
    assert_eq!(run.stdout.contains("asking the server to bring"), !S::RESUMES, "{run}");
    given_up(scene, "failed       Qwen/New").await?;
    scene.settings().flags = String::new();
    scene.does("swap", NEW, &[]).await?.ended(0, "promoted");
    scene.until_meets(NEW).await?;
    load.stop().await.assert_clean();
    Ok(())
}

async fn an_uninstall_leaves_what_serves_and_gives_the_rest_back<S: Scene>(
    scene: &mut S,
) -> Result<()> {
    scene.settings().retain = "0s".to_owned();
    let load = scene.traffic().await?;
    scene.does("swap", NEW, &RETIRED).await?.ended(0, "promoted");
    let terminal = scene.terminal()?;
    let (code, said) = says(&terminal, UNINSTALL).await?;
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("serves on, port"), "{said}");
    scene.until_meets(NEW).await?;
    assert_eq!(scene.ours().await?, [('b', S::SERVING)], "{said}");
    assert_eq!(scene.old().await?, S::PUT_AWAY, "{said}");
    let way_back = said.lines().any(|line| {
        line.contains(": it served before, is stopped,") && line.ends_with("brings it back")
    });
    assert_eq!(way_back, S::PUT_AWAY == Kept::Stopped, "{said}");
    // What ran the command may take a moment to end.
    until("nothing else is left", async || {
        let left = [below(&scene.state()?)?, scene.outside()?].concat();
        Ok(left.iter().all(|path| S::NEEDED.iter().any(|name| path.ends_with(name))))
    })
    .await?;

    // Whoever changes their mind swaps again: what serves is adopted, and goes as ever.
    scene.does("swap", NEWER, &RETIRED).await?.ended(0, "promoted");
    scene.until_meets(NEWER).await?;
    assert_eq!(scene.ours().await?, [('a', S::SERVING)]);
    load.stop().await.assert_clean();
    Ok(())
}
