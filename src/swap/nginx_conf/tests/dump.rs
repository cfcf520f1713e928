use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;
use crate::model::failure::Hint;
use crate::model::ids::Port;

fn dump(files: &[(&str, &str)]) -> Dump {
    let text: String = files
        .iter()
        .map(|(path, text)| format!("# configuration file {path}:\n{text}\n"))
        .collect();
    Dump::parse(&text).unwrap()
}

const MAIN: (&str, &str) = (
    "/etc/nginx/nginx.conf",
    "user www-data;\npid /run/nginx.pid;\nerror_log /var/log/a.log warn;\nworker_shutdown_timeout 1h30m;\nevents {}\n\
     http {\n error_log /var/log/b.log;\n include mime.types;\n include /etc/nginx/conf.d/*.conf;\n}",
);
const LLM: (&str, &str) =
    ("/etc/nginx/conf.d/llm.conf", "upstream llm {\n server 127.0.0.1:8001;\n}");

#[test]
fn effective_directives_are_those_of_their_context() {
    let dump = dump(&[MAIN, ("/etc/nginx/mime.types", "types { text/html html; }"), LLM]);
    assert_eq!(dump.pid().as_deref(), Some("/run/nginx.pid"));
    assert_eq!(dump.user().as_deref(), Some("www-data"));
    assert_eq!(dump.worker_shutdown_timeout(), Some(Duration::from_secs(5400)));
    assert_eq!(
        dump.error_logs(),
        Logs { main: vec!["/var/log/a.log".into()], http: vec!["/var/log/b.log".into()] }
    );
    let paths: Vec<&Path> = dump.paths().collect();
    assert_eq!(
        paths,
        ["/etc/nginx/nginx.conf", "/etc/nginx/mime.types", "/etc/nginx/conf.d/llm.conf"]
            .map(Path::new)
    );
}

#[test]
fn what_is_not_set_is_not_made_up() {
    let dump = dump(&[(
        "/n.conf",
        "events {}\nhttp { # pid /x;\n map $pid $user { default 1; } }\nworker_shutdown_timeout 0;",
    )]);
    assert_eq!((dump.pid(), dump.user(), dump.worker_shutdown_timeout()), (None, None, None));
    assert_eq!(dump.error_logs(), Logs::default());
}

#[test]
fn a_log_tells_the_replica_if_one_that_is_written_names_the_upstream() {
    const FORMATS: &str =
        "log_format own escape=json '$request' ' $upstream_addr'; log_format other '$request';";
    for (directives, expected) in [
        ("", AccessLog::Silent),
        ("access_log off;", AccessLog::Off),
        ("access_log /a.log;", AccessLog::Silent),
        ("access_log /a.log buffer=32k;", AccessLog::Silent),
        ("access_log /a.log other;", AccessLog::Silent),
        ("access_log /a.log own;", AccessLog::Tells),
        ("access_log off; server { access_log /a.log own gzip; }", AccessLog::Tells),
        ("access_log off; server { access_log /a.log other; }", AccessLog::Silent),
    ] {
        let text = format!("http {{ {FORMATS} {directives} }}");
        assert_eq!(dump(&[("/n.conf", &text)]).access_log(), expected, "{directives}");
    }
}

#[test]
fn directives_of_included_files_belong_to_the_including_context() {
    let dump = dump(&[
        ("/n/n.conf", "include main.d/*;\nhttp { include http.d/*; }"),
        ("/n/main.d/a", "pid /p;"),
        ("/n/http.d/a", "error_log /h;"),
    ]);
    assert_eq!(dump.pid().as_deref(), Some("/p"));
    assert_eq!(dump.error_logs(), Logs { main: vec![], http: vec!["/h".into()] });
}

#[test]
fn an_upstream_is_found_in_an_included_file() {
    let located = dump(&[MAIN, LLM]).locate("llm", &[]).unwrap();
    assert_eq!(located.server, "server 127.0.0.1:8001");
    assert_eq!(located.file, PathBuf::from(LLM.0));
    assert_eq!(located.chain, [MAIN.0, LLM.0].map(PathBuf::from));
}

