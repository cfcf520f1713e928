//! nginx looked at piece by piece: where a swap stops at the first thing that is wrong, `doctor` names them all.

use rustix::process::{Pid, test_kill_process};

use super::error::NginxError;
use super::process::Master;
use super::{Nginx, UpstreamView, call};
use crate::model::ids::ProcessId;
use crate::swap::nginx_conf::AccessLog;

/// What was seen; `None` where something before it is in the way.
#[derive(Debug)]
pub struct Examined {
    /// How many files the configuration has, if it passes `nginx -t`.
    pub files: Result<usize, NginxError>,
    /// The running master.
    pub master: Option<Result<ProcessId, NginxError>>,
    /// Whether this user may tell the master to reload.
    pub reload: Option<Result<(), NginxError>>,
    /// The upstream, if it is there and its file can be replaced.
    pub upstream: Option<Result<UpstreamView, NginxError>>,
    /// Whether access logs say which replica answered.
    pub access_log: Option<AccessLog>,
}

impl Nginx {
    /// Looks at everything that a cutover needs. Changes nothing, and tells nginx nothing.
    pub async fn examine(&self) -> Examined {
        let dump = match call::test_and_dump(&self.spec.command).await {
            Ok(dump) => dump,
            Err(error) => return self.examine_broken(error).await,
        };
        let running = self.running(&dump).await;
        let reload = running.as_ref().ok().map(|running| may_reload(&running.master));
        let upstream = running.as_ref().ok().map(|running| self.upstream_in(&dump, running));
        Examined {
            files: Ok(dump.paths().count()),
            master: Some(running.map(|running| running.master.process)),
            reload,
            upstream,
            access_log: Some(dump.access_log()),
        }
    }

    /// A configuration that does not pass its test says at least where the running master's pid file is.
    async fn examine_broken(&self, error: NginxError) -> Examined {
        let mut master = None;
        if matches!(error, NginxError::Rejected { .. })
            && let Some(dump) = call::main_file(&self.spec.command).await
            && let Ok(file) = call::pid_file(&self.spec.command, &dump).await
        {
            master = Master::find(&file, |_| true).transpose();
        }
        Examined {
            reload: master.as_ref().and_then(|master| master.as_ref().ok()).map(may_reload),
            files: Err(error),
            master: master.map(|master| master.map(|master| master.process)),
            upstream: None,
            access_log: None,
        }
    }
}

fn may_reload(master: &Master) -> Result<(), NginxError> {
    let pid = master.process.pid;
    let gone = || NginxError::MasterGone { master: pid };
    test_kill_process(Pid::from_raw(pid).ok_or_else(gone)?)
        .map_err(|error| NginxError::Signal { master: pid, source: error.into() })
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::host::process;
    use crate::model::failure::Hint;

    /// The user nobody may not signal the first process, and everybody his own.
    #[test]
    fn who_may_not_signal_the_master_is_told_so() {
        let own = Master::for_test(process::own());
        assert!(may_reload(&own).is_ok());
        let refused = std::thread::spawn(move || {
            let nobody = rustix::process::Uid::from_raw(65534);
            // Of this thread alone; who is not root is nobody to the first process already.
            let _ = rustix::thread::set_thread_res_uid(nobody, nobody, nobody);
            may_reload(&Master::for_test(ProcessId { pid: 1, start: 0 })).unwrap_err()
        });
        let refused = refused.join().unwrap();
        assert!(
            matches!(&refused, NginxError::Signal { master: 1, source } if source.kind() == io::ErrorKind::PermissionDenied),
            "{refused:?}"
        );
        assert!(refused.hints()[0].contains("let that user own nginx"), "{refused:?}");
    }
}
