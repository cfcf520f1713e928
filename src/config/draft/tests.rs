//! What was seen, and the file that it comes to.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::config::{Config, Overrides, load};
use crate::model::ids::ProcessId;
use crate::model::replica::{Keeper, Unit};
use crate::model::spec::{Gpu, Runtime};
use crate::model::survey::{Entrance, SeenGpu, Start};
use crate::model::target::HostAddr;

fn known() -> Known {
    let host = "deploy@gpu-1".parse::<HostAddr>().unwrap();
    let target = Target { host, port: SSH_PORT, jump: None };
    Known { target, service: None, model: None, upstream: None, state_dir: None }
}

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

fn listener(port: u16, name: &str) -> Listener {
    Listener {
        port: Port(port),
        process: ProcessId { pid: 4711, start: 1 },
        keeper: Keeper::Nobody,
        user: "llm".to_owned(),
        answer: format!("serves {name} (Qwen/Old)"),
        unknown: None,
        locked: false,
        model: Some("Qwen/Old".to_owned()),
        names: vec![name.to_owned()],
        start: Start {
            command: Some(words("vllm serve {model} --port {port} --served-model-name chat")),
            ..Start::default()
        },
        gpus: vec![0],
        instances: Vec::new(),
        no_gpus: Vec::new(),
        uncounted: Vec::new(),
    }
}

fn upstream(name: &str, port: u16) -> Upstream {
    Upstream {
        name: name.to_owned(),
        file: Some(format!("/etc/nginx/conf.d/{name}.conf").into()),
        servers: vec![format!("server 127.0.0.1:{port}")],
        port: Some(Port(port)),
        entrance: Some(Entrance {
            url: "http://127.0.0.1:80/v1/models".to_owned(),
            host: None,
            unmet: None,
        }),
    }
}

fn proxy(upstreams: Vec<Upstream>) -> Proxy {
    let command = vec!["nginx".to_owned()];
    Proxy { command, container: None, upstreams, direct: Vec::new(), failure: None }
}

fn gpu(index: u32, users: &[i32]) -> SeenGpu {
    let name = "NVIDIA H200".to_owned();
    let users = users.iter().copied().collect();
    SeenGpu { index, name, total_mib: Some(143_771), free_mib: Some(142_600), users }
}

/// One service as the README has it, on a server with two GPUs.
fn usual() -> Survey {
    Survey {
        proxies: vec![proxy(vec![upstream("llm", 8001)])],
        listeners: vec![listener(8001, "chat")],
        taken: BTreeSet::from([Port(22), Port(80), Port(8001), Port(8002)]),
        gpus: vec![gpu(0, &[4711]), gpu(1, &[])],
        instances: Vec::new(),
        no_gpus: None,
        looked_as: None,
    }
}

fn loaded(text: &str) -> Config {
    load(text, "f", &Overrides::default()).unwrap_or_else(|problems| {
        panic!("{:?}\n{text}", problems.to_failures());
    })
}

/// The places of what the file lacks.
fn lacks(text: &str) -> Vec<String> {
    let problems = load(text, "f", &Overrides::default()).expect_err(text);
    problems.list.iter().map(|problem| problem.place.to_string()).collect()
}

#[test]
fn where_everything_is_seen_the_file_is_complete() {
    let text = draft(&known(), &usual());
    let config = loaded(&text);
    let spec = &config.spec;
    assert_eq!((spec.service.as_str(), spec.model.as_str()), ("chat", "Qwen/Old"), "{text}");
    let slots: Vec<_> = spec.slots.values().map(|slot| (slot.port.0, slot.gpus.clone())).collect();
    // 8002 is taken by somebody else.
    assert_eq!(slots, [(8001, vec![Gpu::Index(0)]), (8003, vec![Gpu::Index(1)])], "{text}");
    assert_eq!(
        spec.replica.command,
        words("vllm serve {model} --port {port} --served-model-name chat")
    );
    assert_eq!(spec.nginx.upstream, "llm");
    let (_, rest) = text.split_once("\n# fetch:").unwrap();
    let fetches = text.replace("# fetch:", "fetch:").replace("\n#   ", "\n  ");
    assert!(rest.contains("\nreplica:") && spec.fetch.is_none(), "{text}");
    assert_eq!(loaded(&fetches).spec.fetch.unwrap().size, Some(70_000_000_000));
    assert!(!text.lines().any(|line| line.trim_start().starts_with("# ?")), "{text}");
    assert!(
        text.contains(
            "# GPU 0: NVIDIA H200, 140 GiB, 139 GiB free; used by the model on port 8001"
        ),
        "{text}"
    );
}

