use super::*;

#[track_caller]
fn reads(text: &str, expected: &str) {
    assert_eq!(outline(&parse(text.as_bytes()).unwrap()), expected, "{text}");
}

#[test]
fn words_blocks_and_blanks() {
    reads("", "");
    reads("a;", "a");
    reads("a b c;d;", "a|b|c / d");
    reads("http{server{listen 80;}}", "http [server [listen|80]]");
    reads("a\r\n\tb ;\r\n", "a|b");
    reads("events {} http { }", "events [] / http []");
}

#[test]
fn comments_start_only_at_a_word() {
    reads("# a; {\nb; # c }\n", "b");
    reads("a b#c;", "a|b#c");
    reads("a # x;\n b;", "a|b");
    reads("a;# no newline at the end", "a");
}

#[test]
fn quotes_hide_everything_but_their_own_end() {
    reads(r#"a "b;{}# c" 'd "e"';"#, r#"a|b;{}# c|d "e""#);
    reads(r#"a "b \" c" 'd \' e';"#, r#"a|b " c|d ' e"#);
    reads(r#"a "";"#, "a|");
    reads(r#"a b"c;"#, r#"a|b"c"#);
    reads("a \"line\nline\";", "a|line\nline");
    reads(r#"if ($x = "y"){a;}"#, "if|($x|=|y|) [a]");
}

#[test]
fn escapes_are_nginxs_own() {
    reads(r"a b\;c d\ e;", r"a|b\;c|d\ e");
    reads(r"a \\ \t \d;", "a|\\|\t|\\d");
    reads(r"a \{b;", r"a|\{b");
}

#[test]
fn a_brace_of_a_variable_opens_no_block() {
    reads("set $a ${b}c;", "set|$a|${b}c");
    reads("return 200 x${a}${b};", "return|200|x${a}${b}");
    reads("location ~ ^/x$ {a;}", "location|~|^/x$ [a]");
    // nginx reads it so, too: the brace belongs to the variable.
    assert!(parse(b"location ~ ^/x${a;}").is_err());
}

#[test]
fn a_closing_brace_inside_a_word_is_a_letter() {
    reads("a b}c;", "a|b}c");
}

#[test]
fn lua_blocks_are_left_alone() {
    reads("content_by_lua_block { local t = {a = {1}} } b;", "content_by_lua_block [] / b");
    reads("init_by_lua_block { -- }\n x = '}' y = \"\\\"}\" } b;", "init_by_lua_block [] / b");
    reads(
        "init_by_lua_block { --[[ } ]] x = [==[ } ]] } ]==] t[1] = 2 } b;",
        "init_by_lua_block [] / b",
    );
    reads("access_by_lua_block { upstream = {} } a { b; }", "access_by_lua_block [] / a [b]");
}

#[test]
fn what_nginx_refuses_is_refused_with_its_line() {
    for (text, line) in [
        ("a", 1),
        ("a;\n b", 2),
        ("a {\n b;\n", 3),
        ("}", 1),
        ("a;\n;", 2),
        ("\n{}", 2),
        ("a }", 1),
        ("a 'b;\n", 1),
        ("a \"b\"c;", 1),
        ("a \\", 1),
        ("init_by_lua_block { '}", 1),
        ("init_by_lua_block { [[ }", 1),
        ("init_by_lua_block { {}", 1),
    ] {
        assert_eq!(parse(text.as_bytes()).map_err(|e| e.line), Err(line), "{text:?}");
    }
}

#[test]
fn spans_give_the_text_back() {
    let text = "  server\t\"127.0.0.1:1\" # why\n weight=5 ;";
    let directives = parse(text.as_bytes()).unwrap();
    let directive = &directives[0];
    assert_eq!(&text[directive.span.clone()], "server\t\"127.0.0.1:1\" # why\n weight=5");
    assert_eq!(&text[directive.words[1].span.clone()], "127.0.0.1:1");
    assert_eq!(directive.line, 1);
}

#[test]
fn any_bytes_are_read_or_refused_but_never_a_panic() {
    let alphabet = b"a;{}#\"'\\$ \n-[]=)\xff";
    let mut seed = 7_u64;
    for _ in 0..20_000 {
        let text: Vec<u8> = (0..12)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                alphabet[(seed >> 33) as usize % alphabet.len()]
            })
            .collect();
        let lua = [b"x_by_lua_block {".as_slice(), &text].concat();
        let _ = (parse(&text), parse(&lua));
    }
}
