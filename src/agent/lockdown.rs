//! `server install`: ties a key to the agent. Says what is needed, or does it; each piece can be repeated.

use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

use crate::host::durable::{self, DurableError};
use crate::host::process::{Inherited, ProcessError};
use crate::model::failure::Hint;

/// Where the agent of a forced command lives: only root can write there.
pub const PROGRAM: &str = "/usr/local/libexec/model-swap/model-swap";
/// Where root lists services.
pub const SERVICES: &str = "/etc/model-swap/services.d";
/// sudo reads no file with a dot in its name (sudoers(5)).
const SUDOERS: &str = "/etc/sudoers.d/model-swap";
/// Where sshd looks for a user's keys unless it is told otherwise (sshd_config(5), `AuthorizedKeysFile`); ours goes to the first.
const KEYS: [&str; 2] = [".ssh/authorized_keys", ".ssh/authorized_keys2"];
/// This program's own image.
const OWN_IMAGE: &str = "/proc/self/exe";

/// Whose key it is, and where the server's files are.
#[derive(Debug, Clone)]
pub struct Lockdown {
    /// The user that the workflow logs in as.
    pub user: String,
    /// The public key, as a line of `authorized_keys` without options.
    pub key: String,
    /// `/`, or where an image of the server is mounted.
    pub root: PathBuf,
}

/// Why a key is not tied to the agent.
#[derive(Debug, thiserror::Error)]
pub enum LockdownError {
    /// It is no public key.
    #[error("{0:?} is no public key")]
    Key(String),
    /// The user is not there.
    #[error("cannot look up user {user}")]
    User {
        /// The user.
        user: String,
        /// Why.
        source: ProcessError,
    },
    /// sudo is not there, and the user is not root.
    #[error("there is no {}: user {user} cannot become root", folder.display())]
    NoSudo {
        /// The user.
        user: String,
        /// sudo's folder.
        folder: PathBuf,
    },
    /// The key has another way in.
    #[error("line {line} of {} lets this key in without the forced command", file.display())]
    OtherWayIn {
        /// The file.
        file: PathBuf,
        /// The line's number, from 1.
        line: usize,
    },
    /// Whoever may write a link says what root reads and writes by it.
    #[error("{} is a link to {}", path.display(), target.display())]
    Link {
        /// The link.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// The disk refused.
    #[error("cannot {act} {}", path.display())]
    Io {
        /// What was tried.
        act: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file could not be replaced.
    #[error("a file is as it was")]
    Durable(#[from] DurableError),
}

impl Hint for LockdownError {
    fn hints(&self) -> Vec<String> {
        let hint = match self {
            Self::Key(_) => "give the line of the .pub file: --key \"ssh-ed25519 AAAA… ci\"",
            Self::User { .. } => "make the user first: useradd --create-home NAME",
            Self::NoSudo { .. } => "install sudo, or log in as root",
            Self::OtherWayIn { .. } => "remove that line, then run this again",
            Self::Link { .. } => {
                "put what it leads to in its place, owned by the user, then run this again"
            }
            Self::Io { .. } | Self::Durable(_) => "run this as root on the server",
        };
        vec![hint.to_owned()]
    }
}

/// One thing that must be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// This program.
    Program(PathBuf),
    /// A folder of root's.
    Folder(PathBuf),
    /// A line in a file.
    Line {
        /// The file.
        file: PathBuf,
        /// The line.
        line: String,
        /// The file's mode if it is made.
        mode: u32,
        /// Its owner and group if it is made.
        owner: (u32, u32),
    },
}

impl fmt::Display for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Program(path) => write!(f, "this program as {} (root, mode 755)", path.display()),
            Self::Folder(path) => write!(f, "the folder {} (root, mode 755)", path.display()),
            Self::Line { file, line, mode, owner: (uid, gid) } => {
                write!(
                    f,
                    "in {} (owner {uid}:{gid}, mode {mode:o}) the line\n    {line}",
                    file.display()
                )
            }
        }
    }
}

