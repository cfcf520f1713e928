//! `docs/model-swap.schema.json`, for editors: it knows the settings of the reference and no others, and what it accepts of them
//! is what the program accepts.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use jsonschema::Validator;
use model_swap::config::{self, Overrides};
use serde_json::Value;

fn document(path: &str) -> Result<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(root.join(path)).with_context(|| path.to_owned())
}

fn schema() -> Result<Value> {
    Ok(serde_json::from_str(&document("docs/model-swap.schema.json")?)?)
}

/// Every key of a YAML document by its path; slots count as one, however they are named.
fn keys(value: &Value, place: &str, found: &mut BTreeSet<String>) {
    for (key, inner) in value.as_object().into_iter().flatten() {
        let key = if place == "slots." { "*" } else { key };
        found.insert(format!("{place}{key}"));
        keys(inner, &format!("{place}{key}."), found);
    }
}

/// Every key that a schema names, by its path.
fn named(schema: &Value, place: &str, found: &mut BTreeSet<String>) {
    for (key, inner) in schema["properties"].as_object().into_iter().flatten() {
        found.insert(format!("{place}{key}"));
        named(inner, &format!("{place}{key}."), found);
    }
    if schema["additionalProperties"]["properties"].is_object() {
        found.insert(format!("{place}*"));
        named(&schema["additionalProperties"], &format!("{place}*."), found);
    }
}

#[test]
fn the_schema_names_the_settings_of_the_reference_and_no_others() -> Result<()> {
    let reference: Value = serde_yaml::from_str(&document("docs/model-swap.yaml")?)?;
    let (mut there, mut here) = (BTreeSet::new(), BTreeSet::new());
    keys(&reference, "", &mut there);
    named(&schema()?, "", &mut here);
    assert_eq!(here, there);
    Ok(())
}

#[test]
fn the_schema_accepts_and_refuses_what_the_program_does() -> Result<()> {
    let validator: Validator = jsonschema::validator_for(&schema()?)?;
    let reference = document("docs/model-swap.yaml")?;
    let changed = |from: &str, to: &str| {
        assert!(reference.contains(from), "no {from:?}");
        reference.replacen(from, to, 1)
    };
    let texts = [
        (reference.clone(), true),
        (changed("pinned_workers: wait", "pinned_workers: { ignore_after: 10m }"), true),
        (changed("[nginx]", "[docker, exec, edge, nginx]"), true),
        (changed("timeout: 20m", "timeout: 1h 30m"), true),
        (changed("gpus: [0]", "gpus: []"), true),
        (changed("state_dir: null", "state_dir: /srv/model-swap"), true),
        (changed("model_revision: null", "model_revision: refs/pr/3"), true),
        (changed("model_revision: null", "model_revision: --trust-remote-code"), false),
        (changed("model_revision: null", "model_revision: 5ede1c9 --flag"), false),
        (changed("model: Qwen/", "model: --flag/"), false),
        (changed("service: chat", "service: Chat bot"), false),
        (changed("ready:", "raedy:"), false),
        (changed("8001", "70000"), false),
        (changed("on_timeout: keep", "on_timeout: wait"), false),
        (changed("runtime: auto", "runtime: kubernetes"), false),
        (changed("timeout: 20m", "timeout: 20"), false),
        (changed("env: {}", "env: { A: 1 }"), false),
        (changed("  upstream: llm", ""), false),
        (changed("gpus: [0]", "gpus: 0"), false),
        (changed("secret_env: []", "secret_env: HF_TOKEN"), false),
    ];
    for (text, good) in texts {
        let value: Value = serde_yaml::from_str(&text)?;
        assert_eq!(validator.is_valid(&value), good, "the schema, of\n{text}");
        let loaded = config::load(&text, "model-swap.yaml", &Overrides::default());
        assert_eq!(loaded.is_ok(), good, "the program, of\n{text}\n{loaded:?}");
    }
    Ok(())
}
