//! What travels: stream entries, items of reply lists, control messages.

use std::{fmt, io::Write};

use bytes::{Buf, BufMut, Bytes};
use bytestring::ByteString;
use redis::{RedisWrite, ToRedisArgs, Value};

use crate::{
    envelope::{Envelope, Headers},
    error::RpcError,
    transport::Item,
};

/// The first byte of every head.
const VERSION: u8 = 1;
/// The field of an entry that holds its head, and the one that holds its payload.
pub(super) const HEAD: &str = "h";
pub(super) const PAYLOAD: &str = "p";
/// The largest head: headers are for words, not for documents.
pub(super) const MAX_HEAD: usize = 1 << 20;

/// The id of an entry, which begins with the time at which Redis took it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Id {
    pub(super) millis: u64,
    pub(super) sequence: u64,
}

impl Id {
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let (millis, sequence) = std::str::from_utf8(text).ok()?.split_once('-')?;
        Some(Self {
            millis: millis.parse().ok()?,
            sequence: sequence.parse().ok()?,
        })
    }

    /// The smallest id above it.
    pub(super) fn next(self) -> Self {
        match self.sequence.checked_add(1) {
            Some(sequence) => Self { sequence, ..self },
            None => Self {
                millis: self.millis.saturating_add(1),
                sequence: 0,
            },
        }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.millis, self.sequence)
    }
}

impl ToRedisArgs for Id {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        out.write_arg_fmt(self);
    }
}

/// Identifies a call everywhere: the client's random number and the call's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct CallKey {
    pub(super) client: u64,
    pub(super) call: u64,
}

/// What an entry says beside its payload.
#[derive(Debug, PartialEq)]
pub(super) struct Head {
    /// How long the caller still waited when the entry was written.
    pub(super) remaining: Option<u32>,
    pub(super) key: CallKey,
    /// The list that replies go to; empty when nobody waits.
    pub(super) reply: Bytes,
    pub(super) pattern: ByteString,
    pub(super) headers: Headers,
}

impl Head {
    /// The head of `envelope`, still without the remaining time.
    pub(super) fn encode(envelope: &Envelope, key: CallKey, reply: &[u8]) -> Vec<u8> {
        let headers = &envelope.headers;
        let texts: usize = headers
            .iter()
            .map(|(name, value)| 8 + name.len() + value.len())
            .sum();
        let mut out = Vec::with_capacity(31 + reply.len() + envelope.pattern.len() + texts);
        out.put_u8(VERSION);
        out.put_u32(u32::MAX);
        out.put_u64(key.client);
        out.put_u64(key.call);
        put_text(&mut out, reply);
        put_text(&mut out, envelope.pattern.as_bytes());
        put_length(&mut out, headers.len());
        for (name, value) in headers.iter() {
            put_text(&mut out, name.as_bytes());
            put_text(&mut out, value.as_bytes());
        }
        out
    }

    /// Fills in the remaining time, which is known when the entry is written.
    pub(super) fn set_remaining(head: &mut [u8], millis: u128) {
        let millis = u32::try_from(millis)
            .unwrap_or(u32::MAX - 1)
            .min(u32::MAX - 1);
        if let Some(place) = head.get_mut(1..5) {
            place.copy_from_slice(&millis.to_be_bytes());
        }
    }

    /// `None` for anything that [`encode`](Self::encode) does not write.
    pub(super) fn decode(mut bytes: Bytes) -> Option<Self> {
        if bytes.try_get_u8().ok()? != VERSION {
            return None;
        }
        let remaining = bytes.try_get_u32().ok()?;
        let client = bytes.try_get_u64().ok()?;
        let call = bytes.try_get_u64().ok()?;
        let reply = take_text(&mut bytes)?;
        let pattern = ByteString::try_from(take_text(&mut bytes)?).ok()?;
        let mut headers = Headers::new();
        for _ in 0..bytes.try_get_u32().ok()? {
            let name = ByteString::try_from(take_text(&mut bytes)?).ok()?;
            let value = ByteString::try_from(take_text(&mut bytes)?).ok()?;
            headers.insert(name, value);
        }
        let remaining = (remaining != u32::MAX).then_some(remaining);
        Some(Self {
            remaining,
            key: CallKey { client, call },
            reply,
            pattern,
            headers,
        })
    }
}

