//! Wrong configurations, each with everything that is said about it.

use std::fmt::Write as _;

use super::{MINIMAL, Overrides, changed, load};

/// The minimal file with more at its end, on line 10.
pub(super) fn with(more: &str) -> String {
    format!("{MINIMAL}{more}\n")
}

/// Every problem on a line of its own, hints after `|`.
pub(super) fn complaints(text: &str) -> String {
    let Err(problems) = load(text, "f", &Overrides::default()) else { return "fine".to_owned() };
    let mut lines = String::new();
    for failure in problems.to_failures() {
        lines += &failure.message;
        for hint in failure.hints {
            write!(lines, " | {hint}").unwrap();
        }
        lines.push('\n');
    }
    lines
}

/// A text, and everything that is said about it, but for the final line end.
type Row = (String, String);

fn rows(table: &[(String, &str)]) -> Vec<Row> {
    table.iter().map(|(text, expected)| (text.clone(), (*expected).to_owned())).collect()
}

#[test]
fn everything_is_said_about_every_wrong_text() {
    let values = [files(), single_values(), slots(), commands()].concat();
    let sections = [replicas(), containers(), weights_and_what_customers_meet(), proxies()];
    let rows = [values, sections.concat()].concat();
    for (text, expected) in &rows {
        assert_eq!(complaints(text).trim_end(), expected, "\n{text}");
    }
    assert!(rows.len() >= 60, "only {} rows", rows.len());
}

const ROOT_KEYS: &str = "service, host, model, model_revision, slots, fetch, replica, ready, drain, retain, nginx, verify, ssh, state_dir";

fn files() -> Vec<Row> {
    rows(&[
        (
            "# nothing".to_owned(),
            "\
f: service: missing, expected 1 to 40 of a-z, 0-9 and inner dashes, like chat or code-assist
f: host: missing, expected local, or a host like deploy@gpu-1.example.com
f: model: missing, expected a model name or path, like Qwen/Qwen2.5-32B-Instruct
f: slots: missing, expected exactly two slots, like a: { port: 8001, gpus: [0] } and b: { port: 8002, gpus: [1] }
f: replica.command: missing, expected a program and its arguments, like vllm serve {model} --port {port}
f: nginx.config: missing, expected an absolute path of letters, digits and _./@+,:=-, like /etc/nginx/conf.d/llm.conf
f: nginx.upstream: missing, expected the name of an upstream block, like llm",
        ),
        (
            "just text".to_owned(),
            &format!("f: got \"just text\", expected a mapping of settings: {ROOT_KEYS}"),
        ),
        (
            "service: chat\n  host: x\n".to_owned(),
            "f:2:7: cannot be read as YAML: mapping values are not allowed in this context, \
             expected settings as in docs/model-swap.yaml",
        ),
        (
            with("service: again"),
            "f:10:1: cannot be read as YAML: duplicate entry with key \"service\", \
             expected settings as in docs/model-swap.yaml",
        ),
        (
            changed("upstream: llm", "upstream: llm, upstream: llm"),
            "f:9:8: cannot be read as YAML: nginx: duplicate entry with key \"upstream\", \
             expected settings as in docs/model-swap.yaml",
        ),
        (
            with("replcia: {}"),
            &format!("f:10:1: replcia: unknown key, expected one of {ROOT_KEYS} | did you mean `replica`?"),
        ),
        (
            with("upstream: llm"),
            &format!("f:10:1: upstream: unknown key, expected one of {ROOT_KEYS} | it belongs under `nginx`"),
        ),
        (with("7: x"), "f:10:1: 7: got 7 as a key, expected a word as a key | put it in quotes"),
        (with("ready: 20m"), "f:10:1: ready: got \"20m\", expected a mapping of settings: timeout"),
        (
            with("drain: { on_timeout: kepp, timout: 5m }"),
            "\
f:10:10: drain.on_timeout: got \"kepp\", expected one of keep, fail, cut | did you mean `keep`?
f:10:28: drain.timout: unknown key, expected one of timeout, on_timeout | did you mean `timeout`?",
        ),
    ])
}

