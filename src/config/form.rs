//! Accepted forms of single values, each with its words for people.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde_yaml::{Mapping, Value};

use crate::model::ids::{Port, RESERVED, ServiceName};
use crate::model::spec::Gpu;
use crate::model::target::{HostAddr, check_jump};

use super::command::is_variable_name;
use super::reader::Form;

/// The service's name.
pub(super) const SERVICE: Form<ServiceName> = Form {
    expected: "1 to 40 of a-z, 0-9 and inner dashes, like chat or code-assist",
    parse: |value| {
        let name = text(value)?;
        ServiceName::from_str(name).map_err(|_| match RESERVED.contains(&name) {
            true => {
                format!("{} are names of the state folder's own; add a word", RESERVED.join(", "))
            }
            false => String::new(),
        })
    },
};

/// The server.
pub(super) const HOST: Form<HostAddr> = Form {
    expected: "local, or a host like deploy@gpu-1.example.com",
    parse: |value| HostAddr::from_str(text(value)?).map_err(|error| error.reason.to_owned()),
};

/// Hosts on the way to the server.
pub(super) const JUMP: Form<String> = Form {
    expected: "a host to jump through, like ops@bastion.example.com:2222, several with commas",
    parse: |value| {
        let jump = text(value)?;
        check_jump(jump).map_err(|error| error.reason.to_owned())?;
        Ok(jump.to_owned())
    },
};

/// A model's name or path; it becomes a word of the command, where a leading dash would make it a flag.
pub(super) const MODEL: Form<String> = Form {
    expected: "a model name or path, like Qwen/Qwen2.5-32B-Instruct",
    parse: |value| {
        if value.as_str().is_some_and(|model| model.contains('$')) {
            return Err("nothing is put in for a `$` here: a workflow gives the model by the input `model`, a terminal by --model".to_owned());
        }
        // Its folder is another one on the server, and no shell knows a home.
        if value
            .as_str()
            .is_some_and(|model| ["./", "../", "~"].iter().any(|it| model.starts_with(it)))
        {
            return Err("write the whole path on the server, from / on".to_owned());
        }
        plain(value, |model| !model.starts_with('-') && model.trim() == model)
    },
};

/// A commit, tag or branch of the weights.
pub(super) const MODEL_REVISION: Form<String> = Form {
    expected: "a commit of the weights, like 5ede1c97bbab6ce5cda5812749b4c0bdf79b18dd",
    parse: |value| {
        plain(value, |revision| {
            !revision.starts_with('-') && !revision.contains(char::is_whitespace)
        })
    },
};

/// A TCP port.
pub(super) const PORT: Form<Port> = Form {
    expected: "a port from 1 to 65535, like 8002",
    parse: |value| {
        if value.as_str().is_some_and(|text| text.parse::<u16>().is_ok()) {
            return Err("write the number without quotes".to_owned());
        }
        let port = value.as_u64().and_then(|port| u16::try_from(port).ok());
        port.filter(|port| *port != 0).map(Port).ok_or_else(String::new)
    },
};

/// One GPU.
pub(super) const GPU: Form<Gpu> = Form {
    expected: "a GPU's index like 0, or its UUID like GPU-8932f937-d72c-4106-c12f-20bd9faed9f6 (see nvidia-smi -L)",
    parse: |value| {
        if let Some(index) = value.as_u64().and_then(|index| u32::try_from(index).ok()) {
            return Ok(Gpu::Index(index));
        }
        let uuid = value.as_str().ok_or_else(String::new)?;
        if uuid.parse::<u32>().is_ok() {
            return Err("write the index without quotes".to_owned());
        }
        // `MIG-GPU-<uuid>/1/2` is how drivers before R470 name MIG devices (NVIDIA MIG user guide).
        let rest =
            uuid.strip_prefix("GPU-").or_else(|| uuid.strip_prefix("MIG-")).unwrap_or_default();
        let known = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '/';
        if rest.is_empty() || !rest.chars().all(known) {
            return Err(String::new());
        }
        Ok(Gpu::Uuid(uuid.to_owned()))
    },
};

/// An image of a container.
pub(super) const IMAGE: Form<String> = Form {
    expected: "an image like vllm/vllm-openai:v0.33.0, or one by its digest",
    parse: |value| {
        plain(value, |image| {
            !image.starts_with('-')
                && image.chars().all(|c| c.is_ascii_alphanumeric() || "/._:@-".contains(c))
        })
    },
};

/// A user of the server.
pub(super) const USER: Form<String> = Form {
    expected: "a user name of the server, like llm",
    parse: |value| {
        plain(value, |user| {
            user.len() <= 32
                && user.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && user.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
        })
    },
};

/// The name of an environment variable.
pub(super) const VARIABLE: Form<String> = Form {
    expected: "the name of an environment variable, like HF_TOKEN",
    parse: |value| {
        plain(value, is_variable_name).map_err(|hint| match value.as_str() {
            Some(text) if text.contains('=') => {
                "write the name alone: its value comes from the step's env".to_owned()
            }
            _ => hint,
        })
    },
};

/// The value of an environment variable.
pub(super) const VARIABLE_VALUE: Form<String> = Form {
    expected: "a text, in quotes if it looks like a number, like \"1\"",
    parse: |value| match text(value)? {
        text if text.contains('\0') => Err(String::new()),
        text => Ok(text.to_owned()),
    },
};

/// Longest bound that can be set: clocks and timers stay far from their ends.
pub(super) const LONGEST: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// A bound that waits at least a moment.
pub(super) const BOUND: Form<Duration> = Form {
    expected: "a duration from 1s to 30d, like 90s, 20m or 1h30m",
    parse: |value| duration(value, Duration::from_secs(1)),
};

