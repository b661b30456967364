//! What NestJS applications say and hear: packets in the payload, as the last part of
//! `docs/wire/nats.md` describes them.

use async_nats::{HeaderMap, Message, Subject, message::OutboundMessage};
use bytes::Bytes;
use bytestring::ByteString;
use tokio::time::Instant;

use super::{
    super::{
        Error, Item,
        nest::{self, CallIds, Incoming, Packet, Routes},
    },
    wire::{self, NoItem},
};
use crate::{envelope::Envelope, pattern};

/// Where replies to NestJS's kind of requests go.
const INBOX: &str = "_INBOX.";
/// What a packet has around pattern, data and id.
const AROUND: usize = 96;

/// Which handler a packet that came by a subscription is for.
pub(super) enum Target {
    /// None: this server does not speak the wire.
    Off,
    Handler(ByteString),
    /// None: NestJS takes its subject for JSON that is no name, such as `true`.
    Nobody,
}

impl Target {
    /// What NestJS makes of a subscription to `pattern`.
    pub(super) fn of(pattern: &ByteString, routes: Option<&Routes>) -> Self {
        match routes.map(|routes| routes.of_name(pattern)) {
            None => Self::Off,
            Some(Some(route)) => Self::Handler(route),
            Some(None) => Self::Nobody,
        }
    }
}

/// Reads what is not of the native wire: a packet, or data without one.
///
/// # Errors
/// When it is not JSON.
pub(super) fn packet(payload: &Bytes) -> Result<Packet, serde_json::Error> {
    Ok(match nest::read_packet(payload)? {
        Incoming::Packet(packet) => packet,
        Incoming::Foreign(data) => Packet {
            data: Some(data),
            ..Packet::default()
        },
    })
}

/// What the handler gets. A header of the message wins over the packet's metadata; one that occurs
/// several times has its values joined by commas.
pub(super) fn envelope(pattern: ByteString, message: &Message, packet: Packet) -> Envelope {
    let mut headers = packet.metadata;
    for (name, values) in message.headers.iter().flat_map(HeaderMap::iter) {
        match &values[..] {
            [] => {}
            [value] => wire::keep_header(&mut headers, name.as_ref(), value.as_str()),
            values => {
                let values: Vec<_> = values.iter().map(|value| value.as_str()).collect();
                headers.insert(name.as_ref(), values.join(", "));
            }
        }
    }
    let data = packet.data.unwrap_or_default();
    nest::envelope(pattern, data, headers, Instant::now())
}

/// One item of the reply to the request with this id.
pub(super) fn reply(to: Subject, id: &[u8], item: &Item) -> OutboundMessage {
    let length = match item {
        Item::Value(payload) | Item::Last(payload) => payload.len(),
        Item::End | Item::Fail(_) => 0,
    };
    let mut packet = Vec::with_capacity(length + id.len() + AROUND);
    nest::write_item(&mut packet, Some(id), item);
    plain(to, packet)
}

/// The answer to a request that nobody here handles.
pub(super) fn no_handler(to: Subject, id: &[u8]) -> OutboundMessage {
    let mut packet = Vec::with_capacity(id.len() + 2 * AROUND);
    nest::write_no_handler(&mut packet, id);
    plain(to, packet)
}

fn plain(subject: Subject, packet: Vec<u8>) -> OutboundMessage {
    OutboundMessage {
        subject,
        reply: None,
        payload: packet.into(),
        headers: None,
    }
}

/// The start of the subjects that a client gets its replies on.
pub(super) fn reply_prefix(client: &str) -> String {
    format!("{INBOX}{client}.")
}

/// A request with this id.
pub(super) fn request(
    envelope: &Envelope,
    reply: Subject,
    id: &str,
) -> Result<OutboundMessage, Error> {
    let mut packet = Vec::with_capacity(capacity(envelope) + id.len());
    nest::write_request(&mut packet, envelope, id, None);
    outgoing(envelope, Some(reply), packet)
}

pub(super) fn event(envelope: &Envelope) -> Result<OutboundMessage, Error> {
    let mut packet = Vec::with_capacity(capacity(envelope));
    let pattern = pattern::to_json(&envelope.pattern);
    nest::write_event(&mut packet, &pattern, envelope, None);
    outgoing(envelope, None, packet)
}

fn capacity(envelope: &Envelope) -> usize {
    envelope.payload.len() + envelope.pattern.len() + AROUND
}

fn outgoing(
    envelope: &Envelope,
    reply: Option<Subject>,
    packet: Vec<u8>,
) -> Result<OutboundMessage, Error> {
    Ok(OutboundMessage {
        subject: wire::subject(&pattern::route(envelope.pattern.clone())),
        reply,
        payload: packet.into(),
        headers: outgoing_headers(envelope)?,
    })
}

