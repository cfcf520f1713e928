//! Replicas as systemd units: written, enabled before they get traffic, watched, stopped and removed; and somebody's own unit,
//! which is only stopped and started.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use testbed::PATIENCE;
use testbed::guest::{GuestSpec, IMAGE, Runtime, SLOTS, USER};
use testbed::service::{NAME, Settings, until_serves};

use crate::doctor::mark;
use crate::secrets::{Lookout, canary};
use crate::step::{LOOK_EVERY, Step, processes_with};
use crate::support::guest::{load_on, on_guest, on_guest_of, until, users_nginx};
use crate::support::{NEW, OLD};

/// The unit of slot b.
const OURS: &str = "model-swap-chat.b.service";

#[test]
fn a_unit_is_the_old_models_users_and_its_secrets_are_roots() -> Result<()> {
    on_guest(async |world| {
        // A boot starts it, and so does another unit, whatever becomes of the first.
        let pulled = "cd /etc/systemd/system && mkdir nginx.service.d \
            && printf '[Unit]\\nWants=vllm.service\\n' > nginx.service.d/llm.conf && systemctl daemon-reload";
        world.guest.run(&["sh", "-c", pulled]).await?;
        let doctor = world.run("doctor", NEW, &[]).await?;
        let doctor = doctor.answered(&["vllm.service starts with nginx.service, enabled or not"]);
        assert_eq!(mark(&doctor, "unit that serves"), "warn", "{doctor}");
        let plan = world.run("plan", NEW, &[]).await?;
        for said in [
            "as unit model-swap-chat.b.service",
            "starts with nginx.service, enabled or not: the next boot",
        ] {
            assert!(plan.stdout.contains(said), "no {said:?} in {plan}");
        }
        let canary = canary("unit");
        let config =
            world.config(NEW)?.replace("replica:\n", "replica:\n  secret_env: [HF_TOKEN]\n");
        let action = world.action("swap", NEW, &[])?.with_config(&config)?;
        let lookout = Lookout::for_texts(vec![canary.clone()]);
        let run = action.with(&[("HF_TOKEN", &canary)]).spawn()?.finish().await?;
        let run = run.ended(0, "promoted");
        let (argvs, looks) = lookout.report()?;
        assert!(argvs.is_empty() && looks > 10, "{argvs:#?}");
        assert!(!processes_with(&format!("vllm serve {NEW}")).is_empty(), "it cannot look there");
        let user = world.guest.run(&["id", "-u", "vllm"]).await?;
        assert_eq!(world.property(OURS, "User").await?, user.trim());
        let environment = format!("/var/lib/model-swap/env.d/{OURS}");
        let modes = ["stat", "--format=%U %a", "/var/lib/model-swap/env.d", &environment];
        assert_eq!(world.guest.run(&modes).await?, "root 700\nroot 600\n");
        assert!(world.guest.run(&["cat", &environment]).await?.contains(&canary), "{run}");
        // What anybody on the server may read.
        let unit = format!("/etc/systemd/system/{OURS}");
        assert_eq!(world.guest.run(&["stat", "--format=%U %a", &unit]).await?, "root 644\n");
        for words in [
            &["cat", &unit][..],
            &["systemctl", "show", OURS],
            &["journalctl", "--no-pager", "--all"],
        ] {
            let said = world.guest.run(words).await?;
            assert!(said.contains(NEW) && !said.contains(&canary), "{words:?}: {said}");
        }
        assert!(!run.to_string().contains(&canary), "{run}");
        let logs = world.run("logs", NEW, &[]).await?;
        logs.answered(&["Application startup complete"]);
        Ok(())
    })
}

