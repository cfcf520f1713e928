//! A server as it is in a data centre: systemd, and a user of the team's who may use sudo.

use std::fs;

use anyhow::Result;
use testbed::guest::{GuestSpec, SLOTS};

use crate::forced::listing;
use crate::support::guest::{on_guest, on_guest_of};
use crate::support::{NEW, OLD, binary};

#[test]
fn a_user_with_sudo_swaps_the_model() -> Result<()> {
    on_guest_of(GuestSpec::bare(), async |world| {
        world.guest.start_by_hand(OLD, SLOTS.0).await?;
        world.until_serves(OLD).await?;
        let load = world.load().await?;
        world.run("status", NEW, &[]).await?.answered(&["nginx sends traffic to port 8001"]);
        let room = "outlook: GPU 1 has 139.9 of 140.4 GiB free";
        let weights = "models--Qwen--New is not there yet: the engine downloads it within";
        world.run("plan", NEW, &[]).await?.answered(&[room, weights]);
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
        // While the new model is still there a swap back to it would start nothing.
        world.run("rollback", NEW, &[("wait", "retired")]).await?.ended(0, "rolled-back");
        world.until_serves(OLD).await?;
        load.stop().await.assert_clean();
        let last = "outlook: the last swap to Qwen/New took ";
        world.run("plan", NEW, &[]).await?.answered(&[last]);
        Ok(())
    })
}

/// As the document has it: root ties the key of a user who may nothing else, and lists the service.
#[test]
fn a_key_that_root_has_tied_swaps_what_is_listed_and_opens_nothing_else() -> Result<()> {
    const KEYS: &str = "/home/deploy/.ssh/authorized_keys";
    const PROGRAM: &str = "/root/model-swap";
    on_guest(async |world| {
        let guest = &world.guest;
        fs::copy(binary(), guest.file(PROGRAM)?)?;
        let key = guest.run(&["cat", KEYS]).await?;
        fs::remove_file(guest.file("/etc/sudoers.d/deploy")?)?;
        let tie =
            [PROGRAM, "server", "install", "--user", "deploy", "--key", key.trim(), "--apply"];
        // The line that a person put there is another way in, in either file of sshd's.
        let second = format!("{KEYS}2");
        let lets_in = async |file: &str| {
            let refused = guest.run(&tie).await.expect_err("it is tied, and free").to_string();
            assert!(refused.contains(&format!("line 1 of {file} lets this key in")), "{refused}");
        };
        lets_in(KEYS).await;
        guest.run(&["mv", KEYS, &second]).await?;
        lets_in(&second).await;
        guest.run(&["rm", &second]).await?;
        for _ in 0..2 {
            guest.run(&tie).await?;
        }
        let rules = guest.run(&["visudo", "--check"]).await?;
        assert!(rules.contains("/etc/sudoers.d/model-swap: parsed OK"), "{rules}");
        let modes = ["stat", "--format=%U %a", "/etc/sudoers.d/model-swap", KEYS];
        assert_eq!(guest.run(&modes).await?, "root 440\ndeploy 600\n");

        world
            .run("status", NEW, &[])
            .await?
            .refused(3, &["this key may not ask about service chat"]);
        let listed = guest.file("/etc/model-swap/services.d/chat.yaml")?;
        fs::write(listed, listing(&world.config(NEW)?)?)?;
        let load = world.load().await?;
        world.run("swap", NEW, &[]).await?.ended(0, "promoted");
        world.until_serves(NEW).await?;
        load.stop().await.assert_clean();
        let other = world.run("swap", "Evil/Model", &[]).await?;
        other.refused(2, &["model \"Evil/Model\" is none of the allowed ones (Qwen/*)"]);

        let said = guest.ssh("id").await.unwrap_or_else(|error| error.to_string());
        assert!(said.contains("--- model-swap agent ---") && !said.contains("uid="), "{said}");
        for line in ["id", "/usr/local/libexec/model-swap/model-swap agent run"] {
            let as_user = ["runuser", "--user", "deploy", "--", "sudo", "-n"].into_iter();
            let argv: Vec<_> = as_user.chain(line.split(' ')).collect();
            let refused = guest.run(&argv).await.expect_err("sudo lets it").to_string();
            assert!(refused.contains("a password is required"), "{refused}");
        }
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
