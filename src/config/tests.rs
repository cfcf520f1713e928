//! The reader on whole files.

mod slips;
mod wrong;

use std::str::FromStr as _;

use super::*;
use crate::model::ids::SlotName;
use crate::model::spec::{Gpu, OnTimeout, PinnedWorkers, Runtime};
use crate::model::target::HostAddr;

/// What a user needs at least.
const MINIMAL: &str = "\
service: chat
host: deploy@gpu-1.example.com        # or `local`
model: Qwen/Qwen2.5-32B-Instruct
slots:
  a: { port: 8001, gpus: [0] }
  b: { port: 8002, gpus: [1] }
replica:
  command: vllm serve {model} --host 127.0.0.1 --port {port} --served-model-name chat
nginx: { config: /etc/nginx/conf.d/llm.conf, upstream: llm }
";

const REFERENCE: &str = include_str!("../../docs/model-swap.yaml");

fn minimal() -> Config {
    load(MINIMAL, "model-swap.yaml", &Overrides::default()).unwrap()
}

/// The minimal file with one text replaced by another.
fn changed(from: &str, to: &str) -> String {
    assert_eq!(MINIMAL.matches(from).count(), 1, "{from:?} is not unique");
    MINIMAL.replacen(from, to, 1)
}

#[test]
fn minimal_and_reference_say_the_same() {
    let mut reference = load(REFERENCE, "docs/model-swap.yaml", &Overrides::default()).unwrap();
    // Null by default; the reference shows one.
    let fetch = reference.spec.fetch.take().unwrap();
    assert_eq!((fetch.timeout, fetch.folder, fetch.size), (Duration::from_secs(7200), None, None));
    assert_eq!(reference, minimal());
    let spec = minimal().spec;
    assert_eq!(spec.slots[&"b".parse::<SlotName>().unwrap()].gpus, [Gpu::Index(1)]);
    assert_eq!(spec.replica.command[..3], ["vllm", "serve", "{model}"]);
    assert_eq!(spec.replica.runtime, Runtime::Auto);
    assert_eq!(spec.drain.on_timeout, OnTimeout::Keep);
    assert_eq!(spec.retain, Duration::from_secs(600));
    assert_eq!(spec.nginx.command, ["nginx"]);
    assert_eq!(minimal().target.host, HostAddr::from_str("deploy@gpu-1.example.com").unwrap());
}

#[test]
fn a_file_that_an_editor_on_windows_wrote_says_the_same() {
    let text = format!("\u{feff}{}", MINIMAL.replace('\n', "\r\n"));
    assert_eq!(load(&text, "model-swap.yaml", &Overrides::default()), Ok(minimal()));
}

#[test]
fn the_readme_shows_the_minimal_file() {
    assert!(include_str!("../../README.md").contains(MINIMAL));
}

#[test]
fn the_reference_shows_every_key_and_no_other() {
    let report = Report::default();
    assert!(read(REFERENCE, &Overrides::default(), &report).unwrap().is_some());
    let mut shown = BTreeSet::new();
    collect_keys(&serde_yaml::from_str(REFERENCE).unwrap(), &Place::default(), &mut shown);
    // The names of the slots are the user's.
    shown.retain(|place| place != "slots.a" && place != "slots.b");
    assert_eq!(shown, report.known());
    assert!(REFERENCE.contains("ignore_after: 10m"), "the one key that stands for another value");
}

fn collect_keys(value: &Value, place: &Place, keys: &mut BTreeSet<String>) {
    for (key, value) in value.as_mapping().into_iter().flatten() {
        let place = place.key(key.as_str().unwrap());
        keys.insert(place.to_string());
        collect_keys(value, &place, keys);
    }
}

