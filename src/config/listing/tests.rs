use std::time::Duration;

use super::*;
use crate::model::state::Requester;
use crate::model::wire::{
    AbortRequest, Asked, ConfirmRequest, KeptWarm, UninstallRequest, Unknown, Wait, Wish,
};

const TEXT: &str = r#"
models: [ "Qwen/*" ]
commands: [ "vllm serve {model} --host 127.0.0.1 --port {port} *" ]
env: [ "HF_*" ]
slots:
  a: { port: 8001, gpus: [0] }
  b: { port: 8002, gpus: [1] }
nginx: { config: /etc/nginx/conf.d/llm.conf, upstream: llm }
"#;

/// The least configuration of this listing's service, with some text replaced.
fn asked(from: &str, to: &str) -> Asked {
    let text = "
service: chat
host: local
model: Qwen/Qwen2.5-32B-Instruct
slots:
  a: { port: 8001, gpus: [0] }
  b: { port: 8002, gpus: [1] }
replica:
  command: vllm serve {model} --host 127.0.0.1 --port {port} --served-model-name chat
  env: { HF_HOME: /data }
nginx: { config: /etc/nginx/conf.d/llm.conf, upstream: llm }
";
    let changed = text.replace(from, to);
    assert!(from.is_empty() || changed != text, "nothing replaced");
    let spec = crate::config::load(&changed, "x", &Default::default()).unwrap().spec;
    Asked { spec, secrets: Secrets::default() }
}

fn objections(from: &str, to: &str) -> Vec<String> {
    let listing = Listing::load(TEXT, "chat.yaml").unwrap();
    let asked = asked(from, to);
    listing.objections(&Command::Status(asked)).into_iter().map(|f| f.message).collect()
}

#[test]
fn what_root_has_foreseen_passes() {
    assert_eq!(objections("", ""), [""; 0]);
    assert_eq!(objections("Qwen2.5-32B-Instruct", "Qwen3"), [""; 0]);
    assert_eq!(objections("HF_HOME", "HF_HUB_CACHE"), [""; 0]);
}

/// What moved from one user to another has ways back that need the first.
#[test]
fn one_of_several_users_may_be_asked_for_and_none_where_that_is_listed() {
    let objections = |listed: &str, user: &str| -> Vec<String> {
        let listing = Listing::load(&format!("{TEXT}user: {listed}\n"), "chat.yaml").unwrap();
        let asked = asked("  env:", &format!("  user: {user}\n  env:"));
        listing.objections(&Command::Status(asked)).into_iter().map(|f| f.message).collect()
    };
    for (listed, user) in
        [("vllm", "vllm"), ("[vllm, llm]", "llm"), ("[llm, null]", "null"), ("null", "null")]
    {
        assert_eq!(objections(listed, user), [""; 0], "{listed} {user}");
    }
    let none =
        "replica.user is unset, not vllm or llm: root allows it with `user: [vllm, llm, null]`";
    assert_eq!(objections("[vllm, llm]", "null"), [none]);
    let other =
        "replica.user is root, not llm or unset: root allows it with `user: [llm, null, root]`";
    assert_eq!(objections("[llm, null]", "root"), [other]);
    for wrong in ["[]", "[a b]", "{ llm: x }"] {
        let text = format!("{TEXT}user: {wrong}\n");
        let problems = Listing::load(&text, "chat.yaml").expect_err(wrong).to_failures();
        assert_eq!(problems.len(), 1, "{problems:?}");
    }
}

#[test]
fn a_listing_that_an_editor_on_windows_wrote_says_the_same() {
    let text = format!("\u{feff}{}", TEXT.trim_start().replace('\n', "\r\n"));
    let read = Listing::load(&text, "chat.yaml").map_err(|problems| problems.to_failures());
    assert_eq!(read, Listing::load(TEXT, "chat.yaml").map_err(|problems| problems.to_failures()));
}

