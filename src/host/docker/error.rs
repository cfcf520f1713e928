//! How Docker refuses, and what to do about it.

use std::io;
use std::path::PathBuf;

use crate::host::exec::ExecError;
use crate::model::failure::Hint;

/// Docker could not be asked, or did not do it.
#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    /// The client could not be run.
    #[error("docker cannot be run")]
    Exec(#[from] ExecError),
    /// It refused.
    #[error("docker cannot {doing}: {said}")]
    Refused {
        /// What was wanted.
        doing: String,
        /// Its reason, in one line.
        said: String,
    },
    /// It answered something else.
    #[error("what docker says of {what} cannot be read")]
    Garbled {
        /// What it was asked about.
        what: String,
        /// Why.
        source: serde_json::Error,
    },
    /// A file could not be written.
    #[error("cannot write {}", .path.display())]
    Log {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A variable's value cannot be handed over.
    #[error("the value of {0} has a line break, which docker takes in no variable")]
    LineBreak(String),
}

/// What the client writes in front of a reason, of its own or its Engine's.
const PREFACES: [&str; 3] = ["docker: ", "Error response from daemon: ", "Error: "];

/// How it begins to advise where to read more.
const ADVICE: [&str; 3] = ["See 'docker ", "Run 'docker ", "Usage:"];

impl DockerError {
    /// What the client said when it did not do something. It warns before it says why, and advises afterwards.
    pub(super) fn refused(doing: &str, stderr: &str) -> Self {
        let lines: Vec<&str> = stderr.lines().map(str::trim).collect();
        let is_prefaced = |line: &&str| PREFACES.iter().any(|preface| line.starts_with(preface));
        let is_reason = |line: &&str| !line.is_empty() && !is_warning(line);
        let begin = lines.iter().position(is_prefaced).or_else(|| lines.iter().position(is_reason));
        let is_part =
            |line: &&&str| is_reason(line) && !ADVICE.iter().any(|advice| line.starts_with(advice));
        let reason = lines.get(begin.unwrap_or_default()..).unwrap_or_default();
        let mut said = reason.iter().take_while(is_part).copied().collect::<Vec<_>>().join(" ");
        if said.is_empty() {
            said = lines.into_iter().rfind(|line| !line.is_empty()).unwrap_or("no word").to_owned();
        }
        for preface in PREFACES {
            said = said.strip_prefix(preface).unwrap_or(&said).to_owned();
        }
        Self::Refused { doing: doing.to_owned(), said }
    }

    /// Whether it refused for a reason with these words.
    pub(super) fn says(&self, words: &str) -> bool {
        matches!(self, Self::Refused { said, .. } if said.contains(words))
    }
}

/// What the client says of itself, its file or an option, and goes on.
fn is_warning(line: &str) -> bool {
    let is_of_option = || line.starts_with("Flag ") && line.contains("deprecated");
    line.starts_with("WARNING:") || line.contains("level=warning") || is_of_option()
}

/// What a registry says to whom it does not know.
const SHUT_OUT: [&str; 4] =
    ["denied", "unauthorized", "authentication required", "no basic auth credentials"];

/// What it says of what it does not have.
const UNKNOWN: [&str; 2] = ["manifest unknown", "no such manifest"];

/// What is said where none answers.
const UNREACHED: [&str; 4] =
    ["connection refused", "no such host", "i/o timeout", "network is unreachable"];

fn says(said: &str, words: &[&str]) -> bool {
    words.iter().any(|word| said.contains(word))
}

impl Hint for DockerError {
    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::Exec(ExecError::Start { .. }) => {
                "install Docker's client on the server, where the agent's PATH finds it"
            }
            Self::Refused { said, .. } if said.contains("permission denied") => {
                "let the agent run as root (passwordless sudo), or put its user into the group docker"
            }
            Self::Refused { said, .. } if said.contains("Cannot connect") => {
                "start the Docker Engine: systemctl start docker"
            }
            Self::Refused { said, .. } if said.contains("could not select device driver") => {
                "install the NVIDIA Container Toolkit, and restart the Docker Engine"
            }
            Self::Refused { said, .. } if says(said, &SHUT_OUT) => {
                "log in to the registry on the server as the user whom the agent runs as: docker login"
            }
            Self::Refused { said, .. } if says(said, &UNKNOWN) => {
                "correct replica.image: its registry has no such tag or digest"
            }
            Self::Refused { said, .. } if says(said, &UNREACHED) => {
                "see whether this server reaches the registry that replica.image names"
            }
            Self::Refused { said, .. } if said.contains("no space left") => {
                "make room where Docker keeps its images: docker system df"
            }
            Self::LineBreak(_) => {
                "hand the value over in a file: mount one with replica.docker_options"
            }
            _ => return Vec::new(),
        };
        vec![hint.to_owned()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNREAD: &str =
        "WARNING: Error loading config file: /root/.docker/config.json: open: permission denied\n";
    const NO_DRIVER: &str = "could not select device driver \"\" with capabilities: [[gpu]].";

    fn said(stderr: &str) -> String {
        let error = DockerError::refused("do it", stderr).to_string();
        error.strip_prefix("docker cannot do it: ").unwrap_or_default().to_owned()
    }

    #[test]
    fn a_refusal_is_said_without_its_preface_warnings_and_advice() {
        let run =
            format!("docker: Error response from daemon: {NO_DRIVER}\nSee 'docker run --help'.\n");
        let discarded = "WARNING: Published ports are discarded when using host network mode\n";
        let deprecated = "Flag --time has been deprecated, use --timeout instead\n";
        let emulated =
            "Emulate Docker CLI using podman. Create /etc/containers/nodocker to quiet msg.\n";
        for before in ["", UNREAD, discarded, deprecated, emulated] {
            assert_eq!(said(&format!("{before}{run}")), NO_DRIVER);
        }
        let of_client = "unknown flag: --frob\n\nUsage:  docker run [OPTIONS] IMAGE [COMMAND] [ARG...]\n\nRun 'docker run --help' for more information\n";
        assert_eq!(said(of_client), "unknown flag: --frob");
        assert_eq!(said(&format!("{UNREAD}{of_client}")), "unknown flag: --frob");
        assert_eq!((said(""), said("WARNING: odd\n\n")), ("no word".into(), "WARNING: odd".into()));
        let error = DockerError::refused("do it", &format!("{UNREAD}{run}"));
        assert_eq!(
            error.hints(),
            ["install the NVIDIA Container Toolkit, and restart the Docker Engine"]
        );
    }

    /// A hook of the Engine's, or a registry, has the cause in a line of its own.
    #[test]
    fn a_reason_of_several_lines_is_one() {
        let hook = "docker: Error response from daemon: OCI runtime create failed: error running hook #0: stderr: Auto-detected mode as 'legacy'\nnvidia-container-cli: initialization error: nvml error: driver not loaded: unknown.\n\nRun 'docker run --help' for more information\n";
        assert!(said(hook).ends_with("mode as 'legacy' nvidia-container-cli: initialization error: nvml error: driver not loaded: unknown."));
        let registry = DockerError::refused(
            "find it",
            "errors:\ndenied: requested access to the resource is denied\nunauthorized: authentication required\n",
        );
        assert!(registry.hints()[0].contains("docker login"), "{registry}");
    }

    #[test]
    fn what_is_not_there_is_known_by_every_client() {
        for line in
            ["Error: No such container: x", "Error response from daemon: No such container: x"]
        {
            assert!(
                DockerError::refused("inspect x", &format!("{UNREAD}{line}\n"))
                    .says("No such container")
            );
        }
    }
}
