//! systemctl and journalctl, as a person would call them.
//!
//! Not D-Bus: these two are on every server with systemd, print what a person can try by hand, wait for jobs, reach a user's
//! manager, and need no library; an agent makes a dozen such calls in a swap.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::host::exec::{self, ExecError, Output};
use crate::model::failure::Hint;
use crate::model::replica::Unit;

/// systemd answers within milliseconds; a manager that is this slow is in trouble of its own.
const LIMIT: Duration = Duration::from_secs(30);

/// What is asked of a unit.
const PROPERTIES: &str = "--property=LoadState,ActiveState,SubState,Job,Transient,Restart,Result,MainPID,ExecMainPID,ExecMainStatus,InvocationID,FragmentPath,TimeoutStopUSec";

/// systemctl or journalctl did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum SystemctlError {
    /// It could not be run to its end.
    #[error("cannot {doing} the systemd unit {unit}")]
    Run {
        /// `start`, `stop`, `look at` and so on.
        doing: &'static str,
        /// The unit.
        unit: String,
        /// Why.
        source: ExecError,
    },
    /// systemd refused.
    #[error("systemd does not {doing} unit {unit}: {said}")]
    Refused {
        /// `start`, `stop` and so on.
        doing: &'static str,
        /// The unit.
        unit: String,
        /// Its own words, on one line.
        said: String,
    },
}

impl Hint for SystemctlError {
    fn hints(&self) -> Vec<String> {
        let (Self::Run { unit, .. } | Self::Refused { unit, .. }) = self;
        vec![format!("systemctl status {unit} and journalctl -u {unit} on the server say more")]
    }
}

/// What systemd knows of a unit.
#[derive(Debug, Default)]
pub struct Shown(BTreeMap<String, String>);

impl Shown {
    fn get(&self, property: &str) -> &str {
        self.0.get(property).map_or("", String::as_str)
    }

    /// Whether there is such a unit.
    pub fn is_there(&self) -> bool {
        !matches!(self.get("LoadState"), "" | "not-found" | "masked") || self.is_up()
    }

    /// Whether systemd has read a file of it that is still there: up to version 252 it shows one that was removed as loaded, until
    /// it reads its files again. What may not be looked at is there.
    fn has_file(&self) -> bool {
        let is_loaded = !matches!(self.get("LoadState"), "" | "not-found");
        is_loaded && self.file().is_none_or(|file| file.try_exists().unwrap_or(true))
    }

    /// Whether something of it runs, or is about to.
    pub fn is_up(&self) -> bool {
        !matches!(self.get("ActiveState"), "" | "inactive" | "failed")
    }

    /// Whether nothing of it runs and nothing is about to, or only what `Restart=` begins anew after a failure.
    pub fn is_given_up(&self) -> bool {
        let has_failed = self.get("SubState") == "auto-restart" && self.get("Result") != "success";
        has_failed || (!self.is_up() && !self.is_queued())
    }

    /// Whether a job is about to change it.
    pub fn is_queued(&self) -> bool {
        !matches!(self.get("Job"), "" | "0")
    }

    /// Whether its main process runs.
    pub fn has_main(&self) -> bool {
        !matches!(self.get("MainPID"), "" | "0")
    }

    /// Whether it came into being by `systemd-run` or the like: once stopped, nothing can start it again.
    pub fn is_transient(&self) -> bool {
        self.get("Transient") == "yes"
    }

    /// Whether systemd starts it again when it ends by itself, in some case at least.
    pub fn restarts(&self) -> bool {
        !matches!(self.get("Restart"), "" | "no")
    }

    /// Whether its last end took longer than it was given.
    pub fn was_killed(&self) -> bool {
        self.get("Result") == "timeout"
    }

    /// Whether systemd could not run its program (`203/EXEC`, systemd.exec(5)), by the number that it ended with.
    pub fn was_not_run(&self) -> bool {
        self.get("ExecMainStatus") == "203"
    }

    /// How long its stop may take before systemd kills what is left: its `ExecStop=` and its processes after SIGTERM have as
    /// long each. `None` where systemd waits for ever.
    pub fn stop_limit(&self) -> Option<Duration> {
        let each = humantime::parse_duration(self.get("TimeoutStopUSec")).ok()?;
        Some(each.saturating_mul(2))
    }

    /// The file that it was read from; of a link to a file elsewhere, the link.
    pub fn file(&self) -> Option<&Path> {
        Some(self.get("FragmentPath")).filter(|path| !path.is_empty()).map(Path::new)
    }

