//! Writes a first `model-swap.yaml` from what was seen of a server. Pure: a survey in, a text out.
//!
//! What is not known stands as a comment that begins with `?`, with the accepted form, so that reading the file names it as
//! missing. Text of the server's is put in quotes or made inert: it can end no line.

mod slots;
mod words;

#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::path::PathBuf;

use crate::model::ids::{Port, ServiceName};
use crate::model::survey::{Listener, Proxy, Survey, Upstream};
use crate::model::target::{SSH_PORT, Target};

use words::{inert, line, scalar, sequence};

/// What is known without a look at the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Where the server is.
    pub target: Target,
    /// The service's name, if it was chosen.
    pub service: Option<ServiceName>,
    /// The model that should serve, if it was chosen.
    pub model: Option<String>,
    /// The upstream that is meant, if it was chosen.
    pub upstream: Option<String>,
    /// The folder of state and journals, if it is another one than usual.
    pub state_dir: Option<PathBuf>,
}

/// One upstream of one nginx, and who listens behind it.
#[derive(Clone, Copy)]
struct Candidate<'a> {
    proxy: &'a Proxy,
    upstream: &'a Upstream,
    listener: Option<&'a Listener>,
}

/// The configuration that a survey comes to.
pub fn draft(known: &Known, survey: &Survey) -> String {
    let candidates = candidates(survey);
    let chosen = choose(known, &candidates);
    let listener = chosen.and_then(|chosen| chosen.listener);
    let mut text = format!(
        "# Written by `model-swap init` from what it saw on {}; docs/model-swap.yaml of model-swap has every setting.\n\
         # What it could not know stands behind `# ?`, in the form that is accepted.\n\n",
        inert(&known.target.host.to_string()),
    );
    head(&mut text, known, chosen, listener);
    slots::write(&mut text, survey, chosen.and_then(|chosen| chosen.upstream.port), listener);
    text.push_str(FETCH);
    replica(&mut text, listener);
    nginx(&mut text, chosen, listener);
    others(&mut text, known, survey, (&candidates, chosen));
    way(&mut text, known);
    text
}

/// Not everybody needs it, and how large a model is nobody saw.
const FETCH: &str = "
# Brings the weights before anything is reserved; without it the engine downloads what is missing, within ready.timeout.
# fetch:
#   command: hf download {model} --revision {revision}
#   size: 70GB                            # what the model needs: with less room nothing is begun
";

fn candidates(survey: &Survey) -> Vec<Candidate<'_>> {
    let behind = |port: Option<Port>| survey.listeners.iter().find(|it| Some(it.port) == port);
    let all = survey
        .proxies
        .iter()
        .flat_map(|proxy| proxy.upstreams.iter().map(move |upstream| (proxy, upstream)));
    all.map(|(proxy, upstream)| Candidate { proxy, upstream, listener: behind(upstream.port) })
        .collect()
}

/// The upstream that was named; else the first behind which a model serves, else the first that could have one.
fn choose<'a>(known: &Known, candidates: &[Candidate<'a>]) -> Option<Candidate<'a>> {
    if let Some(name) = &known.upstream {
        return candidates.iter().find(|it| it.upstream.name == *name).copied();
    }
    let usable = || candidates.iter().filter(|it| it.upstream.port.is_some());
    let serves = |it: &&Candidate<'_>| it.listener.is_some_and(|by| by.unknown.is_none());
    let listens = |it: &&Candidate<'_>| it.listener.is_some();
    usable().find(serves).or_else(|| usable().find(listens)).or_else(|| usable().next()).copied()
}

fn head(
    text: &mut String,
    known: &Known,
    chosen: Option<Candidate<'_>>,
    listener: Option<&Listener>,
) {
    let names = listener.iter().flat_map(|it| &it.names).map(String::as_str);
    let named = names.chain(chosen.map(|it| it.upstream.name.as_str()));
    let service = known.service.clone().or_else(|| named.filter_map(|it| it.parse().ok()).next());
    match service {
        Some(service) => line(text, &format!("service: {service}"), "what clients call"),
        None => line(text, "# ? service: chat", "what clients call: a-z, 0-9 and dashes"),
    }
    line(text, &format!("host: {}", scalar(&known.target.host.to_string())), "");
    let running = listener.and_then(|it| it.model.as_ref());
    match (&known.model, running) {
        (Some(model), _) => line(text, &format!("model: {}", scalar(model)), ""),
        (None, Some(model)) => {
            let note = "what serves now: put here what should";
            line(text, &format!("model: {}", scalar(model)), note);
        }
        (None, None) => {
            let note = "what should serve: a model's name or path";
            line(text, "# ? model: Qwen/Qwen2.5-32B-Instruct", note);
        }
    }
}

