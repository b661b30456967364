//! Calls: what a [`Client`] is about to do, and what comes of it when it is awaited.

use std::{
    fmt,
    future::{Future, IntoFuture},
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{self, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use bytestring::ByteString;
use futures_core::Stream;
use serde::de::{DeserializeOwned, IgnoredAny};
use tokio::time::{Instant, timeout_at};

use super::{
    Client, Inner, check_guarantee,
    exchange::Exchange,
    policy::{Held, Outgoing, Received, Rules},
};
use crate::{
    codec::Codec,
    context::Context,
    contract::Guarantee,
    envelope::{Envelope, header},
    error::RpcError,
    handler::{BoxFuture, Streaming},
    transport::{Error, ErrorKind, Expect, Item, Replies, Wire},
};

/// What "for ever" comes to, so that a deadline can be computed.
pub(super) const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long a stream may take on a wire that cannot say that its reader has gone.
const STREAM_DEADLINE: Duration = Duration::from_secs(300);

/// A call about to be made: what the three public kinds have in common.
pub(super) struct Call<'a> {
    client: &'a Client,
    codec: Codec,
    pub(super) envelope: Result<Envelope, RpcError>,
    timeout: Option<Duration>,
    /// Whether making it twice is the same as making it once.
    pub(super) idempotent: bool,
}

impl<'a> Call<'a> {
    pub(super) fn new(
        client: &'a Client,
        codec: Codec,
        envelope: Result<Envelope, RpcError>,
    ) -> Self {
        Self {
            client,
            codec,
            envelope,
            timeout: None,
            idempotent: false,
        }
    }

    fn header(&mut self, name: impl Into<ByteString>, value: impl Into<ByteString>) {
        if let Ok(envelope) = &mut self.envelope {
            envelope.headers.insert(name, value);
        }
    }

    fn payload(&mut self, payload: Bytes) {
        let is_json = || serde_json::from_slice::<IgnoredAny>(&payload).is_ok();
        // It becomes a part of JSON there, and would break the connection.
        if self.client.inner.wire == Wire::Nest && !payload.is_empty() && !is_json() {
            let error = "the payload is no JSON, which is all that NestJS's wire carries";
            self.envelope = Err(RpcError::invalid_argument(error));
        } else if let Ok(envelope) = &mut self.envelope {
            envelope.payload = payload;
        }
    }

    /// How replies are read.
    fn reply_codec(&self) -> Codec {
        match self.client.inner.wire {
            Wire::Native | Wire::Nest => self.codec,
            Wire::NestText => Codec::Text,
        }
    }

    /// What the client's policies say of the pattern.
    fn rules(&self) -> Option<Arc<Rules>> {
        let policies = self.client.inner.policies.as_ref()?;
        policies.of(&self.envelope.as_ref().ok()?.pattern)
    }

    fn timeout(&self, rules: Option<&Rules>) -> Duration {
        let policy = rules.and_then(|rules| rules.timeout);
        let timeout = self.timeout.or(policy);
        timeout.unwrap_or(self.client.inner.timeout).min(LONGEST)
    }

    /// The envelope with its deadline and what it inherits.
    fn into_envelope(self, deadline: Option<Instant>) -> Result<(&'a Client, Envelope), RpcError> {
        let mut envelope = self.envelope?;
        envelope.deadline = deadline;
        Context::with_current(|context| context.pass_on(&mut envelope));
        let checked = envelope.check();
        checked.map_err(|what| Error::new(ErrorKind::TooLarge, what))?;
        Ok((self.client, envelope))
    }
}

macro_rules! call_options {
    ($($call:ident $(<$reply:ident>)?),*) => {
        $(impl $(<$reply>)? $call<'_, $($reply)?> {
            /// Sets a header; it wins over an inherited one.
            pub fn header(
                mut self,
                name: impl Into<ByteString>,
                value: impl Into<ByteString>,
            ) -> Self {
                self.call.header(name, value);
                self
            }

            /// Sends these bytes as they are: a payload that is encoded already, or none at all. On
            /// NestJS's wire it has to be JSON.
            pub fn payload(mut self, payload: impl Into<Bytes>) -> Self {
                self.call.payload(payload.into());
                self
            }

            /// How long this one may take; for a stream, each of its values.
            pub fn timeout(mut self, timeout: Duration) -> Self {
                self.call.timeout = Some(timeout);
                self
            }
        }

        impl $(<$reply>)? fmt::Debug for $call<'_, $($reply)?> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($call)).field("envelope", &self.call.envelope).finish()
            }
        })*
    };
}

