//! Names and identities that travel between runner, agent, journal and people.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A name that was refused, with what would have been accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a {what}: {accepted}")]
pub struct InvalidName {
    /// What the name is for: `service`, `slot`, `swap id`.
    pub what: &'static str,
    /// The value as given.
    pub value: String,
    /// The accepted form, in words.
    pub accepted: &'static str,
}

/// Lower-case letters, digits and inner dashes: safe as a folder, a unit name and an event field.
fn is_plain(value: &str, longest: usize) -> bool {
    !value.is_empty()
        && value.len() <= longest
        && value.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !value.starts_with('-')
        && !value.ends_with('-')
}

/// Names of folders and files that lie beside those of the services: a service of such a name would be mistaken for them.
pub const RESERVED: [&str; 3] = ["bin", "claims", "key"];

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $longest:literal, $reserved:expr, $accepted:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(value: &str) -> Result<Self, InvalidName> {
                let reserved: &[&str] = &$reserved;
                if is_plain(value, $longest) && !reserved.contains(&value) {
                    Ok(Self(value.to_owned()))
                } else {
                    Err(InvalidName { what: $what, value: value.to_owned(), accepted: $accepted })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(value: String) -> Result<Self, InvalidName> {
                value.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// What clients call: one upstream, one public model name.
    ServiceName,
    "service",
    40,
    RESERVED,
    "1 to 40 of a-z, 0-9 and inner dashes, like chat or code-assist"
);
name!(
    /// A fixed place for a replica: port + GPU set.
    SlotName,
    "slot",
    20,
    [],
    "1 to 20 of a-z, 0-9 and inner dashes, like a or b"
);
name!(
    /// One attempt to change what serves, or one rollback of it.
    SwapId,
    "swap id",
    60,
    [],
    "what a swap printed as its id, like s-20261123-091500-4f1c"
);

/// A TCP port, 1 to 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Port(pub u16);

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A process that can't be confused with a later one of the same pid.
///
/// `start` is field 22 of `/proc/PID/stat`: clock ticks after boot (proc(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    /// Process id.
    pub pid: i32,
    /// Start time in clock ticks after boot.
    pub start: u64,
}

impl ProcessId {
    /// A process that is not there: one of another boot, say.
    pub const GONE: Self = Self { pid: 0, start: 0 };
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pid.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        for good in ["chat", "a", "code-assist-2"] {
            assert_eq!(good.parse::<ServiceName>().map(|n| n.to_string()), Ok(good.to_owned()));
        }
        for bad in ["", "Chat", "-a", "a-", "a/b", "a b", "..", &"x".repeat(41)] {
            assert!(bad.parse::<ServiceName>().is_err(), "{bad:?}");
        }
    }
}
