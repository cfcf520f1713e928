//! Colours for a terminal.

use crate::render::Line;

const BOLD: &str = "1";
const RED: &str = "31";
const GREEN: &str = "32";
const YELLOW: &str = "33";
const DIM: &str = "2";

/// A text of a line in the colour that the line's kind has, or its sign: `✓`, `✗`, `↩`.
pub(super) fn tinted(line: &Line, text: &str) -> String {
    let colour = match line {
        Line::GroupStart(_) => BOLD,
        Line::Warning(_) => YELLOW,
        Line::Error(..) => RED,
        Line::Remote(_) => DIM,
        Line::GroupEnd | Line::Text(_) => match sign(text) {
            Some('✓') => GREEN,
            Some('✗') => RED,
            Some('↩') => YELLOW,
            _ => return text.to_owned(),
        },
    };
    format!("\u{1b}[{colour}m{text}\u{1b}[0m")
}

/// What follows the time at the beginning of a line.
fn sign(text: &str) -> Option<char> {
    text.trim_start().split("  ").nth(1)?.chars().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_succeeds_and_what_fails_look_different() {
        let text = |text: &str| tinted(&Line::Text(text.to_owned()), text);
        assert_eq!(
            text("  1m 02s  ✓ await_ready b"),
            "\u{1b}[32m  1m 02s  ✓ await_ready b\u{1b}[0m"
        );
        assert_eq!(
            text("    3.0s  ✗ await_ready b"),
            "\u{1b}[31m    3.0s  ✗ await_ready b\u{1b}[0m"
        );
        assert_eq!(text("    3.0s  → await_ready b"), "    3.0s  → await_ready b");
        assert_eq!(text("now   slot a"), "now   slot a");
        let error = Line::Error("x".to_owned(), None);
        assert_eq!(tinted(&error, "error: x"), "\u{1b}[31merror: x\u{1b}[0m");
    }
}
