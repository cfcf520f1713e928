//! nginx: its configuration, its master, the upstream, and what of its settings a swap has to know.

use crate::host::SystemHost;
use crate::host::nginx::{Examined, NginxError, UpstreamView};
use crate::model::checkup::Finding;
use crate::model::failure::Hint;
use crate::model::spec::SwapSpec;
use crate::swap::nginx_conf::AccessLog;
use crate::swap::planner;

const CONFIG: &str = "nginx configuration";
const RUNNING: &str = "nginx running";
const RELOAD: &str = "right to reload nginx";
const UPSTREAM: &str = "upstream";
const SHUTDOWN: &str = "worker_shutdown_timeout";
const LOG: &str = "access log";

/// Every finding, and the upstream if it could be changed.
pub(super) async fn look(
    host: &SystemHost,
    spec: &SwapSpec,
) -> (Vec<Finding>, Option<UpstreamView>) {
    let Examined { files, master, reload, upstream, access_log } = host.nginx().examine().await;
    let tested = match files {
        Ok(count) => Finding::ok(
            CONFIG,
            format!("{} -t is content with {count} files", spec.nginx.command.join(" ")),
        ),
        Err(error) => Finding::fail(CONFIG, error.to_failure()),
    };
    let blocked = match tested.is_failure() {
        true => "nginx's configuration is in the way",
        false => "the running nginx is not known",
    };
    // Which of the running ones is ours, the configured file tells.
    let (master, upstream) = match master {
        Some(Err(error @ (NginxError::Unreadable { .. } | NginxError::NotIncluded { .. }))) => {
            (None, Some(Err(error)))
        }
        master => (master, upstream),
    };
    let mut findings = vec![
        tested,
        of(RUNNING, master, blocked, |master| format!("master process {master}")),
        of(RELOAD, reload, blocked, |()| "yes".to_owned()),
    ];
    let (found, view) = match upstream {
        Some(Ok(view)) => {
            let seen =
                format!("{} in {}: `{}`", spec.nginx.upstream, view.file.display(), view.server);
            (Finding::ok(UPSTREAM, seen), Some(view))
        }
        Some(Err(error)) => (Finding::fail(UPSTREAM, error.to_failure()), None),
        None => (Finding::unseen(UPSTREAM, blocked), None),
    };
    findings.push(match view.as_ref().map(|view| planner::serving_slot(spec, view.port)) {
        Some(Err(failure)) => Finding::fail(UPSTREAM, failure),
        _ => found,
    });
    findings.extend(view.as_ref().map(|view| shutdown(spec, view)));
    findings.extend(access_log.map(logged));
    (findings, view)
}

fn of<T>(
    what: &str,
    seen: Option<Result<T, NginxError>>,
    blocked: &str,
    say: impl FnOnce(T) -> String,
) -> Finding {
    match seen {
        Some(Ok(value)) => Finding::ok(what, say(value)),
        Some(Err(error)) => Finding::fail(what, error.to_failure()),
        None => Finding::unseen(what, blocked),
    }
}

fn shutdown(spec: &SwapSpec, view: &UpstreamView) -> Finding {
    match (planner::cutting_nginx(spec, view.worker_shutdown_timeout), view.worker_shutdown_timeout)
    {
        (Some(failure), _) => Finding::fail(SHUTDOWN, failure),
        (None, Some(limit)) => {
            let limit = humantime::format_duration(limit);
            Finding::ok(SHUTDOWN, format!("{limit}, not below drain.timeout"))
        }
        (None, None) => Finding::ok(SHUTDOWN, "not set: old workers finish what they have"),
    }
}

fn logged(log: AccessLog) -> Finding {
    const MEND: &str = "add $upstream_addr to the log_format of this server, to see later which model answered what";
    match log {
        AccessLog::Tells => Finding::ok(LOG, "says by $upstream_addr which replica answered"),
        AccessLog::Silent => {
            Finding::warn(LOG, "does not say which replica answered a request", MEND)
        }
        AccessLog::Off => Finding::ok(LOG, "off"),
    }
}