fn single_values() -> Vec<Row> {
    const TIME: &str = "expected a duration from 0s to 30d, like 90s, 20m or 1h30m";
    const MODEL: &str = "expected a model name or path, like Qwen/Qwen2.5-32B-Instruct";
    rows(&[
        (with("retain: 600"), &format!("f:10:1: retain: got 600, {TIME} | write `600s` for seconds")),
        (with("retain: '1.5'"), &format!("f:10:1: retain: got \"1.5\", {TIME} | write `1.5s` for seconds")),
        (with("retain: 31d"), &format!("f:10:1: retain: got \"31d\", {TIME}")),
        (with("retain: [1, x]"), &format!("f:10:1: retain: got [1, \"x\"], {TIME}")),
        (
            with("ready: { timeout: 0s }"),
            "f:10:10: ready.timeout: got \"0s\", expected a duration from 1s to 30d, like 90s, 20m or 1h30m",
        ),
        (
            changed("service: chat", "service: Chat Bot"),
            "f:1:1: service: got \"Chat Bot\", expected 1 to 40 of a-z, 0-9 and inner dashes, like chat or code-assist",
        ),
        (
            changed("service: chat", "service: claims"),
            "f:1:1: service: got \"claims\", expected 1 to 40 of a-z, 0-9 and inner dashes, like chat or code-assist \
             | bin, claims, key are names of the state folder's own; add a word",
        ),
        (
            changed("gpu-1.example.com", "gpu-1:22"),
            "f:2:1: host: got \"deploy@gpu-1:22\", expected local, or a host like deploy@gpu-1.example.com \
             | the port goes in ssh.port",
        ),
        (
            changed("deploy@gpu-1.example.com", ""),
            "f: host: missing, expected local, or a host like deploy@gpu-1.example.com",
        ),
        (changed("Qwen/Qwen2.5-32B-Instruct", "''"), &format!("f:3:1: model: got \"\", {MODEL}")),
        (changed("Qwen/Qwen2.5-32B-Instruct", "--trust"), &format!("f:3:1: model: got \"--trust\", {MODEL}")),
        (changed("Qwen/Qwen2.5-32B-Instruct", "3.14"), &format!("f:3:1: model: got 3.14, {MODEL} | put it in quotes")),
        (
            with("model_revision: !x y"),
            "f:10:1: model_revision: got a value tagged !x, expected a commit of the weights, \
             like 5ede1c97bbab6ce5cda5812749b4c0bdf79b18dd",
        ),
        (
            with("ssh: { port: 0, jump: '-oProxyCommand=x' }"),
            "\
f:10:8: ssh.port: got 0, expected a port from 1 to 65535, like 8002
f:10:17: ssh.jump: got \"-oProxyCommand=x\", expected a host to jump through, like ops@bastion.example.com:2222, \
             several with commas | a name has letters, digits, dots, dashes and underscores only",
        ),
        (
            with("state_dir: ~/state"),
            "f:10:1: state_dir: got \"~/state\", expected an absolute path of letters, digits and _./@+,:=-, \
             like /etc/nginx/conf.d/llm.conf",
        ),
    ])
}