/// Every agent clears up after its swap, and what a boot would start stays, whosever it is.
#[test]
fn binaries_that_no_boot_and_no_workflow_needs_go() -> Result<()> {
    const BINARIES: &str = "/usr/local/libexec/model-swap";
    on_guest(async |world| {
        world.settings.retain = "0s".to_owned();
        // Older from one to the next; the oldest is what another service's agent is started with.
        let digests: Vec<_> = (0..5).map(|number| format!("{number:064x}")).collect();
        for (age, digest) in digests.iter().rev().enumerate() {
            let folder = format!("{BINARIES}/{digest}");
            world.guest.run(&["mkdir", "-p", &folder]).await?;
            world.guest.run(&["touch", &format!("{folder}/model-swap")]).await?;
            let day = format!("{} days ago", age + 1);
            world.guest.run(&["touch", "--date", &day, &folder]).await?;
        }
        let unit = "/etc/systemd/system/model-swap-agent@code.service";
        let text =
            format!("[Service]\nExecStart={BINARIES}/{}/model-swap agent resume\n", digests[0]);
        fs::write(world.guest.file(unit)?, text)?;
        world.run("swap", NEW, &[("wait", "retired")]).await?.ended(0, "promoted");
        world.until_through().await?;
        let kept = async || -> Result<Vec<String>> {
            let listed = world.guest.run(&["ls", BINARIES]).await?;
            Ok(digests.iter().filter(|digest| listed.contains(*digest)).cloned().collect())
        };
        // Beside the one that works: the two that did so last, and the one that a unit names.
        let wanted = [&digests[0], &digests[3], &digests[4]].map(Clone::clone);
        until("the others go", async || Ok(kept().await? == wanted)).await?;
        assert_eq!(world.left().await?.len(), 3, "the unit, what enables it, its environment");
        Ok(())
    })
}

/// As where PID 1 starts itself anew when it has taken the job, before it has said so.
const UNHEARD: &str = r#"#!/bin/sh
/usr/bin/systemctl "$@"
code=$?
case " $* " in
*" start -- model-swap-chat.b.service "* | *" start --no-block -- vllm.service "*) echo "Connection reset by peer" >&2; exit 1 ;;
esac
exit $code
"#;

#[test]
fn a_unit_that_was_started_although_nobody_heard_of_it_is_stopped() -> Result<()> {
    let files = vec![("/usr/local/bin/systemctl".to_owned(), 0o755, UNHEARD.to_owned())];
    on_guest_of(GuestSpec { files, ..GuestSpec::serving(OLD) }, async |world| {
        world.until_serves(OLD).await?;
        let run = world.run("swap", NEW, &[]).await?.ended(4, "failed");
        let run = run.refused(4, &["Connection reset by peer"]);
        assert_eq!(world.property(OURS, "ActiveState").await?, "inactive", "{run}");
        assert!(world.guest.run(&["pgrep", "--full", "serve Qwen/New"]).await.is_err(), "{run}");
        assert_eq!(world.left().await?, Vec::<String>::new(), "{run}");
        Ok(())
    })
}

/// What would be stopped with somebody's own unit counts there too.
#[test]
fn a_unit_that_others_are_stopped_with_is_not_stopped_when_its_start_went_unheard() -> Result<()> {
    on_guest(async |world| {
        world.settings.retain = "0s".to_owned();
        world.run("swap", NEW, &[("wait", "retired")]).await?.ended(0, "promoted");
        fs::write(world.guest.file("/usr/local/bin/systemctl")?, UNHEARD)?;
        world.guest.run(&["chmod", "+x", "/usr/local/bin/systemctl"]).await?;
        let tie = "mkdir -p /etc/systemd/system/nginx.service.d \
            && printf '[Unit]\\nRequires=vllm.service\\n' > /etc/systemd/system/nginx.service.d/llm.conf && systemctl daemon-reload";
        world.guest.run(&["sh", "-c", tie]).await?;
        let load = world.load().await?;
        let run = world.run("rollback", NEW, &[]).await?.ended(7, "stuck");
        let said = "unit vllm.service is not stopped alone: systemd stops nginx.service with it";
        let run = run.refused(7, &["Connection reset by peer", said]);
        assert_eq!(world.property("nginx.service", "ActiveState").await?, "active", "{run}");
        load.stop().await.assert_clean();
        world.until_serves(NEW).await
    })
}

/// Its file alone is not the model.
#[test]
fn a_new_model_whose_units_file_somebody_removed_is_stopped() -> Result<()> {
    on_guest(async |world| {
        world.settings.flags = "--stub-load-time 600s".to_owned();
        world.settings.ready = "900s".to_owned();
        let mut step = Step::start(world.action("swap", NEW, &[])?)?;
        step.says("→ await_ready b").await?;
        world.guest.run(&["rm", &format!("/etc/systemd/system/{OURS}")]).await?;
        world.guest.run(&["systemctl", "daemon-reload"]).await?;
        world.run("abort", NEW, &[]).await?.ended(0, "aborted");
        let run = step.finish().await?.ended(6, "aborted");
        assert_eq!(world.property(OURS, "ActiveState").await?, "inactive", "{run}");
        assert!(world.guest.run(&["pgrep", "--full", "serve Qwen/New"]).await.is_err(), "{run}");
        assert_eq!(world.left().await?, Vec::<String>::new(), "{run}");
        Ok(())
    })
}