#[test]
fn everything_else_is_named() {
    let rows = [
        (
            "Qwen/Qwen2.5",
            "Evil/Qwen2.5",
            "model \"Evil/Qwen2.5-32B-Instruct\" is none of the allowed ones (Qwen/*)",
        ),
        ("vllm serve", "/tmp/evil serve", "replica.command is none of the allowed ones"),
        ("--host 127.0.0.1", "--host 0.0.0.0", "replica.command is none of the allowed ones"),
        (
            "replica:",
            "fetch: { command: /tmp/evil }\nreplica:",
            "fetch.command is none of the allowed ones",
        ),
        ("HF_HOME", "LD_PRELOAD", "variable LD_PRELOAD is none of the allowed ones (HF_*)"),
        (
            "  env:",
            "  user: root\n  env:",
            "replica.user is root, not unset: root allows it with `user: [null, root]`",
        ),
        ("8002", "22", "slots are not those of the listing"),
        ("conf.d/llm", "conf.d/other", "nginx's config, upstream, command or probe"),
        (
            "upstream: llm",
            "upstream: llm, command: [/tmp/evil]",
            "nginx's config, upstream, command or probe",
        ),
        (
            "service: chat",
            "service: chat\nstate_dir: /root",
            "state_dir is not that of the listing",
        ),
    ];
    for (from, to, expected) in rows {
        let found = objections(from, to);
        assert!(found.len() == 1 && found[0].starts_with(expected), "{to}: {found:?}");
    }
}

#[test]
fn a_container_is_of_a_listed_image_and_sees_of_the_machine_what_is_listed() {
    let docker = |more: &str| {
        let line = "  command: vllm serve {model} --host 127.0.0.1 --port {port} --served-model-name chat\n";
        asked(line, &format!("{line}  runtime: docker\n  image: vllm/vllm-openai:v0.33.0\n{more}"))
    };
    let objections = |listing: &str, asked: Asked| -> Vec<String> {
        let listing = Listing::load(&format!("{TEXT}{listing}"), "chat.yaml").unwrap();
        let found = listing.objections(&Command::Status(asked)).into_iter();
        found.map(|failure| failure.message).collect()
    };
    let listed = "images: [ \"vllm/*\" ]\ndocker_options: [--ipc=host]\n";
    let options = "  docker_options: [--ipc=host]\n";
    assert_eq!(objections(listed, docker(options)), [""; 0]);
    let found = objections("", docker(""));
    let image = "image \"vllm/vllm-openai:v0.33.0\" is none of the allowed ones (none)";
    let runtime = "replica.runtime is docker, not one without containers: root allows it with `runtime: docker`";
    assert_eq!(found, [runtime, image]);
    let mut pinned = docker(options);
    pinned.spec.replica.pinned = Some("evil/image".to_owned());
    let found = objections(listed, pinned);
    assert_eq!(found, ["image \"evil/image\" is not asked for by its name"]);
    for other in ["", "  docker_options: [--ipc=host, --volume=/:/host]\n"] {
        let found = objections(listed, docker(other));
        assert_eq!(found, ["replica.docker_options are not those of the listing"]);
    }
}

/// The command that root has foreseen in a container would have the whole server.
#[test]
fn what_is_tied_to_containers_starts_nothing_beside_them() {
    let objections = |listing: &str, (runtime, image): (Runtime, Option<&str>)| -> Vec<String> {
        let listing = Listing::load(&format!("{TEXT}{listing}"), "chat.yaml").unwrap();
        let mut asked = asked("", "");
        asked.spec.replica.runtime = runtime;
        asked.spec.replica.image = image.map(str::to_owned);
        let found = listing.objections(&Command::Status(asked)).into_iter();
        found.map(|failure| failure.message).collect()
    };
    let images = "images: [ \"vllm/*\" ]\n";
    let name = "vllm/vllm-openai:v0.33.0";
    let image = Some(name);
    for (runtime, word) in
        [(Runtime::Auto, "auto"), (Runtime::Systemd, "systemd"), (Runtime::Process, "process")]
    {
        let expected = format!(
            "replica.runtime is {word}, not docker: root allows it with `runtime: [docker, {word}]`"
        );
        assert_eq!(objections(images, (runtime, None)), [expected]);
        assert_eq!(objections("", (runtime, None)), [""; 0]);
        // Root's own word counts, whatever is listed beside it.
        let listed = format!("runtime: {word}\n{images}");
        assert_eq!(objections(&listed, (runtime, None)), [""; 0]);
        assert_eq!(objections(&listed, (Runtime::Docker, image)).len(), 1);
        assert_eq!(
            objections(&listed, (runtime, image)),
            [format!("replica.runtime {word} has no use for image {name:?}")]
        );
    }
    assert_eq!(objections(images, (Runtime::Docker, image)), [""; 0]);
    assert_eq!(
        objections(images, (Runtime::Docker, None)),
        ["replica.runtime docker has no image"]
    );
}

