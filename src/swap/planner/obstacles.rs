//! What stands against a swap.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::{Observed, Occupant, recorded};
use crate::model::failure::Failure;
use crate::model::ids::{Port, SlotName};
use crate::model::replica::{Found, Keeper, Systemd, Unit};
use crate::model::spec::{Runtime, SwapSpec};

/// Every reason against a swap, but for what nginx would cut.
pub(super) fn obstacles(
    spec: &SwapSpec,
    seen: &Observed,
    from: &SlotName,
    to: &SlotName,
) -> Vec<Failure> {
    let mut failures = Vec::new();
    failures.extend(seen.program.clone().err());
    failures.extend(unsupervised(spec, seen));
    let port = spec.slots[to].port;
    let found = seen.slots.get(to).and_then(|occupant| occupant.found.as_ref());
    // What another service has claimed may be its model, which nobody shall be told to stop.
    let found = found.filter(|_| !seen.claimed.contains_key(to));
    if let Some(found) = found.filter(|found| recorded(to, found, &seen.state).is_none()) {
        failures.push(
            Failure::new(format!(
                "port {port} of slot {to} is taken by process {} ({}), which is not recorded as a replica of this service",
                found.main,
                found.argv.join(" ")
            ))
            .hint(format!("stop it, or give slot {to} another port")),
        );
    }
    if let Some(Occupant { found: Some(found), beside, .. }) = seen.slots.get(from)
        && !beside.is_empty()
    {
        failures.push(unasked((from, spec.slots[from].port), found, beside));
    }
    for slot in [from, to] {
        if seen.slots.get(slot).is_some_and(|occupant| occupant.forwarded) {
            failures.push(forwarded(slot, spec.slots[slot].port));
        }
        let found = seen.slots.get(slot).and_then(|o| o.found.as_ref());
        if let Some(kept) = found.and_then(|found| kept_by(slot, found, seen.systemd)) {
            failures.push(kept);
        }
    }
    failures.extend(company(seen, from));
    failures
}

/// Why what is in a slot cannot be retired: something else would be stopped with it, or start it again.
pub(super) fn company(seen: &Observed, slot: &SlotName) -> Option<Failure> {
    seen.slots.get(slot)?.company.clone()
}

/// Why a port that answers although nobody listens there is in the way: whoever answers can be neither seen nor stopped.
pub fn forwarded(slot: &SlotName, port: Port) -> Failure {
    Failure::new(format!(
        "port {port} of slot {slot} answers, and no process of this server listens there: a packet filter forwards it, and \
         whoever answers can be neither drained nor stopped"
    ))
    .hint(
        "have the model listen on the port itself, as a process, a unit or a container that the Docker Engine publishes it \
         for; or give the slot another port",
    )
}

/// Why what serves at other addresses than 127.0.0.1 is in the way: there it is asked whether it is ready and what it works on, and
/// what does not answer is neither drained nor gone back to.
pub fn unasked((slot, port): (&SlotName, Port), found: &Found, at: &BTreeSet<IpAddr>) -> Failure {
    let at: Vec<_> = at.iter().map(|ip| SocketAddr::new(*ip, port.0).to_string()).collect();
    Failure::new(format!(
        "the replica in slot {slot} (process {}) listens on {} and not on 127.0.0.1:{port}, where replicas are asked",
        found.main,
        at.join(", ")
    ))
    .hint(
        "start it again with --host 0.0.0.0 (or --host :: where nginx names an address of IPv6): it is reached at both then, and \
         nginx's `server` line can stay",
    )
    .hint("or with --host 127.0.0.1, and let the `server` line name that; do the same in replica.command")
}

/// What lets nginx reach every replica.
pub const LOOPBACK_WAY: &str = "or let the upstream name 127.0.0.1; an nginx in a container needs the server's network for that (--network=host)";

/// Why nginx will not reach a container whose port is published on 127.0.0.1, if its upstream names another address.
pub(super) fn unpublished(spec: &SwapSpec, seen: &Observed) -> Option<Failure> {
    let address = seen.beside_loopback?;
    // In the server's network what is inside listens on the server's own addresses.
    if spec.replica.runtime != Runtime::Docker || spec.replica.shares_network() {
        return None;
    }
    Some(
        Failure::new(format!(
            "upstream {} names {address}, and the ports of new containers are published on 127.0.0.1 alone: nginx would not \
             reach them",
            spec.nginx.upstream
        ))
        .hint(
            "add --network=host to replica.docker_options, and have the engine listen at that address (--host in replica.command)",
        )
        .hint(LOOPBACK_WAY),
    )
}

