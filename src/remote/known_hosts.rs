//! The host keys that were pinned: checked line by line before ssh reads them.

use super::public_key::{PublicKey, is_kind};
use crate::model::failure::Hint;
use crate::model::target::SSH_PORT;

/// Pinned host keys, in the format of sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownHosts {
    lines: Vec<Line>,
}

/// The pinned host keys cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KnownHostsError {
    /// Nothing but comments was given.
    #[error("the known hosts are empty")]
    Empty,
    /// A line is not as it should be.
    #[error("line {number} of the known hosts is not valid: {fault}")]
    Line {
        /// From 1.
        number: usize,
        /// What is wrong with it.
        fault: &'static str,
    },
}

impl Hint for KnownHostsError {
    fn hints(&self) -> Vec<String> {
        vec![
            "each line is `HOST TYPE KEY`, as `ssh-keyscan -p PORT HOST` prints it; compare the fingerprint with what \
             `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` prints on the server's console"
                .to_owned(),
        ]
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    /// `@cert-authority` or `@revoked`.
    marker: Option<String>,
    /// Patterns with commas, or one hashed name.
    hosts: String,
    key: PublicKey,
}

impl KnownHosts {
    /// Reads one or more lines; comments and blank lines are dropped.
    ///
    /// # Errors
    /// If there is no line, or one that ssh would skip without a word.
    pub fn parse(text: &str) -> Result<Self, KnownHostsError> {
        let lines: Vec<Line> = text
            .lines()
            .enumerate()
            .map(|(index, line)| (index + 1, line.trim()))
            .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
            .map(|(number, line)| {
                Line::parse(line).map_err(|fault| KnownHostsError::Line { number, fault })
            })
            .collect::<Result<_, _>>()?;
        if lines.is_empty() { Err(KnownHostsError::Empty) } else { Ok(Self { lines }) }
    }

    /// The file for ssh.
    ///
    /// For another port than 22 ssh looks `[host]:port` up and, only if that is not listed, takes a key that is listed
    /// for the bare host; but it then does not know which type of key to ask the server for. So the bare host's keys
    /// are written again under `[host]:port`: the same keys are trusted as before, and the right one is asked for.
    /// Whoever pins `[host]:port` gets that alone.
    pub(super) fn file(&self, host: &str, port: u16) -> String {
        let mut text: String = self.lines.iter().map(Line::text).collect();
        let at_port = format!("[{host}]:{port}");
        if port != SSH_PORT && !self.lines.iter().any(|line| line.names(&at_port)) {
            let bare = self.lines.iter().filter(|line| line.names(host));
            text.extend(bare.map(|line| Line { hosts: at_port.clone(), ..line.clone() }.text()));
        }
        text
    }
}

impl Line {
    fn parse(line: &str) -> Result<Self, &'static str> {
        if line.starts_with("SHA256:") || line.starts_with("MD5:") {
            return Err("a fingerprint alone pins nothing for ssh");
        }
        if line.contains("PRIVATE KEY") {
            return Err("a private key does not belong here");
        }
        let mut words = line.split_whitespace().peekable();
        let marker = words.next_if(|word| word.starts_with('@')).map(str::to_owned);
        if marker
            .as_deref()
            .is_some_and(|marker| !["@cert-authority", "@revoked"].contains(&marker))
        {
            return Err("the only markers are @cert-authority and @revoked");
        }
        let hosts = words.next().unwrap_or_default();
        if is_kind(hosts) {
            return Err("the host is missing in front of the key");
        }
        let (Some(kind), Some(base64)) = (words.next(), words.next()) else {
            return Err("host, type and key are needed");
        };
        let key = PublicKey::parse(kind, base64)?;
        // The rest is a comment; when newlines got lost, it is the next entry, which ssh would ignore.
        if words.any(is_kind) {
            return Err("several entries on one line");
        }
        Ok(Self { marker, hosts: hosts.to_owned(), key })
    }

    /// Whether a host is listed by its plain name. Hashed names and wildcards are left to ssh.
    fn names(&self, host: &str) -> bool {
        self.hosts.split(',').any(|name| name.eq_ignore_ascii_case(host))
    }

    fn text(&self) -> String {
        let marker = self.marker.as_ref().map(|marker| format!("{marker} ")).unwrap_or_default();
        format!("{marker}{} {} {}\n", self.hosts, self.key.kind, self.key.base64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIPMttH0ltar+Sxa1/mMEm92RKdTt43nCAXDRSe8I3xrq";

    fn file(text: &str, port: u16) -> String {
        KnownHosts::parse(text).unwrap().file("gpu-1", port)
    }

    #[test]
    fn good_lines_reach_ssh() {
        let hashed = "|1|JfKTdBh7rNbXkVAQCRp4OQoPfmI=|USECr3SWf1JUPsms5AqfD5QfxkM=";
        let text = format!(
            "# pinned on Monday\r\n\r\ngpu-1,10.0.0.7 {KEY} root@gpu-1\r\n@revoked * {KEY}\r\n{hashed} {KEY}"
        );
        assert_eq!(
            file(&text, 22),
            format!("gpu-1,10.0.0.7 {KEY}\n@revoked * {KEY}\n{hashed} {KEY}\n")
        );
    }

    #[test]
    fn a_bare_host_is_pinned_for_its_port_too() {
        let bare = format!("GPU-1 {KEY}\nother {KEY}\n");
        assert_eq!(file(&bare, 2222), format!("{bare}[gpu-1]:2222 {KEY}\n"));
        assert_eq!(file(&bare, 22), bare);
    }

    #[test]
    fn a_pinned_port_stands_alone() {
        let both = format!("gpu-1 {KEY}\n[gpu-1]:2222 {KEY}\n");
        assert_eq!(file(&both, 2222), both);
    }

    #[test]
    fn bad_lines_are_named() {
        for (bad, fault) in [
            (KEY.to_owned(), "host is missing"),
            ("SHA256:abc".to_owned(), "fingerprint"),
            ("gpu-1".to_owned(), "type and key are needed"),
            ("gpu-1 ssh-ed25519".to_owned(), "type and key are needed"),
            ("gpu-1 ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AA".to_owned(), "whole base64"),
            ("gpu-1 ssh-ed25519 AAAAC3NzaC1lZDI1NTE5".to_owned(), "cut off"),
            (format!("gpu-1 {}", KEY.replace("ed25519", "rsa")), "type"),
            (format!("@trusted gpu-1 {KEY}"), "markers"),
            (format!("gpu-1 {KEY} gpu-2 {KEY}"), "several entries"),
        ] {
            let error = KnownHosts::parse(&format!("# comment\n{bad}\n")).unwrap_err().to_string();
            assert!(error.contains("line 2") && error.contains(fault), "{bad}: {error}");
        }
        assert_eq!(KnownHosts::parse("# nothing\n"), Err(KnownHostsError::Empty));
    }
}
