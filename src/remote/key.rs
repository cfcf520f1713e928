//! The private key: from the text of a secret to a file that ssh accepts.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::program::{self, ProgramError};
use super::public_key::PublicKey;
use crate::model::failure::Hint;
use crate::model::secret::Secret;

/// ssh-keygen only reads a file here; more means a stuck machine.
const KEYGEN_LIMIT: Duration = Duration::from_secs(10);

/// Characters a line in a key file: what ssh-keygen itself writes.
const KEY_COLUMNS: usize = 70;

/// The private key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Nothing was given.
    #[error("the ssh key is empty")]
    Empty,
    /// The public half was given.
    #[error("the ssh key is a public key")]
    Public,
    /// PuTTY's own format.
    #[error("the ssh key is in the format of PuTTY")]
    Putty,
    /// Something else.
    #[error("the ssh key is no private key: it has no line with BEGIN and PRIVATE KEY")]
    NoKey,
    /// The last line is missing.
    #[error("the ssh key is cut off: its END line is missing")]
    Cut,
    /// A passphrase is needed.
    #[error("the ssh key is encrypted")]
    Encrypted,
    /// ssh-keygen does not take it.
    #[error("the ssh key is damaged: {detail}")]
    Damaged {
        /// What ssh-keygen said.
        detail: String,
    },
    /// It could not be written to the private folder.
    #[error("cannot write {}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// ssh-keygen could not be run.
    #[error(transparent)]
    Program(#[from] ProgramError),
}

impl Hint for KeyError {
    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::Empty => {
                "check the file, or the name of the secret: one that is not defined, or not shown to pull requests of forks, is empty"
            }
            Self::Public => "give the private half: the file without .pub",
            Self::Putty => "convert it: puttygen key.ppk -O private-openssh -o key",
            Self::NoKey | Self::Cut => {
                "give the whole file, from the line with BEGIN to the line with END, both included; one that ends with .pub is the public half"
            }
            Self::Encrypted => {
                "make a key for this purpose alone, without a passphrase: ssh-keygen -t ed25519 -N '' -f model-swap-key"
            }
            Self::Damaged { .. } => {
                "check the file that was copied: ssh-keygen -y -f FILE must print its public key"
            }
            Self::Write { .. } | Self::Program(_) => return Vec::new(),
        };
        vec![hint.to_owned()]
    }
}

/// A private key that ssh can read.
pub(super) struct KeyFile {
    pub(super) path: PathBuf,
    pub(super) public: PublicKey,
}

/// Mends the key, writes it into `folder` and lets ssh-keygen judge it.
pub(super) async fn write(folder: &Path, key: &Secret) -> Result<KeyFile, KeyError> {
    let text = mend(key.expose())?;
    let path = folder.join("key");
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|source| KeyError::Write { path: path.clone(), source })?;

    let args = ["-y", "-P", "", "-f"].map(OsStr::new);
    let args = [&args[..], &[path.as_os_str()]].concat();
    let shown = program::run("ssh-keygen", &args, KEYGEN_LIMIT).await?;
    let mut words = shown.stdout.split_whitespace();
    let public = match (words.next(), words.next()) {
        (Some(kind), Some(base64)) if shown.success => PublicKey::parse(kind, base64).ok(),
        _ => None,
    };
    match public {
        Some(public) => Ok(KeyFile { path, public }),
        None if shown.stderr.contains("passphrase") => Err(KeyError::Encrypted),
        None => {
            // ssh-keygen says `Load key "FILE": reason`; the file's name is ours and tells nothing.
            let said = shown.stderr.trim();
            let reason = said.rsplit_once("\": ").map_or(said, |(_, reason)| reason);
            Err(KeyError::Damaged { detail: reason.to_owned() })
        }
    }
}

