//! Every nginx of this machine, before anything says which one is meant.

use std::path::{Path, PathBuf};

use super::call;
use super::process::Master;
use crate::host::docker::{self, Container};
use crate::host::process;
use crate::model::failure::{Failure, Hint};
use crate::model::survey::Proxy;
use crate::swap::nginx_conf::DirectPass;

/// Options that decide which configuration is read, each with a value. What `-g` adds concerns a start alone.
const DECIDING: [&str; 3] = ["-c", "-p", "-e"];

/// Looks at the nginx that a command names; without one, at all that run, or else at the one that is installed.
pub async fn survey(named: &[String]) -> Vec<Proxy> {
    let mut seen: Vec<(Vec<String>, Option<Container>)> = Vec::new();
    let mut proxies = Vec::new();
    if named.is_empty() {
        for master in Master::all() {
            // A unit with a /tmp of its own (`PrivateTmp=`) is in no container.
            let is_inside =
                master.is_contained() && process::container_of(master.process).is_some();
            let found = match is_inside {
                true => contained(&master).await,
                false => Some((command(&master.title()), None)),
            };
            match found {
                Some(found) if seen.iter().any(|(it, _)| *it == found.0) => {}
                Some(found) => seen.push(found),
                None => proxies.push(unknown(&master)),
            }
        }
    } else {
        let container = match named {
            [docker, exec, name, ..] if docker == "docker" && exec == "exec" => {
                docker::inspect(name).await.ok().flatten()
            }
            _ => None,
        };
        seen.push((named.to_vec(), container));
    }
    if seen.is_empty() && proxies.is_empty() {
        seen.push((vec!["nginx".to_owned()], None));
    }
    for (command, container) in seen {
        proxies.push(look(command, container).await);
    }
    proxies
}

async fn look(command: Vec<String>, container: Option<Container>) -> Proxy {
    let name =
        container.as_ref().map(|container| container.name.trim_start_matches('/').to_owned());
    let mut proxy = Proxy {
        command,
        container: name,
        upstreams: Vec::new(),
        direct: Vec::new(),
        failure: None,
    };
    let dump = match call::test_and_dump(&proxy.command).await {
        Ok(dump) => dump,
        Err(error) => {
            proxy.failure = Some(error.to_failure());
            return proxy;
        }
    };
    proxy.upstreams = dump.upstreams();
    proxy.direct = dump.direct_passes("", &[]).iter().map(told).collect();
    for upstream in &mut proxy.upstreams {
        let Some(named) = upstream.file.take() else { continue };
        let file = match &container {
            Some(container) => container.outside(&named),
            None => Some(named.clone()),
        };
        // Where nginx has a file system of its own, the same path is another file here.
        upstream.file = file.filter(|file| holds(file, dump.text_of(&named)));
    }
    proxy
}

/// Whether a file is the one that nginx has printed, which ends each with a line break.
fn holds(file: &Path, printed: Option<&str>) -> bool {
    let text = std::fs::read(file).map(|text| String::from_utf8_lossy(&text).into_owned());
    text.is_ok_and(|text| printed.map(str::trim_end) == Some(text.trim_end()))
}

/// An nginx in namespaces of its own, of which Docker knows nothing.
fn unknown(master: &Master) -> Proxy {
    let process = master.process;
    Proxy {
        command: command(&master.title()),
        container: Some(process.to_string()),
        upstreams: Vec::new(),
        direct: Vec::new(),
        failure: Some(Failure::new(format!(
            "process {process} is in a container that Docker does not know; say with --nginx how it is called from outside"
        ))),
    }
}

fn told(pass: &DirectPass) -> String {
    format!("{}:{}: {}", pass.file.display(), pass.line, pass.directive)
}

/// An nginx in a container of Docker's, as it is called from outside.
async fn contained(master: &Master) -> Option<(Vec<String>, Option<Container>)> {
    let id = process::container_of(master.process)?;
    let container = docker::inspect(&id).await.ok().flatten()?;
    let name = container.name.trim_start_matches('/');
    let command = ["docker", "exec", name].map(str::to_owned).into_iter();
    let command = command.chain(self::command(&master.title())).collect();
    Some((command, Some(container)))
}

/// How a master is called, by its title: `nginx: master process /usr/sbin/nginx -c /srv/nginx.conf -g daemon on;`.
fn command(title: &str) -> Vec<String> {
    let mut words = title.trim_start_matches(super::process::MASTER_TITLE).split_whitespace();
    let program = words.next().map_or("nginx", usual);
    let mut command = vec![program.to_owned()];
    while let Some(word) = words.next() {
        if DECIDING.contains(&word) {
            command.extend([word.to_owned()].into_iter().chain(words.next().map(str::to_owned)));
        } else if DECIDING.iter().any(|option| word.starts_with(option)) {
            command.push(word.to_owned());
        }
    }
    command
}

/// `nginx`, where its own place is one in which it is looked for.
fn usual(program: &str) -> &str {
    if call::PLACES[..2].contains(&program) || program.ends_with("bin/nginx") && in_path(program) {
        "nginx"
    } else {
        program
    }
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let first = std::env::split_paths(&path).map(|folder: PathBuf| folder.join("nginx"));
    first.into_iter().find(|file| file.exists()).as_deref() == Some(Path::new(program))
}

#[cfg(test)]
mod tests {
    use super::command;

    #[test]
    fn a_master_says_by_its_title_how_it_is_called() {
        for (title, expected) in [
            ("nginx: master process nginx", "nginx"),
            ("nginx: master process /usr/sbin/nginx -g daemon on; master_process on;", "nginx"),
            (
                "nginx: master process /opt/nginx/nginx -p /srv -c/srv/n.conf -q",
                "/opt/nginx/nginx -p /srv -c/srv/n.conf",
            ),
            ("nginx: master process nginx -g daemon off; -c /n.conf", "nginx -c /n.conf"),
        ] {
            assert_eq!(command(title).join(" "), expected);
        }
    }
}