call_options!(SendCall<R>, StreamCall<R>, EmitCall);

macro_rules! repeatable {
    ($($call:ident),*) => {
        $(impl<R> $call<'_, R> {
            /// Says that making the call twice is the same as making it once, where there is no
            /// contract that says so: a [`Retry`](crate::Retry) may then make it again.
            pub fn idempotent(mut self) -> Self {
                self.call.idempotent = true;
                self
            }
        })*
    };
}

repeatable!(SendCall, StreamCall);

/// A message about to be sent: await it.
#[must_use = "nothing is sent until it is awaited"]
pub struct SendCall<'a, R> {
    call: Call<'a>,
    reply: PhantomData<fn() -> R>,
}

impl<'a, R> SendCall<'a, R> {
    pub(super) fn new(call: Call<'a>) -> Self {
        Self {
            call,
            reply: PhantomData,
        }
    }
}

impl<'a, R: DeserializeOwned> IntoFuture for SendCall<'a, R> {
    type Output = Result<R, RpcError>;
    type IntoFuture = SendFuture<'a, R>;

    /// # Errors
    /// The handler's error; `Unavailable` when nobody can be reached or a [`Breaker`](crate::Breaker)
    /// is open, `DeadlineExceeded` when the time is over, `ResourceExhausted` when the message is too
    /// large or too many calls are in flight.
    fn into_future(self) -> Self::IntoFuture {
        SendFuture {
            state: State::Unsent(self.call),
            reply: PhantomData,
        }
    }
}

/// What awaits the reply to a [`SendCall`]. The message is sent when it is polled first.
///
/// A type of its own, so that a call need not be boxed.
pub struct SendFuture<'a, R> {
    state: State<'a>,
    reply: PhantomData<fn() -> R>,
}

enum State<'a> {
    Unsent(Call<'a>),
    Sent(Sent<'a>),
    Over,
}

impl<R: DeserializeOwned> Future for SendFuture<'_, R> {
    type Output = Result<R, RpcError>;

    fn poll(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Self::Output> {
        let state = &mut self.get_mut().state;
        if matches!(state, State::Unsent(_))
            && let State::Unsent(call) = std::mem::replace(state, State::Over)
        {
            *state = State::Sent(call.send()?);
        }
        let State::Sent(sent) = state else {
            panic!("polled after the reply was there");
        };
        let result = match ready!(sent.poll(cx)) {
            Ok(Item::Last(bytes) | Item::Value(bytes)) => sent.decode(&bytes),
            Ok(Item::End) => sent.decode(&[]),
            Ok(Item::Fail(error)) | Err(error) => Err(error),
        };
        sent.record.end(&result);
        *state = State::Over;
        Poll::Ready(result)
    }
}

impl<R> fmt::Debug for SendFuture<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SendFuture")
    }
}

/// A message on its way.
struct Sent<'a> {
    codec: Codec,
    record: Record<'a>,
    way: Way<'a>,
}

enum Way<'a> {
    Straight(Exchange<'a>),
    /// Through the layers of the client's policies.
    ByRules(BoxFuture<'static, Result<Received, RpcError>>),
}

impl<'a> Call<'a> {
    fn send(self) -> Result<Sent<'a>, RpcError> {
        let codec = self.reply_codec();
        let rules = self.rules();
        let idempotent = self.idempotent;
        let started = Instant::now();
        let deadline = started + self.timeout(rules.as_deref());
        let (client, envelope) = self.into_envelope(Some(deadline))?;
        let deadline = envelope.deadline.unwrap_or(deadline);
        let record = Record::new("sent", started, client, &envelope);
        let way = match rules {
            None => {
                let transport = &*client.inner.transport;
                Way::Straight(Exchange::new(transport, envelope, deadline))
            }
            Some(rules) => {
                let outgoing = Outgoing::new(envelope, Expect::Single, deadline, idempotent);
                Way::ByRules(rules.send(outgoing))
            }
        };
        Ok(Sent { codec, record, way })
    }
}

