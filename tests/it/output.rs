//! What a person, a program and a browser get to see.

use std::fs;
use std::path::Path;
use std::process::Output;

use anyhow::{Context, Result};
use serde_json::Value;
use testbed::end;

use crate::commands::Terminal;
use crate::support::{NEW, OLD, World, binary};

/// Runs a command of the binary in a terminal of its own, as `script` makes one.
async fn in_terminal(terminal: &Terminal, words: &str, env: &[(&str, &str)]) -> Result<String> {
    let mut command = terminal.command(Path::new("script"));
    let line = format!("{} {words}", binary().display());
    command.args(["-qec", &line, "/dev/null"]).env("TERM", "xterm").envs(env.iter().copied());
    let output: Output = tokio::task::spawn_blocking(move || end::run(&mut command)).await??;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    anyhow::ensure!(output.status.success(), "{words}: {}\n{said}", output.status);
    Ok(said)
}

#[tokio::test]
async fn a_terminal_gets_colour_and_a_bar_a_program_gets_events_and_a_browser_a_page() -> Result<()>
{
    let mut world = World::start().await?;
    // The new model serves for some samples before the story ends.
    world.settings.retain = "3s".to_owned();
    let terminal = Terminal::at(&world)?;
    let load = world.load().await?;
    let words = "swap --host local --wait retired --report out/report.html";
    let said = in_terminal(&terminal, words, &[]).await?;
    for part in [
        "\u{1b}[32m",
        "✓ await_ready b",
        "] 2/7 await_ready b",
        "\u{1b}[1mPrepare Qwen/New in slot b",
    ] {
        assert!(said.contains(part), "no {part:?} in\n{said}");
    }
    let words = "swap --host local --force --wait retired";
    for env in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let plain = in_terminal(&terminal, words, &[env]).await?;
        assert!(
            plain.contains("✓ promote") && !plain.contains(['\u{1b}', '[']),
            "{env:?}\n{plain}"
        );
    }
    let mut piped = terminal.command(&binary());
    piped.args(words.split(' ')).env("TERM", "xterm");
    let piped = tokio::task::spawn_blocking(move || end::run(&mut piped)).await??;
    let plain = String::from_utf8(piped.stdout)? + &String::from_utf8(piped.stderr)?;
    assert!(plain.contains("✓ promote") && !plain.contains(['\u{1b}', '[', '\r']), "{plain}");

    let page = fs::read_to_string(terminal.folder.path().join("out/report.html"))?;
    for part in [
        "<title>chat: promoted</title>",
        &format!("slot a, {OLD}<small> at most "),
        &format!("slot b, {NEW}</td><td>"),
        "✓ promote b in",
    ] {
        assert!(page.contains(part), "no {part:?} in\n{page}");
    }

    let output = terminal.run("swap --host local --model Qwen/Newer --json").await?;
    let said = String::from_utf8(output.stdout)?;
    let frames: Vec<Value> =
        said.lines().map(serde_json::from_str).collect::<Result<_, _>>().context(said.clone())?;
    assert_eq!(frames[0]["frame"], "accepted", "{said}");
    let events: Vec<&str> =
        frames.iter().filter_map(|frame| frame["kind"]["event"].as_str()).collect();
    assert_eq!((events.first(), events.last()), (Some(&"planned"), Some(&"concluded")), "{said}");
    assert!(events.contains(&"sampled") && output.stderr.is_empty(), "{said}");
    let numbers: Vec<u64> = frames.iter().filter_map(|frame| frame["seq"].as_u64()).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    load.stop().await.assert_clean();

    let checked = terminal.run("doctor --host local --json").await?;
    let said = String::from_utf8(checked.stdout)?;
    let frame: Value = serde_json::from_str(&said).context(said.clone())?;
    assert_eq!(
        (&frame["frame"], frame["parts"].as_array().map(Vec::len)),
        (&"checkup".into(), Some(2))
    );
    let found = frame["parts"][1]["findings"].as_array().context(said.clone())?;
    assert!(found.iter().any(|finding| finding["what"] == "nginx running"), "{said}");

    let given_back = terminal.run("uninstall --host local --retire-now --json").await?;
    let said = String::from_utf8(given_back.stdout)?;
    let frame: Value = serde_json::from_str(said.lines().next_back().unwrap_or_default())?;
    assert_eq!(frame["frame"], "uninstalled", "{said}");
    assert!(frame["removed"].as_array().is_some_and(|gone| !gone.is_empty()), "{said}");

    let refused = terminal.run("swap --host local --config none.yaml --json").await?;
    let said = String::from_utf8(refused.stdout)?;
    let frame: Value = serde_json::from_str(&said)?;
    assert_eq!((refused.status.code(), &frame["frame"]), (Some(2), &"refused".into()), "{said}");
    assert!(String::from_utf8(refused.stderr)?.starts_with("error: cannot read the configuration"));
    Ok(())
}