#[test]
fn its_line_is_found_in_a_file_included_inside_the_block() {
    let block = (
        "/etc/nginx/conf.d/llm.conf",
        "upstream llm { include llm/[s]erver.inc; server b:1 down; keepalive 2; }",
    );
    let line = ("/etc/nginx/llm/server.inc", "server 127.0.0.1:8001 weight=2;");
    let located = dump(&[MAIN, block, line]).locate("llm", &[]).unwrap();
    assert_eq!(located.server, "server 127.0.0.1:8001 weight=2");
    assert_eq!(located.chain, [MAIN.0, block.0, line.0].map(PathBuf::from));
}

#[test]
fn a_file_that_two_upstreams_include_is_refused() {
    let block = (
        "/etc/nginx/conf.d/llm.conf",
        "upstream llm { include one; }\nupstream chat { include one; }",
    );
    let result = dump(&[MAIN, block, ("/etc/nginx/one", "server a:1;")]).locate("llm", &[]);
    assert!(
        matches!(result, Err(ConfError::Shared { ref other, .. }) if other == "chat"),
        "{result:?}"
    );
    let apart = (
        "/etc/nginx/conf.d/llm.conf",
        "upstream llm { server a:1; }\nupstream chat { server a:1; }",
    );
    assert!(dump(&[MAIN, apart]).locate("llm", &[]).is_ok());
}

#[test]
fn the_same_name_in_two_contexts_is_refused() {
    let main = (
        "/n.conf",
        "http { upstream llm { server a:1; } }\nstream {\n upstream llm { server b:1; } }",
    );
    match dump(&[main]).locate("llm", &[]) {
        Err(ConfError::Ambiguous { places, .. }) => {
            assert_eq!(places, ["in http at /n.conf:1", "in stream at /n.conf:3"])
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn exactly_one_active_line_is_needed() {
    let with = |lines: &str| {
        dump(&[("/n.conf", &format!("http {{ upstream llm {{ {lines} }} }}"))]).locate("llm", &[])
    };
    assert!(with("server a:1; server b:1 backup; server c:1 down;").is_ok());
    assert_eq!(with("server b:1 backup;"), Err(ConfError::NoActive { upstream: "llm".into() }));
    let servers = vec!["server a:1".to_owned(), "server b:1 weight=2".to_owned()];
    assert_eq!(
        with("server a:1; server b:1 weight=2;"),
        Err(ConfError::SeveralActive { upstream: "llm".into(), servers })
    );
}

#[test]
fn a_misspelt_upstream_is_guessed() {
    let dump = dump(&[MAIN, LLM, ("/etc/nginx/conf.d/x.conf", "upstream billing { server b; }")]);
    let error = dump.locate("lm", &[]).unwrap_err();
    assert_eq!(error.to_string(), "nginx has no upstream `lm`");
    assert_eq!(error.hints(), ["did you mean `llm`?"]);
    assert_eq!(
        dump.locate("something", &[]).unwrap_err().hints(),
        ["nginx has these upstreams: llm, billing"]
    );
}

#[test]
fn a_location_that_proxies_straight_to_a_replica_gets_the_block_to_paste() {
    let site = (
        "/etc/nginx/conf.d/site.conf",
        "server {\n location / { proxy_pass http://127.0.0.1:8001/; }\n location /x { proxy_pass http://127.0.0.1:3000; }\n}",
    );
    let dump = dump(&[MAIN, site]);
    let hints = dump.locate("llm", &[Port(8001), Port(8002)]).unwrap_err().hints();
    assert_eq!(
        hints,
        [
            "/etc/nginx/conf.d/site.conf:2 proxies straight to a replica (`proxy_pass http://127.0.0.1:8001/;`). Put this \
          beside its `server` block:\nupstream llm {\n    server 127.0.0.1:8001;\n}\nand change that line to:\n\
          proxy_pass http://llm/;"
        ]
    );
    assert_eq!(dump.locate("llm", &[Port(9)]).unwrap_err().hints(), Vec::<String>::new());
    assert_eq!(dump.locate("llm", &[]).unwrap_err().hints().len(), 2);
}

#[test]
fn a_broken_file_is_named() {
    let error = Dump::parse("# configuration file /n.conf:\nevents {\n").unwrap_err();
    assert!(
        matches!(error, ConfError::FileSyntax { ref file, .. } if file == Path::new("/n.conf")),
        "{error:?}"
    );
    assert_eq!(Dump::parse("nothing").unwrap_err(), ConfError::EmptyDump);
}