impl Sent<'_> {
    fn poll(&mut self, cx: &mut task::Context<'_>) -> Poll<Result<Item, RpcError>> {
        match &mut self.way {
            Way::Straight(exchange) => exchange.poll(cx, &self.record.pattern),
            Way::ByRules(answer) => {
                let received = ready!(answer.as_mut().poll(cx))?;
                Poll::Ready(Ok(received.first.unwrap_or(Item::End)))
            }
        }
    }

    fn decode<R: DeserializeOwned>(&self, bytes: &[u8]) -> Result<R, RpcError> {
        self.codec.decode(bytes).map_err(bad_reply)
    }
}

/// A line in the log for a call that has ended, with how long it took: target `nestling::calls`,
/// level debug.
struct Record<'a> {
    kind: &'static str,
    client: &'a Client,
    pattern: ByteString,
    trace: Option<ByteString>,
    started: Instant,
}

impl<'a> Record<'a> {
    fn new(kind: &'static str, started: Instant, client: &'a Client, envelope: &Envelope) -> Self {
        Self {
            kind,
            client,
            pattern: envelope.pattern.clone(),
            trace: envelope.headers.get_shared(header::TRACEPARENT).cloned(),
            started,
        }
    }

    fn end<T>(&self, result: &Result<T, RpcError>) {
        // What is not logged is not asked for or measured either.
        tracing::debug!(
            target: "nestling::calls",
            kind = self.kind,
            pattern = &*self.pattern,
            transport = self.client.transport(),
            micros = self.started.elapsed().as_micros(),
            ok = result.is_ok(),
            trace = self.trace.as_deref().unwrap_or_default()
        );
    }
}

/// The service's fault, not an invalid argument of ours.
#[expect(clippy::needless_pass_by_value, reason = "it maps an error")]
fn bad_reply(error: RpcError) -> RpcError {
    RpcError::unknown(format!(
        "the reply does not fit its contract: {}",
        error.message
    ))
}

/// Ours, and known by its source: the service may answer with the same code.
fn too_late(what: impl fmt::Display) -> RpcError {
    Error::new(ErrorKind::Timeout, format!("{what} in time")).into()
}

pub(super) fn no_reply(pattern: &str) -> RpcError {
    too_late(format_args!("no reply to {pattern}"))
}

/// A message about to be sent for a stream of replies: await it for the stream.
#[must_use = "nothing is sent until it is awaited"]
pub struct StreamCall<'a, R> {
    call: Call<'a>,
    within: Option<Duration>,
    reply: PhantomData<fn() -> R>,
}

impl<'a, R> StreamCall<'a, R> {
    pub(super) fn new(call: Call<'a>) -> Self {
        Self {
            call,
            within: None,
            reply: PhantomData,
        }
    }

    /// How long the whole of it is of use: its producer is told, and a broker that keeps the request
    /// for a service that is away forgets it afterwards. Without this it may last for ever, where the
    /// wire can tell its producer that nobody reads it any more.
    pub fn within(mut self, limit: Duration) -> Self {
        self.within = Some(limit.min(LONGEST));
        self
    }
}

