//! Who has reserved which port and GPU: claims, host-wide, over all services of a state folder.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{CLAIMS, HostLock, ServiceDir, StateError, write_json};
use crate::host::gpu::Gpus;
use crate::model::ids::{ServiceName, SlotName};
use crate::model::spec::{Gpu, Slot};

/// How the file of a GPU's claim begins.
const GPU: &str = "gpu-";

/// Who has reserved a port or a GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The service.
    pub service: ServiceName,
    /// Its slot.
    pub slot: SlotName,
}

impl ServiceDir {
    /// Claims port and GPUs of a slot host-wide, all or nothing. Claiming again is fine. `gpus` as for
    /// [`ServiceDir::check_claim`].
    ///
    /// # Errors
    /// If another service has one of them, or the disk refuses.
    pub fn claim(
        &self,
        _: &HostLock,
        (name, slot): (&SlotName, &Slot),
        gpus: &Gpus,
    ) -> Result<(), StateError> {
        self.check_claim(slot, gpus)?;
        let claim = Claim { service: self.service.clone(), slot: name.clone() };
        self.files(slot).iter().try_for_each(|path| write_json(path, &claim))
    }

    /// Whether port and GPUs of a slot could be claimed. Claims nothing. A GPU is claimed by the name that a slot has for it:
    /// which names mean the same one `gpus` tells, where [`ServiceDir::needs_names`].
    ///
    /// # Errors
    /// If another service has one of them.
    pub fn check_claim(&self, slot: &Slot, gpus: &Gpus) -> Result<(), StateError> {
        for (file, claim) in self.claims_of_others() {
            if let Some(resource) = part_of(slot, &file, gpus) {
                return Err(StateError::Claimed { resource, claim });
            }
        }
        Ok(())
    }

    /// Whether another service has claimed a GPU by a name that may mean one of this slot's: only the driver tells. Two
    /// indices are the same GPU only if they are equal.
    pub fn needs_names(&self, slot: &Slot) -> bool {
        let may_be_one = |one: &Gpu, other: &Gpu| {
            one != other && !matches!((one, other), (Gpu::Index(_), Gpu::Index(_)))
        };
        let others: Vec<_> =
            self.claims_of_others().keys().filter_map(|file| gpu_of(file)).collect();
        slot.gpus.iter().any(|own| others.iter().any(|other| may_be_one(own, other)))
    }

    /// What other services have claimed, by the names of the files.
    fn claims_of_others(&self) -> BTreeMap<String, Claim> {
        let entries = fs::read_dir(self.claims()).into_iter().flatten().flatten();
        let claims = entries.filter_map(|entry| {
            let claim = claim_in(&entry.path())?;
            (claim.service != self.service)
                .then_some((entry.file_name().into_string().ok()?, claim))
        });
        claims.collect()
    }