/// A way back needs what the replicas had before.
#[test]
fn a_key_that_moves_from_units_to_containers_may_go_back_to_them() {
    const LISTED: &str =
        "runtime: [systemd, docker]\nimages: [ \"vllm/*\" ]\ndocker_options: [--ipc=host]\n";
    let listing = Listing::load(&format!("{TEXT}{LISTED}"), "chat.yaml").unwrap();
    let objections = |runtime, image: Option<&str>, options: &[&str]| -> Vec<String> {
        let mut asked = asked("", "");
        asked.spec.replica.runtime = runtime;
        asked.spec.replica.image = image.map(str::to_owned);
        asked.spec.replica.docker_options = options.iter().map(ToString::to_string).collect();
        let found = listing.objections(&Command::Status(asked)).into_iter();
        found.map(|failure| failure.message).collect()
    };
    let (image, options) = (Some("vllm/vllm-openai:v0.33.0"), &["--ipc=host"][..]);
    assert_eq!(objections(Runtime::Docker, image, options), [""; 0]);
    assert_eq!(objections(Runtime::Systemd, None, &[]), [""; 0]);
    let strange = ["replica.docker_options are not those of the listing"];
    assert_eq!(objections(Runtime::Docker, image, &[]), strange);
    assert_eq!(objections(Runtime::Systemd, None, options), strange);
    assert_eq!(
        objections(Runtime::Process, None, &[]),
        [
            "replica.runtime is process, not systemd or docker: root allows it with `runtime: [systemd, docker, process]`"
        ]
    );
    for (wrong, expected) in [
        ("[]", "expected a runtime, or a list of them, like [systemd, docker]"),
        ("[systemd, dokcer]", "expected one of auto, systemd, process, docker"),
        ("dokcer", "expected one of auto, systemd, process, docker"),
    ] {
        let problems =
            Listing::load(&format!("{TEXT}runtime: {wrong}\n"), "chat.yaml").unwrap_err();
        let message = &problems.to_failures()[0].message;
        assert!(message.contains(expected), "{wrong}: {message}");
    }
}

#[test]
fn what_nobody_foresaw_is_named_and_the_value_of_a_secret_is_not() {
    let listing = Listing::load(TEXT, "chat.yaml").unwrap();
    let mut asked = asked("", "");
    asked.secrets.0.insert("LD_AUDIT".to_owned(), "canary".to_owned());
    let found = listing.objections(&Command::Status(asked));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].message.contains("LD_AUDIT") && !found[0].message.contains("canary"));
}

#[test]
fn a_revision_of_the_weights_is_a_listed_one() {
    let objections = |listed: &str, pinned: &str| -> Vec<String> {
        let listing = Listing::load(&format!("{TEXT}{listed}"), "chat.yaml").unwrap();
        let mut asked = asked("", "");
        asked.spec.model_revision = Some(pinned.to_owned());
        let found = listing.objections(&Command::Status(asked)).into_iter();
        found.map(|failure| failure.message).collect()
    };
    let refused = "model_revision \"refs/pr/7\" is none of the allowed ones";
    let mends = "root allows it with `revisions: [\"refs/pr/7\"]`";
    for (listed, shown) in [("", "none"), ("revisions: [main, \"v1.?\"]\n", "main, v1.?")] {
        let found = objections(listed, "refs/pr/7");
        assert_eq!(found, [format!("{refused} ({shown}): {mends}")]);
    }
    assert_eq!(objections("revisions: [main, \"v1.?\"]\n", "v1.2"), [""; 0]);
    // In the place of a value it would be one more option, whatever root allows.
    let found = objections("revisions: [\"*\"]\n", "--trust-remote-code");
    let expected = "model_revision \"--trust-remote-code\" is not a commit of the weights, like ";
    assert!(found.len() == 1 && found[0].starts_with(expected), "{found:?}");
}

