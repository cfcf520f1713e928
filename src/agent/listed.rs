//! Holds a key with a forced command to what root has listed.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::config::listing::Listing;
use crate::model::failure::Failure;
use crate::model::ids::ServiceName;
use crate::model::refusal::{Fault, Refusal};
use crate::model::spec::FetchSpec;
use crate::model::wire::{Asked, Command, RollbackRequest};

use super::Access;

/// Others than the owner may write.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Refuses what the service's file in `folder` does not allow, and everything about a service without a file.
pub(super) fn check(folder: &Path, command: &Command) -> Result<(), Refusal> {
    let Some(Asked { spec, .. }) = command.asked() else {
        let failure = Failure::new(format!("this key may not ask for {}", command.name()))
            .hint("it looks at the whole server, and this key has a forced command, for listed services alone: use another key");
        return Err(Refusal::input(failure));
    };
    hold(folder, &spec.service, |listing| listing.objections(command))
}

/// Refuses what brings weights, if the service's file does not allow it.
pub(super) fn check_fetch(
    access: &Access,
    service: &ServiceName,
    fetch: &FetchSpec,
) -> Result<(), Refusal> {
    let Access::Listed(folder) = access else { return Ok(()) };
    hold(folder, service, |listing| listing.objections_to_fetch(fetch))
}

/// Refuses with what the service's file in `folder` has against something.
fn hold(
    folder: &Path,
    service: &ServiceName,
    objections: impl FnOnce(&Listing) -> Vec<Failure>,
) -> Result<(), Refusal> {
    // The service's name has no slash and no dot: nothing leads out of the folder.
    let path = folder.join(format!("{service}.yaml"));
    let text = read(folder, &path, service)?;
    let origin = path.display().to_string();
    let listing = Listing::load(&text, &origin)
        .map_err(|problems| Refusal::of(problems.to_failures(), Fault::Environment))?;
    let objections = objections(&listing);
    if objections.is_empty() {
        return Ok(());
    }
    let hint =
        format!("this key may ask for what {origin} on the server allows; root can change it");
    let hinted = objections.into_iter().map(|objection| objection.hint(&hint));
    Err(Refusal::of(hinted.collect::<Vec<_>>(), Fault::Input))
}

/// The same for what a rollback starts again, by what was once asked for: perhaps with another key, or before root changed the
/// file. A model that a person had started is theirs, and is started again as it was.
pub(super) fn check_revived(
    access: &Access,
    wanted: &RollbackRequest,
    then: &Asked,
) -> Result<(), Refusal> {
    let Access::Listed(folder) = access else { return Ok(()) };
    let mut asked = then.clone();
    // It was found by the server itself, and is held to the name that it had.
    asked.spec.replica.pinned = None;
    let command = Command::Rollback(RollbackRequest { asked, ..wanted.clone() });
    check(folder, &command).map_err(|mut refusal| {
        for failure in &mut refusal.failures {
            failure.message = format!("what the rollback would start again: {}", failure.message);
        }
        refusal
    })
}

fn read(folder: &Path, path: &Path, service: &ServiceName) -> Result<String, Refusal> {
    let unreadable = |error: std::io::Error| {
        let failure = match error.kind() {
            ErrorKind::NotFound => Failure::new(format!(
                "this key may not ask about service {service}: there is no {}",
                path.display()
            ))
            .hint("root lists services there, each in a file of its own"),
            _ => Failure {
                causes: vec![error.to_string()],
                ..Failure::new(format!("cannot read {}", path.display()))
            },
        };
        Refusal::environment(failure)
    };
    for place in [folder, path] {
        let found = fs::metadata(place).map_err(unreadable)?;
        let own = rustix::process::geteuid().as_raw();
        let foreign = found.uid() != 0 && found.uid() != own;
        if foreign || found.mode() & WRITABLE_BY_OTHERS != 0 {
            return Err(Refusal::environment(
                Failure::new(format!(
                    "{} can be written by others than root: it allows nothing",
                    place.display()
                ))
                .hint(format!("chown root {0} && chmod go-w {0}", place.display())),
            ));
        }
    }
    fs::read_to_string(path).map_err(unreadable)
}
