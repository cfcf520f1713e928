//! GitHub's expressions, as far as the workflows here use them (documentation, "Evaluate expressions in workflows and actions").

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// What an expression can see.
pub struct Scope<'a> {
    /// `github`, `inputs`, `needs`, …, as one object.
    pub contexts: &'a Value,
    /// What the status functions look at.
    pub status: Status,
}

/// How the jobs or steps before have ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// None has failed.
    Success,
    /// One has failed.
    Failure,
}

impl Scope<'_> {
    /// Whether a job or step with this `if:` is begun. One that calls no status function is begun only after success.
    ///
    /// # Errors
    /// If the condition is none.
    pub fn begins(&self, condition: Option<&str>) -> Result<bool> {
        let condition = condition.unwrap_or("success()").trim();
        let inner = condition.strip_prefix("${{").and_then(|rest| rest.strip_suffix("}}"));
        let inner = inner.unwrap_or(condition);
        let asks = ["success()", "failure()", "always()", "cancelled()"];
        let begins = is_true(&self.value(inner)?);
        let asked = asks.iter().any(|function| inner.contains(function));
        Ok(begins && (asked || self.status == Status::Success))
    }

    /// A text with its expressions replaced.
    ///
    /// # Errors
    /// If one of them is none.
    pub fn text(&self, text: &str) -> Result<String> {
        let mut parts = text.split("${{");
        let mut evaluated = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (expression, rest) = part.split_once("}}").context("an open expression")?;
            evaluated += &shown(&self.value(expression)?);
            evaluated += rest;
        }
        Ok(evaluated)
    }

    /// The value of an expression.
    ///
    /// # Errors
    /// If it is none, or holds what is not known here.
    pub fn value(&self, expression: &str) -> Result<Value> {
        let mut parser = Parser { rest: expression, scope: self };
        let value = parser.either().with_context(|| format!("in the expression {expression}"))?;
        ensure!(parser.rest.trim().is_empty(), "{:?} is left of {expression}", parser.rest);
        Ok(value)
    }
}

/// False, null, 0 and the empty text are false.
fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(_) | Value::Object(_) => true,
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Values of two kinds are compared as numbers: nothing and the empty text are 0 then. Texts are compared whatever their case.
fn is_equal(one: &Value, other: &Value) -> bool {
    if let (Value::String(one), Value::String(other)) = (one, other) {
        return one.to_lowercase() == other.to_lowercase();
    }
    let number = |value: &Value| match value {
        Value::Null => Some(0.0),
        Value::Bool(value) => Some(f64::from(u8::from(*value))),
        Value::Number(number) => number.as_f64(),
        Value::String(text) if text.trim().is_empty() => Some(0.0),
        Value::String(text) => text.trim().parse().ok(),
        Value::Array(_) | Value::Object(_) => None,
    };
    number(one).zip(number(other)).is_some_and(|(one, other)| one == other)
}

struct Parser<'a> {
    rest: &'a str,
    scope: &'a Scope<'a>,
}

impl<'a> Parser<'a> {
    fn takes(&mut self, sign: &str) -> bool {
        let rest = self.rest.trim_start().strip_prefix(sign);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn either(&mut self) -> Result<Value> {
        let mut value = self.both()?;
        while self.takes("||") {
            let other = self.both()?;
            value = if is_true(&value) { value } else { other };
        }
        Ok(value)
    }

    fn both(&mut self) -> Result<Value> {
        let mut value = self.equal()?;
        while self.takes("&&") {
            let other = self.equal()?;
            value = if is_true(&value) { other } else { value };
        }
        Ok(value)
    }

    fn equal(&mut self) -> Result<Value> {
        let value = self.single()?;
        if self.takes("==") {
            return Ok(is_equal(&value, &self.single()?).into());
        }
        if self.takes("!=") {
            return Ok((!is_equal(&value, &self.single()?)).into());
        }
        Ok(value)
    }

    fn single(&mut self) -> Result<Value> {
        if self.takes("!") {
            return Ok((!is_true(&self.single()?)).into());
        }
        if self.takes("(") {
            let value = self.either()?;
            ensure!(self.takes(")"), "no ) before {:?}", self.rest);
            return Ok(value);
        }
        if self.takes("'") {
            return self.quoted();
        }
        let word = self.word();
        if self.takes("(") {
            return self.call(word);
        }
        match word {
            "true" | "false" | "null" => Ok(serde_json::from_str(word)?),
            _ if word.starts_with(|c: char| c.is_ascii_digit()) => Ok(serde_json::from_str(word)?),
            "" => bail!("no value before {:?}", self.rest),
            path => {
                Ok(path.split('.').fold(self.scope.contexts, |value, name| &value[name]).clone())
            }
        }
    }

    fn word(&mut self) -> &'a str {
        let rest = self.rest.trim_start();
        let is_of_word = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        let end = rest.find(|c| !is_of_word(c)).unwrap_or(rest.len());
        self.rest = &rest[end..];
        &rest[..end]
    }

