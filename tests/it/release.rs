//! What a release comes to: tried, signed and pinned before anybody gets it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use serde_yaml::Value;
use tempfile::TempDir;

const RELEASE: &str = include_str!("../../.github/workflows/release.yml");

/// The image of every release here.
const IMAGE: &str = "ghcr.io/acme/model-swap";

/// Whether each text is in what a job does, one after the other.
fn does_in_turn(job: &Value, texts: &[&str]) -> Result<()> {
    let steps = job["steps"].as_sequence().context("steps")?;
    let done = steps.iter().filter_map(|step| step["run"].as_str().or(step["uses"].as_str()));
    let all = done.collect::<Vec<_>>().join("\n");
    let mut rest = &*all;
    for text in texts {
        (_, rest) = rest.split_once(text).with_context(|| format!("{text} in turn in\n{all}"))?;
    }
    Ok(())
}

/// What users pin was tried on both kinds of processor, is signed, and names the image by its digest.
#[test]
fn a_release_is_tried_signed_and_pinned_before_anybody_gets_it() -> Result<()> {
    let workflow: Value = serde_yaml::from_str(RELEASE)?;
    assert_eq!(workflow["on"]["push"]["tags"][0], *"release/v[0-9]+.[0-9]+.[0-9]+");
    assert_eq!(workflow["concurrency"]["cancel-in-progress"], false);
    let [merged, build, index, publish] =
        ["merged", "build", "index", "publish"].map(|job| &workflow["jobs"][job]);
    does_in_turn(
        merged,
        &["git branch --remotes --contains HEAD", "gh run list --workflow ci.yml"],
    )?;
    assert_eq!(build["needs"], *"merged");
    let kinds = build["strategy"]["matrix"]["include"].as_sequence().context("a matrix")?;
    let kinds: Vec<_> = kinds.iter().filter_map(|kind| kind["arch"].as_str()).collect();
    assert_eq!(kinds, ["amd64", "arm64"]);
    does_in_turn(
        build,
        &[
            "--load --tag smoke",
            "docker run --rm smoke",
            "--sbom=true --provenance",
            "push-by-digest",
            "actions/attest@",
        ],
    )?;
    assert_eq!(index["needs"], *"build");
    does_in_turn(index, &["imagetools create", "docker run --rm", "--version", "actions/attest@"])?;
    assert_eq!(publish["needs"], *"index");
    assert_eq!(publish["environment"], *"release");
    does_in_turn(
        publish,
        &[
            "scripts/pin-image \"$IMAGE@$DIGEST\"",
            "git commit",
            "-- action.yml",
            "git tag \"$version\"",
            "git tag --force \"$major\"",
            "git push --atomic",
        ],
    )
}

/// The release commit differs in the image alone.
#[test]
fn the_release_commit_names_the_image_by_its_digest() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir()?;
    let before = fs::read_to_string(root.join("action.yml"))?;
    fs::write(folder.path().join("action.yml"), &before)?;
    fs::create_dir(folder.path().join("scripts"))?;
    let script = folder.path().join("scripts/pin-image");
    fs::copy(root.join("scripts/pin-image"), &script)?;
    let pin = |image: &str| -> Result<bool> {
        Ok(Command::new(&script).arg(image).output()?.status.success())
    };
    assert!(!pin("ghcr.io/acme/model-swap:v1.2.3")?, "a tag can be moved");
    let image = format!("ghcr.io/acme/model-swap@sha256:{}", "0f".repeat(32));
    assert!(pin(&image)?);
    let after = fs::read_to_string(folder.path().join("action.yml"))?;
    let expected = before.replace("image: Dockerfile", &format!("image: docker://{image}"));
    assert_eq!(after, expected);
    Ok(())
}

/// A repository with a release commit's ingredients, and what stands for GitHub's client.
struct Origin {
    folder: TempDir,
}

