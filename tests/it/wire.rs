//! The agent's side of the wire, spoken to directly: which versions it answers, and from which event on it tells.

use std::io::{BufRead, BufReader};
use std::process::{Command as Program, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use model_swap::config::{self, Overrides};
use model_swap::model::event::EventKind;
use model_swap::model::line::LONGEST_REQUEST;
use model_swap::model::refusal::Fault;
use model_swap::model::state::Requester;
use model_swap::model::wire::{
    AbortRequest, Asked, Command, ConfirmRequest, Frame, Hello, RepairRequest, Request, SENTINEL,
    Secrets, Unknown, WIRE_VERSION, Wait, Wish,
};
use testbed::end;

use crate::step::Step;
use crate::support::{NEW, World, binary, until};

/// What the agent answers to one line, but for its greeting.
async fn answers(line: String) -> Result<Vec<Frame>> {
    let output = tokio::task::spawn_blocking(move || -> Result<_> {
        let mut agent = Program::new(binary())
            .args(["agent", "session"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut stdin = agent.stdin.take().context("no stdin")?;
        std::io::Write::write_all(&mut stdin, format!("{line}\n").as_bytes())?;
        // The end of the input would say that nobody follows any more.
        let output = end::output(agent)?;
        drop(stdin);
        Ok(output)
    })
    .await??;
    let said = String::from_utf8(output.stdout)?;
    let mut lines = said.lines();
    ensure!(lines.next() == Some(SENTINEL), "no sentinel: {said}");
    lines.map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// Says to the agent of a world what a runner says that has met the new model.
pub(crate) async fn confirm(world: &World, swap: &str, nonce: String) -> Result<()> {
    let command =
        Command::Confirm(ConfirmRequest { asked: asked(world)?, swap: swap.parse()?, nonce });
    let frames = answers(serde_json::to_string(&Request { v: WIRE_VERSION, command })?).await?;
    assert!(matches!(&frames[..], [Frame::Hello(_), Frame::End]), "{frames:?}");
    Ok(())
}

/// What the agent of a world says to a runner that is cancelled.
pub(crate) async fn give_up(world: &World, swap: &str) -> Result<Vec<Frame>> {
    let (of, requester) = (Some(swap.parse()?), Requester::default());
    let asked = asked(world)?;
    let (unknown, wish) = (Unknown::Kept, Wish::GivenUp);
    let wanted = AbortRequest { asked, of, unknown, wish, since: 0, requester };
    answers(serde_json::to_string(&Request { v: WIRE_VERSION, command: Command::Abort(wanted) })?)
        .await
}

fn asked(world: &World) -> Result<Asked> {
    let spec = config::load(&world.config(NEW), "model-swap.yaml", &Overrides::default())
        .map_err(|problems| anyhow::anyhow!("{problems}"))?
        .spec;
    Ok(Asked { spec, secrets: Secrets::default() })
}

#[tokio::test]
async fn another_version_of_the_wire_is_refused_with_both_versions_and_the_way_out() -> Result<()> {
    for v in [0, WIRE_VERSION + 1] {
        // What else a later version says is not for this one to read.
        let frames = answers(format!(r#"{{"v":{v},"command":{{"command":"teleport"}}}}"#)).await?;
        let [Frame::Refused(refusal), Frame::End] = &frames[..] else { panic!("{frames:?}") };
        assert_eq!(refusal.fault, Fault::Environment);
        let said = refusal.failures[0].to_string();
        for text in [format!("speaks version {WIRE_VERSION}"), format!("the runner version {v}")] {
            assert!(said.contains(&text), "no {text:?} in {said}");
        }
        let hints = &refusal.failures[0].hints;
        assert!(hints.iter().any(|hint| hint.contains("same release")), "{hints:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_request_that_does_not_end_is_refused() -> Result<()> {
    let frames = answers("x".repeat(LONGEST_REQUEST)).await?;
    let [Frame::Refused(refusal), Frame::End] = &frames[..] else { panic!("{frames:?}") };
    assert_eq!(refusal.fault, Fault::Input);
    assert_eq!(refusal.failures[0].message, "the request is longer than 1048576 bytes");
    Ok(())
}

/// Each link that is lost would leave one more of them else, root's where the key is tied.
#[tokio::test]
async fn whoever_tells_a_swaps_story_ends_with_the_link() -> Result<()> {
    let mut world = World::start().await?;
    world.settings.flags = "--stub-load-time 10m".to_owned();
    let mut step = Step::start(world.action("swap", NEW, &[])?)?;
    step.says("→ await_ready b").await?;
    let story = world.told();
    let swap = story.split("\"swap\":\"").nth(1).and_then(|rest| rest.split('"').next());
    let swap = swap.context("no swap in the story")?;
    let (asked, wait) = (asked(&world)?, Wait::Promoted);
    let command = Command::Follow { asked, swap: swap.parse()?, since: 0, wait };
    let line = serde_json::to_string(&Request { v: WIRE_VERSION, command })?;
    let mut teller = Program::new(binary())
        .args(["agent", "session"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdin = teller.stdin.take().context("no stdin")?;
    std::io::Write::write_all(&mut stdin, format!("{line}\n").as_bytes())?;
    let mut told = BufReader::new(teller.stdout.take().context("no stdout")?).lines();
    ensure!(
        told.any(|line| line.is_ok_and(|line| line.contains("step_started"))),
        "the story is not told"
    );
    assert!(teller.try_wait()?.is_none(), "it is told while somebody is there");
    drop(stdin);
    let ended =
        until("nobody tells it any more", || matches!(teller.try_wait(), Ok(Some(_)))).await;
    if ended.is_err() {
        teller.kill()?;
    }
    Step::run(world.action("abort", NEW, &[])?).await?.ended(0, "aborted");
    step.finish().await?.ended(6, "aborted");
    ended
}

#[tokio::test]
async fn a_repair_of_a_runner_that_gives_it_no_id_is_answered() -> Result<()> {
    let world = World::start().await?;
    world.run("plan", NEW, &[]).await?.answered(&[]);
    world.run("swap", NEW, &[]).await?.ended(0, "promoted");
    let requester = Requester::default();
    let wanted =
        RepairRequest { asked: asked(&world)?, id: None, lock_wait: Duration::ZERO, requester };
    let line =
        serde_json::to_string(&Request { v: WIRE_VERSION, command: Command::Repair(wanted) })?;
    assert!(!line.contains("\"id\""), "{line}");
    let frames = answers(line).await?;
    let [Frame::Hello(_), Frame::Unchanged { reason, .. }, Frame::End] = &frames[..] else {
        panic!("{frames:?}")
    };
    assert_eq!(reason, "no swap of service chat needs repair");
    Ok(())
}

#[tokio::test]
async fn a_follower_is_told_what_came_after_the_last_event_that_it_knows() -> Result<()> {
    let world = World::start().await?;
    let run = world.run("swap", NEW, &[]).await?.ended(0, "promoted");
    let follow = async |since: u64| -> Result<Vec<u64>> {
        let command = Command::Follow {
            asked: asked(&world)?,
            swap: run.output("swap-id").parse()?,
            since,
            wait: Wait::Promoted,
        };
        let frames = answers(serde_json::to_string(&Request { v: WIRE_VERSION, command })?).await?;
        let [Frame::Hello(Hello { v, .. }), events @ .., Frame::End] = &frames[..] else {
            panic!("{frames:?}")
        };
        assert_eq!(*v, WIRE_VERSION);
        if let Some(last) = events.last() {
            let Frame::Event(last) = last else { panic!("{last:?}") };
            assert!(matches!(last.kind, EventKind::Concluded(_)), "{last:?}");
        }
        let number = |frame: &Frame| match frame {
            Frame::Event(event) => event.seq,
            other => panic!("{other:?}"),
        };
        Ok(events.iter().map(number).collect())
    };
    let all = follow(0).await?;
    let last = all.len() as u64;
    assert!(last > 10, "{all:?}");
    assert_eq!(all, (1..=last).collect::<Vec<_>>(), "without gaps");
    assert_eq!(follow(4).await?, (5..=last).collect::<Vec<_>>());
    assert_eq!(follow(last).await?, [0_u64; 0], "all is known");
    Ok(())
}