/// How much is in it is told, and a request for it is no way to learn that of root's own.
#[test]
fn what_is_measured_is_below_a_listed_folder() {
    let objections = |listed: &str, folder: &str| -> Vec<String> {
        let fetches = "fetches: [\"hf download {model}\"]\n";
        let listing = Listing::load(&format!("{TEXT}{fetches}{listed}"), "chat.yaml").unwrap();
        let mut asked = asked("replica:", "fetch: { command: \"hf download {model}\" }\nreplica:");
        asked.spec.fetch.as_mut().unwrap().folder = Some(folder.into());
        let found = listing.objections(&Command::Status(asked)).into_iter();
        found.map(|failure| failure.message).collect()
    };
    let refused = "fetch.folder \"/root/.ssh\" is none of the allowed ones";
    let mends = "root allows it with `folders: [\"/root/.ssh\"]`";
    let listed = "folders: [\"/srv/models/*\"]\n";
    for (listed, shown) in [("", "none"), (listed, "/srv/models/*")] {
        let found = objections(listed, "/root/.ssh");
        assert_eq!(found, [format!("{refused} ({shown}): {mends}")]);
    }
    assert_eq!(objections(listed, "/srv/models/qwen"), [""; 0]);
    let found = objections(listed, "/srv/models/../../root");
    assert_eq!(
        found,
        ["fetch.folder \"/srv/models/../../root\" leads out of its folder with `..`"]
    );
    let found = objections("folders: [\"*\"]\n", "proc");
    assert!(found.len() == 1 && found[0].contains("is not an absolute path"), "{found:?}");
}

/// Whoever has the key writes to the wire what the configuration's reader would refuse.
#[test]
fn a_pattern_does_not_let_pass_what_no_configuration_can_hold_or_leads_out_of_a_folder() {
    const LISTED: &str = r#"
models: [ "*" ]
revisions: [ "*" ]
commands: [ "vllm serve {model} --host 127.0.0.1 --port {port} --config /srv/vllm/* --dtype ?*" ]
env: [ "*" ]
images: [ "*" ]
runtime: auto
slots:
  a: { port: 8001, gpus: [0] }
  b: { port: 8002, gpus: [1] }
nginx: { config: /etc/nginx/conf.d/llm.conf, upstream: llm }
"#;
    let objections = |change: &dyn Fn(&mut Asked)| -> Vec<String> {
        let line = "--served-model-name chat";
        let mut asked = asked(line, "--config /srv/vllm/a.yaml --dtype auto");
        change(&mut asked);
        let listing = Listing::load(LISTED, "chat.yaml").unwrap();
        let found = listing.objections(&Command::Status(asked)).into_iter();
        found.map(|failure| failure.message).collect()
    };
    assert_eq!(objections(&|_| {}), [""; 0]);
    assert_eq!(objections(&|asked| asked.spec.model = "/srv/models/x..y".to_owned()), [""; 0]);
    let name = |name: &'static str| {
        move |asked: &mut Asked| {
            asked.spec.replica.env.insert(name.to_owned(), String::new());
        }
    };
    let word = |at: usize, word: &'static str| {
        move |asked: &mut Asked| asked.spec.replica.command[at] = word.to_owned()
    };
    type Change<'a> = &'a dyn Fn(&mut Asked);
    let rows: [(Change<'_>, &str); 11] = [
        (&|it| it.spec.model = "/srv/models/../../tmp/x".to_owned(), "leads out of its folder"),
        (&|it| it.spec.model = "--trust-remote-code".to_owned(), "is not a model name or path"),
        (&|it| it.spec.model = "/srv/a\nb".to_owned(), "is not a model name or path"),
        (&|it| it.spec.model_revision = Some("v1/../x".to_owned()), "leads out of its folder"),
        (&name("HF_X=1\nLD_PRELOAD"), "is not the name of an environment variable"),
        (&|it| drop(it.secrets.0.insert("A B".to_owned(), String::new())), "is not the name of"),
        (&|it| it.spec.ready.timeout = Duration::MAX, "ready.timeout is longer than 30days"),
        (
            &|it| it.spec.nginx.pinned_workers = PinnedWorkers::IgnoreAfter(Duration::MAX),
            "nginx.pinned_workers is longer than 30days",
        ),
        (&word(8, "/srv/vllm/../../tmp/x"), "replica.command is none of the allowed ones"),
        (&word(10, "--trust-remote-code"), "replica.command is none of the allowed ones"),
        (&word(7, "--kill"), "replica.command is none of the allowed ones"),
    ];
    for (change, expected) in rows {
        let found = objections(change);
        assert!(found.len() == 1 && found[0].contains(expected), "{expected}: {found:?}");
    }
    let found = objections(&|it| it.spec.replica.image = Some("--privileged".to_owned()));
    assert!(found.iter().any(|it| it.contains("\"--privileged\" is not an image")), "{found:?}");
}

