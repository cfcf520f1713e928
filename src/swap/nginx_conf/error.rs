//! Why a configuration cannot be read or edited.

use std::path::{Path, PathBuf};

use super::dump::DirectPass;
use super::syntax::SyntaxError;
use crate::model::failure::Hint;

/// How alike an existing name must be to be offered instead (normalised Damerau-Levenshtein, 0 to 1).
const ALIKE: f64 = 0.5;

/// A configuration cannot be read, or not be edited safely.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfError {
    /// The text is not nginx configuration.
    #[error("not an nginx configuration")]
    Syntax(
        /// Where and why.
        #[from]
        SyntaxError,
    ),
    /// A file of the dump is not nginx configuration.
    #[error("cannot read {} as an nginx configuration", file.display())]
    FileSyntax {
        /// The file, as nginx names it.
        file: PathBuf,
        /// Where and why.
        source: SyntaxError,
    },
    /// `nginx -T` printed no configuration file.
    #[error("`nginx -T` printed no `# configuration file` line")]
    EmptyDump,
    /// A `server` line is no UTF-8.
    #[error("the `server` line at line {line} is not UTF-8")]
    NotText {
        /// Line, counted from 1.
        line: usize,
    },
    /// There is no such upstream.
    #[error("nginx has no upstream `{upstream}`")]
    UnknownUpstream {
        /// The name that was looked for.
        upstream: String,
        /// The names that exist.
        known: Vec<String>,
        /// Locations that proxy straight to a replica's port.
        direct: Vec<DirectPass>,
    },
    /// There are several upstreams of this name.
    #[error("upstream `{upstream}` is defined more than once: {}", places.join(", "))]
    Ambiguous {
        /// The name.
        upstream: String,
        /// Where each is.
        places: Vec<String>,
    },
    /// The file with the `server` lines belongs to several upstreams.
    #[error("{} is included by upstream `{upstream}` and by upstream `{other}`", file.display())]
    Shared {
        /// The file.
        file: PathBuf,
        /// The name that was looked for.
        upstream: String,
        /// Another upstream that would change with it.
        other: String,
    },
    /// No `server` line takes requests.
    #[error("upstream `{upstream}` has no active `server` line")]
    NoActive {
        /// The name.
        upstream: String,
    },
    /// More than one `server` line takes requests.
    #[error("upstream `{upstream}` has {} active `server` lines, and exactly 1 is supported: {}", servers.len(), servers.join("; "))]
    SeveralActive {
        /// The name.
        upstream: String,
        /// The lines.
        servers: Vec<String>,
    },
    /// A `server` line names a unix socket.
    #[error("`{address}` is a unix socket and has no port")]
    UnixSocket {
        /// The address.
        address: String,
    },
    /// A `server` line names nothing that a port could be told of.
    #[error("`{address}` is not an address of the form host:port")]
    Address {
        /// The address or directive.
        address: String,
    },
    /// The `server` lines are neither what was there before nor what was to be there.
    #[error(
        "the `server` lines of upstream `{upstream}` were changed by somebody else: found {}, expected {}",
        quoted(found),
        quoted(expected)
    )]
    Edited {
        /// The name.
        upstream: String,
        /// What is there.
        found: Vec<String>,
        /// What should have been there.
        expected: Vec<String>,
    },
}

impl Hint for ConfError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::UnknownUpstream { upstream, known, direct } => {
                unknown_upstream(upstream, known, direct)
            }
            Self::Ambiguous { .. } => {
                vec!["rename one of them, or name another upstream in nginx.upstream".to_owned()]
            }
            Self::Shared { upstream, .. } => {
                vec![format!("give upstream `{upstream}` a `server` line of its own")]
            }
            Self::NoActive { upstream } => {
                vec![format!(
                    "give upstream `{upstream}` one `server` line that is neither `down` nor `backup`"
                )]
            }
            Self::SeveralActive { .. } => {
                vec![
                    "leave one `server` line active and mark the others `backup` or `down`"
                        .to_owned(),
                ]
            }
            Self::UnixSocket { .. } | Self::Address { .. } => {
                vec!["let the `server` line name the replica's TCP port, like `server 127.0.0.1:8001;`".to_owned()]
            }
            Self::Edited { .. } => {
                vec!["nothing was overwritten: look at the file, and put the expected lines back unless those there are meant".to_owned()]
            }
            Self::Syntax(_) | Self::FileSyntax { .. } | Self::EmptyDump | Self::NotText { .. } => {
                Vec::new()
            }
        }
    }
}

fn quoted(lines: &[String]) -> String {
    if lines.is_empty() { "none".to_owned() } else { format!("`{}`", lines.join("; ")) }
}

fn unknown_upstream(upstream: &str, known: &[String], direct: &[DirectPass]) -> Vec<String> {
    let alike = |name: &&String| strsim::normalized_damerau_levenshtein(name, upstream);
    let closest = known
        .iter()
        .max_by(|a, b| alike(a).total_cmp(&alike(b)))
        .filter(|name| alike(name) >= ALIKE);
    let mut hints: Vec<String> = match closest {
        Some(name) => vec![format!("did you mean `{name}`?")],
        None if known.is_empty() => Vec::new(),
        None => vec![format!("nginx has these upstreams: {}", known.join(", "))],
    };
    hints.extend(direct.iter().map(|pass| paste(upstream, pass)));
    hints
}

fn paste(upstream: &str, pass: &DirectPass) -> String {
    let DirectPass { file, line, directive, address, changed } = pass;
    let file = Path::display(file);
    format!(
        "{file}:{line} proxies straight to a replica (`{directive};`). Put this beside its `server` block:\n\
         upstream {upstream} {{\n    server {address};\n}}\n\
         and change that line to:\n{changed};"
    )
}