fn outgoing_headers(envelope: &Envelope) -> Result<Option<HeaderMap>, Error> {
    let mut headers = HeaderMap::new();
    for (name, value) in nest::headers(envelope, Instant::now()) {
        wire::set_header(&mut headers, name, &value)?;
    }
    Ok((!headers.is_empty()).then_some(headers))
}

/// What a message on the reply subject of `call` says to its caller; `None` if it is about another
/// call.
pub(super) fn item(message: &Message, ids: &CallIds, call: u64) -> Option<Result<Item, NoItem>> {
    if let Err(status) = wire::check_status(message) {
        return Some(Err(status));
    }
    // The broker says it like this to clients that know no headers.
    if message.payload.is_empty() {
        return Some(Err(NoItem::NoResponders));
    }
    match nest::read_answer(&message.payload) {
        Ok(answer) => {
            let other = answer.id.is_some_and(|id| ids.parse(&id) != Some(call));
            (!other).then_some(Ok(answer.item))
        }
        Err(error) => Some(Err(NoItem::NotJson(error.to_string()))),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, value::RawValue};

    use super::*;

    /// What is not sent like this: a number as the pattern, and metadata in the packet.
    const OTHERS: [&str; 3] = [
        "req_number_pattern",
        "req_with_metadata",
        "event_with_metadata",
    ];

    #[derive(serde::Deserialize)]
    struct Parts<'a> {
        #[serde(borrow)]
        pattern: &'a RawValue,
        #[serde(borrow)]
        data: &'a RawValue,
        id: Option<String>,
    }

    /// Every packet of the captured client that has no headers.
    #[test]
    fn without_headers_and_deadline_the_bytes_are_those_of_nestjs() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/nest/vectors/nats.json");
        let file: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        let mut same = 0;
        for frame in file["vectors"].as_array().unwrap() {
            let text = |member: &str| frame[member].as_str().unwrap_or_default();
            let name = text("name");
            if text("direction") != "client->broker" || text("op") != "PUB" {
                continue;
            }
            let packet = text("payload_utf8");
            let parts: Parts<'_> = serde_json::from_str(packet).unwrap();
            let written = serde_json::from_str::<String>(parts.pattern.get());
            let pattern = written.unwrap_or_else(|_| parts.pattern.get().to_owned());
            let data = Bytes::copy_from_slice(parts.data.get().as_bytes());
            let envelope = Envelope::new(pattern, data);
            let message = match &parts.id {
                Some(id) => request(&envelope, "_INBOX.x.1".into(), id),
                None => event(&envelope),
            };
            let message = message.unwrap();
            assert_eq!(message.headers, None, "{name}");
            let equal = message.payload == packet;
            assert_eq!(equal, !OTHERS.contains(&name), "{name}");
            assert_eq!(text("line").split(' ').nth(1), Some(&*message.subject));
            same += usize::from(equal);
        }
        assert_eq!(same, 42);
    }

    #[tokio::test(start_paused = true)]
    async fn headers_are_those_of_the_envelope_and_the_remaining_time() {
        let mut envelope = Envelope::new("a.b", "1");
        envelope.headers.set("content-type", "application/json");
        envelope.headers.set("x-own", "ü");
        envelope.headers.set("nestling", "1");
        envelope.deadline = Some(Instant::now() + Duration::from_millis(250));
        let message = request(&envelope, "_INBOX.x.1".into(), "id").unwrap();
        let headers = message.headers.unwrap();
        let value = |name: &str| headers.get(name).map(|value| value.as_str());
        assert_eq!(headers.len(), 2);
        assert_eq!(
            (value("x-own"), value("deadline")),
            (Some("ü"), Some("250"))
        );
        envelope.headers.insert("x-own", "a\nb");
        event(&envelope).unwrap_err();
    }

    #[test]
    fn an_empty_answer_says_that_nobody_is_there() {
        let ids = CallIds::new();
        let message = |payload: &str| Message {
            subject: "_INBOX.x.7".into(),
            reply: None,
            payload: Bytes::copy_from_slice(payload.as_bytes()),
            headers: None,
            status: None,
            description: None,
            length: payload.len(),
        };
        assert_eq!(item(&message(""), &ids, 7), Some(Err(NoItem::NoResponders)));
        let own = format!(
            r#"{{"response":1,"isDisposed":true,"id":"{}"}}"#,
            ids.text(7)
        );
        assert_eq!(
            item(&message(&own), &ids, 7),
            Some(Ok(Item::Last("1".into())))
        );
        assert_eq!(item(&message(&own), &ids, 8), None);
        let error = item(&message("hi"), &ids, 7).unwrap().unwrap_err();
        let error = error.into_error("a.b");
        assert!(
            error
                .message
                .starts_with("a.b answered with what is not JSON")
        );
    }
}
