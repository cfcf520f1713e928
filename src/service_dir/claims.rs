//! Who has reserved which port and GPU: claims, host-wide, over all services of a state folder.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{CLAIMS, ServiceDir, StateError, write_json};
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
    pub fn claim(&self, name: &SlotName, slot: &Slot) -> Result<(), StateError> {
        let claim = Claim { service: self.service.clone(), slot: name.clone() };
        for (resource, path) in self.resources(slot) {
            if let Some(claim) = self.claimed_by_another(&path) {
                self.release(slot)?;
                return Err(StateError::Claimed { resource, claim });
            }
            write_json(&path, &claim)?;
        }
        Ok(())
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
        let claim: Claim = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        (claim.service != self.service).then_some(claim)
    }

    /// Gives up port and GPUs of a slot, where they are this service's.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn release(&self, slot: &Slot) -> Result<(), StateError> {
        for (_, path) in self.resources(slot) {
            let claim =
                fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Claim>(&text).ok());
            if claim.is_some_and(|claim| claim.service == self.service) {
                fs::remove_file(&path).map_err(|source| StateError::Io {
                    act: "remove",
                    path,
                    source,
                })?;
            }
        }
        Ok(())
    }

    /// Gives up every port and GPU that this service has claimed, under whatever configuration.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn release_all(&self) -> Result<(), StateError> {
        for entry in fs::read_dir(self.claims()).into_iter().flatten().flatten() {
            let path = entry.path();
            let claim =
                fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Claim>(&text).ok());
            if claim.is_some_and(|claim| claim.service == self.service) {
                fs::remove_file(&path).map_err(|source| StateError::Io {
                    act: "remove",
                    path,
                    source,
                })?;
            }
        }
        Ok(())
    }

    pub(super) fn claims(&self) -> PathBuf {
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
        chat.claim(&name, &slot(8001, 0)).unwrap();
        chat.claim(&name, &slot(8001, 0)).unwrap();
        let refused = code.claim(&name, &slot(8002, 0)).unwrap_err().to_string();
        assert_eq!(refused, "GPU 0 is reserved by service chat, slot a");
        chat.claim(&name, &slot(8002, 1)).unwrap();
        chat.release(&slot(8001, 0)).unwrap();
        code.claim(&name, &slot(8003, 0)).unwrap();
    }
}
