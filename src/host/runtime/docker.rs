//! Docker: a container of its own for each replica. The Engine starts it again from the moment that nginx points at it, on
//! its death and on boot.
//!
//! A container that is started here is removed when it has ended, its output kept in the swap's folder. One that somebody
//! else made, with Compose perhaps, is only stopped: whoever made it can start it again, and so can a rollback.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use super::{Boot, Runtime, Started};
use crate::config::command;
use crate::host::Ending;
use crate::host::docker::{self, Container, LOG, REPLICA};
use crate::host::process::{
    self, Contained, Identity, Launch, ProcessError, Snapshot, StopOrder, Stopped,
};
use crate::host::systemctl;
use crate::model::failure::Failure;
use crate::model::ids::{Port, ProcessId};
use crate::model::replica::{Found, Keeper, Replica};
use crate::model::spec;
use crate::model::wire::MARKER;

/// How much of what it wrote a container shows that ended as soon as it was started.
const LAST_WORDS: usize = 40;

/// The policy of a container that the Engine starts again, unless somebody has stopped it.
const STARTS: &str = "unless-stopped";
const LEAVES: &str = "no";
/// When it starts itself the Engine starts such a container even if somebody has stopped it: the latter if it ended with
/// another code than 0, as most end that are stopped (moby `restartmanager.ShouldRestart`).
const STUBBORN: [&str; 2] = ["always", "on-failure"];

/// The container that a keeper names.
pub(super) struct Docker<'a>(pub(super) &'a str);

impl Docker<'_> {
    /// Whether it is there, to be started again.
    ///
    /// # Errors
    /// If docker does not say.
    pub(super) async fn is_there(&self) -> Result<bool, Failure> {
        Ok(self.container().await?.is_some())
    }

    /// What it was given in a variable, running or not.
    pub(super) async fn variable(&self, name: &str) -> Option<String> {
        self.container().await.ok().flatten()?.env().remove(name)
    }

    async fn container(&self) -> Result<Option<Container>, Failure> {
        Ok(docker::inspect(self.0).await?)
    }

    /// Starts it, made anew by what a launch says; without that, as it was made by somebody else.
    async fn launch(&self, launch: &Launch, grace: Duration) -> Result<(), Failure> {
        let marker = launch.env.get(MARKER).map_or("", String::as_str);
        let Some(asked) = &launch.container else {
            return Ok(docker::start(self.0, marker).await?);
        };
        // One that ended and outlived its record: nothing runs in it, and its name is needed.
        if let Some(old) = self.container().await?.filter(|old| old.label(REPLICA).is_some()) {
            clear(&old).await?;
        }
        let args = arguments(self.0, launch, asked, grace);
        Ok(docker::run(&args, &launch.env, marker).await?)
    }
}

