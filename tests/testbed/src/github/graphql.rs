//! GitHub's GraphQL schema as a judge of questions and answers.
//!
//! Of the language it knows what is asked here: one query of fields with arguments, and variables. Fragments, directives and
//! input objects it refuses.

#[cfg(test)]
mod tests;

use std::collections::HashMap;

use anyhow::Context;
use graphql_parser::query::{self, Field, OperationDefinition, Selection, SelectionSet};
use graphql_parser::query::{Value as Literal, VariableDefinition};
use graphql_parser::schema::{self, InputValue, Type, TypeDefinition};
use serde_json::Value;

/// Where it comes from is in `fixtures/README.md`.
const SCHEMA: &str = include_str!("../../fixtures/github.graphql");

/// The type of what is asked for first.
const ROOT: &str = "Query";

/// What every schema has without saying so.
const SCALARS: [&str; 5] = ["String", "ID", "Boolean", "Int", "Float"];

/// The types of a schema, by name.
pub(super) struct Schema(HashMap<String, TypeDefinition<'static, String>>);

/// A query, and what its variables are.
struct Question {
    variables: Vec<VariableDefinition<'static, String>>,
    fields: SelectionSet<'static, String>,
}

impl Schema {
    /// GitHub's own.
    pub(super) fn load() -> anyhow::Result<Self> {
        Self::read(SCHEMA).context("github.graphql in the fixtures")
    }

    fn read(text: &str) -> anyhow::Result<Self> {
        let document = schema::parse_schema::<String>(text)?.into_static();
        let types = document.definitions.into_iter().filter_map(|definition| match definition {
            schema::Definition::TypeDefinition(known) => Some((name(&known).to_owned(), known)),
            _ => None,
        });
        Ok(Self(types.collect()))
    }

    /// What is wrong with the body of a question; empty if nothing is.
    pub(super) fn judge_question(&self, body: &Value) -> Vec<String> {
        let question = match Question::read(body) {
            Ok(question) => question,
            Err(wrong) => return vec![wrong],
        };
        let mut wrong = Vec::new();
        let given = &body["variables"];
        for variable in &question.variables {
            let value = given.get(&variable.name);
            let is_left_out = value.is_none() && variable.default_value.is_some();
            let value = value.unwrap_or(&Value::Null);
            if !is_left_out && !self.holds(&variable.var_type, value) {
                wrong.push(format!("${}: {value} is no {}", variable.name, variable.var_type));
            }
        }
        let names = given.as_object().into_iter().flat_map(|given| given.keys());
        let unknown = names.filter(|name| question.variable(name).is_none());
        wrong.extend(unknown.map(|name| format!("${name}: no such variable")));
        self.judge_fields(&question, ROOT, &question.fields, &mut wrong);
        wrong
    }

    /// What is wrong with an answer to a question that has nothing wrong; empty if nothing is.
    pub(super) fn judge_answer(&self, asked: &Value, answer: &Value) -> Vec<String> {
        let Ok(question) = Question::read(asked) else { return Vec::new() };
        let mut wrong = Vec::new();
        self.judge_object(ROOT, &question.fields, &answer["data"], &mut wrong);
        wrong
    }

    fn judge_fields(
        &self,
        question: &Question,
        of: &str,
        selection: &SelectionSet<'static, String>,
        wrong: &mut Vec<String>,
    ) {
        for item in &selection.items {
            let Selection::Field(asked) = item else {
                wrong.push(format!("{of}: fragments are not known here"));
                continue;
            };
            let place = format!("{of}.{}", asked.name);
            let Some(field) = self.field(of, &asked.name) else {
                wrong.push(format!("{place}: no such field"));
                continue;
            };
            if !asked.directives.is_empty() {
                wrong.push(format!("{place}: directives are not known here"));
            }
            self.judge_arguments(question, (&place, &field.arguments), asked, wrong);
            let kind = named(&field.field_type);
            match (self.is_object(kind), asked.selection_set.items.is_empty()) {
                (true, true) => wrong.push(format!("{place}: which fields of this {kind}?")),
                (true, false) => self.judge_fields(question, kind, &asked.selection_set, wrong),
                (false, true) => {}
                (false, false) => wrong.push(format!("{place}: a {kind} has no fields")),
            }
        }
    }

    fn judge_arguments(
        &self,
        question: &Question,
        (place, known): (&str, &[InputValue<'static, String>]),
        asked: &Field<'static, String>,
        wrong: &mut Vec<String>,
    ) {
        for (name, value) in &asked.arguments {
            let Some(argument) = known.iter().find(|known| known.name == *name) else {
                wrong.push(format!("{place}({name}): no such argument"));
                continue;
            };
            let kind = &argument.value_type;
            let fits = match value {
                Literal::Variable(name) => {
                    question.variable(name).is_some_and(|it| passes(it, kind))
                }
                literal => self.takes(kind, literal),
            };
            if !fits {
                wrong.push(format!("{place}({name}): {value} is no {kind}"));
            }
        }
        for argument in known {
            let is_needed = matches!(argument.value_type, Type::NonNullType(_));
            let is_given = asked.arguments.iter().any(|(name, _)| *name == argument.name);
            if is_needed && argument.default_value.is_none() && !is_given {
                wrong.push(format!("{place}({}): needed", argument.name));
            }
        }
    }

    fn judge_object(
        &self,
        of: &str,
        selection: &SelectionSet<'static, String>,
        object: &Value,
        wrong: &mut Vec<String>,
    ) {
        let Some(members) = object.as_object() else {
            wrong.push(format!("{object} is no {of}"));
            return;
        };
        let asked = || {
            selection.items.iter().filter_map(|item| match item {
                Selection::Field(field) => {
                    Some((field.alias.as_ref().unwrap_or(&field.name), field))
                }
                _ => None,
            })
        };
        let unasked = members.keys().filter(|key| asked().all(|(asked, _)| asked != *key));
        wrong.extend(unasked.map(|key| format!("{of}.{key}: nobody asked for it")));
        for (key, field) in asked() {
            let Some(known) = self.field(of, &field.name) else { continue };
            let value = members.get(key).unwrap_or(&Value::Null);
            let kind = &known.field_type;
            if !self.holds(kind, value) {
                wrong.push(format!("{of}.{key}: {value} is no {kind}"));
            } else if self.is_object(named(kind)) {
                for object in objects(value) {
                    self.judge_object(named(kind), &field.selection_set, object, wrong);
                }
            }
        }
    }

    /// Whether a value in JSON is of this type; of an object's fields nothing is said.
    fn holds(&self, kind: &Type<'static, String>, value: &Value) -> bool {
        match kind {
            Type::NonNullType(inner) => !value.is_null() && self.holds(inner, value),
            _ if value.is_null() => true,
            Type::ListType(inner) => {
                value.as_array().is_some_and(|list| list.iter().all(|item| self.holds(inner, item)))
            }
            Type::NamedType(name) => match (name.as_str(), self.0.get(name)) {
                ("String" | "ID", _) => value.is_string(),
                ("Boolean", _) => value.is_boolean(),
                ("Int", _) => value.as_i64().is_some_and(|value| i32::try_from(value).is_ok()),
                ("Float", _) => value.is_number(),
                (_, Some(TypeDefinition::Enum(known))) => {
                    known.values.iter().any(|known| value == known.name.as_str())
                }
                (_, Some(TypeDefinition::Scalar(_))) => true,
                (_, Some(TypeDefinition::Object(_))) => value.is_object(),
                _ => false,
            },
        }
    }

    /// Whether an argument of this type takes what is written in the question.
    fn takes(&self, kind: &Type<'static, String>, literal: &Literal<'static, String>) -> bool {
        match (kind, literal) {
            (Type::NonNullType(_), Literal::Null) => false,
            (Type::NonNullType(inner), _) => self.takes(inner, literal),
            (_, Literal::Null) => true,
            (Type::ListType(inner), Literal::List(items)) => {
                items.iter().all(|item| self.takes(inner, item))
            }
            (Type::ListType(inner), _) => self.takes(inner, literal),
            (Type::NamedType(name), _) => {
                let is_enum = matches!(self.0.get(name), Some(TypeDefinition::Enum(_)));
                let value = match literal {
                    Literal::Enum(value) if is_enum => Value::from(value.as_str()),
                    Literal::String(value) if !is_enum => Value::from(value.as_str()),
                    Literal::Int(value) => Value::from(value.as_i64()),
                    Literal::Float(value) => Value::from(*value),
                    Literal::Boolean(value) => Value::from(*value),
                    _ => return false,
                };
                self.holds(kind, &value)
            }
        }
    }

    fn field(&self, of: &str, name: &str) -> Option<&schema::Field<'static, String>> {
        let fields = match self.0.get(of)? {
            TypeDefinition::Object(object) => &object.fields,
            TypeDefinition::Interface(interface) => &interface.fields,
            _ => return None,
        };
        fields.iter().find(|field| field.name == name)
    }

    fn is_object(&self, name: &str) -> bool {
        let leaf =
            matches!(self.0.get(name), Some(TypeDefinition::Scalar(_) | TypeDefinition::Enum(_)));
        !leaf && !SCALARS.contains(&name)
    }
}

impl Question {
    fn read(body: &Value) -> Result<Self, String> {
        let body = body.as_object().ok_or("a question is an object")?;
        if let Some(key) = body.keys().find(|key| !["query", "variables"].contains(&key.as_str())) {
            return Err(format!("/{key} belongs to no question"));
        }
        let text = body.get("query").and_then(Value::as_str).ok_or("/query is no text")?;
        let document = query::parse_query::<String>(text).map_err(|error| error.to_string())?;
        match <[_; 1]>::try_from(document.into_static().definitions) {
            Ok([query::Definition::Operation(OperationDefinition::SelectionSet(fields))]) => {
                Ok(Self { variables: Vec::new(), fields })
            }
            Ok([query::Definition::Operation(OperationDefinition::Query(query))])
                if query.directives.is_empty() =>
            {
                Ok(Self { variables: query.variable_definitions, fields: query.selection_set })
            }
            _ => Err("only one query, without directives, is known here".to_owned()),
        }
    }

    fn variable(&self, name: &str) -> Option<&VariableDefinition<'static, String>> {
        self.variables.iter().find(|variable| variable.name == name)
    }
}

/// Whether an argument of this type takes the variable, whatever it is.
fn passes(variable: &VariableDefinition<'static, String>, kind: &Type<'static, String>) -> bool {
    let own = &variable.var_type;
    match (own, kind) {
        _ if own == kind => true,
        (Type::NonNullType(own), _) => **own == *kind,
        (_, Type::NonNullType(kind)) => variable.default_value.is_some() && *own == **kind,
        _ => false,
    }
}

/// The type inside lists and exclamation marks.
fn named<'t>(kind: &'t Type<'static, String>) -> &'t str {
    match kind {
        Type::NamedType(name) => name,
        Type::ListType(inner) | Type::NonNullType(inner) => named(inner),
    }
}

fn name<'t>(kind: &'t TypeDefinition<'static, String>) -> &'t str {
    match kind {
        TypeDefinition::Scalar(known) => &known.name,
        TypeDefinition::Object(known) => &known.name,
        TypeDefinition::Interface(known) => &known.name,
        TypeDefinition::Union(known) => &known.name,
        TypeDefinition::Enum(known) => &known.name,
        TypeDefinition::InputObject(known) => &known.name,
    }
}

/// The objects in a value, which may be one, none, or a list of them.
fn objects(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(items) => items.iter().flat_map(objects).collect(),
        Value::Null => Vec::new(),
        object => vec![object],
    }
}
