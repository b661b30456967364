//! Calls: what a [`Client`] is about to do, and what comes of it when it is awaited.

use std::{fmt, future::IntoFuture, marker::PhantomData, time::Duration};

use bytes::Bytes;
use bytestring::ByteString;
use futures_core::Stream;
use serde::de::{DeserializeOwned, IgnoredAny};
use tokio::time::{Instant, timeout_at};

use super::{Client, Inner, check_guarantee};
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
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long a stream may take on a wire that cannot say that its reader has gone.
const STREAM_DEADLINE: Duration = Duration::from_secs(300);

/// A call about to be made: what the three public kinds have in common.
pub(super) struct Call<'a> {
    client: &'a Client,
    codec: Codec,
    pub(super) envelope: Result<Envelope, RpcError>,
    timeout: Option<Duration>,
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

    fn timeout(&self) -> Duration {
        let timeout = self.timeout.unwrap_or(self.client.inner.timeout);
        timeout.min(LONGEST)
    }

    /// The envelope with its deadline and what it inherits.
    fn into_envelope(self, deadline: Option<Instant>) -> Result<(&'a Client, Envelope), RpcError> {
        let mut envelope = self.envelope?;
        envelope.deadline = deadline;
        if let Some(context) = Context::current() {
            context.pass_on(&mut envelope);
        }
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

impl<'a, R: DeserializeOwned + 'a> IntoFuture for SendCall<'a, R> {
    type Output = Result<R, RpcError>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    /// # Errors
    /// The handler's error; `Unavailable` when nobody can be reached, `DeadlineExceeded` when the
    /// time is over, `ResourceExhausted` when the message is too large.
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let codec = self.call.reply_codec();
            let deadline = Instant::now() + self.call.timeout();
            let (client, envelope) = self.call.into_envelope(Some(deadline))?;
            let deadline = envelope.deadline.unwrap_or(deadline);
            let pattern = envelope.pattern.clone();
            let record = Record::new("sent", client, &envelope);
            let reply = timeout_at(deadline, async {
                let mut replies = client
                    .inner
                    .transport
                    .request(envelope, Expect::Single)
                    .await?;
                Ok::<Item, RpcError>(replies.item().await)
            });
            let result = match reply.await {
                Ok(Ok(Item::Last(bytes) | Item::Value(bytes))) => {
                    codec.decode(&bytes).map_err(bad_reply)
                }
                Ok(Ok(Item::End)) => codec.decode(&[]).map_err(bad_reply),
                Ok(Ok(Item::Fail(error)) | Err(error)) => Err(error),
                Err(_) => Err(no_reply(&pattern)),
            };
            record.end(&result);
            result
        })
    }
}

/// A line in the log for a call that has ended, with how long it took: target `nestling::calls`,
/// level debug.
struct Record {
    kind: &'static str,
    transport: &'static str,
    pattern: ByteString,
    trace: Option<ByteString>,
    started: Instant,
}

impl Record {
    fn new(kind: &'static str, client: &Client, envelope: &Envelope) -> Self {
        Self {
            kind,
            transport: client.transport(),
            pattern: envelope.pattern.clone(),
            trace: envelope.headers.get_shared(header::TRACEPARENT).cloned(),
            started: Instant::now(),
        }
    }

    fn end<T>(self, result: &Result<T, RpcError>) {
        let Self {
            kind,
            transport,
            pattern,
            trace,
            started,
        } = self;
        let (pattern, trace) = (&*pattern, trace.as_deref().unwrap_or_default());
        let micros = started.elapsed().as_micros();
        let ok = result.is_ok();
        tracing::debug!(target: "nestling::calls", kind, pattern, transport, micros, ok, trace);
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

fn no_reply(pattern: &str) -> RpcError {
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
    /// a value that takes longer than the timeout ends it with `DeadlineExceeded`.
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let codec = self.call.reply_codec();
            let patience = self.call.timeout();
            let blind = !self.call.client.inner.capabilities.cancels;
            let within = self.within.or(blind.then_some(STREAM_DEADLINE));
            let deadline = within.map(|limit| Instant::now() + limit);
            let (client, envelope) = self.call.into_envelope(deadline)?;
            let pattern = envelope.pattern.clone();
            let request = client.inner.transport.request(envelope, Expect::Many);
            let replies = timeout_at(Instant::now() + patience, request)
                .await
                .map_err(|_| no_reply(&pattern))??;
            Ok(Streaming::new(decode_items(
                replies, codec, patience, pattern,
            )))
        })
    }
}

fn decode_items<R: DeserializeOwned>(
    replies: Replies,
    codec: Codec,
    patience: Duration,
    pattern: ByteString,
) -> impl Stream<Item = Result<R, RpcError>> + Send {
    // `None` after the item that ended the stream; dropping the replies tells the other end.
    futures_util::stream::unfold(Some(replies), move |replies| {
        let pattern = pattern.clone();
        async move {
            let mut replies = replies?;
            let value = |bytes: &[u8]| codec.decode(bytes).map_err(bad_reply);
            match timeout_at(Instant::now() + patience, replies.item()).await {
                Ok(Item::Value(bytes)) => {
                    let decoded = value(&bytes);
                    let rest = decoded.is_ok().then_some(replies);
                    Some((decoded, rest))
                }
                Ok(Item::Last(bytes)) => Some((value(&bytes), None)),
                Ok(Item::End) => None,
                Ok(Item::Fail(error)) => Some((Err(error), None)),
                Err(_) => Some((Err(no_reply(&pattern)), None)),
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
            let deadline = Instant::now() + self.call.timeout();
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
            let record = Record::new("emitted", client, &envelope);
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
