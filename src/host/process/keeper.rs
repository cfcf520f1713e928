//! What would notice that a process ended: a unit, a container, a script, or nobody.

use std::path::Path;

use procfs::process::Process;

use super::ProcessError;
use super::find::describe;
use super::program::Program;
use super::table::Table;
use crate::host::systemctl;
use crate::model::ids::ProcessId;
use crate::model::replica::{Keeper, Unit};
use crate::swap::redact::redact;

/// Programs that hold a published port open for a container, some with the container's address in their argv. Where a packet
/// filter forwards it, the engine itself listens and answers nobody, to keep others from the port.
const PORT_PROXIES: &[&str] =
    &["conmon", "docker-proxy", "dockerd", "pasta", "rootlesskit", "rootlessport", "slirp4netns"];

/// Finds out what supervises `main`, the root of `tree`.
pub(super) async fn keeper(
    main: ProcessId,
    tree: &[ProcessId],
    table: &Table,
) -> Result<Keeper, ProcessError> {
    if let Some(id) = container_of(main) {
        return Ok(Keeper::Container(id));
    }
    if let Some(address) = published_by(main) {
        return Ok(Keeper::Container(address));
    }
    let above = above(main, table);
    let known = above.iter().take_while(|(_, it)| it.wraps() || it.runs_one()).count();
    let (near, far) = above.split_at(known);
    let line = Line { tree, near, far };
    if let Some(unit) = unit(&cgroups(main.pid), &line).await? {
        return Ok(Keeper::Unit(unit));
    }
    let wrapper = near.iter().find(|(_, program)| program.wraps());
    Ok(wrapper.map_or(Keeper::Nobody, |(process, program)| Keeper::Wrapper {
        process: *process,
        command: redact(&program.argv).join(" "),
    }))
}

/// A process with those that it is below.
struct Line<'a> {
    /// The process itself, with what belongs to it.
    tree: &'a [ProcessId],
    /// Those above it that run it and do nothing else.
    near: &'a [(ProcessId, Program)],
    /// The rest: above them is somebody who may do more.
    far: &'a [(ProcessId, Program)],
}

impl Line<'_> {
    fn is_main(&self, main: i32) -> bool {
        let near = self.near.iter().map(|(process, _)| process);
        main > 0 && near.chain(self.tree).any(|process| process.pid == main)
    }

    fn is_far(&self, main: i32) -> bool {
        main > 0 && self.far.iter().any(|(process, _)| process.pid == main)
    }
}

/// The id of the container that a process runs in, if it is another one than this process's.
pub(in crate::host) fn container_of(process: ProcessId) -> Option<String> {
    let own = container(&cgroups(rustix::process::getpid().as_raw_nonzero().get()));
    container(&cgroups(process.pid)).filter(|id| Some(id) != own.as_ref())
}

/// Whether a process holds a published port open for a container.
pub(in crate::host) fn forwards(process: ProcessId) -> bool {
    published_by(process).is_some()
}

/// The address in a container that a process forwards to, if it is a port proxy.
pub(super) fn published_by(process: ProcessId) -> Option<String> {
    published(&Program::of(process)?.argv)
}

/// The parent, its own parent and so on, up to what logs people in or runs what they ask for. Init counts only if it is a
/// supervisor: it also adopts orphans.
fn above(main: ProcessId, table: &Table) -> Vec<(ProcessId, Program)> {
    let own = table.own_line();
    let above = |child: ProcessId| {
        let parent =
            table.parent(child).filter(|parent| !own.contains(parent) || parent.pid == 1)?;
        let program = Program::of(parent)?;
        let is_one = match parent.pid {
            1 => program.is_supervisor(),
            _ => program.may_be_between(),
        };
        is_one.then_some((parent, program))
    };
    std::iter::successors(above(main), |(parent, _)| above(*parent)).collect()
}

/// What starts a process on boot that is no replica: the container that it runs in, or the service whose main process it is.
pub async fn starter(process: ProcessId) -> Option<Keeper> {
    if let Some(id) = container_of(process) {
        return Some(Keeper::Docker(id));
    }
    let line = Line { tree: &[process], near: &[], far: &[] };
    unit(&cgroups(process.pid), &line).await.ok()?.map(Keeper::Unit)
}

/// A process that is a part of a systemd service, by an argv and a working folder; and that service.
///
/// # Errors
/// If the processes can't be listed.
pub(in crate::host) fn in_service(
    is_it: impl Fn(&[String], &Path) -> bool,
) -> Result<Option<(String, Unit)>, ProcessError> {
    let table = Table::read()?;
    let found = table.rows().map(|row| row.id).find_map(|process| {
        let program = Program::of(process)?;
        let folder = Process::new(process.pid).and_then(|it| it.cwd()).unwrap_or_default();
        let unit = || cgroups(process.pid).iter().find_map(|path| service(path));
        let unit = is_it(&program.argv, &folder).then(unit)??;
        Some((describe(process), unit))
    });
    Ok(found)
}

