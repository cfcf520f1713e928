//! Wrong configurations and inputs: refused with exit code 2, all problems at once, and nobody is connected to.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};

use anyhow::Result;

use crate::step::{Step, until};
use crate::support::{Action, Run, binary};

/// A port in the place of sshd's, on which nobody may knock.
struct Door(TcpListener);

impl Door {
    fn closed() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        Ok(Self(listener))
    }

    /// Whether nobody has connected: the kernel keeps who did until they are let in.
    fn is_untouched(&self) -> bool {
        matches!(self.0.accept(), Err(error) if error.kind() == ErrorKind::WouldBlock)
    }

    /// A good configuration whose server is behind this door.
    fn config(&self) -> Result<String> {
        Ok(format!(
            "service: chat
host: deploy@127.0.0.1
model: Qwen/New
slots:
  a: {{ port: 8001, gpus: [0] }}
  b: {{ port: 8002, gpus: [1] }}
replica:
  command: vllm serve {{model}} --host 127.0.0.1 --port {{port}} --served-model-name chat
nginx: {{ config: /etc/nginx/conf.d/llm.conf, upstream: llm }}
ssh: {{ port: {} }}
",
            self.0.local_addr()?.port()
        ))
    }

    /// Asserts that the run was refused as bad input, in these words, before anybody was connected to.
    fn assert_refused(&self, run: Run, texts: &[&str]) {
        assert!(self.is_untouched(), "somebody was connected to\n{run}");
        let summary = &run.summary;
        assert!(summary.starts_with("## Nothing was done"), "{run}");
        for text in texts {
            assert!(summary.contains(text), "no {text:?} in the summary of\n{run}");
        }
        let run = run.refused(2, texts);
        assert!(run.outputs.is_empty() && run.stderr.is_empty(), "{run}");
    }
}

async fn swap_with(config: &str, inputs: &[(&str, &str)]) -> Result<Run> {
    Step::run(Action::new(&binary(), config)?.with_inputs(inputs)).await
}

