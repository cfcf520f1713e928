//! Judges an answer: whole, truncated, or truncated and dressed up as success.

use serde_json::Value;

use super::fault::{Fault, Mishap};
use super::http::Answer;

/// What an answer has to be.
#[derive(Debug, Clone)]
pub(super) struct Expected {
    /// The name that was asked for; answers repeat it.
    pub(super) model: String,
    /// `max_tokens` of the request.
    pub(super) tokens: u64,
}

impl Expected {
    /// The `system_fingerprint` of a good whole answer.
    pub(super) fn judge(&self, answer: &Answer) -> Result<String, Mishap> {
        good_status(answer)?;
        let body: Value = serde_json::from_slice(&answer.body)
            .map_err(|error| malformed(format!("{error}: {}", answer.quote())))?;
        let tokens = body["usage"]["completion_tokens"].as_u64();
        let tokens = tokens.ok_or_else(|| malformed(format!("no usage: {}", answer.quote())))?;
        let fingerprint = self.fingerprint(&body)?;
        self.finished(body["choices"][0]["finish_reason"].as_str(), tokens)?;
        Ok(fingerprint)
    }

    fn fingerprint(&self, body: &Value) -> Result<String, Mishap> {
        if body["model"] != self.model.as_str() {
            return Err(malformed(format!(
                "an answer of model {}, not {}",
                body["model"], self.model
            )));
        }
        let fingerprint = body["system_fingerprint"].as_str();
        fingerprint
            .map(str::to_owned)
            .ok_or_else(|| malformed(format!("no system_fingerprint: {body}")))
    }

    fn finished(&self, reason: Option<&str>, tokens: u64) -> Result<(), Mishap> {
        match reason {
            Some("stop") => Ok(()),
            Some("length") if tokens == self.tokens => Ok(()),
            Some("length") => Err(Mishap::new(
                Fault::Truncated,
                format!("{tokens} tokens of {}, and yet finish_reason \"length\"", self.tokens),
            )),
            Some("abort") => Err(Mishap::new(
                Fault::Aborted,
                format!("finish_reason \"abort\" after {tokens} of {}", self.tokens),
            )),
            other => Err(malformed(format!("finish_reason {other:?}"))),
        }
    }
}

/// A stream of server-sent events, judged as it comes.
#[derive(Debug)]
pub(super) struct EventStream {
    expected: Expected,
    pending: Vec<u8>,
    fingerprint: Option<String>,
    tokens: u64,
    finish: Option<String>,
    done: bool,
    /// The first thing that was wrong with an event.
    wrong: Option<Mishap>,
}

impl EventStream {
    /// Nothing has come yet.
    pub(super) fn new(expected: Expected) -> Self {
        Self {
            expected,
            pending: Vec::new(),
            fingerprint: None,
            tokens: 0,
            finish: None,
            done: false,
            wrong: None,
        }
    }

    /// Takes the next bytes of the body.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
        while let Some(end) = self.pending.windows(2).position(|window| window == b"\n\n") {
            let event: Vec<u8> = self.pending.drain(..end + 2).collect();
            if let Err(mishap) = self.event(String::from_utf8_lossy(&event).trim_end()) {
                self.wrong.get_or_insert(mishap);
            }
        }
    }

    /// Whether the replica has begun to answer.
    pub(super) fn has_begun(&self) -> bool {
        self.fingerprint.is_some()
    }

    /// The `system_fingerprint` of a good stream that has ended as HTTP wants it.
    pub(super) fn judge(self, answer: &Answer) -> Result<String, Mishap> {
        good_status(answer)?;
        if let Some(wrong) = self.wrong {
            return Err(wrong);
        }
        if !self.done {
            return Err(Mishap::new(
                Fault::NoDone,
                format!("after {} of {} tokens", self.tokens, self.expected.tokens),
            ));
        }
        self.expected.finished(self.finish.as_deref(), self.tokens)?;
        self.fingerprint.ok_or_else(|| malformed("a stream without an event"))
    }

    fn event(&mut self, event: &str) -> Result<(), Mishap> {
        let data =
            event.strip_prefix("data: ").ok_or_else(|| malformed(format!("event {event:?}")))?;
        if self.done {
            return Err(malformed(format!("after [DONE]: {data}")));
        }
        if data == "[DONE]" {
            self.done = true;
            return Ok(());
        }
        let body: Value =
            serde_json::from_str(data).map_err(|error| malformed(format!("{error}: {data}")))?;
        let fingerprint = self.expected.fingerprint(&body)?;
        let first = self.fingerprint.get_or_insert_with(|| fingerprint.clone());
        if *first != fingerprint {
            return Err(malformed(format!(
                "the stream began on {first} and went on on {fingerprint}"
            )));
        }
        let choice = &body["choices"][0];
        let text = choice["text"]
            .as_str()
            .or_else(|| choice["delta"]["content"].as_str())
            .unwrap_or_default();
        self.tokens += u64::from(!text.is_empty());
        if let Some(finish) = choice["finish_reason"].as_str() {
            self.finish = Some(finish.to_owned());
        }
        Ok(())
    }
}