#[test]
fn only_commands_that_are_allowed_may_be_asked() {
    let listing = Listing::load(&format!("{TEXT}allow: [plan]\n"), "chat.yaml").unwrap();
    let found = listing.objections(&Command::Status(asked("", "")));
    assert_eq!(found[0].message, "the command status is not allowed (allowed: plan)");
}

#[test]
fn whoever_may_swap_or_roll_back_may_follow_confirm_and_abort() {
    let follow = Command::Follow {
        asked: asked("", ""),
        swap: "s-1".parse().unwrap(),
        since: 0,
        wait: Wait::Promoted,
    };
    let abort = Command::Abort(AbortRequest {
        asked: asked("", ""),
        of: None,
        unknown: Unknown::Kept,
        wish: Wish::GivenUp,
        since: 0,
        requester: Requester::default(),
    });
    let confirm = Command::Confirm(ConfirmRequest {
        asked: asked("", ""),
        swap: "s-1".parse().unwrap(),
        nonce: String::new(),
    });
    for (allowed, may) in [("[swap]", true), ("[rollback]", true), ("[plan]", false)] {
        let listing = Listing::load(&format!("{TEXT}allow: {allowed}\n"), "chat.yaml").unwrap();
        for command in [&follow, &abort, &confirm] {
            let found = listing.objections(command);
            assert_eq!(found.is_empty(), may, "{allowed}: {found:?}");
        }
    }
}

#[test]
fn giving_the_server_back_is_allowed_by_name_only() {
    let wanted = Command::Uninstall(UninstallRequest {
        asked: asked("", ""),
        swap: "s-1".parse().unwrap(),
        kept: KeptWarm::Refuse,
        requester: Requester::default(),
    });
    let objections = |more: &str| {
        Listing::load(&format!("{TEXT}{more}"), "chat.yaml").unwrap().objections(&wanted)
    };
    let expected = "the command uninstall is not allowed (allowed: plan, swap, rollback, status, \
                    abort)";
    assert_eq!(objections("")[0].message, expected);
    assert_eq!(objections("allow: [uninstall]\n"), []);
}

#[test]
fn a_wrong_listing_is_told_with_every_problem_and_its_line() {
    let text = TEXT.replace("models: [ \"Qwen/*\" ]", "model: []\nallow: [swop]");
    let problems = Listing::load(&text, "chat.yaml").unwrap_err();
    let messages: Vec<_> = problems.to_failures().into_iter().map(|f| f.message).collect();
    assert_eq!(messages.len(), 3, "{messages:#?}");
    assert!(messages.iter().any(|m| m.contains("chat.yaml:3") && m.contains("swop")));
    assert!(messages.iter().any(|m| m.contains("models") && m.contains("missing")));
    assert!(messages.iter().any(|m| m.contains("unknown key")));
}

#[test]
fn a_last_star_stands_for_more_words_and_another_one_for_one() {
    let matches = |line: &str, words: &[&str]| {
        let patterns: Vec<_> = line.split(' ').map(WildMatch::new).collect();
        let words: Vec<_> = words.iter().map(ToString::to_string).collect();
        matches_words(&patterns, &words)
    };
    assert!(matches("vllm serve *", &["vllm", "serve"]));
    assert!(matches("vllm serve *", &["vllm", "serve", "a", "b"]));
    assert!(!matches("vllm serve", &["vllm", "serve", "a"]));
    assert!(!matches("vllm * --port", &["vllm", "--port"]));
    assert!(matches("vllm * --port", &["vllm", "a", "--port"]));
}
