//! What a model loses when its user's last session ends: logind removes that user's shared memory, by which the processes of
//! a model on several GPUs talk.

use crate::host::logind::{self, LogindError};
use crate::host::process::{self, Inherited};
use crate::model::checkup::Finding;
use crate::model::failure::Failure;
use crate::model::spec::{Runtime, SwapSpec};

/// The user whom the next model runs as, where that user's shared memory is removed.
///
/// # Errors
/// If logind does not tell.
async fn loser(inherited: &Inherited) -> Result<Option<String>, LogindError> {
    let uid = inherited.identity.uid;
    Ok(logind::removes_shared_memory(uid).await?.then(|| process::user_name(uid)))
}

fn seen(user: &str) -> String {
    format!(
        "the model is to run as {user}, whose files in /dev/shm systemd-logind removes when {user}'s last session ends \
         (RemoveIPC=yes): a model on several GPUs may die of that"
    )
}

fn mend(user: &str) -> String {
    format!(
        "`loginctl enable-linger {user}`, as root on the server, or write `RemoveIPC=no` into /etc/systemd/logind.conf and restart \
         systemd-logind"
    )
}

/// What a plan says of it, where a model has several GPUs; nothing where it is not known.
pub(super) async fn note(spec: &SwapSpec, inherited: &Inherited) -> Option<String> {
    let is_split = spec.slots.values().any(|slot| slot.gpus.len() > 1);
    // A container has shared memory of its own.
    if !is_split || spec.replica.runtime == Runtime::Docker {
        return None;
    }
    let user = loser(inherited).await.ok().flatten()?;
    Some(format!("{}; {}", seen(&user), mend(&user)))
}

/// What `doctor` says of it; nothing where each model has one GPU. A slot without any may have all.
pub(super) async fn finding(spec: &SwapSpec, inherited: &Inherited) -> Option<Finding> {
    const WHAT: &str = "shared memory";
    if spec.slots.values().all(|slot| slot.gpus.len() == 1) {
        return None;
    }
    Some(match loser(inherited).await {
        Ok(None) => Finding::ok(WHAT, "no end of a session takes it away"),
        Ok(Some(user)) => Finding::warn(WHAT, seen(&user), mend(&user)),
        Err(error) => Finding::unseen(WHAT, Failure::from_error(&error).to_string()),
    })
}
