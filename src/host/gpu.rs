//! The GPUs of this host, as `nvidia-smi` tells of them.
//!
//! NVML is the steadier interface, but it is a shared library, and this binary is static. The formats are those of
//! `nvidia-smi --help-query-gpu` and `--help-query-compute-apps`.

use std::time::Duration;

use crate::host::exec::{self, ExecError};
use crate::model::failure::Hint;
use crate::model::spec::Gpu;

/// Without a persistence daemon each call wakes the driver, which takes seconds on a machine with eight GPUs.
const CALL_LIMIT: Duration = Duration::from_secs(30);

const PROGRAM: &str = "nvidia-smi";

const GPUS: &str = "--query-gpu=index,uuid,name,memory.total,memory.free";
const TENANTS: &str = "--query-compute-apps=pid,gpu_uuid,used_memory";
const PLAIN: &str = "--format=csv,noheader,nounits";

/// The GPUs could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// The program could not be run to its end.
    #[error("cannot ask for the GPUs")]
    Exec(
        /// Why.
        #[from]
        ExecError,
    ),
    /// The driver, or the program, refused.
    #[error("nvidia-smi failed: {said}")]
    Failed {
        /// What it said.
        said: String,
    },
}

impl Hint for GpuError {
    fn hints(&self) -> Vec<String> {
        vec![match self {
            Self::Exec(_) => {
                "install NVIDIA's driver with its nvidia-smi, or write `gpus: []` for a server without GPUs"
            }
            Self::Failed { .. } => "run nvidia-smi on the server, and mend the driver (dmesg may say what is wrong)",
        }
        .to_owned()]
    }
}

/// One GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// In PCI bus order.
    pub index: u32,
    /// `GPU-…`
    pub uuid: String,
    /// `NVIDIA H200`
    pub name: String,
    /// Memory in MiB; `None` where the driver does not say.
    pub total_mib: Option<u64>,
    /// Free memory in MiB.
    pub free_mib: Option<u64>,
}

/// A process that uses a GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// Its pid.
    pub pid: i32,
    /// The GPU that it uses.
    pub uuid: String,
    /// Memory in MiB; `None` where the driver does not say.
    pub used_mib: Option<u64>,
}

/// Every GPU, and who uses them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Gpus {
    /// In the order of their indices.
    pub devices: Vec<Device>,
    /// Processes with memory on one of them.
    pub tenants: Vec<Tenant>,
    /// Names of the instances that GPUs are divided into (`MIG-…`).
    pub instances: Vec<String>,
}

impl Gpus {
    /// The device that a slot names. An instance has no memory of its own in this table.
    pub fn device(&self, gpu: &Gpu) -> Option<&Device> {
        self.devices.iter().find(|device| match gpu {
            Gpu::Index(index) => device.index == *index,
            // CUDA takes the beginning of a UUID, if it is the only one that begins so.
            Gpu::Uuid(uuid) => device.uuid.starts_with(uuid.as_str()),
        })
    }

    /// Whether two names are seen to mean the same device.
    pub fn are_one(&self, one: &Gpu, other: &Gpu) -> bool {
        self.device(one).is_some_and(|device| self.device(other) == Some(device))
    }

    /// Whether a slot may name it.
    pub fn holds(&self, gpu: &Gpu) -> bool {
        let is_instance = |uuid: &str| self.instances.iter().any(|name| name.starts_with(uuid));
        self.device(gpu).is_some() || matches!(gpu, Gpu::Uuid(uuid) if is_instance(uuid))
    }

    /// What there is instead of a GPU that no slot may name, a fragment; `None` if one may.
    pub fn absence(&self, gpu: &Gpu) -> Option<String> {
        if self.holds(gpu) {
            return None;
        }
        let all = self.devices.iter();
        let all: Vec<_> =
            all.map(|it| format!("{} ({}, {})", it.index, it.name, it.uuid)).collect();
        let all = if all.is_empty() { "none".to_owned() } else { all.join(", ") };
        Some(format!("nvidia-smi lists {all}"))
    }

    /// Who uses a device.
    pub fn tenants_of<'a>(&'a self, device: &'a Device) -> impl Iterator<Item = &'a Tenant> {
        self.tenants.iter().filter(|tenant| tenant.uuid == device.uuid)
    }
}