/// Why replicas cannot be supervised as the specification wants it.
fn unsupervised(spec: &SwapSpec, seen: &Observed) -> Option<Failure> {
    let why = match (spec.replica.runtime, seen.systemd) {
        (Runtime::Auto | Runtime::Process | Runtime::Docker, _)
        | (Runtime::Systemd, Systemd::Usable) => return None,
        (Runtime::Systemd, Systemd::Absent) => "systemd is not PID 1 of this server",
        (Runtime::Systemd, Systemd::Denied) => {
            "only root may write units, and the agent is not root"
        }
    };
    let failure = Failure::new(format!("replica.runtime is systemd, and {why}"));
    const PLAIN: &str =
        "write `runtime: auto`: replicas are plain processes then, and no boot starts them again";
    Some(match seen.systemd {
        Systemd::Denied => failure
            .hint("let the user of `host` become root without a password (NOPASSWD in sudoers), and leave state_dir out")
            .hint(format!("or {PLAIN}")),
        Systemd::Absent | Systemd::Usable => failure.hint(PLAIN),
    })
}

/// A keeper that only its own means can stop, which this version does not use.
fn kept_by(slot: &SlotName, found: &Found, systemd: Systemd) -> Option<Failure> {
    let keeper = match (&found.keeper, systemd) {
        (Keeper::Nobody | Keeper::Wrapper { .. } | Keeper::Docker(_), _)
        | (Keeper::Unit(_), Systemd::Usable)
        // Without root only one's own manager is reached: where it has told of a unit, it can be told to stop it.
        | (Keeper::Unit(Unit { user: Some(_), .. }), _) => return None,
        (keeper @ (Keeper::Unit(_) | Keeper::Container(_)), _) => keeper,
    };
    let (why, hint) = match keeper {
        Keeper::Unit(_) => (
            "which only root may stop, and the agent is not root",
            "let the user of `host` become root without a password (NOPASSWD in sudoers)",
        ),
        _ => (
            "which this version cannot stop",
            "start the model as a plain process, outside of it, before the first swap",
        ),
    };
    Some(
        Failure::new(format!(
            "the replica in slot {slot} (process {}) belongs to {keeper}, {why}",
            found.main
        ))
        .hint(hint),
    )
}

/// A `worker_shutdown_timeout` below the drain timeout cuts streams.
pub fn cutting_nginx(spec: &SwapSpec, timeout: Option<Duration>) -> Option<Failure> {
    let limit = timeout.filter(|limit| !limit.is_zero())?;
    let drain = spec.drain.timeout;
    (limit < drain).then(|| {
        Failure::new(format!(
            "nginx's worker_shutdown_timeout is {}, below the drain timeout of {}: old workers would cut streams",
            humantime::format_duration(limit),
            humantime::format_duration(drain)
        ))
        .hint(format!(
            "remove worker_shutdown_timeout, raise it to {0} or more, or lower drain.timeout to {1}",
            humantime::format_duration(drain),
            humantime::format_duration(limit)
        ))
    })
}

#[cfg(test)]
mod tests {
    use crate::model::failure::Failure;
    use crate::model::wire::When;
    use crate::swap::planner::plan_swap;
    use crate::swap::planner::tests::{adopted_in_a, spec};

    /// Whoever stopped it would stop another service's model.
    #[test]
    fn what_another_service_has_claimed_is_not_told_to_be_stopped() {
        let mut seen = adopted_in_a();
        let stranger = seen.slots.values().find(|it| it.found.is_some()).cloned().unwrap();
        seen.slots.insert("b".parse().unwrap(), stranger);
        let taken = plan_swap(&spec(), &seen, When::Changed).unwrap_err();
        assert!(taken[0].hints[0].contains("stop it"), "{taken:?}");
        let claimed = Failure::new("port 8002 is reserved by service code, slot a".to_owned());
        seen.claimed.insert("b".parse().unwrap(), claimed.clone());
        assert_eq!(plan_swap(&spec(), &seen, When::Changed).unwrap_err(), [claimed]);
    }

    #[test]
    fn what_is_not_stopped_alone_is_not_replaced() {
        let mut seen = adopted_in_a();
        let company = Failure::new("unit models.service is not the model's alone".to_owned());
        for occupant in seen.slots.values_mut().filter(|occupant| occupant.found.is_some()) {
            occupant.company = Some(company.clone());
        }
        let refused = plan_swap(&spec(), &seen, When::Changed).unwrap_err();
        assert_eq!(refused, [company]);
    }
}
