//! `init`: looks at a server and writes a first configuration for it, where there is none yet.

use std::io::Write;
use std::path::Path;

use super::stop::Stop;
use super::{
    Setting, Stopped, Surface, Voice, config_path, credentials, refuse_container, request,
    summarise, trust,
};
use crate::config::draft::{ELSEWHERE, Known, draft};
use crate::config::problem::Problems;
use crate::config::{self, Config, Overrides};
use crate::github::inputs::Untold;
use crate::model::failure::{Failure, Hint};
use crate::model::outcome::Exit;
use crate::model::refusal::Refusal;
use crate::model::spec::NginxSpec;
use crate::model::survey::Survey;
use crate::model::target::{InvalidHost, SSH_PORT, Target};
use crate::model::wire::Frame;
use crate::remote::agent::{Install, ask};
use crate::remote::build::Build;
use crate::remote::error::RemoteError;
use crate::remote::session::Session;
use crate::render::{self, Line};
use crate::swap::nginx_conf::ConfError;

/// What stands for standard output instead of a file.
const STANDARD_OUTPUT: &str = "-";

/// Looks, writes, and says what is left to the user.
pub(super) async fn init(setting: &Setting, voice: &mut Voice) -> Result<Exit, Stopped> {
    let known = known(setting)?;
    let path = config_path(setting);
    let prints = setting.inputs.config == Path::new(STANDARD_OUTPUT);
    if !prints && path.symlink_metadata().is_ok() {
        return Err(there_already(setting));
    }
    let mut stop = Stop::new()?;
    let survey = tokio::select! {
        survey = survey(setting, &known.target) => survey?,
        () = stop.asked() => {
            let failures = vec![Failure::new("stopped by a signal; no file was written")];
            return Err(Stopped { failures, exit: Exit::Environment });
        }
    };
    check_upstream(known.upstream.as_deref(), &survey)?;
    let text = draft(&known, &survey);
    if prints {
        voice.print(&text);
    } else {
        write(setting, &path, &text)?;
    }
    let name = setting.inputs.config.display().to_string();
    let read = config::load(&text, &name, &Overrides::default());
    let left = match &read {
        Ok(config) => unmet(config, &survey).into_iter().collect(),
        Err(problems) => problems.to_failures(),
    };
    if !prints {
        voice.put(&serde_json::json!({ "frame": "written", "path": path, "left": left }));
    }
    if !prints || setting.surface == Surface::Workflow {
        voice.say(told(setting, &read, &left));
    }
    summarise(&setting.run, &render::survey::markdown(&name, &text), voice);
    Ok(Exit::Done)
}

/// What the file does not have to say, because it is said here.
fn known(setting: &Setting) -> Result<Known, Stopped> {
    let inputs = &setting.inputs;
    let Untold { ssh_port, jump, upstream, state_dir, .. } = inputs.untold.clone();
    let Some(host) = &inputs.host else {
        let (what, how) = match setting.surface {
            Surface::Workflow => ("the input host", "host: deploy@gpu-1.example.com"),
            _ => ("--host", "model-swap init --host deploy@gpu-1.example.com"),
        };
        let failure = Failure::new(format!("init needs {what}: the server to look at, or `local`"));
        return Err(Stopped::input(vec![failure.hint(format!("like `{how}`"))]));
    };
    let host = host.parse().map_err(|error: InvalidHost| {
        let failure = Failure::from_error(&error);
        Stopped::input(vec![match error.value.contains(':') {
            true => failure
                .hint("another port of sshd than 22 is given with --ssh-port, from a terminal"),
            false => failure,
        }])
    })?;
    let target = Target { host, port: ssh_port.unwrap_or(SSH_PORT), jump };
    refuse_container(setting, &target)?;
    if let Some(missing) = trust::missing(setting, &target) {
        return Err(Stopped::input(vec![missing]));
    }
    let (service, model) = (inputs.service.clone(), inputs.model.clone());
    Ok(Known { target, service, model, upstream, state_dir })
}

async fn survey(setting: &Setting, target: &Target) -> Result<Survey, Stopped> {
    let session = Session::open(target, credentials(setting))
        .await
        .map_err(|error| Stopped::remote(&error))?;
    let seen = asked(setting, &session).await;
    let name = session.name().to_owned();
    session.close().await;
    seen.and_then(|seen| match unread(name, &seen) {
        Some(error) => Err(Stopped::remote(&error)),
        None => Ok(seen),
    })
}

/// Why a file of what was seen would be nearly empty: the user may not read nginx's configuration, and sudo was refused.
fn unread(name: String, seen: &Survey) -> Option<RemoteError> {
    let barrier = seen.barrier()?;
    Some(RemoteError::Sudo { name, said: format!("nginx is not read without that: {barrier}") })
}

/// Holds the upstream that was named to those that were read.
fn check_upstream(named: Option<&str>, seen: &Survey) -> Result<(), Stopped> {
    let Some(named) = named else { return Ok(()) };
    let all = seen.proxies.iter().flat_map(|proxy| &proxy.upstreams);
    let known: Vec<String> = all.map(|upstream| upstream.name.clone()).collect();
    // The file says why an nginx could not be read, which may have it.
    let is_unread = known.is_empty() && seen.proxies.iter().any(|proxy| proxy.failure.is_some());
    if is_unread || known.iter().any(|name| name == named) {
        return Ok(());
    }
    let upstream = named.to_owned();
    let error = ConfError::UnknownUpstream { upstream, known, direct: Vec::new() };
    Err(Stopped::input(vec![error.to_failure()]))
}

