//! Slips that are easily made: what is said of them beside the accepted form.

use super::wrong::{complaints, with};
use super::{MINIMAL, changed};

/// A text, and what is said of it.
type Row = (String, &'static [&'static str]);

fn assert_said(rows: &[Row]) {
    for (text, said) in rows {
        let complaints = complaints(text);
        for said in *said {
            assert!(complaints.contains(said), "no {said:?} in {complaints}\n{text}");
        }
    }
}

#[test]
fn a_slip_of_yaml_is_told_with_the_way_out() {
    assert_said(&[
        (
            changed("  a: {", "\ta: {"),
            &["f:5:1: ", " | indent with spaces: YAML takes no tabs there"],
        ),
        (with("ready:\n\ttimeout: 5m"), &["f:11:1: ", " | indent with spaces"]),
        (
            MINIMAL.replace("  a: {", "  a: &a {").replace("b: { port", "b: { <<: *a, port"),
            &[
                "f:6:8: slots.b.<<: unknown key",
                " | merge keys are not followed: write the settings out",
            ],
        ),
        (
            changed("{ port: 8001, gpus: [0] }", "8001"),
            &["f:5:3: slots.a: got 8001, expected a mapping of settings: port, gpus\n"],
        ),
        (with("timeout: 5m"), &[" | it belongs under `drain` or `ready`\n"]),
        (with("upstream: llm"), &[" | it belongs under `nginx`\n"]),
    ]);
    // Elsewhere in a line it is allowed.
    let other = complaints(&with("retain: a:\tb: c"));
    assert!(other.contains("cannot be read as YAML") && !other.contains("tabs"), "{other}");
}

#[test]
fn what_another_program_would_have_put_in_is_told() {
    let command = |text: &str| {
        changed("vllm serve {model} --host 127.0.0.1 --port {port} --served-model-name chat", text)
    };
    const WHOLE: &str = " | write the whole path on the server, from / on";
    const ELSEWHERE: &str =
        "a workflow gives the model by the input `model`, a terminal by --model";
    assert_said(&[
        (changed("Qwen/Qwen2.5-32B-Instruct", "${{ inputs.model }}"), &["model: got", ELSEWHERE]),
        (changed("Qwen/Qwen2.5-32B-Instruct", "$MODEL"), &["model: got \"$MODEL\"", ELSEWHERE]),
        (changed("Qwen/Qwen2.5-32B-Instruct", "./qwen"), &["model: got \"./qwen\"", WHOLE]),
        (changed("Qwen/Qwen2.5-32B-Instruct", "~/qwen"), &["model: got \"~/qwen\"", WHOLE]),
        (
            command("vllm serve {model} \\\n    --port {port}"),
            &[
                "replica.command: got \\, expected plain words",
                " | leave it out: YAML joins the lines\n",
            ],
        ),
        (command("vllm \\ --port {port} | tee"), &["got \\ |, ", "into a script\n"]),
    ]);
    assert_eq!(complaints(&command("|\n    vllm serve {model} \\\n    --port {port}")), "fine");
}

#[test]
fn a_secret_in_the_place_of_its_name_is_not_shown() {
    let replica = |more: &str| changed("replica:\n", &format!("replica:\n  {more}\n"));
    let probe = |key: &str| changed("llm }", &format!("llm, probe: {{ api_key_env: {key} }} }}"));
    let token = "hf_0123456789abcdefghij";
    for (text, said) in [
        (
            replica(&format!("secret_env: [HF_TOKEN={token}]")),
            "secret_env[0]: got \"HF_TOKEN=***\"",
        ),
        (replica(&format!("secret_env: {token}")), "secret_env: got \"***\""),
        (replica(&format!("env: [A=b, HF_TOKEN={token}]")), "env: got [\"A=b\", \"HF_TOKEN=***\"]"),
        (probe(&format!("sk-{token}")), "api_key_env: got \"***\""),
        (
            changed("upstream: llm", &format!("upstream: 'https://{token}@x'")),
            "got \"https://***@x\"",
        ),
    ] {
        let complaints = complaints(&text);
        assert!(complaints.contains(said) && !complaints.contains(token), "{said:?}: {complaints}");
    }
    let named = complaints(&replica("secret_env: [HF_TOKEN=x]"));
    assert!(
        named.contains("| write the name alone: its value comes from the step's env"),
        "{named}"
    );
}
