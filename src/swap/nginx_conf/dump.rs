//! What `nginx -T` prints: every file of the configuration, as it is on disk.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::edit::is_active;
use super::error::ConfError;
use super::syntax::{Directive, parse};
use super::units::{glob_matches, parse_time};
use crate::model::ids::Port;

/// The files of a configuration, the main one first.
#[derive(Debug, Clone)]
pub struct Dump {
    files: Vec<DumpFile>,
}

#[derive(Debug, Clone)]
pub(super) struct DumpFile {
    path: PathBuf,
    text: String,
    directives: Vec<Directive>,
}

/// Where an upstream's only active `server` line is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// The file that holds the line, as nginx names it.
    pub file: PathBuf,
    /// The files that lead to it by `include`, the main one first and `file` last.
    pub chain: Vec<PathBuf>,
    /// The directive as written, without its `;`.
    pub server: String,
}

/// Targets of `error_log`, as written, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Logs {
    /// Of the main context: where a master writes why it refused a configuration.
    pub main: Vec<String>,
    /// Of the `http` block.
    pub http: Vec<String>,
}

/// Whether access logs say which replica answered a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessLog {
    /// There is one whose format has `$upstream_addr`.
    Tells,
    /// There are some, and none says it.
    Silent,
    /// All are off.
    Off,
}

/// A `proxy_pass` that names a port of this machine instead of an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectPass {
    /// The file, as nginx names it.
    pub file: PathBuf,
    /// Line, counted from 1.
    pub line: usize,
    /// The directive as written, without its `;`.
    pub directive: String,
    /// Host and port that it names.
    pub address: String,
    /// The directive as it would be with an upstream.
    pub changed: String,
}

/// Where a visit is: the files that lead there, and the blocks that are open, outermost first.
pub(super) struct Place<'a> {
    files: Vec<&'a DumpFile>,
    pub(super) blocks: Vec<&'a Directive>,
}

impl Place<'_> {
    fn is_in(&self, blocks: &[&str]) -> bool {
        self.blocks.iter().map(|block| block.name()).eq(blocks.iter().copied())
    }

    fn chain(&self) -> Vec<PathBuf> {
        self.files.iter().map(|file| file.path.clone()).collect()
    }

    pub(super) fn file(&self) -> PathBuf {
        self.files.last().map(|file| file.path.clone()).unwrap_or_default()
    }

    pub(super) fn text(&self, directive: &Directive) -> String {
        self.files
            .last()
            .and_then(|file| file.text.get(directive.span.clone()))
            .unwrap_or_default()
            .to_owned()
    }

    /// The upstream whose block is the innermost one.
    pub(super) fn upstream(&self) -> Option<&'_ Directive> {
        self.blocks.last().copied().filter(|block| block.name() == "upstream")
    }
}

impl Dump {
    /// Parses the standard output of `nginx -T`.
    ///
    /// # Errors
    /// If it holds no file, or one that is no configuration.
    pub fn parse(output: &str) -> Result<Self, ConfError> {
        let mut texts: Vec<(PathBuf, String)> = Vec::new();
        for line in output.split_inclusive('\n') {
            let marker = line
                .strip_prefix("# configuration file ")
                .and_then(|rest| rest.trim_end().strip_suffix(':'));
            match (marker, texts.last_mut()) {
                (Some(path), _) => texts.push((PathBuf::from(path), String::new())),
                (None, Some((_, text))) => text.push_str(line),
                (None, None) => {}
            }
        }
        if texts.is_empty() {
            return Err(ConfError::EmptyDump);
        }
        Ok(Self {
            files: texts
                .into_iter()
                .map(|(path, text)| file(path, text))
                .collect::<Result<_, _>>()?,
        })
    }

    /// One file alone, as if it included no other.
    ///
    /// # Errors
    /// If it is no configuration.
    pub fn of_file(path: PathBuf, text: String) -> Result<Self, ConfError> {
        Ok(Self { files: vec![file(path, text)?] })
    }

    /// The files' paths as nginx names them, the main one first.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }

    /// The text of a file, by the path as nginx names it.
    pub fn text_of(&self, path: &Path) -> Option<&str> {
        self.files.iter().find(|file| file.path == path).map(|file| file.text.as_str())
    }

    /// Target of `pid` as written; `None` if nginx's compiled-in one is used.
    pub fn pid(&self) -> Option<String> {
        self.first_args(&[], "pid").pop()
    }

    /// Name of the workers' user, if it is set.
    pub fn user(&self) -> Option<String> {
        self.first_args(&[], "user").pop()
    }

    /// Targets of `error_log`.
    pub fn error_logs(&self) -> Logs {
        Logs {
            main: self.first_args(&[], "error_log"),
            http: self.first_args(&["http"], "error_log"),
        }
    }

    /// How long old workers may finish their requests after a reload; `None` if for ever.
    pub fn worker_shutdown_timeout(&self) -> Option<Duration> {
        let value = self.first_args(&[], "worker_shutdown_timeout").pop()?;
        parse_time(&value).filter(|timeout| !timeout.is_zero())
    }

    /// Whether access logs say which replica answered a request. Without any directive nginx writes its format `combined`,
    /// which does not.
    pub fn access_log(&self) -> AccessLog {
        let mut telling = Vec::new();
        let mut formats = Vec::new();
        self.visit(&mut |_, directive| {
            let args: Vec<&str> = directive.args().collect();
            match (directive.name(), &args[..]) {
                ("log_format", [name, text @ ..])
                    if text.iter().any(|part| part.contains("$upstream_addr")) =>
                {
                    telling.push((*name).to_owned());
                }
                ("access_log", ["off", ..]) => formats.push(None),
                ("access_log", [_, format, ..]) if !format.contains('=') => {
                    formats.push(Some((*format).to_owned()));
                }
                ("access_log", _) => formats.push(Some("combined".to_owned())),
                _ => {}
            }
        });
        if formats.iter().flatten().any(|format| telling.contains(format)) {
            AccessLog::Tells
        } else if !formats.is_empty() && formats.iter().all(Option::is_none) {
            AccessLog::Off
        } else {
            AccessLog::Silent
        }
    }

    /// Finds the only active `server` line of an upstream. `ports` are the replicas', for the hint.
    ///
    /// # Errors
    /// If the upstream does not exist, or exists more than once, or has not exactly one active line, or shares it.
    pub fn locate(&self, upstream: &str, ports: &[Port]) -> Result<Located, ConfError> {
        let mut known = Vec::new();
        let mut places: Vec<String> = Vec::new();
        let mut active: Vec<Located> = Vec::new();
        let mut others: Vec<(PathBuf, String)> = Vec::new();
        self.visit(&mut |place, directive| {
            let name = directive.args().next().unwrap_or_default();
            if directive.name() == "upstream" && directive.block.is_some() {
                known.push(name.to_owned());
                if name == upstream {
                    let context = place.blocks.last().map_or("main", |block| block.name());
                    places.push(format!(
                        "in {context} at {}:{}",
                        place.file().display(),
                        directive.line
                    ));
                }
            }
            let Some(owner) = place.upstream().and_then(|block| block.args().next()) else {
                return;
            };
            if owner == upstream && is_active(directive) {
                active.push(Located {
                    file: place.file(),
                    chain: place.chain(),
                    server: place.text(directive),
                });
            } else if owner != upstream {
                others.push((place.file(), owner.to_owned()));
            }
        });
        let upstream = upstream.to_owned();
        match places.len() {
            0 => {
                return Err(ConfError::UnknownUpstream {
                    direct: self.direct_passes(&upstream, ports),
                    upstream,
                    known,
                });
            }
            1 => {}
            _ => return Err(ConfError::Ambiguous { upstream, places }),
        }
        let Some(located) = active.pop() else { return Err(ConfError::NoActive { upstream }) };
        if !active.is_empty() {
            let servers =
                active.into_iter().chain([located]).map(|located| located.server).collect();
            return Err(ConfError::SeveralActive { upstream, servers });
        }
        // Two blocks in one file are two blocks; a file included in two blocks is one text.
        let file = &located.file;
        let own_block = self
            .files
            .iter()
            .any(|f| f.path == *file && f.directives.iter().any(|d| holds_upstream(d, &upstream)));
        match others.into_iter().find(|(other, _)| other == file && !own_block) {
            Some((file, other)) => Err(ConfError::Shared { file, upstream, other }),
            None => Ok(located),
        }
    }

