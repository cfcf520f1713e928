use anyhow::Result;

use super::{GPUS, Guest, GuestSpec, INCUMBENT, Lab, SLOTS, left_behind, ran_as_root};
use crate::service;

/// One boot for all of it: what a test may take for granted of a guest.
#[test]
fn a_guest_boots_reboots_loses_power_and_leaves_nothing() -> Result<()> {
    if ran_as_root()? {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outside = std::fs::read_link("/proc/thread-self/ns/net")?;
    {
        let lab = Lab::enter()?;
        runtime.block_on(async {
            let mut guest = Guest::boot(&lab, GuestSpec::serving("Qwen/Old")).await?;
            service::until_serves(guest.nginx_addr(), "Qwen/Old").await?;
            assert_eq!(guest.run(&["hostname"]).await?, "gpu-1\n");
            assert_eq!(guest.run(&["systemctl", "--failed", "--plain", "--no-legend"]).await?, "");
            assert_eq!(guest.run(&["systemctl", "is-enabled", INCUMBENT]).await?, "enabled\n");
            assert_eq!(
                guest.run(&["runuser", "-u", "deploy", "--", "sudo", "-n", "id", "-u"]).await?,
                "0\n"
            );
            let query = "--query-gpu=index,memory.total,memory.used";
            let gpus = guest.run(&["nvidia-smi", query, "--format=csv,noheader,nounits"]).await?;
            assert_eq!(gpus, "0, 143771, 71746\n1, 143771, 512\n");
            assert_eq!(guest.listeners(SLOTS.0).await?.len(), 1);
            assert!(guest.listeners(SLOTS.1).await?.is_empty());
            assert_eq!(GPUS.len(), 2);

            std::fs::write(guest.file("/root/kept")?, "by the disk")?;
            let boot =
                async |guest: &Guest| guest.run(&["cat", "/proc/sys/kernel/random/boot_id"]).await;
            let first = (guest.pid1()?, boot(&guest).await?);
            guest.reboot().await?;
            service::until_serves(guest.nginx_addr(), "Qwen/Old").await?;
            assert_ne!(guest.pid1()?, first.0);
            guest.power_loss().await?;
            assert!(guest.pid1().is_err());
            assert!(service::serves(guest.nginx_addr()).await.is_err());
            guest.power_on().await?;
            service::until_serves(guest.nginx_addr(), "Qwen/Old").await?;
            assert_eq!(guest.run(&["cat", "/root/kept"]).await?, "by the disk");
            guest.stop().await?;

            // Two of them meet in one network; dropping them pulls the plug.
            let one = Guest::boot(&lab, GuestSpec::serving("Qwen/One")).await?;
            let two = Guest::boot(&lab, GuestSpec::serving("Qwen/Two")).await?;
            let other = two.address().to_string();
            let said = one.run(&["ssh-keyscan", "-t", "ed25519", &other]).await?;
            assert_eq!(said.trim(), two.known_hosts().trim().trim_end_matches(" testbed"));
            anyhow::Ok(())
        })?;
    }
    assert_eq!(std::fs::read_link("/proc/thread-self/ns/net")?, outside);
    assert!(left_behind().is_empty(), "{:?}", left_behind());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let own = format!("testbed-guest-{}", std::process::id());
    assert!(!mounts.contains(&own) && !mounts.contains("/tmp/guest-"), "{mounts}");
    Ok(())
}
