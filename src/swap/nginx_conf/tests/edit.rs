use super::*;
use crate::model::ids::Port;

/// Flips the only active line of `llm` to port 9999 and back; gives the flipped text.
#[track_caller]
fn flip(file: &[u8]) -> Vec<u8> {
    let before = active_servers(file, "llm").unwrap();
    assert_eq!(before.len(), 1, "{before:?}");
    let after = vec![with_port(&before[0], Port(9999)).unwrap()];
    let flipped = replace_servers(file, "llm", &before, &after).unwrap();
    assert_eq!(active_servers(&flipped, "llm").unwrap(), after);
    assert_eq!(port_of(&after[0]).unwrap(), Port(9999));
    assert_eq!(
        replace_servers(&flipped, "llm", &after, &before).unwrap(),
        file,
        "not the same bytes after the way back"
    );
    // Both ways are idempotent.
    assert_eq!(replace_servers(&flipped, "llm", &before, &after).unwrap(), flipped);
    assert_eq!(replace_servers(file, "llm", &after, &before).unwrap(), file);
    flipped
}

#[track_caller]
fn flips(file: &str, expected: &str) {
    assert_eq!(String::from_utf8(flip(file.as_bytes())).unwrap(), expected);
}

#[test]
fn only_the_port_changes() {
    flips("upstream llm { server 127.0.0.1:8001; }", "upstream llm { server 127.0.0.1:9999; }");
    flips(
        "upstream llm {\n    server 127.0.0.1:8001;      # 8001 and weights stay\n    keepalive 32;\n}\n\
         server {\n  listen 8001;\n  location / { proxy_pass http://llm; }\n}\n",
        "upstream llm {\n    server 127.0.0.1:9999;      # 8001 and weights stay\n    keepalive 32;\n}\n\
         server {\n  listen 8001;\n  location / { proxy_pass http://llm; }\n}\n",
    );
    flips(
        "upstream llm {\r\n\tserver\tlocalhost:8001\tweight=5 max_fails=0;\r\n}\r\n",
        "upstream llm {\r\n\tserver\tlocalhost:9999\tweight=5 max_fails=0;\r\n}\r\n",
    );
    flips("upstream llm{server [::1]:8001;}", "upstream llm{server [::1]:9999;}");
    flips(
        "upstream llm{server \"127.0.0.1:8001\" weight=1;}",
        "upstream llm{server \"127.0.0.1:9999\" weight=1;}",
    );
    flips("upstream 'llm' {server '127.0.0.1:8001';}", "upstream 'llm' {server '127.0.0.1:9999';}");
    flips(
        "upstream llm{server # a\n127.0.0.1:8001 # b\n ;}",
        "upstream llm{server # a\n127.0.0.1:9999 # b\n ;}",
    );
}

#[test]
fn an_address_without_a_port_gets_one() {
    flips("upstream llm { server 127.0.0.1; }", "upstream llm { server 127.0.0.1:9999; }");
    flips("upstream llm { server gpu weight=2; }", "upstream llm { server gpu:9999 weight=2; }");
    flips("upstream llm { server [::1]; }", "upstream llm { server [::1]:9999; }");
    flips("upstream llm { server '127.0.0.1'; }", "upstream llm { server '127.0.0.1:9999'; }");
}

#[test]
fn other_lines_and_other_upstreams_stay() {
    flips(
        "upstream a { server 127.0.0.1:8001; }\nupstream llm { # server 127.0.0.1:8001;\n server 127.0.0.1:8001;\n\
         server 127.0.0.1:8001 backup; server 127.0.0.1:8003 down; }\nupstream llm2 { server 127.0.0.1:8001; }",
        "upstream a { server 127.0.0.1:8001; }\nupstream llm { # server 127.0.0.1:8001;\n server 127.0.0.1:9999;\n\
         server 127.0.0.1:8001 backup; server 127.0.0.1:8003 down; }\nupstream llm2 { server 127.0.0.1:8001; }",
    );
    flips(
        "events {} http { server { listen 80; server_name llm; } upstream llm { zone llm 64k; server 127.0.0.1:80; } }",
        "events {} http { server { listen 80; server_name llm; } upstream llm { zone llm 64k; server 127.0.0.1:9999; } }",
    );
    flips(
        "set $x 'upstream llm { server a; }'; upstream llm { server b; }",
        "set $x 'upstream llm { server a; }'; upstream llm { server b:9999; }",
    );
}

#[test]
fn an_included_file_may_hold_the_lines_alone() {
    flips("# the replica\nserver 127.0.0.1:8001;\n", "# the replica\nserver 127.0.0.1:9999;\n");
}

#[test]
fn bytes_that_are_no_text_stay() {
    let file = b"# gr\xfc\xdfe\nupstream llm { server 127.0.0.1:8001; } # \xff\xfe";
    assert_eq!(flip(file), b"# gr\xfc\xdfe\nupstream llm { server 127.0.0.1:9999; } # \xff\xfe");
    assert_eq!(
        active_servers(b"\nupstream llm { server \xff:1; }", "llm"),
        Err(ConfError::NotText { line: 2 })
    );
}

