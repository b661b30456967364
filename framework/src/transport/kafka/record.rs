//! Between an envelope and the headers of a Kafka record.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use bytestring::ByteString;
use rdkafka::message::{BorrowedMessage, Header, Headers as _, Message as _, OwnedHeaders};
use tokio::time::Instant;

use super::{MAX_HEADERS, MAX_PAYLOAD};
use crate::{
    envelope::{Envelope, Headers, header},
    error::RpcError,
    transport::{Error, Item},
};

/// Marks a record of this wire; no NestJS application sets it.
const NATIVE: &str = "nestling";
const VERSION: &str = "1";
const REPLY_PARTITION: &str = "reply-partition";
/// What a reply is: one of the words below.
const ITEM: &str = "item";
const VALUE: &str = "value";
const LAST: &str = "last";
const END: &str = "end";
const FAIL: &str = "fail";

/// Where the replies to a request go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ReplyAddress {
    pub(super) topic: ByteString,
    pub(super) partition: Option<i32>,
    pub(super) correlation: ByteString,
}

/// The headers of a request.
pub(super) fn request_headers(envelope: &Envelope, address: &ReplyAddress) -> OwnedHeaders {
    let mut headers = start(envelope.headers.len() + 5);
    headers = add(headers, header::CORRELATION_ID, &address.correlation);
    headers = add(headers, header::REPLY_TO, &address.topic);
    if let Some(partition) = address.partition {
        headers = add(headers, REPLY_PARTITION, &partition.to_string());
    }
    if let Some(deadline) = envelope.deadline {
        let remaining = deadline
            .saturating_duration_since(Instant::now())
            .as_millis();
        headers = add(headers, header::DEADLINE, &remaining.to_string());
    }
    add_all(headers, envelope)
}

/// The headers of an event; its key is the record's.
pub(super) fn event_headers(envelope: &Envelope) -> OwnedHeaders {
    let headers = add(
        start(envelope.headers.len() + 2),
        header::PATTERN,
        &envelope.pattern,
    );
    add_all(headers, envelope)
}

/// The headers and the payload of a reply.
pub(super) fn reply(correlation: &str, item: Item) -> (OwnedHeaders, Bytes) {
    let (word, payload) = match item {
        Item::Value(payload) => (VALUE, payload),
        Item::Last(payload) => (LAST, payload),
        Item::End => (END, Bytes::new()),
        Item::Fail(error) => (FAIL, error.to_bytes()),
    };
    let headers = add(start(3), header::CORRELATION_ID, correlation);
    (add(headers, ITEM, word), payload)
}

fn start(capacity: usize) -> OwnedHeaders {
    add(OwnedHeaders::new_with_capacity(capacity), NATIVE, VERSION)
}

fn add(headers: OwnedHeaders, key: &str, value: &str) -> OwnedHeaders {
    headers.insert(Header {
        key,
        value: Some(value),
    })
}

fn add_all(headers: OwnedHeaders, envelope: &Envelope) -> OwnedHeaders {
    let ours = envelope
        .headers
        .iter()
        .filter(|(name, _)| !is_internal(name));
    ours.fold(headers, |headers, (name, value)| add(headers, name, value))
}

/// Headers that say how a record travels, and are no part of the envelope.
fn is_internal(name: &str) -> bool {
    matches!(
        name,
        NATIVE
            | ITEM
            | REPLY_PARTITION
            | header::CORRELATION_ID
            | header::REPLY_TO
            | header::DEADLINE
            | header::PATTERN
            | header::KEY
    )
}

/// Refuses what the broker would.
pub(super) fn check_size(envelope: &Envelope) -> Result<(), Error> {
    let length = envelope.payload.len();
    if length > MAX_PAYLOAD {
        return Err(Error::too_large(length, MAX_PAYLOAD));
    }
    // A length and a few bytes of framing come with each.
    let headers: usize = envelope
        .headers
        .iter()
        .map(|(name, value)| name.len() + value.len() + 16)
        .sum();
    let headers = headers + 2 * envelope.pattern.len() + 512;
    if headers > MAX_HEADERS {
        Err(Error::too_large(headers, MAX_HEADERS))
    } else {
        Ok(())
    }
}

