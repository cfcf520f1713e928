//! Where in the file a setting stands: its dotted path, and the line that the path leads to.

use std::fmt;

use serde::de::{self, Deserializer as _, IgnoredAny};

/// The path of a setting: `slots.b.port`, `replica.command[2]`. Empty for the file as a whole.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Place(Vec<Segment>);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Segment {
    Key(String),
    Index(usize),
}

impl Place {
    /// The place of a key of the mapping that stands here.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        self.then(Segment::Key(key.to_owned()))
    }

    /// The place of an element, counted from 0, of the list that stands here.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        self.then(Segment::Index(index))
    }

    /// Whether this is the file as a whole.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The place of the mapping or list that this one stands in.
    #[must_use]
    pub fn parent(&self) -> Self {
        Self(self.0[..self.0.len().saturating_sub(1)].to_vec())
    }

    /// The last key of the path.
    pub fn name(&self) -> Option<&str> {
        match self.0.last() {
            Some(Segment::Key(key)) => Some(key),
            Some(Segment::Index(_)) | None => None,
        }
    }

    /// Line and column, counted from 1, where this place begins in a YAML text: its key's, or its element's.
    ///
    /// Parsed values know no lines, but the parser's errors do. So the text is parsed once more by a visitor that
    /// follows the path and fails on purpose at its end.
    pub fn position(&self, text: &str) -> Option<(usize, usize)> {
        if self.is_root() {
            return None;
        }
        let document = serde_yaml::Deserializer::from_str(text);
        match document.deserialize_any(Walk { path: &self.0 }) {
            Ok(Arrived::Past) => None,
            Err(error) => error.location().map(|at| (at.line(), at.column())),
        }
    }

    fn then(&self, segment: Segment) -> Self {
        let mut path = self.0.clone();
        path.push(segment);
        Self(path)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Key(key) if at == 0 => f.write_str(key)?,
                Segment::Key(key) => write!(f, ".{key}")?,
                Segment::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// The walk ended without meeting its end: the path is not in the text.
enum Arrived {
    Past,
}

/// Follows what is left of a path. Meeting its end is the error whose location is wanted.
struct Walk<'a> {
    path: &'a [Segment],
}

impl<'de> de::DeserializeSeed<'de> for Walk<'_> {
    type Value = Arrived;
    fn deserialize<D: de::Deserializer<'de>>(self, at: D) -> Result<Arrived, D::Error> {
        at.deserialize_any(self)
    }
}

impl<'de> de::Visitor<'de> for Walk<'_> {
    type Value = Arrived;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the rest of the path")
    }

    fn visit_none<E: de::Error>(self) -> Result<Arrived, E> {
        Ok(Arrived::Past)
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Arrived, A::Error> {
        let Some((Segment::Key(wanted), rest)) = self.path.split_first() else {
            return Err(de::Error::custom("here"));
        };
        while let Some(found) = map.next_key_seed(Key { wanted, last: rest.is_empty() })? {
            if found {
                map.next_value_seed(Walk { path: rest })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(Arrived::Past)
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Arrived, A::Error> {
        let Some((Segment::Index(wanted), rest)) = self.path.split_first() else {
            return Err(de::Error::custom("here"));
        };
        for _ in 0..*wanted {
            if list.next_element::<IgnoredAny>()?.is_none() {
                return Ok(Arrived::Past);
            }
        }
        list.next_element_seed(Walk { path: rest })?;
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Arrived::Past)
    }
}

/// One key of a mapping: whether it is the wanted one; an error if it is and the path ends with it.
struct Key<'a> {
    wanted: &'a str,
    last: bool,
}

impl<'de> de::DeserializeSeed<'de> for Key<'_> {
    type Value = bool;
    fn deserialize<D: de::Deserializer<'de>>(self, at: D) -> Result<bool, D::Error> {
        at.deserialize_str(self)
    }
}

impl de::Visitor<'_> for Key<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<bool, E> {
        match (key == self.wanted, self.last) {
            (true, true) => Err(E::custom("here")),
            (found, _) => Ok(found),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "service: chat\nslots:\n  a: { port: 1, gpus: [0] }\n  b:\n    port: 2\n    gpus:\n      - 1\n      - 2\nlist: [x,\n  y]\n";

    #[test]
    fn a_place_knows_its_line() {
        let root = Place::default();
        let b = root.key("slots").key("b");
        for (place, line) in [
            (root.key("service"), Some(1)),
            (root.key("slots"), Some(2)),
            (root.key("slots").key("a").key("gpus").index(0), Some(3)),
            (b.clone(), Some(4)),
            (b.key("port"), Some(5)),
            (b.key("gpus").index(1), Some(8)),
            (root.key("list").index(1), Some(10)),
            (root.key("list").index(2), None),
            (root.key("nowhere"), None),
            (root, None),
        ] {
            assert_eq!(place.position(TEXT).map(|(line, _)| line), line, "{place}");
        }
    }

    #[test]
    fn a_place_knows_its_column() {
        let slots = Place::default().key("slots");
        for (place, position) in [(slots.clone(), (2, 1)), (slots.key("b").key("port"), (5, 5))] {
            assert_eq!(place.position(TEXT), Some(position), "{place}");
        }
    }

    #[test]
    fn a_place_reads_as_a_dotted_path() {
        let place = Place::default().key("replica").key("command").index(2);
        assert_eq!(place.to_string(), "replica.command[2]");
        assert_eq!(place.parent().to_string(), "replica.command");
    }
}
