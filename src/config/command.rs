//! The replica's command: words, never a shell, with four tokens.

use std::collections::BTreeMap;

use crate::model::ids::Port;
use crate::model::spec::Gpu;

/// The tokens that are replaced in a command, wherever they stand in a word. Other braces stay: engine flags hold JSON.
pub const TOKENS: [&str; 4] = ["{model}", "{port}", "{gpus}", "{revision}"];

/// The tokens that are replaced in the command that fetches.
pub const FETCH_TOKENS: [&str; 2] = ["{model}", "{revision}"];

/// What stands for the revision where none is pinned: the name of the default branch on Hugging Face.
const NEWEST: &str = "main";

/// argv of the command that fetches, as [`render`] has it.
pub fn render_fetch(command: &[String], model: &str, revision: Option<&str>) -> Vec<String> {
    let values = [model.to_owned(), revision.unwrap_or(NEWEST).to_owned()];
    command.iter().map(|word| render_word(word, &FETCH_TOKENS, &values)).collect()
}

/// argv with the tokens replaced. A value is inserted as it is: tokens inside it are text.
pub fn render(
    command: &[String],
    (model, revision): (&str, Option<&str>),
    port: Port,
    gpus: &[Gpu],
) -> Vec<String> {
    let revision = revision.unwrap_or(NEWEST).to_owned();
    let values = [model.to_owned(), port.to_string(), gpu_list(gpus), revision];
    command.iter().map(|word| render_word(word, &TOKENS, &values)).collect()
}

/// GPUs as `CUDA_VISIBLE_DEVICES` takes them: indices or UUIDs, joined by commas.
pub fn gpu_list(gpus: &[Gpu]) -> String {
    gpus.iter().map(Gpu::to_string).collect::<Vec<_>>().join(",")
}

/// What an engine's environment says of its GPUs; nothing for none.
pub fn gpu_env(gpus: &[Gpu]) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    if !gpus.is_empty() {
        env.insert("CUDA_VISIBLE_DEVICES".to_owned(), gpu_list(gpus));
    }
    if gpus.iter().any(|gpu| matches!(gpu, Gpu::Index(_))) {
        // CUDA numbers by speed unless told otherwise; nvidia-smi and people number by PCI bus.
        env.insert("CUDA_DEVICE_ORDER".to_owned(), "PCI_BUS_ID".to_owned());
    }
    env
}

fn render_word(word: &str, tokens: &[&str], values: &[String]) -> String {
    let mut rendered = String::with_capacity(word.len());
    let mut rest = word;
    while let Some(brace) = rest.find('{') {
        let (before, from) = rest.split_at(brace);
        rendered.push_str(before);
        let token = tokens.iter().zip(values).find(|(token, _)| from.starts_with(**token));
        let (text, len) = token.map_or(("{", 1), |(token, value)| (value.as_str(), token.len()));
        rendered.push_str(text);
        rest = &from[len..];
    }
    rendered.push_str(rest);
    rendered
}

/// Whether a token stands anywhere in the command.
pub fn holds(command: &[String], token: &str) -> bool {
    command.iter().any(|word| word.contains(token))
}

/// Single words in braces that look like a token and are none: `{modle}`. JSON never does, and a word in double
/// braces, as in templates, is left alone.
pub(super) fn strange_tokens<'a>(word: &'a str, tokens: &[&str]) -> Vec<&'a str> {
    word.match_indices('{')
        .filter(|(at, _)| !word[..*at].ends_with('{'))
        .filter_map(|(at, _)| {
            let end = at + word[at..].find('}')?;
            let token = &word[at..=end];
            (is_variable_name(&word[at + 1..end]) && !tokens.contains(&token)).then_some(token)
        })
        .collect()
}

/// Pieces of a command line that would mean something to a shell, each once, in their order. No shell reads the
/// command, so they would reach the program as text, or vanish.
pub(super) fn shell_syntax(line: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut quote = None;
    let mut chars = Chars::new(line);
    while let Some(c) = chars.next() {
        let piece = match (quote, c) {
            (Some('\''), '\'') | (Some('"'), '"') => {
                quote = None;
                None
            }
            (Some('\''), _) => None,
            // The end of a line of a script, which YAML has joined with the next one: what follows would begin with a blank.
            (None, '\\') if chars.starts_word && chars.rest.starts_with(' ') => {
                Some("\\".to_owned())
            }
            (_, '\\') => {
                chars.next();
                None
            }
            (_, '`') => Some("`".to_owned()),
            (_, '$') => chars.expansion(),
            (Some(_), _) => None,
            (None, '\'' | '"') => {
                quote = Some(c);
                None
            }
            (None, '#') if chars.starts_word => {
                chars.skip_line();
                None
            }
            (None, '|' | '&' | ';' | '<' | '>' | '(' | ')') => Some(chars.operator(c)),
            (None, '~') if chars.starts_word => Some("~".to_owned()),
            (None, '{') if chars.rest.starts_with('"') => Some("{\"".to_owned()),
            (None, _) => None,
        };
        found.extend(piece.filter(|piece| !found.contains(piece)));
    }
    found
}

/// Words of a list that only a shell would understand. In a list only whole words can be told from plain text.
pub(super) fn shell_words(words: &[String]) -> Vec<String> {
    const OPERATORS: [&str; 13] =
        ["|", "||", "&", "&&", ";", "<", ">", ">>", "2>", "2>>", "2>&1", "&>", "1>&2"];
    let is_variable = |word: &str| {
        let name = word.strip_prefix('$').unwrap_or_default();
        is_variable_name(
            name.strip_prefix('{').and_then(|name| name.strip_suffix('}')).unwrap_or(name),
        )
    };
    words
        .iter()
        .filter(|word| OPERATORS.contains(&word.as_str()) || is_variable(word))
        .cloned()
        .collect()
}

