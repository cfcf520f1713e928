//! Words that are held as they stand: a table of them in a file beside the tests.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};

use super::Run;

/// What a table says, and what was really said. What differs from run to run has a name instead.
pub(crate) struct Snapshots {
    table: BTreeMap<&'static str, &'static str>,
    names: Vec<(String, String)>,
    wrong: String,
}

impl Snapshots {
    /// Rows of a table: `=== name` on a line of its own, and below it the words.
    pub(crate) fn of(table: &'static str) -> Self {
        let rows = table.split("=== ").skip(1).filter_map(|row| row.split_once('\n'));
        let table = rows.map(|(name, words)| (name, words.trim_end())).collect();
        Self { table, names: Vec::new(), wrong: String::new() }
    }

    /// How many rows there are.
    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    /// Calls something by a name wherever it is said from now on.
    pub(crate) fn name(&mut self, value: impl Display, name: &str) {
        self.names.push((value.to_string(), name.to_owned()));
    }

    /// Holds what was said to a row.
    pub(crate) fn row(&mut self, name: &str, said: &str) {
        let said = self
            .names
            .iter()
            .fold(said.to_owned(), |said, (value, name)| said.replace(value.as_str(), name));
        let said: Vec<_> = said.lines().map(|line| masked(line.trim_end())).collect();
        let said = said.join("\n");
        if self.table.get(name) != Some(&said.trim_end()) {
            let _ = writeln!(self.wrong, "=== {name}\n{}\n", said.trim_end());
        }
    }

    /// Shows every row that is another one.
    #[track_caller]
    pub(crate) fn assert(self) {
        assert!(self.wrong.is_empty(), "said, and not what the table has:\n\n{}", self.wrong);
    }
}

/// A line without what is drawn by lot: digests of keys, and names of files that are being made.
fn masked(line: &str) -> String {
    let is_drawn = |c: char| c.is_ascii_alphanumeric() || "+/=".contains(c);
    ["SHA256:", ".model-swap-"].iter().fold(line.to_owned(), |line, start| {
        let mut parts = line.split(start);
        let first = parts.next().unwrap_or_default().to_owned();
        parts.fold(first, |line, part| {
            format!("{line}{start}…{}", part.trim_start_matches(is_drawn))
        })
    })
}

/// Every failure that a step has told, with its hints.
pub(crate) fn complaints(run: &Run) -> String {
    const ERROR: &str = "::error title=model-swap::";
    const HINT: &str = "            ";
    let lines = run.stdout.lines().filter_map(|line| {
        let hint = || line.strip_prefix(HINT).map(|hint| format!("    {hint}"));
        line.strip_prefix(ERROR)
            .map(|error| error.replace("%0A", "\n").replace("%25", "%"))
            .or_else(hint)
    });
    lines.collect::<Vec<_>>().join("\n")
}