fn slots() -> Vec<Row> {
    const TWO: &str = "expected exactly two slots, like a: { port: 8001, gpus: [0] } and b: { port: 8002, gpus: [1] }";
    const PORT: &str = "expected a port from 1 to 65535, like 8002";
    rows(&[
        (changed("8002", "99999"), &format!("f:6:8: slots.b.port: got 99999, {PORT}")),
        (
            changed("8002", "'8002'"),
            &format!("f:6:8: slots.b.port: got \"8002\", {PORT} | write the number without quotes"),
        ),
        (
            changed("8002", "8001"),
            "f:6:8: slots.b.port: got 8001, expected a port of its own: slot a has this one",
        ),
        (
            changed("[1]", "[0]"),
            "f:6:27: slots.b.gpus[0]: got 0, expected a GPU of its own: slot a has this one, \
             and both replicas run side by side | a swap on a shared GPU is not part of this version",
        ),
        (changed("[1]", "[1, 1]"), "f:6:30: slots.b.gpus[1]: got 1, expected each GPU once"),
        (
            changed("[1]", "[1]")
                .replace("[0]", "[GPU-8932f937-d72c]")
                .replace("[1]", "[GPU-8932f937]"),
            "f:6:27: slots.b.gpus[0]: got \"GPU-8932f937\", expected a GPU of its own: slot a has this one, \
             and both replicas run side by side | a swap on a shared GPU is not part of this version",
        ),
        (
            changed("[1]", "[GPU-8932f937]"),
            "f:6:27: slots.b.gpus[0]: got \"GPU-8932f937\", expected either indices or UUIDs throughout",
        ),
        (
            changed("[1]", "[one]"),
            "f:6:27: slots.b.gpus[0]: got \"one\", expected a GPU's index like 0, \
             or its UUID like GPU-8932f937-d72c-4106-c12f-20bd9faed9f6 (see nvidia-smi -L)",
        ),
        (
            changed("[1]", "1"),
            "f:6:20: slots.b.gpus: got 1, expected a list of GPUs like [0], or [] for none",
        ),
        (
            changed(", gpus: [1]", ""),
            "f:6:3: slots.b.gpus: missing, expected a list of GPUs like [0], or [] for none",
        ),
        (
            changed("  b: {", "  B_: {"),
            "f:4:1: slots: got \"B_\" as a slot's name, expected 1 to 20 of a-z, 0-9 and inner dashes, like a or b",
        ),
        (
            changed("  b: {", "  c: { port: 8003, gpus: [2] }\n  b: {"),
            &format!("f:4:1: slots: got 3 slots, {TWO}"),
        ),
        (
            changed("  b: { port: 8002, gpus: [1] }\n", ""),
            &format!("f:4:1: slots: got one slot, {TWO}"),
        ),
    ])
}

fn commands() -> Vec<Row> {
    const SHELL: &str = "expected plain words, because no shell reads them | put";
    const QUOTE: &str =
        "single quotes around what is meant as it stands, and what needs a shell into a script";
    let command = |text: &str| {
        changed("vllm serve {model} --host 127.0.0.1 --port {port} --served-model-name chat", text)
    };
    rows(&[
        (
            command("vllm serve {modle} --port {port}"),
            "f:8:3: replica.command: got {modle}, expected one of {model}, {port}, {gpus}, {revision} | did you mean `{model}`?",
        ),
        (
            command("vllm serve {model}"),
            "f:8:3: replica.command: got \"vllm serve {model}\", expected a command with {port}, \
             because each slot has its own | add --port {port}, or whatever the engine calls it",
        ),
        (
            command("A=0 vllm serve {model} --port {port}"),
            "f:8:3: replica.command: got \"A=0\" first, expected a program first, because no shell sets variables \
             | put A under replica.env",
        ),
        (
            command("cd /srv && vllm --port {port} > $LOG"),
            &format!("f:8:3: replica.command: got && > $LOG, {SHELL} {QUOTE}"),
        ),
        (
            command("vllm --port {port} --config {\"method\":\"x\"}"),
            &format!("f:8:3: replica.command: got {{\", {SHELL} {QUOTE}"),
        ),
        (
            command("[vllm, '{port}', '|', tee]"),
            &format!("f:8:3: replica.command: got |, {SHELL} what needs a shell into a script"),
        ),
        (
            command("vllm {port} 'y"),
            "f:8:3: replica.command: got \"vllm {port} 'y\", expected quotes that close",
        ),
        (
            command("[sh, {port: 1}, 8001]"),
            "\
f:8:17: replica.command[1]: got a mapping, expected a word in quotes, like \"--port\"
f:8:28: replica.command[2]: got 8001, expected a word in quotes, like \"--port\" | put it in quotes",
        ),
        (
            command("[vllm, serve, {model}, --port, {port}]"),
            "\
f:8:26: replica.command[2]: got a mapping, expected a word in quotes, like \"--port\" | put it in quotes: \"{model}\"
f:8:43: replica.command[4]: got a mapping, expected a word in quotes, like \"--port\" | put it in quotes: \"{port}\"",
        ),
        (
            command("[]"),
            "f:8:3: replica.command: got [], expected a program and its arguments, \
             like vllm serve {model} --port {port}",
        ),
        (command("'vllm {port} --x ''{\"a\": {\"b\": 1}}'''"), "fine"),
    ])
}

