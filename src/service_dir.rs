//! F2: the folders of a service on the server, and what is kept in them between commands.
//!
//! ```text
//! <state_dir>/                    0700
//!   host.lock                           claims and nginx reloads of all services, one after another
//!   key                           0600  keys the hash of secrets
//!   claims/port-8002, gpu-1       who has reserved what, host-wide
//!   <service>/
//!     state.json                  model::state::ServiceState
//!     lease.json                  who works on it
//!     boot                        of which boot the processes in state.json are
//!     agent.log                   what agents said on stderr
//!     aborts/<swap>.json          abort::AbortOrder
//!     waiting/<id>.json           lease::waiting: who waits for a turn
//!     confirmations/<swap>.json  the word of a runner that has looked from outside
//!     swaps/<swap>/               spec.json, agent.json, journal.ndjson, events.ndjson, replica.log, incumbent.json (0600)
//! ```

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use hmac::{Hmac, KeyInit, Mac};
use rustix::fs::{FlockOperation, flock};
use serde::Serialize;
use sha2::Sha256;

use crate::host::durable::{self, DurableError};
use crate::host::process::Snapshot;
use crate::model::failure::{Failure, Hint};
use crate::model::ids::{ServiceName, SwapId};
use crate::model::state::{STATE_VERSION, ServiceState};
use crate::model::wire::Secrets;
use crate::swap::revision::hex;

mod claims;

pub use claims::Claim;

/// What all services share in the state folder, beside the binaries.
pub const SHARED: [&str; 3] = [CLAIMS, "host.lock", "key"];

const CLAIMS: &str = "claims";

/// The file in a swap's folder that holds its specification: for its recovery, and to start its revision again.
pub const SPEC: &str = "spec.json";

/// The file in a swap's folder that holds what it takes to start an adopted incumbent again. Mode 0600.
pub const INCUMBENT: &str = "incumbent.json";

/// Bytes of the key that secrets are hashed with.
const KEY_BYTES: usize = 32;

/// Between two tries for the lock of the host; flock tells nobody when it comes free.
const LOCK_RETRY: Duration = Duration::from_millis(50);

/// Mode of every file: state and journals are their owner's alone.
pub const PRIVATE: u32 = 0o600;

/// Something in the state folder could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
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
    /// The disk refused a durable write.
    #[error("cannot keep {}", path.display())]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        source: DurableError,
    },
    /// Whoever owns the folder could put anything in the place of what is kept there.
    #[error("the state folder {} belongs to user {owner}, not to user {own}, as whom the agent runs", path.display())]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// Its owner's user id.
        owner: u32,
        /// The agent's own.
        own: u32,
    },
    /// A file makes no sense.
    #[error("{} is damaged", path.display())]
    Damaged {
        /// Where.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A file of a newer version.
    #[error("{} has version {found}; this binary knows {STATE_VERSION}", path.display())]
    Newer {
        /// Where.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// Another service has it.
    #[error("{resource} is reserved by service {}, slot {}", claim.service, claim.slot)]
    Claimed {
        /// `port 8002` or `GPU 1`.
        resource: String,
        /// By whom.
        claim: Claim,
    },
}

impl Hint for StateError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Io { path, source, .. }
            | Self::Write { path, source: DurableError { source, .. } }
                if source.kind() == io::ErrorKind::StorageFull =>
            {
                let path = path.display();
                vec![format!(
                    "make room on the disk of {path}, or set state_dir to a folder on another disk"
                )]
            }
            Self::Io { path, .. } | Self::Write { path, .. } => {
                vec![format!("check owner, rights and free space of {}", path.display())]
            }
            Self::Newer { .. } => {
                vec!["use the version of model-swap that wrote it, or a newer one".to_owned()]
            }
            Self::Damaged { path, .. } => {
                vec![format!(
                    "move {} away: what serves is then adopted as it is found",
                    path.display()
                )]
            }
            Self::Foreign { path, own, .. } => vec![format!(
                "chown -R {own} {0}, once you have seen that nothing strange is in it, or set another state_dir",
                path.display()
            )],
            Self::Claimed { .. } => vec![
                "give the slot another port or GPU, or wait until that one is retired".to_owned(),
            ],
        }
    }
}

/// The lock of this host, held until dropped.
#[derive(Debug)]
pub struct HostLock {
    file: fs::File,
}

