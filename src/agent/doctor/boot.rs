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
        Some(Keeper::Unit(unit)) => of_unit(host, NGINX, unit).await,
        Some(Keeper::Docker(id)) => of_container(&id).await,
        _ => None,
    };
    let engine = match spec.replica.runtime {
        Runtime::Docker => {
            of_unit(host, DOCKER, Unit { name: ENGINE.to_owned(), user: None }).await
        }
        Runtime::Auto | Runtime::Systemd | Runtime::Process => None,
    };
    nginx.into_iter().chain(engine).collect()
}

/// Others may start it, whether it is enabled or not.
async fn of_unit(host: &SystemHost, what: &str, unit: Unit) -> Option<Finding> {
    let others = systemctl::wanted_by(&unit).await.ok()?;
    let (name, flag) = (unit.name.clone(), unit.user.map_or("", |_| " --user"));
    if host.booted(&Keeper::Unit(unit)).await.ok()? || !others.is_empty() {
        return Some(Finding::ok(what, format!("{name} is started")));
    }
    Some(unstarted(what, &name, format!("systemctl{flag} enable {name}")))
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