impl Lockdown {
    /// Everything that must be there, in the order in which it is put there.
    ///
    /// # Errors
    /// If the key is none, the user or sudo is not there, or the key has another way in.
    pub fn pieces(&self) -> Result<Vec<Piece>, LockdownError> {
        let key = self.key.trim();
        let blob = blob(key).ok_or_else(|| LockdownError::Key(self.key.clone()))?;
        let user = Inherited::of_user(&self.user)
            .map_err(|source| LockdownError::User { user: self.user.clone(), source })?;
        let owner = (user.identity.uid, user.identity.gid);
        let mut pieces = vec![Piece::Program(self.at(PROGRAM)), Piece::Folder(self.at(SERVICES))];
        let forced = if owner.0 == 0 {
            format!("{PROGRAM} agent")
        } else {
            let file = self.at(SUDOERS);
            let folder = file.parent().unwrap_or(Path::new("/")).to_owned();
            if !folder.is_dir() {
                return Err(LockdownError::NoSudo { user: self.user.clone(), folder });
            }
            let line = format!("{} ALL=(root) NOPASSWD: {PROGRAM} agent", self.user);
            pieces.push(Piece::Line { file, line, mode: 0o440, owner: (0, 0) });
            format!("sudo -n {PROGRAM} agent")
        };
        let home = self.at(&user.home.display().to_string());
        let line = format!("command=\"{forced}\",restrict {key}");
        let lets_in =
            |other: &str| other != line && other.split_whitespace().any(|word| word == blob);
        for file in KEYS.map(|name| home.join(name)) {
            no_link(file.parent().unwrap_or(&home))?;
            if let Some(index) = read(&file)?.lines().position(lets_in) {
                return Err(LockdownError::OtherWayIn { file, line: index + 1 });
            }
        }
        pieces.push(Piece::Line { file: home.join(KEYS[0]), line, mode: 0o600, owner });
        Ok(pieces)
    }

    /// A path of the server's.
    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }
}

impl Piece {
    /// Puts it there, if it is not there yet.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn apply(&self) -> Result<(), LockdownError> {
        match self {
            Self::Program(path) => {
                folder(path.parent().unwrap_or(Path::new("/")), 0o755)?;
                let own = fs::read(OWN_IMAGE).map_err(failed("read", Path::new(OWN_IMAGE)))?;
                Ok(durable::write(path, &own, 0o755)?)
            }
            Self::Folder(path) => folder(path, 0o755),
            Self::Line { file, line, mode, owner: (uid, gid) } => {
                let own = file.parent().unwrap_or(Path::new("/"));
                no_link(own)?;
                let there = fs::symlink_metadata(file).is_ok();
                let mut text = read(file)?;
                if text.lines().any(|there| there == line) {
                    return Ok(());
                }
                if !text.is_empty() && !text.ends_with('\n') {
                    text.push('\n');
                }
                text.push_str(line);
                text.push('\n');
                if there {
                    return Ok(durable::replace(file, text.as_bytes())?);
                }
                if !own.is_dir() {
                    // Only `.ssh` is ever missing: sshd wants it to be the user's alone.
                    let mut builder = DirBuilder::new();
                    builder.recursive(true).mode(0o700).create(own).map_err(failed("make", own))?;
                    lchown(own, Some(*uid), Some(*gid)).map_err(failed("give away", own))?;
                }
                durable::write(file, text.as_bytes(), *mode)?;
                // Whatever the user may have put there meanwhile.
                lchown(file, Some(*uid), Some(*gid)).map_err(failed("give away", file))
            }
        }
    }
}

