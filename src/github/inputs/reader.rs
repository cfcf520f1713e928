//! Takes inputs out of an environment in the runner's form, and notes what is wrong with them.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use super::INPUTS;
use super::problem::{InputProblem, closest, listed};
use crate::github::status::marked;
use crate::model::ids::{InvalidName, SwapId};
use crate::model::secret::Secret;

/// `with: entrypoint` and `with: args` are the runner's own and reach the container like inputs.
const OF_THE_RUNNER: [&str; 2] = ["entrypoint", "args"];

/// One pass over the inputs that collects what is wrong with them.
pub(super) struct Reader<'a> {
    pub(super) env: &'a BTreeMap<String, String>,
    pub(super) problems: Vec<InputProblem>,
}

impl<'a> Reader<'a> {
    /// As given; `None` if blank.
    pub(super) fn raw(&self, name: &str) -> Option<&'a str> {
        let value = self.env.get(&format!("INPUT_{}", name.to_uppercase()))?;
        (!value.trim().is_empty()).then_some(value.as_str())
    }

    /// Without the blanks and newlines around it, which YAML's block texts bring.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.raw(name).map(|value| value.trim().to_owned())
    }

    pub(super) fn choice<T: Copy>(
        &mut self,
        name: &str,
        choices: &[(&'static str, T)],
    ) -> Option<T> {
        let value = self.text(name)?;
        let found = choices.iter().find(|(word, _)| *word == value).map(|(_, choice)| *choice);
        if found.is_none() {
            let words: Vec<&'static str> = choices.iter().map(|(word, _)| *word).collect();
            self.problems.push(InputProblem {
                input: name.to_owned(),
                meant: closest(&value, words.iter().copied()),
                value: Some(value),
                accepted: format!("accepted are {}", listed(&words)),
            });
        }
        found
    }

    /// False if not given.
    pub(super) fn yes(&mut self, name: &str) -> bool {
        self.choice(name, &[("false", false), ("true", true)]).unwrap_or(false)
    }

    /// GitHub knows a workflow by the name of its file, without the folder, or by its number.
    pub(super) fn workflow(&mut self, name: &str) -> Option<String> {
        let value = self.text(name)?;
        let stem = value.strip_suffix(".yml").or_else(|| value.strip_suffix(".yaml"));
        let plain = |text: &str| {
            !text.is_empty()
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        };
        if stem.is_some_and(plain) || value.bytes().all(|b| b.is_ascii_digit()) {
            return Some(value);
        }
        self.problems.push(InputProblem {
            input: name.to_owned(),
            value: Some(value),
            accepted: "accepted is the name of a file in .github/workflows, without the folder, \
                       like on-failure.yml"
                .to_owned(),
            meant: None,
        });
        None
    }

    pub(super) fn name<T: FromStr<Err = InvalidName>>(&mut self, name: &str) -> Option<T> {
        let value = self.text(name)?;
        match value.parse() {
            Ok(parsed) => Some(parsed),
            Err(InvalidName { accepted, .. }) => {
                self.problems.push(InputProblem {
                    input: name.to_owned(),
                    value: Some(value),
                    accepted: format!("accepted is {accepted}"),
                    meant: None,
                });
                None
            }
        }
    }

    /// A swap by its id, or by the link of a deployment's status that names it.
    pub(super) fn swap(&mut self, name: &str) -> Option<SwapId> {
        let link = self.text(name).filter(|value| value.starts_with("http"));
        link.and_then(|link| marked(&link)).or_else(|| self.name(name))
    }

    /// None if not given.
    pub(super) fn duration(&mut self, name: &str) -> Duration {
        let Some(value) = self.text(name) else { return Duration::ZERO };
        humantime::parse_duration(&value).unwrap_or_else(|_| {
            self.problems.push(InputProblem {
                input: name.to_owned(),
                value: Some(value),
                accepted: "accepted is a duration with its unit, like 90s or 15m".to_owned(),
                meant: None,
            });
            Duration::ZERO
        })
    }

    /// A token travels in a header, where nothing but visible ASCII may stand.
    pub(super) fn token(&mut self, name: &str) -> Option<Secret> {
        let value = self.text(name)?;
        if value.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Some(Secret::new(value));
        }
        self.problems.push(InputProblem {
            input: name.to_owned(),
            value: None,
            accepted: "it holds a blank or a character that no token has".to_owned(),
            meant: None,
        });
        None
    }
}

/// Inputs that there are not.
pub(super) fn unknown_names(env: &BTreeMap<String, String>) -> Vec<InputProblem> {
    let names = || INPUTS.iter().map(|input| input.name);
    env.keys()
        .filter_map(|key| key.strip_prefix("INPUT_"))
        .map(str::to_lowercase)
        .filter(|name| {
            !names().any(|known| known == name) && !OF_THE_RUNNER.contains(&name.as_str())
        })
        .map(|name| InputProblem {
            meant: closest(&name, names()),
            accepted: format!(
                "there is no such input; there are {}",
                listed(&names().collect::<Vec<_>>())
            ),
            value: None,
            input: name,
        })
        .collect()
}
