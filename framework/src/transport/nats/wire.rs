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
/// Where replies go; after it come the client, the call and the remaining milliseconds. A request
/// that is answered there is native without any header, which halves what a small one costs.
const REPLY: &str = "_nestling.re.";
/// What a gateway between clusters puts before a reply subject.
const GATEWAY: &str = "_GR_.";
/// Where callers tell the replicas of a pattern about their calls.
const CONTROL: &str = "_nestling.ctl.";
const CANCEL: &str = "cancel";
const CREDIT: &str = "credit ";
/// No deadline is further away, so that adding it to the time cannot overflow.
const FURTHEST: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Who speaks: the one place where the wires part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaker {
    /// A client of this library, or one that speaks its wire.
    Native,
    /// The same in a version that we do not know.
    Unknown,
    /// Anybody else, such as a NestJS application.
    Foreign,
}

pub(super) fn speaker(message: &Message) -> Speaker {
    match mark(message) {
        Some(VERSION) => Speaker::Native,
        Some(_) => Speaker::Unknown,
        None => match message.reply.as_deref().and_then(reply_address) {
            Some(_) => Speaker::Native,
            None => Speaker::Foreign,
        },
    }
}

/// The headers of a native request or event, and when its caller stops waiting.
pub(super) fn received_headers(message: &Message) -> (Headers, Option<Instant>) {
    let address = message.reply.as_deref().and_then(reply_address);
    let mut remaining = address.and_then(remaining_time);
    let mut entries = Headers::new();
    for (name, values) in message.headers.iter().flat_map(HeaderMap::iter) {
        let Some(value) = values.first() else {
            continue;
        };
        match name.as_ref() {
            MARK => {}
            header::DEADLINE => remaining = value.as_str().parse().ok(),
            name => keep_header(&mut entries, name, value.as_str()),
        }
    }
    let until = |millis| Instant::now() + Duration::from_millis(millis).min(FURTHEST);
    (entries, remaining.map(until))
}

/// Without allocating for the name, where the framework has a constant for it.
pub(super) fn keep_header(entries: &mut Headers, name: &str, value: &str) {
    match well_known(name) {
        Some(name) => entries.set(name, value),
        None => entries.insert(name, value),
    }
}

/// The client and what follows, of a reply subject of this wire.
fn reply_address(reply: &str) -> Option<&str> {
    match reply.strip_prefix(REPLY) {
        None if reply.starts_with(GATEWAY) => {
            let start = reply.find(REPLY)?;
            Some(&reply[start + REPLY.len()..])
        }
        address => address,
    }
}

fn remaining_time(address: &str) -> Option<u64> {
    address.splitn(3, '.').nth(2)?.parse().ok()
}

/// What a call is known by, in its request and in control messages about it.
pub(super) fn call_key(reply: &str) -> &str {
    let Some(address) = reply_address(reply) else {
        return reply;
    };
    let end = address.match_indices('.').nth(1);
    end.map_or(address, |(end, _)| &address[..end])
}

/// The start of the subjects that a client gets its replies on.
pub(super) fn reply_prefix(client: &str) -> String {
    format!("{REPLY}{client}.")
}

/// Where the reply to a call goes, with the time its caller still waits.
pub(super) fn reply_subject(prefix: &str, call: u64, deadline: Option<Instant>) -> Subject {
    match deadline.map(remaining) {
        Some(millis) => format!("{prefix}{call}.{millis}").into(),
        None => format!("{prefix}{call}").into(),
    }
}

/// The call that a message on a reply subject belongs to.
pub(super) fn call_of(prefix: &str, subject: &str) -> Option<u64> {
    let rest = subject.strip_prefix(prefix)?;
    let (call, _) = rest.split_once('.').unwrap_or((rest, ""));
    call.parse().ok()
}

