//! GitHub's own description of its API as a judge of requests and answers.

use std::collections::HashMap;
use std::sync::OnceLock;

use anyhow::Context;
use jsonschema::Validator;
use serde_json::{Map, Value, json};

use super::graphql::Schema;
use super::operation::{Operation, PathParameters};

/// OpenAPI 3.0.3; where it comes from is in `fixtures/README.md`.
const DESCRIPTION: &str = include_str!("../../fixtures/github-openapi.json");

/// Most characters of a description: `maxLength` of the answer's schema `deployment-status`, which the request's schema
/// does not repeat.
const DESCRIPTION_CHARACTERS: usize = 140;

/// The compiled description.
pub(super) struct Contract {
    operations: HashMap<Operation, Clauses>,
    /// What an answer looks like for which the description has no schema, as 307, 401 or 502.
    basic_error: Validator,
    graphql: Schema,
}

/// What the description says of one operation.
struct Clauses {
    path: HashMap<String, Parameter>,
    query: HashMap<String, Parameter>,
    body: Option<Validator>,
    /// By HTTP status; `None` inside: nothing is said of the body.
    answers: HashMap<u16, Option<Validator>>,
}

struct Parameter {
    numeric: bool,
    validator: Validator,
}

impl Contract {
    /// The one of this process: it takes a moment to compile, and never changes.
    pub(super) fn shared() -> anyhow::Result<&'static Self> {
        static SHARED: OnceLock<Contract> = OnceLock::new();
        if let Some(compiled) = SHARED.get() {
            return Ok(compiled);
        }
        let compiled = Self::load()?;
        Ok(SHARED.get_or_init(|| compiled))
    }

    /// Compiles the description.
    pub(super) fn load() -> anyhow::Result<Self> {
        let mut root: Value = serde_json::from_str(DESCRIPTION)?;
        into_json_schema(&mut root);
        let mut operations = HashMap::new();
        for operation in Operation::ALL.into_iter().filter(|known| *known != Operation::Viewer) {
            let (method, path) = operation.route();
            let clauses = Clauses::compile(&root, &root["paths"][path][method.to_lowercase()])
                .with_context(|| format!("{method} {path} in the fixture"))?;
            operations.insert(operation, clauses);
        }
        let basic_error = compile(&root, &json!({ "$ref": "#/components/schemas/basic-error" }))?;
        Ok(Self { operations, basic_error, graphql: Schema::load()? })
    }

    /// What is wrong with a request; empty if nothing is.
    pub(super) fn judge_request(
        &self,
        operation: Operation,
        path: &PathParameters,
        query: &[(String, String)],
        body: Option<&Value>,
    ) -> Vec<String> {
        let Some(clauses) = self.operations.get(&operation) else {
            return self.graphql.judge_question(body.unwrap_or(&Value::Null));
        };
        let mut wrong = Vec::new();
        for (name, value) in path.iter() {
            judge_parameter(clauses.path.get(name), name, value, &mut wrong);
        }
        for (name, value) in query {
            judge_parameter(clauses.query.get(name), name, value, &mut wrong);
        }
        match (&clauses.body, body) {
            (Some(schema), Some(body)) => {
                wrong.extend(judge(schema, body));
                wrong.extend(judge_unwritten(body));
            }
            (Some(_), None) => wrong.push("a JSON body is required".into()),
            (None, Some(_)) => wrong.push("a body where none belongs".into()),
            (None, None) => {}
        }
        wrong
    }

    /// What is wrong with an answer of the fake to what was `asked`; empty if nothing is.
    pub(super) fn judge_answer(
        &self,
        operation: Operation,
        asked: Option<&Value>,
        status: u16,
        body: Option<&Value>,
    ) -> Vec<String> {
        let clauses = self.operations.get(&operation);
        if clauses.is_none() && status == 200 {
            let [asked, body] = [asked, body].map(|json| json.unwrap_or(&Value::Null));
            return self.graphql.judge_answer(asked, body);
        }
        let schema = match clauses.and_then(|clauses| clauses.answers.get(&status)) {
            Some(None) => return Vec::new(),
            Some(Some(schema)) => schema,
            // What is refused, and what is sent elsewhere.
            None if status >= 300 => &self.basic_error,
            None => return vec![format!("status {status} is not in the description")],
        };
        body.map_or_else(|| vec!["the answer needs a body".into()], |body| judge(schema, body))
    }
}

