//! The hardware of a guest: what boots it, starts it again when it reboots, and is told of its end.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use super::groups::Groups;
use super::text;
use crate::PATIENCE;
use crate::server::processes::{children, command_line};
use crate::server::programs;

/// Boots, and boots again for as long as the guest asks for it: then systemd-nspawn ends with 133 (its source,
/// `EXIT_FORCE_RESTART`). `setpriv` lets it end with this shell, and the mount is in a namespace of this shell's own.
///
/// Where the scratch folder cannot be a layer (it is on one itself), the disk is a copy.
const BOOT: &str = r#"set -eu
root=$1 disk=$2; shift 2
while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs"; shift; done; shift
if ! mount -t overlay overlay -o "lowerdir=$root,upperdir=$disk/upper,workdir=$disk/work" "$disk/root"; then
    [ -e "$disk/root/etc" ] || { cp -a --reflink=auto "$root/." "$disk/root"; cp -a "$disk/upper/." "$disk/root"; }
fi
while :; do
    code=0
    setpriv --pdeathsig KILL systemd-nspawn "$@" || code=$?
    [ "$code" = 133 ] || exit "$code"
done"#;

/// How much of the console an error shows, in lines.
const CONSOLE_LINES: usize = 40;

pub(super) struct Machine {
    argv: Vec<String>,
    console: PathBuf,
    boot: Option<Child>,
    groups: Groups,
}

impl Machine {
    /// A machine that is off, with its disk in `scratch`: what it writes goes to `upper`.
    pub(super) fn new(root: &Path, scratch: &Path, name: &str, network: PathBuf) -> Result<Self> {
        // The boot finds it in PATH; whoever lacks it shall read the package's name.
        programs::find("systemd-nspawn")?;
        for folder in ["upper", "work", "root"] {
            fs::create_dir_all(scratch.join(folder))?;
        }
        let groups = Groups::make(scratch)?;
        let mut argv = vec![text(root)?.to_owned(), text(scratch)?.to_owned()];
        for group in groups.paths() {
            argv.push(text(group)?.to_owned());
        }
        argv.push("--".to_owned());
        argv.extend(["--quiet", "--boot", "--register=no", "--keep-unit"].map(str::to_owned));
        argv.extend(
            ["--resolv-conf=off", "--timezone=off", "--link-journal=no"].map(str::to_owned),
        );
        argv.push("--console=pipe".to_owned());
        argv.push(format!("--machine={name}"));
        argv.push(format!("--directory={}", scratch.join("root").display()));
        argv.push(format!("--network-namespace-path={}", network.display()));
        Ok(Self { argv, console: scratch.join("console.log"), boot: None, groups })
    }

    /// Adds arguments of systemd-nspawn, from the next start on.
    pub(super) fn with(&mut self, arguments: Vec<String>) {
        self.argv.extend(arguments);
    }

    /// Turns it on.
    pub(super) fn start(&mut self) -> Result<()> {
        ensure!(self.boot.is_none(), "the guest is up already");
        let console = File::options().create(true).append(true).open(&self.console)?;
        let mut boot = Command::new("unshare");
        boot.args(["--mount", "--propagation", "private", "sh", "-c", BOOT, "boot"])
            .args(&self.argv)
            // Its interfaces are its own, and so are their settings (systemd's ENVIRONMENT.md).
            .env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "network")
            .stdin(Stdio::null())
            .stdout(console.try_clone()?)
            .stderr(console)
            .process_group(0);
        self.boot = Some(boot.spawn().context("cannot run unshare (Debian: util-linux)")?);
        Ok(())
    }

    /// Process id of systemd-nspawn.
    pub(super) fn supervisor(&self) -> Option<u32> {
        let boot = self.boot.as_ref()?.id()?;
        children(boot).into_iter().find(|&pid| command_line(pid).starts_with("systemd-nspawn"))
    }

    /// Process id of the guest's PID 1: a child of systemd-nspawn that is the first of its namespace.
    pub(super) fn pid1(&self) -> Option<u32> {
        children(self.supervisor()?).into_iter().find(|&pid| is_first(pid))
    }

    /// How it ended, if it did.
    pub(super) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let ended = match &mut self.boot {
            Some(boot) => boot.try_wait()?,
            None => return Ok(None),
        };
        if ended.is_some() {
            self.boot = None;
        }
        Ok(ended)
    }

    /// Waits until it is off.
    pub(super) async fn until_off(&mut self) -> Result<()> {
        if let Some(boot) = &mut self.boot {
            tokio::time::timeout(PATIENCE, boot.wait()).await.context("the guest stays on")??;
        }
        self.boot = None;
        self.groups.end_all()
    }

    /// The last that it said on its console.
    pub(super) fn console(&self) -> String {
        let text = fs::read_to_string(&self.console).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(CONSOLE_LINES)..].join("\n")
    }
}

/// Sends a signal to a process of this machine.
pub(super) fn signal(pid: u32, signal: Signal) -> Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("no process id")?;
    Ok(kill_process(pid, signal)?)
}

/// Whether a process is PID 1 of a namespace below ours (`NSpid` in proc_pid_status(5)).
fn is_first(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    ids.is_some_and(|ids| {
        let ids: Vec<_> = ids.split_whitespace().collect();
        ids.len() > 1 && ids.last() == Some(&"1")
    })
}
