//! The wire of NestJS on Kafka: no envelope, a few headers, and values that are mostly text.

mod client;

use std::borrow::Cow;

use bytes::Bytes;
use bytestring::ByteString;
use rdkafka::message::{BorrowedHeaders, Header, Headers as _, OwnedHeaders};
use serde_json::value::RawValue;
use tokio::time::Instant;

pub(super) use self::client::NestClient;
use super::{
    record::{Encoded, ReplyAddress, is_internal, known},
    topics,
};
use crate::{
    envelope::{Envelope, Headers, header},
    error::RpcError,
    pattern,
    transport::{Item, Wire, nest},
};

const CORRELATION: &str = "kafka_correlationId";
const REPLY_TOPIC: &str = "kafka_replyTopic";
const REPLY_PARTITION: &str = "kafka_replyPartition";
const ERROR: &str = "kafka_nest-err";
const IS_DISPOSED: &str = "kafka_nest-is-disposed";
/// The value of the last of these: that it is there is what counts.
const DISPOSED: &[u8] = &[0];

/// What the payload of a record is whose first byte is zero, as a schema registry has them.
const BINARY: &str = "application/octet-stream";
/// What the payload of most others is.
pub(super) const TEXT: &str = "text/plain";

/// A record that is not native, taken apart. Its value is read by [`payload`] or [`Record::item`].
#[derive(Debug, Default)]
pub(super) struct Record {
    /// The headers that are part of the envelope.
    pub(super) headers: Headers,
    correlation: Option<Bytes>,
    reply_topic: Option<ByteString>,
    reply_partition: Option<i32>,
    error: Option<Bytes>,
    is_last: bool,
}

impl Record {
    pub(super) fn of(headers: &BorrowedHeaders) -> Self {
        let mut record = Self::default();
        for header in headers.iter() {
            record.add(header.key, header.value.unwrap_or_default());
        }
        record
    }

    fn add(&mut self, name: &str, value: &[u8]) {
        match name {
            CORRELATION => self.correlation = Some(Bytes::copy_from_slice(value)),
            REPLY_TOPIC => self.reply_topic = Some(text(value)),
            REPLY_PARTITION => self.reply_partition = text(value).parse().ok().filter(|n| *n >= 0),
            ERROR => self.error = Some(Bytes::copy_from_slice(value)),
            IS_DISPOSED => self.is_last = true,
            // The record's own key is meant by this name.
            header::KEY => {}
            _ => match known(name) {
                Some(name) => self.headers.set(name, text(value)),
                None => self.headers.insert(name, text(value)),
            },
        }
    }

    /// Whether its sender waits for an answer, unless an event is what it has met.
    pub(super) fn is_request(&self) -> bool {
        let asks = |correlation: &Bytes| !correlation.is_empty();
        let tells = |topic: &ByteString| !topic.is_empty();
        self.correlation.as_ref().is_some_and(asks) && self.reply_topic.as_ref().is_some_and(tells)
    }

    /// Where the answer to a request goes, if there can be such a place.
    pub(super) fn reply_address(&mut self) -> Option<ReplyAddress> {
        Some(ReplyAddress {
            wire: Wire::NestText,
            topic: self
                .reply_topic
                .take()
                .filter(|topic| topics::is_legal(topic))?,
            partition: self.reply_partition,
            correlation: self.correlation.take()?,
        })
    }

    /// The call that this replies to.
    pub(super) fn call(&self, ids: &nest::CallIds) -> Option<u64> {
        ids.parse_text(self.correlation.as_deref()?)
    }

    /// What this replies with.
    ///
    /// A null value that ends the call is its end only: whether it is also a value, the wire does
    /// not say.
    pub(super) fn item(self, value: Option<&[u8]>) -> Item {
        if let Some(error) = self.error {
            return Item::Fail(failure(&error));
        }
        let payload = Bytes::copy_from_slice(value.unwrap_or_default());
        match (value, self.is_last) {
            (_, false) => Item::Value(payload),
            (Some(_), true) => Item::Last(payload),
            (None, true) => Item::End,
        }
    }
}

/// Header values are text or bytes to NestJS, and text to us.
fn text(value: &[u8]) -> ByteString {
    ByteString::from(&*String::from_utf8_lossy(value))
}

fn failure(error: &[u8]) -> RpcError {
    let text = String::from_utf8_lossy(error);
    let json = match text.as_bytes() {
        [b'{' | b'[', ..] => serde_json::from_str(&text).ok(),
        _ => None,
    };
    nest::read_failure(&json.unwrap_or_else(|| text.into()))
}