impl Origin {
    fn make() -> Result<Self> {
        let origin = Self { folder: tempfile::tempdir()? };
        origin.git(&["init", "--quiet", "--bare", "origin"])?;
        origin.git(&["clone", "--quiet", "origin", "work"])?;
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        fs::create_dir(origin.at("work/scripts"))?;
        for file in ["action.yml", "scripts/pin-image"] {
            fs::copy(root.join(file), origin.at("work").join(file))?;
        }
        origin.git(&["-C", "work", "add", "."])?;
        origin.git(&["-C", "work", "commit", "--quiet", "--message", "A change"])?;
        origin.git(&["-C", "work", "push", "--quiet", "origin", "HEAD:main"])?;
        let client = origin.at("gh");
        fs::write(&client, "#!/bin/sh\necho \"$@\" >>\"$CALLS\"\n")?;
        fs::set_permissions(&client, fs::Permissions::from_mode(0o755))?;
        Ok(origin)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The last step of a release of a version, in a checkout of its own, as the runner carries it out.
    fn publish(&self, version: &str, digest: &str) -> Result<Output> {
        let workflow: Value = serde_yaml::from_str(RELEASE)?;
        let steps = workflow["jobs"]["publish"]["steps"].as_sequence().context("steps")?;
        let script = steps.iter().find_map(|step| step["run"].as_str()).context("a script")?;
        let place = self.at(version);
        let named = place.display().to_string();
        self.git(&[
            "clone",
            "--quiet",
            "--depth=1",
            "--branch=main",
            "--no-tags",
            &self.url(),
            &named,
        ])?;
        let path = format!("{}:{}", self.folder.path().display(), std::env::var("PATH")?);
        let mut bash = Command::new("bash");
        bash.args(["-e", "-c", script]).current_dir(place).env("PATH", path);
        bash.env("HOME", self.folder.path()).env("CALLS", self.at("calls"));
        bash.env("GITHUB_REF_NAME", format!("release/{version}"));
        bash.env("GITHUB_REPOSITORY", "acme/model-swap");
        bash.env("IMAGE", IMAGE).env("DIGEST", digest);
        Ok(bash.output()?)
    }

    fn url(&self) -> String {
        format!("file://{}", self.at("origin").display())
    }

    fn git(&self, words: &[&str]) -> Result<String> {
        let mut git = Command::new("git");
        git.args(["-c", "user.name=ann", "-c", "user.email=ann@example.com"]).args(words);
        let output = git.current_dir(self.folder.path()).output().context("git is missing")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "git {words:?}: {said}");
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// What a tag of the origin stands for; empty without one.
    fn tagged(&self, tag: &str) -> Result<String> {
        self.git(&[
            "-C",
            "origin",
            "for-each-ref",
            "--format=%(objectname)",
            &format!("refs/tags/{tag}"),
        ])
    }
}

/// A digest of its own for each version.
fn digest(version: &str) -> String {
    let bytes = version.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("sha256:{bytes:0<64}")
}

/// Whoever can push a tag has not merged anything yet.
#[test]
fn only_what_was_merged_is_released() -> Result<()> {
    let workflow: Value = serde_yaml::from_str(RELEASE)?;
    let steps = workflow["jobs"]["merged"]["steps"].as_sequence().context("steps")?;
    let script = steps.iter().find_map(|step| step["run"].as_str()).context("a script")?;
    let origin = Origin::make()?;
    for (branch, is_merged) in
        [("main", true), ("maintenance/v1.9", true), ("ann/main", false), ("release/v1.9.0", false)]
    {
        origin.git(&["-C", "work", "commit", "--quiet", "--allow-empty", "--message", branch])?;
        origin.git(&["-C", "work", "push", "--quiet", "origin", &format!("HEAD:{branch}")])?;
        origin.git(&["-C", "work", "fetch", "--quiet", "origin"])?;
        let mut bash = Command::new("bash");
        bash.args(["-e", "-c", script]).current_dir(origin.at("work"));
        assert_eq!(bash.output()?.status.success(), is_merged, "{branch}");
    }
    Ok(())
}

#[test]
fn whoever_pins_a_release_pins_its_image_and_v1_is_the_newest_of_them() -> Result<()> {
    let origin = Origin::make()?;
    let published = |version: &str| -> Result<String> {
        let output = origin.publish(version, &digest(version))?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        origin.tagged(version)
    };
    let first = published("v1.9.0")?;
    assert_eq!(origin.tagged("v1")?, first);
    let shown = origin.git(&["-C", "origin", "show", "v1.9.0:action.yml"])?;
    assert!(shown.contains(&format!("image: docker://{IMAGE}@{}", digest("v1.9.0"))), "{shown}");
    assert_eq!(
        origin.git(&["-C", "origin", "diff", "--name-only", "main", "v1.9.0"])?,
        "action.yml"
    );
    let second = published("v1.10.0")?;
    assert_eq!(origin.tagged("v1")?, second);

    // A fix of an older release, and the next major one, leave v1 where it is.
    let fix = published("v1.9.1")?;
    let major = published("v2.0.0")?;
    assert!(fix != second && origin.tagged("v1")? == second);
    assert_eq!(origin.tagged("v2")?, major);

    // A version that is there is never another commit.
    fs::rename(origin.at("v1.10.0"), origin.at("before"))?;
    origin.git(&["-C", "work", "commit", "--quiet", "--allow-empty", "--message", "Another"])?;
    origin.git(&["-C", "work", "push", "--quiet", "origin", "HEAD:main"])?;
    assert!(!origin.publish("v1.10.0", &digest("another"))?.status.success());
    let tags = || -> Result<_> { Ok((origin.tagged("v1.10.0")?, origin.tagged("v1")?)) };
    assert_eq!(tags()?, (second.clone(), second.clone()));
    let calls = fs::read_to_string(origin.at("calls"))?;
    assert_eq!(calls.matches("release create v1.10.0 --verify-tag").count(), 1, "{calls}");
    // What was pushed before its release could be made is released by the next try.
    fs::rename(origin.at("v1.10.0"), origin.at("refused"))?;
    assert_eq!(published("v1.10.0")?, second);
    assert_eq!(tags()?, (second.clone(), second.clone()));
    let again = fs::read_to_string(origin.at("calls"))?;
    assert_eq!(again.matches("release create v1.10.0 --verify-tag").count(), 2, "{again}");
    assert!(again.trim_end().lines().any(|line| line.contains(&format!("@{second}"))), "{again}");
    assert!(
        calls.contains(&format!("attestation verify oci://{IMAGE}@{}", digest("v2.0.0"))),
        "{calls}"
    );
    Ok(())
}
