//! Takes known secrets out of a text that somebody else wrote, such as an engine's log. Pure.

use super::redact::{HIDDEN, secrets_of_argv};

/// Shorter values, such as `1` or `true`, are no secrets, and hiding them would garble every log.
const SHORTEST_SECRET: usize = 6;

/// Shorter lines of a value of several lines may be words like any other.
const SHORTEST_LINE: usize = 12;

/// How far a value may stand behind its name, in characters: `NAME=value`, `"NAME", "value"`.
const FARTHEST: usize = 6;

/// Secrets, as they may stand in a line.
#[derive(Debug, Clone, Default)]
pub struct Hidden {
    /// Longest first, so that no part of one stays because another begins alike.
    pieces: Vec<String>,
    /// Names of secrets whose values nobody knows any more; where there are any, what looks like a secret is one.
    unknown: Vec<String>,
}

impl Hidden {
    /// Adds secrets: whole, as JSON and many programs' own notation escape them, and line by line.
    pub fn add(&mut self, secrets: impl IntoIterator<Item = String>) {
        for secret in secrets.into_iter().filter(|secret| secret.len() >= SHORTEST_SECRET) {
            let escaped = serde_json::Value::from(secret.as_str()).to_string();
            let lines = secret.lines().map(str::trim).filter(|line| line.len() >= SHORTEST_LINE);
            self.pieces.extend(lines.map(str::to_owned));
            self.pieces.push(escaped.trim_matches('"').to_owned());
            self.pieces.push(secret);
        }
        self.pieces.sort_unstable_by(|one, other| {
            (other.len(), other.as_str()).cmp(&(one.len(), one.as_str()))
        });
        self.pieces.dedup();
    }

    /// Hides the values of these names too, which nobody knows: whatever stands behind one, and whatever looks like a secret.
    pub fn by_names_and_looks(&mut self, names: &[String]) {
        self.unknown.extend_from_slice(names);
    }

    /// The line without them.
    pub fn hide(&self, line: &mut String) {
        for piece in &self.pieces {
            if line.contains(piece.as_str()) {
                *line = line.replace(piece.as_str(), HIDDEN);
            }
        }
        if !self.unknown.is_empty() {
            let mut seen = Self::default();
            seen.add(self.unknown.iter().flat_map(|name| behind(name, line)));
            seen.add(secrets_of_argv(std::slice::from_ref(line)));
            seen.hide(line);
        }
    }
}

/// What stands in a line behind a name: to the end of its quotes, or to the end of the word.
fn behind(name: &str, line: &str) -> Vec<String> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let ends = line.match_indices(name).map(|(at, _)| at + name.len());
    let value = |end: usize| {
        let rest = line.get(end..).filter(|rest| !rest.starts_with(is_part))?;
        let (at, _) = rest.char_indices().take(FARTHEST).find(|(_, c)| is_part(*c) || *c == '-')?;
        let (before, value) = rest.split_at(at);
        let quote = before.chars().last().filter(|c| matches!(c, '"' | '\''));
        let is_end = |c: char| match quote {
            Some(quote) => c == quote,
            None => c.is_whitespace() || matches!(c, ',' | ';' | ')' | ']' | '}' | '"' | '\''),
        };
        let mut escaped = false;
        let end = value.find(|c| {
            let ends = is_end(c) && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        Some(value[..end.unwrap_or(value.len())].to_owned())
    };
    ends.filter_map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(secrets: &[&str], line: &str) -> String {
        let mut hidden = Hidden::default();
        hidden.add(secrets.iter().map(ToString::to_string));
        let mut line = line.to_owned();
        hidden.hide(&mut line);
        line
    }

    #[test]
    fn a_secret_is_hidden_wherever_it_stands() {
        assert_eq!(shown(&["secret-1"], "key=secret-1, again 'secret-1'"), "key=***, again '***'");
        assert_eq!(shown(&["true", "1"], "true 1"), "true 1", "no secrets");
        assert_eq!(shown(&["secret", "secret-longer"], "secret-longer"), "***", "a part stays");
    }

    #[test]
    fn a_secret_that_nobody_knows_is_hidden_by_its_name_and_its_looks() {
        let mut hidden = Hidden::default();
        hidden.by_names_and_looks(&["MY_PASS".to_owned()]);
        for (line, expected) in [
            ("  MY_PASS=value-1, rest", "  MY_PASS=***, rest"),
            ("env: (\"MY_PASS\", \"a b c d e f\") ok", "env: (\"MY_PASS\", \"***\") ok"),
            ("{'MY_PASS': 'value-1'}", "{'MY_PASS': '***'}"),
            (r#"("MY_PASS", "say \"word\" 1")"#, r#"("MY_PASS", "***")"#),
            ("asks with hf_0123456789abcdef  now", "asks with ***  now"),
            ("MY_PASSWORDS none, MY_PASS", "MY_PASSWORDS none, MY_PASS"),
            ("MY_PASS is set, not shown", "MY_PASS is set, not shown"),
        ] {
            let mut shown = line.to_owned();
            hidden.hide(&mut shown);
            assert_eq!(shown, expected);
        }
    }

    #[test]
    fn a_secret_of_several_lines_is_hidden_line_by_line_and_in_one() {
        const KEY: &str = "-----BEGIN KEY-----\nMIIEvQIBADANBgkq\r\nyes\n-----END KEY-----\n";
        assert_eq!(shown(&[KEY], "  MIIEvQIBADANBgkq"), "  ***");
        assert_eq!(shown(&[KEY], "say yes"), "say yes", "a common word");
        let printed = format!("{:?}", ("KEY", KEY));
        assert_eq!(shown(&[KEY], &printed), r#"("KEY", "***")"#);
    }
}
