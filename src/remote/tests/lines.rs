//! The fixed lines as shells run them: mode and place, with stand-ins for `id` and `sudo`.

use std::path::Path;
use std::process::{Command, Output};

use super::sshd::script;
use crate::remote::agent::Install;
use crate::remote::build::Build;
use crate::remote::line::{ABSENT, Place};

/// A scratch server: `id` says who we are, `sudo` notes that it was used.
struct World {
    folder: tempfile::TempDir,
    install: Install,
}

impl World {
    fn new(uid: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        script(folder.path(), "id", &format!("echo {uid}"));
        script(
            folder.path(),
            "sudo",
            "[ \"$1\" = -n ] || exit 9; shift; echo \"$@\" >> \"${0%/*}/as_root\"; exec \"$@\"",
        );
        // Of the machine that runs this nothing shall be seen.
        script(
            folder.path(),
            "grep",
            "PATH=/usr/bin:/bin; [ \"$1\" = -ls ] || exec grep \"$@\"; \
             exec grep -ls \"$2\" \"${0%/*}\"/proc/[0-9]*/cmdline",
        );
        let nginx_config = Some(folder.path().join("nginx.conf"));
        let state_dir = Some(folder.path().join("state"));
        let build = Build { digest: "d1".to_owned(), path: "/none".into() };
        let install = Install { build, others: None, state_dir, nginx_config };
        Self { folder, install }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn owns_nginx(self) -> Self {
        std::fs::write(self.install.nginx_config.as_ref().unwrap(), "").unwrap();
        self
    }

    /// An nginx runs as this user.
    fn has_nginx(self, uid: u32) -> Self {
        let process = self.path().join(format!("proc/{uid}7"));
        std::fs::create_dir_all(&process).unwrap();
        let title = "nginx: master process /usr/sbin/nginx\0\0";
        std::fs::write(process.join("cmdline"), title).unwrap();
        let status = format!("Name:\tnginx\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n");
        std::fs::write(process.join("status"), status).unwrap();
        self
    }

    /// Who may use sudo may not without a password.
    fn without_sudo(self) -> Self {
        script(self.path(), "sudo", "echo sudo: a password is required >&2; exit 1");
        self
    }

    fn has_agent(self, place: &str) -> Self {
        let folder = self.path().join(place);
        std::fs::create_dir_all(&folder).unwrap();
        script(&folder, "model-swap", "echo \"I am $*\"");
        self
    }

    /// The state folder is there, and somebody else's.
    fn with_state_of_another(mut self) -> Self {
        if rustix::process::geteuid().is_root() {
            let folder = self.path().join("state");
            std::fs::create_dir(&folder).unwrap();
            std::os::unix::fs::chown(folder, Some(65534), None).unwrap();
        } else {
            self.install.state_dir = Some("/usr".into());
        }
        self
    }

    fn run(&self, shell: &str) -> Output {
        let line = Place::new(&self.install).unwrap().ask();
        let path = format!("{}:{}", self.path().display(), std::env::var("PATH").unwrap());
        Command::new(shell)
            .args(["-c", &line])
            .env("PATH", path)
            .env("HOME", self.path())
            .env_remove("XDG_STATE_HOME")
            .output()
            .unwrap()
    }

    fn said(&self) -> String {
        String::from_utf8(self.run("sh").stdout).unwrap()
    }

    fn as_root(&self) -> String {
        std::fs::read_to_string(self.path().join("as_root")).unwrap_or_default()
    }
}

#[test]
fn root_runs_it_directly() {
    let world = World::new(0).has_agent("state/bin/d1");
    assert_eq!(world.said(), "I am agent session\n");
    assert_eq!(world.as_root(), "");
}

#[test]
fn the_owner_of_nginx_needs_no_root() {
    let world = World::new(1000).owns_nginx().has_agent("state/bin/d1");
    assert_eq!(world.said(), "I am agent session\n");
    assert_eq!(world.as_root(), "");
}

#[test]
fn who_owns_the_file_alone_uses_sudo_where_it_can_be_used() {
    let runs = |world: World| {
        let world = world.owns_nginx().has_agent("state/bin/d1");
        assert_eq!(world.said(), "I am agent session\n");
        world.as_root().ends_with("/state/bin/d1/model-swap agent session\n")
    };
    assert!(runs(World::new(1000).has_nginx(0)));
    // The one user's id begins with the other's.
    assert!(runs(World::new(100).has_nginx(1000)));
    assert!(!runs(World::new(1000).has_nginx(0).has_nginx(1000)));
    assert!(!runs(World::new(1000).has_nginx(0).without_sudo()));
}

/// Else an order to abort, or `status`, would look in another folder than the swap is in.
#[test]
fn while_nginx_is_down_who_began_goes_on() {
    let runs_as_root = |world: World| {
        let world = world.owns_nginx();
        world.run("sh");
        !world.as_root().is_empty()
    };
    // Nobody has a folder there: who has none of root's needs no root.
    assert!(!runs_as_root(World::new(1000)));
    assert!(runs_as_root(World::new(1000).with_state_of_another()));
    // His own nginx is down, and root's is not.
    let is_at_work = |world: World| {
        std::fs::create_dir_all(world.path().join("state/chat")).unwrap();
        std::fs::write(world.path().join("state/chat/lease.json"), "{}").unwrap();
        world
    };
    assert!(!runs_as_root(is_at_work(World::new(1000)).has_nginx(0)));
    assert!(!runs_as_root(is_at_work(World::new(1000))));
}

#[test]
fn without_a_state_folder_the_owner_has_it_at_home() {
    let world = World::new(1000).owns_nginx().has_nginx(1000);
    let mut world = world.has_agent(".local/state/model-swap/bin/d1");
    world.install.state_dir = None;
    assert_eq!(world.said(), "I am agent session\n");
}

#[test]
fn everybody_else_uses_sudo() {
    let world = World::new(1000).has_agent("state/bin/d1");
    assert_eq!(world.said(), "I am agent session\n");
    assert_eq!(
        world.as_root(),
        format!("{}/state/bin/d1/model-swap agent session\n", world.path().display())
    );
}

#[test]
fn without_a_configuration_who_may_use_sudo_is_root() {
    let mut world = World::new(1000).owns_nginx().has_agent("state/bin/d1");
    world.install.nginx_config = None;
    assert_eq!(world.said(), "I am agent session\n");
    assert!(world.as_root().ends_with("/state/bin/d1/model-swap agent session\n"));
    world = world.without_sudo();
    assert_eq!(world.said(), "I am agent session\n");
    world.install.state_dir = None;
    assert!(world.said().starts_with(ABSENT));
}

#[test]
fn root_looks_where_the_user_may_not() {
    let world = World::new(1000);
    script(world.path(), "sudo", "[ \"$2\" = test ] || echo \"root runs $3 $4\"");
    assert_eq!(world.said(), "root runs agent session\n");
}

#[test]
fn an_agent_that_is_not_there_is_said_so() {
    for world in [World::new(0), World::new(1000).owns_nginx(), World::new(1000)] {
        let output = world.run("sh");
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            format!("{ABSENT} {}\n", std::env::consts::ARCH)
        );
        assert_eq!(output.status.code(), Some(127));
    }
}

