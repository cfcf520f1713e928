//! The command of a running vLLM as `replica.command` has it: with tokens for model and port, and without secrets.

use super::{flag, flag_name};
use crate::host::engine::Template;
use crate::model::survey::Listener;
use crate::swap::redact::HIDDEN;

/// What a title that vLLM writes over its argv begins with.
const TITLE: &str = "VLLM::";

const PORT: &str = "--port";
const NAMES: &str = "--served-model-name";

/// The first `fixed` words of `argv` are an image's own. `argv` is redacted. `None` where it does not tell.
pub(in crate::host::engine) fn template(
    argv: &[String],
    fixed: usize,
    seen: &Listener,
) -> Option<Template> {
    if argv.len() < 2 || argv.iter().any(|word| word.starts_with(TITLE)) {
        return None;
    }
    let mut words = argv.to_vec();
    let model = model_at(&words, seen.model.as_deref());
    if let Some(at) = model {
        words[at] = match words[at].split_once('=') {
            Some((flag, _)) if flag.starts_with('-') => format!("{flag}={{model}}"),
            _ => "{model}".to_owned(),
        };
    }
    let (mut words, left_out) = without_secrets(words.get(fixed..)?);
    if !set_port(&mut words) {
        words.extend([PORT, "{port}"].map(str::to_owned));
    }
    // Without it a model is called by its own name, and clients would have to know each new one's.
    if flag(argv, NAMES).is_none() && !seen.names.is_empty() {
        words.push(NAMES.to_owned());
        words.extend(seen.names.iter().cloned());
    }
    Some(Template { words, left_out })
}

/// Where argv names the model.
fn model_at(argv: &[String], model: Option<&str>) -> Option<usize> {
    let by_flag = argv.iter().rposition(|word| flag_name(word) == "--model");
    let by_flag = by_flag.map(|at| if argv[at].contains('=') { at } else { at + 1 });
    let after_serve = || {
        let at = argv.iter().position(|word| word == "serve")? + 1;
        argv.get(at).is_some_and(|word| !word.starts_with('-')).then_some(at)
    };
    let by_name = || argv.iter().position(|word| Some(word.as_str()) == model);
    by_flag.or_else(after_serve).or_else(by_name).filter(|at| *at < argv.len())
}

/// The words that hold no secret, and the flags that were left out with theirs.
fn without_secrets(words: &[String]) -> (Vec<String>, Vec<String>) {
    let mut kept: Vec<String> = Vec::new();
    let mut left_out = Vec::new();
    let mut before = "";
    for word in words {
        if !word.contains(HIDDEN) {
            kept.push(word.clone());
        } else if word.starts_with('-') {
            left_out.push(word.split('=').next().unwrap_or_default().to_owned());
        // Of several values the first stands after the flag.
        } else if !before.contains(HIDDEN) && before.starts_with('-') && !before.contains('=') {
            left_out.extend(kept.pop());
        }
        before = word;
    }
    (kept, left_out)
}

/// Puts the token where the port stands; false if it stands nowhere.
fn set_port(words: &mut [String]) -> bool {
    let mut found = false;
    for at in 0..words.len() {
        if words[at] == PORT && at + 1 < words.len() {
            words[at + 1] = "{port}".to_owned();
            found = true;
        } else if words[at].starts_with("--port=") {
            words[at] = "--port={port}".to_owned();
            found = true;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ids::{Port, ProcessId};
    use crate::model::replica::Keeper;
    use crate::model::survey::Start;
    use crate::swap::redact::redact;

    fn seen(names: &[&str]) -> Listener {
        Listener {
            port: Port(8001),
            process: ProcessId { pid: 1, start: 1 },
            keeper: Keeper::Nobody,
            user: "llm".to_owned(),
            answer: String::new(),
            unknown: None,
            locked: false,
            model: Some("Q/M".to_owned()),
            names: names.iter().map(ToString::to_string).collect(),
            start: Start::default(),
            gpus: Vec::new(),
            instances: Vec::new(),
            no_gpus: Vec::new(),
            uncounted: Vec::new(),
        }
    }

    #[test]
    fn model_and_port_become_tokens_and_secrets_go() {
        for (argv, fixed, expected, left_out) in [
            (
                "vllm serve Q/M --port 1 --served-model-name chat",
                0,
                "vllm serve {model} --port {port} --served-model-name chat",
                "",
            ),
            ("vllm serve Q/M", 0, "vllm serve {model} --port {port} --served-model-name chat", ""),
            (
                "python3 -m vllm.entrypoints.openai.api_server --model=Q/M --port=1 --tokenizer Q/M --served-model-name c",
                0,
                "python3 -m vllm.entrypoints.openai.api_server --model={model} --port={port} --tokenizer Q/M --served-model-name c",
                "",
            ),
            (
                "vllm serve Q/M --api-key k1 k2 --dtype auto --hf-token=t --port 1 --served-model-name c",
                0,
                "vllm serve {model} --dtype auto --port {port} --served-model-name c",
                "--api-key --hf-token",
            ),
            (
                "vllm serve Q/M --port 8000 --served-model-name c",
                2,
                "{model} --port {port} --served-model-name c",
                "",
            ),
            (
                "./serve.sh Q/M --port 1 --served-model-name c",
                0,
                "./serve.sh {model} --port {port} --served-model-name c",
                "",
            ),
        ] {
            let argv: Vec<_> = argv.split(' ').map(str::to_owned).collect();
            let made = template(&redact(&argv), fixed, &seen(&["chat"])).unwrap();
            assert_eq!(
                (made.words.join(" ").as_str(), made.left_out.join(" ").as_str()),
                (expected, left_out)
            );
        }
    }

    #[test]
    fn a_title_tells_no_command() {
        for title in ["VLLM::APIServer", "VLLM::EngineCore x"] {
            let argv: Vec<_> = title.split(' ').map(str::to_owned).collect();
            assert!(template(&argv, 0, &seen(&[])).is_none());
        }
    }
}
