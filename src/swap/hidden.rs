//! Takes known secrets out of a text that somebody else wrote, such as an engine's log. Pure.

use super::redact::HIDDEN;

/// Shorter values, such as `1` or `true`, are no secrets, and hiding them would garble every log.
const SHORTEST_SECRET: usize = 6;

/// Shorter lines of a value of several lines may be words like any other.
const SHORTEST_LINE: usize = 12;

/// Secrets, as they may stand in a line.
#[derive(Debug, Clone, Default)]
pub struct Hidden {
    /// Longest first, so that no part of one stays because another begins alike.
    pieces: Vec<String>,
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

    /// The line without them.
    pub fn hide(&self, line: &mut String) {
        for piece in &self.pieces {
            if line.contains(piece.as_str()) {
                *line = line.replace(piece.as_str(), HIDDEN);
            }
        }
    }
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
    fn a_secret_of_several_lines_is_hidden_line_by_line_and_in_one() {
        const KEY: &str = "-----BEGIN KEY-----\nMIIEvQIBADANBgkq\r\nyes\n-----END KEY-----\n";
        assert_eq!(shown(&[KEY], "  MIIEvQIBADANBgkq"), "  ***");
        assert_eq!(shown(&[KEY], "say yes"), "say yes", "a common word");
        let printed = format!("{:?}", ("KEY", KEY));
        assert_eq!(shown(&[KEY], &printed), r#"("KEY", "***")"#);
    }
}