fn replica(text: &mut String, listener: Option<&Listener>) {
    text.push_str("\nreplica:\n");
    let Some(listener) = listener else {
        text.push_str(
            "  # No model was seen, so how one is started is not known; {model} and {port} are put in by model-swap.\n  \
             # ? command: vllm serve {model} --host 127.0.0.1 --port {port} --served-model-name chat\n",
        );
        return;
    };
    if let Some(why) = &listener.unknown {
        let _ = writeln!(
            text,
            "  # What listens there is no vLLM, the one engine that is known: {}",
            inert(why)
        );
    }
    let start = &listener.start;
    match &start.command {
        Some(words) => {
            text.push_str("  # As the running model was started; {model} and {port} are put in by model-swap.\n");
            let _ = writeln!(text, "  command: {}", words::command(words));
        }
        None => text.push_str(
            "  # The running model has written a title over its command line.\n  \
             # ? command: vllm serve {model} --host 127.0.0.1 --port {port} --served-model-name chat\n",
        ),
    }
    for flag in &start.left_out {
        let _ = writeln!(
            text,
            "  # {} is left out: its value is secret. Pass it as a variable, with its name under secret_env.",
            inert(flag)
        );
    }
    runtime(text, listener);
    variables(text, listener);
}

fn runtime(text: &mut String, listener: &Listener) {
    use crate::model::replica::Keeper;
    let keeper = inert(&listener.keeper.to_string());
    match (&listener.keeper, &listener.start.image) {
        (Keeper::Docker(_), Some((image, options))) => {
            let _ = writeln!(
                text,
                "  runtime: docker                       # as {keeper}\n  image: {}",
                scalar(image)
            );
            if !options.is_empty() {
                let _ = writeln!(text, "  docker_options: {}", sequence(options));
            }
            if let Some(user) = &listener.start.user_inside {
                let _ = writeln!(
                    text,
                    "  # The running container was made with --user={}, and its image says another: name that one of this server under\n  \
                     # user, as which a container runs by number.",
                    inert(user)
                );
            }
            let others: Vec<_> = listener.start.other_options.iter().map(|it| inert(it)).collect();
            if !others.is_empty() {
                let _ = writeln!(
                    text,
                    "  # The running container was made with these options too; put those that it needs under docker_options:\n  #   {}",
                    others.join(", ")
                );
            }
        }
        (Keeper::Unit(_), _) => {
            let _ = writeln!(
                text,
                "  runtime: systemd                      # as {keeper}, which is stopped and kept"
            );
        }
        (Keeper::Docker(_) | Keeper::Container(_), _) => {
            let _ = writeln!(
                text,
                "  # What runs is {keeper}, of which no image is known.\n  # ? runtime: docker\n  # ? image: vllm/vllm-openai:v0.33.0"
            );
        }
        (Keeper::Nobody | Keeper::Wrapper { .. }, _) => {
            text.push_str("  runtime: auto                         # a systemd unit where the agent is root, else a plain process\n");
        }
    }
}

/// The variable that vLLM reads its key from (vLLM 0.33 `envs.py`).
const KEY: &str = "VLLM_API_KEY";

/// Names of the variables whose values have to come from secrets.
fn secret_names(listener: &Listener) -> Vec<String> {
    let mut names = listener.start.secret_env.clone();
    if listener.locked {
        names.insert(KEY.to_owned());
    }
    names.into_iter().collect()
}

fn variables(text: &mut String, listener: &Listener) {
    let start = &listener.start;
    if !start.env.is_empty() {
        text.push_str("  env:\n");
        for (name, value) in &start.env {
            let _ = writeln!(text, "    {name}: {}", words::quoted(value));
        }
    }
    let secret = secret_names(listener);
    if !secret.is_empty() {
        let example = &secret[0];
        let _ = writeln!(
            text,
            "  # Their values come from the step's env, `{example}: ${{{{ secrets.{example} }}}}`, and stand in no file.\n  secret_env: {}",
            sequence(&secret)
        );
    }
    if !start.other_env.is_empty() {
        let names: Vec<_> = start.other_env.iter().map(|name| inert(name)).collect();
        let _ = writeln!(
            text,
            "  # The running model also has these variables; put those that it needs under env or secret_env:\n  #   {}",
            names.join(", ")
        );
    }
}

