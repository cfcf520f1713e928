//! What is wrong with a configuration: everything at once, each with its place and the way to mend it.

use std::fmt;

use crate::model::failure::{Failure, Hint, Location};

use super::place::Place;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where it stands.
    pub place: Place,
    /// Line of the file, counted from 1; of the enclosing mapping if something is missing; `None` outside the file.
    pub line: Option<usize>,
    /// Column of that line, counted from 1.
    pub column: Option<usize>,
    /// What stands there.
    pub wrong: Wrong,
    /// The accepted form, with an example.
    pub expected: String,
    /// What was probably meant, or how to get there.
    pub hint: Option<String>,
}

/// What stands where something else was expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wrong {
    /// A value that is not accepted, shown as given.
    Value(String),
    /// Nothing.
    Missing,
    /// A key that means nothing here.
    UnknownKey,
    /// A text that is no YAML; what the parser says.
    Syntax(String),
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(value) => write!(f, "got {value}"),
            Self::Missing => f.write_str("missing"),
            Self::UnknownKey => f.write_str("unknown key"),
            Self::Syntax(message) => write!(f, "cannot be read as YAML: {message}"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.place.is_root() {
            write!(f, "{}: ", self.place)?;
        }
        write!(f, "{}, expected {}", self.wrong, self.expected)
    }
}

impl std::error::Error for Problem {}

impl Hint for Problem {
    fn hints(&self) -> Vec<String> {
        self.hint.iter().cloned().collect()
    }
}

/// Everything that is wrong with one source; never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} in {origin}", count(.list.len()))]
pub struct Problems {
    /// The file as the user named it, or `the step's environment`.
    pub origin: String,
    /// The problems, in the order of the reference.
    pub list: Vec<Problem>,
}

impl Problems {
    /// One failure for each problem, its message led by `file:line:column`.
    pub fn to_failures(&self) -> Vec<Failure> {
        self.list
            .iter()
            .map(|problem| {
                let at = match (problem.line, problem.column) {
                    (Some(line), Some(column)) => format!("{}:{line}:{column}", self.origin),
                    _ => self.origin.clone(),
                };
                let location = problem.line.zip(problem.column).map(|(line, column)| {
                    Box::new(Location { file: self.origin.clone(), line, column })
                });
                let message = format!("{at}: {problem}");
                Failure { message, location, ..problem.to_failure() }
            })
            .collect()
    }
}

impl Hint for Problems {}

fn count(problems: usize) -> String {
    if problems == 1 { "1 problem".to_owned() } else { format!("{problems} problems") }
}

/// The name among `known` that was probably meant by `given`, if any is near: a slip or two in a longer word.
pub(super) fn meant<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(given, name), name))
        .filter(|(distance, name)| *distance <= (name.chars().count() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// The question that goes with [`meant`].
pub(super) fn did_you_mean(name: &str) -> String {
    format!("did you mean `{name}`?")
}