fn replicas() -> Vec<Row> {
    let replica = |more: &str| changed("replica:\n", &format!("replica:\n{more}\n"));
    rows(&[
        (
            replica("  engine: sglang\n  runtime: podman\n  user: a b"),
            "\
f:8:3: replica.engine: got \"sglang\", expected one of vllm
f:9:3: replica.runtime: got \"podman\", expected one of auto, systemd, process, docker
f:10:3: replica.user: got \"a b\", expected a user name of the server, like llm",
        ),
        (
            replica("  env: { 2X: a, CUDA_VISIBLE_DEVICES: '0', A: 1, MODEL_SWAP_REPLICA: x, B: null }"),
            "\
f:8:3: replica.env: got \"2X\" as a name, expected the name of an environment variable, like HF_TOKEN
f:8:3: replica.env: got CUDA_VISIBLE_DEVICES, expected another variable: the slots' gpus set it
f:8:44: replica.env.A: got 1, expected a text, in quotes if it looks like a number, like \"1\" | put it in quotes
f:8:3: replica.env: got MODEL_SWAP_REPLICA, expected another variable: it marks the replicas that model-swap starts
f:8:3: replica.env.B: missing, expected a text, in quotes if it looks like a number, like \"1\"",
        ),
        (
            replica("  env: { A: a }\n  secret_env: [A, C, C, a-b]"),
            "\
f:9:16: replica.secret_env[0]: got \"A\", expected a name that is not in replica.env too
f:9:22: replica.secret_env[2]: got \"C\", expected each name once
f:9:25: replica.secret_env[3]: got \"a-b\", expected the name of an environment variable, like HF_TOKEN",
        ),
    ])
}

