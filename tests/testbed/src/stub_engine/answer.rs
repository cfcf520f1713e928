//! The JSON of completions and chat completions, whole and in chunks.

use serde_json::{Value, json};

use super::engine::{Engine, Finish, Piece};

/// Which of the two APIs is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// `/v1/completions`
    Completion,
    /// `/v1/chat/completions`
    Chat,
}

/// What every chunk and answer carries.
#[derive(Debug, Clone)]
pub(super) struct Envelope {
    /// The API.
    pub(super) dialect: Dialect,
    /// The model's name as the client wrote it.
    pub(super) model: String,
    /// `system_fingerprint`.
    pub(super) fingerprint: String,
}

impl Envelope {
    /// For one request; a client that names no model gets the first served name.
    pub(super) fn new(dialect: Dialect, model: Option<String>, engine: &Engine) -> Self {
        let model = model.unwrap_or_else(|| engine.options.served_names().swap_remove(0));
        Self { dialect, model, fingerprint: engine.options.fingerprint() }
    }

    /// What opens a stream: only chats say who speaks before they speak.
    pub(super) fn opening(&self) -> Option<Value> {
        (self.dialect == Dialect::Chat)
            .then(|| self.wrap_chunk(json!({"role": "assistant", "content": ""}), None))
    }

    /// One piece of a stream.
    pub(super) fn chunk(&self, piece: Piece) -> Value {
        match self.dialect {
            Dialect::Completion => self.wrap(
                "text_completion",
                &json!({"text": piece.text, "finish_reason": piece.finish.map(Finish::name)}),
            ),
            Dialect::Chat => self.wrap_chunk(json!({"content": piece.text}), piece.finish),
        }
    }

    /// A whole answer, without its usage.
    pub(super) fn whole(&self, text: &str, finish: Finish) -> Value {
        match self.dialect {
            Dialect::Completion => {
                self.wrap("text_completion", &json!({"text": text, "finish_reason": finish.name()}))
            }
            Dialect::Chat => self.wrap(
                "chat.completion",
                &json!({"message": {"role": "assistant", "content": text}, "finish_reason": finish.name()}),
            ),
        }
    }

    fn wrap_chunk(&self, delta: Value, finish: Option<Finish>) -> Value {
        self.wrap(
            "chat.completion.chunk",
            &json!({"delta": delta, "finish_reason": finish.map(Finish::name)}),
        )
    }

    fn wrap(&self, object: &str, choice: &Value) -> Value {
        let mut choice = choice.clone();
        choice["index"] = json!(0);
        let id = match self.dialect {
            Dialect::Completion => "cmpl-0",
            Dialect::Chat => "chatcmpl-0",
        };
        json!({
            "id": id,
            "object": object,
            "created": 1_790_000_000,
            "model": self.model,
            "choices": [choice],
            "system_fingerprint": self.fingerprint,
        })
    }
}
