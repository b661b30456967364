//! The wire of `@nestjs/microservices` 12, as far as its transports have it in common: packets,
//! errors, and which of a service's patterns a received name means.
//!
//! `docs/wire/nest.md` says what travels, and where we differ from NestJS.

mod failure;
mod ids;
mod packet;

use std::{collections::HashSet, time::Duration};

use bytes::Bytes;
use bytestring::ByteString;
use foldhash::fast::RandomState;
use tokio::time::Instant;

#[cfg(feature = "kafka")]
pub(super) use self::failure::{read as read_failure, write as write_failure};
#[cfg(feature = "redis")]
pub(super) use self::packet::is_answer;
#[cfg(feature = "tcp")]
pub(super) use self::packet::{RESPONSE, write_item_end};
pub(super) use self::{
    ids::CallIds,
    packet::{
        Answer, Incoming, Packet, read_answer, read_packet, text, write_event, write_item,
        write_no_handler, write_request,
    },
};
use super::Subscription;
use crate::{
    envelope::{Envelope, Headers, header},
    pattern,
};

/// What a NestJS service answers to a pattern that it does not handle.
pub(super) const NO_HANDLER: &str =
    "There is no matching message handler defined in the remote service.";

/// A deadline further away than this is cut to it, so that adding it to a clock cannot overflow.
const FARTHEST_DEADLINE: u64 = 30 * 24 * 60 * 60 * 1000;

/// The patterns a service handles, messages and events alike: NestJS decides between the two by the
/// packet and not by the handler.
#[derive(Debug)]
pub(super) struct Routes {
    // What is received is looked up and never inserted, so a hash need not withstand an attack.
    routes: HashSet<ByteString, RandomState>,
}

impl Routes {
    pub(super) fn new(subscription: &Subscription) -> Self {
        let messages = subscription.messages.iter().map(|message| &message.pattern);
        let events = subscription.events.iter().map(|event| &event.pattern);
        Self {
            routes: messages
                .chain(events)
                .chain(&subscription.heard)
                .cloned()
                .collect(),
        }
    }

    /// Every route once.
    pub(super) fn iter(&self) -> impl Iterator<Item = &ByteString> {
        self.routes.iter()
    }

    /// A packet's own pattern as text, and the route it leads to, if that is handled here.
    pub(super) fn of_packet(&self, packet: &Packet) -> (ByteString, Option<ByteString>) {
        if let Some(name) = packet.plain_name() {
            let route = self.of_name(&name);
            return (name, route);
        }
        let json = packet.pattern.as_deref().map(std::str::from_utf8);
        let json = json.and_then(Result::ok);
        let route = json.and_then(|json| self.known(&pattern::lookup_json(json)?));
        (packet.name(), route)
    }

    /// The route that the name of a subject, channel or topic leads to, if it is handled here.
    pub(super) fn of_name(&self, name: &ByteString) -> Option<ByteString> {
        self.known(&pattern::lookup(name)?)
    }

    /// The service's own copy, which keeps nothing of what was received alive.
    fn known(&self, route: &ByteString) -> Option<ByteString> {
        self.routes.get(route).cloned()
    }
}

/// The envelope of what a NestJS application sent to `pattern`.
///
/// Its payload is always JSON, whatever the application calls it in a header of its own.
pub(super) fn envelope(
    pattern: ByteString,
    payload: Bytes,
    mut headers: Headers,
    now: Instant,
) -> Envelope {
    headers.remove(header::CONTENT_TYPE);
    let remaining = headers
        .remove(header::DEADLINE)
        .and_then(|text| text.parse::<u64>().ok());
    let deadline = remaining
        .and_then(|millis| now.checked_add(Duration::from_millis(millis.min(FARTHEST_DEADLINE))));
    Envelope {
        pattern,
        headers,
        payload,
        deadline,
    }
}

/// The headers that go to a NestJS application: those of the envelope and the remaining time.
pub(super) fn headers(
    envelope: &Envelope,
    now: Instant,
) -> impl Iterator<Item = (&str, ByteString)> {
    let own = envelope
        .headers
        .iter()
        .filter(|(name, _)| !matches!(&***name, header::CONTENT_TYPE | header::DEADLINE))
        .map(|(name, value)| (&**name, value.clone()));
    let remaining = envelope.deadline.map(|deadline| {
        // Rounded up: zero would say that it is too late already.
        let micros = deadline.saturating_duration_since(now).as_micros();
        let millis = micros.div_ceil(1000).max(1);
        (header::DEADLINE, ByteString::from(millis.to_string()))
    });
    own.chain(remaining)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        contract::Guarantee,
        transport::{EventPattern, MessagePattern},
    };

    fn routes(patterns: &[&'static str]) -> Routes {
        let message = |pattern: &&'static str| MessagePattern {
            pattern: pattern::route(ByteString::from_static(pattern)),
            idempotent: true,
        };
        Routes::new(&Subscription {
            service: "s".to_owned(),
            instance: "i".to_owned(),
            messages: patterns.iter().map(message).collect(),
            events: vec![EventPattern {
                pattern: "e".into(),
                needs: Guarantee::BestEffort,
            }],
            heard: Vec::new(),
            temporary: false,
            max_in_flight: 1,
        })
    }

    fn packet(json: &'static str) -> Packet {
        match read_packet(&Bytes::from_static(json.as_bytes())).unwrap() {
            Incoming::Packet(packet) => packet,
            Incoming::Foreign(_) => panic!("{json} is no packet"),
        }
    }

    #[test]
    fn a_packet_finds_its_handler_however_its_pattern_is_written() {
        let routes = routes(&[r#"{"b":1,"a":2}"#, "1", "true", "user.get"]);
        let found = |json| routes.of_packet(&packet(json)).1;
        for (json, route) in [
            (r#"{"pattern":"user.get"}"#, "user.get"),
            (r#"{"pattern":"e"}"#, "e"),
            (r#"{"pattern":1}"#, "1"),
            (r#"{"pattern":"1.0"}"#, "1"),
            (r#"{"pattern":{"a":2,"b":1}}"#, r#"{"a":2,"b":1}"#),
            (r#"{"pattern":"{ \"b\":1,\"a\":2 }"}"#, r#"{"a":2,"b":1}"#),
        ] {
            assert_eq!(found(json).as_deref(), Some(route), "{json}");
        }
        for json in [
            r#"{"pattern":"true"}"#,
            r#"{"pattern":null}"#,
            r#"{"data":1}"#,
            r#"{"pattern":"nope"}"#,
        ] {
            assert_eq!(found(json), None, "{json}");
        }
        assert_eq!(
            routes.of_name(&"user.get".into()).as_deref(),
            Some("user.get")
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_remaining_time_travels_among_the_headers() {
        let now = Instant::now();
        let mut sent = Envelope::new("a.b", "1");
        sent.headers.set(header::CONTENT_TYPE, "text/plain");
        sent.headers.set("x-own", "ü");
        sent.deadline = Some(now + Duration::from_millis(250));
        let travelling: Headers = headers(&sent, now)
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        let received = envelope("a.b".into(), "1".into(), travelling, now);
        assert_eq!(received.headers.get("x-own"), Some("ü"));
        assert_eq!(received.headers.len(), 1);
        assert_eq!(received.deadline, sent.deadline);
    }
}
