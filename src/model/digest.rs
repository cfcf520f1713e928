//! How a plan is named, so that it can be approved and recognised, and so that a refusal can say what is different.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::ids::InvalidName;

/// The digest of a plan to leave everything as it is.
pub const UNCHANGED: &str = "unchanged";

/// Hex digits of a digest after its kind.
const WHOLE_DIGITS: usize = 12;

/// Hex digits of each part: one byte, which misses one of 256 differences and makes eight parts no longer than a line.
const PART_DIGITS: usize = 2;

/// A part of a plan whose difference is told by itself. Together they are the whole plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Model, commit of the weights and engine.
    Model,
    /// argv and user.
    Command,
    /// Variables, and the names of the secret ones.
    Environment,
    /// Image and options of `docker run`.
    Image,
    /// Everything else in the configuration.
    Rest,
    /// The values of the secret variables.
    Secrets,
    /// What serves before.
    Incumbent,
    /// Strategy, and the steps that move traffic.
    Steps,
}

impl Part {
    /// Each of them, in the order in which a digest has them.
    pub const ALL: [Self; 8] = [
        Self::Model,
        Self::Command,
        Self::Environment,
        Self::Image,
        Self::Rest,
        Self::Secrets,
        Self::Incumbent,
        Self::Steps,
    ];

    /// How many of them a specification alone has: the first ones.
    pub const OF_OUTLINE: usize = 5;

    /// How it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Model => "the model",
            Self::Command => "the command",
            Self::Environment => "the environment",
            Self::Image => "the image",
            Self::Rest => "the rest of the configuration",
            Self::Secrets => "the value of a secret",
            Self::Incumbent => "what serves",
            Self::Steps => "the list of steps",
        }
    }
}

/// One byte of a hash of each part, as hex digits in the order of [`Part::ALL`].
///
/// From the wire it may be anything: what it does not have is compared with nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Parts(String);

impl Parts {
    /// Whether a part is known, and by this.
    pub fn has(&self, part: Part, byte: u8) -> bool {
        self.of(part) == Some(&format!("{byte:02x}"))
    }

    /// The digits of a part, if they are known.
    pub fn of(&self, part: Part) -> Option<&str> {
        let from = Part::ALL.iter().position(|other| *other == part)? * PART_DIGITS;
        self.0.get(from..from + PART_DIGITS)
    }

    /// The parts that are surely others in the other plan.
    pub fn different(&self, other: &Self) -> Vec<Part> {
        let differs = |part: &Part| matches!((self.of(*part), other.of(*part)), (Some(one), Some(two)) if one != two);
        Part::ALL.into_iter().filter(differs).collect()
    }
}

impl FromIterator<u8> for Parts {
    fn from_iter<I: IntoIterator<Item = u8>>(bytes: I) -> Self {
        Self(bytes.into_iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// How a plan is named when it is approved: `p-…` of a plan made on the server, `o-…` of an outline, `unchanged` where nothing
/// had to be done. The first 12 digits are of the whole plan, and what may follow a second `-` of its parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PlanDigest(String);

impl PlanDigest {
    /// The name of a plan by the digest of the whole, and by its parts where they are known.
    pub fn new(whole: &str, parts: Option<&Parts>) -> Self {
        match parts {
            Some(Parts(parts)) => Self(format!("{whole}-{parts}")),
            None => Self(whole.to_owned()),
        }
    }

    /// Whether it names an outline, which knows the specification alone.
    pub fn is_of_outline(&self) -> bool {
        self.0.starts_with("o-")
    }

    /// Whether nothing had to be done when it was made.
    pub fn is_unchanged(&self) -> bool {
        self.0 == UNCHANGED
    }

    /// The digest of the whole plan: by it alone plans are the same or not.
    pub fn whole(&self) -> &str {
        self.split().0
    }

    /// What its parts are known by; `None` of earlier releases' digests.
    pub fn parts(&self) -> Option<Parts> {
        self.split().1.map(|parts| Parts(parts.to_owned()))
    }

    fn split(&self) -> (&str, Option<&str>) {
        let end = self.0.char_indices().filter(|(_, c)| *c == '-').nth(1).map(|(at, _)| at);
        end.map_or((&self.0, None), |at| (&self.0[..at], Some(&self.0[at + 1..])))
    }
}

impl FromStr for PlanDigest {
    type Err = InvalidName;

    fn from_str(value: &str) -> Result<Self, InvalidName> {
        let is_hex = |digits: &str, count: usize| {
            digits.len() == count && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        let is_digest = |kind: &str, parts: usize| {
            let Some(digits) = value.strip_prefix(kind) else { return false };
            let (whole, rest) =
                digits.split_once('-').map_or((digits, None), |(a, b)| (a, Some(b)));
            is_hex(whole, WHOLE_DIGITS) && rest.is_none_or(|rest| is_hex(rest, parts * PART_DIGITS))
        };
        let is_one = value == UNCHANGED
            || is_digest("p-", Part::ALL.len())
            || is_digest("o-", Part::OF_OUTLINE);
        if is_one {
            return Ok(Self(value.to_owned()));
        }
        Err(InvalidName { what: "plan digest", value: value.to_owned(), accepted: ACCEPTED })
    }
}

/// What a digest looks like.
const ACCEPTED: &str =
    "what `plan` gave as its output plan-digest, like p-4f1c02a9b3d7-90d1b25c7f03a8e6";

impl fmt::Display for PlanDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_has_its_parts_all_or_none() {
        for (text, whole, has_parts) in [
            ("p-4f1c02a9b3d7", "p-4f1c02a9b3d7", false),
            ("p-4f1c02a9b3d7-0123456789abcdef", "p-4f1c02a9b3d7", true),
            ("o-4f1c02a9b3d7-0123456789", "o-4f1c02a9b3d7", true),
            (UNCHANGED, UNCHANGED, false),
        ] {
            let digest: PlanDigest = text.parse().unwrap();
            assert_eq!((digest.whole(), digest.parts().is_some()), (whole, has_parts));
            assert_eq!(PlanDigest::new(whole, digest.parts().as_ref()), digest);
        }
        for wrong in [
            "p-4f1c02a9b3d7-",
            "p-4f1c02a9b3d7-01",
            "p-4f1c02a9b3d7-0123456789",
            "o-4f1c02a9b3d7-0123456789abcdef",
            "p-4f1c02a9b3d7-0123456789abcdeF",
            "p-4f1c02a9b3d-0123456789abcdef0",
            "unchanged-0123456789abcdef",
        ] {
            assert!(wrong.parse::<PlanDigest>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn parts_are_compared_where_both_are_known() {
        let plan: Parts = (0..8).collect();
        let other: Parts = [0, 9, 2, 3, 4, 9, 6, 7].into_iter().collect();
        assert_eq!(plan.different(&other), [Part::Command, Part::Secrets]);
        assert_eq!(plan.different(&plan), []);
        let outline: Parts = [0, 9, 2, 3, 9].into_iter().collect();
        assert_eq!(plan.different(&outline), [Part::Command, Part::Rest]);
        // The wire may bring anything.
        for odd in ["", "0", "é", "0é1", "zz"] {
            assert!(plan.different(&Parts(odd.to_owned())).len() < 2, "{odd}");
        }
    }
}
