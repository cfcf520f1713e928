//! Why ssh gave up, read from what it wrote to its standard error. It has no other way to say so.

/// Why ssh gave up.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The host key is not a trusted one.
    HostKey {
        /// As in known_hosts: `gpu-1` or `[gpu-1]:2222`; of the server or of a host that is jumped through.
        name: Option<String>,
        fault: HostKeyFault,
    },
    /// The server does not take our key.
    Denied { said: String },
    /// There is no such host.
    Unresolved { said: String },
    /// Nobody answers, or nobody who speaks ssh.
    Unreachable { said: String },
    /// Something else.
    Other { said: String },
}

/// What is wrong with a host key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostKeyFault {
    /// None of the offered types is pinned for this host.
    Unknown,
    /// Another key of the same type is pinned.
    Changed,
    /// The key is pinned as one that must not be trusted any more.
    Revoked,
}

/// Phrases of OpenSSH 9.2 for "nobody answers": sshconnect.c, kex.c and, for jumps, channels.c.
const UNREACHABLE: [&str; 6] = [
    "connect to host ",
    "open failed: connect failed",
    "open failed: administratively prohibited",
    "Connection timed out",
    "kex_exchange_identification",
    "banner exchange",
];

/// Reads what ssh wrote. With a jump two of them write; the cause comes before what follows from it.
pub(super) fn read(log: &str) -> Refusal {
    let lines: Vec<&str> = log.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let first = |phrase: &str| {
        lines.iter().find(|line| line.contains(phrase)).map(|line| (*line).to_owned())
    };

    if first("Host key verification failed").is_some() {
        return host_key(&lines);
    }
    if let Some(said) = first("Permission denied (") {
        return Refusal::Denied { said };
    }
    if let Some(said) = first("Could not resolve hostname") {
        return Refusal::Unresolved { said };
    }
    if let Some(said) = UNREACHABLE.iter().find_map(|phrase| first(phrase)) {
        return Refusal::Unreachable { said };
    }
    Refusal::Other {
        said: lines.last().map_or_else(|| "ssh said nothing".to_owned(), |line| (*line).to_owned()),
    }
}

fn host_key(lines: &[&str]) -> Refusal {
    let between = |before: &str, after: &str| {
        lines.iter().find_map(|line| {
            let (_, rest) = line.split_once(before)?;
            rest.split_once(after).map(|(name, _)| name.to_owned())
        })
    };
    if lines.iter().any(|line| line.contains("REVOKED HOST KEY DETECTED")) {
        let name = between("host key for ", " is marked as revoked")
            .or_else(|| between("key for ", " was revoked"));
        return Refusal::HostKey { name, fault: HostKeyFault::Revoked };
    }
    if let Some(name) = between("ost key for ", " has changed") {
        return Refusal::HostKey { name: Some(name), fault: HostKeyFault::Changed };
    }
    Refusal::HostKey {
        name: between("host key is known for ", " and you have"),
        fault: HostKeyFault::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_found_among_what_follows_from_it() {
        let behind_jump = "channel 0: open failed: connect failed: Connection refused\nstdio forwarding failed\n\
                           kex_exchange_identification: Connection closed by remote host\n\
                           Connection closed by UNKNOWN port 65535\n";
        assert_eq!(
            read(behind_jump),
            Refusal::Unreachable {
                said: "channel 0: open failed: connect failed: Connection refused".into()
            }
        );
        let jump_denied = "ann@bastion: Permission denied (publickey).\r\n\
                           kex_exchange_identification: Connection closed by remote host\r\n";
        assert_eq!(
            read(jump_denied),
            Refusal::Denied { said: "ann@bastion: Permission denied (publickey).".into() }
        );
    }

    #[test]
    fn whose_host_key_it_was() {
        let changed = "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nOffending ED25519 key in /tmp/x:1\n\
                       Host key for [gpu-1]:2222 has changed and you have requested strict checking.\n\
                       Host key verification failed.\n";
        assert_eq!(
            read(changed),
            Refusal::HostKey { name: Some("[gpu-1]:2222".into()), fault: HostKeyFault::Changed }
        );
    }

    #[test]
    fn the_last_word_is_kept_when_nothing_is_recognised() {
        assert_eq!(read("one\ntwo\n\n"), Refusal::Other { said: "two".into() });
        assert_eq!(read(""), Refusal::Other { said: "ssh said nothing".into() });
    }
}
