//! The text of a unit and of its environment file: every value arrives in the program as it was given.
//!
//! Rules: systemd.service(5) COMMAND LINES, systemd.unit(5) SPECIFIERS, systemd.exec(5) `EnvironmentFile=`; systemd 252.

use std::path::Path;
use std::time::Duration;

use crate::host::process::Launch;

/// The first line of every unit that is written here. A file without it is somebody else's, and left alone.
pub(super) const HEADER: &str =
    "# Written by model-swap, and removed by it when the replica is retired.";

/// Before the marker, on a line of its own.
const MARKER_LINE: &str = "# Replica: ";

/// The line that [`promoted`] changes.
const NO_RESTART: &str = "Restart=no";
const RESTART: &str = "Restart=always";

/// Long enough for a driver to give the memory of the one that died back, short enough for an outage.
const RESTART_AFTER: Duration = Duration::from_secs(5);

/// A value that no unit can hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a systemd unit cannot hold {what} {value:?}")]
pub(super) struct Unfit {
    what: &'static str,
    value: String,
}

/// What a unit is made from.
pub(super) struct Made<'a> {
    pub(super) launch: &'a Launch,
    /// The file of `argv[0]`, absolute.
    pub(super) program: &'a Path,
    pub(super) environment: &'a Path,
    pub(super) marker: &'a str,
    /// From SIGTERM to SIGKILL.
    pub(super) grace: Duration,
}

/// The unit. It is not restarted when it ends: a restart would hide that the model could not be loaded.
pub(super) fn unit(made: &Made<'_>) -> Result<String, Unfit> {
    let Made { launch, program, environment, marker, grace } = made;
    let identity = &launch.identity;
    let groups: Vec<_> = identity.groups.iter().map(u32::to_string).collect();
    Ok(format!(
        "{HEADER}
{MARKER_LINE}{marker}
[Unit]
Description=model-swap replica {description}
Wants=network-online.target
# Weights may lie on another machine's disk.
After=network-online.target remote-fs.target nvidia-persistenced.service
# Once promoted it is started again however often it ends: nothing else serves.
StartLimitIntervalSec=0

[Service]
Type=exec
ExecStart={command}
User={uid}
Group={gid}
SupplementaryGroups={groups}
WorkingDirectory={folder}
EnvironmentFile={environment}
# The main process is asked, and what it leaves behind is killed.
KillMode=mixed
TimeoutStopSec={grace}
{NO_RESTART}
RestartSec={restart}
LimitNOFILE=524288
LimitMEMLOCK=infinity
StandardOutput=journal
StandardError=inherit

[Install]
WantedBy=multi-user.target
",
        description = specifiers(marker),
        command = command(program, &launch.argv)?,
        uid = identity.uid,
        gid = identity.gid,
        groups = groups.join(" "),
        folder = path("the working folder", &launch.cwd)?,
        environment = path("the path", environment)?,
        grace = grace.as_secs_f64().ceil(),
        restart = RESTART_AFTER.as_secs(),
    ))
}

/// The same unit, to be started again whenever it ends.
pub(super) fn promoted(unit: &str) -> String {
    unit.replace(&format!("\n{NO_RESTART}\n"), &format!("\n{RESTART}\n"))
}

/// Whether the unit was written here.
pub(super) fn is_own(unit: &str) -> bool {
    unit.starts_with(HEADER)
}

/// The marker of the replica that it was written for.
pub(super) fn marker(unit: &str) -> Option<&str> {
    unit.lines().find_map(|line| line.strip_prefix(MARKER_LINE))
}

/// An environment file, and the names of what systemd would not pass on.
pub(super) fn environment(launch: &Launch) -> (String, Vec<String>) {
    let (mut text, mut left_out) = (String::new(), Vec::new());
    for (name, value) in &launch.env {
        // env_assignment_is_valid(): others are dropped there, with a line in the journal.
        let passes = value.chars().all(|c| !c.is_control() || matches!(c, '\t' | '\n'));
        if !(is_name(name) && passes) {
            left_out.push(name.clone());
            continue;
        }
        text.push_str(name);
        text.push_str("=\"");
        for c in value.chars() {
            // Within double quotes a backslash escapes these, as in a shell, and nothing else is special.
            if matches!(c, '"' | '\\' | '$' | '`') {
                text.push('\\');
            }
            text.push(c);
        }
        text.push_str("\"\n");
    }
    (text, left_out)
}