impl Runtime for Docker<'_> {
    async fn start(&self, launch: &Launch, grace: Duration) -> Result<Started, Failure> {
        let launched = self.launch(launch, grace).await;
        let container = self.container().await?;
        let failure = match (launched, &container) {
            (Ok(()), Some(container)) => match main(container) {
                Some(main) => {
                    let keeper = Keeper::Docker(self.0.to_owned());
                    return Ok(Started { main, keeper, invocation: None, left_out: Vec::new() });
                }
                None => {
                    let log = docker::log_tail(self.0, LAST_WORDS).await.unwrap_or_default();
                    let code = container.state.exit_code;
                    Failure::new(format!(
                        "{} ended at once, with exit code {code}",
                        Keeper::Docker(self.0.to_owned())
                    ))
                    .log(log)
                }
            },
            (Ok(()), None) => Failure::new(format!("container {} is gone at once", self.0)),
            (Err(failure), _) => failure,
        };
        if let Some(container) =
            container.filter(|made| made.label(REPLICA).is_some() && main(made).is_none())
        {
            clear(&container).await?;
        }
        Err(failure)
    }

    async fn answers(&self) -> Result<(), Failure> {
        docker::versions().await?;
        Ok(())
    }

    async fn marked(&self, marker: &str, grace: Duration) -> Result<Option<StopOrder>, Failure> {
        // It outlives an agent that is killed, and what it has not started yet nobody sees.
        until_started(marker).await?;
        let container = match docker::marked(marker).await? {
            Some(container) => Some(container),
            // What somebody else made carries no label of ours, and its keeper says which it is.
            None => {
                self.container().await?.filter(|it| it.label(REPLICA).is_none() && it.state.running)
            }
        };
        let Some(container) = container else { return Ok(None) };
        let keeper = Keeper::Docker(container.known_as());
        let main = main(&container);
        let tree = main.map(process::tree).transpose()?.unwrap_or_default();
        let main = main.unwrap_or(ProcessId { pid: 0, start: 0 });
        Ok(Some(StopOrder { main, tree, marker: Some(marker.to_owned()), grace, keeper }))
    }

    async fn stops_alone(&self, _tree: &[ProcessId]) -> Result<(), Failure> {
        match self.container().await?.filter(|container| !container.is_own()) {
            Some(container) => {
                ends_alone(&container).await?;
                stays_away(&container).await
            }
            None => Ok(()),
        }
    }

    async fn stop(&self, order: &StopOrder, how: Ending) -> Result<Stopped, Failure> {
        let Some(container) = self.container().await? else { return Ok(Stopped::default()) };
        // What keeps its client may have been changed since the swap was planned.
        self.stops_alone(&order.tree).await?;
        let mut stopped = Stopped::default();
        if container.state.running {
            let main = main(&container);
            main.map_or(Ok(()), process::spare)?;
            stopped.ended = main.map(process::tree).transpose()?.unwrap_or_default();
            if STUBBORN.contains(&container.restarts()) {
                docker::restart(self.0, STARTS).await?;
            }
            match (how, main) {
                (Ending::Cut, Some(_)) => docker::kill(self.0).await?,
                (Ending::Graceful | Ending::Cut, _) => {
                    // Whoever made it may know that it takes longer.
                    let grace = container.stop_timeout().unwrap_or_default().max(order.grace);
                    docker::stop(self.0, grace).await?;
                }
            }
            if let Some(left) = stopped.ended.iter().find(|process| process::alive(**process)) {
                return Err(Failure::new(format!(
                    "process {left} of {} is still there after docker stopped it",
                    order.keeper
                )));
            }
            if self.container().await?.is_some_and(|ended| ended.state.exit_code == KILLED) {
                stopped.forced = main.into_iter().collect();
            }
        } else if container.restarts() != LEAVES && !container.is_own() {
            // Who ended it, and so whether the Engine starts it all the same, nothing tells.
            docker::restart(self.0, LEAVES).await?;
        }
        if container.is_own() {
            stopped.unkept = clear(&container).await?;
        }
        Ok(stopped)
    }

    async fn booted(&self) -> Result<bool, Failure> {
        Ok(self.container().await?.is_some_and(|container| container.starts_on_boot()))
    }

    async fn on_boot(&self, boot: Boot) -> Result<(), Failure> {
        let policy = match boot {
            Boot::Starts => STARTS,
            Boot::Leaves => LEAVES,
        };
        match self.container().await? {
            // Of one that it removes as soon as it ends, the Engine takes no other policy.
            Some(container) if container.is_removed_by_docker() => Ok(()),
            Some(_) => Ok(docker::restart(self.0, policy).await?),
            None if boot == Boot::Leaves => Ok(()),
            None => Err(Failure::new(format!("container {} is gone", self.0))),
        }
    }

    async fn promoted(&self) -> Result<(), Failure> {
        // Since nginx points at it, the Engine starts it again.
        Ok(())
    }

    async fn log_tail(&self, replica: &Replica, lines: usize) -> Result<Vec<String>, Failure> {
        match self.container().await? {
            Some(_) => Ok(docker::log_tail(self.0, lines).await?),
            // Removed since: its output was kept.
            None => Ok(replica
                .log
                .as_deref()
                .map(|log| process::log_tail(log, lines))
                .unwrap_or_default()),
        }
    }
}

/// What follows `docker run`, but for the variables.
fn arguments(name: &str, launch: &Launch, asked: &Contained, grace: Duration) -> Vec<String> {
    let mut args = vec![
        format!("--name={name}"),
        format!("--label={REPLICA}={}", launch.env.get(MARKER).map_or("", String::as_str)),
        format!("--label={LOG}={}", launch.log.display()),
        format!("--restart={LEAVES}"),
        // Whoever stops it, an Engine that ends included, gives it this time.
        format!("--stop-timeout={}", grace.as_secs()),
    ];
    args.extend(asked.port.map(|port| format!("--publish=127.0.0.1:{port}:{port}")));
    if !asked.gpus.is_empty() {
        // The value is itself a list in CSV, and its only field has commas of its own.
        args.push(format!("--gpus=\"device={}\"", command::gpu_list(&asked.gpus)));
    }
    args.extend(asked.options.iter().cloned());
    args.push(asked.image.id.clone());
    args.extend(launch.argv.iter().cloned());
    args
}

