//! Where state is kept on this server, and how the server is met for a service.

use std::env;
use std::path::{Path, PathBuf};

use crate::host::SystemHost;
use crate::model::failure::Failure;
use crate::model::wire::Asked;
use crate::service_dir::ServiceDir;

/// Where state is kept when the agent is root (FHS: variable state of a program).
const ROOT_STATE: &str = "/var/lib/model-swap";

/// The folder of state and journals: the one that was chosen, root's, or the user's (XDG base directories).
pub(super) fn state_dir(chosen: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(folder) = chosen {
        return Ok(folder.to_owned());
    }
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from(ROOT_STATE));
    }
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_STATE_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".local/state")))
        .map(|base| base.join("model-swap"))
        .ok_or_else(|| {
            Failure::new("neither HOME nor XDG_STATE_HOME is set on the server")
                .hint("set state_dir")
        })
}

/// The folders of the service that is asked about; they are made where they are not there.
pub(super) fn service_dir(asked: &Asked) -> Result<ServiceDir, Failure> {
    let state_dir = state_dir(asked.spec.state_dir.as_deref())?;
    Ok(ServiceDir::open(&state_dir, &asked.spec.service)?)
}

/// The host for what is asked of a service. A replica may be one that was adopted once: its owner's secrets are shown in no log.
pub(super) fn host(dir: &ServiceDir, asked: &Asked) -> SystemHost {
    let adopted = dir.swaps().into_iter().filter_map(|swap| dir.incumbent(&swap));
    SystemHost::new(asked).hiding(adopted)
}
