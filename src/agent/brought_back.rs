//! What the next boot brings back beside the new model: a unit that others start, which no disabling keeps down.

use std::path::Path;

use crate::host::systemctl;
use crate::model::replica::{Keeper, Unit};

/// Where `systemctl enable` makes its links, and `systemctl disable` removes them, lasting and until a boot (systemctl(1)).
const LINKS: [&str; 2] = ["/etc/systemd/system", "/run/systemd/system"];

/// A unit that others start, whether it is enabled or not.
pub(super) struct BroughtBack {
    unit: String,
    others: String,
}

impl BroughtBack {
    /// What is wrong with it, a fragment.
    pub(super) fn seen(&self) -> String {
        let Self { unit, others } = self;
        format!(
            "{unit} starts with {others}, enabled or not: the next boot brings it back beside the new model"
        )
    }

    /// How to mend it.
    pub(super) fn mend(&self) -> String {
        let Self { unit, others } = self;
        format!(
            "take {unit} out of {others} after the swap, or have its [Install] section name {others} instead"
        )
    }
}

/// Whether what serves now is such a unit; `None` as well where systemd does not tell.
pub(super) async fn look(keeper: &Keeper) -> Option<BroughtBack> {
    let Keeper::Unit(unit @ Unit { name, user }) = keeper else { return None };
    let mut others = systemctl::wanted_by(unit).await.ok()?;
    // Where a user's links are nothing tells: of a unit that can be disabled nothing is said.
    let is_told = user.is_none() || systemctl::enablement(unit).await.ok()? == "static";
    others.retain(|other| is_told && !LINKS.iter().any(|at| is_link(Path::new(at), other, name)));
    let others = others.join(", ");
    (!others.is_empty()).then(|| BroughtBack { unit: name.clone(), others })
}

/// Whether it is by a link that a unit is started with another one; disabling removes that.
fn is_link(units: &Path, other: &str, unit: &str) -> bool {
    let link = |how: &str| units.join(format!("{other}.{how}")).join(unit);
    ["wants", "requires"].iter().any(|how| link(how).is_symlink())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_disabling_removes_brings_nothing_back() {
        let folder = tempfile::tempdir().unwrap();
        let wants = folder.path().join("multi-user.target.wants");
        std::fs::create_dir(&wants).unwrap();
        std::os::unix::fs::symlink("/nowhere", wants.join("vllm.service")).unwrap();
        let starts = |other: &str| is_link(folder.path(), other, "vllm.service");
        assert!(starts("multi-user.target") && !starts("nginx.service"));
    }
}
