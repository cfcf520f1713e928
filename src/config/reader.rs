//! A typed walk over a parsed YAML document that collects every problem instead of stopping at the first.
//!
//! The keys that a section is asked for are the keys that it knows: there is no second list of them.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_yaml::{Mapping, Value};

use super::place::Place;
use super::problem::{Problem, Wrong, did_you_mean, meant};
use crate::swap::redact::{HIDDEN, secrets_of_argv};

/// What one walk found.
#[derive(Default)]
pub(super) struct Report {
    problems: RefCell<Vec<Problem>>,
    known: RefCell<BTreeSet<Place>>,
}

impl Report {
    /// The problems in the order in which they were met, each with its line in `text`.
    pub(super) fn into_problems(self, text: &str) -> Vec<Problem> {
        let known = self.known.into_inner();
        let mut problems = self.problems.into_inner();
        for problem in &mut problems {
            let place = match problem.wrong {
                Wrong::Missing => problem.place.parent(),
                _ => problem.place.clone(),
            };
            (problem.line, problem.column) = place.position(text).unzip();
            if problem.wrong == Wrong::UnknownKey && problem.hint.is_none() {
                problem.hint = elsewhere(&known, &problem.place);
            }
        }
        problems
    }

    /// Every key that was asked for.
    #[cfg(test)]
    pub(super) fn known(&self) -> BTreeSet<String> {
        self.known.borrow().iter().map(Place::to_string).collect()
    }
}

/// A right key in the wrong section. Of several sections that have it nobody but the user knows which is meant.
fn elsewhere(known: &BTreeSet<Place>, place: &Place) -> Option<String> {
    let homes = known.iter().filter(|other| other.name() == place.name()).map(Place::parent);
    let homes: Vec<_> = homes.map(|home| (home.is_root(), format!("`{home}`"))).collect();
    if homes.iter().any(|(is_root, _)| *is_root) {
        return Some("it belongs at the top of the file".to_owned());
    }
    let homes: Vec<_> = homes.into_iter().map(|(_, home)| home).collect();
    (!homes.is_empty()).then(|| format!("it belongs under {}", homes.join(" or ")))
}

/// An accepted form of a value.
pub(super) struct Form<T> {
    /// The form in words, with an example.
    pub(super) expected: &'static str,
    /// The value, or a hint (empty for none) if it has another form.
    pub(super) parse: fn(&Value) -> Result<T, String>,
}

/// A place and what stands there.
pub(super) struct Node<'a> {
    report: &'a Report,
    place: Place,
    /// `None` if nothing is given; an empty value (`key:`, `null`, `~`) counts as nothing.
    value: Option<&'a Value>,
}

impl<'a> Node<'a> {
    /// The document itself.
    pub(super) fn root(report: &'a Report, value: &'a Value) -> Self {
        Self::new(report, Place::default(), Some(value))
    }

    /// A value that does not come from the file, under the name by which the user gave it.
    pub(super) fn outside(&self, name: &str, value: &'a Value) -> Self {
        Self::new(self.report, Place::default().key(name), Some(value))
    }

    fn new(report: &'a Report, place: Place, value: Option<&'a Value>) -> Self {
        Self { report, place, value: value.filter(|value| !value.is_null()) }
    }