impl Drop for HostLock {
    /// Closing the file would not do: a process that is just being spawned has it open until its exec.
    fn drop(&mut self) {
        // If it cannot be unlocked it is unlocked when the last of those processes has closed it.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

/// The folders of one service.
#[derive(Debug, Clone)]
pub struct ServiceDir {
    state_dir: PathBuf,
    service: ServiceName,
}

impl ServiceDir {
    /// Makes the folders, readable by their owner only.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn open(state_dir: &Path, service: &ServiceName) -> Result<Self, StateError> {
        let this = Self::look(state_dir, service);
        let swaps = this.root().join("swaps");
        for folder in [this.claims(), swaps, this.aborts(), this.waiting(), this.confirmations()] {
            make_private(&folder)?;
        }
        for folder in [this.state_dir.clone(), this.root()] {
            refuse_foreign(folder)?;
        }
        Ok(this)
    }

    /// The folders as they may be there already: nothing is made.
    pub fn look(state_dir: &Path, service: &ServiceName) -> Self {
        Self { state_dir: state_dir.to_owned(), service: service.clone() }
    }

    /// The service's folder.
    pub fn root(&self) -> PathBuf {
        self.state_dir.join(self.service.as_str())
    }

    /// The folder of all services.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// The folder of the orders to abort.
    pub fn aborts(&self) -> PathBuf {
        self.root().join("aborts")
    }

    /// The folder of who waits for a turn.
    pub fn waiting(&self) -> PathBuf {
        self.root().join("waiting")
    }

    /// The folder of the words of runners that have looked from outside.
    pub fn confirmations(&self) -> PathBuf {
        self.root().join("confirmations")
    }

    /// The service.
    pub fn service(&self) -> &ServiceName {
        &self.service
    }

    /// The swaps that left a folder, newest first by this host's clock: ids are made by runners with clocks of their own.
    pub fn swaps(&self) -> Vec<SwapId> {
        let entries = fs::read_dir(self.root().join("swaps")).into_iter().flatten().flatten();
        // Whoever takes a swap up writes into its folder, and logs come and go there. What was asked for is there first, and nobody writes that again.
        let dated = entries.filter_map(|entry| {
            let asked = fs::metadata(entry.path().join(SPEC)).or_else(|_| entry.metadata());
            let made = asked.ok()?.modified().ok()?;
            Some((made, entry.file_name().to_str()?.parse().ok()?))
        });
        let mut swaps: Vec<(SystemTime, SwapId)> = dated.collect();
        swaps.sort_unstable();
        swaps.into_iter().rev().map(|(_, swap)| swap).collect()
    }

    /// The folder of a swap.
    pub fn swap(&self, swap: &SwapId) -> PathBuf {
        self.root().join("swaps").join(swap.as_str())
    }

    /// How the incumbent was started that a swap adopted; `None` if it adopted none.
    pub fn incumbent(&self, swap: &SwapId) -> Option<Snapshot> {
        serde_json::from_slice(&fs::read(self.incumbent_file(swap)).ok()?).ok()
    }

    /// Where that is kept.
    pub fn incumbent_file(&self, swap: &SwapId) -> PathBuf {
        self.swap(swap).join(INCUMBENT)
    }

    /// Where the output of the replica that a swap starts goes, unless its keeper takes it.
    pub fn replica_log(&self, swap: &SwapId) -> PathBuf {
        self.swap(swap).join("replica.log")
    }

    /// Where the output goes of what brings its weights.
    pub fn fetch_log(&self, swap: &SwapId) -> PathBuf {
        self.swap(swap).join("fetch.log")
    }

    /// Makes the folder of a new swap.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn make_swap(&self, swap: &SwapId) -> Result<PathBuf, StateError> {
        let folder = self.swap(swap);
        make_private(&folder)?;
        Ok(folder)
    }