/// What its unit has started again is still the model on record: nothing is adopted, and it is retired as ever.
#[test]
fn a_promoted_model_that_dies_is_started_again() -> Result<()> {
    on_guest(async |world| {
        world.run("swap", NEW, &[]).await?.ended(0, "promoted");
        let first = world.property(OURS, "MainPID").await?;
        world.guest.run(&["kill", "-KILL", &first]).await?;
        let deadline = Instant::now() + PATIENCE;
        while world.property(OURS, "NRestarts").await? == "0" {
            ensure!(Instant::now() < deadline, "nothing starts it again");
            tokio::time::sleep(LOOK_EVERY).await;
        }
        world.until_serves(NEW).await?;
        assert_ne!(world.property(OURS, "MainPID").await?, first);
        let run = world.run("swap", NEW, &[]).await?.ended(0, "unchanged");
        assert!(run.stdout.contains("already serves from slot b"), "{run}");
        Ok(())
    })
}

/// Whoever starts it again while it loads hides nothing: what was to be judged has ended.
#[test]
fn a_unit_that_somebody_starts_anew_while_it_loads_is_given_up() -> Result<()> {
    on_guest(async |world| {
        world.settings.flags = "--stub-load-time 600s".to_owned();
        world.settings.ready = "900s".to_owned();
        let mut step = Step::start(world.action("swap", NEW, &[])?)?;
        step.says("→ await_ready b").await?;
        world.guest.run(&["systemctl", "restart", OURS]).await?;
        let run = step.finish().await?.ended(4, "failed");
        assert!(run.stdout.contains("ended before it was ready"), "{run}");
        assert_eq!(world.left().await?, Vec::<String>::new(), "{run}");
        assert!(world.guest.run(&["pgrep", "--full", "serve Qwen/New"]).await.is_err(), "{run}");
        world.until_serves(OLD).await
    })
}

/// It copies weights, say, and systemd lets it. What serves does so until those programs have ended, or whoever waits for them is
/// told to give up.
#[test]
fn a_unit_whose_first_programs_take_too_long_is_said_to_and_stopped() -> Result<()> {
    const FIRST: &str = "[Service]
ExecStartPre=/bin/sh -c 'echo first things first; until [ -e /run/go ]; do sleep 0.1; done'
TimeoutStartSec=infinity
";
    on_guest(async |world| {
        world.settings.retain = "0s".to_owned();
        let load = world.load().await?;
        world.run("swap", NEW, &[("wait", "retired")]).await?.ended(0, "promoted");
        let drop_in = world.guest.file("/etc/systemd/system/vllm.service.d/first.conf")?;
        fs::create_dir_all(drop_in.parent().context("a folder")?)?;
        fs::write(drop_in, FIRST)?;
        world.guest.run(&["systemctl", "daemon-reload"]).await?;

        world.settings.ready = "3s".to_owned();
        let late = world.run("rollback", NEW, &[]).await?.ended(4, "failed");
        let said = "unit vllm.service does not run the model after 3s";
        let late = late.refused(4, &[said, "first things first", "raise ready.timeout"]);
        // Its first program is asked to end, and did not by itself.
        assert_eq!(world.unit("vllm.service").await?, "failed disabled always", "{late}");

        let waits = "unit vllm.service does not run the model yet: it runs other programs first";
        world.settings.ready = "1h".to_owned();
        let mut given_up = Step::start(world.action("rollback", NEW, &[])?)?;
        given_up.says(waits).await?;
        world.run("abort", NEW, &[]).await?.ended(0, "aborted");
        let given_up = given_up.finish().await?.ended(6, "aborted");
        assert_eq!(world.unit("vllm.service").await?, "failed disabled always", "{given_up}");
        world.until_serves(NEW).await?;

        let mut back = Step::start(world.action("rollback", NEW, &[])?)?;
        back.says(waits).await?;
        world.guest.run(&["touch", "/run/go"]).await?;
        let back = back.finish().await?.ended(0, "rolled-back");
        assert_eq!(world.unit("vllm.service").await?, "active enabled always", "{back}");
        world.until_serves(OLD).await?;
        load.stop().await.assert_clean();
        Ok(())
    })
}