/// The key with its line ends as ssh wants them, whatever a form or a shell has made of them.
fn mend(text: &str) -> Result<String, KeyError> {
    // JSON and some secret stores hand newlines over as two characters.
    let text = text.replace("\\n", "\n");
    let text = text.trim();
    if text.is_empty() {
        return Err(KeyError::Empty);
    }
    if text.starts_with("PuTTY-User-Key-File") {
        return Err(KeyError::Putty);
    }
    if super::public_key::is_kind(text) || text.contains("PUBLIC KEY") {
        return Err(KeyError::Public);
    }
    let (_, rest) = text.split_once("-----BEGIN ").ok_or(KeyError::NoKey)?;
    let (label, rest) = rest.split_once("-----").ok_or(KeyError::NoKey)?;
    if !label.ends_with("PRIVATE KEY") {
        return Err(KeyError::NoKey);
    }
    let (body, _) = rest.split_once("-----END ").ok_or(KeyError::Cut)?;
    if label.contains("ENCRYPTED") || body.contains("ENCRYPTED") {
        return Err(KeyError::Encrypted);
    }
    let body: Vec<char> = body.chars().filter(|c| !c.is_whitespace()).collect();
    let lines = body.chunks(KEY_COLUMNS).flat_map(|line| line.iter().chain(&['\n']));
    Ok(format!("-----BEGIN {label}-----\n{}-----END {label}-----\n", lines.collect::<String>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generated(args: &[&str]) -> (tempfile::TempDir, String) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("made");
        let made = std::process::Command::new("ssh-keygen")
            .args(["-q", "-f"])
            .arg(&file)
            .args(args)
            .status();
        assert!(made.unwrap().success());
        let text = std::fs::read_to_string(&file).unwrap();
        (folder, text)
    }

    async fn judged(folder: &tempfile::TempDir, text: &str) -> Result<String, KeyError> {
        let _ = std::fs::remove_file(folder.path().join("key"));
        write(folder.path(), &Secret::from(text.to_owned())).await.map(|key| key.public.fingerprint)
    }

    #[tokio::test]
    async fn mangled_line_ends_are_mended() {
        for args in
            [&["-t", "ed25519", "-N", ""][..], &["-t", "rsa", "-b", "2048", "-m", "PEM", "-N", ""]]
        {
            let (folder, text) = generated(args);
            let as_made = judged(&folder, &text).await.unwrap();
            for mangled in [
                text.replace('\n', "\r\n"),
                text.trim_end().to_owned(),
                text.replace('\n', " "),
                text.replace('\n', "\\n"),
                format!("\n\n  {text}\n\n"),
            ] {
                assert_eq!(judged(&folder, &mangled).await.unwrap(), as_made, "{mangled:?}");
            }
        }
    }

    #[tokio::test]
    async fn the_fingerprint_is_what_ssh_keygen_prints() {
        let (folder, text) = generated(&["-t", "ed25519", "-N", ""]);
        let ours = judged(&folder, &text).await.unwrap();
        let theirs = std::process::Command::new("ssh-keygen")
            .arg("-lf")
            .arg(folder.path().join("made.pub"))
            .output();
        let theirs = String::from_utf8(theirs.unwrap().stdout).unwrap();
        assert!(theirs.contains(&ours), "{theirs} {ours}");
    }

    #[tokio::test]
    async fn encrypted_keys_are_named_so() {
        for args in [
            &["-t", "ed25519", "-N", "secret"][..],
            &["-t", "rsa", "-b", "2048", "-m", "PEM", "-N", "secret"],
            &["-t", "rsa", "-b", "2048", "-m", "PKCS8", "-N", "secret"],
        ] {
            let (folder, text) = generated(args);
            let error = judged(&folder, &text).await.unwrap_err();
            assert!(matches!(error, KeyError::Encrypted), "{args:?}: {error}");
        }
    }

    #[tokio::test]
    async fn what_is_no_private_key_says_what_it_is() {
        let (folder, text) = generated(&["-t", "ed25519", "-N", ""]);
        let public = std::fs::read_to_string(folder.path().join("made.pub")).unwrap();
        let half = &text[..text.len() / 2];
        let middle = text.replacen("b3BlbnNzaC", "b3BlbnNz", 1);
        for (given, expected) in [
            (" \n", "empty"),
            (&public, "a public key"),
            ("PuTTY-User-Key-File-3: ssh-ed25519\n", "PuTTY"),
            ("SHA256:abc", "no private key"),
            ("-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----", "no private key"),
            (half, "cut off"),
            (&middle, "damaged"),
        ] {
            let error = judged(&folder, given).await.unwrap_err();
            assert!(error.to_string().contains(expected), "{given}: {error}");
            assert!(!error.hints().is_empty());
        }
    }

    #[test]
    fn a_secret_is_not_shown() {
        assert!(!format!("{:?}", Secret::from("hush".to_owned())).contains("hush"));
    }
}