#[test]
fn every_setting_is_heard() {
    const EVERYTHING: &str = "\
service: chat
host: gpu-1
model: m
model_revision: abc
slots: { x: { port: 1, gpus: [GPU-1f] }, y: { port: 2, gpus: [MIG-2e, GPU-3d] } }
replica:
  command: [serve, '{port}']
  runtime: process
  user: llm
  env: { HF_HOME: /data }
  secret_env: [HF_TOKEN]
ready: { timeout: 1h30m }
drain: { timeout: 90s, on_timeout: cut }
retain: 0s
nginx:
  config: /a.conf
  upstream: u
  command: [docker, exec, edge, nginx]
  probe: { url: 'http://10.0.0.1/v1/models', host: llm.example.com, api_key_env: LLM_KEY }
  pinned_workers: { ignore_after: 5m }
verify: { url: 'https://llm.example.com/v1/models', expect_model: chat, within: 30s, api_key_env: CUSTOMER_KEY }
ssh: { port: 2222, jump: ops@bastion }
state_dir: /srv/swap
";
    let config = load(EVERYTHING, "f", &Overrides::default()).unwrap();
    assert_eq!(config.secret_names().into_iter().collect::<Vec<_>>(), ["HF_TOKEN", "LLM_KEY"]);
    assert_eq!((config.target.port, config.target.jump.as_deref()), (2222, Some("ops@bastion")));
    let spec = config.spec;
    assert_eq!(spec.model_revision.as_deref(), Some("abc"));
    assert_eq!(spec.replica.command, ["serve", "{port}"]);
    assert_eq!(spec.replica.runtime, Runtime::Process);
    assert_eq!(spec.replica.user.as_deref(), Some("llm"));
    assert_eq!(spec.replica.env["HF_HOME"], "/data");
    assert_eq!(spec.ready.timeout, Duration::from_secs(5400));
    assert_eq!(
        (spec.drain.timeout, spec.drain.on_timeout),
        (Duration::from_secs(90), OnTimeout::Cut)
    );
    assert_eq!(spec.retain, Duration::ZERO);
    assert_eq!(spec.nginx.command, ["docker", "exec", "edge", "nginx"]);
    assert_eq!(spec.nginx.pinned_workers, PinnedWorkers::IgnoreAfter(Duration::from_secs(300)));
    assert_eq!(spec.nginx.probe.url, "http://10.0.0.1/v1/models");
    assert_eq!(spec.nginx.probe.host.as_deref(), Some("llm.example.com"));
    let verify = spec.verify.unwrap();
    assert_eq!((verify.expect_model.as_str(), verify.within), ("chat", Duration::from_secs(30)));
    assert_eq!(verify.api_key_env.as_deref(), Some("CUSTOMER_KEY"));
    assert_eq!(spec.state_dir, Some("/srv/swap".into()));
    let gpus = spec.slots.values().map(|slot| command::gpu_list(&slot.gpus)).collect::<Vec<_>>();
    assert_eq!(gpus, ["GPU-1f", "MIG-2e,GPU-3d"]);
}

#[test]
fn what_customers_must_meet_is_the_model_unless_told_otherwise_and_needs_a_url() {
    let with =
        |section: &str| load(&format!("{MINIMAL}verify: {section}\n"), "f", &Overrides::default());
    let config = with("{ url: 'https://llm.example.com/v1/models' }").unwrap();
    assert_eq!(config.spec.verify.unwrap().expect_model, config.spec.model);
    assert_eq!(with("{ within: 5m }").unwrap().spec.verify, None);
    for (section, wrong) in [
        ("{ expect_model: chat }", "verify.url: missing"),
        ("{ url: 'ftp://llm.example.com/' }", "verify.url: got \"ftp://llm.example.com/\""),
        ("{ url: 'https://ann:key@llm.example.com/' }", "verify.api_key_env"),
        ("{ url: 'https://llm.example.com/', within: 0s }", "verify.within: got \"0s\""),
    ] {
        let problems = with(section).unwrap_err();
        let said = problems.to_failures().into_iter().map(|f| format!("{f} {:?}", f.hints));
        let said: String = said.collect();
        assert!(said.contains(wrong), "{section}: {said}");
    }
}

