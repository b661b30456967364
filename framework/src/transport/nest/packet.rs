//! Packets: the JSON objects that cross TCP, NATS and Redis.

use std::{borrow::Cow, fmt};

use bytes::Bytes;
use bytestring::ByteString;
use serde::{
    Deserialize,
    de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::{NO_HANDLER, failure, headers};
use crate::{
    envelope::{Envelope, Headers},
    pattern,
    transport::Item,
};

/// The most members of a packet's `metadata`.
const MAX_METADATA: usize = 128;

/// A request or an event. The parts are JSON texts, slices of what was received.
#[derive(Debug, Default)]
pub(in crate::transport) struct Packet {
    pub(in crate::transport) pattern: Option<Bytes>,
    pub(in crate::transport) data: Option<Bytes>,
    /// Present in a request, absent in an event. Any JSON value.
    pub(in crate::transport) id: Option<Bytes>,
    pub(in crate::transport) metadata: Headers,
}

impl Packet {
    /// The pattern as text: a string's own, or the JSON of anything else.
    pub(super) fn name(&self) -> ByteString {
        let Some(json) = &self.pattern else {
            return ByteString::from_static("undefined");
        };
        self.plain_name()
            .or_else(|| serde_json::from_slice::<String>(json).ok().map(Into::into))
            .or_else(|| json.clone().try_into().ok())
            .unwrap_or_default()
    }

    /// The pattern, if it is a string that needs no unescaping, without a copy.
    pub(super) fn plain_name(&self) -> Option<ByteString> {
        let json = self.pattern.as_ref()?;
        let text = json.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
        if text.contains(&b'\\') {
            return None;
        }
        json.slice_ref(text).try_into().ok()
    }
}

/// What a server received.
#[derive(Debug)]
pub(in crate::transport) enum Incoming {
    Packet(Packet),
    /// JSON that is no packet: an event with this as its data, where its name comes from elsewhere.
    Foreign(Bytes),
}

/// Reads what a server received.
///
/// Bytes that are not UTF-8 are read as if they were U+FFFD.
///
/// # Errors
/// When it is not JSON.
pub(in crate::transport) fn read_packet(bytes: &Bytes) -> serde_json::Result<Incoming> {
    let text = lossy(bytes);
    let Some(members) = members::<PacketMembers<'_>>(&text)? else {
        return Ok(Incoming::Foreign(text.as_bytes().clone()));
    };
    let PacketMembers {
        pattern,
        data,
        id,
        metadata,
    } = members;
    if pattern.is_none() && data.is_none() {
        return Ok(Incoming::Foreign(text.as_bytes().clone()));
    }
    let slice = |raw: Option<&RawValue>| raw.map(|raw| slice(&text, raw));
    Ok(Incoming::Packet(Packet {
        pattern: slice(pattern),
        data: slice(data),
        id: slice(id),
        metadata: metadata.map_or_else(Headers::new, |metadata| metadata.into_headers(&text)),
    }))
}

/// A reply as a client received it.
#[derive(Debug, PartialEq)]
pub(in crate::transport) struct Answer {
    /// The id of the request, in JSON.
    pub(in crate::transport) id: Option<Bytes>,
    pub(in crate::transport) item: Item,
}

/// Whether these bytes are a reply, and not merely JSON that a client would take for a value.
pub(in crate::transport) fn is_answer(bytes: &Bytes) -> bool {
    let text = lossy(bytes);
    let members = members::<AnswerMembers<'_>>(&text);
    members.is_ok_and(|members| {
        members.is_some_and(|members| members.has_members && !members.is_foreign)
    })
}

/// Reads a reply. JSON that is no packet counts as the one value of a reply.
///
/// # Errors
/// When it is not JSON.
pub(in crate::transport) fn read_answer(bytes: &Bytes) -> serde_json::Result<Answer> {
    let text = lossy(bytes);
    let slice = |raw: Option<&RawValue>| raw.map(|raw| slice(&text, raw));
    let foreign = |id| Answer {
        id,
        item: Item::Last(text.as_bytes().clone()),
    };
    let Some(members) = members::<AnswerMembers<'_>>(&text)? else {
        return Ok(foreign(None));
    };
    let id = slice(members.id);
    if members.is_foreign || !members.has_members {
        return Ok(foreign(id));
    }
    let item = match (members.err, members.response) {
        (Some(err), _) if is_truthy(err) => {
            Item::Fail(failure::read(&serde_json::from_str(err.get())?))
        }
        (_, response) => {
            let disposed = members.is_disposed.is_some_and(is_truthy);
            match (slice(response), disposed) {
                (Some(value), true) => Item::Last(value),
                (None, true) => Item::End,
                (value, false) => Item::Value(value.unwrap_or_default()),
            }
        }
    };
    Ok(Answer { id, item })
}

