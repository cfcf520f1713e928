//! What served before, is somebody else's, and was put away by an earlier swap: that it stays so is told before the record of it goes.

use crate::host::process::user_name;
use crate::host::{docker, systemctl};
use crate::journal::Journal;
use crate::model::replica::{Keeper, Unit};
use crate::service_dir::ServiceDir;

/// A line for each, with what brings it back. What cannot be asked about is left out.
pub(super) async fn lines(dir: &ServiceDir, serving: Option<&Keeper>) -> Vec<String> {
    let mut keepers: Vec<Keeper> = Vec::new();
    for plan in dir.swaps().iter().filter_map(|swap| Journal::plan(&dir.swap(swap))) {
        let sides = plan.incumbent.into_iter().chain([plan.candidate]);
        for keeper in sides.map(|side| side.keeper).filter(|keeper| Some(keeper) != serving) {
            if !keepers.contains(&keeper) {
                keepers.push(keeper);
            }
        }
    }
    let mut lines = Vec::new();
    for keeper in &keepers {
        lines.extend(match keeper {
            Keeper::Unit(unit) if !unit.is_own() => of_unit(unit).await,
            Keeper::Docker(name) => of_container(name).await,
            Keeper::Unit(_) | Keeper::Nobody | Keeper::Wrapper { .. } | Keeper::Container(_) => {
                None
            }
        });
    }
    lines
}

async fn of_unit(unit: &Unit) -> Option<String> {
    let shown = systemctl::show(unit).await.ok()?;
    let enablement = systemctl::enablement(unit).await.ok()?;
    if !shown.is_there() || shown.is_up() || enablement.starts_with("enabled") {
        return None;
    }
    let name = &unit.name;
    let (flag, who) = match unit.user {
        None => ("", String::new()),
        Some(uid) => (" --user", format!(", as {},", user_name(uid))),
    };
    Some(format!(
        "unit {name}: it served before, is stopped, and no boot starts it; `systemctl{flag} enable --now {name}`{who} brings it back"
    ))
}

async fn of_container(known_as: &str) -> Option<String> {
    let container = docker::inspect(known_as).await.ok()??;
    if container.is_own() || container.state.running {
        return None;
    }
    let (name, policy) = (container.name.trim_start_matches('/'), container.restarts());
    let update = match container.starts_on_boot() {
        true => String::new(),
        false => format!("docker update --restart=unless-stopped {name} && "),
    };
    Some(format!(
        "container {name}: it served before, is stopped, and its restart policy is {policy} by now; `{update}docker start {name}` \
         brings it back"
    ))
}
