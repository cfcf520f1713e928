//! Docker, by its own client: that knows the context, the registries' logins and the version of the Engine it speaks to.
//!
//! Values of variables go to the client through a pipe: they are in no argv and on no disk.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use jiff::Timestamp;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::pipe::Receiver;
use tokio::process::Command;

mod client;
mod container;
mod error;
mod examine;
mod image;
mod joined;
mod orchestrator;

pub use container::Container;
pub use error::DockerError;
pub use examine::{LITTLE_ROOM, hands_out_gpus, little_room, offered, room, versions};
pub use joined::joining;

use super::exec::{self, ExecError};
use super::process::{self, LogEnd};
use crate::model::ids::Port;
use crate::model::replica::ImageHere;

/// The client, looked up in the agent's `PATH`.
const CLIENT: &str = "docker";

/// The Engine answers within milliseconds; one that pulls, removes and starts at once within seconds.
pub const LIMIT: Duration = Duration::from_secs(60);

/// What comes on top of a container's own grace until its Engine says that it has ended: it kills, and unmounts.
const STOP_MARGIN: Duration = Duration::from_secs(60);

/// How many of its last lines a container is asked for when its log is kept: more than are kept, and soon read, however long the log
/// is.
const LOG_LINES: &str = "200000";

/// How much of that is read at once, in bytes: what a pipe holds.
const BLOCK: usize = 64 * 1024;

/// How the Engine says that it does not have a container.
const NO_CONTAINER: &str = "No such container";

/// Label with the marker of the replica that a container is.
pub const REPLICA: &str = "model-swap.replica";

/// Label with the file that a container's output is kept in when it is removed.
pub const LOG: &str = "model-swap.log";

/// The variable of a client that starts a container: the marker of the replica that the container is. In the container it is
/// not.
pub const STARTS: &str = "MODEL_SWAP_STARTS";

/// The container that 127.0.0.1 reaches by a port of this machine, if there is one.
///
/// # Errors
/// If docker does not say.
pub async fn published(port: Port) -> Result<Option<Container>, DockerError> {
    // Docker goes by the number alone: on other addresses it may be published for others.
    for id in listed(&["--filter", &format!("publish={port}/tcp")]).await? {
        if let Some(container) = inspect(&id).await?.filter(|it| it.inside(port).is_some()) {
            return Ok(Some(container));
        }
    }
    Ok(None)
}

/// The container of a replica, running or not.
///
/// # Errors
/// If docker does not say.
pub async fn marked(marker: &str) -> Result<Option<Container>, DockerError> {
    let with_label = format!("label={REPLICA}={marker}");
    match listed(&["--all", "--filter", &with_label]).await?.first() {
        Some(id) => inspect(id).await,
        None => Ok(None),
    }
}

/// The ids of containers.
async fn listed(which: &[&str]) -> Result<Vec<String>, DockerError> {
    let list = ["ps", "--quiet", "--no-trunc"].iter().chain(which).copied().collect::<Vec<_>>();
    let said = ask(&list, "list its containers", LIMIT).await?;
    Ok(said.lines().map(str::to_owned).collect())
}

/// A container by name or id; `None` if there is none.
///
/// # Errors
/// If docker does not say.
pub async fn inspect(container: &str) -> Result<Option<Container>, DockerError> {
    let doing = format!("inspect {container}");
    let said = match ask(&["container", "inspect", container], &doing, LIMIT).await {
        Err(error) if error.says(NO_CONTAINER) => return Ok(None),
        said => said?,
    };
    let found: Vec<Container> = serde_json::from_str(&said)
        .map_err(|source| DockerError::Garbled { what: container.to_owned(), source })?;
    Ok(found.into_iter().next())
}

/// An image that is here; `None` if it is not.
///
/// # Errors
/// If docker does not say.
pub async fn image(reference: &str) -> Result<Option<ImageHere>, DockerError> {
    let doing = format!("inspect {reference}");
    let said = match ask(&["image", "inspect", reference], &doing, LIMIT).await {
        Err(error) if error.says("No such image") => return Ok(None),
        said => said?,
    };
    image::read(reference, &said)
        .map_err(|source| DockerError::Garbled { what: reference.to_owned(), source })
}

/// Pulls an image, and says how far it has come. Ends with this future; what was pulled so far is kept.
///
/// # Errors
/// If docker refuses.
pub async fn pull(reference: &str, progress: impl Fn(String)) -> Result<(), DockerError> {
    let mut child = Command::new(CLIENT)
        .args(["pull", reference])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(started)?;
    let mut layers = Layers::default();
    if let Some(stdout) = child.stdout.take() {
        let mut lines = BufReader::new(stdout).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if let Some(news) = layers.hear(&line) {
                progress(news);
            }
        }
    }
    let output = child.wait_with_output().await.map_err(started)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(DockerError::refused(&format!("pull {reference}"), &said))
}

