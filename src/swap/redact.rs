//! Takes secrets out of an argv before it is shown, or finds them, so that they can be taken out of something else. Pure.

use serde_json::Value;

/// What a secret is replaced with.
pub const HIDDEN: &str = "***";

/// Words of a flag's, variable's or JSON key's name that say that its value is secret.
const SECRET_WORDS: &[&str] = &[
    "apikey",
    "apikeys",
    "auth",
    "authorization",
    "bearer",
    "credential",
    "credentials",
    "key",
    "keys",
    "passphrase",
    "passwd",
    "password",
    "passwords",
    "secret",
    "secrets",
    "token",
];

/// How well-known tokens begin (Hugging Face, OpenAI, GitHub, GitLab, NVIDIA, Slack, JSON web tokens).
const TOKEN_STARTS: &[&str] = &[
    "hf_",
    "sk-",
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "github_pat_",
    "glpat-",
    "nvapi-",
    "xoxb-",
    "xoxp-",
    "eyJ",
];

/// Tokens are longer than this; model names that begin alike (`sk-large`) are not.
const SHORTEST_TOKEN: usize = 16;

/// The argv with every secret replaced by `***`.
///
/// Secret are: values after or with a flag whose name says so (`--api-key a b`, `--hf-token=x`), variables (`HF_TOKEN=x`),
/// members of a JSON argument, words that look like a well-known token, and the user info of a URL. Rather too much
/// than too little: a file name after `--ssl-key` is hidden as well.
pub fn redact(argv: &[String]) -> Vec<String> {
    Redactor::default().argv(argv)
}

/// Every secret that [`redact`] takes out of an argv.
pub fn secrets_of_argv(argv: &[String]) -> Vec<String> {
    let mut redactor = Redactor::default();
    redactor.argv(argv);
    redactor.found
}

/// The value of a variable, if the name of it says that it is secret; else what of it looks like one.
pub fn secrets_of_variable(name: &str, value: &str) -> Vec<String> {
    if is_secret(name) {
        return vec![value.to_owned()];
    }
    let mut redactor = Redactor::default();
    redactor.word(value);
    redactor.found
}

/// Takes secrets out, and keeps them.
#[derive(Default)]
struct Redactor {
    found: Vec<String>,
}

impl Redactor {
    /// What stands in a secret's place. Quotes and the end of a command are a shell's.
    fn hide(&mut self, secret: &str) -> String {
        self.found.push(secret.trim_matches(['"', '\'', ';']).to_owned());
        HIDDEN.to_owned()
    }

    fn argv(&mut self, argv: &[String]) -> Vec<String> {
        let mut after_secret_flag = false;
        let mut shown = Vec::with_capacity(argv.len());
        for word in argv {
            let flag = word
                .strip_prefix('-')
                .filter(|flag| flag.starts_with(|c: char| c.is_alphabetic() || c == '-'));
            if let Some(flag) = flag {
                after_secret_flag = is_secret(flag) && !flag.contains('=');
            }
            let is_value = flag.is_none() && after_secret_flag;
            shown.push(if is_value { self.hide(word) } else { self.word(word) });
        }
        shown
    }

    fn word(&mut self, word: &str) -> String {
        if let Ok(mut json @ (Value::Object(_) | Value::Array(_))) = serde_json::from_str(word) {
            return if self.json(&mut json) { json.to_string() } else { word.to_owned() };
        }
        if word.contains(char::is_whitespace) {
            // Text for a shell, or a header.
            let words: Vec<_> = word.split_whitespace().map(str::to_owned).collect();
            let words = self.argv(&words);
            return self.after_bearer(&words).join(" ");
        }
        match word.split_once('=') {
            Some((name, value)) if is_secret(name) => format!("{name}={}", self.hide(value)),
            // A variable or JSON, as in `--env=HF_TOKEN=x`; of a URL the user is looked for.
            Some((flag, value)) if flag.starts_with('-') && !value.contains("://") => {
                format!("{flag}={}", self.word(value))
            }
            Some((name, value)) => format!("{name}={}", self.value(value)),
            None => self.value(word),
        }
    }

    fn value(&mut self, value: &str) -> String {
        let bare = value.trim_matches(['"', '\'']);
        if bare.len() >= SHORTEST_TOKEN && TOKEN_STARTS.iter().any(|start| bare.starts_with(start))
        {
            return self.hide(value);
        }
        if let Some((scheme, rest)) = value.split_once("://") {
            let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
            if let Some((user, host)) = authority.rsplit_once('@') {
                return format!("{scheme}://{}@{host}{path}", self.user_info(user));
            }
        }
        value.to_owned()
    }

    /// `user:password`: the password is one by itself too.
    fn user_info(&mut self, user: &str) -> String {
        if let Some((_, password)) = user.split_once(':') {
            self.hide(password);
        }
        self.hide(user)
    }