/// Whether no other container loses its network or its processes with this one; the model itself may be another's, whose ports this one
/// publishes.
async fn ends_alone(container: &Container) -> Result<(), Failure> {
    let others = docker::joining(container).await?;
    if others.is_empty() {
        return Ok(());
    }
    let (name, others) = (container.name.trim_start_matches('/'), others.join(", "));
    Err(Failure::new(format!(
        "container {name} is not stopped alone: with it {others} would lose the network, or the processes, that they share with it"
    ))
    .hint(format!(
        "start the model in a container with a network and processes of its own, which publishes its port itself: without network_mode or \
         pid of {name} in {others}"
    )))
}

/// Whether nobody starts a container again once it has ended, or on boot: no orchestrator, and no unit, whose client in the
/// foreground ends with it.
async fn stays_away(container: &Container) -> Result<(), Failure> {
    if let Some((whose, called)) = container.orchestrator() {
        let (name, orchestrator) = (container.name.trim_start_matches('/'), whose.name);
        return Err(Failure::new(format!(
            "container {name} is run by {orchestrator} ({called}), which starts another one in its place once it is stopped"
        ))
        .hint(format!(
            "let Docker keep the model before the first swap: start it with docker run --detach --restart=unless-stopped, as a unit or \
             as a process, and end it in {orchestrator} ({})",
            whose.ends
        )));
    }
    let of_client = |argv: &[String], folder: &Path| container.is_of_client(argv, folder);
    let Some((client, unit)) = process::in_service(of_client)? else { return Ok(()) };
    let restarts = systemctl::show(&unit).await?.restarts();
    if !restarts && !systemctl::enablement(&unit).await?.starts_with("enabled") {
        return Ok(());
    }
    let (name, unit) = (container.name.trim_start_matches('/'), unit.name);
    Err(Failure::new(format!(
        "container {name} is started again by unit {unit}, which runs its client (process {client})"
    ))
    .hint(format!(
        "say Restart=no in {unit} (systemctl edit {unit}) and disable it: the model runs on, and neither its end nor a boot starts it \
         again then"
    ))
    .hint("or let Docker keep it: docker run --detach --restart=unless-stopped, and no unit"))
}

/// Returns once no client starts the container of a replica any more.
///
/// # Errors
/// If that cannot be seen, or one had to be ended: what its Engine makes of it shows in a moment.
async fn until_started(marker: &str) -> Result<(), Failure> {
    for client in process::carrying(docker::STARTS, marker)? {
        if tokio::time::timeout(docker::LIMIT, process::exited(client)).await.is_ok() {
            continue;
        }
        let (tree, grace, keeper) = (vec![client], Duration::ZERO, Keeper::Nobody);
        process::cut(&StopOrder { main: client, tree, marker: None, grace, keeper }).await?;
        let limit = humantime::format_duration(docker::LIMIT);
        return Err(Failure::new(format!(
            "docker (process {client}) did not start a container within {limit}, and was ended"
        )));
    }
    Ok(())
}

/// 128 and the number of SIGKILL.
const KILLED: i32 = 137;

/// The first process of a container that runs; none of one that the Engine is about to start again, which runs by its word.
fn main(container: &Container) -> Option<ProcessId> {
    let runs = container.state.running && container.state.pid != 0;
    runs.then(|| process::with_pid(container.state.pid))
}

/// Keeps the output of a container that was started here and has ended, and removes it; says why it could not be kept, if
/// so: Docker may have been told to keep none, and a full disk must not let it hold its slot for ever.
async fn clear(container: &Container) -> Result<Option<Failure>, Failure> {
    let mut unkept = None;
    if let Some(log) = container.label(LOG).map(Path::new)
        && log.parent().is_some_and(Path::is_dir)
    {
        unkept = docker::keep_log(&container.id, log).await.err().map(Failure::from);
    }
    docker::remove(&container.id).await?;
    Ok(unkept)
}

/// What a container was made with, as its Engine knows it: of root's processes only root sees more, and who may start one
/// again need not be root.
pub(in crate::host) async fn snapshot(name: &str) -> Result<Snapshot, Failure> {
    let Some(container) = docker::inspect(name).await? else {
        return Err(Failure::new(format!("container {name} is gone")));
    };
    let (argv, env, cwd) = (container.argv(), container.env(), container.folder());
    // As whom it runs inside Docker decides.
    Ok(Snapshot { argv, env, cwd, identity: Identity::own() })
}