    /// A text behind its first quote; two quotes in it are one.
    fn quoted(&mut self) -> Result<Value> {
        let mut text = String::new();
        loop {
            let (part, rest) = self.rest.split_once('\'').context("an open text")?;
            text += part;
            self.rest = rest;
            match rest.strip_prefix('\'') {
                Some(rest) => self.rest = rest,
                None => return Ok(text.into()),
            }
            text.push('\'');
        }
    }

    fn call(&mut self, name: &str) -> Result<Value> {
        let mut given = Vec::new();
        while !self.takes(")") {
            given.push(self.either()?);
            ensure!(self.takes(",") || self.rest.trim_start().starts_with(')'), "no ) of {name}");
        }
        let status = self.scope.status;
        match (name, &*given) {
            ("always", []) => Ok(true.into()),
            ("cancelled", []) => Ok(false.into()),
            ("success", []) => Ok((status == Status::Success).into()),
            ("failure", []) => Ok((status == Status::Failure).into()),
            ("fromJSON", [text]) => Ok(serde_json::from_str(&shown(text))?),
            ("contains", [Value::Array(all), one]) => {
                Ok(all.iter().any(|other| is_equal(one, other)).into())
            }
            ("contains", [text, part]) => Ok(shown(text).contains(&shown(part)).into()),
            ("format", [text, values @ ..]) => {
                let numbered = values.iter().enumerate();
                let put = |text: String, (index, value): (usize, &Value)| {
                    text.replace(&format!("{{{index}}}"), &shown(value))
                };
                Ok(numbered.fold(shown(text), put).into())
            }
            _ => bail!("nothing is known of {name} with {} values", given.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn value(expression: &str) -> Value {
        let contexts = json!({
            "github": { "event_name": "push", "event": { "n": 7, "payload": "{}" } },
            "inputs": null,
            "needs": { "swap": { "result": "failure", "outputs": { "swap-id": "s-1" } } },
        });
        let scope = Scope { contexts: &contexts, status: Status::Failure };
        scope.value(expression).unwrap_or_else(|error| panic!("{error:#}"))
    }

    #[test]
    fn expressions_come_to_what_github_says() {
        for (expression, expected) in [
            ("github.event_name == 'PUSH' && 'a' || 'b'", json!("a")),
            ("github.event_name != 'push' && 'a' || 'b'", json!("b")),
            ("inputs.swap-id || needs.swap.outputs.swap-id", json!("s-1")),
            // What is not there is nothing, and nothing is the empty text.
            ("github.event.payload.swap_id != ''", json!(false)),
            ("github.event.n == '7'", json!(true)),
            ("!(github.event.n == 8) && true", json!(true)),
            ("contains(fromJSON('[\"a\",\"b\"]'), 'b')", json!(true)),
            ("contains(fromJSON('[\"a\",\"b\"]'), 'ab')", json!(false)),
            ("format('{0}-{1}', 'it''s', github.event.n)", json!("it's-7")),
            ("failure() && !success() && always()", json!(true)),
        ] {
            assert_eq!(value(expression), expected, "{expression}");
        }
    }

    #[test]
    fn a_condition_without_a_status_function_wants_success() {
        let contexts = json!({ "github": { "event_name": "push" } });
        let begins = |status, condition| Scope { contexts: &contexts, status }.begins(condition);
        let is_push = Some("${{ github.event_name == 'push' }}");
        assert!(begins(Status::Success, is_push).unwrap());
        assert!(!begins(Status::Failure, is_push).unwrap());
        assert!(!begins(Status::Failure, None).unwrap());
        assert!(begins(Status::Failure, Some("failure()")).unwrap());
        assert!(!begins(Status::Success, Some("always() && github.event_name != 'push'")).unwrap());
    }

    #[test]
    fn what_is_no_expression_is_an_error() {
        let scope = Scope { contexts: &Value::Null, status: Status::Success };
        for wrong in ["", "'open", "(true", "true true", "hashFiles('x')", "a ==", "'a' 'b'"] {
            assert!(scope.value(wrong).is_err(), "{wrong}");
        }
        assert!(scope.text("${{ true").is_err());
        assert_eq!(scope.text("a ${{ true }} ${{'b'}}").unwrap(), "a true b");
    }
}