#[test]
fn a_unit_and_a_container_are_started_in_kind() {
    let mut survey = usual();
    survey.listeners[0].keeper = Keeper::Unit(Unit { name: "vllm.service".to_owned(), user: None });
    let text = draft(&known(), &survey);
    assert_eq!(loaded(&text).spec.replica.runtime, Runtime::Systemd, "{text}");
    survey.listeners[0].keeper = Keeper::Docker("f".repeat(64));
    survey.listeners[0].start.image =
        Some(("vllm/vllm-openai:v0.33.0".to_owned(), words("--ipc=host --volume=/a b:/c")));
    survey.listeners[0].start.command = Some(words("{model} --port {port}"));
    survey.listeners[0].start.other_options = words("--network=llm --runtime=nvidia");
    survey.listeners[0].start.user_inside = Some("1000:44\n".to_owned());
    let text = draft(&known(), &survey);
    let replica = loaded(&text.replace(", \"b:/c\"", "")).spec.replica;
    assert_eq!(replica.image.as_deref(), Some("vllm/vllm-openai:v0.33.0"), "{text}");
    assert_eq!(replica.command, words("{model} --port {port}"), "{text}");
    assert!(text.contains("was made with --user=1000:44\\n, and"), "{text}");
    assert!(text.contains("\n  #   --network=llm, --runtime=nvidia\n"), "{text}");
    survey.listeners[0].start.image = None;
    let text = draft(&known(), &survey);
    assert!(text.contains("# ? runtime: docker") && text.contains("ffffffffffff"), "{text}");
}

#[test]
fn secrets_are_named_and_have_to_be_passed() {
    let mut survey = usual();
    let seen = &mut survey.listeners[0];
    seen.locked = true;
    seen.start.left_out = vec!["--api-key".to_owned()];
    seen.start.env = BTreeMap::from([("HF_HOME".to_owned(), "/data/h \"f\": #".to_owned())]);
    seen.start.secret_env = BTreeSet::from(["HF_TOKEN".to_owned()]);
    seen.start.other_env = BTreeSet::from(["DATABASE_URL".to_owned()]);
    let text = draft(&known(), &survey);
    let spec = loaded(&text).spec;
    assert_eq!(spec.replica.secret_env, ["HF_TOKEN", "VLLM_API_KEY"], "{text}");
    assert_eq!(spec.nginx.probe.api_key_env.as_deref(), Some("VLLM_API_KEY"), "{text}");
    assert_eq!(spec.replica.env["HF_HOME"], "/data/h \"f\": #", "{text}");
    for said in ["--api-key is left out", "${{ secrets.HF_TOKEN }}", "#   DATABASE_URL"] {
        assert!(text.contains(said), "no {said:?} in {text}");
    }
}

#[test]
fn what_is_not_known_is_asked_for_in_its_place() {
    // Nothing at all.
    let text =
        draft(&known(), &Survey { no_gpus: Some("no nvidia-smi".to_owned()), ..Survey::default() });
    assert_eq!(
        lacks(&text),
        ["service", "model", "replica.command", "nginx.config", "nginx.upstream"]
    );
    assert!(text.contains("gpus: []") && text.contains("No GPU was seen: no nvidia-smi"), "{text}");
    // One GPU: no two places.
    let text = draft(&known(), &Survey { gpus: vec![gpu(0, &[4711])], ..usual() });
    assert_eq!(lacks(&text), ["slots.b.gpus"], "{text}");
    assert!(text.contains("There is one GPU") && text.contains("# ? gpus: [1]"), "{text}");
    // The second GPU is somebody else's.
    let text = draft(&known(), &Survey { gpus: vec![gpu(0, &[4711]), gpu(1, &[5])], ..usual() });
    assert_eq!(lacks(&text), ["slots.b.gpus"], "{text}");
    assert!(
        text.contains("has 1 GPUs, and 0 are unused") && text.contains("used by process 5"),
        "{text}"
    );
    // Nobody listens: what a model was started with is not known, and its GPUs are.
    let text = draft(
        &known(),
        &Survey { listeners: Vec::new(), gpus: (0..5).map(|i| gpu(i, &[])).collect(), ..usual() },
    );
    assert_eq!(lacks(&text), ["model", "replica.command"], "{text}");
    assert!(text.contains("gpus: [0, 1]") && text.contains("gpus: [2, 3]"), "{text}");
}

#[test]
fn a_divided_gpu_is_named_by_its_instance_and_a_name_that_means_none_is_said() {
    let uuid = |name: &str| vec![Gpu::Uuid(name.to_owned())];
    let mut survey = usual();
    survey.instances = ["MIG-c6d4", "MIG-e1"].map(str::to_owned).to_vec();
    // Its memory counts as the whole GPU's.
    survey.listeners[0].instances = vec!["MIG-c6d4".to_owned()];
    let text = draft(&known(), &survey);
    assert_eq!(lacks(&text), ["slots.b.gpus"], "{text}");
    assert!(
        text.contains("it is not seen which are unused: MIG-e1.")
            && text.contains("# ? gpus: [MIG-…]"),
        "{text}"
    );
    let text = text.replace("    # ? gpus: [MIG-…]", "    gpus: [MIG-e1]");
    let slots: Vec<_> = loaded(&text).spec.slots.into_values().map(|slot| slot.gpus).collect();
    assert_eq!(slots, [uuid("MIG-c6d4"), uuid("MIG-e1")], "{text}");

    // Whether there are GPUs or not.
    for gpus in [usual().gpus, Vec::new()] {
        let mut survey = Survey { gpus, ..usual() };
        survey.listeners[0].gpus.clear();
        survey.listeners[0].no_gpus = vec!["GPU-9\nretain: 0s".to_owned(), "7".to_owned()];
        let text = draft(&known(), &survey);
        assert_eq!(lacks(&text), ["slots.a.gpus", "slots.b.gpus"], "{text}");
        assert!(
            text.contains("# That model was started with GPU-9\\nretain: 0s, 7 in CUDA_VISIBLE"),
            "{text}"
        );
    }
}

