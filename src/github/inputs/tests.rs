use super::*;
use crate::model::failure::Hint;

fn read(pairs: &[(&str, &str)]) -> Result<Inputs, Unfit<InputProblem>> {
    let env = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Inputs::from_env(&env)
}

fn problems(pairs: &[(&str, &str)]) -> Vec<(String, Vec<String>)> {
    let found = read(pairs).unwrap_err().problems;
    found.iter().map(|problem| (problem.to_string(), problem.hints())).collect()
}

#[test]
fn nothing_given_is_a_swap_by_the_file() {
    let nothing = read(&[("INPUT_MODEL", ""), ("INPUT_SSH-KEY", " \n"), ("PATH", "/bin")]).unwrap();
    assert_eq!(
        nothing,
        Inputs {
            command: CommandName::Swap,
            config: "model-swap.yaml".into(),
            service: None,
            model: None,
            host: None,
            ssh_key: None,
            known_hosts: None,
            ssh_options: Vec::new(),
            environment: None,
            swap_id: None,
            to: None,
            rollback: false,
            rollback_workflow: None,
            reconcile: false,
            report: None,
            plan_digest: None,
            wait: Wait::Promoted,
            lock_wait: std::time::Duration::ZERO,
            when: When::Changed,
            kept: KeptWarm::Refuse,
            untold: Untold::default(),
            github_token: None,
        }
    );
    assert_eq!(nothing.environment_for(&"chat".parse().unwrap()), "chat");
}

#[test]
fn everything_given_is_read() {
    let inputs = read(&[
        ("INPUT_COMMAND", "rollback"),
        ("INPUT_CONFIG", "deploy/chat.yaml\n"),
        ("INPUT_SERVICE", "chat"),
        ("INPUT_MODEL", "Qwen/X"),
        ("INPUT_HOST", "deploy@gpu-1"),
        ("INPUT_SSH-KEY", "-----BEGIN\nx\n"),
        ("INPUT_KNOWN-HOSTS", "gpu-1 ssh-ed25519 AAAA\n"),
        ("INPUT_ENVIRONMENT", "production"),
        ("INPUT_SWAP-ID", "s-1"),
        ("INPUT_TO", "r-4f1c"),
        ("INPUT_WAIT", "retired"),
        ("INPUT_FORCE", "true"),
        ("INPUT_GITHUB-TOKEN", "ghs_secret"),
        ("INPUT_ARGS", "x"),
    ])
    .unwrap();
    assert_eq!(inputs.command, CommandName::Rollback);
    assert_eq!(inputs.config, PathBuf::from("deploy/chat.yaml"));
    assert_eq!((inputs.wait, inputs.when), (Wait::Retired, When::Always));
    assert_eq!(inputs.ssh_key.as_ref().map(Secret::expose), Some("-----BEGIN\nx\n"));
    assert_eq!(inputs.swap_id.as_ref().map(SwapId::as_str), Some("s-1"));
    assert_eq!(inputs.to.as_deref(), Some("r-4f1c"));
    assert_eq!(inputs.environment_for(&"chat".parse().unwrap()), "production");
    let debug = format!("{inputs:?}");
    assert!(!debug.contains("ghs_secret") && !debug.contains("BEGIN"), "{debug}");
}

#[test]
fn all_problems_come_at_once() {
    let expected = [
        (
            "input known_hosts: there is no such input; there are command, config, service, model, host, \
             ssh-key, known-hosts, environment, swap-id, plan-digest, to, rollback, rollback-workflow, reconcile, report, wait, lock-wait, force and github-token",
            Some("did you mean `known-hosts`?"),
        ),
        (
            "input command is \"Rolback\": accepted are init, plan, swap, rollback, abort, fail, repair, status, logs, history and doctor",
            Some("did you mean `rollback`?"),
        ),
        (
            "input service is \"Chat GPT\": accepted is 1 to 40 of a-z, 0-9 and inner dashes, like chat or \
             code-assist",
            None,
        ),
        ("input wait is \"drained\": accepted are promoted and retired", None),
        ("input lock-wait is \"15\": accepted is a duration with its unit, like 90s or 15m", None),
        ("input force is \"yes\": accepted are false and true", None),
        ("input github-token: it holds a blank or a character that no token has", None),
    ];
    let found = problems(&[
        ("INPUT_KNOWN_HOSTS", "x"),
        ("INPUT_COMMAND", "Rolback"),
        ("INPUT_SERVICE", "Chat GPT"),
        ("INPUT_WAIT", "drained"),
        ("INPUT_LOCK-WAIT", "15"),
        ("INPUT_FORCE", "yes"),
        ("INPUT_GITHUB-TOKEN", "ghs_a\nb"),
    ]);
    for ((text, hint), (found_text, found_hints)) in expected.iter().zip(&found) {
        assert_eq!(found_text, text);
        assert_eq!(found_hints.first().map(String::as_str), *hint, "{text}");
    }
    assert_eq!(found.len(), expected.len());
}

/// The configuration is looked at with what can be read.
#[test]
fn what_is_fit_is_read_beside_what_is_not() {
    let given = [("INPUT_SWAP-ID", "../x"), ("INPUT_CONFIG", "a.yaml"), ("INPUT_MODEL", "Qwen/X")];
    let Unfit { problems, read } = read(&given).unwrap_err();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!((read.config, read.swap_id), (PathBuf::from("a.yaml"), None));
    assert_eq!(read.model.as_deref(), Some("Qwen/X"));
}

