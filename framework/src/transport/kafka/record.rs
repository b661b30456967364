//! Between an envelope and the headers of a Kafka record.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use bytes::Bytes;
use bytestring::ByteString;
use rdkafka::message::{
    BorrowedHeaders, BorrowedMessage, Header, Headers as _, Message as _, OwnedHeaders,
};
use tokio::time::Instant;

use super::{MAX_HEADERS, MAX_PAYLOAD, nest};
use crate::{
    envelope::{Envelope, Headers, header},
    error::RpcError,
    transport::{Error, Item, Wire},
};

/// Marks a record of this wire; no NestJS application sets it.
pub(super) const NATIVE: &str = "nestling";
pub(super) const VERSION: &str = "1";
const REPLY_PARTITION: &str = "reply-partition";
/// What a reply is: one of the words below.
const ITEM: &str = "item";
const VALUE: &str = "value";
const LAST: &str = "last";
const END: &str = "end";
const FAIL: &str = "fail";
/// More headers than this are more than anybody means.
const MOST_HEADERS: usize = 128;

/// Where the replies to a request go, and on which wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ReplyAddress {
    pub(super) wire: Wire,
    pub(super) topic: ByteString,
    pub(super) partition: Option<i32>,
    pub(super) correlation: Bytes,
}

/// A record about to be sent, apart from where to.
#[derive(Clone, Debug)]
pub(super) struct Encoded {
    pub(super) headers: OwnedHeaders,
    /// `None` is a value that is null.
    pub(super) payload: Option<Bytes>,
}

/// A request, to be answered at `address`.
pub(super) fn request(envelope: &Envelope, address: &ReplyAddress) -> Encoded {
    let mut headers = start(envelope.headers.len() + 5);
    headers = headers.insert(Header {
        key: header::CORRELATION_ID,
        value: Some(&*address.correlation),
    });
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
    Encoded {
        headers: add_all(headers, envelope),
        payload: Some(envelope.payload.clone()),
    }
}

/// An event; its key is the record's.
pub(super) fn event(envelope: &Envelope) -> Encoded {
    let headers = start(envelope.headers.len() + 2);
    let headers = add(headers, header::PATTERN, &envelope.pattern);
    Encoded {
        headers: add_all(headers, envelope),
        payload: Some(envelope.payload.clone()),
    }
}

/// The copy of an event for NestJS applications, which read its value as one of their own. The
/// native mark keeps it from services that get the event itself.
pub(super) fn copy(envelope: &Envelope) -> Encoded {
    let headers = start(envelope.headers.len() + 2);
    let headers = add(headers, header::CONTENT_TYPE, nest::TEXT);
    Encoded {
        headers: add_all(headers, envelope),
        payload: nest::value(&envelope.payload),
    }
}

/// One item of a reply, as its reader expects it.
pub(super) fn reply(address: &ReplyAddress, item: &Item) -> Encoded {
    if address.wire != Wire::Native {
        return nest::reply(&address.correlation, item);
    }
    let (word, payload) = match item {
        Item::Value(payload) => (VALUE, payload.clone()),
        Item::Last(payload) => (LAST, payload.clone()),
        Item::End => (END, Bytes::new()),
        Item::Fail(error) => (FAIL, error.to_bytes()),
    };
    let headers = start(3).insert(Header {
        key: header::CORRELATION_ID,
        value: Some(&*address.correlation),
    });
    Encoded {
        headers: add(headers, ITEM, word),
        payload: Some(payload),
    }
}

pub(super) fn start(capacity: usize) -> OwnedHeaders {
    add(OwnedHeaders::new_with_capacity(capacity), NATIVE, VERSION)
}

pub(super) fn add(headers: OwnedHeaders, key: &str, value: &str) -> OwnedHeaders {
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
pub(super) fn is_internal(name: &str) -> bool {
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
    /// It is native, of a version that is not known here.
    Version,
    /// A header is not text, or there are too many.
    Malformed,
    /// It is of NestJS's wire, which is switched off.
    Nest,
    /// It is a NestJS application's event, and nobody here handles it.
    NoHandler,
}

/// A record, read as its wire wants it.
#[derive(Debug)]
pub(super) enum Incoming {
    Native(Record),
    Nest(nest::Record),
}

impl Incoming {
    /// Reads the headers of a message.
    pub(super) fn read(message: &BorrowedMessage<'_>) -> Result<Self, Foreign> {
        let Some(headers) = message.headers() else {
            return Ok(Self::Nest(nest::Record::default()));
        };
        if headers.count() > MOST_HEADERS {
            return Err(Foreign::Malformed);
        }
        // The library panics at a header whose name is not UTF-8, and names come off the wire.
        let read = catch_unwind(AssertUnwindSafe(|| {
            match headers.iter().find(|header| header.key == NATIVE) {
                None => Ok(Self::Nest(nest::Record::of(headers))),
                Some(header) if header.value == Some(VERSION.as_bytes()) => {
                    Record::of(headers).map(Self::Native)
                }
                Some(_) => Err(Foreign::Version),
            }
        }));
        read.unwrap_or(Err(Foreign::Malformed))
    }
}

impl Record {
    fn of(headers: &BorrowedHeaders) -> Result<Self, Foreign> {
        let mut record = Self::default();
        let is_text = headers
            .iter()
            .all(|header| record.add(header.key, header.value));
        is_text.then_some(record).ok_or(Foreign::Malformed)
    }

    /// Takes in one header; false when it is not text.
    fn add(&mut self, name: &str, value: Option<&[u8]>) -> bool {
        let Ok(value) = std::str::from_utf8(value.unwrap_or_default()) else {
            return false;
        };
        match name {
            NATIVE => {}
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
            wire: Wire::Native,
            topic,
            partition: self.reply_partition,
            correlation: correlation.into_bytes(),
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
pub(super) fn known(name: &str) -> Option<&'static str> {
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

    fn address() -> ReplyAddress {
        ReplyAddress {
            wire: Wire::Native,
            topic: "order.replies".into(),
            partition: Some(3),
            correlation: "a-1".into(),
        }
    }

    #[test]
    fn a_request_survives_its_headers() {
        let mut envelope = Envelope::new("user.get", "{}");
        envelope.headers.set(header::ACTOR, "ada");
        envelope.headers.set(header::KEY, "not sent");
        envelope.deadline = Some(Instant::now() + Duration::from_secs(9));
        let address = address();
        let mut record = read(&request(&envelope, &address).headers);
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
            let Encoded { headers, payload } = reply(&address(), &item);
            let record = read(&headers);
            assert_eq!((record.call("a-"), record.call("b-")), (Some(1), None));
            assert_eq!(record.reply(payload.unwrap()), Some(item));
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