/// Nothing there is root's: nginx, the old model in a unit of the user's own manager, and the agent.
#[test]
fn a_unit_of_the_users_own_manager_is_stopped_and_started_without_root() -> Result<()> {
    // Where no manager looks by itself: to disable it takes its link away.
    const UNIT: &str = "/home/deploy/llm/vllm.service";
    on_guest_of(GuestSpec::bare(), async |world| {
        let guest = &world.guest;
        let (nginx, site) = users_nginx(guest).await?;
        guest.run(&["loginctl", "enable-linger", USER]).await?;
        guest.run_as_user("mkdir ~/llm").await?;
        let argv =
            format!("/opt/vllm/bin/vllm serve {OLD} --port {} --served-model-name {NAME}", SLOTS.0);
        let text = format!("[Service]\nExecStart={argv}\n[Install]\nWantedBy=default.target\n");
        fs::write(guest.file(UNIT)?, text)?;
        let unit =
            async |words: &str| guest.ssh(&format!("systemctl --user {words} vllm.service")).await;
        guest.ssh(&format!("systemctl --user enable --now {UNIT}")).await?;
        until_serves(nginx, OLD).await?;
        let settings = Settings { retain: "0s".to_owned(), ..Settings::default() };
        let config = settings.config_on(&site, NEW)?;
        let load = load_on(nginx).await?;
        let ask = async |command: &str| {
            let action = world.action(command, NEW, &[("wait", "retired")])?;
            Step::run(action.with_config(&config)?).await
        };
        ask("swap").await?.ended(0, "promoted");
        until_serves(nginx, NEW).await?;
        assert!(guest.listeners(SLOTS.0).await?.is_empty(), "it was retired");
        let state = "show --value --property=ActiveState,UnitFileState";
        assert_eq!(
            unit(state).await?.split_whitespace().collect::<Vec<_>>(),
            ["inactive", "linked"]
        );
        ask("rollback").await?.ended(0, "rolled-back");
        until_serves(nginx, OLD).await?;
        assert_eq!(
            unit(state).await?.split_whitespace().collect::<Vec<_>>(),
            ["active", "enabled"]
        );
        load.stop().await.assert_clean();
        Ok(())
    })
}

/// A script's models, of which nginx knows one.
#[test]
fn a_unit_with_other_programs_in_it_is_not_replaced() -> Result<()> {
    const UNIT: &str = "/etc/systemd/system/models.service";
    let vllm =
        format!("/opt/vllm/bin/vllm serve {OLD} --port {} --served-model-name {NAME}", SLOTS.0);
    let script = format!("{vllm} | tee /run/said & perl -e 'sleep' gateway & wait");
    let mut spec = GuestSpec::bare();
    spec.files.push(("/opt/models.sh".to_owned(), 0o755, format!("#!/bin/sh\n{script}\n")));
    spec.files.push((
        UNIT.to_owned(),
        0o644,
        "[Service]\nExecStart=/opt/models.sh\n[Install]\nWantedBy=multi-user.target\n".to_owned(),
    ));
    on_guest_of(spec, async |world| {
        world.settings.retain = "0s".to_owned();
        let guest = &world.guest;
        guest.run(&["systemctl", "enable", "--now", "models.service"]).await?;
        world.until_serves(OLD).await?;
        let said = "unit models.service is not the model's alone: to stop it would end process";
        let doctor = world.run("doctor", NEW, &[]).await?;
        assert_eq!(mark(&doctor, "end of what serves"), "fail", "{doctor}");
        let refused = world.run("swap", NEW, &[]).await?.ended(3, "");
        let gateway = "(perl -e sleep gateway) as well";
        assert!(refused.stdout.contains(said) && refused.stdout.contains(gateway), "{refused}");
        guest.run(&["pkill", "--full", "sleep gateway"]).await?;
        world.run("swap", NEW, &[("wait", "retired")]).await?.ended(0, "promoted");
        assert_eq!(world.unit("models.service").await?, "inactive disabled no");
        Ok(())
    })
}

