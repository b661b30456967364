//! What crosses a transport: a pattern, headers and opaque bytes.

use std::{borrow::Cow, fmt};

use bytes::Bytes;
use bytestring::ByteString;
use tokio::time::Instant;

/// Names of the headers the framework itself reads or writes.
pub mod header {
    /// How the payload is encoded; absent means JSON.
    pub const CONTENT_TYPE: &str = "content-type";
    /// Which waiting caller a reply belongs to, on brokers without requests of their own.
    pub const CORRELATION_ID: &str = "correlation-id";
    /// Where the reply goes, on brokers without requests of their own.
    pub const REPLY_TO: &str = "reply-to";
    /// Remaining milliseconds, on transports that carry headers as text.
    pub const DEADLINE: &str = "deadline";
    /// W3C trace context.
    pub const TRACEPARENT: &str = "traceparent";
    /// W3C trace context, the vendors' part.
    pub const TRACESTATE: &str = "tracestate";
    /// Who is asking, as the edge found out; calls made while handling a message inherit it.
    pub const ACTOR: &str = "actor";
    /// The caller's word that two requests are one.
    pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
    /// Id of an event, by which an inbox knows it again.
    pub const EVENT_ID: &str = "event-id";
    /// The aggregate an event is about: events with one key keep their order.
    pub const KEY: &str = "key";
    /// The service and the handlers that an event is for which was dead and is tried again.
    pub const ONLY: &str = "only";
    /// The pattern, where the broker's own address does not say it.
    pub const PATTERN: &str = "pattern";
}

/// The longest pattern that is sent, in bytes.
pub const MAX_PATTERN: usize = 1024;
/// The most headers of one envelope that is sent.
pub const MAX_HEADERS: usize = 128;
/// The most bytes of all its names and values together.
pub const MAX_HEADER_BYTES: usize = 32 * 1024;
/// What is received may be so many times as much: brokers and replays add headers of their own.
const SLACK: usize = 2;

/// A message or event on its way: everything a transport has to carry.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Envelope {
    /// The routing name, such as `user.get`.
    pub pattern: ByteString,
    /// Text beside the payload.
    pub headers: Headers,
    /// The encoded contract; a transport never looks inside.
    pub payload: Bytes,
    /// When the caller stops waiting. Transports send it as the time that remains, so that the
    /// clocks of two machines need not agree.
    pub deadline: Option<Instant>,
}

impl Envelope {
    /// An envelope without headers or deadline.
    pub fn new(pattern: impl Into<ByteString>, payload: impl Into<Bytes>) -> Self {
        Self {
            pattern: pattern.into(),
            payload: payload.into(),
            ..Self::default()
        }
    }

    /// Whether it may be sent, apart from its payload, whose limit is the transport's.
    ///
    /// # Errors
    /// What is above [`MAX_PATTERN`], [`MAX_HEADERS`] or [`MAX_HEADER_BYTES`].
    pub fn check(&self) -> Result<(), &'static str> {
        self.check_within(1)
    }

    /// Whether it is to be handled, however it came.
    pub(crate) fn check_received(&self) -> Result<(), &'static str> {
        self.check_within(SLACK)
    }

    fn check_within(&self, factor: usize) -> Result<(), &'static str> {
        let sizes = self.headers.iter();
        let bytes: usize = sizes.map(|(name, value)| name.len() + value.len()).sum();
        if self.pattern.len() > factor * MAX_PATTERN {
            Err("the pattern is too long")
        } else if self.headers.len() > factor * MAX_HEADERS {
            Err("there are too many headers")
        } else if bytes > factor * MAX_HEADER_BYTES {
            Err("the headers are too long")
        } else {
            Ok(())
        }
    }
}

/// Header names and values, in the order they were set; names are lower-case ASCII.
///
/// A handful of entries at most, so a vector beats a map. Somebody else may send any number of them:
/// one more than is handled is kept, by which the envelope is refused, and the rest is dropped.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers {
    entries: Vec<(ByteString, ByteString)>,
}

