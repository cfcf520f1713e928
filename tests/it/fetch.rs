//! Weights are on the server before anything is reserved: brought by a program of the user's, here a script.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::doctor::mark;
use crate::step::Step;
use crate::support::{NEW, OLD, Run, World, alive, until};
use crate::swap::claims;

/// A world whose swaps begin with a script.
struct Fetching {
    world: World,
}

/// Where the weights go, in a cache of Hugging Face's library.
const WEIGHTS: &str = "hf/hub/models--Qwen--New";

impl Fetching {
    async fn with(script: &str, more: &str) -> Result<Self> {
        let mut world = World::start().await?;
        let scratch = world.server.scratch().to_owned();
        let path = scratch.join("fetch.sh");
        fs::write(&path, format!("#!/bin/sh\ncd '{}'\n{script}\n", scratch.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        world.settings.env = format!("HF_HOME: {}", scratch.join("hf").display());
        world.settings.fetch = format!(
            "fetch: {{ command: \"{} --from {{model}}@{{revision}}\", {more} }}",
            path.display()
        );
        Ok(Self { world })
    }

    fn scratch(&self, name: &str) -> PathBuf {
        self.world.server.scratch().join(name)
    }

    /// Nothing was begun but the fetch.
    async fn untouched(&self) -> Result<()> {
        assert!(claims(&self.world)?.is_empty(), "{:?}", claims(&self.world)?);
        assert_eq!(self.world.serves().await?, OLD);
        assert!(self.world.old_runs()?);
        Ok(())
    }
}

#[tokio::test]
async fn weights_are_here_before_anything_is_reserved_and_their_growth_is_told() -> Result<()> {
    const CANARY: &str = "canary-4711-fetch";
    let script = format!(
        "echo \"$2 $HF_TOKEN\" > told; mkdir -p {WEIGHTS}; mkfifo go
        head -c 3000000 /dev/zero | tr '\\0' x > {WEIGHTS}/part; read -r word < go"
    );
    let mut fetching = Fetching::with(&script, "size: 3MB").await?;
    fetching.world.settings.env += &format!(", HF_TOKEN: {CANARY}");
    // Other models in the same cache are no part of this one.
    let other = fetching.scratch("hf/hub/models--Qwen--Old");
    fs::create_dir_all(&other)?;
    fs::write(other.join("part"), vec![1; 7_000_000])?;
    let load = fetching.world.load().await?;
    let mut step = Step::start(fetching.world.action("swap", NEW, &[])?)?;
    step.says("3 MB of 3 MB on the disk").await?;
    fetching.untouched().await?;
    assert_eq!(fs::read_to_string(fetching.scratch("told"))?, format!("{NEW}@main {CANARY}\n"));
    fs::write(fetching.scratch("go"), "go\n")?;
    let run = step.finish().await?.ended(0, "promoted");
    let at = |text: &str| run.stdout.find(text).with_context(|| format!("no {text:?} in\n{run}"));
    assert!(at("✓ fetch")? < at("→ reserve_slot b")?, "{run}");
    assert!(!run.stdout.contains(CANARY), "{run}");
    assert_eq!(fetching.world.serves().await?, NEW);
    load.stop().await.assert_clean();
    Ok(())
}

#[tokio::test]
async fn what_keeps_weights_from_coming_is_named_and_nothing_else_was_begun() -> Result<()> {
    let refused = "echo '403 Client Error: Forbidden for url: /resolve/main' >&2; exit 1";
    let rows = [
        (refused, "", "the token was not accepted, or may not read this model"),
        ("echo 'mkdir: Read-only file system' >&2; exit 1", "", "is mounted read-only"),
        (
            "echo 'OSError: [Errno 13] Permission denied: model.safetensors' >&2; exit 1",
            "",
            "most likely write where it puts the weights",
        ),
        ("echo broken >&2; exit 7", "", "failed: exit status: 7"),
        (
            "touch begun",
            "size: 900TB, folder: /srv/w",
            "the weights need 900000.0 GB more in /srv/w,",
        ),
        ("exec sleep 600", "timeout: 1s", "the weights were not here within 1s"),
    ];
    for (script, more, said) in rows {
        let fetching = Fetching::with(script, more).await?;
        let run = Step::run(fetching.world.action("swap", NEW, &[])?).await?.ended(4, "failed");
        assert!(run.stdout.contains("✗ fetch"), "{run}");
        assert!(run.stdout.contains(said), "no {said:?} in\n{run}");
        assert!(!fetching.scratch("begun").exists(), "{run}");
        assert!(!fetching.scratch(WEIGHTS).exists(), "{run}");
        fetching.untouched().await?;
    }
    Ok(())
}

#[tokio::test]
async fn doctor_sees_what_a_fetch_needs_and_does_not_miss_what_it_brings() -> Result<()> {
    let fetching = Fetching::with("touch begun", "size: 900TB").await?;
    let config = fetching.world.config(NEW);
    // The model is where the script will put it.
    let weights = fetching.scratch("models/qwen").display().to_string();
    let ask = async |config: &str| {
        let action = fetching.world.action("doctor", NEW, &[("model", &weights)])?;
        Step::run(action.with_config(config)?).await
    };
    let full = format!("the weights need 900000.0 GB more in {weights}, which has ");
    let run = ask(&config).await?.refused(3, &[&full]);
    let marks = |run: &Run| {
        ["model on disk", "fetch program", "room for weights"].map(|what| mark(run, what))
    };
    assert_eq!(marks(&run), ["ok", "ok", "fail"], "{run}");
    let run = ask(&config.replace("fetch.sh", "no-such.sh").replace("900TB", "1MB")).await?;
    let run = run.refused(3, &["no-such.sh", "write the full path of the program"]);
    assert_eq!(marks(&run), ["ok", "fail", "ok"], "{run}");
    assert!(!fetching.scratch("begun").exists(), "{run}");
    Ok(())
}

#[tokio::test]
async fn a_fetch_is_given_up_with_its_swap() -> Result<()> {
    let script = "echo $$ > new; mv new pid; exec sleep 600";
    let fetching = Fetching::with(script, "timeout: 1h").await?;
    let step = Step::start(fetching.world.action("swap", NEW, &[])?)?;
    let path = fetching.scratch("pid");
    until("the script", || path.exists()).await?;
    let pid = fs::read_to_string(path)?.trim().parse()?;
    assert!(alive(pid));
    Step::run(fetching.world.action("abort", NEW, &[])?).await?.ended(0, "aborted");
    step.finish().await?.ended(6, "aborted");
    assert!(!alive(pid));
    fetching.untouched().await
}