#[tokio::test]
async fn a_wrong_setting_is_named_with_its_place_its_value_what_is_accepted_and_how_to_mend_it()
-> Result<()> {
    let rows: [(&str, &str, &[&str]); 16] = [
        ("model: Qwen/New\n", "", &["model: missing", "expected a model name or path"]),
        (
            "gpus: [0]",
            "gpu: [0]",
            &["model-swap.yaml:5", "slots.a.gpu: unknown key", "did you mean `gpus`?"],
        ),
        (
            "port: 8002",
            "port: 80002",
            &["model-swap.yaml:6", "slots.b.port: got 80002", "a port from 1 to 65535, like 8002"],
        ),
        ("port: 8002", "port: 8001", &["slots.b.port: got 8001", "slot a has this one"]),
        (
            "gpus: [1]",
            "gpus: [0]",
            &["slots.b.gpus[0]: got 0", "expected a GPU of its own: slot a has this one"],
        ),
        (
            "  b: { port: 8002, gpus: [1] }\n",
            "",
            &["model-swap.yaml:4", "slots: got one slot", "exactly two slots"],
        ),
        (
            "{port}",
            "8001",
            &["model-swap.yaml:8", "replica.command", "a command with {port}", "add --port {port}"],
        ),
        ("{model}", "{modle}", &["replica.command: got {modle}", "did you mean `{model}`?"]),
        (
            "vllm serve",
            "CUDA_LAUNCH_BLOCKING=1 vllm serve",
            &[
                "replica.command: got \"CUDA_LAUNCH_BLOCKING=1\" first",
                "put CUDA_LAUNCH_BLOCKING under replica.env",
            ],
        ),
        (
            "--served-model-name chat",
            "--served-model-name chat > /var/log/vllm.log 2>&1",
            &[
                "replica.command: got",
                "because no shell reads them",
                "and what needs a shell into a script",
            ],
        ),
        (
            "/etc/nginx/conf.d/llm.conf",
            "conf.d/llm.conf",
            &["model-swap.yaml:9", "nginx.config: got \"conf.d/llm.conf\"", "an absolute path"],
        ),
        (
            "upstream: llm",
            "upstream: http://llm",
            &["nginx.upstream: got \"http://llm\"", "name of an upstream block"],
        ),
        (
            "ssh:",
            "drain: { timeout: 600 }\nssh:",
            &["model-swap.yaml:10", "drain.timeout: got 600", "write `600s` for seconds"],
        ),
        (
            "ssh:",
            "drain: { on_timeout: kill }\nssh:",
            &["drain.on_timeout: got \"kill\"", "expected one of keep, fail, cut"],
        ),
        (
            "deploy@127.0.0.1",
            "deploy@127.0.0.1:2222",
            &[
                "model-swap.yaml:2",
                "host: got \"deploy@127.0.0.1:2222\"",
                "the port goes in ssh.port",
            ],
        ),
        ("model: Qwen", "\tmodel: Qwen", &["model-swap.yaml:", "cannot be read as YAML"]),
    ];
    let door = Door::closed()?;
    let good = door.config()?;
    for (from, to, texts) in rows {
        assert_eq!(good.matches(from).count(), 1, "{from:?} is not there once");
        let run = swap_with(&good.replacen(from, to, 1), &[]).await?;
        // What is missing from the top of the file has no place in it.
        let is_placed = from == "model: Qwen/New\n" || has_place(&run.stdout);
        assert!(is_placed, "no line and column\n{run}");
        if from == "gpus: [0]" {
            let at = "::error title=model-swap,file=model-swap.yaml,line=5,col=";
            assert!(run.stdout.contains(at), "no annotation at the line\n{run}");
        }
        door.assert_refused(run, texts);
    }
    // The same file without a mistake leads to the door, with a key and a known host.
    let texts = ["the input ssh-key is empty", "secrets.GPU_SSH_KEY", "from a fork"];
    door.assert_refused(swap_with(&good, &[]).await?, &texts);
    let (key, public) = crate::ssh::new_key("")?;
    let texts = ["the input known-hosts is empty", "vars.GPU_KNOWN_HOSTS"];
    door.assert_refused(swap_with(&good, &[("ssh-key", &key)]).await?, &texts);
    let pin = format!("127.0.0.1 {public}");
    let access = [("ssh-key", key.as_str()), ("known-hosts", pin.as_str())];
    let step = Step::start(Action::new(&binary(), &good)?.with_inputs(&access))?;
    until("somebody connects", || Ok((!door.is_untouched()).then_some(()))).await?;
    step.kill()
}

