//! A world whose replicas are containers of a real Docker Engine.

use std::rc::Rc;

use anyhow::Result;
use tempfile::TempDir;
use testbed::built;
pub(crate) use testbed::docker::COMPOSED;
use testbed::docker::{Engine, Lent, said};
use testbed::server::{ByHand, GpuServer, ServerSpec};

use super::World;

/// Docker's client.
pub(crate) const CLIENT: &str = "#!/bin/sh\nexec /usr/bin/docker \"$@\"\n";

/// A world whose replicas are containers. Dropping it removes them before the server's processes are ended.
pub(crate) struct Docked {
    _containers: Containers,
    pub(crate) world: World,
    pub(crate) engine: Rc<Lent>,
    /// Where the server's client keeps its logins.
    pub(crate) client: TempDir,
}

/// What was started on an Engine.
struct Containers(Rc<Lent>);

impl Docked {
    /// A world with an old model that `start` has started, and more variables of every ssh session.
    pub(crate) async fn with(
        variables: &[(&str, &str)],
        start: impl FnOnce(&Engine, &GpuServer, (&str, Vec<String>)) -> Result<ByHand>,
    ) -> Result<Self> {
        let engine = Rc::new(Lent::any()?);
        let image = engine.image_of(&built::program("stub-engine")?, &["serve"])?;
        let client = tempfile::tempdir()?;
        let session_env = [
            ("DOCKER_HOST", engine.host()),
            ("DOCKER_CONFIG", client.path().display().to_string()),
        ];
        let more = variables.iter().map(|(name, value)| (*name, (*value).to_owned()));
        let session_env = session_env.into_iter().chain(more);
        let session_env = session_env.map(|(name, value)| (name.to_owned(), value)).collect();
        let spec = ServerSpec { session_env, ..ServerSpec::default() };
        let mut world =
            World::started_by(spec, |server, argv| start(&engine, server, (&image, argv))).await?;
        // Another program is called docker elsewhere on some machines.
        world.server.put_program("docker", CLIENT)?;
        world.settings.image = Some(image);
        Ok(Self { _containers: Containers(engine.clone()), world, engine, client })
    }

    /// A world with an old model that somebody started by hand.
    pub(crate) async fn start() -> Result<Self> {
        Self::with(&[], |_, server, (_, argv)| server.start_by_hand(&argv, &[])).await
    }

    /// A world with an old model in a container that Compose has made: it publishes on every address, and inside the
    /// port is another.
    pub(crate) async fn composed(flags: &[&str]) -> Result<Self> {
        Self::made(&["--restart", "always"], flags).await
    }

    /// The same, made with other options than Compose's.
    pub(crate) async fn made(options: &[&str], flags: &[&str]) -> Result<Self> {
        Self::made_with(&[], options, flags).await
    }

    /// The same, with more variables of every ssh session.
    pub(crate) async fn made_with(
        variables: &[(&str, &str)],
        options: &[&str],
        flags: &[&str],
    ) -> Result<Self> {
        Self::with(variables, |engine, server, (image, argv)| {
            let (mark, scratch) = server.mark();
            let port = server.slot_ports().0.to_string();
            let mut run = engine.docker(["run", "--detach"]);
            run.args(options);
            run.args(["--label", "com.docker.compose.project=llm", "--name", COMPOSED]);
            run.arg(format!("--env={mark}={scratch}"));
            run.arg(format!("--publish={port}:8000")).arg(image);
            run.args(argv.iter().skip(2).map(|word| match word.as_str() {
                "127.0.0.1" => "0.0.0.0",
                word if word == port => "8000",
                word => word,
            }));
            said(run.args(flags))?;
            let pid = said(&mut engine.docker(["inspect", "-f", "{{.State.Pid}}", COMPOSED]))?;
            // It has no log of its own, and no neighbour.
            let innocent = std::process::id();
            Ok(ByHand { pid: pid.trim().parse()?, innocent, log: "/none".into() })
        })
        .await
    }

    /// What docker says of a container, in a template of its own.
    pub(crate) fn inspect(&self, container: &str, template: &str) -> Result<String> {
        let mut inspect = self.engine.docker(["inspect", "--format", template, container]);
        Ok(said(&mut inspect)?.trim().to_owned())
    }

    /// Names of the containers, running or not, newest first.
    pub(crate) fn names(&self) -> Result<Vec<String>> {
        let mut list = self.engine.docker(["ps", "--all", "--format", "{{.Names}}"]);
        Ok(said(&mut list)?.lines().map(str::to_owned).collect())
    }
}

impl Drop for Containers {
    fn drop(&mut self) {
        let _gone = self.0.remove_containers();
    }
}