/// Asks the agent, which is brought where it is not there yet.
async fn asked(setting: &Setting, session: &Session) -> Result<Survey, Stopped> {
    let remote = |error| Stopped::remote(&error);
    let install = Install {
        build: Build::own().map_err(remote)?,
        others: std::env::current_exe().ok().and_then(|own| Some(own.parent()?.to_owned())),
        state_dir: setting.inputs.untold.state_dir.clone(),
        nginx_config: None,
    };
    let mut frames = ask(session, &install, &request::survey(setting)).await.map_err(remote)?;
    let mut seen = None;
    while let Some(frame) = frames.next().await.map_err(remote)? {
        match frame {
            Frame::Survey { survey } => seen = Some(*survey),
            Frame::Refused(Refusal { failures, fault, .. }) => {
                return Err(Stopped { failures, exit: fault.exit() });
            }
            _ => {}
        }
    }
    seen.ok_or_else(|| {
        let failures = vec![Failure::new("the server ended without an answer")];
        Stopped { failures, exit: Exit::Environment }
    })
}

fn there_already(setting: &Setting) -> Stopped {
    let name = setting.inputs.config.display();
    let failure = Failure::new(format!("{name} is there already, and init overwrites nothing"))
        .hint("give a new file with --config (in a workflow: the input config), or `-` to have it printed");
    Stopped::input(vec![failure])
}

fn write(setting: &Setting, path: &Path, text: &str) -> Result<(), Stopped> {
    let written =
        std::fs::File::create_new(path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => there_already(setting),
        _ => {
            let failure = Failure {
                causes: vec![error.to_string()],
                ..Failure::new(format!("cannot write {}", path.display()))
            };
            Stopped::input(vec![
                failure.hint("give another file with --config, or `-` to have it printed"),
            ])
        }
    })
}

/// The one fault of a whole file: at its probe nginx answers with something else than the model that serves.
fn unmet(config: &Config, seen: &Survey) -> Option<Failure> {
    let NginxSpec { command, upstream, probe, .. } = &config.spec.nginx;
    let proxy = seen.proxies.iter().find(|proxy| proxy.command == *command)?;
    let chosen = proxy.upstreams.iter().find(|it| it.name == *upstream)?;
    let why = chosen.entrance.as_ref()?.unmet.as_ref()?;
    let text = format!("nginx.probe: a request to {} does not meet the model: {why}", probe.url);
    Some(Failure::new(text).hint(ELSEWHERE))
}

/// What was written, what is left open, and what comes next.
fn told(setting: &Setting, read: &Result<Config, Problems>, left: &[Failure]) -> Vec<Line> {
    let name = setting.inputs.config.display();
    let mut lines = vec![Line::Text(format!("{name}: written from what was seen"))];
    let port = |config: &Config| config.spec.slots.values().next().map(|slot| slot.port);
    match read {
        Ok(config) if left.is_empty() => lines.push(Line::Text(format!(
            "it is complete: {} serves from port {}; nothing was changed on the server",
            config.spec.service,
            port(config).map(|port| port.to_string()).unwrap_or_default(),
        ))),
        Ok(_) => lines.push(Line::Text("it is whole, and a swap would be refused yet:".to_owned())),
        Err(_) => lines.push(Line::Text("left to you, marked with `# ?` in it:".to_owned())),
    }
    for failure in left {
        lines.push(Line::Text(format!("  {failure}")));
        lines.extend(failure.hints.iter().map(|hint| Line::Text(format!("    {hint}"))));
    }
    let next = match (setting.surface, read) {
        (Surface::Workflow, _) => "next: commit it, and run the command doctor".to_owned(),
        (_, Ok(_)) if left.is_empty() => {
            "next: read it, then `model-swap doctor`, which checks all that a swap needs".to_owned()
        }
        (_, Ok(_)) => {
            "next: mend that, then `model-swap doctor`, which checks all that a swap needs"
                .to_owned()
        }
        (_, Err(_)) => {
            "next: fill these in, then `model-swap doctor`, which checks all that a swap needs"
                .to_owned()
        }
    };
    lines.push(Line::Text(next));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::survey::Proxy;

    fn proxy(failure: Option<&str>) -> Proxy {
        let command = vec!["nginx".to_owned()];
        let failure = failure.map(Failure::new);
        Proxy { command, container: None, upstreams: Vec::new(), direct: Vec::new(), failure }
    }

    fn seen(looked_as: Option<&str>, failures: &[Option<&str>]) -> Survey {
        let proxies = failures.iter().copied().map(proxy).collect();
        Survey { proxies, looked_as: looked_as.map(str::to_owned), ..Survey::default() }
    }

    #[test]
    fn an_nginx_that_only_root_may_read_is_asked_for_as_doctor_does() {
        const DENIED: &str = "open() \"/run/nginx.pid\" failed (13: Permission denied)";
        let told = |looked_as, failures: &[Option<&str>]| {
            unread("deploy@gpu-1".to_owned(), &seen(looked_as, failures))
        };
        let ann = Some("deploy");
        let error = told(ann, &[Some(DENIED)]).expect("nothing is written");
        let Failure { message, hints, .. } = error.to_failure();
        assert!(message.contains("does not let us become root"), "{message}");
        assert!(message.contains(DENIED), "{message}");
        let line = "`deploy ALL=(root) NOPASSWD: ALL`";
        assert!(hints.iter().any(|hint| hint.contains(line)), "{hints:?}");
        assert_eq!(Stopped::remote(&error).exit, Exit::Environment);
        // Root is denied by other means than rights; one that is read is enough.
        assert!(told(None, &[Some(DENIED)]).is_none());
        assert!(told(ann, &[Some(DENIED), None]).is_none());
        assert!(told(ann, &[Some("nginx is not installed")]).is_none());
    }
}
