//! What the server's own logs tell of each swap.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

/// One swap, as its event log has it.
#[derive(Debug, Clone)]
pub(super) struct Story {
    /// The swap's id.
    pub(super) swap: String,
    /// When its first event was written, RFC 3339.
    began: String,
    /// The model that it was to bring.
    model: String,
    /// Whether its end was to have what served before serve again.
    rollback: bool,
    /// How it concluded.
    pub(super) outcome: Option<String>,
    /// Events so far.
    pub(super) events: usize,
    /// Whether it has come so far that the runner's word is awaited.
    pub(super) awaits_word: bool,
}

impl Story {
    /// Whether it has an outcome.
    pub(super) fn is_over(&self) -> bool {
        self.outcome.is_some()
    }

    /// Whether a person is needed.
    pub(super) fn is_stuck(&self) -> bool {
        self.outcome.as_deref() == Some("stuck")
    }

    /// The model that serves because of it; `None` if it left what was there.
    fn brought(&self) -> Option<&str> {
        match self.outcome.as_deref() {
            Some("promoted") => Some(&self.model),
            Some("rolled-back") if self.rollback => Some(&self.model),
            _ => None,
        }
    }
}

/// All swaps of a server in the order in which they were seen to begin: its clock may be set meanwhile.
#[derive(Debug, Default)]
pub(super) struct Stories {
    seen: Vec<String>,
}

impl Stories {
    /// Reads them from the folder with all swaps.
    pub(super) fn read(&mut self, swaps: &Path) -> Result<Vec<Story>> {
        let mut stories = Vec::new();
        for (swap, text) in logs(swaps) {
            stories.extend(story(swap, &text)?);
        }
        stories.sort_by(|one, other| one.began.cmp(&other.began));
        for story in &stories {
            if !self.seen.contains(&story.swap) {
                self.seen.push(story.swap.clone());
            }
        }
        stories.sort_by_key(|story| self.seen.iter().position(|swap| *swap == story.swap));
        Ok(stories)
    }
}

/// All event logs, for a person.
pub(super) fn whole(swaps: &Path) -> String {
    let logs = logs(swaps).into_iter().map(|(_, text)| text);
    logs.collect::<Vec<_>>().join("\n")
}

/// The model that should serve after these.
pub(super) fn serves<'a>(stories: &'a [Story], first: &'a str) -> &'a str {
    stories.iter().rev().find_map(Story::brought).unwrap_or(first)
}

fn logs(swaps: &Path) -> Vec<(String, String)> {
    let folders = fs::read_dir(swaps).into_iter().flatten().flatten();
    let log = |folder: fs::DirEntry| {
        let text = fs::read_to_string(folder.path().join("events.ndjson")).ok()?;
        Some((folder.file_name().to_string_lossy().into_owned(), text))
    };
    folders.filter_map(log).collect()
}

/// `None` where no whole event is written yet.
fn story(swap: String, text: &str) -> Result<Option<Story>> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let mut told: Option<Story> = None;
    for line in whole.lines() {
        let event: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        let kind = &event["kind"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let Some(story) = &mut told else {
            if kind["event"] == "planned" {
                let plan = &kind["plan"];
                told = Some(Story {
                    swap: swap.clone(),
                    began: text(&event["at"]),
                    model: text(&plan["candidate"]["revision"]["model"]),
                    rollback: text(&plan["strategy"]).ends_with("rollback"),
                    outcome: None,
                    events: 1,
                    awaits_word: false,
                });
            }
            continue;
        };
        story.events += 1;
        match kind["event"].as_str() {
            Some("concluded") => story.outcome = Some(text(&kind["outcome"])),
            Some("awaits_word") => story.awaits_word = true,
            _ => {}
        }
    }
    Ok(told)
}