fn folder(path: &Path, mode: u32) -> Result<(), LockdownError> {
    fs::create_dir_all(path).map_err(failed("make", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed("open", path))
}

/// What a file holds; nothing if it is not there.
fn read(path: &Path) -> Result<String, LockdownError> {
    no_link(path)?;
    // It may have become one since.
    let opened = open(path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
    let file = match opened {
        Err(Errno::NOENT) => return Ok(String::new()),
        opened => File::from(opened.map_err(|error| failed("read", path)(error.into()))?),
    };
    io::read_to_string(file).map_err(failed("read", path))
}

/// Refuses a link: what it leads to may be nothing of the user's.
fn no_link(path: &Path) -> Result<(), LockdownError> {
    match fs::read_link(path) {
        Ok(target) => Err(LockdownError::Link { path: path.to_owned(), target }),
        Err(_) => Ok(()),
    }
}

fn failed(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LockdownError {
    let path = path.to_owned();
    move |source| LockdownError::Io { act, path, source }
}

/// The key itself, in base64, of a line without options: a type, the key, and perhaps a comment (sshd(8)).
fn blob(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace();
    let (kind, blob) = (words.next()?, words.next()?);
    let of_key = kind.starts_with("ssh-") || kind.starts_with("ecdsa-") || kind.starts_with("sk-");
    let base64 = |b: u8| b.is_ascii_alphanumeric() || b"+/=".contains(&b);
    // Every blob begins with the length of its type: three zero bytes.
    let whole = blob.starts_with("AAAA") && blob.bytes().all(base64);
    (of_key && whole && !line.chars().any(char::is_control)).then_some(blob)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ ci";

    /// A server on which only what every Debian has is there.
    fn server(user: &str, key: &str) -> (tempfile::TempDir, Lockdown) {
        let root = tempfile::tempdir().unwrap();
        let lockdown =
            Lockdown { user: user.to_owned(), key: key.to_owned(), root: root.path().to_owned() };
        (root, lockdown)
    }

    fn own_user() -> String {
        Inherited::of_self().unwrap().user.unwrap()
    }

    #[test]
    fn what_is_said_is_done_once_and_stays_when_it_is_done_again() {
        let (root, lockdown) = server(&own_user(), KEY);
        fs::create_dir_all(root.path().join("etc/sudoers.d")).unwrap();
        let pieces = lockdown.pieces().unwrap();
        // Only root can give root a file; the rest can be done by anybody.
        let mine = |piece: &&Piece| {
            !matches!(piece, Piece::Line { owner: (0, _), .. })
                || rustix::process::geteuid().is_root()
        };
        for _ in 0..2 {
            pieces.iter().filter(mine).for_each(|piece| piece.apply().unwrap());
            assert_eq!(lockdown.pieces().unwrap(), pieces);
        }
        let Some(Piece::Line { file, line, .. }) = pieces.last() else { panic!("{pieces:?}") };
        assert!(line.ends_with(&format!(" agent\",restrict {KEY}")), "{line}");
        assert_eq!(fs::read_to_string(file).unwrap(), format!("{line}\n"));
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
        let program = lockdown.at(PROGRAM);
        assert_eq!(fs::metadata(&program).unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(fs::read(program).unwrap(), fs::read(OWN_IMAGE).unwrap());
        assert!(lockdown.at(SERVICES).is_dir());
    }

    #[test]
    fn a_user_who_is_not_root_gets_one_command_line_as_root() {
        let (root, lockdown) = server("nobody", KEY);
        assert!(matches!(lockdown.pieces(), Err(LockdownError::NoSudo { .. })));
        fs::create_dir_all(root.path().join("etc/sudoers.d")).unwrap();
        let pieces = lockdown.pieces().unwrap();
        let text: String = pieces.iter().map(|piece| format!("{piece}\n")).collect();
        let sudo = format!("nobody ALL=(root) NOPASSWD: {PROGRAM} agent\n");
        assert!(text.contains(&sudo) && text.contains("mode 440"), "{text}");
        assert!(text.contains(&format!("command=\"sudo -n {PROGRAM} agent\",restrict ")), "{text}");
    }

    #[test]
    fn a_key_that_has_another_way_in_is_not_called_locked() {
        let (root, lockdown) = server(&own_user(), KEY);
        fs::create_dir_all(root.path().join("etc/sudoers.d")).unwrap();
        let Some(Piece::Line { file, .. }) = lockdown.pieces().unwrap().pop() else { panic!() };
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, format!("# mine\n{KEY}\n")).unwrap();
        let error = lockdown.pieces().unwrap_err();
        assert!(matches!(error, LockdownError::OtherWayIn { line: 2, .. }), "{error}");
        // The other file that sshd reads.
        let second = file.with_file_name("authorized_keys2");
        fs::rename(file, &second).unwrap();
        let error = lockdown.pieces().unwrap_err().to_string();
        let expected = format!("line 2 of {} lets this key in", second.display());
        assert!(error.starts_with(&expected), "{error}");
        fs::remove_file(second).unwrap();
        lockdown.pieces().unwrap();
    }

    /// `.ssh` is the user's, who could have root read and write whatever a link leads to.
    #[test]
    fn what_a_link_leads_to_is_neither_read_nor_written() {
        let (root, lockdown) = server(&own_user(), KEY);
        fs::create_dir_all(root.path().join("etc/sudoers.d")).unwrap();
        let key = lockdown.pieces().unwrap().pop().unwrap();
        let Piece::Line { file, .. } = &key else { panic!("{key:?}") };
        let shadow = root.path().join("shadow");
        fs::write(&shadow, "root:secret\n").unwrap();
        let folder = file.parent().unwrap();
        let refused = |path: &Path, target: &Path| {
            let expected = format!("{} is a link to {}", path.display(), target.display());
            for error in [key.apply().unwrap_err(), lockdown.pieces().unwrap_err()] {
                assert_eq!(error.to_string(), expected);
            }
        };
        fs::create_dir_all(folder).unwrap();
        for target in [shadow.clone(), root.path().join("none")] {
            symlink(&target, file).unwrap();
            refused(file, &target);
            fs::remove_file(file).unwrap();
        }
        fs::remove_dir(folder).unwrap();
        let elsewhere = root.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        symlink(&elsewhere, folder).unwrap();
        refused(folder, &elsewhere);
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0, "written through a link");
        assert_eq!(fs::read_to_string(&shadow).unwrap(), "root:secret\n");
        fs::remove_file(folder).unwrap();
        key.apply().unwrap();
    }

    #[test]
    fn what_is_no_key_or_no_user_is_refused() {
        for key in [
            "",
            "ssh-ed25519",
            "hello AAAA",
            "ssh-ed25519 BBBB",
            "restrict ssh-rsa AAAA",
            "ssh-rsa AAAA\nssh-rsa AAAA",
        ] {
            let (_root, lockdown) = server(&own_user(), key);
            assert!(matches!(lockdown.pieces(), Err(LockdownError::Key(_))), "{key:?}");
        }
        let (_root, lockdown) = server("no-such-user", KEY);
        assert!(matches!(lockdown.pieces(), Err(LockdownError::User { .. })));
    }
}
