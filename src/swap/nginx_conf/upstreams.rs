//! Every upstream of a configuration, with the way that a request takes to it.

use std::net::{Ipv4Addr, SocketAddr};

use super::Dump;
use super::dump::Place;
use super::edit::{is_active, port_of};
use super::syntax::Directive;
use crate::model::survey::{Entrance, Upstream};

/// What engines are asked for.
const WANTED: &str = "/v1/models";

/// A `proxy_pass`, with the blocks that it stands in.
struct Pass<'a> {
    server: &'a Directive,
    location: Option<&'a Directive>,
    /// Name of the upstream.
    to: String,
    /// The path that takes the location's place, if there is one.
    path: Option<String>,
}

/// What a server block says of itself.
struct Said<'a> {
    server: &'a Directive,
    name: &'static str,
    args: Vec<&'a str>,
}

impl Dump {
    /// Every upstream, in the order in which nginx reads them.
    pub fn upstreams(&self) -> Vec<Upstream> {
        let mut found: Vec<Upstream> = Vec::new();
        let mut passes = Vec::new();
        let mut said = Vec::new();
        self.visit(&mut |place, directive| {
            let first = directive.args().next().unwrap_or_default();
            if directive.name() == "upstream" && directive.block.is_some() {
                found.push(Upstream {
                    name: first.to_owned(),
                    file: Some(place.file()),
                    servers: Vec::new(),
                    port: None,
                    entrance: None,
                });
            }
            let owner = place.upstream().and_then(|block| block.args().next());
            if let Some(owner) = owner.filter(|_| is_active(directive))
                && let Some(upstream) = found.iter_mut().find(|upstream| upstream.name == owner)
            {
                upstream.file = Some(place.file());
                upstream.servers.push(place.text(directive));
            }
            passes.extend(pass(place, directive));
            said.extend(saying(place, directive));
        });
        for upstream in &mut found {
            if let [server] = &upstream.servers[..] {
                upstream.port = is_here(server).then(|| port_of(server).ok()).flatten();
            }
            let ways = passes.iter().filter(|pass| pass.to == upstream.name);
            upstream.entrance = ways.filter_map(|pass| entrance(pass, &said)).next();
        }
        found
    }
}

/// Whether a `server` line names this machine.
fn is_here(server: &str) -> bool {
    let address = server.split_whitespace().nth(1).unwrap_or_default();
    ["127.0.0.1", "localhost", "[::1]"]
        .iter()
        .any(|host| address.strip_prefix(host).is_some_and(|rest| rest.starts_with(':')))
}

/// A `proxy_pass` inside of a server block of http.
fn pass<'a>(place: &Place<'a>, directive: &'a Directive) -> Option<Pass<'a>> {
    let target = directive.args().next().filter(|_| directive.name() == "proxy_pass")?;
    let (_, rest) = target.split_once("://")?;
    let (to, path) = match rest.find('/') {
        Some(at) => (&rest[..at], Some(rest[at..].to_owned())),
        None => (rest, None),
    };
    let server = place.blocks.iter().copied().find(|block| block.name() == "server")?;
    let location = place.blocks.iter().copied().rfind(|block| block.name() == "location");
    Some(Pass { server, location, to: to.to_owned(), path })
}

/// `listen` or `server_name` of a server block.
fn saying<'a>(place: &Place<'a>, directive: &'a Directive) -> Option<Said<'a>> {
    let server = place.blocks.last().copied().filter(|block| block.name() == "server")?;
    let name = ["listen", "server_name"].into_iter().find(|name| *name == directive.name())?;
    Some(Said { server, name, args: directive.args().collect() })
}

/// The way in by one `proxy_pass`; `None` where it is encrypted, on a socket, or by a path that is not plain.
fn entrance(pass: &Pass<'_>, said: &[Said<'_>]) -> Option<Entrance> {
    let of = |name: &'static str| {
        said.iter().filter(move |said| said.name == name && std::ptr::eq(said.server, pass.server))
    };
    let prefix = match pass.location {
        None => "/",
        Some(location) => match location.args().collect::<Vec<_>>()[..] {
            [prefix] | ["^~", prefix] if prefix.starts_with('/') => prefix,
            _ => return None,
        },
    };
    let path = match &pass.path {
        None => Some(WANTED.to_owned()).filter(|path| path.starts_with(prefix)),
        // What follows the location follows the path of `proxy_pass`.
        Some(path) => WANTED.strip_prefix(path.as_str()).map(|rest| format!("{prefix}{rest}")),
    }?;
    let address = match of("listen").next() {
        // As root, which it mostly is (ngx_http_core_module).
        None => Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 80))),
        Some(_) => of("listen").find_map(|said| plain(&said.args)),
    }?;
    let is_name = |name: &&&str| {
        name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || ".-".contains(c))
    };
    let host = of("server_name").flat_map(|said| &said.args).find(is_name);
    Some(Entrance {
        url: format!("http://{address}{path}"),
        host: host.map(|name| (*name).to_owned()),
        unmet: None,
    })
}