/// The layers of an image that is being pulled: a client whose output is no terminal has a line for each change of one.
#[derive(Default)]
struct Layers {
    known: usize,
    done: usize,
}

impl Layers {
    /// Takes a line in: `a1b2c3: Pulling fs layer`, `a1b2c3: Pull complete`, `a1b2c3: Already exists`.
    fn hear(&mut self, line: &str) -> Option<String> {
        let (_, what) = line.split_once(": ")?;
        match what {
            "Pulling fs layer" => self.known += 1,
            "Already exists" => {
                self.known += 1;
                self.done += 1;
            }
            "Pull complete" => self.done += 1,
            _ => return None,
        }
        (what == "Pull complete")
            .then(|| format!("{} of {} layers are here", self.done, self.known))
    }
}

/// Starts a container with `docker run --detach` and more arguments, its variables through a pipe.
///
/// # Errors
/// If docker refuses.
pub async fn run(
    args: &[String],
    env: &BTreeMap<String, String>,
    marker: &str,
) -> Result<(), DockerError> {
    let mut lines = String::new();
    for (name, value) in env {
        if value.contains(['\n', '\r']) {
            return Err(DockerError::LineBreak(name.clone()));
        }
        lines.push_str(&format!("{name}={value}\n"));
    }
    let mut child = Command::new(CLIENT)
        .args(["run", "--detach", "--env-file", "/dev/stdin"])
        .args(args)
        .env(STARTS, marker)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(started)?;
    let talk = async {
        if let Some(mut stdin) = child.stdin.take() {
            // A client that refuses before it has read says why.
            let _unread = stdin.write_all(lines.as_bytes()).await;
        }
        child.wait_with_output().await.map_err(started)
    };
    let limit = || ExecError::Timeout { program: CLIENT.to_owned(), limit: LIMIT };
    let output = tokio::time::timeout(LIMIT, talk).await.map_err(|_| limit())??;
    if output.status.success() {
        return Ok(());
    }
    Err(DockerError::refused("start the container", &String::from_utf8_lossy(&output.stderr)))
}

/// Starts a container that was stopped.
///
/// # Errors
/// If docker refuses.
pub async fn start(container: &str, marker: &str) -> Result<(), DockerError> {
    let argv = with_client(&["start", container].map(str::to_owned));
    let output = exec::run_with(&argv, &[(STARTS, marker)], LIMIT).await?;
    if output.success() {
        return Ok(());
    }
    Err(DockerError::refused(&format!("start {container}"), &output.stderr))
}

/// Asks a container's first process to end, kills all of it after the grace, and returns when it has ended.
///
/// # Errors
/// If docker refuses.
pub async fn stop(container: &str, grace: Duration) -> Result<(), DockerError> {
    let seconds = grace.as_secs().to_string();
    let doing = format!("stop {container}");
    // Its long name is another one from version 28 on.
    gone_or(ask(&["stop", "-t", &seconds, container], &doing, grace + STOP_MARGIN).await)
}

/// Kills a container at once, and returns when it has ended.
///
/// # Errors
/// If docker refuses.
pub async fn kill(container: &str) -> Result<(), DockerError> {
    let doing = format!("kill {container}");
    for (verb, limit) in [("kill", LIMIT), ("wait", STOP_MARGIN)] {
        gone_or(ask(&[verb, container], &doing, limit).await)?;
    }
    Ok(())
}

/// Decides when the Engine starts a container again.
///
/// # Errors
/// If docker refuses.
pub async fn restart(container: &str, policy: &str) -> Result<(), DockerError> {
    let doing = format!("have {container} restarted {policy}");
    ask(&["update", "--restart", policy, container], &doing, LIMIT).await.map(drop)
}

/// Removes a container that has ended.
///
/// # Errors
/// If docker refuses, as it does for one that runs.
pub async fn remove(container: &str) -> Result<(), DockerError> {
    match gone_or(ask(&["rm", container], &format!("remove {container}"), LIMIT).await) {
        // Somebody else clears up, as `docker container prune` does.
        Err(error) if error.says("is already in progress") => Ok(()),
        said => said,
    }
}

/// One that was to end and is not there any more is as it should be: its Engine may remove it as soon as it ends, or somebody else.
fn gone_or(said: Result<String, DockerError>) -> Result<(), DockerError> {
    match said {
        Err(error) if error.says(NO_CONTAINER) => Ok(()),
        said => said.map(drop),
    }
}