    /// Gives up every port and GPU that this service has claimed for a slot, under whatever configuration: the slot may have
    /// been edited since.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn release(&self, slot: &SlotName) -> Result<(), StateError> {
        self.give_up(|claim| claim.slot == *slot)
    }

    /// Gives up every port and GPU that this service has claimed.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn release_all(&self) -> Result<(), StateError> {
        self.give_up(|_| true)
    }

    /// Removes those of this service's claims. It needs no lock: nobody else claims what is claimed.
    fn give_up(&self, which: impl Fn(&Claim) -> bool) -> Result<(), StateError> {
        let files = fs::read_dir(self.claims()).into_iter().flatten().flatten();
        let is_meant = |path: &PathBuf| {
            claim_in(path).is_some_and(|claim| claim.service == self.service && which(&claim))
        };
        for path in files.map(|entry| entry.path()).filter(is_meant) {
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

    fn files(&self, slot: &Slot) -> Vec<PathBuf> {
        let names = std::iter::once(port_file(slot)).chain(slot.gpus.iter().map(gpu_file));
        names.map(|name| self.claims().join(name)).collect()
    }
}

fn port_file(slot: &Slot) -> String {
    format!("port-{}", slot.port)
}

fn gpu_file(gpu: &Gpu) -> String {
    format!("{GPU}{}", gpu.to_string().replace('/', "-"))
}

fn gpu_of(file: &str) -> Option<Gpu> {
    Some(Gpu::named(file.strip_prefix(GPU)?))
}

/// What of a slot a claim is about, as people name it; `None` if it is about something else.
fn part_of(slot: &Slot, file: &str, gpus: &Gpus) -> Option<String> {
    if file == port_file(slot) {
        return Some(format!("port {}", slot.port));
    }
    let claimed = gpu_of(file)?;
    slot.gpus.iter().find_map(|gpu| {
        if file == gpu_file(gpu) {
            return Some(format!("GPU {gpu}"));
        }
        gpus.are_one(gpu, &claimed).then(|| format!("GPU {gpu} ({claimed})"))
    })
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
        let [a, b] = ["a", "b"].map(|name| name.parse().unwrap());
        let claim_as = |service: &ServiceDir, name: &SlotName, slot: &Slot| {
            let lock = service.try_lock_host().unwrap().unwrap();
            service.claim(&lock, (name, slot), &Gpus::default())
        };
        let claim = |service: &ServiceDir, slot: &Slot| claim_as(service, &a, slot);
        claim(&chat, &slot(8001, 0)).unwrap();
        claim(&chat, &slot(8001, 0)).unwrap();
        let refused = claim(&code, &slot(8002, 0)).unwrap_err().to_string();
        assert_eq!(refused, "GPU 0 is reserved by service chat, slot a");
        claim_as(&chat, &b, &slot(8002, 1)).unwrap();
        // What was refused costs nobody what he has.
        claim(&code, &slot(8003, 2)).unwrap();
        claim(&chat, &slot(8001, 2)).unwrap_err();
        claim(&code, &slot(8004, 0)).unwrap_err();
        // Somebody has edited the slot since.
        claim(&chat, &slot(8005, 5)).unwrap();
        chat.release(&a).unwrap();
        claim(&code, &slot(8004, 0)).unwrap();
        claim(&code, &slot(8005, 5)).unwrap();
        claim(&code, &slot(8002, 1)).unwrap_err();
        chat.release_all().unwrap();
        claim(&code, &slot(8002, 1)).unwrap();
    }

    #[test]
    fn a_gpu_is_one_by_whatever_name() {
        let folder = tempfile::tempdir().unwrap();
        let service = |name: &str| ServiceDir::open(folder.path(), &name.parse().unwrap()).unwrap();
        let (chat, code) = (service("chat"), service("code"));
        let slot = |port, gpu: &str| Slot {
            port: crate::model::ids::Port(port),
            gpus: vec![Gpu::named(gpu)],
        };
        let device = |index, uuid: &str| crate::host::gpu::Device {
            index,
            uuid: uuid.to_owned(),
            name: String::new(),
            total_mib: None,
            free_mib: None,
        };
        let devices = vec![device(0, "GPU-5d3a"), device(1, "GPU-77c1")];
        let told = Gpus { devices, ..Gpus::default() };
        for (theirs, own, refused) in [
            ("0", "GPU-5d3a", Some("GPU GPU-5d3a (0) is reserved by service chat, slot a")),
            ("GPU-5d3a", "0", Some("GPU 0 (GPU-5d3a) is reserved by service chat, slot a")),
            (
                "GPU-5d",
                "GPU-5d3a",
                Some("GPU GPU-5d3a (GPU-5d) is reserved by service chat, slot a"),
            ),
            ("0", "GPU-77c1", None),
            ("GPU-77c1", "0", None),
            // Of neither the driver tells.
            ("8", "MIG-c6d4", None),
        ] {
            let (theirs, own) = (slot(8001, theirs), slot(8002, own));
            let lock = chat.try_lock_host().unwrap().unwrap();
            chat.claim(&lock, (&"a".parse().unwrap(), &theirs), &Gpus::default()).unwrap();
            assert!(code.needs_names(&own) && !chat.needs_names(&own), "{own:?}");
            let said = code.check_claim(&own, &told).err().map(|error| error.to_string());
            assert_eq!(said.as_deref(), refused, "{own:?}");
            assert!(code.check_claim(&own, &Gpus::default()).is_ok(), "nobody tells: {own:?}");
            chat.release(&"a".parse().unwrap()).unwrap();
        }
        let lock = chat.try_lock_host().unwrap().unwrap();
        chat.claim(&lock, (&"a".parse().unwrap(), &slot(8001, "0")), &Gpus::default()).unwrap();
        assert!(!code.needs_names(&slot(8002, "1")), "indices need nobody to tell them apart");
    }
}