    /// Process id of its main process; of the last one, where none runs.
    pub fn main(&self) -> i32 {
        let pid = |property| self.get(property).parse().unwrap_or_default();
        match pid("MainPID") {
            0 => pid("ExecMainPID"),
            main => main,
        }
    }

    /// The id of its latest run.
    pub fn invocation(&self) -> Option<String> {
        Some(self.get("InvocationID").to_owned()).filter(|id| !id.is_empty())
    }
}

/// Looks at a unit. One that is not there is shown as such.
///
/// # Errors
/// If systemd does not answer.
pub async fn show(unit: &Unit) -> Result<Shown, SystemctlError> {
    shown(unit, &run(unit, "look at", &["show", PROPERTIES], LIMIT).await?)
}

/// Looks at a unit that a process is in: its manager is there.
///
/// # Errors
/// If systemd does not answer, a user's neither.
pub async fn show_inhabited(unit: &Unit) -> Result<Shown, SystemctlError> {
    let output = run(unit, "look at", &["show", PROPERTIES], LIMIT).await?;
    granted(unit, "look at", &output)?;
    shown(unit, &output)
}

/// Of a unit that is not there systemd says so. A manager of a user's is gone with its user; systemd itself only is away.
fn shown(unit: &Unit, output: &Output) -> Result<Shown, SystemctlError> {
    if unit.user.is_none() {
        granted(unit, "look at", output)?;
    }
    let pairs = output.stdout.lines().filter_map(|line| line.split_once('='));
    Ok(Shown(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()))
}

/// Whether the manager of a unit answers: one that starts itself anew does not for a moment.
///
/// # Errors
/// If it does not.
pub async fn answers(unit: &Unit) -> Result<(), SystemctlError> {
    show(unit).await.map(drop)
}

/// The service of the system's whose main process has one of these pids.
///
/// # Errors
/// If systemd does not answer.
pub async fn with_main(pids: &[i32]) -> Result<Option<Unit>, SystemctlError> {
    let all = Unit { name: "*.service".to_owned(), user: None };
    let output = run(&all, "look at", &["show", "--property=Id,MainPID"], LIMIT).await?;
    granted(&all, "look at", &output)?;
    Ok(one_with_main(&output.stdout, pids))
}

/// Of what is shown of several units a blank line is between two.
fn one_with_main(shown: &str, pids: &[i32]) -> Option<Unit> {
    let with_main = |block: &str| {
        let value = |name: &str| block.lines().find_map(|line| line.strip_prefix(name));
        let main: i32 = value("MainPID=")?.parse().ok()?;
        let name = value("Id=")?.to_owned();
        (main > 0 && pids.contains(&main)).then_some(Unit { name, user: None })
    };
    shown.split("\n\n").find_map(with_main)
}

/// Whether this machine is being shut down or started anew, as far as systemd says: it does so from before anything is stopped.
pub async fn is_going_down() -> bool {
    let argv = ["systemctl", "is-system-running"].map(str::to_owned);
    // systemctl(1), `is-system-running`: the word counts, not the status.
    exec::run(&argv, LIMIT).await.is_ok_and(|output| output.stdout.trim() == "stopping")
}

/// `systemctl is-enabled`: one word; none for a unit that is not there.
///
/// # Errors
/// If systemd does not answer.
pub async fn enablement(unit: &Unit) -> Result<String, SystemctlError> {
    let output = run(unit, "look at", &["is-enabled"], LIMIT).await?;
    match output.stdout.trim() {
        "" => unnamed(unit, &output, &show(unit).await?),
        word => Ok(word.to_owned()),
    }
}

/// It names nothing where the unit is not there, and exits with 1 then, as it does for what is not enabled and while systemd is
/// away. A unit that systemd shows a moment later is there.
fn unnamed(unit: &Unit, enabled: &Output, shown: &Shown) -> Result<String, SystemctlError> {
    if shown.has_file() {
        granted(unit, "look at", enabled)?;
    }
    Ok(String::new())
}

/// The loaded units that a boot or a person starts together with this one.
///
/// # Errors
/// If systemd does not answer.
pub async fn wanted_by(unit: &Unit) -> Result<Vec<String>, SystemctlError> {
    named(unit, "--property=WantedBy,RequiredBy").await
}