/// What is found on a port, with the container in front of which Docker listens, or that a process belongs to.
///
/// # Errors
/// If that cannot be seen, if unrelated programs share the port, or if it is one that others live on.
pub(in crate::host) async fn find(
    port: Port,
    found: Result<Option<Found>, ProcessError>,
    runtime: spec::Runtime,
) -> Result<Option<Found>, Failure> {
    let inside = match &found {
        Ok(Some(Found { keeper: Keeper::Container(id), .. })) => Some(id.clone()),
        Ok(Some(_)) => return Ok(found?),
        // Where the kernel forwards, nobody listens. Other places need not be asked.
        Ok(None) if runtime != spec::Runtime::Docker => return Ok(None),
        // Others' sockets only Docker may know.
        Ok(None) | Err(ProcessError::UnseenOwner { .. }) => None,
        // Two proxies, one for each family of addresses, are no two programs.
        Err(ProcessError::SharedPort { .. }) if only_proxies(port) => None,
        Err(_) => return Ok(found?),
    };
    let container = match docker::published(port).await {
        Ok(None) => match inside {
            Some(id) => docker::inspect(&id).await.ok().flatten(),
            None => None,
        },
        container => container.ok().flatten(),
    };
    let Some((container, main)) = container.and_then(|it| main(&it).map(|main| (it, main))) else {
        return Ok(found?);
    };
    process::no_foundation(port, main)?;
    Ok(Some(Found {
        main,
        tree: process::tree(main)?,
        listeners: vec![main],
        argv: process::redact(&container.argv()),
        cwd: None,
        uid: std::fs::metadata(format!("/proc/{main}")).map_or(0, |entry| entry.uid()),
        keeper: Keeper::Docker(container.known_as()),
    }))
}

/// Whether whoever listens on a port does so for containers.
fn only_proxies(port: Port) -> bool {
    process::listeners(port).is_ok_and(|all| all_forward(&all))
}

fn all_forward(listeners: &[ProcessId]) -> bool {
    !listeners.is_empty() && listeners.iter().all(|process| process::forwards(*process))
}

/// Who listens on a port. Where Docker listens for a container it is that container, once somebody listens in there.
///
/// # Errors
/// If that cannot be seen, or Docker, which listens there, does not say for whom.
pub(in crate::host) async fn listeners(
    port: Port,
    listeners: Result<Vec<ProcessId>, ProcessError>,
) -> Result<Vec<ProcessId>, Failure> {
    let container = match &listeners {
        Ok(all) if all_forward(all) => docker::published(port).await?,
        Ok(_) => None,
        // Others' sockets only Docker may know.
        Err(_) => docker::published(port).await.ok().flatten(),
    };
    let Some((container, main)) = container.and_then(|it| main(&it).map(|main| (it, main))) else {
        return Ok(listeners?);
    };
    let listens = match container.inside(port) {
        Some(inside) => process::listens_within(main, inside)?,
        None => false,
    };
    Ok(if listens { vec![main] } else { Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::process::Inherited;
    use crate::model::replica::Image;
    use crate::model::spec::Gpu;

    #[test]
    fn a_container_is_told_its_place_and_no_value_of_a_variable() {
        let inherited = Inherited::of_self().unwrap();
        let env = [(MARKER, "chat/s-1/b"), ("HF_TOKEN", "hf_canary")];
        let launch = Launch {
            argv: ["Qwen/New", "--port", "8002"].map(str::to_owned).to_vec(),
            env: env.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            cwd: "/".into(),
            identity: inherited.identity,
            log: "/state/replica.log".into(),
            keeper: Keeper::Docker("model-swap-chat.b".to_owned()),
            container: None,
        };
        let mut asked = Contained {
            image: Image { id: "sha256:aa".to_owned(), pinned: None },
            port: Some(Port(8002)),
            gpus: vec![Gpu::Index(1), Gpu::Index(3)],
            options: vec!["--ipc=host".to_owned()],
        };
        let line = |asked: &Contained| {
            arguments("model-swap-chat.b", &launch, asked, Duration::from_secs(35)).join(" ")
        };
        assert_eq!(
            line(&asked),
            "--name=model-swap-chat.b --label=model-swap.replica=chat/s-1/b --label=model-swap.log=/state/replica.log \
             --restart=no --stop-timeout=35 --publish=127.0.0.1:8002:8002 --gpus=\"device=1,3\" --ipc=host sha256:aa \
             Qwen/New --port 8002"
        );
        asked.gpus.clear();
        asked.port = None;
        assert!(!line(&asked).contains("--gpus") && !line(&asked).contains("--publish"));
    }
}