fn good_status(answer: &Answer) -> Result<(), Mishap> {
    match answer.status {
        200 => Ok(()),
        500..=599 => {
            Err(Mishap::new(Fault::ServerError, format!("{}: {}", answer.status, answer.quote())))
        }
        _ => Err(Mishap::new(Fault::OtherStatus, format!("{}: {}", answer.status, answer.quote()))),
    }
}

fn malformed(detail: impl std::fmt::Display) -> Mishap {
    Mishap::new(Fault::Malformed, detail)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const FINGERPRINT: &str = "vllm-0-1";

    fn expected() -> Expected {
        Expected { model: "chat".to_owned(), tokens: 2 }
    }

    fn answer(status: u16, body: &str) -> Answer {
        Answer { status, headers: Vec::new(), body: body.as_bytes().to_vec() }
    }

    fn whole(finish: &str, tokens: u64) -> Value {
        json!({"model": "chat", "system_fingerprint": FINGERPRINT, "usage": {"completion_tokens": tokens},
               "choices": [{"finish_reason": finish}]})
    }

    fn chunk(text: &str, finish: Option<&str>) -> String {
        let body = json!({"model": "chat", "system_fingerprint": FINGERPRINT,
                          "choices": [{"text": text, "finish_reason": finish}]});
        format!("data: {body}\n\n")
    }

    fn judged(stream: &str) -> Result<String, Fault> {
        let mut events = EventStream::new(expected());
        // Byte by byte: events need not come in one piece.
        stream.as_bytes().iter().for_each(|byte| events.feed(&[*byte]));
        events.judge(&answer(200, "")).map_err(|mishap| mishap.fault)
    }

    #[test]
    fn tells_whole_answers_from_lost_ones() {
        let judged = |status, body: &str| {
            expected().judge(&answer(status, body)).map_err(|mishap| mishap.fault)
        };
        assert_eq!(judged(200, &whole("length", 2).to_string()), Ok(FINGERPRINT.to_owned()));
        assert_eq!(judged(200, &whole("stop", 1).to_string()), Ok(FINGERPRINT.to_owned()));
        assert_eq!(judged(200, &whole("length", 1).to_string()), Err(Fault::Truncated));
        assert_eq!(judged(200, &whole("abort", 1).to_string()), Err(Fault::Aborted));
        assert_eq!(judged(200, "{}"), Err(Fault::Malformed));
        assert_eq!(
            judged(200, &whole("length", 2).to_string().replace("chat", "other")),
            Err(Fault::Malformed)
        );
        assert_eq!(judged(502, "<html>"), Err(Fault::ServerError));
        assert_eq!(judged(404, "{}"), Err(Fault::OtherStatus));
    }

    #[test]
    fn tells_whole_streams_from_lost_ones() {
        const DONE: &str = "data: [DONE]\n\n";
        let good = [&chunk(" a", None), &chunk(" b", Some("length")), DONE].concat();
        assert_eq!(judged(&good), Ok(FINGERPRINT.to_owned()));
        assert_eq!(judged(good.trim_end_matches(DONE)), Err(Fault::NoDone));
        assert_eq!(
            judged(&[&chunk(" a", None), &chunk("", Some("abort")), DONE].concat()),
            Err(Fault::Aborted)
        );
        assert_eq!(judged(&[&chunk(" a", Some("length")), DONE].concat()), Err(Fault::Truncated));
        assert_eq!(judged(&[&chunk(" a", None), DONE].concat()), Err(Fault::Malformed));
        assert_eq!(judged(&(good + &chunk(" c", None))), Err(Fault::Malformed));
        let another = chunk(" b", Some("length")).replace(FINGERPRINT, "vllm-0-2");
        assert_eq!(judged(&[&chunk(" a", None), &another, DONE].concat()), Err(Fault::Malformed));
    }
}
