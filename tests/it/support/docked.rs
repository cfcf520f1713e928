//! A world whose replicas are containers of a real Docker Engine.

use std::fs;
use std::io::Write;
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

/// The same, where no Engine answers.
pub(crate) const AWAY: &str =
    "#!/bin/sh\nDOCKER_HOST=unix:///nowhere exec /usr/bin/docker \"$@\"\n";

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
    /// A world with an old model that `start` has started, on a server of any kind.
    pub(crate) async fn with(
        spec: ServerSpec,
        start: impl FnOnce(&Engine, &GpuServer, (&str, Vec<String>)) -> Result<ByHand>,
    ) -> Result<Self> {
        Self::on_engine(Lent::any()?, spec, start).await
    }

    /// The same, on an Engine of another kind.
    async fn on_engine(
        engine: Lent,
        spec: ServerSpec,
        start: impl FnOnce(&Engine, &GpuServer, (&str, Vec<String>)) -> Result<ByHand>,
    ) -> Result<Self> {
        let engine = Rc::new(engine);
        let image = engine.image_of(&built::program("stub-engine")?, &["serve"])?;
        let client = tempfile::tempdir()?;
        let session_env = [
            ("DOCKER_HOST", engine.host()),
            ("DOCKER_CONFIG", client.path().display().to_string()),
        ];
        let session_env = session_env.map(|(name, value)| (name.to_owned(), value));
        let session_env = session_env.into_iter().chain(spec.session_env).collect();
        let spec = ServerSpec { session_env, ..spec };
        let mut world =
            World::started_by(spec, |server, argv| start(&engine, server, (&image, argv))).await?;
        // Another program is called docker elsewhere on some machines.
        world.server.put_program("docker", CLIENT)?;
        world.settings.image = Some(image);
        Ok(Self { _containers: Containers(engine.clone()), world, engine, client })
    }

    /// A world with an old model that somebody started by hand.
    pub(crate) async fn start() -> Result<Self> {
        Self::with(ServerSpec::default(), |_, server, (_, argv)| server.start_by_hand(&argv, &[]))
            .await
    }

    /// A world with an old model in a container that Compose has made: it publishes on every address, and inside the
    /// port is another.
    pub(crate) async fn composed(flags: &[&str]) -> Result<Self> {
        Self::composed_on(ServerSpec::default(), flags).await
    }

    /// The same, on a server of another kind.
    pub(crate) async fn composed_on(spec: ServerSpec, flags: &[&str]) -> Result<Self> {
        Self::made_on(spec, &["--restart", "always"], flags).await
    }

    /// The same, made with other options than Compose's.
    pub(crate) async fn made(options: &[&str], flags: &[&str]) -> Result<Self> {
        Self::made_on(ServerSpec::default(), options, flags).await
    }

    /// The same, on a server of another kind.
    pub(crate) async fn made_on(
        spec: ServerSpec,
        options: &[&str],
        flags: &[&str],
    ) -> Result<Self> {
        Self::made_by(Lent::any()?, spec, (options, flags)).await
    }

    /// The same, by an Engine whose ports the packet filter of this thread's network forwards.
    pub(crate) async fn forwarded() -> Result<Self> {
        let how: (&[&str], &[&str]) = (&["--restart", "always"], &[]);
        Self::made_by(Lent::filtering()?, ServerSpec::default(), how).await
    }

    async fn made_by(
        engine: Lent,
        spec: ServerSpec,
        (options, flags): (&[&str], &[&str]),
    ) -> Result<Self> {
        Self::on_engine(engine, spec, |engine, server, (image, argv)| {
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

    /// Puts lines into the file in which the Engine keeps what a container writes.
    pub(crate) fn has_written(
        &self,
        container: &str,
        lines: impl Iterator<Item = String>,
    ) -> Result<()> {
        let (begin, end) =
            (r#"{"log":""#, r#"\n","stream":"stdout","time":"2026-11-23T09:00:00Z"}"#);
        let text: String = lines.map(|line| format!("{begin}{line}{end}\n")).collect();
        let file = self.inspect(container, "{{.LogPath}}")?;
        let mut log = fs::OpenOptions::new().append(true).open(file)?;
        Ok(log.write_all(text.as_bytes())?)
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