/// A record of the native wire, taken apart.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// The headers that are part of the envelope.
    pub(super) headers: Headers,
    /// The event, on a topic of many.
    pub(super) pattern: Option<ByteString>,
    correlation: Option<ByteString>,
    reply_to: Option<ByteString>,
    reply_partition: Option<i32>,
    /// What was left of the caller's time when it was sent.
    pub(super) remaining: Option<Duration>,
    item: Option<Word>,
    native: bool,
}

#[derive(Clone, Copy, Debug)]
enum Word {
    Value,
    Last,
    End,
    Fail,
}

/// Why a record is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Foreign {
    /// It does not say that it is native; the wire of NestJS is decided on here.
    NotNative,
    /// A header is not text.
    Malformed,
}

impl Record {
    /// Reads the headers of a message.
    pub(super) fn read(message: &BorrowedMessage<'_>) -> Result<Self, Foreign> {
        let Some(headers) = message.headers() else {
            return Err(Foreign::NotNative);
        };
        // The library panics at a header whose name is not UTF-8, and names come off the wire.
        let record = catch_unwind(AssertUnwindSafe(|| {
            let mut record = Self::default();
            headers
                .iter()
                .all(|header| record.add(header.key, header.value))
                .then_some(record)
        }));
        match record {
            Ok(Some(record)) if record.native => Ok(record),
            Ok(Some(_)) => Err(Foreign::NotNative),
            Ok(None) | Err(_) => Err(Foreign::Malformed),
        }
    }

    /// Takes in one header; false when it is not text.
    fn add(&mut self, name: &str, value: Option<&[u8]>) -> bool {
        let Ok(value) = std::str::from_utf8(value.unwrap_or_default()) else {
            return false;
        };
        match name {
            NATIVE => self.native = value == VERSION,
            header::CORRELATION_ID => self.correlation = Some(value.into()),
            header::REPLY_TO => self.reply_to = Some(value.into()),
            REPLY_PARTITION => self.reply_partition = value.parse().ok().filter(|n| *n >= 0),
            header::DEADLINE => self.remaining = value.parse().ok().map(Duration::from_millis),
            header::PATTERN => self.pattern = Some(value.into()),
            header::KEY => {}
            ITEM => {
                self.item = match value {
                    VALUE => Some(Word::Value),
                    LAST => Some(Word::Last),
                    END => Some(Word::End),
                    FAIL => Some(Word::Fail),
                    _ => None,
                }
            }
            _ => match known(name) {
                Some(name) => self.headers.set(name, value),
                None => self.headers.insert(name, value),
            },
        }
        true
    }

    /// Where the replies go, if any are wanted.
    pub(super) fn reply_address(&mut self) -> Option<ReplyAddress> {
        let topic = self
            .reply_to
            .take()
            .filter(|topic| super::topics::is_legal(topic))?;
        let correlation = self.correlation.take()?;
        Some(ReplyAddress {
            topic,
            partition: self.reply_partition,
            correlation,
        })
    }

    /// The call that this replies to, if its correlation id starts with `prefix`.
    pub(super) fn call(&self, prefix: &str) -> Option<u64> {
        self.correlation
            .as_deref()?
            .strip_prefix(prefix)?
            .parse()
            .ok()
    }

    /// What this replies with.
    pub(super) fn reply(&self, payload: Bytes) -> Option<Item> {
        Some(match self.item? {
            Word::Value => Item::Value(payload),
            Word::Last => Item::Last(payload),
            Word::End => Item::End,
            Word::Fail => Item::Fail(RpcError::from_bytes(&payload)),
        })
    }
}

