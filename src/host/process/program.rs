//! What kind of program a process is, judged by its argv and executable. Pure but for [`Program::of`].

use std::path::{Path, PathBuf};

use crate::model::ids::ProcessId;

/// Programs that open sessions or reap orphans: a replica's tree never begins at or above them.
const SESSIONS: &[&str] = &[
    "abduco",
    "atd",
    "conmon",
    "containerd-shim",
    "containerd-shim-runc-v2",
    "cron",
    "crond",
    "doas",
    "docker-init",
    "dropbear",
    "dtach",
    "init",
    "login",
    "mosh-server",
    "runuser",
    "screen",
    "sshd",
    "sshd-session",
    "su",
    "sudo",
    "systemd",
    "tailscaled",
    "teleport",
    "tmux",
    "zellij",
];

/// Programs that start others again when they end.
const SUPERVISORS: &[&str] = &[
    "circusd",
    "forever",
    "god",
    "goreman",
    "hivemind",
    "honcho",
    "immortal",
    "monit",
    "nodemon",
    "overmind",
    "pm2",
    "process-compose",
    "runsv",
    "s6-supervise",
    "supervise",
    "supervise-daemon",
    "supervisord",
    "watchexec",
];

/// Programs that others live on: whatever they listen for, none of them is a model, and to stop one would stop far more.
const FOUNDATIONS: &[&str] = &[
    "containerd",
    "crio",
    "dockerd",
    "init",
    "kubelet",
    "nginx",
    "rootlesskit",
    "sshd",
    "systemd",
];

/// Programs that run another one as another user or in another environment, wait for its end, and end with it. `conda run` has a
/// script between.
const RUNNERS: &[&str] = &["conda", "doas", "mamba", "micromamba", "runuser", "su", "sudo"];

const SHELLS: &[&str] = &["ash", "bash", "busybox", "dash", "fish", "ksh", "mksh", "sh", "zsh"];

/// Programs whose executable says nothing about what they run.
const INTERPRETERS: &[&str] = &["bun", "deno", "java", "node", "perl", "pypy", "python", "ruby"];

/// Shell options that take a value of their own.
const SHELL_OPTIONS: &[&str] =
    &["--rcfile", "--init-file", "-o", "+o", "-O", "+O", "-C", "--init-command"];

/// Programs that a script runs beside its model, to keep what that says, to look after it or to wait: with the model gone nobody
/// misses them. `ts` is moreutils', `multilog`, `svlogd` and `cronolog` are loggers.
const COMPANIONS: &[&str] = &[
    "awk",
    "cat",
    "cronolog",
    "curl",
    "date",
    "gawk",
    "grep",
    "inotifywait",
    "logger",
    "mawk",
    "multilog",
    "nvidia-smi",
    "rotatelogs",
    "sed",
    "sleep",
    "svlogd",
    "systemd-cat",
    "systemd-notify",
    "tail",
    "tee",
    "timeout",
    "ts",
    "wget",
];

/// How Python's multiprocessing, and vLLM's and SGLang's process titles, name the workers of a program.
const WORKERS: &[&str] = &["--multiprocessing-fork", "from multiprocessing.", "VLLM::", "sglang::"];

/// A process as a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Program {
    /// As in `/proc/PID/cmdline`, without the padding that a title leaves.
    pub(super) argv: Vec<String>,
    /// Its executable; `None` if it can't be read.
    pub(super) exe: Option<PathBuf>,
    /// Effective user id.
    pub(super) uid: u32,
}

impl Program {
    /// Reads what the process runs; `None` if it is gone.
    pub(super) fn of(process: ProcessId) -> Option<Self> {
        let proc = procfs::process::Process::new(process.pid).ok()?;
        let cmdline = std::fs::read(format!("/proc/{process}/cmdline")).ok()?;
        let program =
            Self { argv: words(&cmdline), exe: proc.exe().ok(), uid: proc.status().ok()?.euid };
        (proc.stat().ok()?.starttime == process.start).then_some(program)
    }

    /// Whether it opens sessions or reaps orphans.
    pub(super) fn is_session(&self) -> bool {
        SESSIONS.contains(&self.name().to_lowercase().as_str())
    }

    /// Whether it starts others again when they end: by its own name, or the script's that it interprets.
    pub(super) fn is_supervisor(&self) -> bool {
        let own = std::iter::once(self.name());
        own.chain(self.script()).any(|name| SUPERVISORS.contains(&name.to_lowercase().as_str()))
    }

    /// Whether it may start a program again that is its child: a supervisor, or a script.
    pub(super) fn wraps(&self) -> bool {
        self.is_supervisor() || self.is_shell_script()
    }

