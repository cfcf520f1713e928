//! The `server` lines of one upstream in one file: finding them, and changing their port.

use std::ops::Range;

use super::error::ConfError;
use super::syntax::{Directive, Word, parse};
use crate::model::ids::Port;

/// The port of an address without one (nginx, `server` of `ngx_http_upstream_module`).
const DEFAULT_PORT: Port = Port(80);

/// The active `server` directives of an upstream, as written and in order, without their `;`.
///
/// `file` is one file: either the one with the `upstream` block, or one that is included inside that block and holds the
/// directives alone. Lines marked `down` or `backup` are not active.
///
/// # Errors
/// If the text is no configuration, defines the upstream more than once, or a directive is no UTF-8.
pub fn active_servers(file: &[u8], upstream: &str) -> Result<Vec<String>, ConfError> {
    Ok(spans(file, upstream)?.into_iter().map(|(_, text)| text).collect())
}

/// The file with its active `server` directives changed from `from` to `to`; every other byte stays.
///
/// A file that already says `to` comes back as it is.
///
/// # Errors
/// As [`active_servers`]; [`ConfError::Edited`] if the directives are neither `from` nor `to`.
pub fn replace_servers(
    file: &[u8],
    upstream: &str,
    from: &[String],
    to: &[String],
) -> Result<Vec<u8>, ConfError> {
    let spans = spans(file, upstream)?;
    let found: Vec<String> = spans.iter().map(|(_, text)| text.clone()).collect();
    if found == to {
        return Ok(file.to_vec());
    }
    if found != from || from.len() != to.len() {
        return Err(ConfError::Edited {
            upstream: upstream.to_owned(),
            found,
            expected: from.to_vec(),
        });
    }
    let mut edited = Vec::with_capacity(file.len() + 8);
    let mut copied = 0;
    for ((span, _), text) in spans.iter().zip(to) {
        edited.extend_from_slice(file.get(copied..span.start).unwrap_or_default());
        edited.extend_from_slice(text.as_bytes());
        copied = span.end;
    }
    edited.extend_from_slice(file.get(copied..).unwrap_or_default());
    Ok(edited)
}

/// The port in the address of a `server` directive.
///
/// # Errors
/// If the address has no port that could be changed: a unix socket, or no address that nginx would accept.
pub fn port_of(server: &str) -> Result<Port, ConfError> {
    let (_, address) = address(server)?;
    match port_span(&address)? {
        Some(span) => address.get(span).and_then(parse_port).ok_or(ConfError::Address { address }),
        None => Ok(DEFAULT_PORT),
    }
}

/// The host in the address of a `server` directive, without brackets.
///
/// # Errors
/// As [`port_of`].
pub fn host_of(server: &str) -> Result<String, ConfError> {
    let (_, address) = address(server)?;
    let end = port_span(&address)?.map_or(address.len(), |span| span.start - 1);
    let host = address.get(..end).unwrap_or_default();
    Ok(host.trim_matches(['[', ']']).to_owned())
}

/// The same directive with another port; every other byte stays.
///
/// # Errors
/// As [`port_of`].
pub fn with_port(server: &str, port: Port) -> Result<String, ConfError> {
    let (at, address) = address(server)?;
    let mut changed = server.to_owned();
    match port_span(&address)? {
        Some(span) => changed.replace_range(at + span.start..at + span.end, &port.to_string()),
        None => changed.insert_str(at + address.len(), &format!(":{port}")),
    }
    Ok(changed)
}

/// Whether a directive is a `server` line that takes requests: `down` and `backup` ones do not.
pub(super) fn is_active(directive: &Directive) -> bool {
    directive.name() == "server"
        && directive.block.is_none()
        && directive.words.len() > 1
        && !directive.args().any(|arg| arg == "down" || arg == "backup")
}

fn spans(file: &[u8], upstream: &str) -> Result<Vec<(Range<usize>, String)>, ConfError> {
    let directives = parse(file)?;
    let mut blocks = Vec::new();
    collect_upstreams(&directives, upstream, &mut blocks);
    let inside = match blocks.as_slice() {
        [] => directives.as_slice(),
        [one] => one.block.as_deref().unwrap_or_default(),
        several => {
            let places = several.iter().map(|block| format!("line {}", block.line)).collect();
            return Err(ConfError::Ambiguous { upstream: upstream.to_owned(), places });
        }
    };
    let text = |directive: &Directive| {
        let bytes = file.get(directive.span.clone()).unwrap_or_default();
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok((directive.span.clone(), text.to_owned())),
            Err(_) => Err(ConfError::NotText { line: directive.line }),
        }
    };
    inside.iter().filter(|directive| is_active(directive)).map(text).collect()
}

fn collect_upstreams<'a>(
    directives: &'a [Directive],
    upstream: &str,
    found: &mut Vec<&'a Directive>,
) {
    for directive in directives {
        if let Some(block) = &directive.block {
            if directive.name() == "upstream" && directive.args().eq([upstream]) {
                found.push(directive);
            }
            collect_upstreams(block, upstream, found);
        }
    }
}

/// The address of a `server` directive and where it stands in the text.
fn address(server: &str) -> Result<(usize, String), ConfError> {
    let invalid = || ConfError::Address { address: server.to_owned() };
    let directives = parse(format!("{server};").as_bytes())?;
    let [Directive { words, block: None, .. }] = directives.as_slice() else {
        return Err(invalid());
    };
    let [_, Word { span, value }, ..] = words.as_slice() else { return Err(invalid()) };
    // An address with escapes is no address that anybody wrote on purpose; its bytes could not be counted.
    if server.get(span.clone()) == Some(value.as_str()) {
        Ok((span.start, value.clone()))
    } else {
        Err(invalid())
    }
}

/// Where the port stands in an address; `None` if there is none.
fn port_span(address: &str) -> Result<Option<Range<usize>>, ConfError> {
    // nginx takes what begins with `unix:`, in any case, for a socket. A host of that name would become one with a port.
    if address.split(':').next().is_some_and(|host| host.eq_ignore_ascii_case("unix")) {
        return Err(ConfError::UnixSocket { address: address.to_owned() });
    }
    let host = if address.starts_with('[') {
        address.find(']').map(|end| end + 1)
    } else {
        Some(address.find(':').unwrap_or(address.len()))
    };
    let port =
        host.filter(|end| *end > 0).and_then(|end| address.get(end..).map(|rest| (end, rest)));
    match port {
        Some((_, "")) => Ok(None),
        Some((end, rest)) if rest.strip_prefix(':').and_then(parse_port).is_some() => {
            Ok(Some(end + 1..address.len()))
        }
        _ => Err(ConfError::Address { address: address.to_owned() }),
    }
}

fn parse_port(digits: &str) -> Option<Port> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|port| plain && *port > 0).map(Port)
}