/// Appends a packet of a reply to the request whose id has this JSON. An empty payload is JavaScript's
/// `undefined`, which is not written.
pub(in crate::transport) fn write_item(out: &mut Vec<u8>, id: Option<&[u8]>, item: &Item) {
    match item {
        Item::Value(payload) | Item::Last(payload) if !payload.is_empty() => {
            out.extend_from_slice(RESPONSE);
            out.extend_from_slice(payload);
            write_item_end(out, id, item);
        }
        Item::Fail(error) => {
            out.extend_from_slice(br#"{"err":"#);
            failure::write(out, error);
            write_item_end(out, id, item);
        }
        Item::Value(_) | Item::Last(_) | Item::End => write_members(out, b'{', id, item),
    }
}

/// What stands before the payload of a value…
pub(in crate::transport) const RESPONSE: &[u8] = br#"{"response":"#;

/// …and what stands behind it: for those who write it without a copy.
pub(in crate::transport) fn write_item_end(out: &mut Vec<u8>, id: Option<&[u8]>, item: &Item) {
    write_members(out, b',', id, item);
}

fn write_members(out: &mut Vec<u8>, mut before: u8, id: Option<&[u8]>, item: &Item) {
    let mut member = |name: &[u8]| {
        out.push(before);
        before = b',';
        out.extend_from_slice(name);
    };
    if !matches!(item, Item::Value(_)) {
        member(br#""isDisposed":true"#);
    }
    if let Some(id) = id {
        member(br#""id":"#);
        out.extend_from_slice(id);
    }
    if before == b'{' {
        out.push(b'{');
    }
    out.push(b'}');
}

/// Appends the answer to a request that nobody here handles.
pub(in crate::transport) fn write_no_handler(out: &mut Vec<u8>, id: &[u8]) {
    out.extend_from_slice(br#"{"id":"#);
    out.extend_from_slice(id);
    out.extend_from_slice(br#","status":"error","err":""#);
    out.extend_from_slice(NO_HANDLER.as_bytes());
    out.extend_from_slice(br#""}"#);
}

/// Appends a request. The id must need no escapes; `with_headers` puts the headers and the deadline
/// into the packet's metadata.
pub(in crate::transport) fn write_request(
    out: &mut Vec<u8>,
    envelope: &Envelope,
    id: &str,
    with_headers: Option<Instant>,
) {
    write_start(
        out,
        |out| pattern::write_json(out, &envelope.pattern),
        envelope,
        with_headers,
    );
    out.extend_from_slice(br#","id":""#);
    out.extend_from_slice(id.as_bytes());
    out.extend_from_slice(br#""}"#);
}

/// Appends an event, whose pattern is given in JSON, as the transports differ in how they write it.
pub(in crate::transport) fn write_event(
    out: &mut Vec<u8>,
    pattern: &str,
    envelope: &Envelope,
    with_headers: Option<Instant>,
) {
    let write_pattern = |out: &mut Vec<u8>| out.extend_from_slice(pattern.as_bytes());
    write_start(out, write_pattern, envelope, with_headers);
    out.push(b'}');
}

fn write_start(
    out: &mut Vec<u8>,
    write_pattern: impl FnOnce(&mut Vec<u8>),
    envelope: &Envelope,
    with_headers: Option<Instant>,
) {
    out.extend_from_slice(br#"{"pattern":"#);
    write_pattern(out);
    if !envelope.payload.is_empty() {
        out.extend_from_slice(br#","data":"#);
        out.extend_from_slice(&envelope.payload);
    }
    let Some(now) = with_headers else { return };
    let mut before: &[u8] = br#","metadata":{"#;
    for (name, value) in headers(envelope, now) {
        out.extend_from_slice(before);
        before = b",";
        pattern::write_string(out, name);
        out.push(b':');
        pattern::write_string(out, &value);
    }
    if before == b"," {
        out.push(b'}');
    }
}

/// Bytes that may not be JSON as a JSON string: what NestJS hands to a handler then.
pub(in crate::transport) fn text(bytes: &[u8]) -> Bytes {
    let mut json = Vec::with_capacity(bytes.len() + 2);
    pattern::write_string(&mut json, &String::from_utf8_lossy(bytes));
    json.into()
}

/// What was received as text: looked through once, so that no part of it has to be again.
fn lossy(bytes: &Bytes) -> ByteString {
    ByteString::try_from(bytes.clone())
        .unwrap_or_else(|_| String::from_utf8_lossy(bytes).into_owned().into())
}

/// A part of `text`, without a copy.
fn slice(text: &ByteString, raw: &RawValue) -> Bytes {
    text.as_bytes().slice_ref(raw.get().as_bytes())
}

/// Whether JavaScript would take it for true.
fn is_truthy(raw: &RawValue) -> bool {
    match raw.get() {
        "null" | "false" | "\"\"" => false,
        text if text.starts_with(['-', '0']) => text.parse::<f64>() != Ok(0.0),
        _ => true,
    }
}

/// The members of a JSON object, or `None` for JSON of another kind. What is nested is not looked
/// into, however deep it is.
fn members<'a, T: Default + Deserialize<'a>>(text: &'a str) -> serde_json::Result<Option<T>> {
    if text.trim_ascii_start().starts_with('{') {
        return serde_json::from_str(text).map(Some);
    }
    serde_json::from_str::<&RawValue>(text).map(|_| None)
}

#[derive(Default)]
struct PacketMembers<'a> {
    pattern: Option<&'a RawValue>,
    data: Option<&'a RawValue>,
    id: Option<&'a RawValue>,
    metadata: Option<MetadataMembers<'a>>,
}

#[derive(Default)]
struct AnswerMembers<'a> {
    id: Option<&'a RawValue>,
    err: Option<&'a RawValue>,
    response: Option<&'a RawValue>,
    is_disposed: Option<&'a RawValue>,
    has_members: bool,
    is_foreign: bool,
}

/// Reads an object member by member, so that the last of several with one name counts, as in
/// JavaScript.
macro_rules! by_member {
    ($name:ident, $expecting:literal, |$members:ident, $key:ident, $map:ident| $read:expr) => {
        impl<'de: 'a, 'a> Deserialize<'de> for $name<'a> {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Members;

                impl<'de> Visitor<'de> for Members {
                    type Value = $name<'de>;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }

                    fn visit_map<A: MapAccess<'de>>(
                        self,
                        mut $map: A,
                    ) -> Result<Self::Value, A::Error> {
                        let mut $members = $name::default();
                        while let Some($key) = $map.next_key::<Name<'de>>()? {
                            let $key = $key.0;
                            $read
                        }
                        Ok($members)
                    }
                }

                deserializer.deserialize_map(Members)
            }
        }
    };
}

by_member!(PacketMembers, "a packet", |members, key, map| match &*key {
    "pattern" => members.pattern = Some(map.next_value()?),
    "data" => members.data = Some(map.next_value()?),
    "id" => members.id = Some(map.next_value()?),
    "metadata" => members.metadata = metadata(map.next_value()?).map_err(A::Error::custom)?,
    _ => {
        map.next_value::<IgnoredAny>()?;
    }
});

by_member!(AnswerMembers, "a reply", |members, key, map| {
    let value = map.next_value()?;
    match &*key {
        "id" => members.id = Some(value),
        "err" => members.err = Some(value),
        "response" => members.response = Some(value),
        "isDisposed" => members.is_disposed = Some(value),
        "status" => {}
        _ => members.is_foreign = true,
    }
    members.has_members = true;
});

/// What is no object is ignored.
fn metadata(raw: &RawValue) -> Result<Option<MetadataMembers<'_>>, String> {
    if !raw.get().starts_with('{') {
        return Ok(None);
    }
    let members: MetadataMembers<'_> =
        serde_json::from_str(raw.get()).map_err(|error| error.to_string())?;
    if members.too_many {
        return Err(format!("metadata has more than {MAX_METADATA} members"));
    }
    Ok(Some(members))
}

#[derive(Default)]
struct MetadataMembers<'a> {
    members: Vec<(Cow<'a, str>, &'a RawValue)>,
    too_many: bool,
}

by_member!(MetadataMembers, "metadata", |metadata, key, map| {
    let value: &RawValue = map.next_value()?;
    if metadata.members.len() < MAX_METADATA {
        metadata.members.push((key, value));
    } else {
        metadata.too_many = true;
    }
});

impl MetadataMembers<'_> {
    /// Text members become headers as they are, others as their JSON: parts of `text`, without a copy
    /// where they have no escapes.
    fn into_headers(self, text: &ByteString) -> Headers {
        let mut headers = Headers::new();
        for (name, value) in self.members {
            let name = match name {
                Cow::Borrowed(name) => text.slice_ref(name),
                Cow::Owned(name) => name.into(),
            };
            let json = value.get();
            let plain = json
                .strip_prefix('"')
                .and_then(|rest| rest.strip_suffix('"'));
            let value = match plain {
                Some(plain) if !plain.contains('\\') => text.slice_ref(plain),
                Some(_) => {
                    serde_json::from_str::<String>(json).map_or_else(|_| json.into(), Into::into)
                }
                None => text.slice_ref(json),
            };
            headers.insert(name, value);
        }
        headers
    }
}

/// A member's name, borrowed unless it has escapes.
struct Name<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Name<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl<'de> Visitor<'de> for Text {
            type Value = Name<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Name(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Name(Cow::Owned(text.to_owned())))
            }
        }

        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests;