/// Rounded up to milliseconds: zero would say that it is too late already.
fn remaining(deadline: Instant) -> u64 {
    let remaining = deadline
        .saturating_duration_since(Instant::now())
        .min(FURTHEST);
    u64::try_from(remaining.as_micros().div_ceil(1_000).max(1)).unwrap_or(u64::MAX)
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

/// A request that is answered at `reply`.
pub(super) fn request(
    envelope: Envelope,
    reply: Subject,
    mark: bool,
) -> Result<OutboundMessage, Error> {
    Ok(OutboundMessage {
        subject: subject(&envelope.pattern),
        reply: Some(reply),
        headers: headers(&envelope, mark)?,
        payload: envelope.payload,
    })
}

pub(super) fn event(envelope: Envelope) -> Result<OutboundMessage, Error> {
    Ok(OutboundMessage {
        subject: subject(&envelope.pattern),
        reply: None,
        headers: headers(&envelope, true)?,
        payload: envelope.payload,
    })
}

/// The header block of a request or event. The mark is needed where no reply subject has it.
pub(super) fn headers(envelope: &Envelope, mark: bool) -> Result<Option<HeaderMap>, Error> {
    if !mark && envelope.headers.is_empty() {
        return Ok(None);
    }
    let mut headers = if mark {
        marked(VERSION)
    } else {
        HeaderMap::new()
    };
    if mark && let Some(deadline) = envelope.deadline {
        let millis = HeaderValue::from(remaining(deadline));
        headers.insert(HeaderName::from_static(header::DEADLINE), millis);
    }
    for (name, value) in envelope.headers.iter() {
        if &**name != header::DEADLINE {
            set_header(&mut headers, name, value)?;
        }
    }
    Ok(Some(headers))
}

/// Adds a header of an envelope. The mark is ours to set and nobody else's.
pub(super) fn set_header(headers: &mut HeaderMap, name: &str, value: &str) -> Result<(), Error> {
    if name == MARK {
        return Ok(());
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
    Ok(())
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
        Item::Fail(error) => (Some(FAIL), error.to_bytes()),
    };
    OutboundMessage {
        subject: to,
        reply: None,
        payload,
        headers: mark.map(marked),
    }
}

/// Why a message on a reply subject is no item.
#[derive(Debug, PartialEq)]
pub(super) enum NoItem {
    /// The broker says that nobody is subscribed.
    NoResponders,
    /// The broker says something else.
    Status(StatusCode),
    /// An item of a kind that this version does not have.
    UnknownKind(String),
    /// What should be JSON is none.
    NotJson(String),
}

impl NoItem {
    /// What it means to the caller of `pattern`.
    pub(super) fn into_error(self, pattern: &str) -> RpcError {
        match self {
            Self::NoResponders => {
                let text = format!("no responders for {pattern}");
                Error::new(ErrorKind::NoResponders, text).into()
            }
            Self::Status(status) => {
                let text = format!("status {status} instead of a reply from {pattern}");
                Error::new(ErrorKind::Closed, text).into()
            }
            Self::UnknownKind(kind) => RpcError::unknown(format!(
                "{pattern} answered with an item of the unknown kind {kind:?}"
            )),
            Self::NotJson(error) => {
                RpcError::unknown(format!("{pattern} answered with what is not JSON: {error}"))
            }
        }
    }
}

/// What a message on a reply subject says to its caller.
pub(super) fn item(message: Message) -> Result<Item, NoItem> {
    check_status(&message)?;
    match mark(&message) {
        None => Ok(Item::Last(message.payload)),
        Some(VALUE) => Ok(Item::Value(message.payload)),
        Some(END) => Ok(Item::End),
        Some(FAIL) => Ok(Item::Fail(RpcError::from_bytes(&message.payload))),
        Some(other) => Err(NoItem::UnknownKind(other.to_owned())),
    }
}

/// Replies have no status; only what the broker says itself has.
pub(super) fn check_status(message: &Message) -> Result<(), NoItem> {
    match message.status {
        None => Ok(()),
        Some(StatusCode::NO_RESPONDERS) => Err(NoItem::NoResponders),
        Some(status) => Err(NoItem::Status(status)),
    }
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
    /// A control message about the call that is answered at `reply`.
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
            assert_eq!(item(message), Ok(sent));
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
        let novelty = NoItem::UnknownKind("novelty".to_owned());
        assert_eq!(item(message.clone()), Err(novelty));
        message.status = Some(StatusCode::NO_RESPONDERS);
        let error = item(message).unwrap_err().into_error("a.b");
        assert_eq!(error, RpcError::unavailable("no responders for a.b"));
    }

    fn requested(envelope: &Envelope, mark: bool, reply: &str) -> Message {
        received(request(envelope.clone(), reply.into(), mark).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn headers_and_deadline_travel_with_the_mark_or_without() {
        let mut envelope = Envelope::new("a.b", "x");
        envelope.headers.set(header::ACTOR, "ada");
        envelope.headers.insert("x-own", "ünï");
        envelope.headers.set(header::DEADLINE, "7");
        envelope.deadline = Some(Instant::now() + Duration::from_millis(250));
        let marked = requested(&envelope, true, "_INBOX.x");
        let short = reply_subject(&reply_prefix("c"), 7, envelope.deadline);
        let far = format!("_GR_.hash.hash.{short}");
        for message in [
            marked,
            requested(&envelope, false, &short),
            requested(&envelope, false, &far),
        ] {
            assert_eq!(speaker(&message), Speaker::Native);
            let (arrived, deadline) = received_headers(&message);
            let values = (arrived.get("actor"), arrived.get("x-own"), arrived.len());
            assert_eq!(values, (Some("ada"), Some("ünï"), 2));
            assert_eq!(deadline, envelope.deadline);
        }
    }

    #[test]
    fn a_request_without_headers_has_none_on_the_wire() {
        let message = requested(&Envelope::new("a.b", "x"), false, "_nestling.re.c.7");
        assert!(message.headers.is_none());
        assert_eq!(speaker(&message), Speaker::Native);
        assert_eq!(received_headers(&message).1, None);
    }

    #[test]
    fn a_call_is_known_by_its_reply_subject() {
        let prefix = reply_prefix("c");
        let request = reply_subject(&prefix, 7, Some(Instant::now()));
        let control = reply_subject(&prefix, 7, None);
        assert_eq!(
            (&*request, &*control),
            ("_nestling.re.c.7.1", "_nestling.re.c.7")
        );
        for subject in [&*request, &*control, "_GR_.x.y._nestling.re.c.7.1"] {
            assert_eq!(call_key(subject), "c.7");
        }
        assert_eq!(call_key("_INBOX.c.7.1"), "_INBOX.c.7.1");
        assert_eq!(
            (call_of(&prefix, &request), call_of(&prefix, &control)),
            (Some(7), Some(7))
        );
        for stranger in [
            "",
            "_nestling.re.c.",
            "_nestling.re.c.x",
            "_nestling.re.d.7",
        ] {
            assert_eq!(call_of(&prefix, stranger), None);
        }
    }

    #[test]
    fn what_is_not_marked_is_foreign() {
        let check = |reply: &str, headers: Option<HeaderMap>, expected: Speaker| {
            let mut message = requested(&Envelope::new("a.b", "x"), false, reply);
            message.headers = headers;
            assert_eq!(speaker(&message), expected, "{reply}");
        };
        check("_INBOX.x", None, Speaker::Foreign);
        check("_INBOX.x", Some(HeaderMap::new()), Speaker::Foreign);
        check("_INBOX._nestling.re.c.7", None, Speaker::Foreign);
        check("_INBOX.x", Some(marked("2")), Speaker::Unknown);
        check("_nestling.re.c.7", Some(marked("2")), Speaker::Unknown);
        check("_INBOX.x", Some(marked("1")), Speaker::Native);
    }

    #[test]
    fn a_header_that_would_break_the_frame_is_refused() {
        for (name, value) in [("x-own", "a\r\nnestling: 2"), ("x own\n", "a")] {
            let mut envelope = Envelope::new("a.b", "x");
            envelope.headers.insert(name, value);
            assert_eq!(
                headers(&envelope, false).unwrap_err().kind(),
                ErrorKind::Config
            );
        }
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
