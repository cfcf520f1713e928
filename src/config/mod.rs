//! F1: the configuration: text in, checked values or every problem at once out.
//!
//! Knows no files, no environment and no clock. `docs/model-swap.yaml` is the reference of all settings; a test holds it
//! equal to what is read here.

pub mod command;
pub mod draft;
mod form;
pub mod listing;
pub mod place;
pub mod problem;
mod reader;
mod section;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_yaml::Value;

use crate::model::ids::{Port, ServiceName};
use crate::model::spec::SwapSpec;
use crate::model::target::{SSH_PORT, Target};
use crate::model::wire::Secrets;

use place::Place;
use problem::{Problem, Problems, Wrong};
use reader::{Form, Node, Report, Section};

/// What a configuration says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What should serve, and how to get there.
    pub spec: SwapSpec,
    /// Where.
    pub target: Target,
}

impl Config {
    /// Names of the variables whose values come from the step's environment: `secret_env` and `api_key_env`.
    pub fn secret_names(&self) -> BTreeSet<String> {
        self.spec
            .replica
            .secret_env
            .iter()
            .chain(&self.spec.nginx.probe.api_key_env)
            .cloned()
            .collect()
    }
}

/// Values that win over the file's, which then may lack them. An empty one is a problem, not an absent one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Overrides {
    /// Instead of `service`.
    pub service: Option<String>,
    /// Instead of `model`.
    pub model: Option<String>,
    /// Instead of `host`.
    pub host: Option<String>,
}

/// The text behind the mark that some editors begin a file with, and YAML allows.
fn unmarked(text: &str) -> &str {
    const BYTE_ORDER_MARK: char = '\u{feff}';
    text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text)
}

/// Reads a configuration. `file_name` is how the user named the file; it leads every message.
///
/// # Errors
/// With every problem that the text and the overrides have.
pub fn load(text: &str, file_name: &str, overrides: &Overrides) -> Result<Config, Problems> {
    let text = unmarked(text);
    let report = Report::default();
    let read = read(text, overrides, &report);
    let mut list = report.into_problems(text);
    match read {
        Ok(Some(config)) if list.is_empty() => return Ok(config),
        Ok(_) => {}
        Err(problem) => list.push(*problem),
    }
    Err(Problems { origin: file_name.to_owned(), list })
}

/// The service that a text names, which need be neither a configuration nor YAML: by the line that looks like it.
pub fn named_service(text: &str) -> Option<ServiceName> {
    let named = unmarked(text).lines().find_map(|line| line.strip_prefix("service:"))?;
    let name = named.split('#').next().unwrap_or_default().trim();
    name.trim_matches(['"', '\'']).parse().ok()
}

/// Looks up the values of secret variables. An empty value counts as missing: that is what GitHub makes of a secret that
/// does not exist.
///
/// # Errors
/// With every name that has no value.
pub fn secrets(
    names: &BTreeSet<String>,
    environment: &BTreeMap<String, String>,
) -> Result<Secrets, Problems> {
    let value = |name: &String| environment.get(name).filter(|value| !value.is_empty()).cloned();
    let missing: Vec<_> = names
        .iter()
        .filter(|name| value(name).is_none())
        .map(|name| missing_secret(name))
        .collect();
    if missing.is_empty() {
        return Ok(Secrets(
            names.iter().filter_map(|name| Some((name.clone(), value(name)?))).collect(),
        ));
    }
    Err(Problems { origin: "the step's environment".to_owned(), list: missing })
}

fn missing_secret(name: &str) -> Problem {
    Problem {
        place: Place::default().key(name),
        line: None,
        column: None,
        wrong: Wrong::Missing,
        expected: "a value that is not empty".to_owned(),
        hint: Some(format!(
            "add `{name}: ${{{{ secrets.{name} }}}}` under `env:` of the step, and check that the secret exists; at a terminal export it"
        )),
    }
}