impl Headers {
    /// No headers; allocates nothing.
    pub const fn new() -> Self {
        Self {
            entries: Vec::new(),
        }
    }

    /// The value of `name`, if it is set.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.get_shared(name).map(|value| &**value)
    }

    /// The value of `name` as the cheaply cloned string it is stored as.
    pub fn get_shared(&self, name: &str) -> Option<&ByteString> {
        self.entries
            .iter()
            .find(|(key, _)| &**key == name)
            .map(|(_, value)| value)
    }

    /// Sets `name`, replacing a value it had. The name is stored in lower case.
    pub fn insert(&mut self, name: impl Into<ByteString>, value: impl Into<ByteString>) {
        let mut name = name.into();
        if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            name = ByteString::from(name.to_ascii_lowercase());
        }
        let value = value.into();
        let is_full = self.entries.len() > SLACK * MAX_HEADERS;
        match self.entries.iter_mut().find(|(key, _)| *key == name) {
            Some((_, old)) => *old = value,
            None if is_full => {}
            None => self.entries.push((name, value)),
        }
    }

    /// Sets a header whose name is known at compile time, without allocating for the name.
    pub fn set(&mut self, name: &'static str, value: impl Into<ByteString>) {
        self.insert(ByteString::from_static(name), value);
    }

    /// Removes `name` and returns its value.
    pub fn remove(&mut self, name: &str) -> Option<ByteString> {
        let position = self.entries.iter().position(|(key, _)| &**key == name)?;
        Some(self.entries.remove(position).1)
    }

    /// All headers.
    pub fn iter(&self) -> impl Iterator<Item = (&ByteString, &ByteString)> {
        self.entries.iter().map(|(name, value)| (name, value))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// Names only: values may be credentials or personal data.
impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.entries.iter().map(|(name, _)| name))
            .finish()
    }
}

impl<N: Into<Cow<'static, str>>, V: Into<ByteString>> FromIterator<(N, V)> for Headers {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(entries: I) -> Self {
        let mut headers = Self::new();
        for (name, value) in entries {
            match name.into() {
                Cow::Borrowed(name) => headers.set(name, value),
                Cow::Owned(name) => headers.insert(name, value),
            }
        }
        headers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_lower_case_and_unique() {
        let headers: Headers = [("Actor", "a"), ("actor", "b")].into_iter().collect();
        assert_eq!(headers.len(), 1);
        assert_eq!(headers.get("actor"), Some("b"));
    }

    #[test]
    fn what_is_received_may_be_more_than_what_is_sent_but_not_anything() {
        let check = |pattern: usize, headers: usize, length: usize| {
            let mut envelope = Envelope::new("p".repeat(pattern), "");
            for n in 0..headers {
                envelope
                    .headers
                    .insert(format!("{n:06}"), "v".repeat(length));
            }
            (envelope.check().is_ok(), envelope.check_received().is_ok())
        };
        assert_eq!(check(MAX_PATTERN, MAX_HEADERS, 1), (true, true));
        assert_eq!(check(MAX_PATTERN + 1, 0, 0), (false, true));
        assert_eq!(check(2 * MAX_PATTERN + 1, 0, 0), (false, false));
        assert_eq!(check(1, 2 * MAX_HEADERS, 1), (false, true));
        assert_eq!(check(1, 2 * MAX_HEADERS + 1, 1), (false, false));
        assert_eq!(check(1, 1, MAX_HEADER_BYTES), (false, true));
        assert_eq!(check(1, 1, 2 * MAX_HEADER_BYTES), (false, false));
    }

    #[test]
    fn headers_without_end_are_not_kept() {
        let headers: Headers = (0..100_000).map(|n| (n.to_string(), "")).collect();
        assert_eq!(headers.len(), SLACK * MAX_HEADERS + 1);
    }

    #[test]
    fn debug_output_hides_values() {
        let headers: Headers = [("authorization", "secret")].into_iter().collect();
        assert_eq!(format!("{headers:?}"), r#"["authorization"]"#);
    }
}
