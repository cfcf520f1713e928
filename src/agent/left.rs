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
use crate::model::wire::Asked;
use crate::service_dir::{SPEC, ServiceDir};

/// What another agent has left.
pub(super) struct Left {
    swap: SwapId,
    host: SystemHost,
    asked: Asked,
    plan: Plan,
}

impl Left {
    /// Reads a swap's folder; `None` if it died before it did anything. Secrets that nobody gives now are taken from where
    /// they are kept here.
    pub(super) async fn open(
        dir: &ServiceDir,
        swap: &SwapId,
        given: Option<&Asked>,
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
        let mut secrets = SystemHost::kept_secrets(&spec, &plan).await;
        let given = given.into_iter().flat_map(|asked| &asked.secrets.0);
        let known = given.filter(|(_, value)| !value.is_empty());
        secrets.0.extend(known.map(|(name, value)| (name.clone(), value.clone())));
        let asked = Asked { spec, secrets };
        let host = place::host(dir, &asked);
        Ok(Some((Self { swap: swap.clone(), host, asked, plan }, journal)))
    }

    /// From now on it is drained as another specification says: whoever repairs may have changed what it is stuck at.
    pub(super) fn drain_as(&mut self, spec: &SwapSpec) {
        self.asked.spec.drain = spec.drain.clone();
        self.asked.spec.nginx.pinned_workers = spec.nginx.pinned_workers;
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
