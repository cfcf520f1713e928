//! Whether a boot starts what clients come through: nginx, and the Docker Engine where it keeps the replicas. Of the replicas themselves
//! a swap sees to that.

use crate::host::nginx::UpstreamView;
use crate::host::{Host, SystemHost, docker, process, systemctl};
use crate::model::checkup::Finding;
use crate::model::replica::{Keeper, Systemd, Unit};
use crate::model::spec::{Runtime, SwapSpec};

const NGINX: &str = "nginx after a reboot";
const DOCKER: &str = "Docker after a reboot";

/// As Docker's packages name it; where it has another name nothing is said.
const ENGINE: &str = "docker.service";

/// What `is-enabled` says of units that a boot starts (systemctl(1)). Of a `static` one others decide.
const BOOTED: [&str; 3] = ["enabled", "alias", "generated"];

/// Where systemd is PID 1. What a person starts by hand nobody expects to come back.
pub(super) async fn look(
    host: &SystemHost,
    spec: &SwapSpec,
    upstream: Option<&UpstreamView>,
) -> Vec<Finding> {
    if host.systemd() == Systemd::Absent {
        return Vec::new();
    }
    let starter = match upstream {
        Some(view) => process::starter(view.master).await,
        None => None,
    };
    let nginx = match starter {
        Some(Keeper::Unit(unit)) => of_unit(NGINX, unit).await,
        Some(Keeper::Docker(id)) => of_container(&id).await,
        _ => None,
    };
    let engine = match spec.replica.runtime {
        Runtime::Docker => of_unit(DOCKER, Unit { name: ENGINE.to_owned(), user: None }).await,
        Runtime::Auto | Runtime::Systemd | Runtime::Process => None,
    };
    nginx.into_iter().chain(engine).collect()
}

/// Others may start it, whether it is enabled or not. One that nobody knows is another's matter: what runs has its own name.
async fn of_unit(what: &str, unit: Unit) -> Option<Finding> {
    if !systemctl::show(&unit).await.ok()?.is_there() {
        return None;
    }
    let others = systemctl::wanted_by(&unit).await.ok()?;
    let word = systemctl::enablement(&unit).await.ok()?;
    let (name, flag) = (unit.name, unit.user.map_or("", |_| " --user"));
    if BOOTED.contains(&word.as_str()) || !others.is_empty() {
        return Some(Finding::ok(what, format!("{name} is started")));
    }
    let mend = match word.as_str() {
        "static" => format!("systemctl{flag} add-wants multi-user.target {name}"),
        "masked" | "masked-runtime" => {
            format!("systemctl{flag} unmask {name} && systemctl{flag} enable {name}")
        }
        _ => format!("systemctl{flag} enable {name}"),
    };
    Some(unstarted(what, &name, mend))
}

async fn of_container(id: &str) -> Option<Finding> {
    let container = docker::inspect(id).await.ok()??;
    let name = container.name.trim_start_matches('/');
    if container.starts_on_boot() {
        return Some(Finding::ok(NGINX, format!("container {name} is started")));
    }
    let mend = format!("docker update --restart=unless-stopped {name}");
    Some(unstarted(NGINX, &format!("container {name}"), mend))
}

fn unstarted(what: &str, which: &str, mend: String) -> Finding {
    Finding::warn(what, format!("no boot starts {which}, and no client reaches a model then"), mend)
}
