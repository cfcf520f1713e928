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
        /// The last line that it said.
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