fn put_length(out: &mut Vec<u8>, length: usize) {
    // A head above `MAX_HEAD` is refused, so a length that was cut off here goes nowhere.
    out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
}

fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    put_length(out, text.len());
    out.put_slice(text);
}

fn take_text(bytes: &mut Bytes) -> Option<Bytes> {
    let length = usize::try_from(bytes.try_get_u32().ok()?).ok()?;
    (length <= bytes.len()).then(|| bytes.split_to(length))
}

/// What an item of a reply list means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum ItemKind {
    Value = 1,
    Last = 2,
    End = 3,
    Fail = 4,
}

/// An item of a reply list.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) kind: ItemKind,
    /// The delivery that it comes from: a request that is redelivered is answered from the start.
    pub(super) attempt: u8,
    /// Counts the items of one attempt from 0.
    pub(super) sequence: u32,
    pub(super) call: u64,
    pub(super) payload: Bytes,
}

impl Reply {
    const FIXED: usize = 14;

    pub(super) fn decode(mut bytes: Bytes) -> Option<Self> {
        if bytes.len() < Self::FIXED {
            return None;
        }
        let kind = match bytes.get_u8() {
            1 => ItemKind::Value,
            2 => ItemKind::Last,
            3 => ItemKind::End,
            4 => ItemKind::Fail,
            _ => return None,
        };
        let attempt = bytes.get_u8();
        let sequence = bytes.get_u32();
        let call = bytes.get_u64();
        Some(Self {
            kind,
            attempt,
            sequence,
            call,
            payload: bytes,
        })
    }

    pub(super) fn into_item(self) -> Item {
        match self.kind {
            ItemKind::Value => Item::Value(self.payload),
            ItemKind::Last => Item::Last(self.payload),
            ItemKind::End => Item::End,
            ItemKind::Fail => Item::Fail(RpcError::from_bytes(&self.payload)),
        }
    }
}

/// Written straight into the command, so that the payload is copied once.
impl ToRedisArgs for Reply {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        let mut fixed = [0; Self::FIXED];
        fixed[0] = self.kind as u8;
        fixed[1] = self.attempt;
        fixed[2..6].copy_from_slice(&self.sequence.to_be_bytes());
        fixed[6..].copy_from_slice(&self.call.to_be_bytes());
        let mut writer = out.writer_for_next_arg();
        let written = writer
            .write_all(&fixed)
            .and_then(|()| writer.write_all(&self.payload));
        debug_assert!(written.is_ok(), "a command's buffer takes everything");
    }
}

/// What a caller says about a call in work: credit for so many values, or that it has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Control {
    pub(super) key: CallKey,
    /// 0 is a cancellation.
    pub(super) values: u32,
}

impl Control {
    pub(super) fn encode(self) -> [u8; 20] {
        let mut bytes = [0; 20];
        bytes[..8].copy_from_slice(&self.key.client.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.key.call.to_be_bytes());
        bytes[16..].copy_from_slice(&self.values.to_be_bytes());
        bytes
    }

    pub(super) fn decode(mut bytes: &[u8]) -> Option<Self> {
        if bytes.len() != 20 {
            return None;
        }
        let key = CallKey {
            client: bytes.get_u64(),
            call: bytes.get_u64(),
        };
        Some(Self {
            key,
            values: bytes.get_u32(),
        })
    }
}

/// An entry as Redis returns it.
pub(super) struct Entry {
    pub(super) id: Id,
    /// Head and payload; `None` for what no client of ours has written.
    pub(super) fields: Option<(Bytes, Bytes)>,
}

/// Takes apart the reply to `XREADGROUP`: entries by the name of their stream.
pub(super) fn streams(value: Value) -> Vec<(Vec<u8>, Vec<Entry>)> {
    let pairs: Vec<(Value, Value)> = match value {
        Value::Map(pairs) => pairs,
        Value::Array(streams) => streams.into_iter().filter_map(pair).collect(),
        _ => Vec::new(),
    };
    let named = pairs
        .into_iter()
        .filter_map(|(name, list)| Some((text(name)?, entries(list))));
    named.collect()
}

/// Takes apart a list of entries, as `XCLAIM` returns it.
pub(super) fn entries(value: Value) -> Vec<Entry> {
    let Value::Array(list) = value else {
        return Vec::new();
    };
    let entry = |value| {
        let (id, fields) = pair(value)?;
        Some(Entry {
            id: Id::parse(&text(id)?)?,
            fields: fields_of(fields),
        })
    };
    list.into_iter().filter_map(entry).collect()
}

