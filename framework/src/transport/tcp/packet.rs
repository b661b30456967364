//! Packets of NestJS applications on TCP: what arrives becomes an envelope, and what leaves a frame.

use bytes::Bytes;
use bytestring::ByteString;
use tokio::time::Instant;

use super::{
    frame::{self, Violation},
    outbox::{COPIED_BELOW, Outgoing},
    text::units,
};
use crate::{
    envelope::Envelope,
    pattern,
    transport::{
        Item,
        nest::{self, Incoming, Routes},
    },
};

/// Room for any length and the `#`.
const PREFIX: usize = 21;
/// What a packet has beside its payload, roughly.
const AROUND: usize = 512;
/// The longest id of a request, in bytes of JSON: each packet of the reply repeats it.
const MAX_ID: usize = 1024;

/// What a client sent.
#[derive(Debug)]
pub(super) struct Received {
    /// The id of a request, in JSON; none is an event.
    pub(super) id: Option<Bytes>,
    pub(super) letter: Letter,
}

/// What is to be done with it.
#[derive(Debug)]
pub(super) enum Letter {
    /// Somebody does, under the registered pattern that follows where the one that was sent is
    /// written in another way.
    Handled(Envelope, Option<ByteString>),
    /// Nobody here handles this pattern.
    Unknown(ByteString),
}

/// Reads a body, which is JSON or breaks the protocol.
pub(super) fn read(body: &Bytes, routes: &Routes, now: Instant) -> Result<Received, Violation> {
    let incoming = nest::read_packet(body).map_err(|error| {
        tracing::debug!(%error, "a packet that cannot be read");
        Violation("packet is not JSON, or has too many metadata")
    })?;
    let packet = match incoming {
        Incoming::Packet(packet) => packet,
        Incoming::Foreign(_) => {
            let letter = Letter::Unknown(ByteString::from_static("undefined"));
            return Ok(Received { id: None, letter });
        }
    };
    if packet.id.as_ref().is_some_and(|id| id.len() > MAX_ID) {
        return Err(Violation("id is too long"));
    }
    let letter = match routes.of_packet(&packet) {
        (name, None) => Letter::Unknown(name),
        (name, Some(route)) => {
            let (name, subscription) = match name == route {
                true => (route, None),
                false => (name, Some(route)),
            };
            let payload = packet.data.unwrap_or_default();
            let envelope = nest::envelope(name, payload, packet.metadata, now);
            Letter::Handled(envelope, subscription)
        }
    };
    Ok(Received {
        id: packet.id,
        letter,
    })
}

/// Whether an envelope keeps to the limits of its own side, apart from its payload.
pub(super) fn check(envelope: &Envelope) -> Result<(), &'static str> {
    let written = |text: &str| {
        let escaped = |byte: &u8| matches!(byte, 0..0x20 | b'"' | b'\\');
        text.len() + 5 * text.as_bytes().iter().filter(|byte| escaped(byte)).count()
    };
    frame::check_as_written(envelope, written)
}

/// Packets, written. Whoever calls has checked the limits.
impl Outgoing {
    /// A request. Its pattern stays as the caller has written it.
    pub(super) fn nest_request(&mut self, id: &str, envelope: &Envelope, now: Instant) {
        self.packet(envelope.payload.len(), |body| {
            nest::write_request(body, envelope, id, Some(now));
        });
    }

    /// An event. Its pattern is the route, as a string even if it is an object.
    pub(super) fn nest_event(&mut self, envelope: &Envelope, now: Instant) {
        let route = pattern::route(envelope.pattern.clone());
        let route = serde_json::Value::from(&*route).to_string();
        self.packet(envelope.payload.len(), |body| {
            nest::write_event(body, &route, envelope, Some(now));
        });
    }

    /// An item for the caller whose request had this id.
    pub(super) fn nest_reply(&mut self, id: &[u8], item: &Item) {
        match item {
            Item::Value(payload) | Item::Last(payload) if payload.len() >= COPIED_BELOW => {
                self.large_reply(id, item, payload);
            }
            _ => self.packet(0, |body| nest::write_item(body, Some(id), item)),
        }
    }