/// The value of a variable in what [`environment`] wrote.
pub(super) fn variable(text: &str, wanted: &str) -> Option<String> {
    let mut rest = text;
    while let Some((name, tail)) = rest.split_once("=\"") {
        let (mut value, mut characters) = (String::new(), tail.char_indices());
        let end = loop {
            match characters.next()? {
                (_, '\\') => value.push(characters.next()?.1),
                (at, '"') => break at,
                (_, c) => value.push(c),
            }
        };
        if name == wanted {
            return Some(value);
        }
        rest = tail[end + 1..].strip_prefix('\n')?;
    }
    None
}

fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// `@` has the program get `argv[0]` as it was given, whatever the name of its file.
pub(super) fn command(program: &Path, argv: &[String]) -> Result<String, Unfit> {
    let program = text("the program", program)?;
    let first = quoted(&format!("@{}", specifiers(program)));
    let words = argv.iter().map(|word| quoted(&specifiers(word).replace('$', "$$")));
    Ok(std::iter::once(first).chain(words).collect::<Vec<_>>().join(" "))
}

/// What a unit's program gets of an environment, a line a variable; what systemd would not pass on is left out.
pub(super) fn assignments(env: &[(&str, String)]) -> String {
    let passes = |value: &str| !value.chars().any(char::is_control);
    let passed = env.iter().filter(|(_, value)| passes(value));
    passed
        .map(|(name, value)| {
            format!("Environment={}\n", quoted(&specifiers(&format!("{name}={value}"))))
        })
        .collect()
}