fn fields_of(value: Value) -> Option<(Bytes, Bytes)> {
    let Value::Array(list) = value else {
        return None;
    };
    let mut list = list.into_iter();
    let (mut head, mut payload) = (None, None);
    while let (Some(name), Some(value)) = (list.next(), list.next()) {
        match text(name)?.as_slice() {
            b"h" => head = Some(Bytes::from(text(value)?)),
            b"p" => payload = Some(Bytes::from(text(value)?)),
            _ => {}
        }
    }
    Some((head?, payload.unwrap_or_default()))
}

fn pair(value: Value) -> Option<(Value, Value)> {
    let Value::Array(list) = value else {
        return None;
    };
    let mut list = list.into_iter();
    Some((list.next()?, list.next()?))
}

fn text(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope() -> Envelope {
        let mut envelope = Envelope::new("user.get", "payload");
        envelope.headers.set("actor", "ada");
        envelope.headers.set("key", "line\nbreak");
        envelope
    }

    #[test]
    fn a_head_survives_the_wire() {
        let key = CallKey {
            client: 7,
            call: u64::MAX,
        };
        let mut bytes = Head::encode(&envelope(), key, b"replies");
        assert_eq!(Head::decode(bytes.clone().into()).unwrap().remaining, None);
        Head::set_remaining(&mut bytes, 1500);
        let head = Head::decode(bytes.into()).unwrap();
        assert_eq!(head.remaining, Some(1500));
        assert_eq!(head.key, key);
        assert_eq!(
            (&*head.reply, &*head.pattern),
            (&b"replies"[..], "user.get")
        );
        assert_eq!(head.headers, envelope().headers);
    }

    #[test]
    fn a_head_that_is_cut_off_or_forged_is_nothing() {
        let bytes = Head::encode(&envelope(), CallKey::default(), b"");
        for length in 0..bytes.len() {
            assert_eq!(
                Head::decode(Bytes::copy_from_slice(&bytes[..length])),
                None,
                "{length}"
            );
        }
        for place in 0..bytes.len() {
            let mut forged = bytes.clone();
            forged[place] = 0xff;
            drop(Head::decode(forged.into()));
        }
    }

    #[test]
    fn a_reply_survives_the_wire() {
        let payload = Bytes::from_static(b"x");
        let reply = Reply {
            kind: ItemKind::Value,
            attempt: 2,
            sequence: 3,
            call: 1 << 40,
            payload,
        };
        let bytes = Bytes::from(reply.to_redis_args().remove(0));
        let read = Reply::decode(bytes.clone()).unwrap();
        assert_eq!((read.attempt, read.sequence, read.call), (2, 3, 1 << 40));
        assert_eq!(read.into_item(), Item::Value("x".into()));
        assert!(Reply::decode(bytes.slice(..13)).is_none());
    }

    #[test]
    fn control_survives_the_wire() {
        let control = Control {
            key: CallKey { client: 1, call: 2 },
            values: 32,
        };
        assert_eq!(Control::decode(&control.encode()), Some(control));
        assert_eq!(Control::decode(b"short"), None);
    }

    #[test]
    fn ids_are_ordered_by_time_then_sequence() {
        let id = |text: &str| Id::parse(text.as_bytes()).unwrap();
        assert!(id("9-5") < id("10-0"));
        assert_eq!(id("9-5").next(), id("9-6"));
        assert_eq!(id("17-3").to_string(), "17-3");
        assert_eq!(Id::parse(b"$"), None);
    }

    #[test]
    fn foreign_entries_are_seen_as_such() {
        let bulk = |text: &str| Value::BulkString(text.into());
        let foreign = Value::Array(vec![bulk("1-1"), Value::Array(vec![bulk("f"), bulk("v")])]);
        let ours = vec![bulk(PAYLOAD), bulk("p"), bulk(HEAD), bulk("h")];
        let ours = Value::Array(vec![bulk("1-2"), Value::Array(ours)]);
        let list = entries(Value::Array(vec![foreign, Value::Nil, ours]));
        assert_eq!(list.len(), 2);
        assert!(list[0].fields.is_none());
        assert_eq!(list[1].fields, Some(("h".into(), "p".into())));
    }
}