/// Asks for every GPU, and who uses them.
///
/// # Errors
/// If there is no `nvidia-smi`, or it fails.
pub async fn look() -> Result<Gpus, GpuError> {
    let devices = devices().await?;
    let tenants = call(&[TENANTS, PLAIN]).await?;
    let list = call(&["-L"]).await?;
    Ok(Gpus {
        devices,
        tenants: tenants.lines().filter_map(tenant).collect(),
        instances: list.lines().filter_map(instance).collect(),
    })
}

/// Asks for every GPU alone.
///
/// # Errors
/// If there is no `nvidia-smi`, or it fails.
pub async fn devices() -> Result<Vec<Device>, GpuError> {
    Ok(call(&[GPUS, PLAIN]).await?.lines().filter_map(device).collect())
}

async fn call(args: &[&str]) -> Result<String, GpuError> {
    let argv: Vec<String> = [&[PROGRAM], args].concat().iter().map(ToString::to_string).collect();
    let output = exec::run(&argv, CALL_LIMIT).await?;
    if output.success() {
        return Ok(output.stdout);
    }
    // The driver's own failures are told on standard output.
    let said = [output.stderr, output.stdout].concat();
    let first = said.lines().find(|line| !line.trim().is_empty());
    Err(GpuError::Failed { said: first.unwrap_or("it said nothing").trim().to_owned() })
}

/// `0, GPU-…, NVIDIA H200, 143771, 142600`
fn device(line: &str) -> Option<Device> {
    let fields: Vec<&str> = line.split(", ").map(str::trim).collect();
    let [index, uuid, name @ .., total, free] = &fields[..] else { return None };
    Some(Device {
        index: index.parse().ok()?,
        uuid: (*uuid).to_owned(),
        name: name.join(", "),
        total_mib: total.parse().ok(),
        free_mib: free.parse().ok(),
    })
}

/// `12345, GPU-…, 71234`; the last may be `[N/A]` or `[Insufficient Permissions]`.
fn tenant(line: &str) -> Option<Tenant> {
    let mut fields = line.split(", ").map(str::trim);
    let pid = fields.next()?.parse().ok()?;
    let uuid = fields.next()?.to_owned();
    Some(Tenant { pid, uuid, used_mib: fields.next()?.parse().ok() })
}

/// `  MIG 1g.10gb     Device  0: (UUID: MIG-…)`
fn instance(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("(UUID: MIG-")?;
    Some(format!("MIG-{}", rest.split(')').next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_nvidia_smi_are_read() {
        assert_eq!(
            device("1, GPU-5d3, NVIDIA H200, 143771, 142600"),
            Some(Device {
                index: 1,
                uuid: "GPU-5d3".to_owned(),
                name: "NVIDIA H200".to_owned(),
                total_mib: Some(143_771),
                free_mib: Some(142_600),
            })
        );
        let shared = device("0, GPU-1, NVIDIA GB10, [N/A], [Not Supported]").unwrap();
        assert_eq!((shared.total_mib, shared.free_mib), (None, None));
        assert_eq!(device("No devices were found"), None);
        let used = |used_mib| Tenant { pid: 12345, uuid: "GPU-1".to_owned(), used_mib };
        assert_eq!(tenant("12345, GPU-1, 71234"), Some(used(Some(71234))));
        assert_eq!(tenant("12345, GPU-1, [Insufficient Permissions]"), Some(used(None)));
        assert_eq!(tenant(""), None);
        assert_eq!(
            instance("  MIG 1g.10gb     Device  0: (UUID: MIG-c6d4)"),
            Some("MIG-c6d4".to_owned())
        );
        assert_eq!(instance("GPU 0: NVIDIA H200 (UUID: GPU-5d3)"), None);
    }

    #[test]
    fn a_gpu_is_known_by_its_index_by_its_uuid_and_by_the_beginning_of_it() {
        let gpus = Gpus {
            devices: vec![device("1, GPU-5d3a, NVIDIA H200, 1, 1").unwrap()],
            instances: vec!["MIG-c6d4".to_owned()],
            ..Gpus::default()
        };
        for (gpu, there) in [
            (Gpu::Index(1), true),
            (Gpu::Index(0), false),
            (Gpu::Uuid("GPU-5d3a".to_owned()), true),
            (Gpu::Uuid("GPU-5d".to_owned()), true),
            (Gpu::Uuid("GPU-6".to_owned()), false),
            (Gpu::Uuid("MIG-c6d4".to_owned()), true),
            (Gpu::Uuid("MIG-0".to_owned()), false),
        ] {
            assert_eq!(gpus.holds(&gpu), there, "{gpu:?}");
        }
    }
}
