//! What must hold for any input of what reads files, answers and pages that others wrote.
//!
//! Each takes bytes as they come and panics when its property does not hold. libFuzzer looks for such bytes (`make fuzz`);
//! what it has found, and what it starts from, is run again by every `make test`.

use std::ops::Range;

use model_swap::agent;
use model_swap::config::listing::Listing;
use model_swap::config::problem::Problems;
use model_swap::config::{self, Overrides, command};
use model_swap::host::engine::metrics::count;
use model_swap::journal::Journal;
use model_swap::model::ids::Port;
use model_swap::model::record::RecordKind;
use model_swap::remote::frames::read_frame;
use model_swap::swap::nginx_conf::{
    Directive, Dump, active_servers, parse, port_of, replace_servers, with_port,
};

/// The name that every input's upstream should have, to be found.
const UPSTREAM: &str = "llm";

/// A configuration, and a listing of root's: either everything is right with it, or a person is told what is not and where.
pub fn config(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match config::load(&text, "model-swap.yaml", &Overrides::default()) {
        Ok(config) => {
            let spec = &config.spec;
            let wired = serde_json::to_string(spec).expect("a specification is JSON");
            assert_eq!(serde_json::from_str(&wired).ok().as_ref(), Some(spec), "{wired}");
            assert_eq!(spec.slots.len(), 2, "two slots, always");
            for slot in spec.slots.values() {
                let argv =
                    command::render(&spec.replica.command, spec.weights(), slot.port, &slot.gpus);
                assert!(argv.first().is_some_and(|program| !program.is_empty()), "{argv:?}");
            }
        }
        Err(problems) => tell(&text, &problems),
    }
    if let Err(problems) = Listing::load(&text, "llm.yaml") {
        tell(&text, &problems);
    }
}

/// A refusal says something, and every line that it names is one of the text's.
fn tell(text: &str, problems: &Problems) {
    assert!(!problems.list.is_empty(), "refused without a word");
    assert!(!problems.to_string().trim().is_empty(), "refused with blanks");
    // YAML ends lines in more ways than `lines()` knows, never in fewer; a problem at the end stands after the last one.
    let lines = text.split(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']).count();
    for problem in &problems.list {
        assert!(
            problem.line.is_none_or(|line| (1..=lines + 1).contains(&line)),
            "{problem:?} of {lines}"
        );
    }
}

/// nginx's configuration: spans are inside the text and nested, and an edit can be taken back to the last byte.
pub fn nginx(data: &[u8]) {
    if let Ok(directives) = parse(data) {
        nested(&directives, &(0..data.len()));
    }
    let text = String::from_utf8_lossy(data);
    let ports = [Port(8001), Port(8002)];
    let of_file = Dump::of_file("/etc/nginx/nginx.conf".into(), text.to_string());
    for dump in [Dump::parse(&text), of_file].into_iter().flatten() {
        let _ = (dump.pid(), dump.user(), dump.error_logs(), dump.worker_shutdown_timeout());
        drop(dump.locate(UPSTREAM, &ports));
        for upstream in dump.upstreams() {
            assert!(upstream.port.is_none() || upstream.servers.len() == 1, "{upstream:?}");
        }
    }
    let Ok(before) = active_servers(data, UPSTREAM) else { return };
    for port in ports {
        let moved =
            before.iter().map(|server| with_port(server, port)).collect::<Result<Vec<_>, _>>();
        let Ok(after) = moved else { continue };
        for server in &after {
            assert_eq!(port_of(server).ok(), Some(port), "{server:?} of {before:?}");
        }
        let edited =
            replace_servers(data, UPSTREAM, &before, &after).expect("they were just found");
        assert_eq!(active_servers(&edited, UPSTREAM).ok().as_ref(), Some(&after));
        let back =
            replace_servers(&edited, UPSTREAM, &after, &before).expect("they were just put there");
        assert_eq!(back, data, "every other byte stays");
    }
}

fn nested(directives: &[Directive], inside: &Range<usize>) {
    let mut at = inside.start;
    for Directive { words, span, block, .. } in directives {
        assert!(at <= span.start && span.start <= span.end && span.end <= inside.end, "{span:?}");
        for word in words {
            assert!(span.start <= word.span.start && word.span.end <= span.end, "{word:?}");
        }
        if let Some(block) = block {
            nested(block, &(span.end..inside.end));
        }
        at = span.end;
    }
}

/// The wire, both ways: what is understood is understood again after it was said again.
pub fn wire(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for line in text.lines() {
        if let Ok(Some(frame)) = read_frame(line) {
            let again = serde_json::to_string(&frame).expect("a frame is JSON");
            assert_eq!(read_frame(&again).ok().flatten(), Some(frame), "{again}");
        }
        match agent::parse(line) {
            Ok(request) => {
                let again = serde_json::to_string(&request).expect("a request is JSON");
                assert!(agent::parse(&again).is_ok(), "{again}");
            }
            Err(refusal) => assert!(!refusal.failures.is_empty(), "refused without a word"),
        }
    }
}

/// A journal after a crash or a bad disk: what can be read can be read again, and goes on by the transition table only.
pub fn journal(data: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("journal.ndjson");
    std::fs::write(&path, data).expect("a file");
    let Ok(mut journal) = Journal::open(folder.path()) else {
        assert_eq!(std::fs::read(&path).ok().as_deref(), Some(data), "refused, and changed");
        return;
    };
    let kept = std::fs::read(&path).expect("it is there");
    assert!(
        data.starts_with(&kept) && !data[kept.len()..].contains(&b'\n'),
        "only a torn line goes"
    );
    let again = Journal::open(folder.path()).expect("it was just opened");
    assert_eq!((again.records(), again.status()), (journal.records(), journal.status()));
    if journal.append(RecordKind::Closed, jiff::Timestamp::UNIX_EPOCH).is_ok() {
        let closed = Journal::open(folder.path()).expect("it was just written");
        assert_eq!((closed.records(), closed.status()), (journal.records(), journal.status()));
    }
}

/// A page of metrics: a sum over its lines, whatever else is in it.
pub fn metrics(data: &[u8]) {
    const NAME: &str = "vllm:num_requests_running";
    let page = String::from_utf8_lossy(data);
    let counted = count(&page, NAME);
    let twice = count(&format!("{page}\n{page}"), NAME);
    assert_eq!(twice, counted.map(|count| count * 2), "{counted:?}");
    let more = count(&format!("{page}\n{NAME}{{engine=\"9\"}} 1\n"), NAME);
    if let Some(counted) = counted {
        assert_eq!(more, Some(counted + 1));
    }
}