/// A header's name without an allocation, where it is one of the usual.
fn known(name: &str) -> Option<&'static str> {
    [
        header::CONTENT_TYPE,
        header::TRACEPARENT,
        header::TRACESTATE,
        header::ACTOR,
        header::IDEMPOTENCY_KEY,
        header::EVENT_ID,
    ]
    .into_iter()
    .find(|known| *known == name)
}

/// The payload; a record without one has an empty one.
pub(super) fn payload(message: &BorrowedMessage<'_>) -> Bytes {
    message
        .payload()
        .map(Bytes::copy_from_slice)
        .unwrap_or_default()
}

/// The key, where it is text.
pub(super) fn key(message: &BorrowedMessage<'_>) -> Option<ByteString> {
    std::str::from_utf8(message.key()?)
        .ok()
        .map(ByteString::from)
}

/// How long a record has waited: from when the broker wrote it, by the clock of this machine.
pub(super) fn waited(message: &BorrowedMessage<'_>) -> Duration {
    let written = message
        .timestamp()
        .to_millis()
        .and_then(|millis| u64::try_from(millis).ok());
    let Some(written) = written else {
        return Duration::ZERO;
    };
    let written = UNIX_EPOCH + Duration::from_millis(written);
    // A broker whose clock is ahead makes it look unwritten.
    SystemTime::now()
        .duration_since(written)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(headers: &OwnedHeaders) -> Record {
        let mut record = Record::default();
        assert!(
            headers
                .iter()
                .all(|header| record.add(header.key, header.value))
        );
        record
    }

    #[test]
    fn a_request_survives_its_headers() {
        let mut envelope = Envelope::new("user.get", "{}");
        envelope.headers.set(header::ACTOR, "ada");
        envelope.headers.set(header::KEY, "not sent");
        envelope.deadline = Some(Instant::now() + Duration::from_secs(9));
        let address = ReplyAddress {
            topic: "order.replies".into(),
            partition: Some(3),
            correlation: "a-1".into(),
        };
        let mut record = read(&request_headers(&envelope, &address));
        assert!(record.native);
        assert_eq!(record.headers.len(), 1);
        assert_eq!(record.headers.get(header::ACTOR), Some("ada"));
        let remaining = record.remaining.unwrap();
        assert!(remaining <= Duration::from_secs(9) && remaining > Duration::from_secs(8));
        assert_eq!(record.reply_address(), Some(address));
    }

    #[test]
    fn a_reply_survives_its_headers() {
        let error = RpcError::not_found("no such user");
        for item in [
            Item::Value("1".into()),
            Item::Last("2".into()),
            Item::End,
            Item::Fail(error),
        ] {
            let (headers, payload) = reply("a-1", item.clone());
            let record = read(&headers);
            assert_eq!((record.call("a-"), record.call("b-")), (Some(1), None));
            assert_eq!(record.reply(payload), Some(item));
        }
    }

    #[test]
    fn nonsense_in_headers_is_harmless() {
        let mut record = Record::default();
        assert!(record.add(header::DEADLINE, Some(b"soon")));
        assert!(record.add(REPLY_PARTITION, Some(b"-4")));
        assert!(record.add(ITEM, None));
        assert!(record.add(header::REPLY_TO, Some(b"not a topic")));
        assert!(record.add(header::CORRELATION_ID, Some(b"x")));
        assert_eq!(record.remaining, None);
        assert_eq!(record.reply_address(), None);
        assert!(record.reply(Bytes::new()).is_none());
        assert!(!record.add("x", Some(b"\xff")));
    }

    #[test]
    fn payload_and_headers_have_limits() {
        assert!(check_size(&Envelope::new("a.b", vec![0; MAX_PAYLOAD])).is_ok());
        assert!(check_size(&Envelope::new("a.b", vec![0; MAX_PAYLOAD + 1])).is_err());
        let mut envelope = Envelope::new("a.b", "");
        envelope.headers.set(header::ACTOR, "x".repeat(MAX_HEADERS));
        assert!(check_size(&envelope).is_err());
    }
}