#[test]
fn a_swap_is_named_by_its_id_or_by_the_link_of_a_status() {
    let run = "https://github.example.com/acme/llm/actions/runs/77/attempts/1";
    let read = |value: &str| {
        let of = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        let env = [("INPUT_COMMAND", "rollback"), ("INPUT_SWAP-ID", value)].map(of);
        Inputs::from_env(&env.into()).map(|inputs| inputs.swap_id.map(|id| id.to_string()))
    };
    let named = Ok(Some("s-20261123-091500-4f1c".to_owned()));
    assert_eq!(read("s-20261123-091500-4f1c"), named);
    assert_eq!(read(&format!("{run}#s-20261123-091500-4f1c")), named);
    // No rollback of whatever serves comes of a link that names nothing.
    for other in
        [run.to_owned(), format!("{run}#step"), format!("{run}#s-1 s-2"), "#s-1".to_owned()]
    {
        assert!(read(&other).is_err(), "{other}");
    }
}

#[test]
fn what_belongs_to_one_command_is_refused_beside_another() {
    let alone = |pairs: &[(&str, &str)]| problems(pairs)[0].0.clone();
    assert_eq!(
        alone(&[("INPUT_SWAP-ID", "s-1")]),
        "input swap-id is \"s-1\": it belongs to rollback, abort and fail alone, and the command is swap"
    );
    for (name, value) in
        [("ROLLBACK", "true"), ("ROLLBACK-WORKFLOW", "x.yml"), ("RECONCILE", "true")]
    {
        let found = alone(&[(&format!("INPUT_{name}"), value), ("INPUT_COMMAND", "rollback")]);
        assert!(found.contains("alone, and the command is rollback"), "{found}");
    }
}

#[test]
fn a_failure_names_its_swap_and_what_follows_from_it() {
    let swap = ("INPUT_SWAP-ID", "s-1");
    let fail = ("INPUT_COMMAND", "fail");
    let workflow = "INPUT_ROLLBACK-WORKFLOW";
    let inputs =
        read(&[fail, swap, ("INPUT_ROLLBACK", "true"), (workflow, "on-failure.yml")]).unwrap();
    assert!(inputs.rollback && inputs.rollback_workflow.as_deref() == Some("on-failure.yml"));
    assert!(read(&[fail, swap, (workflow, "12345")]).is_ok());
    assert!(problems(&[fail])[0].0.contains("the command fail needs it"));
    for wrong in [".github/workflows/x.yml", "x", "../x.yml", ".yml", "x y.yml", "x.yml?ref=y"] {
        let found = problems(&[fail, swap, (workflow, wrong)]);
        assert!(found[0].0.contains("without the folder"), "{wrong}: {found:?}");
    }
}

#[test]
fn a_plan_digest_belongs_to_a_swap_and_has_a_form() {
    let digest = ("INPUT_PLAN-DIGEST", "p-4f1c02a9b3d7");
    let inputs = read(&[digest]).unwrap();
    assert_eq!(inputs.plan_digest.map(|held| held.to_string()).as_deref(), Some("p-4f1c02a9b3d7"));
    let from_pr = read(&[("INPUT_PLAN-DIGEST", "from-pr")]).unwrap();
    assert_eq!(from_pr.plan_digest, Some(Held::ToPullRequest));
    assert!(read(&[("INPUT_PLAN-DIGEST", "unchanged")]).is_ok(), "a plan to do nothing");
    let found = problems(&[digest, ("INPUT_COMMAND", "plan")]);
    assert_eq!(
        found[0].0,
        "input plan-digest is \"p-4f1c02a9b3d7\": it belongs to swap alone, and the command is plan"
    );
    for wrong in ["p-4f1c", "r-4f1c02a9b3d7", "p-4F1C02A9B3D7", "latest", "o-4f1c02a9b3d7; x"] {
        let found = problems(&[("INPUT_PLAN-DIGEST", wrong)]);
        assert!(found[0].0.contains("what `plan` gave as its output plan-digest"), "{found:?}");
    }
}

/// `action.yml` as GitHub reads it.
#[derive(serde::Deserialize)]
struct Action {
    inputs: BTreeMap<String, Entry>,
    outputs: BTreeMap<String, Entry>,
    runs: BTreeMap<String, String>,
}

#[derive(serde::Deserialize)]
struct Entry {
    description: String,
    default: Option<String>,
}

#[test]
fn the_action_declares_what_the_code_reads_and_writes() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/action.yml")).unwrap();
    let action: Action = serde_yaml::from_str(&text).unwrap();
    let declared: BTreeMap<&str, Option<&str>> = action
        .inputs
        .iter()
        .map(|(name, entry)| (name.as_str(), entry.default.as_deref()))
        .collect();
    let known: BTreeMap<&str, Option<&str>> =
        INPUTS.iter().map(|input| (input.name, input.default)).collect();
    assert_eq!(declared, known);
    let outputs: Vec<&str> = action.outputs.keys().map(String::as_str).collect();
    let mut written = super::super::output::OUTPUTS.to_vec();
    written.sort_unstable();
    assert_eq!(outputs, written);
    for (name, entry) in action.inputs.iter().chain(&action.outputs) {
        assert!(entry.description.len() > 10, "{name} has no description");
    }
    assert_eq!(action.runs["using"], "docker");
}

#[test]
fn the_declared_defaults_are_the_parsers() {
    let declared: Vec<(String, String)> = INPUTS
        .iter()
        .filter(|input| input.name != "github-token")
        .filter_map(|input| {
            Some((format!("INPUT_{}", input.name.to_uppercase()), input.default?.to_owned()))
        })
        .collect();
    assert_eq!(Inputs::from_env(&declared.into_iter().collect()), read(&[]));
}