    /// `Authorization: Bearer x`
    fn after_bearer(&mut self, words: &[String]) -> Vec<String> {
        let mut after_bearer = false;
        let mut shown = Vec::with_capacity(words.len());
        for word in words {
            let is_value = after_bearer && word != HIDDEN;
            shown.push(if is_value { self.hide(word) } else { word.clone() });
            after_bearer = word.eq_ignore_ascii_case("bearer");
        }
        shown
    }

    /// Whether anything was hidden.
    fn json(&mut self, json: &mut Value) -> bool {
        match json {
            Value::Object(members) => {
                let mut hidden = false;
                for (name, value) in members {
                    match value {
                        Value::String(text) if is_secret(name) => {
                            *text = self.hide(text);
                            hidden = true;
                        }
                        value => hidden |= self.json(value),
                    }
                }
                hidden
            }
            Value::Array(items) => {
                let mut hidden = false;
                for item in items {
                    hidden |= self.json(item);
                }
                hidden
            }
            Value::String(text) => {
                let hidden = self.value(text);
                let changed = hidden != *text;
                *text = hidden;
                changed
            }
            _ => false,
        }
    }
}

/// By whole words, so that `--tokenizer` and `--max-num-batched-tokens` stay legible.
fn is_secret(name: &str) -> bool {
    let name = name.split('=').next().unwrap_or_default().to_lowercase();
    name.split(['-', '_', '.']).any(|word| SECRET_WORDS.contains(&word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redacted(line: &str) -> String {
        redact(&shell_words::split(line).unwrap()).join(" ")
    }

    #[test]
    fn values_of_secret_flags_are_hidden() {
        for (argv, shown) in [
            ("vllm serve m --api-key abc --port 1", "vllm serve m --api-key *** --port 1"),
            ("vllm serve m --api-key a b -tp 2", "vllm serve m --api-key *** *** -tp 2"),
            ("vllm serve m --api_key=abc --port 1", "vllm serve m --api_key=*** --port 1"),
            ("x --hf-token t", "x --hf-token ***"),
            ("x --db.password=p", "x --db.password=***"),
            ("x --env=HF_TOKEN=t --env=A=b=c", "x --env=HF_TOKEN=*** --env=A=b=c"),
            (
                "env HF_TOKEN=t AWS_SECRET_ACCESS_KEY=s x",
                "env HF_TOKEN=*** AWS_SECRET_ACCESS_KEY=*** x",
            ),
        ] {
            assert_eq!(redacted(argv), shown);
        }
    }

    #[test]
    fn what_only_sounds_alike_is_shown() {
        for argv in [
            "vllm serve m --tokenizer t --max-num-batched-tokens 8192 --trust-remote-code",
            "x --served-model-name sk-large --kv-cache-dtype fp8",
            "x --url http://127.0.0.1:8001/v1",
        ] {
            assert_eq!(redacted(argv), argv);
        }
    }

    #[test]
    fn secrets_are_known_by_their_looks() {
        assert_eq!(redacted("x hf_abcdefghijklmnop"), "x ***");
        assert_eq!(
            redacted("x --url=https://u:p@h.example/v1?a=b"),
            "x --url=https://***@h.example/v1?a=b"
        );
        assert_eq!(
            redacted("curl -H 'Authorization: Bearer abc'"),
            "curl -H Authorization: Bearer ***"
        );
    }

    #[test]
    fn what_is_hidden_is_found() {
        for (line, found) in [
            ("x --api-key abc --port 1", vec!["abc"]),
            (
                "x --hf-token=t HF_TOKEN=u hf_abcdefghijklmnop",
                vec!["t", "u", "hf_abcdefghijklmnop"],
            ),
            ("x https://ann:secret@h.example/", vec!["secret", "ann:secret"]),
            ("curl -H 'Authorization: Bearer abc'", vec!["abc"]),
            (r#"x --config '{"deep":[{"token":"t"}]}'"#, vec!["t"]),
            ("sh -c \"x --api-key 'quoted'; sleep\"", vec!["quoted", "sleep"]),
            ("x --tokenizer t", vec![]),
        ] {
            assert_eq!(secrets_of_argv(&shell_words::split(line).unwrap()), found, "{line}");
        }
        assert_eq!(secrets_of_variable("HF_TOKEN", "t u"), ["t u"]);
        assert_eq!(secrets_of_variable("PROXY", "http://ann:secret@h/"), ["secret", "ann:secret"]);
        assert_eq!(secrets_of_variable("PATH", "/usr/bin"), [""; 0]);
    }

    #[test]
    fn secrets_are_found_inside_json_and_shell_text() {
        assert_eq!(
            redacted(r#"x --config '{"url":"h","api_key":"k","deep":[{"token":"t"}]}'"#),
            r#"x --config {"api_key":"***","deep":[{"token":"***"}],"url":"h"}"#
        );
        assert_eq!(redacted(r#"x --config '{"b": 1, "a": 2}'"#), r#"x --config {"b": 1, "a": 2}"#);
        assert_eq!(
            redacted("bash -c 'HF_TOKEN=t vllm serve m --api-key k; sleep 1'"),
            "bash -c HF_TOKEN=*** vllm serve m --api-key *** *** ***"
        );
    }
}