/// The payload of a record with this value, and how it is encoded, if it is not JSON.
pub(super) fn payload(value: Option<&[u8]>) -> (Bytes, Option<&'static str>) {
    let Some(value) = value else {
        return (Bytes::new(), None);
    };
    if value.first() == Some(&0) {
        return (Bytes::copy_from_slice(value), Some(BINARY));
    }
    let text = match String::from_utf8_lossy(value) {
        Cow::Borrowed(text) => Bytes::copy_from_slice(text.as_bytes()),
        Cow::Owned(text) => Bytes::from(text),
    };
    let is_json = matches!(text.first(), Some(b'{' | b'['))
        && serde_json::from_slice::<&RawValue>(&text).is_ok();
    (text, (!is_json).then_some(TEXT))
}

/// What NestJS puts into a record for a payload in JSON: texts without quotes, numbers as
/// JavaScript prints them, nothing for null.
///
/// An object that has a `key` or a `value` is an object, and no description of a record.
pub(super) fn value(payload: &Bytes) -> Option<Bytes> {
    let json = payload.trim_ascii();
    match json.first()? {
        b'n' if json == b"null" => None,
        b'"' => match serde_json::from_slice::<String>(json) {
            Ok(text) => Some(text.into()),
            Err(_) => Some(payload.slice_ref(json)),
        },
        b'-' | b'0'..=b'9' => {
            Some(number(json).map_or_else(|| payload.slice_ref(json), Bytes::from))
        }
        _ => Some(payload.slice_ref(json)),
    }
}

/// How JavaScript prints it, where that may differ from what is there.
fn number(json: &[u8]) -> Option<String> {
    if json != b"-0" && !json.iter().any(|byte| matches!(byte, b'.' | b'e' | b'E')) {
        return None;
    }
    let number = std::str::from_utf8(json).ok()?.parse().ok()?;
    Some(pattern::number_text(number))
}

/// A request, to be answered at `address`.
pub(super) fn request(envelope: &Envelope, address: &ReplyAddress) -> Encoded {
    let mut headers = own_headers(envelope, 4);
    headers = add(headers, CORRELATION, &address.correlation);
    headers = add(headers, REPLY_TOPIC, address.topic.as_bytes());
    if let Some(partition) = address.partition {
        headers = add(headers, REPLY_PARTITION, partition.to_string().as_bytes());
    }
    Encoded {
        headers,
        payload: value(&envelope.payload),
    }
}

/// An event.
pub(super) fn event(envelope: &Envelope) -> Encoded {
    Encoded {
        headers: own_headers(envelope, 0),
        payload: value(&envelope.payload),
    }
}

/// One item of a reply.
pub(super) fn reply(correlation: &[u8], item: &Item) -> Encoded {
    let mut headers = add(OwnedHeaders::new_with_capacity(3), CORRELATION, correlation);
    if let Item::Fail(error) = item {
        let mut json = Vec::new();
        nest::write_failure(&mut json, error);
        headers = add(headers, ERROR, &json);
    }
    if !matches!(item, Item::Value(_)) {
        headers = add(headers, IS_DISPOSED, DISPOSED);
    }
    let payload = match item {
        Item::Value(payload) | Item::Last(payload) => value(payload),
        Item::End | Item::Fail(_) => None,
    };
    Encoded { headers, payload }
}

/// The answer to a request that nobody here handles.
pub(super) fn no_handler(correlation: &[u8]) -> Encoded {
    let headers = add(OwnedHeaders::new_with_capacity(2), CORRELATION, correlation);
    Encoded {
        headers: add(headers, ERROR, nest::NO_HANDLER.as_bytes()),
        payload: None,
    }
}

/// The headers of the envelope and the remaining time; its key is the record's.
fn own_headers(envelope: &Envelope, more: usize) -> OwnedHeaders {
    let headers = OwnedHeaders::new_with_capacity(envelope.headers.len() + more);
    nest::headers(envelope, Instant::now())
        .filter(|(name, _)| *name == header::DEADLINE || !is_internal(name))
        .fold(headers, |headers, (name, value)| {
            add(headers, name, value.as_bytes())
        })
}