#[test]
fn every_login_shell_takes_the_lines() {
    let world = World::new(1000).owns_nginx().has_agent("state/bin/d1");
    for shell in ["sh", "dash", "bash", "zsh", "ksh", "fish", "csh", "tcsh"] {
        let output = world.run(shell);
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "I am agent session\n",
            "{shell}: {output:?}"
        );
    }
}

#[test]
fn the_lines_hold_nothing_that_a_login_shell_would_touch() {
    let world = World::new(0);
    let place = Place::new(&world.install).unwrap();
    for line in [place.ask(), place.bring()] {
        let inner =
            line.strip_prefix("exec sh -c '").and_then(|rest| rest.strip_suffix('\'')).unwrap();
        assert!(!inner.contains(['\'', '\\', '!', '\n']), "{inner}");
        // The original csh takes words of at most 1024 characters (csh(1), LIMITATIONS).
        assert!(inner.len() < 1024, "{}", inner.len());
    }
}

#[test]
fn values_that_a_shell_could_read_otherwise_are_refused() {
    let world = World::new(0);
    for bad in [
        "/etc/a b",
        "/etc/$HOME",
        "/etc/`id`",
        "/etc/'x'",
        "/etc/\"x\"",
        "/etc/a;b",
        "relative/path",
        "/etc/é",
    ] {
        let install = Install { nginx_config: Some(bad.into()), ..world.install.clone() };
        assert!(Place::new(&install).is_err(), "{bad}");
        let install = Install { state_dir: Some(bad.into()), ..world.install.clone() };
        assert!(Place::new(&install).is_err(), "{bad}");
    }
}
