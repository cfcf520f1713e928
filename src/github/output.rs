//! What a step leaves: its outputs and its part of the job summary.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::command::{NoRandomness, random_token};
use super::deployment::DeploymentId;
use crate::model::failure::Hint;
use crate::model::ids::{SlotName, SwapId};
use crate::model::outcome::Outcome;

/// Every output of the action, in the order of `action.yml`.
pub const OUTPUTS: [&str; 8] = [
    "outcome",
    "swap-id",
    "revision",
    "previous-revision",
    "slot",
    "plan-digest",
    "deployment-id",
    "rollback-until",
];

/// The most that GitHub takes as one step's summary (documentation, "Workflow commands": 1 MiB); more is dropped whole.
pub const SUMMARY_LIMIT: usize = 1 << 20;

/// Stands above a summary that was cut: below, it could end up inside a fenced block.
const CUT_NOTE: &str = "> The rest of this summary was cut: GitHub takes at most 1 MiB.\n\n";

/// The outputs of one step; what is `None` is not written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outputs {
    /// How the command ended.
    pub outcome: Option<Outcome>,
    /// The swap, for a later `rollback`.
    pub swap_id: Option<SwapId>,
    /// Digest of the revision that serves.
    pub revision: Option<String>,
    /// Digest of the revision that served before.
    pub previous_revision: Option<String>,
    /// The slot that serves.
    pub slot: Option<SlotName>,
    /// Digest of the plan that was asked for.
    pub plan_digest: Option<String>,
    /// GitHub's id of the deployment.
    pub deployment_id: Option<DeploymentId>,
    /// Until when a warm rollback is possible, RFC 3339.
    pub rollback_until: Option<Timestamp>,
}

/// An output or the summary could not be written.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The file would not take it.
    #[error("cannot append to {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The value holds the delimiter that was to end it.
    #[error("the value of output {name} holds the delimiter {delimiter}")]
    Delimiter {
        /// The output.
        name: &'static str,
        /// The delimiter.
        delimiter: String,
    },
    /// No delimiter that a value cannot guess.
    #[error("cannot make a delimiter for the step's outputs")]
    Randomness(#[from] NoRandomness),
}

impl Hint for OutputError {}

/// Appends the outputs to the file that `GITHUB_OUTPUT` names.
///
/// The runner reads it also after a step that failed, was cancelled or was killed: `ActionRunner.RunAsync` calls
/// `FileCommandManager.ProcessFiles` in the `finally` of the step (actions/runner, `src/Runner.Worker`). Only where the runner itself
/// is lost nobody does.
///
/// # Errors
/// If the file cannot be written or no safe delimiter can be made.
pub fn write_outputs(path: &Path, outputs: &Outputs) -> Result<(), OutputError> {
    let text = format_outputs(outputs, &format!("ghadelimiter_{}", random_token()?))?;
    append(path, &text)
}

/// Appends that there is no swap after all: of two lines for one output the later one wins (`SetOutputFileCommand`, there), and to a
/// workflow an empty output is none.
///
/// # Errors
/// If the file cannot be written.
pub fn withdraw_swap(path: &Path) -> Result<(), OutputError> {
    append(path, "swap-id=\n")
}

/// Appends a variable to the file that `GITHUB_STATE` names. Name and value are one line each.
///
/// # Errors
/// If the file cannot be written.
pub fn append_state(path: &Path, name: &str, value: &str) -> Result<(), OutputError> {
    append(path, &format!("{name}={value}\n"))
}

/// Appends Markdown to the file that `GITHUB_STEP_SUMMARY` names, cut to what GitHub takes.
///
/// # Errors
/// If the file cannot be written.
pub fn append_summary(path: &Path, markdown: &str) -> Result<(), OutputError> {
    let present = std::fs::metadata(path).map_or(0, |found| found.len());
    let room = SUMMARY_LIMIT.saturating_sub(usize::try_from(present).unwrap_or(SUMMARY_LIMIT));
    append(path, &fitted(markdown, room))
}

