//! systemd: a service unit in a slot, or somebody's own unit that was adopted.
//!
//! A unit of ours is a file with everything in it that the program needs, but for its environment: that has a file of its
//! own, root's alone. It is removed with the replica. Somebody's own unit is only started, stopped, enabled and disabled.

mod alone;
mod begin;
mod unit_file;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Boot, Runtime, Started};
use crate::host::Ending;
use crate::host::process::{self, Launch, ProcessError, StopOrder, Stopped};
use crate::host::systemctl::Shown;
use crate::host::{durable, systemctl};
use crate::model::failure::{Failure, Hint};
use crate::model::ids::ProcessId;
use crate::model::replica::{Keeper, Replica, Unit};
use crate::model::wire::MARKER;
use unit_file::Made;

/// Where units of this host's administrator are (systemd.unit(5)).
pub(in crate::host) const UNITS: &str = "/etc/systemd/system";
/// Environment files of our units. Not under /etc: that is kept in version control on many servers.
pub const ENVIRONMENTS: &str = "/var/lib/model-swap/env.d";

/// Environments whose unit is not there (yet), and what was to become one.
pub fn stray_environments() -> Vec<PathBuf> {
    strays(Path::new(ENVIRONMENTS), Path::new(UNITS))
}

fn strays(environments: &Path, units: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(environments).into_iter().flatten().flatten();
    entries
        .filter(|entry| !units.join(entry.file_name()).exists())
        .map(|entry| entry.path())
        .collect()
}

/// systemd kills what is left after the grace; a driver may hold it for a while.
const KILL_LIMIT: Duration = Duration::from_secs(60);

/// What `is-enabled` says of units that no boot starts, and that can be enabled.
const UNBOOTED: [&str; 4] = ["disabled", "enabled-runtime", "linked", "linked-runtime"];

/// A unit.
pub(super) struct Systemd<'a>(pub(super) &'a Unit);

impl Runtime for Systemd<'_> {
    async fn start(&self, launch: &Launch, grace: Duration) -> Result<Started, Failure> {
        let left_out = if self.0.is_own() { self.write(launch, grace).await? } else { Vec::new() };
        match self.begin().await {
            Ok(shown) => Ok(self.started(&shown, left_out)),
            Err(failure) => {
                let failure = self.with_last_words(failure).await?;
                // Somebody's own stays until the step is undone: who stops it looks at what is stopped with it.
                if self.0.is_own() {
                    self.take_back(grace).await?;
                }
                Err(failure)
            }
        }
    }

    async fn until_runs(
        &self,
        started: &Started,
        limit: Duration,
        told: impl Fn(String),
    ) -> Result<Started, Failure> {
        let shown = self.has_begun(limit, told).await?;
        Ok(self.started(&shown, started.left_out.clone()))
    }

    async fn answers(&self) -> Result<(), Failure> {
        Ok(systemctl::answers(self.0).await?)
    }

    async fn marked(&self, marker: &str, grace: Duration) -> Result<Option<StopOrder>, Failure> {
        let shown = systemctl::show(self.0).await?;
        let keeper = Keeper::Unit(self.0.clone());
        let there = match self.0.is_own() {
            true => self.text()?.is_some_and(|text| unit_file::marker(&text) == Some(marker)),
            // It knows nothing of markers; the swap that started it started this very unit.
            false => shown.is_there(),
        };
        if there {
            let main = main_of(&shown);
            let tree = process::tree(main)?;
            return Ok(Some(StopOrder {
                main,
                tree,
                marker: Some(marker.to_owned()),
                grace,
                keeper,
            }));
        }
        if !self.0.is_own() || self.text()?.is_some() {
            return Ok(None);
        }
        // A person may have removed its file: what runs of it runs on, and carries the marker.
        let order = StopOrder::marked(marker, grace)?;
        Ok(order.map(|order| StopOrder { keeper, ..order }))
    }

    async fn stops_alone(&self, tree: &[ProcessId]) -> Result<(), Failure> {
        self.has_no_company(tree).await
    }

    async fn stop(&self, order: &StopOrder, how: Ending) -> Result<Stopped, Failure> {
        process::spare(main_of(&systemctl::show(self.0).await?))?;
        // It may have got company since the swap was planned.
        self.stops_alone(&order.tree).await?;
        // First, so that a boot in between does not bring back what is about to go.
        self.on_boot(Boot::Leaves).await?;
        let shown = systemctl::show(self.0).await?;
        let mut ended = [order.tree.as_slice(), &process::tree(main_of(&shown))?].concat();
        ended.sort_unstable_by_key(|id| (id.start, id.pid));
        ended.dedup();
        ended.retain(|process| process::alive(*process));
        if how == Ending::Cut && shown.is_up() {
            self.order("kill", &["kill", "--signal=SIGKILL"], Duration::ZERO).await?;
        }
        if shown.is_there() {
            // Of somebody's own unit systemd may wait longer than of one of ours.
            let limit = shown.stop_limit().unwrap_or_default().max(order.grace);
            self.order("stop", &["stop"], limit.saturating_add(KILL_LIMIT)).await?;
        }
        let left: Vec<_> = ended.iter().copied().filter(|id| process::alive(*id)).collect();
        let after = systemctl::show(self.0).await?;
        if !left.is_empty() {
            return Err(ProcessError::Survivors { processes: left, limit: KILL_LIMIT }.to_failure());
        }
        if after.is_up() {
            return Err(Failure::new(format!("unit {} is up again after it was stopped", self.0.name))
                .hint("another unit, a timer or a socket may want it: systemctl list-dependencies --reverse"));
        }
        self.remove().await?;
        let killed = how == Ending::Cut || after.was_killed();
        let forced = if killed { ended.clone() } else { Vec::new() };
        Ok(Stopped { ended, forced, unkept: None })
    }

    async fn booted(&self) -> Result<bool, Failure> {
        let word = systemctl::enablement(self.0).await?;
        // Of a static or a generated unit others decide, and nothing can be changed here.
        Ok(!UNBOOTED.contains(&word.as_str()))
    }

    async fn on_boot(&self, boot: Boot) -> Result<(), Failure> {
        let word = systemctl::enablement(self.0).await?;
        match boot {
            Boot::Starts if UNBOOTED.contains(&word.as_str()) => {
                self.order("enable", &["enable"], Duration::ZERO).await?;
            }
            Boot::Leaves if word.starts_with("enabled") => {
                self.disable().await?;
            }
            Boot::Starts | Boot::Leaves => return Ok(()),
        }
        if self.0.user.is_none() { make_durable() } else { Ok(()) }
    }

    async fn promoted(&self) -> Result<(), Failure> {
        let Some(text) = self.text()?.filter(|_| self.0.is_own()) else { return Ok(()) };
        self.put(&self.file(), &unit_file::promoted(&text), 0o644)?;
        Ok(systemctl::reload(self.0).await?)
    }

    async fn settle(&self) {
        systemctl::sync_journal().await;
    }

    async fn log_tail(&self, replica: &Replica, lines: usize) -> Result<Vec<String>, Failure> {
        let invocation = match &replica.invocation {
            Some(id) => Some(id.clone()),
            None => systemctl::show(self.0).await?.invocation(),
        };
        let said = systemctl::journal(self.0, invocation.as_deref(), lines).await?;
        Ok(process::last_lines(&said, lines))
    }
}

