//! Text made safe to print, and numbers made readable.

use jiff::Timestamp;

pub(super) use crate::model::moment::moment;

/// The longest line that is shown, in characters; a request that an engine logs can be far longer.
pub(super) const LINE_LIMIT: usize = 1000;

/// One line that does nothing to a terminal: control characters escaped, cut at [`LINE_LIMIT`].
pub(super) fn inert(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for (index, c) in text.chars().enumerate() {
        if index == LINE_LIMIT {
            shown.push_str(&format!("… ({} characters cut)", text.chars().count() - index));
            break;
        }
        match c {
            '\t' => shown.push_str("    "),
            c if c.is_control() || reorders_or_hides(c) => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    shown
}

/// Each line of a text, inert.
pub(super) fn inert_lines(text: &str) -> Vec<String> {
    text.lines().map(inert).collect()
}

/// A duration with the precision that a reader needs: `0.4s`, `2m 05s`, `1h 02m`.
pub(super) fn duration(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..60 => format!("{seconds}.{}s", ms % 1000 / 100),
        60..3600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h {:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

/// The time from one moment to another, in milliseconds; none if a clock was set back between them.
pub(super) fn millis_between(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.as_millisecond() - from.as_millisecond()).unwrap_or(0)
}

/// Unicode's bidirectional controls, separators and invisible characters: they make a text look like another one.
fn reorders_or_hides(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown_and_not_obeyed() {
        assert_eq!(inert("\u{1b}[31mred\u{1b}[0m\r\n"), r"\u{1b}[31mred\u{1b}[0m\r\n");
        assert_eq!(inert("a\tb\0\u{7f}\u{9b}x\u{202e}y"), r"a    b\u{0}\u{7f}\u{9b}x\u{202e}y");
        assert_eq!(inert("naïve 模型 ✓ \"'\\"), "naïve 模型 ✓ \"'\\");
        for c in (0..=0x2100).filter_map(char::from_u32) {
            let shown = inert(&format!("x{c}y"));
            assert!(!shown.chars().any(|c| c.is_control() || reorders_or_hides(c)), "{shown:?}");
        }
    }

    #[test]
    fn long_lines_are_cut_between_characters() {
        assert_eq!(inert(&"é".repeat(LINE_LIMIT)), "é".repeat(LINE_LIMIT));
        let cut = inert(&"é".repeat(LINE_LIMIT + 7));
        assert_eq!(cut, format!("{}… (7 characters cut)", "é".repeat(LINE_LIMIT)));
    }

    #[test]
    fn durations_are_readable() {
        let shown = [0, 449, 59_999, 60_000, 125_000, 3_599_999, 3_720_000].map(duration);
        assert_eq!(shown, ["0.0s", "0.4s", "59.9s", "1m 00s", "2m 05s", "59m 59s", "1h 02m"]);
    }

    #[test]
    fn a_clock_that_was_set_back_makes_no_negative_time() {
        let [one, two] =
            ["2026-11-23T09:15:00.25Z", "2026-11-23T09:15:01Z"].map(|at| at.parse().unwrap());
        assert_eq!(millis_between(one, two), 750);
        assert_eq!(millis_between(two, one), 0);
        assert_eq!(moment(one), "2026-11-23 09:15:00 UTC");
    }
}