impl<'a, R: DeserializeOwned + Send + 'static> IntoFuture for StreamCall<'a, R> {
    type Output = Result<Streaming<R>, RpcError>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    /// # Errors
    /// When the message could not be sent. What the handler has to say comes through the stream;
    /// a value that takes longer than the timeout ends it with `DeadlineExceeded`. Where a
    /// [`Retry`](crate::Retry) applies, what goes wrong before the first value is an error here.
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let codec = self.call.reply_codec();
            let rules = self.call.rules();
            let idempotent = self.call.idempotent;
            let patience = self.call.timeout(rules.as_deref());
            let blind = !self.call.client.inner.capabilities.cancels;
            let within = self.within.or(blind.then_some(STREAM_DEADLINE));
            let deadline = within.map(|limit| Instant::now() + limit);
            let (client, envelope) = self.call.into_envelope(deadline)?;
            let pattern = envelope.pattern.clone();
            let until = Instant::now() + patience;
            let (first, replies, held) = match rules {
                None => {
                    let request = client.inner.transport.request(envelope, Expect::Many);
                    let replies = timeout_at(until, request).await;
                    let replies = replies.map_err(|_| no_reply(&pattern))??;
                    (None, Some(replies), Held::default())
                }
                Some(rules) => {
                    let until = envelope.deadline.map_or(until, |own| own.min(until));
                    let outgoing = Outgoing::new(envelope, Expect::Many, until, idempotent);
                    let received = rules.send(outgoing).await?;
                    (received.first, received.rest, received.held)
                }
            };
            let reading = replies.map(|replies| Reading {
                first,
                replies,
                held,
            });
            Ok(Streaming::new(decode_items(
                reading, codec, patience, pattern,
            )))
        })
    }
}

/// A stream that is being read, and what its call holds meanwhile.
struct Reading {
    /// What was waited for before the stream was handed out.
    first: Option<Item>,
    replies: Replies,
    held: Held,
}

impl Reading {
    async fn item(&mut self, patience: Duration, pattern: &str) -> Result<Item, RpcError> {
        if let Some(first) = self.first.take() {
            return Ok(first);
        }
        let item = self.replies.item_until(Instant::now() + patience).await;
        let item = item.ok_or_else(|| no_reply(pattern));
        self.held.first(item.as_ref());
        item
    }
}

fn decode_items<R: DeserializeOwned>(
    reading: Option<Reading>,
    codec: Codec,
    patience: Duration,
    pattern: ByteString,
) -> impl Stream<Item = Result<R, RpcError>> + Send {
    // `None` after the item that ended the stream; dropping the replies tells the other end.
    futures_util::stream::unfold(reading, move |reading| {
        let pattern = pattern.clone();
        async move {
            let mut reading = reading?;
            let value = |bytes: &[u8]| codec.decode(bytes).map_err(bad_reply);
            match reading.item(patience, &pattern).await {
                Ok(Item::Value(bytes)) => {
                    let decoded = value(&bytes);
                    let rest = decoded.is_ok().then_some(reading);
                    Some((decoded, rest))
                }
                Ok(Item::Last(bytes)) => Some((value(&bytes), None)),
                Ok(Item::End) => None,
                Ok(Item::Fail(error)) | Err(error) => Some((Err(error), None)),
            }
        }
    })
}

/// An event about to be emitted: await it.
#[must_use = "nothing is emitted until it is awaited"]
pub struct EmitCall<'a> {
    call: Call<'a>,
    needs: Guarantee,
}

impl<'a> EmitCall<'a> {
    pub(super) fn new(call: Call<'a>, needs: Guarantee) -> Self {
        Self { call, needs }
    }
}

impl<'a> IntoFuture for EmitCall<'a> {
    type Output = Result<(), RpcError>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    /// # Errors
    /// `FailedPrecondition` when the transport gives less than the event needs; `Unavailable` or
    /// `DeadlineExceeded` when it was not acknowledged, and may or may not have been stored.
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let needs = self.needs;
            let started = Instant::now();
            let deadline = started + self.call.timeout(None);
            let (client, mut envelope) = self.call.into_envelope(None)?;
            let Inner {
                transport,
                capabilities,
                ..
            } = &*client.inner;
            check_guarantee(&**transport, capabilities, &envelope.pattern, needs)?;
            let deadline = envelope
                .deadline
                .take()
                .map_or(deadline, |own| own.min(deadline));
            let pattern = envelope.pattern.clone();
            let record = Record::new("emitted", started, client, &envelope);
            let result = match timeout_at(deadline, transport.publish(envelope)).await {
                Ok(published) => published.map_err(RpcError::from),
                Err(_) => Err(too_late(format_args!(
                    "event {pattern} was not acknowledged"
                ))),
            };
            record.end(&result);
            result
        })
    }
}
