//! Who has reserved which port and GPU: claims, host-wide, over all services of a state folder.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{CLAIMS, HostLock, ServiceDir, StateError, write_json};
use crate::model::ids::{ServiceName, SlotName};
use crate::model::spec::{Gpu, Slot};

/// Who has reserved a port or a GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The service.
    pub service: ServiceName,
    /// Its slot.
    pub slot: SlotName,
}

impl ServiceDir {
    /// Claims port and GPUs of a slot host-wide, all or nothing. Claiming again is fine.
    ///
    /// # Errors
    /// If another service has one of them, or the disk refuses.
    pub fn claim(&self, _: &HostLock, name: &SlotName, slot: &Slot) -> Result<(), StateError> {
        self.check_claim(slot)?;
        let claim = Claim { service: self.service.clone(), slot: name.clone() };
        self.resources(slot).iter().try_for_each(|(_, path)| write_json(path, &claim))
    }

    /// Whether port and GPUs of a slot could be claimed. Claims nothing.
    ///
    /// # Errors
    /// If another service has one of them.
    pub fn check_claim(&self, slot: &Slot) -> Result<(), StateError> {
        for (resource, path) in self.resources(slot) {
            let taken = self.claimed_by_another(&path);
            if let Some(claim) = taken {
                return Err(StateError::Claimed { resource, claim });
            }
        }
        Ok(())
    }

    fn claimed_by_another(&self, path: &Path) -> Option<Claim> {
        claim_in(path).filter(|claim| claim.service != self.service)
    }

    /// Gives up port and GPUs of a slot, where they are this service's.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn release(&self, slot: &Slot) -> Result<(), StateError> {
        self.give_up(self.resources(slot).into_iter().map(|(_, path)| path))
    }

    /// Gives up every port and GPU that this service has claimed, under whatever configuration.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn release_all(&self) -> Result<(), StateError> {
        let claims = fs::read_dir(self.claims()).into_iter().flatten().flatten();
        self.give_up(claims.map(|entry| entry.path()))
    }

    /// Removes those claims that are this service's. It needs no lock: nobody else claims what is claimed.
    fn give_up(&self, claims: impl Iterator<Item = PathBuf>) -> Result<(), StateError> {
        let is_own =
            |path: &PathBuf| claim_in(path).is_some_and(|claim| claim.service == self.service);
        for path in claims.filter(is_own) {
            fs::remove_file(&path).map_err(|source| StateError::Io {
                act: "remove",
                path,
                source,
            })?;
        }
        Ok(())
    }

    /// The folder of all claims.
    pub fn claims(&self) -> PathBuf {
        self.state_dir.join(CLAIMS)
    }

    fn resources(&self, slot: &Slot) -> Vec<(String, PathBuf)> {
        let port = (format!("port {}", slot.port), format!("port-{}", slot.port));
        let gpus = slot.gpus.iter().map(|gpu| match gpu {
            Gpu::Index(index) => (format!("GPU {index}"), format!("gpu-{index}")),
            Gpu::Uuid(uuid) => (format!("GPU {uuid}"), format!("gpu-{}", uuid.replace('/', "-"))),
        });
        std::iter::once(port)
            .chain(gpus)
            .map(|(name, file)| (name, self.claims().join(file)))
            .collect()
    }
}

fn claim_in(path: &Path) -> Option<Claim> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_service_has_claimed_is_refused_and_nothing_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let service = |name: &str| ServiceDir::open(folder.path(), &name.parse().unwrap()).unwrap();
        let (chat, code) = (service("chat"), service("code"));
        let slot =
            |port, gpu| Slot { port: crate::model::ids::Port(port), gpus: vec![Gpu::Index(gpu)] };
        let name = "a".parse().unwrap();
        let claim = |service: &ServiceDir, slot: &Slot| {
            service.claim(&service.try_lock_host().unwrap().unwrap(), &name, slot)
        };
        claim(&chat, &slot(8001, 0)).unwrap();
        claim(&chat, &slot(8001, 0)).unwrap();
        let refused = claim(&code, &slot(8002, 0)).unwrap_err().to_string();
        assert_eq!(refused, "GPU 0 is reserved by service chat, slot a");
        claim(&chat, &slot(8002, 1)).unwrap();
        // What was refused costs nobody what he has.
        claim(&code, &slot(8003, 2)).unwrap();
        claim(&chat, &slot(8001, 2)).unwrap_err();
        claim(&code, &slot(8004, 0)).unwrap_err();
        chat.release(&slot(8001, 0)).unwrap();
        claim(&code, &slot(8004, 0)).unwrap();
        chat.release_all().unwrap();
        claim(&code, &slot(8002, 1)).unwrap();
    }
}
