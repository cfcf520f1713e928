//! What is wrong with an input, in words.

use crate::model::failure::Hint;

/// How alike two words must be (Jaro-Winkler, 0 to 1) for one to be offered for the other.
const ALIKE: f64 = 0.8;

/// An input that cannot be used. Never holds a secret's value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.text())]
pub struct InputProblem {
    /// The input's name.
    pub input: String,
    /// Its value, unless it is a secret or the name itself is wrong.
    pub value: Option<String>,
    /// What is accepted, in words.
    pub accepted: String,
    /// What was probably meant.
    pub meant: Option<&'static str>,
}

impl InputProblem {
    fn text(&self) -> String {
        let Self { input, value, accepted, .. } = self;
        match value {
            Some(value) => format!("input {input} is {value:?}: {accepted}"),
            None => format!("input {input}: {accepted}"),
        }
    }
}

impl Hint for InputProblem {
    fn hints(&self) -> Vec<String> {
        self.meant.iter().map(|meant| format!("did you mean `{meant}`?")).collect()
    }
}

/// The known word that a word is most like, if any is like it.
pub(super) fn closest(
    word: &str,
    known: impl Iterator<Item = &'static str>,
) -> Option<&'static str> {
    let word = word.to_lowercase();
    known
        .map(|candidate| (strsim::jaro_winkler(&word, candidate), candidate))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, candidate)| candidate)
}

/// `a, b and c`.
pub(super) fn listed(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [only] => (*only).to_owned(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}
