//! Standard output: JSON, a line for each value, and what an envelope carries as a part of it.

use std::{
    io::{self, Write},
    sync::Arc,
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use nestling::{Codec, Envelope, Headers};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use tokio::sync::Mutex;

/// Standard output, to which lines are written whole and in the order in which they were given.
#[derive(Clone, Debug, Default)]
pub(crate) struct Output {
    turn: Arc<Mutex<()>>,
}

impl Output {
    /// Writes a JSON text as one line, and waits until whoever reads it has taken it.
    pub(crate) async fn line(&self, json: &str) -> io::Result<()> {
        let mut line = one_line(json);
        line.push('\n');
        let turn = Arc::clone(&self.turn).lock_owned().await;
        let write = move || {
            // For as long as it takes, even if nobody waits for it any more.
            let _turn = turn;
            let mut stdout = io::stdout().lock();
            stdout.write_all(line.as_bytes())?;
            stdout.flush()
        };
        tokio::task::spawn_blocking(write)
            .await
            .map_err(io::Error::other)?
    }
}

/// What an envelope carries, as it is printed: a payload that is not JSON is text or base64 instead.
#[derive(Serialize)]
pub(crate) struct Carried<'a> {
    #[serde(serialize_with = "as_map")]
    headers: &'a Headers,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
}

impl<'a> Carried<'a> {
    pub(crate) fn by(envelope: &'a Envelope) -> Self {
        let headers = &envelope.headers;
        let payload = &*envelope.payload;
        let json = match (Codec::of(headers), payload) {
            (Ok(Codec::Json | Codec::Text), b"") => Some(RawValue::NULL),
            // Of text nobody knows whether `42` is a number.
            (Ok(Codec::Json), json) | (Ok(Codec::Text), json @ [b'{' | b'[', ..]) => {
                serde_json::from_slice(json).ok()
            }
            _ => None,
        };
        let text = std::str::from_utf8(payload).ok();
        Self {
            headers,
            payload: json,
            text: text.filter(|_| json.is_none()),
            base64: (json.is_none() && text.is_none()).then(|| BASE64.encode(payload)),
        }
    }
}

fn as_map<S: Serializer>(headers: &Headers, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(headers.iter().map(|(name, value)| (&**name, &**value)))
}

/// Line breaks in a JSON text are between its tokens: those in its strings are escaped.
fn one_line(json: &str) -> String {
    json.replace(['\n', '\r'], "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_line_breaks_are_taken_out() {
        let pretty = "{\r\n  \"a\\n\": [1.50,\n 2e1]\n}";
        assert_eq!(one_line(pretty), "{  \"a\\n\": [1.50, 2e1]}");
    }
}
