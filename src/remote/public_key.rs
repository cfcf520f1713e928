//! Public keys as OpenSSH writes them: a type and a blob in base64.

use std::ffi::OsStr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use sha2::{Digest, Sha256};

use super::program;

/// How long a server is asked for its host keys: it is asked to explain a failure that is already certain.
const KEYSCAN_LIMIT: Duration = Duration::from_secs(8);

/// ssh-keyscan's own bound per connection in seconds, below [`KEYSCAN_LIMIT`].
const KEYSCAN_TIMEOUT_S: &str = "5";

/// A public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    /// `ssh-ed25519`, `ecdsa-sha2-nistp256`, `ssh-rsa`, …
    pub kind: String,
    /// The key itself in base64.
    pub base64: String,
    /// As ssh and ssh-keygen print it: `SHA256:…`.
    pub fingerprint: String,
}

impl PublicKey {
    /// Reads type and base64 text, and holds them against each other: the blob is a list of strings, each behind its
    /// length, and the first is the type (RFC 4253, 6.6).
    pub(super) fn parse(kind: &str, base64: &str) -> Result<Self, &'static str> {
        let blob = STANDARD.decode(base64).map_err(|_| "the key is not whole base64 text")?;
        let strings = strings(&blob).ok_or("the key is cut off")?;
        match strings.as_slice() {
            [named, _, ..] if *named == kind.as_bytes() => {}
            [_, _, ..] => return Err("the key is not of the type that the line says"),
            _ => return Err("the key is cut off"),
        }
        let fingerprint = format!("SHA256:{}", STANDARD_NO_PAD.encode(Sha256::digest(&blob)));
        Ok(Self { kind: kind.to_owned(), base64: base64.to_owned(), fingerprint })
    }

    /// The name of the file that holds such a host key on a server: `ed25519` in `ssh_host_ed25519_key.pub`.
    pub(super) fn family(&self) -> &str {
        match self.kind.as_str() {
            "ssh-rsa" => "rsa",
            kind if kind.starts_with("ecdsa-") => "ecdsa",
            kind => kind.strip_prefix("ssh-").unwrap_or(kind),
        }
    }
}

/// Splits a blob into its strings; `None` if they do not fill it.
fn strings(mut blob: &[u8]) -> Option<Vec<&[u8]>> {
    let mut strings = Vec::new();
    while !blob.is_empty() {
        let (length, rest) = blob.split_first_chunk::<4>()?;
        let (string, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        strings.push(string);
        blob = rest;
    }
    Some(strings)
}

/// Whether a word looks like the type of a key rather than a host or a comment.
pub(super) fn is_kind(word: &str) -> bool {
    ["ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-"].iter().any(|prefix| word.starts_with(prefix))
}

/// The host keys that `host` offers at `port`, best first. Best effort: empty when it can't be asked.
pub(super) async fn scan(host: &str, port: u16) -> Vec<PublicKey> {
    let port = port.to_string();
    let args = ["-T", KEYSCAN_TIMEOUT_S, "-p", &port, "--", host].map(OsStr::new);
    let Ok(scanned) = program::run("ssh-keyscan", &args, KEYSCAN_LIMIT).await else {
        return Vec::new();
    };
    let mut keys: Vec<PublicKey> = scanned
        .stdout
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace().skip(1);
            PublicKey::parse(words.next()?, words.next()?).ok()
        })
        .collect();
    // The order in which ssh prefers them.
    keys.sort_by_key(|key| match key.family() {
        "ed25519" => 0,
        "ecdsa" => 1,
        _ => 2,
    });
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOB: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIPMttH0ltar+Sxa1/mMEm92RKdTt43nCAXDRSe8I3xrq";

    #[test]
    fn a_blob_that_belies_its_line_is_refused() {
        let key = PublicKey::parse("ssh-ed25519", BLOB).unwrap();
        assert_eq!(
            key.fingerprint, "SHA256:qcKRxfPE24DmymB1DlRb+mikV77NceU1k5h5DUM/qgI",
            "what ssh-keygen printed"
        );
        assert!(PublicKey::parse("ssh-rsa", BLOB).is_err());
        assert!(PublicKey::parse("ssh-ed25519", "AAAA").is_err());
        assert!(PublicKey::parse("ssh-ed25519", &BLOB[..20]).is_err());
        assert!(PublicKey::parse("ssh-ed25519", "no base64!").is_err());
    }
}
