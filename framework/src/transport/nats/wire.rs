//! What a NATS message means: requests, events, replies and control messages, as
//! `docs/wire/nats.md` describes them.

use std::{str::FromStr, time::Duration};

use async_nats::{
    HeaderMap, HeaderName, HeaderValue, Message, StatusCode, Subject, message::OutboundMessage,
};
use bytes::Bytes;
use bytestring::ByteString;
use tokio::time::Instant;

use super::super::{Error, ErrorKind, Item};
use crate::{
    envelope::{Envelope, Headers, header},
    error::RpcError,
};

/// On a request or event: the version of this wire. On a reply: what kind of item it is.
const MARK: &str = "nestling";
const VERSION: &str = "1";
const VALUE: &str = "value";
const END: &str = "end";
const FAIL: &str = "fail";
/// Where callers tell the replicas of a pattern about their calls.
const CONTROL: &str = "_nestling.ctl.";
const CANCEL: &str = "cancel";
const CREDIT: &str = "credit ";
/// No deadline is further away, so that adding it to the time cannot overflow.
const FURTHEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Who speaks: the one place where the wires part.
pub(super) enum Incoming {
    /// A client of this library, or one that speaks its wire.
    Native(Headers, Option<Instant>),
    /// Anybody else.
    Foreign,
}

pub(super) fn incoming(headers: Option<&HeaderMap>) -> Incoming {
    let Some(headers) = headers else {
        return Incoming::Foreign;
    };
    let mut native = false;
    let mut deadline = None;
    let mut entries = Headers::new();
    for (name, values) in headers.iter() {
        let Some(value) = values.first() else {
            continue;
        };
        match name.as_ref() {
            MARK => native = value.as_str() == VERSION,
            header::DEADLINE => deadline = value.as_str().parse().ok().map(Duration::from_millis),
            name => match well_known(name) {
                Some(name) => entries.set(name, value.as_str()),
                None => entries.insert(name, value.as_str()),
            },
        }
    }
    if native {
        let deadline = deadline.map(|remaining| Instant::now() + remaining.min(FURTHEST));
        Incoming::Native(entries, deadline)
    } else {
        Incoming::Foreign
    }
}

/// The name as a constant, where the framework has one.
fn well_known(name: &str) -> Option<&'static str> {
    const NAMES: [&str; 8] = [
        header::CONTENT_TYPE,
        header::TRACEPARENT,
        header::TRACESTATE,
        header::ACTOR,
        header::KEY,
        header::EVENT_ID,
        header::IDEMPOTENCY_KEY,
        header::CORRELATION_ID,
    ];
    NAMES.into_iter().find(|known| *known == name)
}

/// The header block of a request or event.
pub(super) fn headers(envelope: &Envelope) -> Result<HeaderMap, Error> {
    let mut headers = marked(VERSION);
    if let Some(deadline) = envelope.deadline {
        let remaining = deadline.saturating_duration_since(Instant::now());
        let millis = u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX);
        headers.insert(
            HeaderName::from_static(header::DEADLINE),
            HeaderValue::from(millis),
        );
    }
    for (name, value) in envelope.headers.iter() {
        if matches!(&**name, MARK | header::DEADLINE) {
            continue;
        }
        let bad = |part| {
            let message = format!("header {name:?}: its {part} has characters NATS cannot carry");
            Error::new(ErrorKind::Config, message)
        };
        let key = match well_known(name) {
            Some(name) => HeaderName::from_static(name),
            None => HeaderName::from_str(name).map_err(|_| bad("name"))?,
        };
        headers.insert(key, HeaderValue::from_str(value).map_err(|_| bad("value"))?);
    }
    Ok(headers)
}

fn marked(mark: &'static str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(HeaderName::from_static(MARK), mark);
    headers
}

/// One item of a reply.
///
/// The last or only value has no headers: most replies are one, and it keeps them cheap.
pub(super) fn reply(to: Subject, item: Item) -> OutboundMessage {
    let (mark, payload) = match item {
        Item::Last(payload) => (None, payload),
        Item::Value(payload) => (Some(VALUE), payload),
        Item::End => (Some(END), Bytes::new()),
        Item::Fail(error) => (Some(FAIL), Bytes::from(error.to_bytes())),
    };
    OutboundMessage {
        subject: to,
        reply: None,
        payload,
        headers: mark.map(marked),
    }
}

/// What a message on a reply subject says to the caller of `pattern`.
pub(super) fn item(message: Message, pattern: &str) -> Item {
    if let Some(status) = message.status {
        let error = match status {
            StatusCode::NO_RESPONDERS => format!("no responders for {pattern}"),
            _ => format!("status {status} instead of a reply from {pattern}"),
        };
        return Item::Fail(RpcError::unavailable(error));
    }
    match mark(&message) {
        None => Item::Last(message.payload),
        Some(VALUE) => Item::Value(message.payload),
        Some(END) => Item::End,
        Some(FAIL) => Item::Fail(RpcError::from_bytes(&message.payload)),
        Some(other) => {
            let text = format!("{pattern} answered with an item of the unknown kind {other:?}");
            Item::Fail(RpcError::unknown(text))
        }
    }
}

/// Whether a message on a reply subject is one of several, so that its call goes on.
pub(super) fn is_value(message: &Message) -> bool {
    message.status.is_none() && mark(message) == Some(VALUE)
}