/// `Ok(None)` only with a problem in the report.
fn read(
    text: &str,
    overrides: &Overrides,
    report: &Report,
) -> Result<Option<Config>, Box<Problem>> {
    let document = document(text)?;
    let given = [&overrides.service, &overrides.model, &overrides.host];
    let [service, model, host] = given.map(|value| value.clone().map(Value::String));
    let root = Node::root(report, &document);
    Ok(root
        .section(|file| {
            let service = overridden(
                &root,
                "input service",
                service.as_ref(),
                file.at("service"),
                &form::SERVICE,
            );
            let host = overridden(&root, "input host", host.as_ref(), file.at("host"), &form::HOST);
            let model =
                overridden(&root, "input model", model.as_ref(), file.at("model"), &form::MODEL);
            let model_revision = file.at("model_revision").optional(&form::MODEL_REVISION);
            let slots = section::slots(&file.at("slots"));
            let fetch = section::fetch(&file.at("fetch"));
            let replica = section::replica(&file.at("replica"), slots.as_ref());
            let ready = section::ready(&file.at("ready"));
            let drain = section::drain(&file.at("drain"));
            let retain = file.at("retain").or(RETAIN, &form::TIME);
            let nginx = section::nginx(&file.at("nginx"), slots.as_ref());
            let verify = section::verify(&file.at("verify"), model.as_deref());
            let ssh = file.at("ssh").section(ssh);
            let state_dir = file.at("state_dir").optional(&form::PATH);
            let (port, jump) = ssh??;
            Some(Config {
                target: Target { host: host?, port: port.0, jump },
                spec: SwapSpec {
                    service: service?,
                    model: model?,
                    model_revision: model_revision?,
                    slots: slots?,
                    fetch: fetch?,
                    replica: replica?,
                    ready: ready?,
                    drain: drain?,
                    retain: retain?,
                    nginx: nginx?,
                    verify: verify?,
                    state_dir: state_dir?,
                },
            })
        })
        .flatten())
}

/// The parsed text, or what YAML itself has against it.
fn document(text: &str) -> Result<Value, Box<Problem>> {
    serde_yaml::from_str(text).map_err(|error| {
        let said = error.to_string();
        // What concerns the text as a whole is located at its first character.
        let at = error.location().map(|at| (at.line(), at.column())).filter(|at| *at != (1, 1));
        let (line, column) = at.or_else(|| repeated(text, &said)).unzip();
        let placed = at.map(|(line, column)| format!(" at line {line} column {column}"));
        let said = placed.as_deref().and_then(|placed| said.strip_suffix(placed)).unwrap_or(&said);
        Box::new(Problem {
            place: Place::default(),
            line,
            column,
            wrong: Wrong::Syntax(said.to_owned()),
            expected: "settings as in docs/model-swap.yaml".to_owned(),
            hint: line
                .filter(|line| is_indented_by_tab(text, *line))
                .map(|_| WITHOUT_TABS.to_owned()),
        })
    })
}

const WITHOUT_TABS: &str = "indent with spaces: YAML takes no tabs there";

/// YAML says of that only that it is a character which cannot start any token.
fn is_indented_by_tab(text: &str, line: usize) -> bool {
    let line = text.lines().nth(line.saturating_sub(1)).unwrap_or_default();
    line.chars().take_while(|c| c.is_whitespace()).any(|c| c == '\t')
}

/// Where a key stands for the second time that is there twice at the top of the file: YAML says only which.
fn repeated(text: &str, said: &str) -> Option<(usize, usize)> {
    let key = said.strip_prefix("duplicate entry with key \"")?.strip_suffix('"')?;
    let is_it = |line: &str| line.strip_prefix(key).is_some_and(|rest| rest.starts_with(':'));
    let (at, _) = text.lines().enumerate().filter(|(_, line)| is_it(line)).nth(1)?;
    Some((at + 1, 1))
}

/// How long the previous replica stays warm unless told otherwise: long enough to notice a bad model by eye.
const RETAIN: Duration = Duration::from_secs(10 * 60);

fn overridden<'a, T>(
    root: &Node<'a>,
    name: &str,
    value: Option<&'a Value>,
    in_file: Node<'a>,
    form: &Form<T>,
) -> Option<T> {
    value.map_or(in_file, |value| root.outside(name, value)).required(form)
}

fn ssh(section: &Section<'_, '_>) -> Option<(Port, Option<String>)> {
    let port = section.at("port").or(Port(SSH_PORT), &form::PORT);
    let jump = section.at("jump").optional(&form::JUMP);
    Some((port?, jump?))
}
