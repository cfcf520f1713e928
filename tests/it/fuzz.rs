//! What the fuzzers start from and what they have found, run again: `tests/fuzz/seeds` and `tests/fuzz/found`.

use std::path::Path;

use anyhow::{Context, Result, ensure};

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
