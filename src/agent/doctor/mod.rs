//! Everything that a swap needs of this server, looked at all at once. Changes nothing.

mod boot;
mod containers;
mod places;
mod proxy;
mod replicas;
mod weights;

use jiff::Timestamp;

use super::refuge;
use super::stuck::refuse_while_stuck;
use crate::executor::{self, Underway};
use crate::host::logind;
use crate::host::{Host, SystemHost};
use crate::lease::Lease;
use crate::model::checkup::{Checkup, Finding};
use crate::model::failure::Failure;
use crate::model::replica::Systemd;
use crate::model::wire::{Asked, When};
use crate::service_dir::ServiceDir;
use crate::swap::planner::{self, Decision};

const STUCK: &str = "stuck swap";
const PLAN: &str = "plan of a swap";

/// Looks at everything.
pub(super) async fn checkup(dir: &ServiceDir, asked: &Asked) -> Checkup {
    let host = SystemHost::new(asked);
    let underway = Underway::of(dir);
    let mut findings = places::look(dir);
    if let Err(stuck) = refuse_while_stuck(dir, asked).await {
        findings.extend(stuck.failures.into_iter().map(|failure| Finding::fail(STUCK, failure)));
    }
    if host.systemd() != Systemd::Absent {
        findings.insert(1, refuge::finding(logind::fate().await));
    }
    let (proxy, upstream) = proxy::look(&host, &asked.spec).await;
    findings.extend(weights::look(&host, &asked.spec, upstream.as_ref()).await);
    findings.extend(proxy);
    findings.extend(boot::look(&host, &asked.spec, upstream.as_ref()).await);
    let slots = replicas::look((&host, dir), asked, upstream.as_ref(), underway.as_ref()).await;
    findings.extend(slots);
    findings.push(match (underway, Lease::holder(&dir.root())) {
        (Some(_), _) => {
            Finding::unseen(PLAN, "a swap has no outcome yet, and what serves then is not known")
        }
        (None, Some(_)) => Finding::unseen(PLAN, "another command is at work, and may change it"),
        (None, None) => plan(&host, dir, asked, &findings).await,
    });
    Checkup { at: Timestamp::now(), findings }
}

/// The last word is the planner's: what it would refuse, whatever else was looked at.
async fn plan(host: &SystemHost, dir: &ServiceDir, asked: &Asked, before: &[Finding]) -> Finding {
    if before.iter().any(Finding::is_failure) {
        return Finding::unseen(PLAN, "what failed above is in the way");
    }
    // A hash of secrets says whether they have changed: nothing that a swap could fail for.
    let world = match executor::look(host, dir, asked, ("", None)).await {
        Ok(world) => world,
        Err(failure) => return Finding::fail(PLAN, failure),
    };
    match planner::plan_swap(&asked.spec, &world.seen, When::Always) {
        Ok(Decision::Act(plan)) => {
            let steps: Vec<_> = plan.steps.iter().map(|step| step.step.name()).collect();
            let seen = steps.join(", ");
            match plan.notes.is_empty() {
                true => Finding::ok(PLAN, seen),
                false => {
                    Finding { mend: Vec::new(), ..Finding::warn(PLAN, plan.notes.join("; "), "") }
                }
            }
        }
        Ok(Decision::Unchanged(reason)) => Finding::ok(PLAN, reason),
        Err(failures) => {
            let seen = failures.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            let hints = failures.into_iter().flat_map(|failure| failure.hints).collect();
            Finding::fail(PLAN, Failure { hints, ..Failure::new(seen) })
        }
    }
}

/// Bytes as people read them.
fn size(bytes: u64) -> String {
    const GIB: u64 = 1 << 30;
    const MIB: u64 = 1 << 20;
    match bytes {
        GIB.. => format!("{} GiB", bytes / GIB),
        _ => format!("{} MiB", bytes / MIB),
    }
}
