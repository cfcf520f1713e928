use std::time::Duration;

use super::*;

#[test]
fn times_are_nginxs() {
    for (text, seconds) in
        [("90", 90), ("90s", 90), ("10m", 600), ("1h30m", 5400), ("1h 30m", 5400), ("2d", 172_800)]
    {
        assert_eq!(parse_time(text), Some(Duration::from_secs(seconds)), "{text}");
    }
    assert_eq!(parse_time("1500ms"), Some(Duration::from_millis(1500)));
    assert_eq!(parse_time("1M"), Some(Duration::from_secs(30 * 86_400)));
    assert_eq!(parse_time("1w1y"), Some(Duration::from_secs(372 * 86_400)));
    for bad in ["", "m", "5x", "1.5h", "-1", "99999999999999999999"] {
        assert_eq!(parse_time(bad), None, "{bad}");
    }
}

#[test]
fn patterns_match_as_glob_does() {
    for (pattern, path) in [
        ("/etc/nginx/conf.d/*.conf", "/etc/nginx/conf.d/llm.conf"),
        ("/e/*", "/e/x"),
        ("/e/?.c", "/e/x.c"),
        ("/e/[a-c]*", "/e/bcd"),
        ("/e/[!a]x", "/e/bx"),
        ("/e/*/x*y*.conf", "/e/d/xayb.conf"),
        ("/e/*ab*b?", "/e/aababbc"),
        ("/e/.*", "/e/.x"),
        ("/e//x", "/e//x"),
    ] {
        assert!(glob_matches(pattern, path), "{pattern} {path}");
    }
    for (pattern, path) in [
        ("/e/*.conf", "/e/d/x.conf"),
        ("/e/*.conf", "/e/x.conf.bak"),
        ("/e/*", "/e/.hidden"),
        ("/e/[a-c]", "/e/d"),
        ("/e/[!a]", "/e/a"),
        ("/e/?", "/e/xy"),
        ("/e", "/e/x"),
        ("/e/x", "/e"),
    ] {
        assert!(!glob_matches(pattern, path), "{pattern} {path}");
    }
    // Whoever tries each star anew is not back before the sun has gone out.
    let (stars, name) = ("*a".repeat(50) + "b", "a".repeat(200));
    assert!(!glob_matches(&stars, &name));
    assert!(glob_matches(&stars, &(name + "b")));
}
