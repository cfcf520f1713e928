//! What the next boot brings back beside the new model: a unit that others start, which no disabling keeps down.

use crate::host::systemctl;
use crate::model::replica::{Keeper, Unit};

/// A unit that is started by others alone.
pub(super) struct BroughtBack {
    unit: String,
    others: String,
}

impl BroughtBack {
    /// What is wrong with it, a fragment.
    pub(super) fn seen(&self) -> String {
        let Self { unit, others } = self;
        format!(
            "{unit} has no [Install] section, and starts with {others}: the next boot brings it back beside the new model"
        )
    }

    /// How to mend it.
    pub(super) fn mend(&self) -> String {
        let Self { unit, others } = self;
        format!(
            "take {unit} out of {others} after the swap, or give it an [Install] section instead"
        )
    }
}

/// Whether what serves now is such a unit; `None` as well where systemd does not tell.
pub(super) async fn look(keeper: &Keeper) -> Option<BroughtBack> {
    let Keeper::Unit(unit @ Unit { name, .. }) = keeper else { return None };
    let enablement = systemctl::enablement(unit).await.ok()?;
    let wanted_by = systemctl::wanted_by(unit).await.ok()?;
    let is_static = enablement == "static" && !wanted_by.is_empty();
    is_static.then(|| BroughtBack { unit: name.clone(), others: wanted_by.join(", ") })
}
