//! Workflow commands: the lines on standard output that the runner obeys.
//!
//! Grammar and escapes: GitHub's documentation, "Workflow commands", and the runner's `ActionCommand`.

use crate::model::failure::Location;

/// Ends the group that was started last.
pub const END_GROUP: &str = "::endgroup::";

/// What kind of annotation a line becomes. The runner keeps ten of each kind in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Annotation {
    /// Something failed.
    Error,
    /// Worth knowing, and no failure.
    Warning,
    /// For information.
    Notice,
}

/// No randomness: neither a delimiter nor a token that remote text cannot guess.
#[derive(Debug, thiserror::Error)]
#[error("the system gave no random bytes")]
pub struct NoRandomness {
    #[source]
    source: getrandom::Error,
}

/// Starts a group that a reader can fold.
pub fn group(title: &str) -> String {
    format!("::group::{}", data(title))
}

/// An annotation with a title: shown on the run's page as well as in the log, and beside the line of the file that it is about.
pub fn annotation(
    kind: Annotation,
    title: &str,
    location: Option<&Location>,
    message: &str,
) -> String {
    let name = match kind {
        Annotation::Error => "error",
        Annotation::Warning => "warning",
        Annotation::Notice => "notice",
    };
    let at = location.map(|Location { file, line, column }| {
        format!(",file={},line={line},col={column}", property(file))
    });
    format!("::{name} title={}{}::{}", property(title), at.unwrap_or_default(), data(message))
}

/// A text of our own, with whatever in it the runner would take for a command made plain.
///
/// The runner obeys `::name` at a line's start and its older form `##[name]` anywhere in a line. To it a line ends with
/// either of `\r` and `\n`.
pub fn plain(text: &str) -> String {
    let inert = text.replace("##[", "## [");
    let plain = |line: &str| {
        if line.trim_start().starts_with("::") { format!("| {line}") } else { line.to_owned() }
    };
    inert.split(['\r', '\n']).map(plain).collect::<Vec<_>>().join("\n")
}

/// Lines from the server, between commands that make the runner obey nothing in them.
///
/// # Errors
/// If the system has no random bytes: a token that can be guessed would protect from nothing.
pub fn remote<'a>(lines: impl IntoIterator<Item = &'a str>) -> Result<Vec<String>, NoRandomness> {
    let token = random_token()?;
    let mut wrapped = vec![format!("::stop-commands::{token}")];
    wrapped.extend(lines.into_iter().map(str::to_owned));
    wrapped.push(format!("::{token}::"));
    Ok(wrapped)
}

/// 128 random bits in hexadecimal.
///
/// # Errors
/// If the system has no random bytes.
pub(super) fn random_token() -> Result<String, NoRandomness> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).map_err(|source| NoRandomness { source })?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// `%` first, or the escapes would be escaped.
fn data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the runner makes of an escaped text, in its order.
    fn unescaped(text: &str) -> String {
        text.replace("%0D", "\r")
            .replace("%0A", "\n")
            .replace("%3A", ":")
            .replace("%2C", ",")
            .replace("%25", "%")
    }

    #[test]
    fn commands_have_the_runners_form() {
        assert_eq!(group("Plan: chat\n50%"), "::group::Plan: chat%0A50%25");
        assert_eq!(
            annotation(Annotation::Warning, "GitHub: a, b", None, "one\r\ntwo: 3, 4"),
            "::warning title=GitHub%3A a%2C b::one%0D%0Atwo: 3, 4"
        );
        let location = Location { file: "a,b.yaml".to_owned(), line: 5, column: 9 };
        assert_eq!(
            annotation(Annotation::Error, "T", Some(&location), "wrong"),
            "::error title=T,file=a%2Cb.yaml,line=5,col=9::wrong"
        );
    }

    #[test]
    fn every_text_stays_on_its_line_and_comes_back_whole() {
        let parts = ["%", "%0A", "%250A", "\r", "\n", ":", "::", ",", "é", "::error::x", ""];
        for first in parts {
            for second in parts {
                let text = format!("{first}{second}x{first}");
                for escaped in [data(&text), property(&text)] {
                    assert!(!escaped.contains(['\r', '\n']), "{escaped:?}");
                    assert_eq!(unescaped(&escaped), text);
                }
                assert!(!property(&text).contains([':', ',']), "{text:?}");
            }
        }
    }

    #[test]
    fn remote_text_is_fenced_by_a_new_token_each_time() {
        let wrapped = remote(["::error::x", "##[add-mask]y"]).unwrap();
        let token = wrapped[0].strip_prefix("::stop-commands::").unwrap();
        assert_eq!(token.len(), 32);
        assert_eq!(wrapped[1..3], ["::error::x", "##[add-mask]y"]);
        assert_eq!(wrapped[3], format!("::{token}::"));
        assert_ne!(wrapped[0], remote([]).unwrap()[0]);
    }

    #[test]
    fn our_own_lines_command_nothing() {
        assert_eq!(plain("  ::add-mask::a"), "|   ::add-mask::a");
        assert_eq!(plain("12s ##[error]x ##[a]"), "12s ## [error]x ## [a]");
        assert_eq!(plain("12s chat::x"), "12s chat::x");
        assert_eq!(plain("a\n::error::b\r ::c\n"), "a\n| ::error::b\n|  ::c\n");
    }
}