/// The units that run and that systemd stops whenever it stops this one: those that require it or are a part of it, by
/// themselves or by others (systemd.unit(5)). A target is no more than those others.
///
/// # Errors
/// If systemd does not answer.
pub async fn stopped_with(unit: &Unit) -> Result<Vec<String>, SystemctlError> {
    const REVERSE: &str = "--property=RequiredBy,RequisiteOf,BoundBy,ConsistsOf,PropagatesStopTo";
    let (mut next, mut met) = (vec![unit.clone()], vec![unit.clone()]);
    while let Some(stopped) = next.pop() {
        for name in named(&stopped, REVERSE).await? {
            let other = Unit { name, user: unit.user };
            if !met.contains(&other) && show(&other).await?.is_up() {
                next.push(other.clone());
                met.push(other);
            }
        }
    }
    let others = met.into_iter().skip(1).map(|other| other.name);
    Ok(others.filter(|name| !name.ends_with(".target")).collect())
}

/// The units that properties of this one name.
async fn named(unit: &Unit, properties: &str) -> Result<Vec<String>, SystemctlError> {
    let output = run(unit, "look at", &["show", properties], LIMIT).await?;
    let lists = output.stdout.lines().filter_map(|line| Some(line.split_once('=')?.1));
    Ok(lists.flat_map(str::split_whitespace).map(str::to_owned).collect())
}

/// Has systemd do something with a unit, which may take `limit` by itself.
///
/// # Errors
/// If systemd refuses, in its own words, or does not answer.
pub async fn order(
    unit: &Unit,
    doing: &'static str,
    arguments: &[&str],
    limit: Duration,
) -> Result<(), SystemctlError> {
    let output = run(unit, doing, arguments, limit.saturating_add(LIMIT)).await?;
    granted(unit, doing, &output)
}

/// Makes a unit of a file elsewhere, which then is no part of any boot.
///
/// # Errors
/// If systemd refuses, or does not answer.
pub async fn link(unit: &Unit, file: &Path) -> Result<(), SystemctlError> {
    let named = Unit { name: file.display().to_string(), user: unit.user };
    order(&named, "link", &["link"], Duration::ZERO).await
}

/// Has systemd read its unit files again, after that of this unit has changed.
///
/// # Errors
/// If it does not.
pub async fn reload(unit: &Unit) -> Result<(), SystemctlError> {
    let doing = "read";
    let argv = ["systemctl", "daemon-reload"].map(str::to_owned);
    let output = exec::run(&argv, LIMIT).await;
    let output = output.map_err(|source| failed(unit, doing, source))?;
    granted(unit, doing, &output)
}

/// Returns once the journal holds everything that was said so far.
pub async fn sync_journal() {
    let argv = ["journalctl", "--sync"].map(str::to_owned);
    // Then the last words may be missing, and nothing else.
    let _late = exec::run(&argv, LIMIT).await;
}

/// The last lines of what a run of a unit said, and of what systemd said of it; of all its runs, where none is named.
///
/// # Errors
/// If the journal cannot be read.
pub async fn journal(
    unit: &Unit,
    invocation: Option<&str>,
    lines: usize,
) -> Result<String, SystemctlError> {
    let mut argv = ["journalctl", "--quiet", "--no-pager", "--all", "--output=cat"]
        .map(str::to_owned)
        .to_vec();
    argv.push(format!("--lines={lines}"));
    match invocation {
        Some(id) => argv.extend([
            format!("_SYSTEMD_INVOCATION_ID={id}"),
            "+".to_owned(),
            format!("INVOCATION_ID={id}"),
        ]),
        None => argv.push(format!("--unit={}", unit.name)),
    }
    let output = exec::run(&argv, LIMIT).await;
    Ok(output.map_err(|source| failed(unit, "read the journal of", source))?.stdout)
}

async fn run(
    unit: &Unit,
    doing: &'static str,
    arguments: &[&str],
    limit: Duration,
) -> Result<Output, SystemctlError> {
    let mut argv = vec!["systemctl".to_owned()];
    argv.extend(whose(unit));
    argv.extend(arguments.iter().map(ToString::to_string));
    argv.extend(["--".to_owned(), unit.name.clone()]);
    exec::run(&argv, limit).await.map_err(|source| failed(unit, doing, source))
}

fn failed(unit: &Unit, doing: &'static str, source: ExecError) -> SystemctlError {
    SystemctlError::Run { doing, unit: unit.name.clone(), source }
}

fn granted(unit: &Unit, doing: &'static str, output: &Output) -> Result<(), SystemctlError> {
    if output.success() {
        return Ok(());
    }
    let said = output.stderr.lines().map(str::trim).filter(|line| !line.is_empty());
    let said = said.collect::<Vec<_>>().join(" ");
    Err(SystemctlError::Refused { doing, unit: unit.name.clone(), said })
}

