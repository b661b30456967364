//! [`Context`]: what is known about the message being handled, and what calls inherit from it.

use std::{
    any::{Any, TypeId},
    fmt,
    future::Future,
    sync::Arc,
    task::Poll,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

use crate::envelope::{Envelope, Headers, header};

tokio::task_local! {
    static CURRENT: Context;
}

/// Headers that a call made while handling a message takes over from it.
const INHERITED: [&str; 3] = [header::TRACEPARENT, header::TRACESTATE, header::ACTOR];

/// The message being handled: its headers, where it came from and how long its caller waits.
///
/// A handler asks for it as an argument. While the handler runs it is also the task's current
/// context, from which calls made through a [`Client`](crate::Client) inherit the trace, the
/// caller and what is left of the deadline. Clones are cheap.
#[derive(Clone)]
pub struct Context {
    inner: Arc<Inner>,
    /// None until there is one, as is usual.
    extensions: Option<Arc<Extensions>>,
}

type Extensions = Vec<(TypeId, Arc<dyn Any + Send + Sync>)>;

struct Inner {
    envelope: Envelope,
    transport: &'static str,
    received_at: SystemTime,
    attempt: u32,
}

impl Context {
    /// A context for `envelope`, received just now by `transport`.
    pub fn new(envelope: Envelope, transport: &'static str) -> Self {
        Self::received(envelope, transport, SystemTime::now(), 1)
    }

    pub(crate) fn received(
        envelope: Envelope,
        transport: &'static str,
        received_at: SystemTime,
        attempt: u32,
    ) -> Self {
        let inner = Inner {
            envelope,
            transport,
            received_at,
            attempt,
        };
        Self {
            inner: Arc::new(inner),
            extensions: None,
        }
    }

    /// The same message, tried once more.
    pub(crate) fn next_attempt(&self) -> Self {
        let Inner {
            envelope,
            transport,
            attempt,
            ..
        } = &*self.inner;
        Self::received(envelope.clone(), transport, SystemTime::now(), attempt + 1)
    }

    /// The context of the message this task is handling.
    pub fn current() -> Option<Self> {
        CURRENT.try_with(Self::clone).ok()
    }

    /// The same without a clone of it.
    pub(crate) fn with_current(look: impl FnOnce(&Self)) {
        // Nothing to look at where there is none.
        CURRENT.try_with(look).unwrap_or_default();
    }

    /// Runs `future` with this as its current context: for work spawned by a handler.
    pub async fn scope<F: Future>(self, future: F) -> F::Output {
        CURRENT.scope(self, future).await
    }

    /// Polls with this as the current context, without a future of its own around the polled one.
    pub(crate) fn poll_scoped<T>(&self, poll: impl FnOnce() -> Poll<T>) -> Poll<T> {
        CURRENT.sync_scope(self.clone(), poll)
    }

    /// The message as it arrived.
    pub fn envelope(&self) -> &Envelope {
        &self.inner.envelope
    }

    /// The concrete pattern it was sent to.
    pub fn pattern(&self) -> &str {
        &self.inner.envelope.pattern
    }

    /// All its headers.
    pub fn headers(&self) -> &Headers {
        &self.inner.envelope.headers
    }

    /// One header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers().get(name)
    }

    /// The scheme of the transport it came by, such as `nats`.
    pub fn transport(&self) -> &'static str {
        self.inner.transport
    }

    /// When this process received it.
    pub fn received_at(&self) -> SystemTime {
        self.inner.received_at
    }

    /// The how-manieth try this is, counted from 1.
    pub fn attempt(&self) -> u32 {
        self.inner.attempt
    }

    /// When the caller stops waiting, if it said so.
    pub fn deadline(&self) -> Option<Instant> {
        self.inner.envelope.deadline
    }

    /// How long the caller still waits; zero when its time is over.
    pub fn remaining(&self) -> Option<Duration> {
        self.deadline()
            .map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// Attaches a value for the layers and handlers behind this one, replacing one of its type.
    pub fn insert<T: Send + Sync + 'static>(&mut self, value: T) {
        let id = TypeId::of::<T>();
        let extensions = Arc::make_mut(self.extensions.get_or_insert_default());
        extensions.retain(|(other, _)| *other != id);
        extensions.push((id, Arc::new(value)));
    }

    /// A value attached by a layer.
    pub fn get<T: Send + Sync + 'static>(&self) -> Option<&T> {
        let id = TypeId::of::<T>();
        let mut extensions = self.extensions.as_deref()?.iter();
        let (_, value) = extensions.find(|(other, _)| *other == id)?;
        value.downcast_ref()
    }

    /// Gives an outgoing envelope what it inherits: trace, caller and the earlier deadline.
    /// What the envelope already says wins.
    pub(crate) fn pass_on(&self, envelope: &mut Envelope) {
        for name in INHERITED {
            if let Some(value) = self.headers().get_shared(name)
                && envelope.headers.get(name).is_none()
            {
                envelope.headers.set(name, value.clone());
            }
        }
        envelope.deadline = match (envelope.deadline, self.deadline()) {
            (Some(own), Some(inherited)) => Some(own.min(inherited)),
            (own, inherited) => own.or(inherited),
        };
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("pattern", &self.pattern())
            .field("transport", &self.transport())
            .field("headers", self.headers())
            .field("attempt", &self.attempt())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outgoing_call_inherits_trace_caller_and_the_earlier_deadline() {
        let mut envelope = Envelope::new("a.b", "");
        envelope.headers.set(header::ACTOR, "ada");
        envelope.headers.set("x-other", "stays");
        let now = Instant::now();
        envelope.deadline = Some(now + Duration::from_secs(1));
        let context = Context::new(envelope, "memory");

        let mut outgoing = Envelope::new("c.d", "");
        outgoing.deadline = Some(now + Duration::from_secs(5));
        context.pass_on(&mut outgoing);
        assert_eq!(outgoing.headers.get(header::ACTOR), Some("ada"));
        assert_eq!(outgoing.headers.get("x-other"), None);
        assert_eq!(outgoing.deadline, Some(now + Duration::from_secs(1)));
    }

    #[test]
    fn an_extension_is_found_by_its_type() {
        let mut context = Context::new(Envelope::default(), "memory");
        context.insert(7_u8);
        context.insert(8_u8);
        assert_eq!(context.get::<u8>(), Some(&8));
        assert_eq!(context.get::<u16>(), None);
    }
}
