//! What a release comes to: tried, signed and pinned before anybody gets it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use serde_json::{Value as Json, json};
use serde_yaml::Value;
use tempfile::TempDir;
use testbed::expression::{Scope, Status};

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
            "git push origin \"refs/tags/$version\"",
            "git push origin \"+HEAD:refs/tags/$major\"",
            "gh release create",
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

/// A client of Docker's as far as a release calls it, with a registry of files: what is pushed with an attestation is an index of
/// the image and of that, and joining takes indexes apart.
const DOCKER: &str = r#"#!/bin/bash
set -eu
put() { digest="sha256:$(sha256sum <"$1" | cut -d ' ' -f 1)"; cp "$1" "$REGISTRY/$digest"; }
found() { cat "$REGISTRY/$(sed 's/.*@//; s|.*/.*:||' <<<"$1")"; }
case "$*" in
  login*) cat >/dev/null ;;
  run*) echo "1.9.0" ;;
  "buildx build"*--push* | "buildx build"*push=true*)
    echo "{\"image\": \"$ARCH\"}" >part; put part
    if [[ "$*" == *--sbom=true* || "$*" == *--provenance=mode* ]]; then
      echo "{\"sbom of\": \"$ARCH\"}" >about; manifest=$digest; put about
      jq -n --arg arch "$ARCH" --arg image "$manifest" --arg about "$digest" '{ manifests: [
        { digest: $image, platform: { architecture: $arch, os: "linux" } },
        { digest: $about, platform: { architecture: "unknown", os: "unknown" } } ] }' >part
      put part
    fi
    echo "{\"containerimage.digest\": \"$digest\"}" >built.json ;;
  "buildx imagetools create --tag"*)
    tag=$5; shift 5
    for from in "$@"; do
      found "$from" | jq --arg from "${from##*@}" '.manifests // [{ digest: $from }]'
    done | jq --slurp '{ manifests: add }' >part
    put part; cp part "$REGISTRY/${tag##*:}" ;;
  *"--format {{ json .SBOM.SPDX }}") echo '{ "spdxVersion": "SPDX-2.3" }' ;;
  *"--format {{ .Manifest.Digest }}") found "$4" >part; put part; echo "$digest" ;;
  "buildx imagetools inspect --raw"*) found "$5" ;;
  *) echo "docker $*?" >&2; exit 1 ;;
esac
"#;