/// Which instance of systemd runs a unit.
fn whose(unit: &Unit) -> Vec<String> {
    match unit.user {
        None => Vec::new(),
        Some(own) if own == rustix::process::getuid().as_raw() => vec!["--user".to_owned()],
        // From root, the user's own manager is reached as that user.
        Some(other) => vec!["--user".to_owned(), format!("--machine={other}@.host")],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systemd_that_does_not_answer_is_not_taken_for_a_unit_that_is_not_there() {
        let unit = |user| Unit { name: "model-swap-chat.b.service".to_owned(), user };
        let output = |code, stdout: &str, stderr: &str| Output {
            code: Some(code),
            stdout: stdout.to_owned(),
            stderr: stderr.to_owned(),
        };
        let gone = output(0, "LoadState=not-found\nActiveState=inactive\n", "");
        assert!(!shown(&unit(None), &gone).unwrap().is_there());
        let away = output(1, "", "Failed to get properties: Connection reset by peer\n");
        let failure = shown(&unit(None), &away).unwrap_err().to_string();
        assert!(failure.contains("Connection reset by peer"), "{failure}");
        // A user's manager ends with its user's last session.
        assert!(!shown(&unit(Some(1000)), &away).unwrap().is_there());
    }

    #[test]
    fn silence_is_taken_for_a_unit_that_is_not_there_only_where_systemd_shows_none() {
        let unit = Unit { name: "vllm.service".to_owned(), user: None };
        let silent = |stderr: &str| Output {
            code: Some(1),
            stdout: String::new(),
            stderr: stderr.to_owned(),
        };
        let here = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        let seen = |load: &str, active: &str, file: &str| {
            let pairs = [("LoadState", load), ("ActiveState", active), ("FragmentPath", file)];
            Shown(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into())
        };
        let none =
            silent("Failed to get unit file state for vllm.service: No such file or directory\n");
        for active in ["inactive", "active"] {
            assert_eq!(unnamed(&unit, &none, &seen("not-found", active, "")).unwrap(), "");
            // Its file was removed, and systemd was not told.
            let removed = seen("loaded", active, "/nowhere/vllm.service");
            assert_eq!(unnamed(&unit, &none, &removed).unwrap(), "");
        }
        // It was away when it was asked, and is back.
        let away = silent("Failed to connect to bus: No such file or directory\n");
        for file in [here, ""] {
            let shown = seen("loaded", "active", file);
            let failure = unnamed(&unit, &away, &shown).unwrap_err().to_string();
            assert!(failure.contains("Failed to connect to bus"), "{failure}");
        }
    }

    #[test]
    fn of_all_services_one_is_found_by_its_main_process() {
        let shown = "MainPID=0\nId=ssh.service\n\nId=llm.service\nMainPID=81\n\nMainPID=811\nId=nginx.service\n";
        let name = |pids: &[i32]| one_with_main(shown, pids).map(|unit| unit.name);
        assert_eq!(name(&[7, 81]).as_deref(), Some("llm.service"));
        assert_eq!(name(&[811]).as_deref(), Some("nginx.service"));
        assert_eq!((name(&[0]), name(&[8]), one_with_main("", &[81])), (None, None, None));
    }

    #[test]
    fn a_program_that_could_not_be_run_is_known_by_its_number() {
        let ended = |status: &str| Shown([("ExecMainStatus".to_owned(), status.to_owned())].into());
        assert!(ended("203").was_not_run());
        assert!(!ended("1").was_not_run() && !ended("").was_not_run());
    }

    /// Else what fails at once would be waited for as what needs long.
    #[test]
    fn a_unit_that_is_only_started_anew_after_a_failure_is_given_up() {
        let seen = |[active, sub, result, job]: [&str; 4]| {
            let pairs =
                [("ActiveState", active), ("SubState", sub), ("Result", result), ("Job", job)];
            Shown(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into())
        };
        assert!(seen(["activating", "auto-restart", "exit-code", ""]).is_given_up());
        assert!(!seen(["activating", "start-pre", "success", ""]).is_given_up());
        assert!(!seen(["activating", "auto-restart", "success", ""]).is_given_up());
        assert!(!seen(["failed", "failed", "exit-code", "17"]).is_given_up());
        assert!(seen(["failed", "failed", "exit-code", ""]).is_given_up());
    }

    #[test]
    fn a_unit_says_how_long_its_stop_may_take() {
        let limit = |text: &str| {
            Shown([("TimeoutStopUSec".to_owned(), text.to_owned())].into()).stop_limit()
        };
        assert_eq!(limit("1min 30s"), Some(Duration::from_secs(180)));
        assert_eq!(limit("1h 500ms"), Some(Duration::from_secs(7201)));
        assert_eq!((limit("infinity"), limit("")), (None, None));
    }
}
