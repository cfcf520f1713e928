//! nginx's small languages inside a word: times and file patterns.

use std::time::Duration;

/// Parses a time as `ngx_parse_time` does: `90`, `10m`, `1h30m`, `500ms`; without a unit, seconds.
///
/// `None` if it is none. The units are those of nginx's "Configuration file measurement units".
pub fn parse_time(value: &str) -> Option<Duration> {
    const DAY: u64 = 24 * 60 * 60 * 1000;
    let mut rest = value.trim();
    if rest.is_empty() {
        return None;
    }
    let mut total = 0_u64;
    while !rest.is_empty() {
        let (number, behind) =
            rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len()));
        let (unit, behind) = behind
            .split_at(behind.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(behind.len()));
        let milliseconds = match unit {
            "ms" => 1,
            "" | "s" => 1000,
            "m" => 60 * 1000,
            "h" => 60 * 60 * 1000,
            "d" => DAY,
            "w" => 7 * DAY,
            "M" => 30 * DAY,
            "y" => 365 * DAY,
            _ => return None,
        };
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(milliseconds)?)?;
        rest = behind.trim_start();
    }
    Some(Duration::from_millis(total))
}

/// Whether a path matches a pattern of `include`: glob(3) with `*`, `?` and `[…]`, none of which matches a `/`,
/// nor a dot that starts a name.
pub fn glob_matches(pattern: &str, path: &str) -> bool {
    let (mut patterns, mut names) = (pattern.split('/'), path.split('/'));
    loop {
        match (patterns.next(), names.next()) {
            (None, None) => return true,
            (Some(pattern), Some(name)) => {
                let hidden = name.starts_with('.') && !pattern.starts_with('.');
                let (pattern, name): (Vec<char>, Vec<char>) =
                    (pattern.chars().collect(), name.chars().collect());
                if hidden || !name_matches(&pattern, &name) {
                    return false;
                }
            }
            _ => return false,
        }
    }
}

fn name_matches<'a>(mut pattern: &'a [char], mut name: &'a [char]) -> bool {
    // What follows the last star, and what that leaves of the name. What earlier ones took is never tried again: the shortest
    // will do, and a pattern of many stars would take for ever.
    let mut star = None;
    loop {
        if let ['*', rest @ ..] = pattern {
            star = Some((rest, name));
            pattern = rest;
        } else if let Some(behind) = behind_one(pattern, name) {
            (pattern, name) = behind;
        } else if pattern.is_empty() && name.is_empty() {
            return true;
        } else {
            let Some((rest, [_, tail @ ..])) = star else { return false };
            star = Some((rest, tail));
            (pattern, name) = (rest, tail);
        }
    }
}

/// What is left of both where the pattern begins with what matches one character; `None` if the name does not begin with that.
fn behind_one<'a>(pattern: &'a [char], name: &'a [char]) -> Option<(&'a [char], &'a [char])> {
    let [c, tail @ ..] = name else { return None };
    let (matches, rest) = match pattern {
        [] => return None,
        ['?', rest @ ..] => (true, rest),
        ['[', set @ ..] => match set.iter().skip(1).position(|end| *end == ']') {
            Some(length) => (
                in_set(set.get(..=length).unwrap_or_default(), *c),
                set.get(length + 2..).unwrap_or_default(),
            ),
            None => (*c == '[', set),
        },
        [p, rest @ ..] => (p == c, rest),
    };
    matches.then_some((rest, tail))
}

fn in_set(set: &[char], c: char) -> bool {
    let (negated, mut set) = match set {
        ['!' | '^', rest @ ..] => (true, rest),
        _ => (false, set),
    };
    let mut found = false;
    while let [first, rest @ ..] = set {
        set = match rest {
            ['-', last, rest @ ..] => {
                found |= (*first..=*last).contains(&c);
                rest
            }
            _ => {
                found |= *first == c;
                rest
            }
        };
    }
    found != negated
}