fn mark(message: &Message) -> Option<&str> {
    let mark = message
        .headers
        .as_ref()?
        .get(HeaderName::from_static(MARK))?;
    Some(mark.as_str())
}

/// What a caller says about its call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Control {
    /// It no longer waits.
    Cancel,
    /// It has room for more values.
    Credit(u32),
}

impl Control {
    /// A control message about the call that is answered on `reply`.
    pub(super) fn message(self, pattern: &str, reply: Subject) -> OutboundMessage {
        let payload = match self {
            Self::Cancel => Bytes::from_static(CANCEL.as_bytes()),
            Self::Credit(values) => Bytes::from(format!("{CREDIT}{values}")),
        };
        let subject = control_subject(pattern).into();
        OutboundMessage {
            subject,
            reply: Some(reply),
            payload,
            headers: None,
        }
    }

    pub(super) fn parse(payload: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(payload).ok()?;
        match text.strip_prefix(CREDIT) {
            Some(values) => values.parse().ok().map(Self::Credit),
            None => (text == CANCEL).then_some(Self::Cancel),
        }
    }
}

pub(super) fn control_subject(pattern: &str) -> String {
    format!("{CONTROL}{pattern}")
}

/// A pattern as a subject, without copying it.
pub(super) fn subject(pattern: &ByteString) -> Subject {
    Subject::from_utf8(pattern.as_bytes().clone()).unwrap_or_else(|_| Subject::from(&**pattern))
}

/// Whether a subscription to it brings messages of several subjects.
pub(super) fn has_wildcard(pattern: &str) -> bool {
    pattern.split('.').any(|token| matches!(token, "*" | ">"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(sent: OutboundMessage) -> Message {
        let OutboundMessage {
            subject,
            reply,
            payload,
            headers,
        } = sent;
        let length = payload.len();
        Message {
            subject,
            reply,
            payload,
            headers,
            status: None,
            description: None,
            length,
        }
    }

    #[test]
    fn every_kind_of_item_survives() {
        let items = [
            Item::Last("x".into()),
            Item::Value(Bytes::new()),
            Item::End,
            Item::Fail(RpcError::aborted("y")),
        ];
        for sent in items {
            let message = received(reply("_INBOX.a.1".into(), sent.clone()));
            assert_eq!(is_value(&message), matches!(sent, Item::Value(_)));
            assert_eq!(item(message, "a.b"), sent);
        }
        assert!(
            reply("x".into(), Item::Last(Bytes::new()))
                .headers
                .is_none()
        );
    }

    #[test]
    fn an_absent_service_and_a_strange_item_are_errors() {
        let mut message = received(reply("_INBOX.a.1".into(), Item::End));
        message.headers = Some(marked("novelty"));
        assert!(matches!(item(message.clone(), "a.b"), Item::Fail(_)));
        message.status = Some(StatusCode::NO_RESPONDERS);
        let error = RpcError::unavailable("no responders for a.b");
        assert_eq!(item(message, "a.b"), Item::Fail(error));
    }

    #[tokio::test(start_paused = true)]
    async fn headers_and_deadline_travel() {
        let mut envelope = Envelope::new("a.b", "x");
        envelope.headers.set(header::ACTOR, "ada");
        envelope.headers.insert("x-own", "ünï");
        envelope.headers.set(header::DEADLINE, "7");
        envelope.deadline = Some(Instant::now() + Duration::from_millis(250));
        let map = headers(&envelope).unwrap();
        let Incoming::Native(arrived, deadline) = incoming(Some(&map)) else {
            panic!("foreign")
        };
        assert_eq!(
            (arrived.get("actor"), arrived.get("x-own")),
            (Some("ada"), Some("ünï"))
        );
        assert_eq!(arrived.len(), 2);
        assert_eq!(deadline, envelope.deadline);
    }

    #[test]
    fn what_is_not_marked_is_foreign() {
        let check = |headers: Option<HeaderMap>| {
            assert!(matches!(incoming(headers.as_ref()), Incoming::Foreign));
        };
        check(None);
        check(Some(HeaderMap::new()));
        check(Some(marked("2")));
    }

    #[test]
    fn a_header_that_would_break_the_frame_is_refused() {
        let mut envelope = Envelope::new("a.b", "x");
        envelope.headers.insert("x-own", "a\r\nnestling: 2");
        assert_eq!(headers(&envelope).unwrap_err().kind(), ErrorKind::Config);
        let mut envelope = Envelope::new("a.b", "x");
        envelope.headers.insert("x own\n", "a");
        assert_eq!(headers(&envelope).unwrap_err().kind(), ErrorKind::Config);
    }

    #[test]
    fn control_messages_are_read_back() {
        for control in [Control::Cancel, Control::Credit(32)] {
            let message = control.message("a.b", "_INBOX.c.1".into());
            assert_eq!(&*message.subject, "_nestling.ctl.a.b");
            assert_eq!(Control::parse(&message.payload), Some(control));
        }
        for garbage in [
            &b""[..],
            b"cancelled",
            b"credit -1",
            b"credit 99999999999",
            b"\xff",
        ] {
            assert_eq!(Control::parse(garbage), None);
        }
    }

    #[test]
    fn wildcards_are_whole_tokens() {
        assert!(has_wildcard("a.*.b") && has_wildcard("a.>"));
        assert!(!has_wildcard("a.b*") && !has_wildcard("a"));
    }
}