/// A time that may be nothing.
pub(super) const TIME: Form<Duration> = Form {
    expected: "a duration from 0s to 30d, like 90s, 20m or 1h30m",
    parse: |value| duration(value, Duration::ZERO),
};

/// Units of sizes, as disks are sold in.
const UNITS: [(&str, u64); 3] =
    [("TB", 1_000_000_000_000), ("GB", 1_000_000_000), ("MB", 1_000_000)];

/// A size in bytes.
pub(super) const SIZE: Form<u64> = Form {
    expected: "a size in MB, GB or TB, like 70GB",
    parse: |value| {
        if let Value::Number(number) = value {
            return Err(format!("write `{number}GB` for gigabytes"));
        }
        let text = text(value)?.trim();
        let of = |(unit, bytes): (&str, u64)| {
            let number: f64 = text.strip_suffix(unit)?.trim_end().parse().ok()?;
            (number.is_finite() && number > 0.0).then_some((number * bytes as f64) as u64)
        };
        UNITS.into_iter().find_map(of).ok_or_else(String::new)
    },
};

/// A path on the server. It travels there inside a fixed command line, hence the few characters.
pub(super) const PATH: Form<PathBuf> = Form {
    expected: "an absolute path of letters, digits and _./@+,:=-, like /etc/nginx/conf.d/llm.conf",
    parse: |value| {
        let known = |c: char| c.is_ascii_alphanumeric() || "_./@+,:=-".contains(c);
        plain(value, |path| path.starts_with('/') && path.chars().all(known)).map(PathBuf::from)
    },
};

/// The name of an upstream block.
pub(super) const UPSTREAM: Form<String> = Form {
    expected: "the name of an upstream block, like llm",
    parse: |value| {
        plain(value, |name| name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c)))
    },
};

/// A word of a command.
pub(super) const WORD: Form<String> = Form {
    expected: "a word in quotes, like \"--port\"",
    parse: |value| match text(value)? {
        word if word.contains('\0') => Err(String::new()),
        word => Ok(word.to_owned()),
    },
};

/// A URL that a plain HTTP request can be sent to.
pub(super) const URL: Form<String> = Form {
    expected: "an http:// URL that leads through nginx, like http://127.0.0.1:80/v1/models",
    parse: |value| {
        let url = text(value)?;
        if url.starts_with("https://") {
            return Err(
                "nginx is asked without TLS: give a plain http listener on the loopback".to_owned()
            );
        }
        let parsed = parsed(url)?;
        let plain = parsed.scheme() == "http"
            && parsed.username().is_empty()
            && parsed.password().is_none();
        if plain && parsed.has_host() { Ok(url.to_owned()) } else { Err(String::new()) }
    },
};

/// A URL that customers call.
pub(super) const PUBLIC_URL: Form<String> = Form {
    expected: "an http:// or https:// URL as customers call it, like https://llm.example.com/v1/models",
    parse: |value| {
        let url = text(value)?;
        let parsed = parsed(url)?;
        if !parsed.username().is_empty() || parsed.password().is_some() {
            return Err("name the variable that holds the key as verify.api_key_env".to_owned());
        }
        let known = ["http", "https"].contains(&parsed.scheme()) && parsed.has_host();
        if known { Ok(url.to_owned()) } else { Err(String::new()) }
    },
};

/// A URL in ASCII: what is not can be written so, and of a host name only the DNS knows how.
fn parsed(url: &str) -> Result<reqwest::Url, String> {
    let authority = url.split_once("://").map_or("", |(_, rest)| rest);
    let authority = authority.split(['/', '?', '#']).next().unwrap_or_default();
    if !url.is_ascii() || authority.contains('%') {
        return Err("write the host name in ASCII, as the DNS has it: xn--bcher-kva.example, and of a path each other byte as %XX".to_owned());
    }
    reqwest::Url::parse(url).map_err(|_| String::new())
}

/// The value of a `Host` header.
pub(super) const HOST_HEADER: Form<String> = Form {
    expected: "a host name, like llm.example.com",
    parse: |value| {
        plain(value, |host| host.chars().all(|c| c.is_ascii_alphanumeric() || ".-:[]_".contains(c)))
    },
};

/// A text that is not empty, has no control characters and passes `check`.
pub(super) fn plain(value: &Value, check: impl Fn(&str) -> bool) -> Result<String, String> {
    let text = text(value)?;
    if !text.is_empty() && !text.contains(char::is_control) && check(text) {
        Ok(text.to_owned())
    } else {
        Err(String::new())
    }
}

fn text(value: &Value) -> Result<&str, String> {
    match value {
        Value::String(text) => Ok(text),
        Value::Number(_) | Value::Bool(_) => Err("put it in quotes".to_owned()),
        Value::Mapping(map) => Err(token(map).unwrap_or_default()),
        _ => Err(String::new()),
    }
}

/// In a list of words, YAML reads `{port}` without quotes as a mapping of a key without a value.
fn token(map: &Mapping) -> Option<String> {
    let (Some((Value::String(name), Value::Null)), 1) = (map.iter().next(), map.len()) else {
        return None;
    };
    Some(format!("put it in quotes: \"{{{name}}}\""))
}

fn duration(value: &Value, shortest: Duration) -> Result<Duration, String> {
    let number = match value {
        Value::Number(number) => Some(number.to_string()),
        Value::String(text) if text.parse::<f64>().is_ok() => Some(text.clone()),
        _ => None,
    };
    if let Some(number) = number {
        return Err(format!("write `{number}s` for seconds"));
    }
    let parsed = humantime::parse_duration(text(value)?).map_err(|_| String::new())?;
    if (shortest..=LONGEST).contains(&parsed) { Ok(parsed) } else { Err(String::new()) }
}