fn format_outputs(outputs: &Outputs, delimiter: &str) -> Result<String, OutputError> {
    let Outputs {
        outcome,
        swap_id,
        revision,
        previous_revision,
        slot,
        plan_digest,
        deployment_id,
        rollback_until,
    } = outputs;
    let values = [
        outcome.map(|outcome| outcome.to_string()),
        swap_id.as_ref().map(SwapId::to_string),
        revision.clone(),
        previous_revision.clone(),
        slot.as_ref().map(SlotName::to_string),
        plan_digest.clone(),
        deployment_id.map(|id| id.to_string()),
        rollback_until.map(|until| until.to_string()),
    ];
    let mut text = String::new();
    for (name, value) in OUTPUTS.into_iter().zip(values) {
        let Some(value) = value else { continue };
        if value.contains(delimiter) {
            return Err(OutputError::Delimiter { name, delimiter: delimiter.to_owned() });
        }
        text.push_str(&format!("{name}<<{delimiter}\n{value}\n{delimiter}\n"));
    }
    Ok(text)
}

fn fitted(markdown: &str, room: usize) -> String {
    if markdown.len() <= room {
        return markdown.to_owned();
    }
    let Some(kept) = room.checked_sub(CUT_NOTE.len()) else { return String::new() };
    let end = (0..=kept).rev().find(|end| markdown.is_char_boundary(*end)).unwrap_or(0);
    format!("{CUT_NOTE}{}", &markdown[..end])
}

fn append(path: &Path, text: &str) -> Result<(), OutputError> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|source| OutputError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Outputs {
        Outputs {
            outcome: Some(Outcome::RolledBack),
            swap_id: Some("s-1".parse().unwrap()),
            revision: Some("r-1".to_owned()),
            previous_revision: Some("r-0\nr-0".to_owned()),
            slot: Some("b".parse().unwrap()),
            plan_digest: None,
            deployment_id: Some(DeploymentId(77)),
            rollback_until: Some("2026-11-23T09:25:00Z".parse().unwrap()),
        }
    }

    #[test]
    fn outputs_are_delimited() {
        assert_eq!(
            format_outputs(&full(), "EOF").unwrap(),
            "outcome<<EOF\nrolled-back\nEOF\n\
             swap-id<<EOF\ns-1\nEOF\n\
             revision<<EOF\nr-1\nEOF\n\
             previous-revision<<EOF\nr-0\nr-0\nEOF\n\
             slot<<EOF\nb\nEOF\n\
             deployment-id<<EOF\n77\nEOF\n\
             rollback-until<<EOF\n2026-11-23T09:25:00Z\nEOF\n"
        );
        assert_eq!(format_outputs(&Outputs::default(), "EOF").unwrap(), "");
    }

    #[test]
    fn a_value_that_holds_the_delimiter_is_refused() {
        let outputs = Outputs { revision: Some("x\nEOF\nslot=a".to_owned()), ..Outputs::default() };
        let error = format_outputs(&outputs, "EOF").unwrap_err();
        assert_eq!(error.to_string(), "the value of output revision holds the delimiter EOF");
    }

    #[test]
    fn the_file_is_appended_to() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("output");
        std::fs::write(&path, "before=1\n").unwrap();
        write_outputs(&path, &full()).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("before=1\noutcome<<ghadelimiter_"), "{text}");
        let error = write_outputs(&folder.path().join("none/output"), &full()).unwrap_err();
        assert!(error.to_string().ends_with("/none/output"), "{error}");
    }

    #[test]
    fn a_swap_that_was_put_out_and_never_began_is_taken_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("output");
        write_outputs(&path, &full()).unwrap();
        withdraw_swap(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().last(), Some(&*format!("{}=", OUTPUTS[1])), "{text}");
    }

    #[test]
    fn a_summary_never_exceeds_what_github_takes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("summary");
        append_summary(&path, "short\n").unwrap();
        append_summary(&path, &"é".repeat(SUMMARY_LIMIT)).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.len() <= SUMMARY_LIMIT && text.len() > SUMMARY_LIMIT - 4, "{}", text.len());
        assert!(text.starts_with("short\n> The rest of this summary was cut"));
        append_summary(&path, "more").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap().len(), text.len());
    }
}
