//! A swap whose agent is gone, as its folder has it.

use super::place;
use crate::event_log::EventLog;
use crate::executor::Context;
use crate::host::SystemHost;
use crate::journal::Journal;
use crate::model::failure::Failure;
use crate::model::ids::SwapId;
use crate::model::plan::Plan;
use crate::model::spec::SwapSpec;
use crate::model::wire::{Asked, Secrets};
use crate::service_dir::{SPEC, ServiceDir};

/// What another agent has left.
pub(super) struct Left {
    swap: SwapId,
    host: SystemHost,
    asked: Asked,
    plan: Plan,
}

impl Left {
    /// Reads a swap's folder; `None` if it died before it did anything. Secrets that are not given are taken from where they
    /// are kept here.
    pub(super) fn open(
        dir: &ServiceDir,
        swap: &SwapId,
        given: &Secrets,
    ) -> Result<Option<(Self, Journal)>, Failure> {
        let folder = dir.swap(swap);
        if !Journal::has_begun(&folder) {
            return Ok(None);
        }
        let journal = Journal::open(&folder)?;
        let Some(plan) = Journal::plan(&folder) else { return Ok(None) };
        let text = std::fs::read(folder.join(SPEC)).map_err(|error| Failure::from_error(&error))?;
        let spec: SwapSpec =
            serde_json::from_slice(&text).map_err(|error| Failure::from_error(&error))?;
        let mut secrets = SystemHost::kept_secrets(&spec);
        let given = given.0.iter().filter(|(_, value)| !value.is_empty());
        secrets.0.extend(given.map(|(name, value)| (name.clone(), value.clone())));
        let asked = Asked { spec, secrets };
        let host = place::host(dir, &asked);
        Ok(Some((Self { swap: swap.clone(), host, asked, plan }, journal)))
    }

    /// What its steps can see.
    pub(super) fn context<'a>(
        &'a self,
        dir: &'a ServiceDir,
    ) -> Result<Context<'a, SystemHost>, Failure> {
        let events = EventLog::open(&dir.swap(&self.swap), &self.swap)
            .map_err(|error| Failure::from_error(&error))?;
        let parts = (&self.host, &self.asked, dir);
        Ok(Context::new(parts, self.swap.clone(), self.plan.clone(), events))
    }
}
