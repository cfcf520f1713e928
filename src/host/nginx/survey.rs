//! Every nginx of this machine, before anything says which one is meant.

use std::path::{Path, PathBuf};

use super::call;
use super::process::Master;
use crate::host::docker::{self, Container};
use crate::host::process;
use crate::model::failure::Hint;
use crate::model::survey::Proxy;
use crate::swap::nginx_conf::DirectPass;

/// Options that decide which configuration is read, each with a value. What `-g` adds concerns a start alone.
const DECIDING: [&str; 3] = ["-c", "-p", "-e"];

/// Looks at the nginx that a command names; without one, at all that run, or else at the one that is installed.
pub async fn survey(named: &[String]) -> Vec<Proxy> {
    let mut seen: Vec<(Vec<String>, Option<Container>)> = Vec::new();
    if named.is_empty() {
        for master in Master::all() {
            let found = match master.is_contained() {
                true => contained(&master).await,
                false => Some((command(&master.title()), None)),
            };
            if let Some(found) = found.filter(|found| !seen.iter().any(|(it, _)| *it == found.0)) {
                seen.push(found);
            }
        }
    } else {
        seen.push((named.to_vec(), None));
    }
    if seen.is_empty() {
        seen.push((vec!["nginx".to_owned()], None));
    }
    let mut proxies = Vec::new();
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
    match call::test_and_dump(&proxy.command).await {
        Ok(dump) => {
            proxy.upstreams = dump.upstreams();
            proxy.direct = dump.direct_passes("", &[]).iter().map(told).collect();
        }
        Err(error) => proxy.failure = Some(error.to_failure()),
    }
    if let Some(container) = container {
        for upstream in &mut proxy.upstreams {
            upstream.file = upstream.file.take().and_then(|file| container.outside(&file));
        }
    }
    proxy
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
