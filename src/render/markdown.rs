//! Markdown in which foreign text can be nothing but text.

use super::text::inert;

/// A code span that holds foreign text, safe in a table as well; nothing for an empty one.
///
/// A tag and not backticks: a table ends a cell at `|` even within backticks. Punctuation that could begin markup is
/// written as a character reference, and within `<code>` GitHub looks for no mentions.
pub(super) fn code(text: &str) -> String {
    if text.is_empty() {
        return String::new();
    }
    let mut inner = String::with_capacity(text.len());
    for c in inert(text).chars() {
        if c.is_ascii_punctuation() && !"-./,()+=%".contains(c) {
            inner.push_str(&format!("&#{};", u32::from(c)));
        } else {
            inner.push(c);
        }
    }
    // The one link that GitHub makes of plain letters.
    format!("<code>{}</code>", inner.replace("www.", "www&#46;"))
}

/// A block of foreign lines, in a fence longer than any within them.
pub(super) fn fenced<S: AsRef<str>>(lines: &[S]) -> String {
    let lines: Vec<String> = lines.iter().map(|line| inert(line.as_ref())).collect();
    let longest =
        lines.iter().flat_map(|line| line.split(|c| c != '`')).map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(3.max(longest + 1));
    let body: String = lines.iter().map(|line| format!("{line}\n")).collect();
    format!("{fence}text\n{body}{fence}\n")
}

/// Words of ours that stay on one line: GitHub's tables break even an arrow in two.
pub(super) fn unbroken(words: &str) -> String {
    words.replace(' ', "&#160;").replace('-', "&#8209;")
}

/// What a reader sees of one line of our own Markdown.
pub(super) fn words(line: &str) -> String {
    let cells: Vec<&str> =
        line.trim_start_matches(['#', ' ', '-']).split('|').map(str::trim).collect();
    let text = cells.into_iter().filter(|cell| !cell.is_empty()).collect::<Vec<_>>().join("  ");
    let text = ["<code>", "</code>", "**"].iter().fold(text, |text, tag| text.replace(tag, ""));
    let mut parts = text.split("&#");
    let mut seen = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let reference = part.split_once(';');
        match reference
            .and_then(|(number, rest)| Some((char::from_u32(number.parse().ok()?)?, rest)))
        {
            Some((character, rest)) => {
                seen.push(character);
                seen.push_str(rest);
            }
            None => seen.push_str(part),
        }
    }
    seen.replace('\u{a0}', " ").replace('\u{2011}', "-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_holds_no_markup() {
        assert_eq!(code("Qwen/Qwen2.5-7B (r-1)"), "<code>Qwen/Qwen2.5-7B (r-1)</code>");
        assert_eq!(
            code("</code><b>@acme|`#1`\n"),
            "<code>&#60;&#47;code".replace("&#47;", "/")
                + "&#62;&#60;b&#62;&#64;acme&#124;&#96;&#35;1&#96;&#92;n</code>"
        );
        assert_eq!(code("http://www.evil"), "<code>http&#58;//www&#46;evil</code>");
        assert_eq!(code(""), "");
    }

    #[test]
    fn words_are_what_was_put_in() {
        for text in ["Qwen/Qwen2.5-7B (r-1)", "a|b <b>&#124;</b> `x` @acme", "50 % & more;"] {
            assert_eq!(words(&format!("| – | {} |", code(text))), format!("–  {text}"));
        }
        assert_eq!(words("## Plan for chat"), "Plan for chat");
        let step = unbroken("cut_over a -> b");
        assert!(!step.contains([' ', '-']) && words(&step) == "cut_over a -> b", "{step}");
        assert_eq!(words("|---|--:|"), "---  --:");
    }

    #[test]
    fn no_character_gets_out_of_a_span() {
        let parts = [
            "<", ">", "&", "|", "`", "@a", "#1", "\\", "*", "_", "~", "[x](y)", "$", "\n",
            "\u{1b}", "!", ":x:",
        ];
        for first in parts {
            for second in parts {
                let span = code(&format!("{first}{second}"));
                let inner = span.strip_prefix("<code>").unwrap().strip_suffix("</code>").unwrap();
                let left = inner.replace("&#", "").replace(';', "");
                assert!(
                    !left.contains([
                        '<', '>', '&', '|', '`', '@', '#', '\\', '*', '_', '~', '[', '$', '!', ':'
                    ]),
                    "{inner}"
                );
                assert!(!inner.contains(char::is_control), "{inner:?}");
            }
        }
    }

    #[test]
    fn a_fence_is_longer_than_what_it_holds() {
        assert_eq!(fenced(&["a", "b"]), "```text\na\nb\n```\n");
        assert_eq!(
            fenced(&["```", "x ````` y\n```"]),
            "``````text\n```\nx ````` y\\n```\n``````\n"
        );
        assert_eq!(fenced::<&str>(&[]), "```text\n```\n");
    }
}
