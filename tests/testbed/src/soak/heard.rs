//! What a runner has heard of its swap, held against the server's own log: each event once, in its turn, and none left out.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Events as JSON, one a line; by their number. The last line may be half of one.
fn numbered(text: &[u8]) -> Result<Vec<(u64, Value)>> {
    let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(&[][..], |end| &text[..end]);
    let mut events = Vec::new();
    for line in whole.split(|byte| *byte == b'\n') {
        // Half of a line is what an agent that was killed has left in its log.
        let Ok(mut event) = serde_json::from_slice::<Value>(line) else { continue };
        let is_other = event.get("frame").is_some_and(|frame| frame != "event");
        if let Some(frame) = event.as_object_mut().filter(|_| !is_other) {
            frame.remove("frame");
            let number = event["seq"].as_u64().with_context(|| format!("no number in {event}"))?;
            events.push((number, event));
        }
    }
    Ok(events)
}

/// Holds the frames that a runner printed against the log of the swap that they are about; says what the last event was.
///
/// A machine that lost its power may have lost the end of its log: what was heard of that is in no log any more.
///
/// # Errors
/// If an event came twice, out of turn or as another one, or was passed over.
pub(super) fn last(
    printed: &[u8],
    log_of: impl Fn(&str) -> Option<Vec<u8>>,
) -> Result<Option<String>> {
    let heard = numbered(printed)?;
    let Some((_, newest)) = heard.last() else { return Ok(None) };
    for pair in heard.windows(2) {
        let [(one, _), (next, _)] = pair else { continue };
        ensure!(one < next, "event {next} was heard after event {one}");
    }
    let swap = newest["swap"].as_str().unwrap_or_default().to_owned();
    let log = log_of(&swap).with_context(|| format!("no log of {swap}"))?;
    let (until, kind) = (newest["seq"].as_u64(), newest["kind"]["event"].as_str());
    let heard: BTreeMap<u64, &Value> =
        heard.iter().map(|(number, event)| (*number, event)).collect();
    for (number, written) in numbered(&log)? {
        if Some(number) > until {
            break;
        }
        let told = heard.get(&number);
        let told = told.with_context(|| format!("event {number} was never heard: {written}"))?;
        ensure!(**told == written, "event {number} was heard as {told}, and is {written}");
    }
    Ok(kind.map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(seq: u64, kind: &str) -> String {
        format!(r#"{{"v":1,"swap":"s-1","seq":{seq},"kind":{{"event":"{kind}"}}}}"#)
    }

    /// Of a log with these events, these are heard.
    fn held(log: &[u64], heard: &[u64]) -> Result<Option<String>> {
        let line = |seq: &u64| event(*seq, "progress") + "\n";
        let log: String = log.iter().map(line).collect();
        let frame = |seq: &u64| line(seq).replacen('{', r#"{"frame":"event","#, 1);
        let heard: String = heard.iter().map(frame).collect();
        let other = "{\"frame\":\"accepted\",\"swap\":\"s-1\"}\n";
        let printed = format!("{other}{heard}{{\"frame\":\"ev");
        last(printed.as_bytes(), |_| Some((log.clone() + "{\"v\":1,").into()))
    }

    #[test]
    fn every_event_is_heard_once_and_in_its_turn() {
        assert_eq!(held(&[1, 2, 3], &[]).unwrap(), None);
        assert_eq!(held(&[1, 2, 3], &[1, 2]).unwrap().as_deref(), Some("progress"));
        assert_eq!(held(&[1, 2, 12], &[1, 2, 3, 12]).unwrap().as_deref(), Some("progress"));
        for (heard, why) in [
            (&[1, 3][..], "event 2 was never heard"),
            (&[2, 3], "event 1 was never heard"),
            (&[1, 2, 2, 3], "event 2 was heard after event 2"),
            (&[1, 3, 2], "event 2 was heard after event 3"),
        ] {
            let said = held(&[1, 2, 3], heard).unwrap_err().to_string();
            assert!(said.contains(why), "{said}");
        }
    }

    #[test]
    fn an_event_is_heard_as_it_was_written() {
        let printed = event(1, "closed").replacen('{', r#"{"frame":"event","#, 1) + "\n";
        let said = last(printed.as_bytes(), |_| Some((event(1, "progress") + "\n").into()))
            .unwrap_err()
            .to_string();
        assert!(said.contains("event 1 was heard as"), "{said}");
    }
}
