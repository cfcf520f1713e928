//! What the server's own logs tell of each swap.

use std::fs;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::server::GpuServer;
use crate::service::NAME;

/// One swap, as its event log has it.
#[derive(Debug, Clone)]
pub(super) struct Story {
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
}

impl Story {
    /// Whether it has an outcome.
    pub(super) fn is_over(&self) -> bool {
        self.outcome.is_some()
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

/// Every swap that began, in the order of their beginnings.
pub(super) fn read(server: &GpuServer) -> Result<Vec<Story>> {
    let mut stories: Vec<Story> = logs(server)
        .into_iter()
        .map(|text| story(&text))
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .flatten()
        .collect();
    stories.sort_by(|one, other| one.began.cmp(&other.began));
    Ok(stories)
}

/// All event logs, for a person.
pub(super) fn whole(server: &GpuServer) -> String {
    logs(server).join("\n")
}

/// The model that should serve after these.
pub(super) fn serves<'a>(stories: &'a [Story], first: &'a str) -> &'a str {
    stories.iter().rev().find_map(Story::brought).unwrap_or(first)
}

fn logs(server: &GpuServer) -> Vec<String> {
    let swaps = fs::read_dir(server.state_dir().join(NAME).join("swaps"));
    let folders = swaps.into_iter().flatten().flatten().map(|swap| swap.path());
    folders.filter_map(|swap| fs::read_to_string(swap.join("events.ndjson")).ok()).collect()
}

/// `None` where no whole event is written yet.
fn story(text: &str) -> Result<Option<Story>> {
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let mut told: Option<Story> = None;
    for line in whole.lines() {
        let event: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        let kind = &event["kind"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        match (kind["event"].as_str(), &mut told) {
            (Some("planned"), None) => {
                let plan = &kind["plan"];
                told = Some(Story {
                    began: text(&event["at"]),
                    model: text(&plan["candidate"]["revision"]["model"]),
                    rollback: text(&plan["strategy"]).ends_with("rollback"),
                    outcome: None,
                    events: 1,
                });
            }
            (Some("concluded"), Some(story)) => {
                story.events += 1;
                story.outcome = Some(text(&kind["outcome"]));
            }
            (_, Some(story)) => story.events += 1,
            (_, None) => {}
        }
    }
    Ok(told)
}