/// Where a `listen` line without TLS is reached on this machine.
fn plain(args: &[&str]) -> Option<SocketAddr> {
    let (address, options) = args.split_first()?;
    if options.iter().any(|option| ["ssl", "quic", "proxy_protocol"].contains(option)) {
        return None;
    }
    let here = |port| Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    if let Ok(port) = address.parse() {
        return here(port);
    }
    let (host, port) = match address.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().ok()?),
        None => (*address, 80),
    };
    match host {
        "*" | "0.0.0.0" | "[::]" | "localhost" => here(port),
        host => Some(SocketAddr::new(host.trim_matches(['[', ']']).parse().ok()?, port)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstreams(text: &str) -> Vec<Upstream> {
        Dump::parse(&format!("# configuration file /n.conf:\nhttp {{ {text} }}\n"))
            .unwrap()
            .upstreams()
    }

    /// URL and host of the way in to an upstream whose server block says this.
    fn way(server: &str) -> Option<(String, Option<String>)> {
        let text = format!("upstream llm {{ server 127.0.0.1:8001; }} server {{ {server} }}");
        let entrance = upstreams(&text).pop()?.entrance?;
        Some((entrance.url, entrance.host))
    }

    #[test]
    fn an_upstream_is_found_with_its_servers_and_its_port() {
        let found = upstreams(
            "upstream a { server 127.0.0.1:8001 max_fails=0; keepalive 4; server 127.0.0.1:9 down; } \
             upstream b { server 10.0.0.7:80; } upstream c { server [::1]:1; server localhost:2; } \
             upstream d { server unix:/run/x; } upstream e { server localhost:3; }",
        );
        let seen: Vec<_> = found
            .iter()
            .map(|it| (it.name.as_str(), it.servers.len(), it.port.map(|port| port.0)))
            .collect();
        assert_eq!(
            seen,
            [
                ("a", 1, Some(8001)),
                ("b", 1, None),
                ("c", 2, None),
                ("d", 1, None),
                ("e", 1, Some(3))
            ]
        );
        assert_eq!(found[0].servers, ["server 127.0.0.1:8001 max_fails=0"]);
        assert_eq!(found[0].file.as_deref(), Some(std::path::Path::new("/n.conf")));
    }

    #[test]
    fn the_way_in_leads_through_listen_location_and_path() {
        let here = "http://127.0.0.1";
        for (server, url, host) in [
            ("location / { proxy_pass http://llm; }", "$:80/v1/models", None),
            ("listen 8080; location /v1/ { proxy_pass http://llm; }", "$:8080/v1/models", None),
            (
                "listen *:8080; location ^~ /chat/ { proxy_pass http://llm/; }",
                "$:8080/chat/v1/models",
                None,
            ),
            ("listen [::]:80; location /c { proxy_pass http://llm/v1; }", "$:80/c/models", None),
            (
                "listen 443 ssl; listen 10.0.0.1:81 default_server; server_name _ *.x api.example.com; \
                 location / { proxy_pass http://llm; }",
                "http://10.0.0.1:81/v1/models",
                Some("api.example.com"),
            ),
        ] {
            let expected = (url.replace('$', here), host.map(str::to_owned));
            assert_eq!(way(server), Some(expected), "{server}");
        }
        for server in [
            "listen 443 ssl; location / { proxy_pass http://llm; }",
            "listen unix:/run/n; location / { proxy_pass http://llm; }",
            "location ~ ^/v1 { proxy_pass http://llm; }",
            "location /v2/ { proxy_pass http://llm; }",
            "location / { proxy_pass http://other; }",
            "location /x/ { proxy_pass http://llm/api/; }",
        ] {
            assert_eq!(way(server), None, "{server}");
        }
    }
}
