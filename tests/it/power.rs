//! What a machine that loses its power keeps: whatever an agent has done is on the disk before its journal goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use testbed::server::Deed;

use crate::kills;
use crate::step::Step;
use crate::support::{NEW, World};

/// Whether it must outlive a loss of power: not what only tells or locks, and not the binary, whose name is its own digest.
fn must_last(world: &World, path: &Path) -> bool {
    let state = world.server.state_dir();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let tells = name.ends_with(".log") || name == "events.ndjson" || name.ends_with(".lock");
    let is_ours = path.starts_with(&state) && !path.starts_with(state.join("bin"));
    let is_nginxs =
        path.parent() == Some(world.server.scratch()) && name.starts_with(".model-swap-");
    (is_ours || is_nginxs) && !tells
}

/// What each agent has done when it writes a record, and has not brought to the disk.
fn lost_at_records(world: &World) -> Result<BTreeMap<usize, BTreeSet<PathBuf>>> {
    let (mut unsynced, mut lost) = (BTreeMap::<u32, BTreeSet<PathBuf>>::new(), BTreeMap::new());
    let mut records = 0;
    for Deed { pid, what, path } in world.server.deeds()? {
        let dirty = unsynced.entry(pid).or_default();
        let folder = path.parent().context("a folder")?.to_owned();
        match what.as_str() {
            "synced" => {
                dirty.remove(&path);
            }
            _ if !must_last(world, &path) => {}
            "made" => {
                dirty.insert(folder);
            }
            _ => {
                if path.ends_with("journal.ndjson") {
                    records += 1;
                    // A journal's first record is what its own folder is synced after.
                    let open = dirty.iter().filter(|left| **left != folder).cloned();
                    lost.insert(records, open.collect());
                }
                dirty.insert(path);
            }
        }
    }
    lost.insert(records + 1, unsynced.into_values().flatten().collect());
    Ok(lost)
}

#[tokio::test]
async fn whatever_is_done_is_on_the_disk_before_the_journal_goes_on() -> Result<()> {
    let world = kills::world().await?;
    world.server.note_disk()?;
    let retired = [("wait", "retired")];
    Step::run(world.action("swap", NEW, &retired)?).await?.ended(0, "promoted");
    Step::run(world.action("rollback", NEW, &retired)?).await?.ended(0, "rolled-back");
    let lost = lost_at_records(&world)?;
    assert!(lost.len() > 30, "only {} records", lost.len());
    for (record, paths) in &lost {
        assert!(
            paths.is_empty(),
            "record {record} follows what a loss of power undoes: {paths:#?}"
        );
    }
    let deeds = world.server.deeds()?;
    for written in [".model-swap-", "lease.json"] {
        let is_it =
            |deed: &&Deed| deed.what == "wrote" && deed.path.to_string_lossy().contains(written);
        assert!(deeds.iter().filter(is_it).count() > 3, "{written} is written and not seen");
    }
    Ok(())
}
