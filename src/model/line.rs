//! The lines of an answer, none of which is longer than whoever follows reads.

use serde::Serialize;
use serde_json::Value;

/// The longest line of an answer, in bytes: far above any plan or report, far below what hurts.
pub const LONGEST_LINE: usize = 4 << 20;

/// The longest request, in bytes. What it says comes back in plans and events, whose lines have room for it several times.
pub const LONGEST_REQUEST: usize = LONGEST_LINE / 4;

/// A value as a line that whoever follows can read: where it is longer than [`LONGEST_LINE`], the longest texts and lists in it
/// are cut.
///
/// # Errors
/// If it is no JSON.
pub fn line(value: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    let mut longest = LONGEST_LINE;
    while line.len() > LONGEST_LINE && longest > SHORTEST_CUT {
        longest /= 2;
        let mut value = serde_json::from_slice(&line)?;
        cut(&mut value, longest);
        line = serde_json::to_vec(&value)?;
    }
    Ok(line)
}

/// No text and no list is cut to less than this many characters or elements: what a program reads is shorter.
const SHORTEST_CUT: usize = 256;

fn cut(value: &mut Value, longest: usize) {
    match value {
        Value::String(text) => {
            if let Some((end, _)) = text.char_indices().nth(longest) {
                text.truncate(end);
                text.push('…');
            }
        }
        Value::Array(list) => {
            list.truncate(longest);
            list.iter_mut().for_each(|element| cut(element, longest));
        }
        Value::Object(map) => map.values_mut().for_each(|element| cut(element, longest)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::failure::Failure;
    use crate::model::refusal::Refusal;
    use crate::model::wire::Frame;

    /// What is read of a frame's line by whoever follows.
    fn read(frame: &Frame) -> Frame {
        let line = line(frame).unwrap();
        assert!(line.len() <= LONGEST_LINE, "{} bytes", line.len());
        serde_json::from_slice(&line).unwrap()
    }

    #[test]
    fn a_line_that_nobody_would_read_is_cut_where_it_is_longest() {
        let short = "a model".repeat(30);
        let long = "\u{1}".repeat(LONGEST_LINE);
        let failure = Failure::new(short.clone()).hint(long.clone());
        let Frame::Refused(told) = read(&Frame::Refused(Refusal::input(failure))) else { panic!() };
        assert_eq!(told.failures[0].message, short);
        let hint = told.failures[0].hints[0].strip_suffix('…').expect("it is not said");
        assert!(hint.len() > LONGEST_LINE / 24 && long.starts_with(hint), "{}", hint.len());

        let many = vec![Failure::new(short.clone()); LONGEST_LINE / short.len()];
        let refusal = Refusal { failures: many, ..Refusal::input(Failure::default()) };
        let Frame::Refused(told) = read(&Frame::Refused(refusal)) else { panic!() };
        assert!(told.failures.len() > 1000 && told.failures[0].message == short);
    }

    #[test]
    fn a_line_of_the_usual_length_is_told_whole() {
        let frame = Frame::Line { text: "x".repeat(LONGEST_REQUEST) };
        assert_eq!(line(&frame).unwrap(), serde_json::to_vec(&frame).unwrap());
    }
}