#[test]
fn an_index_by_which_cuda_may_mean_another_gpu_is_not_taken_over() {
    let mut survey = usual();
    survey.gpus[1].name = "NVIDIA L40S".to_owned();
    survey.gpus[0].users.clear();
    (survey.listeners[0].gpus, survey.listeners[0].uncounted) = (Vec::new(), words("1"));
    let text = draft(&known(), &survey);
    assert_eq!(lacks(&text), ["slots.a.gpus", "slots.b.gpus"], "{text}");
    for said in [
        "    # That model was started with CUDA_VISIBLE_DEVICES=1 and without CUDA_DEVICE_ORDER=PCI_BUS_ID",
        "\n    #   python3 -c 'import torch; print(torch.cuda.get_device_properties(0).uuid)'\n",
        "`nvidia-smi -L`",
    ] {
        assert!(text.contains(said), "no {said:?} in {text}");
    }
}

#[test]
fn of_several_upstreams_the_one_with_a_model_is_taken_and_the_others_are_named() {
    let mut remote = upstream("far", 1);
    (remote.port, remote.servers) = (None, vec!["server 10.0.0.7:80".to_owned()]);
    let survey = Survey {
        proxies: vec![proxy(vec![
            remote,
            upstream("web", 3000),
            upstream("llm", 8001),
            upstream("embed", 8010),
        ])],
        listeners: vec![
            Listener { unknown: Some("no count".to_owned()), ..listener(3000, "x") },
            listener(8001, "chat"),
            listener(8010, "embed"),
        ],
        ..usual()
    };
    let text = draft(&known(), &survey);
    assert_eq!(loaded(&text).spec.nginx.upstream, "llm", "{text}");
    for said in ["upstream far (`server 10.0.0.7:80`): nobody listens there", "--upstream embed"] {
        assert!(text.contains(said), "no {said:?} in {text}");
    }
    let named = Known { upstream: Some("embed".to_owned()), ..known() };
    let spec = loaded(&draft(&named, &survey)).spec;
    assert_eq!((spec.nginx.upstream.as_str(), spec.service.as_str()), ("embed", "embed"));
    let missing = Known { upstream: Some("lmm".to_owned()), ..known() };
    assert!(draft(&missing, &survey).contains("there is no upstream lmm"));
}

#[test]
fn the_way_to_the_server_and_what_was_chosen_are_written() {
    let target =
        Target { port: 2222, jump: Some("ann@bastion:22,[::1]:2".to_owned()), ..known().target };
    let chosen = Known {
        target,
        service: Some("code".parse().unwrap()),
        model: Some("Qwen/New".to_owned()),
        state_dir: Some("/srv/state".into()),
        ..known()
    };
    let config = loaded(&draft(&chosen, &usual()));
    assert_eq!((config.target, config.spec.state_dir), (chosen.target, chosen.state_dir));
    assert_eq!((config.spec.service.as_str(), config.spec.model.as_str()), ("code", "Qwen/New"));
}

/// Whatever a server says of itself, it adds no setting.
#[test]
fn no_text_of_the_servers_ends_its_line() {
    let evil = "x\nretain: 0s\n# \u{1b}[2J: ? - ' \" {";
    let mut survey = usual();
    let seen = &mut survey.listeners[0];
    seen.answer = evil.to_owned();
    seen.user = evil.to_owned();
    seen.names = vec![evil.to_owned()];
    seen.model = Some(evil.to_owned());
    seen.unknown = Some(evil.to_owned());
    seen.start.command = Some(vec![evil.to_owned(), "{port}".to_owned()]);
    seen.start.left_out = vec![evil.to_owned()];
    seen.start.other_env = BTreeSet::from([evil.to_owned()]);
    seen.start.env = BTreeMap::from([("HF_HOME".to_owned(), evil.to_owned())]);
    let proxy = &mut survey.proxies[0];
    proxy.command = vec![evil.to_owned()];
    proxy.direct = vec![evil.to_owned()];
    proxy.upstreams[0].servers = vec![evil.to_owned()];
    proxy.upstreams.push(Upstream { name: evil.to_owned(), ..upstream("a", 1) });
    survey.no_gpus = Some(evil.to_owned());
    survey.gpus.clear();
    let text = draft(&known(), &survey);
    let value: serde_yaml::Value = serde_yaml::from_str(&text).unwrap();
    assert!(value.get("retain").is_none(), "{text}");
    assert!(!text.contains('\u{1b}'), "{text}");
    assert_eq!(value["model"].as_str(), Some(evil), "{text}");
}