/// The last lines that a container has written, oldest first.
///
/// # Errors
/// If docker refuses.
pub async fn log_tail(container: &str, lines: usize) -> Result<Vec<String>, DockerError> {
    let argv = ["logs", "--timestamps", "--tail", &lines.to_string(), container].map(str::to_owned);
    let output = exec::run(&with_client(&argv), LIMIT).await?;
    if !output.success() {
        return Err(DockerError::refused(&format!("show what {container} wrote"), &output.stderr));
    }
    Ok(in_order(&output.stdout, &output.stderr, lines))
}

/// Both outputs of a container come by themselves, each with its times: in their order they are one. What has no time in front is
/// the client's own word.
fn in_order(stdout: &str, stderr: &str, lines: usize) -> Vec<String> {
    let timed = |line| {
        let (time, text) = str::split_once(line, ' ')?;
        Some((time.parse::<Timestamp>().ok()?, text))
    };
    let mut all: Vec<_> = stdout.lines().chain(stderr.lines()).filter_map(timed).collect();
    all.sort_by_key(|(time, _)| *time);
    let kept = all.iter().skip(all.len().saturating_sub(lines));
    kept.map(|(_, text)| (*text).to_owned()).collect()
}

/// Writes the end of what a container has written to a file of mode 0600, over what was in it: as much as is kept of any log.
///
/// # Errors
/// If docker refuses, or the file cannot be written: then it takes no room either.
pub async fn keep_log(container: &str, path: &Path) -> Result<(), DockerError> {
    let failed = |source| DockerError::Log { path: path.to_owned(), source };
    let mut options = OpenOptions::new();
    options.read(true).write(true).truncate(true).create(true).mode(0o600);
    let mut end = LogEnd::of(process::KEPT, options.open(path).map_err(failed)?);
    let (ours, its) = io::pipe().map_err(started)?;
    let its_too = its.try_clone().map_err(started)?;
    let mut child = Command::new(CLIENT)
        .args(["logs", "--tail", LOG_LINES, container])
        .stdin(Stdio::null())
        .stdout(its)
        .stderr(its_too)
        .kill_on_drop(true)
        .spawn()
        .map_err(started)?;
    let mut said = Receiver::from_owned_fd(ours.into()).map_err(started)?;
    let keep = async {
        let mut block = vec![0; BLOCK];
        loop {
            match said.read(&mut block).await.map_err(started)? {
                0 => break end.cut().map_err(failed)?,
                read => end.push(&block[..read]).map_err(failed)?,
            }
        }
        child.wait().await.map_err(started)
    };
    let limit = || ExecError::Timeout { program: CLIENT.to_owned(), limit: LIMIT };
    match tokio::time::timeout(LIMIT, keep).await.map_err(|_| limit())? {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => {
            Err(DockerError::refused("show what it wrote", &format!("see {}", path.display())))
        }
        Err(error) => {
            let _ = std::fs::remove_file(path);
            Err(error)
        }
    }
}

async fn ask(args: &[&str], doing: &str, limit: Duration) -> Result<String, DockerError> {
    let argv: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    let output = exec::run(&with_client(&argv), limit).await?;
    match output.success() {
        true => Ok(output.stdout),
        false => Err(DockerError::refused(doing, &output.stderr)),
    }
}

fn with_client(args: &[String]) -> Vec<String> {
    std::iter::once(CLIENT.to_owned()).chain(args.iter().cloned()).collect()
}

fn started(source: io::Error) -> DockerError {
    ExecError::Start { program: CLIENT.to_owned(), source }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_counted_as_they_come() {
        let mut layers = Layers::default();
        let said: Vec<_> = [
            "v1: Pulling from acme/llm",
            "aa: Pulling fs layer",
            "bb: Already exists",
            "aa: Verifying Checksum",
            "aa: Download complete",
            "aa: Pull complete",
            "Digest: sha256:00",
        ]
        .into_iter()
        .filter_map(|line| layers.hear(line))
        .collect();
        assert_eq!(said, ["2 of 2 layers are here"]);
    }

    #[test]
    fn two_outputs_are_one_by_their_times_and_the_clients_own_word_is_none() {
        let at = |second: u8, text: &str| format!("2026-11-23T09:00:0{second}.5Z {text}\n");
        let stdout = [at(1, "one"), at(3, ""), at(4, "four")].concat();
        let stderr = format!("WARNING: Error loading config file\n{}", at(2, "two"));
        assert_eq!(in_order(&stdout, &stderr, 9), ["one", "two", "", "four"]);
        assert_eq!(in_order(&stdout, &stderr, 3), ["two", "", "four"]);
    }
}