    /// Writes the payload from where it is.
    fn large_reply(&mut self, id: &[u8], item: &Item, payload: &Bytes) {
        let mut end = Vec::with_capacity(id.len() + AROUND);
        nest::write_item_end(&mut end, Some(id), item);
        let mut room = [0; PREFIX];
        let length = nest::RESPONSE.len() + units(payload) + units(&end);
        let prefix = prefix(length, &mut room);
        self.append(payload, |tail| {
            tail.extend_from_slice(prefix);
            tail.extend_from_slice(nest::RESPONSE);
        });
        self.append(&Bytes::new(), |tail| tail.extend_from_slice(&end));
    }

    /// The answer to a request that nobody here handles.
    pub(super) fn nest_no_handler(&mut self, id: &[u8]) {
        self.packet(0, |body| nest::write_no_handler(body, id));
    }

    fn packet(&mut self, payload: usize, write: impl FnOnce(&mut Vec<u8>)) {
        if payload < COPIED_BELOW {
            return self.append(&Bytes::new(), |tail| put_packet(tail, write));
        }
        let mut body = Vec::with_capacity(payload + AROUND);
        write(&mut body);
        let mut room = [0; PREFIX];
        let prefix = prefix(units(&body), &mut room);
        self.append(&body.into(), |tail| tail.extend_from_slice(prefix));
    }
}

/// The length is known when the body has been written, and goes before it.
fn put_packet(tail: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = tail.len();
    tail.extend_from_slice(&[0; PREFIX]);
    write(tail);
    let body = start + PREFIX;
    let mut room = [0; PREFIX];
    let gap = PREFIX - prefix(units(&tail[body..]), &mut room).len();
    tail[start..body].copy_from_slice(&room);
    tail.drain(start..start + gap);
}

/// A length and the `#`, at the end of `room`.
fn prefix(mut units: usize, room: &mut [u8; PREFIX]) -> &[u8] {
    let mut start = PREFIX - 1;
    room[start] = b'#';
    loop {
        start -= 1;
        room[start] = b'0' + (units % 10) as u8;
        units /= 10;
        if units == 0 {
            return &room[start..];
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::{super::text::Decoder, *};
    use crate::envelope::{MAX_HEADERS, MAX_PATTERN};

    fn written(write: impl FnOnce(&mut Outgoing)) -> Vec<u8> {
        let mut outgoing = Outgoing::default();
        write(&mut outgoing);
        outgoing.to_vec()
    }

    fn bodies(bytes: &[u8]) -> Vec<Bytes> {
        let (mut decoder, mut input) = (Decoder::default(), BytesMut::from(bytes));
        std::iter::from_fn(|| decoder.next(&mut input, 1 << 20).unwrap()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn packets_of_all_sizes_are_framed_alike() {
        let now = Instant::now();
        for size in [
            0,
            1,
            8,
            80,
            90,
            900,
            COPIED_BELOW - 2,
            COPIED_BELOW,
            100_000,
        ] {
            let text = format!("\"{}\"", "ż".repeat(size / 2));
            let item = Item::Last(text.clone().into());
            let frame = written(|out| {
                out.nest_no_handler(b"1");
                out.nest_reply(b"\"\xc3\xbc\"", &item);
                out.nest_event(&Envelope::new(r#"{"b":1,"a":2}"#, text.clone()), now);
                out.nest_request("x", &Envelope::new("a", text.clone()), now);
            });
            let bodies = bodies(&frame);
            assert_eq!(bodies.len(), 4);
            assert_eq!(
                bodies[1],
                format!(r#"{{"response":{text},"isDisposed":true,"id":"ü"}}"#)
            );
            let event = format!(r#"{{"pattern":"{{\"a\":2,\"b\":1}}","data":{text}}}"#);
            assert_eq!(bodies[2], event);
            assert_eq!(
                bodies[3],
                format!(r#"{{"pattern":"a","data":{text},"id":"x"}}"#)
            );
        }
    }

    #[test]
    fn an_envelope_that_passes_fits_beside_the_largest_payload() {
        let mut widest = Envelope::new("\u{1}".repeat(MAX_PATTERN), "1");
        for number in 0..MAX_HEADERS {
            widest
                .headers
                .insert(format!("{number:03}"), "\u{1}".repeat(41));
        }
        assert_eq!(check(&widest), Ok(()));
        let body = written(|out| out.nest_request("x", &widest, Instant::now()));
        assert!(
            body.len() < crate::transport::tcp::frame::OVERHEAD,
            "{}",
            body.len()
        );
        widest.headers.set("000", "\u{1}".repeat(200));
        assert!(check(&widest).is_err());
        assert!(check(&Envelope::new("p".repeat(MAX_PATTERN + 1), "")).is_err());
    }
}
