//! Words and values as YAML takes them, whatever stands in them.

/// How wide a setting is before the comment beside it.
const WIDTH: usize = 39;

/// A setting, and a comment beside it if there is something to say.
pub(super) fn line(text: &mut String, setting: &str, note: &str) {
    let written = match note {
        "" => format!("{setting}\n"),
        note => format!("{setting:<WIDTH$} # {}\n", inert(note)),
    };
    text.push_str(&written);
}

/// A text for a comment: it stays on its line, and moves no terminal's cursor.
pub(super) fn inert(text: &str) -> String {
    let escape = |c: char| match c.is_control() {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    text.chars().map(escape).collect()
}

/// A text in quotes. A string of JSON is one of YAML.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A text, in quotes only where it might be taken for something else.
pub(super) fn scalar(text: &str) -> String {
    let is_plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "/._@-:".contains(c))
        && !text.ends_with(':')
        && serde_yaml::from_str::<serde_yaml::Value>(text).is_ok_and(|value| value.is_string());
    if is_plain { text.to_owned() } else { quoted(text) }
}

/// A list on one line.
pub(super) fn sequence(texts: &[String]) -> String {
    let texts: Vec<_> = texts.iter().map(|text| quoted(text)).collect();
    format!("[{}]", texts.join(", "))
}

/// A command: a line where no word needs quotes, else a list.
pub(super) fn command(words: &[String]) -> String {
    let is_plain = |word: &String| {
        !word.is_empty()
            && !word.ends_with(':')
            && word.chars().all(|c| c.is_ascii_alphanumeric() || "/._@%+=,:{}-".contains(c))
    };
    let starts_plainly = |word: &String| {
        word.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/' || c == '.')
    };
    match words.first().is_some_and(starts_plainly) && words.iter().all(is_plain) {
        true => words.join(" "),
        false => sequence(words),
    }
}
