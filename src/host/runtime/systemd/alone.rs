//! Whether somebody's own unit keeps a replica, all of it, and nothing else.

use super::{Systemd, main_of};
use crate::host::{process, systemctl};
use crate::model::failure::Failure;
use crate::model::ids::ProcessId;

impl Systemd<'_> {
    /// Nobody knows units of ours, and what runs in one is the replica's own, whatever it is.
    ///
    /// # Errors
    /// If more than the replica is stopped with the unit, or not all of it, naming that; or if that cannot be seen.
    pub(super) async fn has_no_company(&self, tree: &[ProcessId]) -> Result<(), Failure> {
        if self.0.is_own() {
            return Ok(());
        }
        self.holds(tree)?;
        self.keeps_no_other(tree).await?;
        self.stops_no_other().await
    }

    /// Whether the replica is in it.
    fn holds(&self, tree: &[ProcessId]) -> Result<(), Failure> {
        let Some((pid, outside)) = process::outside(self.0, tree) else { return Ok(()) };
        let unit = &self.0.name;
        Err(Failure::new(format!(
            "process {outside} is outside of unit {unit}, which started it: systemd would not stop it as a part of that"
        ))
        .hint(format!(
            "su, runuser -l and sudo -i open a session by PAM, on Fedora and RHEL sudo always, and what they run is moved there: leave them out of what {unit} runs \
             (systemctl cat {unit}), write User= in its [Service], and start it anew: systemctl daemon-reload; systemctl stop {unit}; \
             kill {pid}; systemctl start {unit}"
        )))
    }

    /// Whether no process in it is another program's.
    async fn keeps_no_other(&self, tree: &[ProcessId]) -> Result<(), Failure> {
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

    /// Whether no other unit that runs is stopped whenever this one is.
    async fn stops_no_other(&self) -> Result<(), Failure> {
        let others = systemctl::stopped_with(self.0).await?;
        if others.is_empty() {
            return Ok(());
        }
        let (unit, others) = (&self.0.name, others.join(" "));
        Err(Failure::new(format!("unit {unit} is not stopped alone: systemd stops {others} with it"))
            .hint(format!(
                "take {unit} out of Requires=, Requisite=, BindsTo=, PartOf= and StopPropagatedFrom= there (systemctl cat {others}), \
                 where Wants= or nothing will do, and run systemctl daemon-reload"
            )))
    }
}