/// Whether `model-swap.yaml:LINE:COLUMN: ` is said.
fn has_place(said: &str) -> bool {
    said.match_indices("model-swap.yaml:").any(|(at, name)| {
        let mut parts = said[at + name.len()..].splitn(3, ':');
        let is_number = |part: Option<&str>| {
            part.is_some_and(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
        };
        is_number(parts.next()) && is_number(parts.next())
    })
}

#[tokio::test]
async fn every_problem_of_a_configuration_is_said_at_once() -> Result<()> {
    let door = Door::closed()?;
    let config = door
        .config()?
        .replace("service: chat", "service: Chat")
        .replace("gpus: [1]", "gpus: [x]")
        .replace("port: 8002", "port: '8002'")
        .replace("--port {port}", "")
        .replace("upstream: llm", "upstram: llm")
        .replace("ssh:", "retain: 600\nsecret: x\nssh:");
    let run = swap_with(&config, &[]).await?;
    let texts = [
        "service: got \"Chat\"",
        "slots.b.gpus[0]: got \"x\"",
        "write the number without quotes",
        "replica.command: got",
        "nginx.upstream: missing",
        "nginx.upstram: unknown key",
        "retain: got 600",
        "secret: unknown key",
    ];
    assert_eq!(run.stdout.matches("::error title=model-swap").count(), texts.len(), "{run}");
    door.assert_refused(run, &texts);
    Ok(())
}

#[tokio::test]
async fn a_configuration_that_is_not_there_is_named_with_the_way_to_bring_it() -> Result<()> {
    let door = Door::closed()?;
    let run = swap_with(&door.config()?, &[("config", "deploy/swap.yaml")]).await?;
    door.assert_refused(
        run,
        &["deploy/swap.yaml", "No such file or directory", "actions/checkout", "input config"],
    );
    Ok(())
}

#[tokio::test]
async fn wrong_inputs_are_all_said_at_once() -> Result<()> {
    let door = Door::closed()?;
    let inputs = [
        ("command", "swpa"),
        ("known-host", "x"),
        ("wait", "forever"),
        ("force", "yes"),
        ("service", "Chat Bot"),
    ];
    let run = swap_with(&door.config()?, &inputs).await?;
    let texts = [
        "input command is \"swpa\": accepted are init, plan, swap, rollback, abort, fail, repair, status, logs, history and doctor",
        "did you mean `swap`?",
        "input known-host",
        "did you mean `known-hosts`?",
        "input wait is \"forever\": accepted are promoted and retired",
        "input force is \"yes\"",
        "input service is \"Chat Bot\"",
    ];
    assert_eq!(run.stdout.matches("::error title=model-swap").count(), inputs.len(), "{run}");
    door.assert_refused(run, &texts);
    Ok(())
}

#[tokio::test]
async fn a_swap_id_with_a_command_that_does_not_take_it_is_refused() -> Result<()> {
    let door = Door::closed()?;
    let run = swap_with(&door.config()?, &[("swap-id", "s-1")]).await?;
    door.assert_refused(
        run,
        &["input swap-id is \"s-1\": it belongs to rollback, abort and fail alone"],
    );
    Ok(())
}

#[tokio::test]
async fn wrong_inputs_are_said_at_once_with_what_is_wrong_with_the_configuration() -> Result<()> {
    let door = Door::closed()?;
    let stray = "input swap-id is \"s-1\": it belongs to rollback, abort and fail alone";
    let config = door.config()?.replace("port: 8002", "port: 80002");
    let run = swap_with(&config, &[("swap-id", "s-1")]).await?;
    door.assert_refused(run, &[stray, "slots.b.port: got 80002"]);
    let absent = [("swap-id", "s-1"), ("config", "none.yaml")];
    let run = swap_with(&door.config()?, &absent).await?;
    door.assert_refused(run, &[stray, "cannot read the configuration", "none.yaml"]);
    // `init` has none yet.
    let run = swap_with("", &[("command", "init"), ("swap-id", "s-1")]).await?;
    assert_eq!(run.stdout.matches("::error title=model-swap").count(), 1, "{run}");
    door.assert_refused(run, &[stray]);
    Ok(())
}

#[tokio::test]
async fn a_secret_without_a_value_is_named_with_the_line_to_add() -> Result<()> {
    let door = Door::closed()?;
    let config =
        door.config()?.replace("replica:\n", "replica:\n  secret_env: [HF_TOKEN, A_KEY]\n");
    // An empty one is what GitHub makes of a secret that does not exist.
    let run = Step::run(Action::new(&binary(), &config)?.with(&[("HF_TOKEN", "")])).await?;
    door.assert_refused(
        run,
        &[
            "the step's environment",
            "HF_TOKEN: missing",
            "add `HF_TOKEN: ${{ secrets.HF_TOKEN }}` under `env:` of the step",
            "A_KEY: missing",
            "the input ssh-key is empty",
        ],
    );
    Ok(())
}

#[tokio::test]
async fn inputs_override_the_file_and_are_held_to_the_same_forms() -> Result<()> {
    let door = Door::closed()?;
    let inputs = [("model", "--trust-remote-code"), ("host", "-oProxyCommand=id")];
    let run = swap_with(&door.config()?, &inputs).await?;
    door.assert_refused(
        run,
        &["model: got \"--trust-remote-code\"", "host: got \"-oProxyCommand=id\""],
    );
    Ok(())
}