    /// The service's state; the default one if there is none yet.
    ///
    /// # Errors
    /// If it cannot be read, is damaged or of a newer version.
    pub fn load(&self) -> Result<ServiceState, StateError> {
        let path = self.root().join("state.json");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(ServiceState::default());
            }
            Err(source) => return Err(StateError::Io { act: "read", path, source }),
        };
        let damaged = |source| StateError::Damaged { path: path.clone(), source };
        let value: serde_json::Value = serde_json::from_slice(&text).map_err(damaged)?;
        match value.get("v").and_then(serde_json::Value::as_u64) {
            Some(v) if v > u64::from(STATE_VERSION) => {
                Err(StateError::Newer { path, found: u32::try_from(v).unwrap_or(u32::MAX) })
            }
            _ => serde_json::from_value(value).map_err(damaged),
        }
    }

    /// Replaces the service's state, durably.
    ///
    /// # Errors
    /// If the disk refuses; the old state is then still there.
    pub fn save(&self, state: &ServiceState) -> Result<(), StateError> {
        write_json(&self.root().join("state.json"), state)
    }

    /// Takes what is of another boot out of the state: processes that were there then are gone, whoever has their pids now.
    /// What their keepers started again is found by its keeper.
    ///
    /// # Errors
    /// If the disk refuses, or the state cannot be read.
    pub fn forget_last_boot(&self, boot: &str) -> Result<(), StateError> {
        let path = self.root().join("boot");
        let last = fs::read_to_string(&path).unwrap_or_default();
        if last == boot {
            return Ok(());
        }
        let mut state = self.load()?;
        state.forget_processes();
        // State of a version that wrote no boot down is of this one, as far as anybody can tell.
        if !last.is_empty() {
            self.save(&state)?;
        }
        durable::write(&path, boot.as_bytes(), PRIVATE)
            .map_err(|source| StateError::Write { path, source })
    }

    /// Waits for the one lock of this host; another service's claims and reloads take seconds.
    ///
    /// # Errors
    /// If the disk refuses.
    pub async fn lock_host(&self) -> Result<HostLock, StateError> {
        loop {
            if let Some(lock) = self.try_lock_host()? {
                return Ok(lock);
            }
            tokio::time::sleep(LOCK_RETRY).await;
        }
    }

    /// Tries for the one lock of this host: claims and nginx reloads of all services go one after another.
    ///
    /// `None` if another service holds it.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn try_lock_host(&self) -> Result<Option<HostLock>, StateError> {
        let path = self.state_dir.join("host.lock");
        let io = |source| StateError::Io { act: "lock", path: path.clone(), source };
        let file =
            OpenOptions::new().append(true).create(true).mode(0o600).open(&path).map_err(io)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(HostLock { file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(io(errno.into())),
        }
    }

    /// The other services that have a folder beside this one's.
    pub fn others(&self) -> Vec<ServiceName> {
        let folders = fs::read_dir(&self.state_dir).into_iter().flatten().flatten();
        folders
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter_map(|name| name.parse().ok())
            .filter(|name| *name != self.service)
            .collect()
    }

    /// A hash of secret values that says whether they changed and nothing else: keyed by a file of this host.
    ///
    /// # Errors
    /// If the key cannot be read or made.
    pub fn keyed_hash(&self, secrets: &Secrets) -> Result<String, StateError> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key()?)
            .unwrap_or_else(|_| unreachable!("HMAC takes keys of any length"));
        for (name, value) in &secrets.0 {
            mac.update(format!("{}:{name}{}:{value}", name.len(), value.len()).as_bytes());
        }
        Ok(hex(&mac.finalize().into_bytes()))
    }

    fn key(&self) -> Result<Vec<u8>, StateError> {
        let path = self.state_dir.join("key");
        match fs::read(&path) {
            Ok(key) if key.len() == KEY_BYTES => return Ok(key),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(StateError::Io { act: "read", path, source }),
        }
        let mut key = vec![0; KEY_BYTES];
        fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut key)).map_err(
            |source| StateError::Io { act: "read", path: "/dev/urandom".into(), source },
        )?;
        durable::write(&path, &key, PRIVATE)
            .map_err(|source| StateError::Write { path, source })?;
        Ok(key)
    }
}

/// Writes a value as JSON, durably, readable by its owner only.
///
/// # Errors
/// If the disk refuses.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), StateError> {
    let text = serde_json::to_vec_pretty(value)
        .map_err(|source| StateError::Damaged { path: path.to_owned(), source })?;
    durable::write(path, &text, PRIVATE)
        .map_err(|source| StateError::Write { path: path.to_owned(), source })
}

impl From<StateError> for Failure {
    fn from(error: StateError) -> Self {
        error.to_failure()
    }
}

fn refuse_foreign(path: PathBuf) -> Result<(), StateError> {
    let own = rustix::process::geteuid().as_raw();
    match fs::metadata(&path) {
        Ok(found) if found.uid() == own => Ok(()),
        Ok(found) => Err(StateError::Foreign { path, owner: found.uid(), own }),
        Err(source) => Err(StateError::Io { act: "read", path, source }),
    }
}

fn make_private(folder: &Path) -> Result<(), StateError> {
    let made: Vec<_> = folder.ancestors().take_while(|path| !path.exists()).collect();
    let created = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    // What lies in a folder outlives a power loss no better than the folder's own entry.
    let parents = made.iter().filter_map(|path| path.parent());
    let synced = created
        .and_then(|()| parents.map(fs::File::open).try_for_each(|parent| parent?.sync_all()));
    synced.map_err(|source| StateError::Io {
        act: "make the folder",
        path: folder.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_service_is_called_like_what_lies_beside_it() {
        for name in SHARED.iter().chain(&["bin"]) {
            assert!(name.parse::<ServiceName>().is_err(), "{name}");
        }
        assert!("keys".parse::<ServiceName>().is_ok());
    }

    #[test]
    fn the_newest_swap_is_the_one_that_began_last_whatever_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let dir = ServiceDir::open(folder.path(), &"chat".parse().unwrap()).unwrap();
        let ids: Vec<SwapId> = ["s-2", "s-3", "s-1"].map(|id| id.parse().unwrap()).to_vec();
        for (second, id) in ids.iter().enumerate() {
            let made = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(second as u64);
            let asked = dir.make_swap(id).unwrap().join(SPEC);
            fs::File::create(asked).unwrap().set_modified(made).unwrap();
        }
        // Whoever takes one up says so in its folder.
        write_json(&dir.swap(&ids[0]).join("agent.json"), &1).unwrap();
        // The log of a container is kept once it is gone.
        fs::write(dir.replica_log(&ids[1]), "x").unwrap();
        let newest: Vec<_> = dir.swaps().into_iter().rev().collect();
        assert_eq!(newest, ids);
    }
}