fn containers() -> Vec<Row> {
    const IMAGE: &str = "expected an image like vllm/vllm-openai:v0.33.0, or one by its digest";
    const OPTIONS: &str = "expected a list of options of docker run, like [--ipc=host, --volume=/srv/hf:/root/.cache/huggingface]";
    const LONG: &str = "write its long name, and its value into the same word: --ipc=host";
    let replica = |more: &str| changed("replica:\n", &format!("replica:\n{more}\n"));
    rows(&[
        (replica("  runtime: docker"), &format!("f:7:1: replica.image: missing, {IMAGE}")),
        (
            replica("  runtime: docker\n  image: '-v x'"),
            &format!("f:9:3: replica.image: got \"-v x\", {IMAGE}"),
        ),
        (
            replica("  image: vllm:1\n  docker_options: [--ipc=host]"),
            "\
f:8:3: replica.image: got \"vllm:1\", expected no image where there is no container | add `runtime: docker`
f:9:3: replica.docker_options: got [\"--ipc=host\"], expected none where there is no container | add `runtime: docker`",
        ),
        (
            replica("  runtime: docker\n  image: vllm:1\n  docker_options: [-v, --gpus=all, --env=A=1, --rm]"),
            &format!(
                "\
f:10:3: replica.docker_options: got \"-v\", {OPTIONS} | {LONG}
f:10:3: replica.docker_options: got --gpus, expected other options: the slot's gpus are given to it
f:10:3: replica.docker_options: got --env, expected other options: use replica.env and replica.secret_env
f:10:3: replica.docker_options: got --rm, expected other options: it is removed once its output is kept"
            ),
        ),
        (
            replica("  runtime: docker\n  image: vllm:1\n  docker_options: --ipc=host"),
            &format!("f:10:3: replica.docker_options: got \"--ipc=host\", {OPTIONS}"),
        ),
    ])
}

fn weights_and_what_customers_meet() -> Vec<Row> {
    const URL: &str = "expected an http:// or https:// URL as customers call it, like https://llm.example.com/v1/models";
    rows(&[
        (
            with("fetch: { timeout: 1h }"),
            "f:10:1: fetch.command: missing, expected a program and its arguments, like hf download {model} --revision {revision}",
        ),
        (
            with("fetch: { command: 'hf download {modell}', size: 70, folder: hub }"),
            "\
f:10:10: fetch.command: got {modell}, expected one of {model}, {revision} | did you mean `{model}`?
f:10:53: fetch.folder: got \"hub\", expected an absolute path of letters, digits and _./@+,:=-, like /etc/nginx/conf.d/llm.conf
f:10:43: fetch.size: got 70, expected a size in MB, GB or TB, like 70GB | write `70GB` for gigabytes",
        ),
        (with("verify: { expect_model: chat }"), &format!("f:10:1: verify.url: missing, {URL}")),
        (
            with("verify: { url: 'https://bücher.example/v1/models' }"),
            &format!(
                "f:10:11: verify.url: got \"https://bücher.example/v1/models\", {URL} | write the host name in ASCII, as the DNS has it: xn--bcher-kva.example, and of a path each other byte as %XX"
            ),
        ),
        (
            with("verify: { url: 'https://ann:key@llm.example.com/', within: 0s }"),
            &format!(
                "\
f:10:52: verify.within: got \"0s\", expected a duration from 1s to 30d, like 90s, 20m or 1h30m
f:10:11: verify.url: got \"https://ann:***@llm.example.com/\", {URL} | name the variable that holds the key as verify.api_key_env"
            ),
        ),
    ])
}

fn proxies() -> Vec<Row> {
    const PATH: &str = "expected an absolute path of letters, digits and _./@+,:=-, like /etc/nginx/conf.d/llm.conf";
    const WORDS: &str = "expected a list of words, like [nginx] or [docker, exec, edge, nginx]";
    const URL: &str =
        "expected an http:// URL that leads through nginx, like http://127.0.0.1:80/v1/models";
    let nginx = |more: &str| changed("upstream: llm", &format!("upstream: llm, {more}"));
    rows(&[
        (changed("/etc/nginx/conf.d", "conf.d"), &format!("f:9:10: nginx.config: got \"conf.d/llm.conf\", {PATH}")),
        (changed("/etc/nginx/conf.d", "/a b"), &format!("f:9:10: nginx.config: got \"/a b/llm.conf\", {PATH}")),
        (
            changed("upstream: llm", "upstream: 'l l'"),
            "f:9:46: nginx.upstream: got \"l l\", expected the name of an upstream block, like llm",
        ),
        (nginx("command: nginx"), &format!("f:9:61: nginx.command: got \"nginx\", {WORDS}")),
        (nginx("command: []"), &format!("f:9:61: nginx.command: got [], {WORDS}")),
        (
            nginx("probe: { url: 'https://llm/v1/models' }"),
            &format!(
                "f:9:70: nginx.probe.url: got \"https://llm/v1/models\", {URL} \
                 | nginx is asked without TLS: give a plain http listener on the loopback"
            ),
        ),
        (nginx("probe: { url: /v1/models }"), &format!("f:9:70: nginx.probe.url: got \"/v1/models\", {URL}")),
        (
            nginx("probe: { url: 'http://127.0.0.1:8002/', host: 'a b', api_key_env: a-b }"),
            "\
f:9:70: nginx.probe.url: got \"http://127.0.0.1:8002/\", \
             expected the port on which nginx listens: this one leads past it to slot b
f:9:101: nginx.probe.host: got \"a b\", expected a host name, like llm.example.com
f:9:114: nginx.probe.api_key_env: got \"a-b\", expected the name of an environment variable, like HF_TOKEN",
        ),
        (
            nginx("pinned_workers: { ignore_after: 10 }"),
            "f:9:79: nginx.pinned_workers.ignore_after: got 10, expected a duration from 1s to 30d, \
             like 90s, 20m or 1h30m | write `10s` for seconds",
        ),
        (
            nginx("pinned_workers: never"),
            "f:9:61: nginx.pinned_workers: got \"never\", expected wait, or a bound like ignore_after: 10m",
        ),
    ])
}