/// Carries out the step with this id of a job, and says what it puts out.
fn step(job: &str, id: &str, contexts: &Json, folder: &Path) -> Result<BTreeMap<String, String>> {
    let workflow: Value = serde_yaml::from_str(RELEASE)?;
    let steps = workflow["jobs"][job]["steps"].as_sequence().context("steps")?;
    let step = steps.iter().find(|step| step["id"] == *id).context("no such step")?;
    let scope = Scope { contexts, status: Status::Success };
    let out = folder.join("out");
    fs::write(&out, "")?;
    let path = format!("{}:{}", folder.display(), std::env::var("PATH")?);
    let mut bash = Command::new("bash");
    bash.args(["-e", "-c", step["run"].as_str().context("a script")?]);
    bash.current_dir(folder).env("PATH", path).env("REGISTRY", folder).env("GITHUB_OUTPUT", &out);
    bash.env("GITHUB_REPOSITORY", "acme/model-swap").env("GITHUB_REF_NAME", "release/v1.9.0");
    for (name, value) in step["env"].as_mapping().context("env")? {
        let (name, value) = (name.as_str().context("a name")?, value.as_str().context("a value")?);
        bash.env(name, scope.text(value)?);
    }
    let output = bash.env("GITHUB_ACTOR", "ann").output()?;
    ensure!(output.status.success(), "{id}: {}", String::from_utf8_lossy(&output.stderr));
    let said = fs::read_to_string(out)?;
    let pairs = said.lines().filter_map(|line| line.split_once('='));
    Ok(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

/// What the signing step of a job signs.
fn signed(job: &str, contexts: &Json) -> Result<String> {
    let workflow: Value = serde_yaml::from_str(RELEASE)?;
    let steps = workflow["jobs"][job]["steps"].as_sequence().context("steps")?;
    let is_signing =
        |step: &&Value| step["uses"].as_str().is_some_and(|it| it.starts_with("actions/attest@"));
    let step = steps.iter().find(is_signing).context("nothing is signed")?;
    let subject = step["with"]["subject-digest"].as_str().context("a subject")?;
    Scope { contexts, status: Status::Success }.text(subject)
}

/// A user starts from the digest that `action.yml` names, and asks for the signatures of what that lists.
#[test]
fn what_is_signed_is_what_the_released_index_lists() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let client = folder.path().join("docker");
    fs::write(&client, DOCKER)?;
    fs::set_permissions(&client, fs::Permissions::from_mode(0o755))?;
    let workflow: Value = serde_yaml::from_str(RELEASE)?;
    let declared = workflow["jobs"]["build"]["outputs"].as_mapping().context("outputs")?;
    let (mut outputs, mut bills) = (BTreeMap::new(), Vec::new());
    for arch in ["amd64", "arm64"] {
        let mut contexts = json!({ "github": { "token": "t" }, "matrix": { "arch": arch } });
        let put_out = step("build", "push", &contexts, folder.path())?;
        contexts["steps"] = json!({ "push": { "outputs": put_out } });
        bills.push(signed("build", &contexts)?);
        // Of a matrix, what none of its jobs leaves empty.
        for (name, value) in declared {
            let (name, value) = (name.as_str().context("a name")?, value.as_str().context("text")?);
            let value = Scope { contexts: &contexts, status: Status::Success }.text(value)?;
            if !value.is_empty() {
                outputs.insert(name.to_owned(), value);
            }
        }
    }
    let mut contexts = json!({ "github": { "token": "t" } });
    contexts["needs"] = json!({ "build": { "outputs": outputs } });
    let put_out = step("index", "index", &contexts, folder.path())?;
    contexts["steps"] = json!({ "index": { "outputs": put_out } });
    assert_eq!(signed("index", &contexts)?, put_out["digest"]);
    let index: Json = serde_json::from_slice(&fs::read(folder.path().join(&put_out["digest"]))?)?;
    let listed = index["manifests"].as_array().context("an index")?;
    let of = |arch| listed.iter().find(|one| one["platform"]["architecture"] == arch);
    for (arch, bill) in ["amd64", "arm64"].into_iter().zip(bills) {
        assert_eq!(of(arch).context(arch)?["digest"], *bill, "{index}");
    }
    Ok(())
}

/// Where the holder of a deploy key pushes: no token of a workflow can.
const PUSHED_TO: &str = "git@github.com:acme/model-swap.git";

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
        // Over HTTPS a workflow's token reads; what is pushed goes to the same place as the holder of the key.
        let place = format!("[url \"{}\"]\n\tinsteadOf = {PUSHED_TO}\n", origin.url());
        fs::write(origin.at(".gitconfig"), place)?;
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
        self.publish_with("a key", version, digest)
    }

    /// The same, with this deploy key.
    fn publish_with(&self, key: &str, version: &str, digest: &str) -> Result<Output> {
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
        bash.env("RELEASE_KEY", key).env("KNOWN_HOST", "github.com ssh-ed25519 AAAA");
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

/// GitHub refuses `v1` to who may not change workflows, where one has changed since. The release is there all the same.
#[test]
fn where_v1_may_not_be_moved_the_version_is_there_and_the_next_try_goes_on() -> Result<()> {
    let origin = Origin::make()?;
    let without = origin.publish_with("", "v1.9.0", &digest("v1.9.0"))?;
    assert!(String::from_utf8_lossy(&without.stdout).contains("no secret RELEASE_KEY"));
    assert_eq!((without.status.success(), origin.tagged("v1.9.0")?), (false, String::new()));
    fs::remove_dir_all(origin.at("v1.9.0"))?;

    let guard = origin.at("origin/hooks/update");
    fs::write(&guard, "#!/bin/sh\ntest \"$1\" != refs/tags/v1\n")?;
    fs::set_permissions(&guard, fs::Permissions::from_mode(0o755))?;
    let calls = || fs::read_to_string(origin.at("calls")).unwrap_or_default();
    assert!(!origin.publish("v1.9.0", &digest("v1.9.0"))?.status.success());
    let version = origin.tagged("v1.9.0")?;
    assert!(!version.is_empty() && origin.tagged("v1")?.is_empty());
    assert!(!calls().contains("release create"), "{}", calls());
    fs::remove_dir_all(origin.at("v1.9.0"))?;

    fs::remove_file(guard)?;
    let output = origin.publish("v1.9.0", &digest("v1.9.0"))?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!((origin.tagged("v1.9.0")?, origin.tagged("v1")?), (version.clone(), version));
    assert_eq!(calls().matches("release create v1.9.0").count(), 1);
    Ok(())
}
