//! An nginx in a container with a network of its own, as Docker and Compose give it one: it calls the server by another address
//! than 127.0.0.1, and reaches no model that listens on that alone.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use testbed::docker::said;
use testbed::load::{Load, LoadSpec};
use testbed::server::{Ports, ServerSpec, default_upstream_file, free_port};
use testbed::service::{Site, until_serves};

use crate::docker::EDGE;
use crate::step::Step;
use crate::support::docked::Docked;
use crate::support::{NAME, NEW, OLD, Run};

/// A world with an nginx on the bridge of an Engine.
struct Bridged {
    docked: Docked,
    /// Where clients reach that nginx.
    nginx: SocketAddr,
    /// The file with its upstream.
    file: PathBuf,
    site: Site,
}

impl Bridged {
    async fn start() -> Result<Self> {
        let docked = Docked::with(ServerSpec::default(), |_, server, (_, argv)| {
            let argv: Vec<_> =
                argv.iter().map(|word| word.replace("127.0.0.1", "0.0.0.0")).collect();
            server.start_by_hand(&argv, &[])
        })
        .await?;
        let edge = docked.world.server.scratch().join("edge");
        fs::create_dir_all(edge.join("conf.d"))?;
        fs::write(edge.join("nginx.conf"), EDGE)?;
        let (file, listen) = (edge.join("conf.d/llm.conf"), free_port()?);
        let text = default_upstream_file(Ports { nginx: listen, ..docked.world.server.ports() });
        let text = text.replace("listen 127.0.0.1", "listen 0.0.0.0");
        let bridge = docked.engine.address();
        fs::write(&file, text.replace("server 127.0.0.1", &format!("server {bridge}")))?;
        let program = ["/usr/sbin/nginx", "/usr/bin/nginx"].map(Path::new);
        let program = program.into_iter().find(|path| path.is_file()).context("no nginx")?;
        let image = docked.engine.image_of(program, &[])?;
        let mut run = docked.engine.docker(["run", "--detach", "--name=edge", "--tmpfs=/run"]);
        run.args(["--volume=/etc/passwd:/etc/passwd:ro", "--volume=/etc/group:/etc/group:ro"]);
        said(run.arg(format!("--volume={}:/etc/nginx", edge.display())).arg(image))?;
        let address: Ipv4Addr = docked
            .inspect("edge", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}")?
            .parse()?;
        let nginx = (address, listen).into();
        until_serves(nginx, OLD).await?;
        let command = ["docker", "exec", "edge", "nginx"].map(str::to_owned).to_vec();
        let site = Site {
            nginx_config: file.clone(),
            nginx_command: Some(command),
            probe: format!("http://{nginx}/v1/models"),
            ..Site::of(&docked.world.server)?
        };
        Ok(Self { docked, nginx, file, site })
    }

    fn config(&self, host: &str) -> Result<String> {
        let config = self.docked.world.settings.config_on(&self.site, NEW)?;
        Ok(config.replace("--host 127.0.0.1", &format!("--host {host}")))
    }

    async fn ask(&self, command: &str, config: &str) -> Result<Run> {
        Step::run(self.docked.world.action(command, NEW, &[])?.with_config(config)?).await
    }
}

#[tokio::test]
async fn a_model_gets_traffic_only_where_that_nginx_reaches_it() -> Result<()> {
    let mut bridged = Bridged::start().await?;
    let load = Load::start(LoadSpec::mixed(bridged.nginx, NAME));
    load.wait_until(|tally| tally.total() > 20).await?;
    let before = fs::read_to_string(&bridged.file)?;

    // Its port is published on 127.0.0.1.
    let config = bridged.config("0.0.0.0")?;
    let published = ["the ports of new containers are published on 127.0.0.1 alone"];
    for command in ["doctor", "plan", "swap"] {
        bridged.ask(command, &config).await?.refused(3, &published);
    }

    bridged.docked.world.settings.image = None;
    let run = bridged.ask("swap", &bridged.config("127.0.0.1")?).await?.ended(4, "failed");
    for said in ["nginx would not reach the replica in slot b", "nobody listens there"] {
        assert!(run.stdout.contains(said), "no {said:?} in {run}");
    }
    assert_eq!(fs::read_to_string(&bridged.file)?, before);
    until_serves(bridged.nginx, OLD).await?;

    bridged.ask("swap", &bridged.config("0.0.0.0")?).await?.ended(0, "promoted");
    until_serves(bridged.nginx, NEW).await?;
    load.stop().await.assert_clean();
    Ok(())
}