fn nginx(text: &mut String, chosen: Option<Candidate<'_>>, listener: Option<&Listener>) {
    text.push_str("\nnginx:\n");
    let Some(Candidate { proxy, upstream, .. }) = chosen else {
        text.push_str(
            "  # No upstream was seen that a swap could change.\n  \
             # ? config: /etc/nginx/conf.d/llm.conf      the file with the upstream block\n  \
             # ? upstream: llm                           its name\n",
        );
        return;
    };
    match &upstream.file {
        Some(file) => {
            let _ = writeln!(text, "  config: {}", scalar(&file.display().to_string()));
        }
        None => text.push_str(
            "  # nginx reads a file that this machine does not have by that path, as in a container: name it as this machine does.\n  \
             # ? config: /srv/nginx/conf.d/llm.conf\n",
        ),
    }
    let servers: Vec<_> = upstream.servers.iter().map(|server| inert(server)).collect();
    line(text, &format!("  upstream: {}", scalar(&upstream.name)), &servers.join("; "));
    if upstream.port.is_none() {
        text.push_str(
            "  # A swap needs exactly one active `server` in it, with a port of 127.0.0.1.\n",
        );
    }
    if proxy.command != ["nginx"] {
        let _ = writeln!(text, "  command: {}", sequence(&proxy.command));
    }
    let locked = listener.is_some_and(|it| it.locked);
    let key = if locked { format!(", api_key_env: {KEY}") } else { String::new() };
    match &upstream.entrance {
        Some(entrance) => {
            if let Some(unmet) = &entrance.unmet {
                let _ = writeln!(
                    text,
                    "  # A request there did not meet the model: {}.\n  # {ELSEWHERE}.",
                    inert(unmet)
                );
            }
            let host = entrance.host.as_ref().map(|host| format!(", host: {}", scalar(host)));
            let host = host.unwrap_or_default();
            let _ =
                writeln!(text, "  probe: {{ url: {}{host}{key} }}", words::quoted(&entrance.url));
        }
        None => {
            let _ = writeln!(
                text,
                "  # No way to it over plain http was seen; give nginx a listener on the loopback.\n  \
                 # ? probe: {{ url: \"http://127.0.0.1:80/v1/models\"{key} }}"
            );
        }
    }
}

/// What to do where nginx answers with something else than the model.
pub const ELSEWHERE: &str = "if another `server` of nginx answers at that address, as Debian's default site does, remove it or set nginx.probe.host";

/// What else was seen, and might have been meant.
fn others(
    text: &mut String,
    known: &Known,
    survey: &Survey,
    (candidates, chosen): (&[Candidate<'_>], Option<Candidate<'_>>),
) {
    let mut seen = Vec::new();
    if let (Some(name), None) = (&known.upstream, chosen) {
        seen.push(format!("there is no upstream {}", inert(name)));
    }
    let is_chosen = |it: &Candidate<'_>| {
        chosen.is_some_and(|chosen| std::ptr::eq(chosen.upstream, it.upstream))
    };
    for it in candidates.iter().filter(|it| !is_chosen(it)) {
        let behind = it.listener.map_or("nobody listens there".to_owned(), |by| {
            format!("process {} {}", by.process, by.answer)
        });
        let servers = it.upstream.servers.join("; ");
        // Another nginx may have one of the same name.
        let other = chosen.is_some_and(|chosen| chosen.proxy.command != it.proxy.command);
        let nginx = if other {
            format!("--nginx {:?} ", it.proxy.command.join(" "))
        } else {
            String::new()
        };
        seen.push(format!(
            "upstream {} (`{servers}`): {behind}; for it: {nginx}--upstream {0}",
            it.upstream.name
        ));
    }
    for proxy in &survey.proxies {
        let named = proxy.command.join(" ");
        seen.extend(proxy.failure.as_ref().map(|failure| format!("{named}: {failure}")));
        seen.extend(proxy.direct.iter().map(|place| {
            format!("{place}; a swap needs an upstream block there, as README shows")
        }));
    }
    let is_behind = |it: &&Listener| {
        candidates.iter().any(|candidate| candidate.upstream.port == Some(it.port))
    };
    for it in survey.listeners.iter().filter(|it| !is_behind(it)) {
        seen.push(format!(
            "port {}, behind no upstream: process {} {}",
            it.port, it.process, it.answer
        ));
    }
    if !seen.is_empty() {
        text.push_str("\n# Also seen:\n");
        for it in seen {
            let _ = writeln!(text, "# - {}", inert(&it));
        }
    }
}

fn way(text: &mut String, known: &Known) {
    let Target { port, jump, .. } = &known.target;
    let mut parts = Vec::new();
    parts.extend((*port != SSH_PORT).then(|| format!("port: {port}")));
    parts.extend(jump.as_ref().map(|jump| format!("jump: {}", words::quoted(jump))));
    if !parts.is_empty() {
        let _ = writeln!(text, "\nssh: {{ {} }}", parts.join(", "));
    }
    if let Some(folder) = &known.state_dir {
        let _ = writeln!(text, "\nstate_dir: {}", scalar(&folder.display().to_string()));
    }
}