/// One word of a command line, with C escapes.
fn quoted(word: &str) -> String {
    let mut quoted = String::with_capacity(word.len() + 2);
    quoted.push('"');
    for c in word.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_ascii_control() => quoted.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// Percent signs stand for themselves.
fn specifiers(value: &str) -> String {
    value.replace('%', "%%")
}

/// A path as the whole rest of a line.
fn path(what: &'static str, path: &Path) -> Result<String, Unfit> {
    let text = text(what, path)?;
    let unfit =
        text.chars().any(char::is_control) || text.ends_with(['\\', ' ']) || !text.starts_with('/');
    if unfit {
        return Err(Unfit { what, value: text.to_owned() });
    }
    Ok(specifiers(text))
}

fn text<'a>(what: &'static str, path: &'a Path) -> Result<&'a str, Unfit> {
    path.to_str().ok_or_else(|| Unfit { what, value: path.to_string_lossy().into_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::process::Identity;
    use crate::model::replica::Keeper;

    fn launch(argv: &[&str], env: &[(&str, &str)]) -> Launch {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Launch {
            argv: argv.iter().map(ToString::to_string).collect(),
            env: env.iter().map(own).collect(),
            cwd: "/srv/100%".into(),
            identity: Identity { uid: 1000, gid: 100, groups: vec![100, 44] },
            log: "/dev/null".into(),
            keeper: Keeper::Nobody,
            container: None,
        }
    }

    fn of(launch: &Launch) -> Result<String, Unfit> {
        unit(&Made {
            launch,
            program: Path::new("/opt/v llm"),
            environment: Path::new("/var/lib/model-swap/env.d/x"),
            marker: "chat/s-1/b",
            grace: Duration::from_millis(15_500),
        })
    }

    #[test]
    fn a_unit_says_how_a_replica_runs_and_ends() {
        let text = of(&launch(&["vllm", "serve"], &[("TOKEN", "hidden")])).unwrap();
        for line in [
            "ExecStart=\"@/opt/v llm\" \"vllm\" \"serve\"",
            "User=1000",
            "Group=100",
            "SupplementaryGroups=100 44",
            "WorkingDirectory=/srv/100%%",
            "EnvironmentFile=/var/lib/model-swap/env.d/x",
            "KillMode=mixed",
            "TimeoutStopSec=16",
            "Restart=no",
            "WantedBy=multi-user.target",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in {text}");
        }
        assert!(!text.contains("hidden"), "{text}");
        assert_eq!((is_own(&text), marker(&text)), (true, Some("chat/s-1/b")));
        assert!(!is_own("[Unit]\nDescription=somebody's\n"));
        let promoted = promoted(&text);
        assert!(promoted.contains("\nRestart=always\n") && !promoted.contains("Restart=no"));
    }

    /// What systemd makes of such lines is tested with systemd itself.
    #[test]
    fn what_is_special_in_a_command_line_is_escaped() {
        let argv = ["100%", "$HOME", "${A}", "a\"b\\c'd", "two\nlines\tand\u{1b}", "", ";", "ü"];
        let text = of(&launch(&argv, &[])).unwrap();
        let line = text.lines().find(|line| line.starts_with("ExecStart=")).unwrap();
        assert_eq!(
            line,
            r#"ExecStart="@/opt/v llm" "100%%" "$$HOME" "$${A}" "a\"b\\c'd" "two\nlines\tand\x1b" "" ";" "ü""#
        );
        // An argument cannot pass for a line of its own.
        let text = of(&launch(&["x", "\nRestart=no\n"], &[])).unwrap();
        assert_eq!(promoted(&text).matches("Restart=no").count(), 1, "{text}");
    }

    #[test]
    fn what_is_special_in_an_assignment_is_escaped() {
        let env = [
            ("PATH", "/opt/100%/bin:/a b".to_owned()),
            ("DOCKER_HOST", "a\"b\\c$d".to_owned()),
            ("HOME", "two\nlines".to_owned()),
        ];
        assert_eq!(
            assignments(&env),
            "Environment=\"PATH=/opt/100%%/bin:/a b\"\nEnvironment=\"DOCKER_HOST=a\\\"b\\\\c$d\"\n"
        );
    }

    #[test]
    fn what_is_special_in_an_environment_file_is_escaped() {
        let env = [
            ("A", "a\"b\\c$d`e"),
            ("B", "two\nlines\tand # no comment"),
            ("C", "50% 'quoted'"),
            ("D", "with\rreturn"),
            ("BASH_FUNC_x%%", "() { :; }"),
            ("E", ""),
        ];
        let (text, left_out) = environment(&launch(&[], &env));
        assert_eq!(
            text,
            "A=\"a\\\"b\\\\c\\$d\\`e\"\nB=\"two\nlines\tand # no comment\"\nC=\"50% 'quoted'\"\nE=\"\"\n"
        );
        assert_eq!(left_out, ["BASH_FUNC_x%%", "D"]);
    }

    /// Every value of up to three characters that are special anywhere.
    #[test]
    fn what_is_written_into_an_environment_file_is_read_again() {
        let special = ["\"", "\\", "$", "`", "=", "#", "\n", "\t", " ", "x", ""];
        let mut tried = 0;
        for first in special {
            for second in special {
                for third in special {
                    let value = [first, second, third].concat();
                    let env = [("A", &*value), ("B", "=\"A=\"\n"), ("KEY", &*value)];
                    let (text, left_out) = environment(&launch(&[], &env));
                    assert!(left_out.is_empty());
                    assert_eq!(variable(&text, "KEY").as_ref(), Some(&value), "{text}");
                    assert_eq!(variable(&text, "NONE"), None, "{text}");
                    tried += 1;
                }
            }
        }
        assert_eq!(tried, special.len().pow(3));
    }

    #[test]
    fn a_folder_that_no_line_can_hold_is_refused() {
        for folder in ["/srv/two\nlines", "/srv/back\\", "/srv/blank ", "relative"] {
            let launch = Launch { cwd: folder.into(), ..launch(&["x"], &[]) };
            let refused = of(&launch).unwrap_err().to_string();
            assert_eq!(
                refused,
                format!("a systemd unit cannot hold the working folder {folder:?}")
            );
        }
    }
}