/// A boot starts what nginx points at, where it starts nginx and Docker.
#[test]
fn an_nginx_or_a_docker_that_no_boot_starts_is_told_of() -> Result<()> {
    let spec = GuestSpec { runtime: Runtime::Docker, ..GuestSpec::serving(OLD) };
    on_guest_of(spec, async |world| {
        world.until_serves(OLD).await?;
        for (what, unit) in
            [("nginx after a reboot", "nginx.service"), ("Docker after a reboot", "docker.service")]
        {
            let doctor = world.run("doctor", NEW, &[]).await?;
            assert_eq!(mark(&doctor, what), "ok", "{doctor}");
            world.guest.run(&["systemctl", "disable", unit]).await?;
            let doctor = world.run("doctor", NEW, &[]).await?.answered(&[
                &format!("no boot starts {unit}, and no client reaches a model then"),
                &format!("systemctl enable {unit}"),
            ]);
            assert_eq!(mark(&doctor, what), "warn", "{doctor}");
        }
        world.guest.run(&["systemctl", "mask", "nginx.service"]).await?;
        let mend = "systemctl unmask nginx.service && systemctl enable nginx.service";
        let doctor = world.run("doctor", NEW, &[]).await?.answered(&[mend]);
        assert_eq!(mark(&doctor, "nginx after a reboot"), "warn", "{doctor}");
        Ok(())
    })
}

/// An nginx that is told to stop with the old model; while a swap is under way, too.
#[test]
fn a_unit_that_others_are_stopped_with_is_not_stopped() -> Result<()> {
    const TIE: &str = "#!/bin/sh
mkdir -p /etc/systemd/system/nginx.service.d
printf '[Unit]\\nRequires=vllm.service\\n' > /etc/systemd/system/nginx.service.d/llm.conf
systemctl daemon-reload
";
    let untie =
        ["sh", "-c", "rm /etc/systemd/system/nginx.service.d/llm.conf; systemctl daemon-reload"];
    let mut spec = GuestSpec::serving(OLD);
    spec.files.push(("/opt/tie".to_owned(), 0o755, TIE.to_owned()));
    // As root, like its successor, so that its fetch may tell systemd something.
    let root = "[Service]\nUser=root\n".to_owned();
    spec.files.push(("/etc/systemd/system/vllm.service.d/root.conf".to_owned(), 0o644, root));
    on_guest_of(spec, async |world| {
        world.until_serves(OLD).await?;
        let said = "unit vllm.service is not stopped alone: systemd stops nginx.service with it";
        world.guest.run(&["/opt/tie"]).await?;
        let doctor = world.run("doctor", NEW, &[]).await?;
        assert_eq!(mark(&doctor, "end of what serves"), "fail", "{doctor}");
        let refused = world.run("swap", NEW, &[]).await?.ended(3, "");
        assert!(refused.stdout.contains(said), "{refused}");
        world.guest.run(&untie).await?;
        world.settings.retain = "0s".to_owned();
        world.settings.fetch = "fetch: { command: /opt/tie, folder: /tmp }".to_owned();
        let run = world.run("swap", NEW, &[]).await?.ended(0, "promoted");
        until("it is told why it was not stopped", async || {
            Ok(world.run("status", NEW, &[]).await?.stdout.contains(said))
        })
        .await?;
        assert_eq!(world.unit("vllm.service").await?, "active enabled always", "{run}");
        assert_eq!(world.property("nginx.service", "ActiveState").await?, "active", "{run}");
        world.guest.run(&untie).await?;
        until("it is stopped", async || {
            Ok(world.unit("vllm.service").await? == "inactive disabled always")
        })
        .await
    })
}