#[test]
fn overrides_win_and_may_stand_alone() {
    let overrides = Overrides {
        service: Some("other".to_owned()),
        model: Some("B/2".to_owned()),
        host: Some("local".to_owned()),
    };
    let without: String = MINIMAL.lines().skip(3).map(|line| format!("{line}\n")).collect();
    for text in [MINIMAL, &without] {
        let config = load(text, "f", &overrides).unwrap();
        assert_eq!((config.spec.service.as_str(), config.spec.model.as_str()), ("other", "B/2"));
        assert_eq!(config.target.host, HostAddr::Local);
    }
    let empty = Overrides { model: Some(String::new()), ..Overrides::default() };
    let problems = load(MINIMAL, "f", &empty).unwrap_err();
    assert_eq!(problems.to_string(), "1 problem in f");
    assert_eq!(
        problems.to_failures()[0].message,
        "f: input model: got \"\", expected a model name or path, like Qwen/Qwen2.5-32B-Instruct"
    );
}

#[test]
fn secrets_are_looked_up_all_at_once() {
    let texts = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    let names = ["A", "B", "C"].map(str::to_owned).into();
    let problems = secrets(&names, &texts(&[("A", "1"), ("B", ""), ("D", "4")])).unwrap_err();
    let messages: Vec<_> =
        problems.to_failures().into_iter().map(|failure| failure.message).collect();
    let missing = |name| {
        format!("the step's environment: {name}: missing, expected a value that is not empty")
    };
    assert_eq!(messages, ["B", "C"].map(missing));
    assert!(problems.list[1].hint.as_deref().unwrap().contains("`C: ${{ secrets.C }}`"));

    let wanted = texts(&[("A", "1"), ("B", "2"), ("C", "3")]);
    let environment = wanted.clone().into_iter().chain(texts(&[("D", "4")])).collect();
    assert_eq!(secrets(&names, &environment), Ok(Secrets(wanted)));
}

/// Numbers that are the same in every run (xorshift64, Marsaglia 2003).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).unwrap()
    }
}

#[test]
fn no_text_panics_and_every_refusal_says_why() {
    const PIECES: [&str; 24] = [
        "{", "}", "[", "]", ":", "- ", "\n", "  ", "'", "\"", "#", "&a ", "*a", "!t ", "~", "\0",
        "\u{feff}", "é", "9e99", "{port}", "$", "\\", "|\n", "<<: ",
    ];
    let mut refused = 0;
    for seed in 1..=800_u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut text: Vec<char> = if seed % 2 == 0 { MINIMAL } else { REFERENCE }.chars().collect();
        for _ in 0..=dice.below(4) {
            let start = dice.below(text.len());
            let end = (start + dice.below(12)).min(text.len());
            let piece = PIECES[dice.below(PIECES.len())];
            text.splice(start..end, piece.chars());
        }
        let text: String = text.into_iter().collect();
        let Err(problems) = load(&text, "f", &Overrides::default()) else { continue };
        refused += 1;
        assert!(!problems.list.is_empty(), "{text}");
        let last = text.lines().count() + 1;
        assert!(
            problems.list.iter().all(|problem| problem.line.is_none_or(|line| line <= last)),
            "{text}"
        );
    }
    assert!(refused > 300, "only {refused} of the texts were wrong");
}

#[test]
fn a_text_that_is_no_configuration_may_still_name_its_service() {
    let of = |text: &str| named_service(text).map(|name| name.to_string());
    assert_eq!(of("# ours\nservice: chat # the one\n\t}").as_deref(), Some("chat"));
    assert_eq!(of("\u{feff}service: 'chat'\r\nmodel: [").as_deref(), Some("chat"));
    for text in ["", "service:", "service: a b", "  service: chat"] {
        assert_eq!(of(text), None, "{text:?}");
    }
}