impl Clauses {
    fn compile(root: &Value, operation: &Value) -> anyhow::Result<Self> {
        let mut clauses = Self {
            path: HashMap::new(),
            query: HashMap::new(),
            body: None,
            answers: HashMap::new(),
        };
        for parameter in operation["parameters"].as_array().context("no parameters")? {
            let parameter = resolve(root, parameter)?;
            let name = parameter["name"].as_str().context("a parameter without name")?.to_owned();
            let schema = &parameter["schema"];
            let parsed = Parameter {
                numeric: schema["type"] == "integer",
                validator: compile(root, schema)?,
            };
            if parameter["in"] == "path" { &mut clauses.path } else { &mut clauses.query }
                .insert(name, parsed);
        }
        if let Some(schema) = json_content(&operation["requestBody"]) {
            let mut schema = schema.clone();
            // GitHub ignores what it does not know; from us it is a misspelt option.
            if let Some(schema) = schema.as_object_mut() {
                schema.entry("additionalProperties").or_insert(Value::Bool(false));
            }
            clauses.body = Some(compile(root, &schema)?);
        }
        for (status, answer) in operation["responses"].as_object().context("no answers")? {
            let schema = json_content(resolve(root, answer)?)
                .map(|schema| compile(root, schema))
                .transpose()?;
            clauses.answers.insert(status.parse()?, schema);
        }
        Ok(clauses)
    }
}

/// Turns OpenAPI 3.0's dialect into JSON Schema: `nullable` becomes the type null; an empty string passes as a URI where
/// the description itself makes it the default.
fn into_json_schema(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(into_json_schema),
        Value::Object(object) => {
            if object.get("nullable") == Some(&Value::Bool(true)) {
                object.remove("nullable");
                if let Some(kind) = object.get_mut("type") {
                    *kind = json!([kind.take(), "null"]);
                }
            }
            if object.get("format") == Some(&json!("uri"))
                && object.get("default") == Some(&json!(""))
            {
                object.remove("format");
                object.insert("if".into(), json!({ "minLength": 1 }));
                object.insert("then".into(), json!({ "format": "uri" }));
            }
            object.values_mut().for_each(into_json_schema);
        }
        _ => {}
    }
}

fn compile(root: &Value, schema: &Value) -> anyhow::Result<Validator> {
    // References start at the description's root, so its components travel along.
    let whole = json!({ "allOf": [schema], "components": root["components"] });
    Ok(jsonschema::options().should_validate_formats(true).build(&whole)?)
}

/// The value itself, or what it refers to.
fn resolve<'v>(root: &'v Value, value: &'v Value) -> anyhow::Result<&'v Value> {
    let Some(reference) = value["$ref"].as_str() else { return Ok(value) };
    let target = reference.strip_prefix('#').and_then(|pointer| root.pointer(pointer));
    target.with_context(|| format!("{reference} leads nowhere"))
}

fn json_content(holder: &Value) -> Option<&Value> {
    holder.pointer("/content/application~1json/schema")
}

fn judge(schema: &Validator, value: &Value) -> Vec<String> {
    schema.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

fn judge_parameter(
    parameter: Option<&Parameter>,
    name: &str,
    value: &str,
    wrong: &mut Vec<String>,
) {
    let Some(parameter) = parameter else {
        wrong.push(format!("{name}: no such parameter"));
        return;
    };
    let number = parameter.numeric.then(|| value.parse::<u64>().ok()).flatten();
    let value = number.map_or_else(|| Value::from(value), Value::from);
    wrong.extend(
        judge(&parameter.validator, &value).into_iter().map(|fault| format!("{name}{fault}")),
    );
}

/// What GitHub refuses though the request's schema lets it pass: an answer with it would break the answer's schema.
fn judge_unwritten(body: &Value) -> Vec<String> {
    let empty = Map::new();
    let fields = body.as_object().unwrap_or(&empty);
    let mut wrong = Vec::new();
    for (name, value) in fields {
        let text = value.as_str().unwrap_or_default();
        let length = text.chars().count();
        if name == "description" && length > DESCRIPTION_CHARACTERS {
            wrong.push(format!(
                "/description: {length} characters, at most {DESCRIPTION_CHARACTERS}"
            ));
        }
        let web = text.is_empty() || text.starts_with("https://") || text.starts_with("http://");
        if ["log_url", "environment_url", "target_url"].contains(&name.as_str()) && !web {
            wrong.push(format!("/{name}: {text:?} is no web address"));
        }
    }
    wrong
}
