//! What the fuzzers start from and what they have found, run again: `tests/fuzz/seeds` and `tests/fuzz/found`.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use model_swap::journal::Journal;
use model_swap::model::outcome::Outcome;
use model_swap::swap::transition::StepStatus::{self, Pending, Started, Succeeded};

#[expect(unreachable_pub, reason = "the fuzzers are crates of their own")]
#[path = "../fuzz/src/properties.rs"]
mod properties;

/// What must hold for any input.
type Property = fn(&[u8]);

/// The folder of a property's inputs, and the property.
const TARGETS: [(&str, Property); 5] = [
    ("config", properties::config),
    ("nginx", properties::nginx),
    ("wire", properties::wire),
    ("journal", properties::journal),
    ("metrics", properties::metrics),
];

#[test]
fn what_the_fuzzers_start_from_and_what_they_found_holds() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz");
    for (target, property) in TARGETS {
        let mut inputs = 0;
        for kind in ["seeds", "found"] {
            let folder = root.join(kind).join(target);
            if kind == "found" && !folder.exists() {
                continue;
            }
            for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
                let path = entry?.path();
                let input = std::fs::read(&path)?;
                // A panic names the property; this names the input.
                eprintln!("{}", path.display());
                property(&input);
                inputs += 1;
            }
        }
        ensure!(inputs > 0, "no input for {target}");
    }
    Ok(())
}

/// A journal that a real swap has left, and what it says.
struct Known {
    file: &'static str,
    records: usize,
    outcome: Outcome,
    steps: &'static [StepStatus],
    closed: bool,
}

/// Journals of version 1. An agent that understood none of them would leave the swaps of its server unfinished.
const FIRST_VERSION: [Known; 3] = [
    Known {
        file: "rollback.ndjson",
        records: 13,
        outcome: Outcome::RolledBack,
        steps: &[Succeeded, Succeeded, Succeeded, Succeeded, Succeeded],
        closed: true,
    },
    Known {
        file: "swap.ndjson",
        records: 15,
        outcome: Outcome::Promoted,
        steps: &[Succeeded, Succeeded, Succeeded, Succeeded, Succeeded, Succeeded, Pending],
        closed: true,
    },
    Known {
        file: "torn.ndjson",
        records: 13,
        outcome: Outcome::Promoted,
        steps: &[Succeeded, Succeeded, Succeeded, Succeeded, Succeeded, Started, Pending],
        closed: false,
    },
];

#[test]
fn journals_of_the_first_version_say_what_they_always_said() -> Result<()> {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds/journal");
    let mut files: Vec<_> =
        std::fs::read_dir(&seeds)?.flatten().map(|entry| entry.file_name()).collect();
    files.sort();
    assert_eq!(files, FIRST_VERSION.map(|known| known.file));
    for Known { file, records, outcome, steps, closed } in FIRST_VERSION {
        let folder = tempfile::tempdir()?;
        std::fs::copy(seeds.join(file), folder.path().join("journal.ndjson"))?;
        let plan = Journal::plan(folder.path()).with_context(|| format!("{file}: no plan"))?;
        assert_eq!(plan.all_steps().count(), steps.len(), "{file}");
        let looked = Journal::look(folder.path()).context(file)?;
        let journal = Journal::open(folder.path()).context(file)?;
        assert_eq!(&looked, journal.status(), "{file}");
        assert_eq!(journal.records().len(), records, "{file}");
        assert!(journal.records().iter().all(|record| record.v == 1), "{file} is newer");
        assert_eq!(looked.steps, steps, "{file}");
        assert_eq!((looked.outcome, looked.closed), (Some(outcome), closed), "{file}");
    }
    Ok(())
}