/// Every control group path of a process: one in version 2, one per hierarchy in version 1.
pub(in crate::host) fn cgroups(pid: i32) -> Vec<String> {
    let groups = Process::new(pid)
        .and_then(|process| process.cgroups())
        .map(|groups| groups.0)
        .unwrap_or_default();
    groups.into_iter().map(|group| group.pathname).collect()
}

/// The container's id in a control group path: 64 hex digits, alone or as `docker-<id>.scope`, `cri-containerd-…`,
/// `crio-…`, `libpod-…` (Docker, containerd, CRI-O and Podman, with either cgroup driver).
fn container(paths: &[String]) -> Option<String> {
    let segments = paths.iter().flat_map(|path| path.split('/'));
    segments
        .map(|segment| segment.trim_end_matches(".scope").rsplit('-').next().unwrap_or_default())
        .find(|id| id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .map(str::to_owned)
}

/// The address in a container that a port proxy forwards to.
fn published(argv: &[String]) -> Option<String> {
    let program = Path::new(argv.first()?).file_name()?.to_str()?;
    let value = |flag: &str| {
        let at = argv.iter().position(|word| word.trim_start_matches('-') == flag)?;
        argv.get(at + 1).map(String::as_str)
    };
    PORT_PROXIES.contains(&program).then(|| {
        match (value("container-ip"), value("container-port")) {
            (Some(address), Some(port)) => format!("behind {program}, at {address}:{port}"),
            _ => format!("behind {program}"),
        }
    })
}

/// The service whose main process is in the line of a process with these control groups. Where somebody between may do more it has
/// to be one that would start the process again: cloud-init's runs what it is given, and never again.
///
/// The control group alone proves nothing: what is started by hand over an sshd without PAM is in `ssh.service`. Nor does it
/// disprove: what opens a session by PAM, as `su -l` does, is moved out of its service.
async fn unit(paths: &[String], line: &Line<'_>) -> Result<Option<Unit>, ProcessError> {
    if !Path::new("/run/systemd/system").exists() {
        return Ok(None);
    }
    let Some(unit) = paths.iter().find_map(|path| service(path)) else {
        let is_moved = line.near.iter().any(|(_, program)| program.runs_one());
        if !is_moved || !paths.iter().any(|path| is_session(path)) {
            return Ok(None);
        }
        let near = line.near.iter().map(|(process, _)| process).chain(line.tree);
        let pids: Vec<_> = near.map(|process| process.pid).collect();
        return Ok(systemctl::with_main(&pids).await?);
    };
    let shown = systemctl::show_inhabited(&unit).await.map_err(|source| match unit.user {
        Some(user) => {
            ProcessError::Manager { unit: unit.name.clone(), user, source: Box::new(source) }
        }
        None => source.into(),
    });
    let shown = shown?;
    // An unknown unit has none.
    let main = shown.main();
    let is_its = line.is_main(main) || (line.is_far(main) && shown.restarts());
    Ok(is_its.then_some(unit))
}

/// Whether a control group path is that of a session of logind's.
fn is_session(path: &str) -> bool {
    let leaf = path.rsplit('/').next().unwrap_or_default();
    leaf.starts_with("session-") && leaf.ends_with(".scope")
}

/// A process that a unit has started and that is in none of the unit's control groups: what systemd has it stopped by does not end
/// it. With its pid and redacted command; of several the first.
pub(in crate::host) fn outside(unit: &Unit, tree: &[ProcessId]) -> Option<(ProcessId, String)> {
    let is_outside = |process: &ProcessId| {
        let paths = cgroups(process.pid);
        // What has ended meanwhile has none.
        !paths.is_empty() && !paths.iter().any(|path| path.split('/').any(|it| it == unit.name))
    };
    let outside = tree.iter().copied().find(is_outside)?;
    Some((outside, describe(outside)))
}

/// The service at the leaf of a control group path, with the user whose manager runs it, if not the system's.
fn service(path: &str) -> Option<Unit> {
    let unit = path.rsplit('/').next().filter(|leaf| leaf.ends_with(".service"))?;
    let manager =
        path.split('/').find_map(|segment| segment.strip_prefix("user@")?.strip_suffix(".service"));
    // The leaf may be the user's manager itself.
    let user = manager.and_then(|uid| uid.parse().ok());
    (!unit.starts_with("user@")).then(|| Unit { name: unit.to_owned(), user })
}

#[cfg(test)]
mod tests;
