use super::*;

fn program(exe: &str, argv: &str) -> Program {
    Program { argv: shell_words::split(argv).unwrap(), exe: Some(exe.into()), uid: 1000 }
}

const PYTHON: &str = "/usr/bin/python3.12";

#[test]
fn a_launcher_includes_what_it_was_told_to_run() {
    let vllm = program(PYTHON, "/srv/.venv/bin/python /srv/.venv/bin/vllm serve m --port 1");
    for (exe, launcher) in [
        ("/usr/bin/uv", "uv run vllm serve m --port 1"),
        ("/usr/bin/timeout", "timeout 1h /srv/.venv/bin/vllm serve m --port 1"),
        ("/usr/bin/tini", "tini -- vllm serve m --port 1"),
    ] {
        assert!(program(exe, launcher).includes(&vllm), "{launcher}");
    }
    for (exe, other) in [
        ("/usr/bin/uv", "uv run vllm serve m --port 2"),
        ("/usr/bin/uv", "uv run serve.py"),
        ("/bin/bash", "bash run.sh vllm serve m --port 1"),
        ("/usr/bin/tmux", "tmux new vllm serve m --port 1"),
        ("/usr/bin/node", "node /usr/bin/nodemon vllm serve m --port 1"),
        (PYTHON, "/srv/.venv/bin/python /srv/.venv/bin/vllm serve other --port 2"),
    ] {
        assert!(!program(exe, other).includes(&vllm), "{other}");
    }
}

#[test]
fn workers_belong_to_their_program() {
    let main =
        program(PYTHON, "/srv/.venv/bin/python /srv/.venv/bin/vllm serve m --api-server-count 2");
    assert!(main.includes(&program(PYTHON, "VLLM::ApiServer_0")));
    assert!(main.includes(&main.clone()));
    let spawned = "python -c 'from multiprocessing.spawn import spawn_main' --multiprocessing-fork";
    assert!(main.includes(&program(PYTHON, spawned)));
    assert!(!main.includes(&program("/usr/bin/python3.11", "VLLM::ApiServer_0")));
}

#[test]
fn a_common_interpreter_proves_nothing_and_a_common_program_does() {
    let script = program(PYTHON, "python3 everything.py");
    assert!(
        !script
            .includes(&program(PYTHON, "python3 -m vllm.entrypoints.openai.api_server --model m"))
    );
    let server = program("/usr/bin/ollama", "ollama serve");
    assert!(server.includes(&program("/usr/bin/ollama", "ollama runner --port 9")));
}

#[test]
fn what_others_live_on_is_known_by_its_name_or_its_title() {
    for (exe, argv) in [
        ("/usr/bin/dockerd", "/usr/bin/dockerd -H fd://"),
        ("/usr/sbin/nginx", "'nginx: master process /usr/sbin/nginx'"),
        ("/usr/sbin/sshd", "'sshd: /usr/sbin/sshd -D [listener] 0 of 10-100 startups'"),
        ("/usr/lib/systemd/systemd", "/sbin/init splash"),
    ] {
        assert!(program(exe, argv).is_foundation(), "{argv}");
    }
    assert!(!program(PYTHON, "/srv/.venv/bin/python /srv/.venv/bin/vllm serve m").is_foundation());
}

#[test]
fn another_user_is_another_program() {
    let child = program("/usr/bin/ollama", "ollama runner");
    let parent = Program { uid: 0, ..program("/usr/bin/ollama", "ollama serve") };
    assert!(!parent.includes(&child));
}

#[test]
fn scripts_are_told_from_people() {
    for script in [
        "sh run.sh",
        "bash -c 'vllm serve m; true'",
        "bash -lc x",
        "/bin/bash ./run.sh",
        "bash -e x.sh",
    ] {
        assert!(program("/bin/sh", script).is_shell_script(), "{script}");
    }
    for person in [
        "-bash",
        "bash",
        "bash -i",
        "zsh -l",
        "bash --init-file /opt/code/init.sh",
        "fish -C 'set x'",
    ] {
        assert!(!program("/bin/sh", person).is_shell_script(), "{person}");
    }
    assert!(!program(PYTHON, "python3 run.py").is_shell_script());
}

#[test]
fn supervisors_and_sessions_are_known_by_name_script_or_title() {
    assert!(program(PYTHON, "/usr/bin/python3 /usr/bin/supervisord -n").is_supervisor());
    assert!(program(PYTHON, "python3 -m circusd x.ini").is_supervisor());
    assert!(program("/usr/bin/node", "'PM2 v5.3.0: God Daemon (/root/.pm2)'").is_supervisor());
    assert!(program("/usr/bin/runsv", "runsv vllm").is_supervisor());
    assert!(!program(PYTHON, "python3 -m vllm").is_supervisor());
    for session in [
        "'sshd: deploy@pts/0'",
        "'sshd-session: deploy'",
        "/lib/systemd/systemd --user",
        "SCREEN -S x",
    ] {
        assert!(program("/usr/sbin/x", session).is_session(), "{session}");
    }
}

#[test]
fn the_padding_of_a_title_is_no_argument() {
    assert_eq!(words(b"VLLM::EngineCore\0\0\0\0\0"), ["VLLM::EngineCore"]);
    assert_eq!(words(b"a\0\0b\0"), ["a", "", "b"]);
    assert!(words(b"").is_empty());
    assert!(words(b"\0\0").is_empty());
}