    /// Whether it runs another program, and nothing else: by its own name, or the script's that it interprets.
    pub(super) fn runs_one(&self) -> bool {
        std::iter::once(self.name()).chain(self.script()).any(|name| RUNNERS.contains(&name))
    }

    /// Whether a model that is below it may be a part of the same unit; what logs people in, or runs what they ask for, is above
    /// models of any kind.
    pub(super) fn may_be_between(&self) -> bool {
        let is_border = self.is_session() || self.is_shell() || self.is_foundation();
        self.wraps() || self.runs_one() || !is_border
    }

    /// Whether others live on it, so that it is never stopped as a model: by its own name, or its executable's.
    pub(super) fn is_foundation(&self) -> bool {
        let exe = self.exe.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
        std::iter::once(self.name()).chain(exe).any(|name| FOUNDATIONS.contains(&name))
    }

    /// Whether it is a shell.
    pub(super) fn is_shell(&self) -> bool {
        SHELLS.contains(&self.name())
    }

    /// Whether a script that runs a model runs it for that model alone: what keeps its output, a look at its health, a part of the
    /// script itself.
    pub(super) fn accompanies(&self) -> bool {
        // Not its script as supervisors have it: of `perl -e sleep gateway` that is `sleep`.
        let file = self.argv.get(1).filter(|_| self.is_interpreter()).map(|word| base_name(word));
        let names = std::iter::once(self.name()).chain(file);
        self.is_shell() || names.into_iter().any(|name| COMPANIONS.contains(&name))
    }

    /// Whether it is a shell that runs a script or `-c` text, rather than a person's.
    pub(super) fn is_shell_script(&self) -> bool {
        if !self.is_shell() {
            return false;
        }
        let mut arguments = self.argv.iter().skip(1);
        while let Some(argument) = arguments.next() {
            if SHELL_OPTIONS.contains(&argument.as_str()) {
                arguments.next();
            } else {
                let is_script = !argument.starts_with(['-', '+']);
                let is_text = !argument.starts_with("--") && argument.contains('c');
                if is_script || is_text {
                    return true;
                }
            }
        }
        false
    }

    /// Whether `child`, whose parent this is, is a part of the same program.
    ///
    /// True for a copy of it (a forked worker), a worker by title or by multiprocessing, another process of the same
    /// compiled program, and for a launcher that was given the child's command to run (`uv run …`, `timeout 1h …`).
    /// A common interpreter proves nothing: two Python programs share one.
    pub(super) fn includes(&self, child: &Self) -> bool {
        if self.uid != child.uid || self.is_session() || self.is_shell() || self.is_supervisor() {
            return false;
        }
        let same_file = self.exe.is_some() && self.exe == child.exe;
        let same =
            same_file && (!self.is_interpreter() || self.argv == child.argv || child.is_worker());
        same || self.launches(child)
    }

    fn launches(&self, child: &Self) -> bool {
        let interpreted = usize::from(child.is_interpreter());
        (0..=interpreted).any(|skipped| {
            let command = child.argv.get(skipped..).unwrap_or_default();
            let Some(before) =
                self.argv.len().checked_sub(command.len()).filter(|before| *before > 0)
            else {
                return false;
            };
            let Some((program, arguments)) = command.split_first() else { return false };
            base_name(&self.argv[before]) == base_name(program)
                && self.argv[before + 1..] == *arguments
        })
    }

    fn is_worker(&self) -> bool {
        self.argv.iter().any(|word| WORKERS.iter().any(|worker| word.starts_with(worker)))
    }

    fn is_interpreter(&self) -> bool {
        let by_exe = self.exe.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
        let name = by_exe.unwrap_or_else(|| self.name());
        let versionless =
            name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.' || c == '-');
        INTERPRETERS.contains(&versionless)
    }

    /// Name of the program: base name of `argv[0]` without a login shell's dash, or the first word of its title.
    fn name(&self) -> &str {
        let first = self.argv.first().map_or("", String::as_str);
        let word =
            if first.contains(": ") { first.split(':').next().unwrap_or_default() } else { first };
        let word = word.split(' ').next().unwrap_or_default();
        base_name(word).trim_start_matches('-').trim_end_matches(':')
    }

    /// Name of the script or module that an interpreter runs.
    fn script(&self) -> Option<&str> {
        if !self.is_interpreter() {
            return None;
        }
        self.argv.iter().skip(1).find(|word| !word.starts_with('-')).map(|word| base_name(word))
    }
}

/// Splits a NUL-separated list. A title is followed by NULs up to the end of the memory that it replaced.
fn words(cmdline: &[u8]) -> Vec<String> {
    let end = cmdline.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    // An empty last argument is indistinguishable from the padding, and lost.
    let used = &cmdline[..end];
    if used.is_empty() {
        return Vec::new();
    }
    used.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests;
