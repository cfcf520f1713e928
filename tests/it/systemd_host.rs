//! A server as it is in a data centre: systemd, and a user of the team's who may use sudo.

use std::fs;

use anyhow::Result;
use testbed::guest::{GuestSpec, SLOTS};

use crate::support::guest::{on_guest, on_guest_of};
use crate::support::{NEW, OLD};

#[test]
fn a_user_with_sudo_swaps_the_model() -> Result<()> {
    on_guest_of(GuestSpec::bare(), async |world| {
        world.guest.start_by_hand(OLD, SLOTS.0).await?;
        world.until_serves(OLD).await?;
        let load = world.load().await?;
        world.run("status", NEW, &[]).await?.answered(&["nginx sends traffic to port 8001"]);
        let room = "outlook: GPU 1 has 139.9 of 140.4 GiB free";
        world.run("plan", NEW, &[]).await?.answered(&[room]);
        let run = world.run("swap", NEW, &[]).await?.ended(0, "promoted");
        assert_eq!(run.output("slot"), "b");
        world.until_serves(NEW).await?;
        load.stop().await.assert_clean();

        // All of it is root's, and the user has no more of it than sudo.
        let agents = world
            .guest
            .run(&["find", "/usr/local/libexec/model-swap", "!", "-user", "root"])
            .await?;
        assert_eq!(agents, "", "what root runs, only root may write");
        let state =
            world.guest.run(&["stat", "--format=%U %a", "/var/lib/model-swap/chat"]).await?;
        assert_eq!(state, "root 700\n");
        assert_eq!(world.guest.listeners(SLOTS.0).await?.len(), 1, "the old model is kept warm");
        world.run("status", NEW, &[]).await?.answered(&["nginx sends traffic to port 8002"]);

        let load = world.load().await?;
        world.run("rollback", NEW, &[]).await?.ended(0, "rolled-back");
        world.until_serves(OLD).await?;
        load.stop().await.assert_clean();
        let last = "outlook: the last swap to Qwen/New took ";
        world.run("plan", NEW, &[]).await?.answered(&[last]);
        Ok(())
    })
}

/// Nothing is asked for, guessed or half done where sudo refuses; each refusal has its own way out.
#[test]
fn a_user_whom_sudo_refuses_reads_why_and_what_to_write() -> Result<()> {
    on_guest(async |world| {
        let rules = world.guest.file("/etc/sudoers.d/deploy")?;
        for (rule, said, hint) in [
            (
                "deploy ALL=(root) ALL",
                "sudo: a password is required",
                "/etc/sudoers.d/model-swap: `deploy ALL=(root) NOPASSWD: ALL`",
            ),
            (
                "Defaults:deploy requiretty\ndeploy ALL=(root) NOPASSWD: ALL",
                "sudo: sorry, you must have a tty to run sudo",
                "`Defaults:deploy !requiretty`",
            ),
            (
                "deploy ALL=(root) NOPASSWD: /usr/bin/systemctl",
                "sudo: a password is required",
                "`deploy ALL=(root) NOPASSWD: ALL`",
            ),
        ] {
            fs::write(&rules, format!("{rule}\n"))?;
            let refusal =
                format!("deploy@{} does not let us become root: {said}", world.guest.address());
            world.run("swap", NEW, &[]).await?.refused(3, &[&refusal, hint]);
        }
        fs::remove_file(world.guest.file("/usr/bin/sudo")?)?;
        world.run("swap", NEW, &[]).await?.refused(
            3,
            &["does not let us become root: ", "sudo: not found", "apt-get install sudo"],
        );
        let left =
            world.guest.run(&["find", "/usr/local", "/var/lib", "-name", "*model-swap*"]).await?;
        assert_eq!(left, "");
        world.until_serves(OLD).await
    })
}