    /// Every `proxy_pass` to one of these ports of this machine; with no ports, to any.
    pub fn direct_passes(&self, upstream: &str, ports: &[Port]) -> Vec<DirectPass> {
        let mut found = Vec::new();
        self.visit(&mut |place, directive| {
            let target = directive.args().next().filter(|_| directive.name() == "proxy_pass");
            let Some((scheme, rest)) = target.and_then(|target| target.split_once("://")) else {
                return;
            };
            let address = rest.split('/').next().unwrap_or_default();
            let Some((host, port)) = address.rsplit_once(':') else { return };
            let Ok(port) = port.parse().map(Port) else { return };
            let local = matches!(host, "127.0.0.1" | "localhost" | "[::1]" | "0.0.0.0");
            if local && (ports.is_empty() || ports.contains(&port)) {
                found.push(DirectPass {
                    file: place.file(),
                    line: directive.line,
                    directive: place.text(directive),
                    address: address.to_owned(),
                    changed: place.text(directive).replacen(
                        &format!("{scheme}://{address}"),
                        &format!("{scheme}://{upstream}"),
                        1,
                    ),
                });
            }
        });
        found
    }

    /// The first arguments of every such directive directly in these blocks.
    fn first_args(&self, blocks: &[&str], name: &str) -> Vec<String> {
        let mut found = Vec::new();
        self.visit(&mut |place, directive| {
            if directive.name() == name && place.is_in(blocks) {
                found.extend(directive.args().next().map(str::to_owned));
            }
        });
        found
    }

    /// Shows every directive in the order in which nginx reads it, with includes followed.
    pub(super) fn visit<'a>(&'a self, see: &mut dyn FnMut(&Place<'a>, &'a Directive)) {
        if let Some(main) = self.files.first() {
            let mut place = Place { files: vec![main], blocks: Vec::new() };
            self.walk(&main.directives, &mut place, see);
        }
    }

    fn walk<'a>(
        &'a self,
        directives: &'a [Directive],
        place: &mut Place<'a>,
        see: &mut dyn FnMut(&Place<'a>, &'a Directive),
    ) {
        for directive in directives {
            see(place, directive);
            if let Some(block) = &directive.block {
                place.blocks.push(directive);
                self.walk(block, place, see);
                place.blocks.pop();
            } else if directive.name() == "include" {
                for file in self.included(directive) {
                    // nginx would not have printed a configuration that includes itself.
                    if !place.files.iter().any(|open| open.path == file.path) {
                        place.files.push(file);
                        self.walk(&file.directives, place, see);
                        place.files.pop();
                    }
                }
            }
        }
    }

    /// Relative patterns start at the main file's folder (`ngx_conf_full_name` with the conf prefix).
    fn included<'a>(&'a self, include: &Directive) -> Vec<&'a DumpFile> {
        let folder =
            self.files.first().and_then(|main| main.path.parent()).unwrap_or(Path::new("/"));
        let pattern = folder.join(include.args().next().unwrap_or_default());
        let pattern = pattern.to_string_lossy();
        let matches = |file: &&DumpFile| glob_matches(&pattern, &file.path.to_string_lossy());
        self.files.iter().filter(matches).collect()
    }
}

fn file(path: PathBuf, text: String) -> Result<DumpFile, ConfError> {
    match parse(text.as_bytes()) {
        Ok(directives) => Ok(DumpFile { path, text, directives }),
        Err(source) => Err(ConfError::FileSyntax { file: path, source }),
    }
}

fn holds_upstream(directive: &Directive, upstream: &str) -> bool {
    let is_it = directive.name() == "upstream" && directive.args().eq([upstream]);
    let inside = directive.block.as_deref().unwrap_or_default();
    is_it || inside.iter().any(|inner| holds_upstream(inner, upstream))
}
