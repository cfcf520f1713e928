//! The start of a unit, and how long it may take: somebody's own runs other programs first (`ExecStartPre=`), or is up only
//! once the model is loaded.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Started, Systemd, main_of};
use crate::host::process;
use crate::host::systemctl::{self, Shown};
use crate::model::failure::Failure;
use crate::model::replica::Keeper;

/// A start of ours means running the program; only a file system that hangs makes it slow.
const START_LIMIT: Duration = Duration::from_secs(90);
/// The shortest pause between two looks at a unit that starts.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
/// The longest one: a look is a process.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// A pause is this part of the time so far.
const PART_OF_WAIT: u32 = 20;
/// From when on a start is worth a word.
const IS_LONG: Duration = Duration::from_secs(2);
/// SELinux's own word whether it forbids, or only tells; there where the kernel has it (selinux(8)).
const ENFORCE: &str = "/sys/fs/selinux/enforce";
/// What helps where it forbids systemd to run a program.
const LABELS: &str = "SELinux is enforcing, and may be why: no service runs what has the label of a home folder, nor what was moved out of one \
     (`ls -Z`; `ausearch -m avc -ts recent` shows what was denied). `restorecon -Rv` the program's folder; outside of the system's, \
     label it before: `semanage fcontext -a -t bin_t 'FOLDER(/.*)?'`";
/// How much of the journal a failed start shows.
const LOG_LINES: usize = 20;

impl Systemd<'_> {
    /// Has systemd start it. Of ours, systemd says at once that a program cannot be run; others may take as long as loading
    /// does, and are not waited for.
    pub(super) async fn begin(&self) -> Result<Shown, Failure> {
        let arguments: &[&str] =
            if self.0.is_own() { &["start"] } else { &["start", "--no-block"] };
        self.order("start", arguments, START_LIMIT).await?;
        Ok(systemctl::show(self.0).await?)
    }

    /// Waits until it has a main process, for as long as it may.
    pub(super) async fn has_begun(
        &self,
        limit: Duration,
        told: impl Fn(String),
    ) -> Result<Shown, Failure> {
        let unit = &self.0.name;
        let (began, mut told) = (Instant::now(), Some(told));
        let failure = loop {
            let waited = began.elapsed();
            match systemctl::show(self.0).await {
                Ok(shown) if shown.has_main() => return Ok(shown),
                Ok(shown) if shown.is_given_up() => break ended(unit, &shown),
                Err(error) if waited >= limit => return Err(error.into()),
                Ok(_) if waited >= limit => break late(unit, limit),
                // A manager that starts itself anew does not answer for a moment.
                Ok(_) | Err(_) => {}
            }
            if let Some(told) = told.take_if(|_| waited >= IS_LONG) {
                told(format!(
                    "unit {unit} does not run the model yet: it runs other programs first"
                ));
            }
            sleep((waited / PART_OF_WAIT).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)).await;
        };
        Err(self.with_last_words(failure).await?)
    }

    /// What is known of it once it was started.
    pub(super) fn started(&self, shown: &Shown, left_out: Vec<String>) -> Started {
        let (main, invocation) = (main_of(shown), shown.invocation());
        Started { main, keeper: Keeper::Unit(self.0.clone()), invocation, left_out }
    }

    /// A failure, with what its latest run said.
    pub(super) async fn with_last_words(&self, failure: Failure) -> Result<Failure, Failure> {
        systemctl::sync_journal().await;
        let shown = systemctl::show(self.0).await?;
        let said = systemctl::journal(self.0, shown.invocation().as_deref(), LOG_LINES).await?;
        let failure = failure.log(process::last_lines(&said, LOG_LINES));
        Ok(match shown.was_not_run() && is_enforced(Path::new(ENFORCE)) {
            true => failure.hint(LABELS),
            false => failure,
        })
    }
}

/// Whether SELinux forbids what its policy does not allow.
fn is_enforced(enforce: &Path) -> bool {
    fs::read_to_string(enforce).is_ok_and(|text| text.trim() == "1")
}

fn ended(unit: &str, shown: &Shown) -> Failure {
    let failure = Failure::new(format!("unit {unit} ended before it ran"));
    match shown.was_killed() {
        true => failure.hint(format!(
            "systemd gives what it runs first no longer than its TimeoutStartSec=: systemctl edit {unit} to raise it"
        )),
        false => failure,
    }
}

fn late(unit: &str, limit: Duration) -> Failure {
    let limit = humantime::format_duration(limit);
    Failure::new(format!("unit {unit} does not run the model after {limit}: it still runs other programs first"))
        .hint(format!(
            "systemctl status {unit} shows them (ExecStartPre=); raise ready.timeout if they only need longer"
        ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selinux_enforces_only_where_it_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let enforce = folder.path().join("enforce");
        assert!(!is_enforced(&enforce), "a kernel without it");
        for (text, is) in [("1", true), ("1\n", true), ("0", false), ("", false)] {
            fs::write(&enforce, text).unwrap();
            assert_eq!(is_enforced(&enforce), is, "{text:?}");
        }
    }
}
