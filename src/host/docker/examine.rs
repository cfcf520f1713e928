//! What `doctor` asks of Docker: whether there is an Engine, what its registries have, whether it hands out GPUs.

use std::collections::BTreeMap;
use std::path::Path;

use serde::de::IgnoredAny;

use super::{DockerError, LIMIT, ask};
use crate::host::disk::{self, Folder};
use crate::host::fetch::bytes;
use crate::host::process::{self, Inherited};

/// What the Engine runs before a container that was given GPUs; without it `docker run --gpus` fails (moby,
/// `daemon/nvidia_linux.go`).
const GPU_HOOK: &str = "nvidia-container-runtime-hook";

/// The versions of client and Engine, in words: the Engine was reached.
///
/// # Errors
/// If there is no client, or it does not reach an Engine.
pub async fn versions() -> Result<String, DockerError> {
    let template = "client {{.Client.Version}}, Engine {{.Server.Version}}";
    let said = ask(&["version", "--format", template], "reach its Engine", LIMIT).await?;
    Ok(said.trim().to_owned())
}

/// Whether `docker run --gpus` can work: by a runtime of NVIDIA's that the Engine names, or by the program that it calls.
///
/// # Errors
/// If docker does not say.
pub async fn hands_out_gpus() -> Result<bool, DockerError> {
    let said = ask(&["info", "--format", "{{json .Runtimes}}"], "name its runtimes", LIMIT).await?;
    let runtimes: BTreeMap<String, IgnoredAny> = serde_json::from_str(&said)
        .map_err(|source| DockerError::Garbled { what: "its runtimes".to_owned(), source })?;
    let named = runtimes.keys().any(|name| name.contains("nvidia"));
    let own = Inherited::of_self();
    let called = |own: Inherited| process::resolve(GPU_HOOK, &own.path, &own.cwd).is_ok();
    Ok(named || own.is_ok_and(called))
}

/// With less than this many bytes on Docker's disk a pull may fail: an image with CUDA and PyTorch takes some 20 GB, and what is
/// downloaded is beside it until it is unpacked.
pub const LITTLE_ROOM: u64 = 32 << 30;

/// The folder where the Engine keeps images and containers; `None` if docker does not say, or that is another machine's.
pub async fn room() -> Option<Folder> {
    let root = ["info", "--format", "{{.DockerRootDir}}"];
    let said = ask(&root, "name its folder", LIMIT).await.ok()?;
    let root = Path::new(said.trim());
    if root.is_dir() { disk::folder(root).ok() } else { None }
}

/// What is said of little room before an image is pulled; `None` where there is enough.
pub fn little_room(folder: &Folder) -> Option<String> {
    let (free, there) = (bytes(folder.free), folder.there.display());
    (folder.free < LITTLE_ROOM)
        .then(|| format!("only {free} are free in {there}, where Docker keeps images"))
}

/// Asks an image's registry for it, with the client's own login, and brings nothing.
///
/// # Errors
/// If the registry does not have it, does not let us in, or does not answer.
pub async fn offered(reference: &str) -> Result<(), DockerError> {
    let doing = format!("find {reference} in its registry");
    ask(&["manifest", "inspect", reference], &doing, LIMIT).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::disk::tests::engines;

    #[test]
    fn little_room_is_said_before_a_pull() {
        assert_eq!(little_room(&engines(LITTLE_ROOM)), None);
        let said = little_room(&engines(12_300_000_000)).unwrap();
        assert_eq!(said, "only 12.3 GB are free in /var/lib/docker, where Docker keeps images");
    }
}