#[test]
fn lines_that_somebody_changed_are_not_overwritten() {
    let before = ["server 127.0.0.1:8001".to_owned()];
    let after = ["server 127.0.0.1:8002".to_owned()];
    for edited in [
        "upstream llm { server 127.0.0.1:8003; }",
        "upstream llm { server 127.0.0.1:8001 weight=2; }",
        "upstream llm { server 127.0.0.1:8001; server 127.0.0.1:8002; }",
        "upstream llm { server 127.0.0.1:8001 down; }",
    ] {
        let result = replace_servers(edited.as_bytes(), "llm", &before, &after);
        assert!(matches!(result, Err(ConfError::Edited { .. })), "{edited}: {result:?}");
    }
    let gone = replace_servers(b"upstream other { server a:1; }", "llm", &before, &after);
    let told = gone.unwrap_err().to_string();
    assert!(told.ends_with("found none, expected `server 127.0.0.1:8001`"), "{told}");
}

#[test]
fn the_same_name_twice_in_a_file_is_refused() {
    let file = b"http { upstream llm { server a; } }\nstream { upstream llm { server b; } }";
    let places = vec!["line 1".to_owned(), "line 2".to_owned()];
    assert_eq!(
        active_servers(file, "llm"),
        Err(ConfError::Ambiguous { upstream: "llm".into(), places })
    );
}

#[test]
fn ports_are_read_from_addresses_of_every_kind() {
    for (server, port) in [
        ("server 127.0.0.1:8001", 8001),
        ("server localhost:8001 weight=3", 8001),
        ("server [::1]:8001", 8001),
        ("server gpu-1.example.com:65535", 65535),
        ("server \"127.0.0.1:8001\"", 8001),
        ("server 127.0.0.1", 80),
        ("server [::1]", 80),
    ] {
        assert_eq!(port_of(server), Ok(Port(port)), "{server}");
    }
    assert!(matches!(port_of("server unix:/run/x.sock"), Err(ConfError::UnixSocket { .. })));
    for (server, host) in [
        ("server 127.0.0.1:8001 weight=2", "127.0.0.1"),
        ("server 10.0.0.5", "10.0.0.5"),
        ("server [::1]:8001", "::1"),
        ("server [::1]", "::1"),
        ("server gpu-1:8001", "gpu-1"),
    ] {
        assert_eq!(host_of(server).as_deref(), Ok(host), "{server}");
    }
    for bad in [
        "server",
        "server ::1",
        "server a:0",
        "server a:65536",
        "server a:+1",
        "server a:",
        "server :1",
        "server [::1",
        "server [::1]x",
        r"server 127.0.0.1\\:8001",
        "server a; server b",
        "server a {}",
    ] {
        assert!(
            matches!(port_of(bad), Err(ConfError::Address { .. } | ConfError::Syntax(_))),
            "{bad}: {:?}",
            port_of(bad)
        );
        assert!(with_port(bad, Port(1)).is_err(), "{bad}");
    }
}

/// A small deterministic source of choices.
struct Choices(u64);

impl Choices {
    fn of<'a>(&mut self, from: &[&'a str]) -> &'a str {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        from[(self.0 >> 33) as usize % from.len()]
    }
}

#[test]
fn generated_files_differ_in_the_port_alone_and_come_back_byte_for_byte() {
    const BLANK: &[&str] =
        &[" ", "\t", "\n", "\r\n", "  \n\t", " # ; { } \" server 127.0.0.1:8001;\n", "\n#\n"];
    const NOISE: &[&str] = &[
        "",
        "keepalive 32;",
        "zone z 64k;",
        "server 127.0.0.1:8001 backup;",
        "server\tb:8001 down ;",
        "# server c:8001;\n",
        "least_conn;",
    ];
    const AROUND: &[&str] = &[
        "",
        "upstream other { server 127.0.0.1:8001; }",
        "map $a $b { default \"llm{\"; '~x' 1; }",
        "server { listen 8001; location / { proxy_pass http://llm; return 200 \"}${x}\"; } }",
        "content_by_lua_block { t = { '}' } -- }\n }",
        "log_format f '$remote_addr \\'x\\' {';",
    ];
    const ADDRESS: &[&str] = &[
        "127.0.0.1:8001",
        "localhost:8001",
        "[::1]:8001",
        "\"127.0.0.1:8001\"",
        "'gpu:8001'",
        "h:8001",
    ];
    const PARAMS: &[&str] =
        &["", " weight=5", "\tmax_fails=0 fail_timeout=1s", " # why\n weight=1"];
    let mut pick = Choices(1);
    for _ in 0..3_000 {
        let head = [
            pick.of(AROUND),
            pick.of(BLANK),
            pick.of(AROUND),
            pick.of(BLANK),
            "upstream",
            pick.of(BLANK),
            "llm",
        ];
        let open = [
            pick.of(BLANK),
            "{",
            pick.of(BLANK),
            pick.of(NOISE),
            pick.of(BLANK),
            "server",
            pick.of(BLANK),
        ];
        let (address, params) = (pick.of(ADDRESS), pick.of(PARAMS));
        let tail = [
            pick.of(&["", " ", "\n"]),
            ";",
            pick.of(BLANK),
            pick.of(NOISE),
            pick.of(BLANK),
            "}",
            pick.of(BLANK),
            pick.of(AROUND),
        ];
        let (head, open, tail) = (head.concat(), open.concat(), tail.concat());
        let file = format!("{head}{open}{address}{params}{tail}");
        let expected = format!("{head}{open}{}{params}{tail}", address.replace("8001", "9999"));
        flips(&file, &expected);
    }
}