fn add(headers: OwnedHeaders, key: &str, value: &[u8]) -> OwnedHeaders {
    headers.insert(Header {
        key,
        value: Some(value),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(headers: &OwnedHeaders) -> Record {
        Record::of(headers.as_borrowed())
    }

    #[test]
    fn a_value_is_read_as_nestjs_reads_it() {
        let check = |value: &[u8], encoding: Option<&str>| {
            assert_eq!(payload(Some(value)), (value.to_vec().into(), encoding));
        };
        for json in [
            "{}",
            "[1, {\"a\":2}]",
            "{\"pattern\":\"x\",\"data\":\"y\"}\n",
        ] {
            check(json.as_bytes(), None);
        }
        for text in ["", "42", "true", "\"quoted\"", "{bad", " {\"a\":1}", "żółć"] {
            check(text.as_bytes(), Some(TEXT));
        }
        check(b"\0\0\0\0\x01\xff", Some(BINARY));
        assert_eq!(payload(None), (Bytes::new(), None));
        assert_eq!(payload(Some(b"a\xff")), ("a\u{fffd}".into(), Some(TEXT)));
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        check(deep.as_bytes(), None);
    }

    #[test]
    fn a_value_is_written_as_nestjs_writes_it() {
        let check = |json: &'static str, expected: Option<&'static str>| {
            assert_eq!(value(&json.into()), expected.map(Bytes::from), "{json}");
        };
        check("", None);
        check("null", None);
        check("\"\"", Some(""));
        check(r#""q\"ä\u0000""#, Some("q\"ä\0"));
        check(r#""\ud800""#, Some(r#""\ud800""#));
        check("true", Some("true"));
        check("12", Some("12"));
        check("18446744073709551615", Some("18446744073709551615"));
        check("-0", Some("0"));
        check("1.0", Some("1"));
        check("1e21", Some("1e+21"));
        check("-1.5e-9", Some("-1.5e-9"));
        check(
            r#" {"key":"k","value":1} "#,
            Some(r#"{"key":"k","value":1}"#),
        );
        check("[1.0]", Some("[1.0]"));
        check("nothing", Some("nothing"));
        check("-", Some("-"));
    }

    #[test]
    fn a_request_survives_its_headers() {
        let mut envelope = Envelope::new("user.get", "{}");
        for (name, value) in [
            (header::KEY, "not sent"),
            (header::CONTENT_TYPE, "not sent"),
            ("nestling", "not sent"),
            ("x-own", "ä"),
        ] {
            envelope.headers.set(name, value);
        }
        let address = ReplyAddress {
            wire: Wire::NestText,
            topic: "user.get.reply".into(),
            partition: Some(3),
            correlation: "a-1".into(),
        };
        let mut record = read(&request(&envelope, &address).headers);
        assert_eq!(record.headers.len(), 1);
        assert_eq!(record.headers.get("x-own"), Some("ä"));
        assert!(record.is_request());
        assert_eq!(record.reply_address(), Some(address));
        assert!(!read(&event(&envelope).headers).is_request());
    }

    #[test]
    fn a_reply_survives_its_headers() {
        let ids = nest::CallIds::new();
        let error = RpcError::not_found("no such user").with_details(serde_json::json!([1]));
        for item in [
            Item::Value("1".into()),
            Item::Value(Bytes::new()),
            Item::Last("{}".into()),
            Item::End,
            Item::Fail(error),
        ] {
            let Encoded { headers, payload } = reply(ids.text(7).as_bytes(), &item);
            let record = read(&headers);
            assert_eq!(record.call(&ids), Some(7));
            assert_eq!(record.item(payload.as_deref()), item);
        }
        let Encoded { headers, payload } = no_handler(b"x");
        let record = read(&headers);
        assert_eq!((record.call(&ids), record.is_last), (None, false));
        let Item::Fail(error) = record.item(payload.as_deref()) else {
            panic!("no error");
        };
        assert_eq!(error.code, crate::error::Code::Unimplemented);
    }

    #[test]
    fn nonsense_in_headers_is_harmless() {
        let mut record = Record::default();
        assert!(!record.is_request());
        record.add(CORRELATION, b"\xff");
        record.add(REPLY_TOPIC, b"");
        assert!(!record.is_request());
        record.add(REPLY_TOPIC, b"not a topic");
        record.add(REPLY_PARTITION, b"-4");
        record.add("X-Own", b"\0\xff");
        record.add(header::KEY, b"not the key");
        assert!(record.is_request());
        assert_eq!((record.reply_partition, record.headers.len()), (None, 1));
        assert_eq!(record.headers.get("x-own"), Some("\0\u{fffd}"));
        assert_eq!(record.reply_address(), None);
        record.add(ERROR, b"{bad");
        assert_eq!(record.item(None), Item::Fail(RpcError::unknown("{bad")));
    }
}
