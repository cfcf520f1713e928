//! Whether somebody's own unit keeps a replica and nothing else.

use super::{Systemd, main_of};
use crate::host::{process, systemctl};
use crate::model::failure::Failure;
use crate::model::ids::ProcessId;

impl Systemd<'_> {
    /// What runs in a unit of ours is the replica's own, whatever it is.
    ///
    /// # Errors
    /// If the unit ends a process that is no part of the replica, naming both; or if that cannot be seen.
    pub(super) async fn has_no_company(&self, tree: &[ProcessId]) -> Result<(), Failure> {
        if self.0.is_own() {
            return Ok(());
        }
        let shown = systemctl::show(self.0).await?;
        let other = if shown.has_main() { process::beside(main_of(&shown), tree)? } else { None };
        let Some(other) = other else { return Ok(()) };
        let unit = &self.0.name;
        Err(Failure::new(format!(
            "unit {unit} is not the model's alone: to stop it would end process {other} as well"
        ))
        .hint(format!(
            "give the model a unit of its own, which runs its command and nothing else; systemctl status {unit} shows what runs in \
             this one"
        )))
    }
}
