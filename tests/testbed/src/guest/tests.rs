use anyhow::{Context, Result};

use super::{Guest, GuestSpec, INCUMBENT, Lab, SLOTS, left_behind, ran_as_root};
use crate::server::processes::{parent_of, until};
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
            assert_eq!(gpus, "0, 143771, 71746\n1, 143771, 512\n2, 143771, 512\n3, 143771, 512\n");
            assert_eq!(guest.listeners(SLOTS.0).await?.len(), 1);
            assert!(guest.listeners(SLOTS.1).await?.is_empty());

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

/// A test that is killed clears up nothing, and its guest is not its child.
#[test]
fn the_end_of_the_process_is_the_end_of_its_guests() -> Result<()> {
    const INSIDE: &str = "TESTBED_TO_BE_KILLED";
    if ran_as_root()? {
        return Ok(());
    }
    if std::env::var_os(INSIDE).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let lab = Lab::enter()?;
        let guest = runtime.block_on(Guest::boot(&lab, GuestSpec::bare()))?;
        let groups = left_behind();
        println!("{} {}", guest.pid1()?, guest.scratch.path().display());
        println!(
            "{}",
            groups.iter().map(|at| at.display().to_string()).collect::<Vec<_>>().join(" ")
        );
        std::thread::park();
    }
    let name = "guest::tests::the_end_of_the_process_is_the_end_of_its_guests";
    let mut test = std::process::Command::new(std::env::current_exe()?)
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "yes")
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let said = std::io::BufReader::new(test.stdout.take().context("no output")?);
    let mut said = std::io::BufRead::lines(said)
        .skip_while(|line| line.as_ref().is_ok_and(|line| !line.contains(" /tmp/guest-")));
    let mut line = || Ok::<_, anyhow::Error>(said.next().context("no word of a guest")??);
    let (first, groups) = (line()?, line()?);
    let (pid, scratch) = first.rsplit_once(' ').context("two words")?;
    let pid: u32 = pid.rsplit(' ').next().context("a pid")?.parse()?;
    assert!(parent_of(pid).is_some());
    test.kill()?;
    test.wait()?;
    until("the guest and its files go", || {
        let paths = groups.split(' ').chain([scratch]).map(std::path::Path::new);
        Ok(parent_of(pid).is_none() && paths.filter(|path| path.exists()).count() == 0)
    })
}
