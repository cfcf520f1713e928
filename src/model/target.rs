//! Where the server is and how it is reached.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

/// The port of sshd unless told otherwise.
pub const SSH_PORT: u16 = 22;

/// Where the server is and how it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The server.
    pub host: HostAddr,
    /// Port of its sshd. [`SSH_PORT`] leaves the choice to the user's own ssh configuration, where that applies.
    pub port: u16,
    /// Hosts to jump through, as ssh's `ProxyJump` has it: `[user@]host[:port]`, several with commas.
    pub jump: Option<String>,
}

/// The server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostAddr {
    /// This machine, without ssh.
    Local,
    /// Another machine.
    Ssh {
        /// Login name; `None` leaves it to ssh.
        user: Option<String>,
        /// Name, IPv4 address, or IPv6 address without brackets.
        host: String,
    },
}

/// Text that names no host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a host: {reason}")]
pub struct InvalidHost {
    /// The value as given.
    pub value: String,
    /// What is wrong with it, or what would be accepted.
    pub reason: &'static str,
}

impl FromStr for HostAddr {
    type Err = InvalidHost;

    /// Reads `local`, `gpu-1`, `deploy@gpu-1.example.com`, `deploy@10.0.0.7` or `deploy@[2001:db8::7]`.
    fn from_str(value: &str) -> Result<Self, InvalidHost> {
        let refuse = |reason| InvalidHost { value: value.to_owned(), reason };
        if value == "local" {
            return Ok(Self::Local);
        }
        if value.contains("://") {
            return Err(refuse("it is written without ssh:// in front and / behind"));
        }
        // Names of directory services may hold an @ themselves.
        let (user, host) = match value.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, value),
        };
        if user.is_some_and(|user| !is_user(user)) {
            return Err(refuse("the part before @ is not a login name"));
        }
        let host = check_host(host).map_err(refuse)?;
        Ok(Self::Ssh { user: user.map(str::to_owned), host: host.to_owned() })
    }
}

impl fmt::Display for HostAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Ssh { user, host } = self else { return f.write_str("local") };
        if let Some(user) = user {
            write!(f, "{user}@")?;
        }
        if host.contains(':') { write!(f, "[{host}]") } else { f.write_str(host) }
    }
}

/// Checks hosts to jump through: `[user@]host[:port]`, several with commas.
///
/// # Errors
/// If one of them is not of that form.
pub fn check_jump(value: &str) -> Result<(), InvalidHost> {
    let refuse = |reason| InvalidHost { value: value.to_owned(), reason };
    value.split(',').try_for_each(|hop| {
        let (user, rest) = match hop.rsplit_once('@') {
            Some((user, rest)) => (Some(user), rest),
            None => (None, hop),
        };
        // An IPv6 address has colons of its own, and is in brackets here.
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            _ => (rest, None),
        };
        if user.is_some_and(|user| !is_user(user)) {
            return Err(refuse("the part before @ is not a login name"));
        }
        if port.is_some_and(|port| !port.parse::<u16>().is_ok_and(|port| port > 0)) {
            return Err(refuse("the part after : is not a port"));
        }
        check_host(host).map(drop).map_err(refuse)
    })
}

/// The host without brackets. What passes here is no option for ssh and nothing special in its configuration.
fn check_host(host: &str) -> Result<&str, &'static str> {
    if let Some(inner) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        let (address, zone) = inner.split_once('%').unwrap_or((inner, "0"));
        return match address.parse::<Ipv6Addr>() {
            Ok(_) if is_name(zone) => Ok(inner),
            _ => Err("what is in brackets is not an IPv6 address"),
        };
    }
    match host {
        "" => Err("a host is local, a name or an address, like deploy@gpu-1.example.com"),
        _ if host.matches(':').count() > 1 => {
            Err("an IPv6 address needs brackets, like deploy@[2001:db8::7]")
        }
        _ if host.contains(':') => Err("the port goes in ssh.port"),
        _ if is_name(host) => Ok(host),
        _ => Err("a name has letters, digits, dots, dashes and underscores only"),
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('-')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

fn is_user(text: &str) -> bool {
    text.split('@').all(is_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_and_shown_alike() {
        for text in [
            "local",
            "gpu-1",
            "deploy@gpu-1.example.com",
            "deploy@10.0.0.7",
            "root@[2001:db8::7]",
            "[fe80::1%eth0]",
            "ann@corp.example@gpu-1",
        ] {
            assert_eq!(text.parse::<HostAddr>().map(|host| host.to_string()), Ok(text.to_owned()));
        }
        let bracketed = "deploy@[::1]".parse::<HostAddr>();
        assert_eq!(
            bracketed,
            Ok(HostAddr::Ssh { user: Some("deploy".into()), host: "::1".into() })
        );
    }

    #[test]
    fn what_is_no_host_says_why() {
        for (text, reason) in [
            ("", "a host is local"),
            ("deploy@", "a host is local"),
            ("gpu-1:2222", "ssh.port"),
            ("::1", "brackets"),
            ("deploy@fe80::1%eth0", "brackets"),
            ("ssh://deploy@gpu-1/", "without ssh://"),
            ("[gpu-1]", "not an IPv6 address"),
            ("[::1%a b]", "not an IPv6 address"),
            ("-oProxyCommand=x", "letters"),
            ("gpu 1", "letters"),
            ("@gpu-1", "login name"),
            ("-l@gpu-1", "login name"),
            ("a;b@gpu-1", "login name"),
        ] {
            let error = text.parse::<HostAddr>().expect_err(text).to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn jumps_are_checked() {
        for good in ["bastion", "ann@bastion:2222", "a,b@c:22,[::1]:2222", "[::1]"] {
            assert_eq!(check_jump(good), Ok(()), "{good}");
        }
        for bad in ["", "a,", "a:0", "a:x", "a:70000", "-J", "a b", "$(x)", "::1"] {
            assert!(check_jump(bad).is_err(), "{bad}");
        }
    }
}