impl Systemd<'_> {
    /// Whether the unit can be started again by its own means.
    pub(in crate::host) async fn can_start(&self) -> Result<bool, Failure> {
        let shown = systemctl::show(self.0).await?;
        Ok(shown.is_there() && !shown.is_transient())
    }

    /// What its program has in a variable, if it is one of ours.
    pub(in crate::host) fn variable(&self, name: &str) -> Option<String> {
        let text = fs::read_to_string(self.environment()).ok()?;
        unit_file::variable(&text, name)
    }

    /// Stops and removes a unit of ours whose start failed. A manager that starts itself anew does what it was asked for, and
    /// whoever asked hears of an error.
    async fn take_back(&self, grace: Duration) -> Result<(), Failure> {
        let shown = systemctl::show(self.0).await?;
        if shown.is_up() || shown.is_queued() {
            self.order("stop", &["stop"], grace.saturating_add(KILL_LIMIT)).await?;
        }
        self.remove().await
    }

    async fn order(
        &self,
        doing: &'static str,
        arguments: &[&str],
        limit: Duration,
    ) -> Result<(), Failure> {
        Ok(systemctl::order(self.0, doing, arguments, limit).await?)
    }

    /// No boot starts it any more. Of a unit whose file is elsewhere systemd removes with that the link by which it knows it
    /// (systemctl(1), `disable`): it is put back, for a way back.
    async fn disable(&self) -> Result<(), Failure> {
        let linked = systemctl::show(self.0).await?.file().and_then(elsewhere);
        self.order("disable", &["disable"], Duration::ZERO).await?;
        match linked.filter(|file| file.file_name().is_some_and(|name| *name == *self.0.name)) {
            Some(file) => Ok(systemctl::link(self.0, &file).await?),
            None => Ok(()),
        }
    }

    /// Writes the unit and its environment; names the variables that systemd would not pass on.
    async fn write(&self, launch: &Launch, grace: Duration) -> Result<Vec<String>, Failure> {
        let name = &self.0.name;
        if systemctl::show(self.0).await?.is_up() {
            return Err(Failure::new(format!("unit {name} is up already"))
                .hint(format!("systemctl status {name} shows it; systemctl stop {name} ends it")));
        }
        if self.text()?.is_some_and(|text| !unit_file::is_own(&text)) {
            return Err(Failure::new(format!(
                "{} was not written by model-swap",
                self.file().display()
            ))
            .hint("rename that unit, the service or the slot"));
        }
        let path = launch.env.get("PATH").map_or("", String::as_str);
        let word = launch.argv.first().map_or("", String::as_str);
        let program = process::resolve(word, path, &launch.cwd)?;
        let (environment, left_out) = unit_file::environment(launch);
        let made = Made {
            launch,
            program: &program,
            environment: &self.environment(),
            marker: launch.env.get(MARKER).map_or("", String::as_str),
            grace,
        };
        let unit = unit_file::unit(&made).map_err(|unfit| Failure::from_error(&unfit))?;
        let folder = Path::new(ENVIRONMENTS);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| {
            Failure {
                causes: vec![error.to_string()],
                ..Failure::new(format!("cannot make {ENVIRONMENTS}"))
            }
        })?;
        self.put(&self.environment(), &environment, 0o600)?;
        if let Err(failure) = self.put(&self.file(), &unit, 0o644) {
            if !self.file().exists() {
                // Nobody would ever come for what is secret in it.
                let _ = fs::remove_file(self.environment());
            }
            return Err(failure);
        }
        systemctl::reload(self.0).await?;
        Ok(left_out)
    }

    /// Removes a unit of ours and its environment; may be asked for what is gone already.
    async fn remove(&self) -> Result<(), Failure> {
        if !self.0.is_own() || self.text()?.is_some_and(|text| !unit_file::is_own(&text)) {
            return Ok(());
        }
        // The environment last: while the unit is there it is known that there may be one.
        let mut removed = false;
        for file in [self.environment(), self.file()] {
            match fs::remove_file(&file) {
                Ok(()) => removed = true,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(unreadable("remove", &file, &error)),
            }
        }
        if removed {
            systemctl::reload(self.0).await?;
            // What it ended with is told; systemd need not show it as failed any longer.
            let _not_failed = self.order("forget", &["reset-failed"], Duration::ZERO).await;
        }
        Ok(())
    }

    fn file(&self) -> PathBuf {
        Path::new(UNITS).join(&self.0.name)
    }

    fn environment(&self) -> PathBuf {
        Path::new(ENVIRONMENTS).join(&self.0.name)
    }

    /// The unit's text, if there is one where ours are.
    fn text(&self) -> Result<Option<String>, Failure> {
        match fs::read_to_string(self.file()) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unreadable("read", &self.file(), &error)),
        }
    }

    fn put(&self, file: &Path, text: &str, mode: u32) -> Result<(), Failure> {
        durable::write(file, text.as_bytes(), mode).map_err(|error| Failure::from_error(&error))
    }
}