/// `NAME=value` where a program is expected: the name.
pub(super) fn leading_assignment(words: &[String]) -> Option<&str> {
    let (name, _) = words.first()?.split_once('=')?;
    is_variable_name(name).then_some(name)
}

/// Whether a text is the name of an environment variable, as POSIX has it.
pub fn is_variable_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// What is left of a command line.
struct Chars<'a> {
    rest: &'a str,
    /// Whether the character read last is the first of a word.
    starts_word: bool,
    /// Whether the character before it was a blank, or there was none.
    after_blank: bool,
}

impl<'a> Chars<'a> {
    fn new(line: &'a str) -> Self {
        Self { rest: line, starts_word: false, after_blank: true }
    }

    fn next(&mut self) -> Option<char> {
        let c = self.rest.chars().next()?;
        self.rest = &self.rest[c.len_utf8()..];
        self.starts_word = self.after_blank;
        self.after_blank = c.is_ascii_whitespace();
        Some(c)
    }

    /// The expansion that a `$` begins: `$NAME`, `${NAME}`, `$(program)`, `$1`; `None` for a lone `$`.
    fn expansion(&mut self) -> Option<String> {
        let len = match self.rest.chars().next()? {
            '{' => self.rest.find('}').map(|end| end + 1),
            '(' => self.rest.find(')').map(|end| end + 1),
            _ => self.rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_'),
        };
        let (name, rest) = self.rest.split_at(len.unwrap_or(self.rest.len()));
        self.rest = rest;
        (!name.is_empty()).then(|| format!("${name}"))
    }

    /// The operator that begins with `first`, as long as it goes.
    fn operator(&mut self, first: char) -> String {
        let len = self.rest.find(|c| !"|&;<>".contains(c)).unwrap_or(self.rest.len());
        let (more, rest) = self.rest.split_at(len);
        self.rest = rest;
        format!("{first}{more}")
    }

    fn skip_line(&mut self) {
        let len = self.rest.find('\n').unwrap_or(self.rest.len());
        self.rest = &self.rest[len..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn tokens_are_replaced_wherever_they_stand() {
        let command = words(
            "serve {model} --port={port} --x {\"p\":{port},\"q\":{}} {gpus} {{model}} {other} {",
        );
        let gpus = [Gpu::Index(0), Gpu::Uuid("GPU-1f".to_owned())];
        assert_eq!(
            render(&command, ("a/{port}", None), Port(8002), &gpus),
            words(
                "serve a/{port} --port=8002 --x {\"p\":8002,\"q\":{}} 0,GPU-1f {a/{port}} {other} {"
            )
        );
        assert_eq!(gpu_list(&[]), "");
        let pinned =
            |revision| render(&words("--revision {revision}"), ("m", revision), Port(1), &[]);
        assert_eq!(pinned(None), words("--revision main"));
        assert_eq!(pinned(Some("5ede1c97")), words("--revision 5ede1c97"));
    }

    #[test]
    fn a_strange_token_is_told_from_json() {
        assert_eq!(strange_tokens("{modle}", &TOKENS), ["{modle}"]);
        assert_eq!(strange_tokens("--a={Port}:{x1}", &TOKENS), ["{Port}", "{x1}"]);
        for plain in [
            "{model}",
            "{\"a\": 1}",
            "{}",
            "{{ name }}",
            "{{name}}",
            "{a b}",
            "{\"p\":{port}}",
            "{",
            "}{",
            "{é}",
        ] {
            assert_eq!(strange_tokens(plain, &TOKENS), [""; 0], "{plain}");
        }
    }

    #[test]
    fn shell_syntax_is_found_outside_quotes_only() {
        for (line, found) in [
            ("a && b", vec!["&&"]),
            ("a | b > c 2>&1", vec!["|", ">", ">&"]),
            ("a $HOME \"${X}\" $(id) \"$1\"", vec!["$HOME", "${X}", "$(id)", "$1"]),
            ("a `id`", vec!["`"]),
            ("a ~/x b~c", vec!["~"]),
            ("a --url http://h/?a=1&b=2", vec!["&"]),
            ("a --json {\"k\": 1}", vec!["{\""]),
            ("a 'x && $Y' \"a|b\" \\$Z \\; $ # $C | d", vec![]),
            ("a --json '{\"k\": {\"l\": \"$x\"}}'", vec![]),
            ("a #b\n&& c", vec!["&&"]),
            ("a \\ --b \\ --c", vec!["\\"]),
            ("a \\\n --b /c\\ d", vec![]),
        ] {
            assert_eq!(shell_syntax(line), found, "{line}");
        }
    }

    #[test]
    fn in_a_list_only_whole_words_are_shell() {
        assert_eq!(shell_words(&words("sh -c a&&b && $X ${Y} $ 5$ a$b")), ["&&", "$X", "${Y}"]);
    }

    #[test]
    fn an_assignment_is_no_program() {
        assert_eq!(leading_assignment(&words("A_1=b vllm")), Some("A_1"));
        assert_eq!(leading_assignment(&words("./a=b vllm")), None);
        assert_eq!(leading_assignment(&words("vllm A=b")), None);
    }
}