    /// What stands here.
    pub(super) fn value(&self) -> Option<&'a Value> {
        self.value
    }

    /// A value that must be given.
    pub(super) fn required<T>(&self, form: &Form<T>) -> Option<T> {
        let Some(value) = self.value else {
            self.refuse(Wrong::Missing, form.expected, None);
            return None;
        };
        self.parse(value, form)
    }

    /// A value that may be left out.
    pub(super) fn optional<T>(&self, form: &Form<T>) -> Option<Option<T>> {
        match self.value {
            None => Some(None),
            Some(value) => self.parse(value, form).map(Some),
        }
    }

    /// A value with a default.
    pub(super) fn or<T>(&self, default: T, form: &Form<T>) -> Option<T> {
        Some(self.optional(form)?.unwrap_or(default))
    }

    /// One of a few words, with a default.
    pub(super) fn choice<T: Copy>(&self, default: T, choices: &[(&str, T)]) -> Option<T> {
        let Some(value) = self.value else { return Some(default) };
        let words = || choices.iter().map(|(word, _)| *word);
        let given = value.as_str().unwrap_or_default();
        let chosen = choices.iter().find(|(word, _)| *word == given).map(|(_, choice)| *choice);
        if chosen.is_none() {
            let hint = meant(given, words()).map(did_you_mean);
            self.refuse_value(&format!("one of {}", words().collect::<Vec<_>>().join(", ")), hint);
        }
        chosen
    }

    /// The elements of a list; `None` and a problem if it is none.
    pub(super) fn elements(&self, expected: &str) -> Option<Vec<Node<'a>>> {
        match self.value {
            Some(Value::Sequence(list)) => {
                let element =
                    |(at, value)| Node::new(self.report, self.place.index(at), Some(value));
                Some(list.iter().enumerate().map(element).collect())
            }
            Some(_) => {
                self.refuse_value(expected, None);
                None
            }
            None => {
                self.refuse(Wrong::Missing, expected, None);
                None
            }
        }
    }

    /// The entries of a mapping with free keys, in the order of the file; an absent one has none.
    pub(super) fn entries(&self, expected: &str) -> Option<Vec<(&'a str, Node<'a>)>> {
        let map = self.mapping(expected)?;
        let named =
            map.into_iter().flatten().filter_map(|(key, value)| Some((self.word(key)?, value)));
        Some(
            named
                .map(|(key, value)| (key, Node::new(self.report, self.place.key(key), Some(value))))
                .collect(),
        )
    }

    /// Reads a mapping with fixed keys; one that is absent is read like an empty one. `None` and a problem if it is
    /// no mapping. Keys that `read` does not ask for are problems.
    pub(super) fn section<T>(&self, read: impl FnOnce(&Section<'a, '_>) -> T) -> Option<T> {
        let (map, is_mapping) = match self.value {
            None => (None, true),
            Some(Value::Mapping(map)) => (Some(map), true),
            Some(_) => (None, false),
        };
        let section = Section { node: self, map, asked: RefCell::default() };
        let before = self.report.problems.borrow().len();
        let content = read(&section);
        if is_mapping {
            section.refuse_unknown();
            return Some(content);
        }
        // Read for its keys alone: that each of them is missing says nothing.
        self.report.problems.borrow_mut().truncate(before);
        let asked = section.asked.borrow().join(", ");
        self.refuse_value(&format!("a mapping of settings: {asked}"), None);
        None
    }

    /// Records what stands here as a problem.
    pub(super) fn refuse_value(&self, expected: &str, hint: Option<String>) {
        self.refuse(Wrong::Value(shown(self.value)), expected, hint);
    }

    /// Records that something is missing here or inside.
    pub(super) fn refuse_missing(&self, expected: &str) {
        self.refuse(Wrong::Missing, expected, None);
    }

    /// Records something that is not the value as a whole.
    pub(super) fn refuse_part(&self, part: String, expected: &str, hint: Option<String>) {
        self.refuse(Wrong::Value(part), expected, hint);
    }

    fn parse<T>(&self, value: &Value, form: &Form<T>) -> Option<T> {
        (form.parse)(value)
            .map_err(|hint| {
                self.refuse_value(form.expected, Some(hint).filter(|hint| !hint.is_empty()))
            })
            .ok()
    }

    /// The mapping that stands here: `Some(None)` if nothing does.
    fn mapping(&self, expected: &str) -> Option<Option<&'a Mapping>> {
        match self.value {
            None => Some(None),
            Some(Value::Mapping(map)) => Some(Some(map)),
            Some(_) => {
                self.refuse_value(expected, None);
                None
            }
        }
    }

    /// A key as a word; a problem if it is a number or worse.
    fn word(&self, key: &'a Value) -> Option<&'a str> {
        let word = key.as_str();
        if word.is_none() {
            let given = shown(Some(key));
            Node::new(self.report, self.place.key(&given), None).refuse(
                Wrong::Value(format!("{given} as a key")),
                "a word as a key",
                Some("put it in quotes".to_owned()),
            );
        }
        word
    }

    fn refuse(&self, wrong: Wrong, expected: &str, hint: Option<String>) {
        let place = self.place.clone();
        let problem =
            Problem { place, line: None, column: None, wrong, expected: expected.to_owned(), hint };
        self.report.problems.borrow_mut().push(problem);
    }
}

/// A mapping with fixed keys, while it is read.
pub(super) struct Section<'a, 'n> {
    node: &'n Node<'a>,
    map: Option<&'a Mapping>,
    asked: RefCell<Vec<&'static str>>,
}

impl<'a> Section<'a, '_> {
    /// What stands under a key.
    pub(super) fn at(&self, key: &'static str) -> Node<'a> {
        self.asked.borrow_mut().push(key);
        let place = self.node.place.key(key);
        self.node.report.known.borrow_mut().insert(place.clone());
        Node::new(self.node.report, place, self.map.and_then(|map| map.get(key)))
    }

    fn refuse_unknown(&self) {
        let asked = self.asked.borrow();
        for key in self.map.iter().flat_map(|map| map.keys()).filter_map(|key| self.node.word(key))
        {
            if !asked.contains(&key) {
                let hint = match key {
                    "<<" => Some("merge keys are not followed: write the settings out".to_owned()),
                    _ => meant(key, asked.iter().copied()).map(did_you_mean),
                };
                let stray = Node::new(self.node.report, self.node.place.key(key), None);
                stray.refuse(Wrong::UnknownKey, &format!("one of {}", asked.join(", ")), hint);
            }
        }
    }
}

/// Longest value that is shown whole, in characters: enough for a path, too little for a script.
const LONGEST_SHOWN: usize = 80;

/// A value as the user gave it, on one line. What looks like a secret, as where its name belongs, is not shown.
pub(super) fn shown(value: Option<&Value>) -> String {
    let text = match value {
        None | Some(Value::Null) => "nothing".to_owned(),
        Some(Value::Bool(bool)) => bool.to_string(),
        Some(Value::Number(number)) => number.to_string(),
        Some(Value::String(text)) => format!("{:?}", without_secrets(text)),
        Some(Value::Sequence(list)) => {
            format!(
                "[{}]",
                list.iter().map(|value| shown(Some(value))).collect::<Vec<_>>().join(", ")
            )
        }
        Some(Value::Mapping(_)) => "a mapping".to_owned(),
        Some(Value::Tagged(tagged)) => format!("a value tagged {}", tagged.tag),
    };
    if text.chars().count() <= LONGEST_SHOWN {
        return text;
    }
    let start: String = text.chars().take(LONGEST_SHOWN).collect();
    format!("{start}…")
}

fn without_secrets(text: &str) -> String {
    let found = secrets_of_argv(&[text.to_owned()]);
    let hide = |text: String, secret: &String| text.replace(secret.as_str(), HIDDEN);
    found.iter().filter(|secret| !secret.is_empty()).fold(text.to_owned(), hide)
}