/// The file behind a link, as the link names it.
fn elsewhere(link: &Path) -> Option<PathBuf> {
    Some(link.parent()?.join(fs::read_link(link).ok()?))
}

/// A command line as the value of `ExecStart=`.
pub(in crate::host) fn command_line(program: &Path, argv: &[String]) -> Result<String, Failure> {
    unit_file::command(program, argv).map_err(|unfit| Failure::from_error(&unfit))
}

/// Variables as lines of a unit, for its program.
pub(in crate::host) fn assignments(env: &[(&str, String)]) -> String {
    unit_file::assignments(env)
}

/// The main process of a unit; the last one, where none runs.
fn main_of(shown: &Shown) -> ProcessId {
    match shown.has_main() {
        true => process::with_pid(shown.main()),
        // Its pid may be anybody's by now.
        false => ProcessId { pid: shown.main(), start: 0 },
    }
}

/// Whatever was enabled or disabled outlasts a loss of power from now on.
pub(in crate::host) fn make_durable() -> Result<(), Failure> {
    let failed = |error: io::Error| unreadable("make durable", Path::new(UNITS), &error);
    let folders = fs::read_dir(UNITS).map_err(failed)?.flatten().map(|entry| entry.path());
    let wants = folders.filter(|folder| folder.extension().is_some_and(|kind| kind == "wants"));
    for folder in wants.chain([PathBuf::from(UNITS)]) {
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
    }
    Ok(())
}

fn unreadable(act: &str, path: &Path, error: &io::Error) -> Failure {
    Failure {
        causes: vec![error.to_string()],
        ..Failure::new(format!("cannot {act} {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_without_its_unit_is_a_stray() {
        let folder = tempfile::tempdir().unwrap();
        let [environments, units] = ["env.d", "system"].map(|name| folder.path().join(name));
        for (folder, names) in [
            (
                &environments,
                vec!["model-swap-chat.a.service", "model-swap-chat.b.service", ".model-swap-x"],
            ),
            (&units, vec!["model-swap-chat.a.service"]),
        ] {
            fs::create_dir(folder).unwrap();
            names.iter().for_each(|name| fs::write(folder.join(name), "x").unwrap());
        }
        let mut found = strays(&environments, &units);
        found.sort();
        let names = [".model-swap-x", "model-swap-chat.b.service"];
        assert_eq!(found, names.map(|name| environments.join(name)));
        assert_eq!(strays(&folder.path().join("nowhere"), &units), Vec::<PathBuf>::new());
    }
}