/// As before systemd 248: to signal its processes would have it start the model again.
#[test]
fn a_unit_of_a_users_manager_that_is_not_reached_is_no_plain_process() -> Result<()> {
    const OLD_SYSTEMCTL: &str = "#!/bin/sh
case \"$*\" in *--machine=*) echo 'unrecognized option --machine' >&2; exit 1 ;; esac
exec /usr/bin/systemctl \"$@\"
";
    let mut spec = GuestSpec::bare();
    let place = "/usr/local/bin/systemctl".to_owned();
    spec.files.push((place, 0o755, OLD_SYSTEMCTL.to_owned()));
    on_guest_of(spec, async |world| {
        let guest = &world.guest;
        guest.run(&["loginctl", "enable-linger", USER]).await?;
        guest.run_as_user("mkdir -p ~/.config/systemd/user").await?;
        let argv =
            format!("/opt/vllm/bin/vllm serve {OLD} --port {} --served-model-name {NAME}", SLOTS.0);
        let unit = "/home/deploy/.config/systemd/user/vllm.service";
        fs::write(guest.file(unit)?, format!("[Service]\nExecStart={argv}\n"))?;
        guest.ssh("systemctl --user start vllm.service").await?;
        world.until_serves(OLD).await?;
        let refused = world.run("plan", NEW, &[]).await?;
        let said =
            "the systemd manager of user id 1000, which runs unit vllm.service, does not answer";
        assert!(refused.stdout.contains(said), "{refused}");
        assert!(refused.stdout.contains("unrecognized option --machine"), "{refused}");
        Ok(())
    })
}

/// `docker run` in the foreground: it ends with its container, and its unit starts another one.
#[test]
fn a_container_that_a_unit_runs_is_not_replaced_until_that_lets_it_go() -> Result<()> {
    let mut spec = GuestSpec { runtime: Runtime::Docker, ..GuestSpec::bare() };
    let words = format!(
        "run --rm --publish={}:8000 {IMAGE} {OLD} --host 0.0.0.0 --port 8000 --served-model-name {NAME}",
        SLOTS.0
    );
    let text = format!(
        "[Unit]\nAfter=docker.service\n[Service]\nExecStart=/usr/bin/docker {words}\nRestart=always\n\
         [Install]\nWantedBy=multi-user.target\n"
    );
    spec.files.push(("/etc/systemd/system/vllm.service".to_owned(), 0o644, text));
    on_guest_of(spec, async |world| {
        let guest = &world.guest;
        guest.run(&["systemctl", "enable", "--now", "vllm.service"]).await?;
        world.until_serves(OLD).await?;
        let doctor = world.run("doctor", NEW, &[]).await?;
        assert_eq!(mark(&doctor, "end of what serves"), "fail", "{doctor}");
        let refused = world.run("swap", NEW, &[]).await?.ended(3, "");
        let said = "is started again by unit vllm.service, which runs its client (process";
        assert!(refused.stdout.contains(said), "{refused}");
        let let_go = "mkdir /etc/systemd/system/vllm.service.d && systemctl disable vllm.service \
            && printf '[Service]\\nRestart=no\\n' > /etc/systemd/system/vllm.service.d/x.conf && systemctl daemon-reload";
        guest.run(&["sh", "-c", let_go]).await?;
        world.settings.retain = "0s".to_owned();
        world.run("swap", NEW, &[("wait", "retired")]).await?.ended(0, "promoted");
        assert!(world.guest.listeners(SLOTS.0).await?.is_empty(), "it was retired");
        Ok(())
    })
}

/// Whatever argv and environment hold, systemd hands it on as it was written.
#[test]
fn systemd_hands_on_what_was_written() -> Result<()> {
    const WORD: &str = r#"100% %n $HOME $$ a"b\c'd ü ;"#;
    const VALUE: &str = "100% %n $HOME ${HOME} `x` a\"b\\c'd\nsecond line # no comment\t\\";
    on_guest(async |world| {
        world.settings.flags = format!("--download-dir {}", shell_words(WORD));
        world.settings.env = format!("ODD: {}", serde_json::to_string(VALUE)?);
        let run = world.run("swap", NEW, &[]).await?.ended(0, "promoted");
        let main = world.property(OURS, "MainPID").await?;
        let read = |file: &str| -> Result<Vec<String>> {
            let bytes = fs::read(world.guest.file(&format!("/proc/{main}/{file}"))?)?;
            Ok(bytes
                .split(|byte| *byte == 0)
                .map(|w| String::from_utf8_lossy(w).into_owned())
                .collect())
        };
        let argv = read("cmdline")?;
        let at = argv.iter().position(|word| word == "--download-dir").context("the flag")?;
        assert_eq!(argv[at + 1], WORD, "{run}");
        assert_eq!(argv[0], "/opt/vllm/bin/vllm");
        let environment = read("environ")?;
        assert!(environment.contains(&format!("ODD={VALUE}")), "{environment:?}");
        Ok(())
    })
}

/// As a person quotes a word.
fn shell_words(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
