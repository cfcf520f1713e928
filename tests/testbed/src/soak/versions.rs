//! Records that an agent of another version has left.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use super::runner::signal;
use super::story::Story;
use super::{LOOK_AGAIN, Scene};
use crate::PATIENCE;
use crate::service::{NAME, Settings};

const JOURNAL: &str = "journal.ndjson";

/// What the first version of the journal did not know of: it had plain processes only.
const SINCE: [&str; 4] = ["keeper", "unbooted", "invocation", "revision"];

/// Rewrites a journal as its first version would have written it: an older agent has died over this swap.
fn make_older(journal: &Path) -> Result<()> {
    let mut text = String::new();
    for line in whole(&fs::read_to_string(journal)?).lines() {
        let mut record: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        record["v"] = 1.into();
        for part in ["undo", "done"] {
            let Some(part) = record["kind"].get_mut(part).and_then(Value::as_object_mut) else {
                continue;
            };
            SINCE.iter().for_each(|name| drop(part.remove(*name)));
        }
        text += &format!("{record}\n");
    }
    Ok(fs::write(journal, text)?)
}

/// A file as a newer agent has written it, and as it was.
struct Newer {
    file: PathBuf,
    was: String,
    is: String,
}

impl Newer {
    /// Writes a version into the file that nobody knows yet; of a journal, into every line.
    fn make(file: PathBuf) -> Result<Self> {
        let was = fs::read_to_string(&file)?;
        let mut is = String::new();
        // What the service's state is written as has one value, and a journal has one a line.
        for value in serde_json::Deserializer::from_str(whole(&was)).into_iter::<Value>() {
            let mut value = value.with_context(|| was.clone())?;
            value["v"] = 99.into();
            is += &format!("{value}\n");
        }
        fs::write(&file, &is)?;
        Ok(Self { file, was, is })
    }

    /// Nobody has written on; and it is as it was again.
    fn take_back(self) -> Result<()> {
        let now = fs::read_to_string(&self.file)?;
        ensure!(now == self.is, "{} of a newer agent was changed:\n{now}", self.file.display());
        Ok(fs::write(&self.file, self.was)?)
    }
}

/// All but a torn last line. The state's file may end without the end of a line.
fn whole(text: &str) -> &str {
    if text.trim_end().ends_with('}') {
        return text;
    }
    text.rfind('\n').map_or("", |end| &text[..=end])
}

/// Kills the agents, and has an older one meet what they have left: it refuses, and touches nothing. Says whether there was
/// anything.
pub(super) async fn read_by_older(scene: &mut Scene<'_>) -> Result<bool> {
    let stories = dead(scene).await?;
    let Some(newest) = stories.last() else { return Ok(false) };
    let state = scene.server.state_dir().join(NAME).join("state.json");
    let journal = scene.swaps().join(&newest.swap).join(JOURNAL);
    // Over a swap that is at its end others go on, by what the service's state says.
    let file = if newest.is_over() { state } else { journal };
    if !file.exists() {
        return Ok(false);
    }
    let before = fs::read_to_string(scene.server.nginx_config())?;
    let newer = Newer::make(file)?;
    let run = scene.action("swap", "Qwen/Third", &Settings::default())?.spawn()?.finish().await?;
    let is_refused = matches!(run.code, 3 | 7) && run.stdout.contains("; this binary knows ");
    ensure!(is_refused, "what a newer agent has left was to be refused: {run}");
    let after = fs::read_to_string(scene.server.nginx_config())?;
    ensure!(after == before, "nginx's file was changed:\n{before}\n{after}\n{run}");
    newer.take_back()?;
    Ok(true)
}

/// Kills the agents, and makes them older ones. Says whether they have left anything.
pub(super) async fn left_by_older(scene: &mut Scene<'_>) -> Result<bool> {
    let stories = dead(scene).await?;
    for story in &stories {
        make_older(&scene.swaps().join(&story.swap).join(JOURNAL))?;
    }
    Ok(!stories.is_empty())
}

/// What they have left, once they are gone.
async fn dead(scene: &mut Scene<'_>) -> Result<Vec<Story>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let agents = scene.agents();
        if agents.is_empty() {
            return scene.stories();
        }
        ensure!(Instant::now() < deadline, "{agents:?} outlive SIGKILL");
        agents.into_iter().for_each(|pid| signal(pid, Signal::KILL));
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
