//! [`Client`]: sends messages and events to whoever handles them.

use std::{fmt, future::IntoFuture, marker::PhantomData, sync::Arc, time::Duration};

use bytes::Bytes;
use bytestring::ByteString;
use futures_core::Stream;
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use crate::{
    codec::Codec,
    context::Context,
    contract::{Event, Guarantee, Many, Message, Single},
    endpoint::Endpoint,
    envelope::{Envelope, header},
    error::RpcError,
    handler::{BoxFuture, Streaming},
    pattern,
    transport::{
        Capabilities, ClientIdentity, ClientTransport, Error, ErrorKind, Expect, Item, Replies,
        Wire,
    },
};

/// How long a call waits, unless it says otherwise.
const TIMEOUT: Duration = Duration::from_secs(5);
/// What "for ever" comes to, so that a deadline can be computed.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long a stream may take on a wire that cannot say that its reader has gone.
const STREAM_DEADLINE: Duration = Duration::from_secs(300);

/// The sending side: a handle that is cheap to clone and safe to share.
///
/// Calls made while a message is being handled inherit its trace, its caller and what is left of
/// its deadline.
///
/// ```no_run
/// # use nestling::{Client, Message, RpcError};
/// # #[derive(serde::Serialize, serde::Deserialize)]
/// # struct GetUser { id: u64 }
/// # impl Message for GetUser {
/// #     const PATTERN: &'static str = "user.get";
/// #     type Reply = String;
/// #     type Shape = nestling::Single;
/// # }
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let client = Client::connect("nats://localhost").await?;
/// let name = client.send(GetUser { id: 7 }).await?;
/// let hurried = client.send(GetUser { id: 7 }).timeout(std::time::Duration::from_millis(50)).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    transport: Arc<dyn ClientTransport>,
    capabilities: Capabilities,
    codec: Codec,
    wire: Wire,
    timeout: Duration,
}

/// The settings of a [`Client`].
#[derive(Debug)]
pub struct Builder {
    endpoint: Endpoint,
    identity: ClientIdentity,
    codec: Codec,
    timeout: Duration,
    emits: Vec<(&'static str, Guarantee)>,
}

impl Builder {
    /// The calling service and which of its processes this is: where replies and traces name them.
    #[must_use]
    pub fn identity(mut self, service: impl Into<String>, instance: impl Into<String>) -> Self {
        self.identity = ClientIdentity {
            service: service.into(),
            instance: instance.into(),
        };
        self
    }

    /// How messages are encoded; events are always JSON.
    #[must_use]
    pub fn codec(mut self, codec: Codec) -> Self {
        self.codec = codec;
        self
    }

    /// How long a call waits for its reply, and a stream for its next value.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Promises to emit `E`: [`build`](Self::build) fails if the transport cannot give what it needs.
    #[must_use]
    pub fn emits<E: Event>(mut self) -> Self {
        self.emits.push((E::PATTERN, E::DELIVERY));
        self
    }

    /// Connects.
    ///
    /// # Errors
    /// When the URL makes no sense, the peer or broker cannot be reached, or the transport does not
    /// give what an event needs or cannot carry the codec.
    pub async fn build(self) -> Result<Client, Error> {
        let transport = self.endpoint.open_client(self.identity).await?;
        let capabilities = transport.capabilities();
        for (pattern, needs) in self.emits {
            check_guarantee(&*transport, &capabilities, pattern, needs)?;
        }
        let Self { codec, timeout, .. } = self;
        let wire = transport.wire();
        if wire != Wire::Native && codec != Codec::Json {
            let message = format!("NestJS's wire carries JSON, and not {codec:?}");
            return Err(Error::new(ErrorKind::Config, message));
        }
        Ok(Client {
            inner: Arc::new(Inner {
                transport,
                capabilities,
                codec,
                wire,
                timeout,
            }),
        })
    }
}

fn check_guarantee(
    transport: &dyn ClientTransport,
    capabilities: &Capabilities,
    pattern: &str,
    needs: Guarantee,
) -> Result<(), Error> {
    if capabilities.events >= needs {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Config,
        format!(
            "event {pattern} needs at-least-once delivery and {} gives best effort: \
             emit it through kafka:// or redis://, or declare it `best_effort`",
            transport.name()
        ),
    ))
}

impl Client {
    /// Connects with the default settings.
    ///
    /// # Errors
    /// When the URL makes no sense or the broker cannot be reached. A peer without a broker (TCP) is
    /// only connected to by the first call.
    pub async fn connect(endpoint: impl Into<Endpoint>) -> Result<Self, Error> {
        Self::builder(endpoint).build().await
    }

    /// Settings for a connection to `endpoint`.
    pub fn builder(endpoint: impl Into<Endpoint>) -> Builder {
        Builder {
            endpoint: endpoint.into(),
            identity: ClientIdentity {
                service: "client".to_owned(),
                instance: Uuid::new_v4().simple().to_string(),
            },
            codec: Codec::default(),
            timeout: TIMEOUT,
            emits: Vec::new(),
        }
    }

    /// Sends a message and waits for its reply.
    #[expect(clippy::needless_pass_by_value, reason = "what is sent is given away")]
    pub fn send<M: Message<Shape = Single>>(&self, message: M) -> SendCall<'_, M::Reply> {
        SendCall {
            call: self.call(ByteString::from_static(M::PATTERN), &message),
            reply: PhantomData,
        }
    }

    /// Sends to a pattern that has no contract.
    pub fn send_at<R: DeserializeOwned>(
        &self,
        pattern: impl Into<ByteString>,
        payload: &(impl Serialize + ?Sized),
    ) -> SendCall<'_, R> {
        SendCall {
            call: self.call(pattern, payload),
            reply: PhantomData,
        }
    }

    /// Sends a message whose reply is a stream.
    #[expect(clippy::needless_pass_by_value, reason = "what is sent is given away")]
    pub fn stream<M: Message<Shape = Many>>(&self, message: M) -> StreamCall<'_, M::Reply> {
        StreamCall {
            call: self.call(ByteString::from_static(M::PATTERN), &message),
            within: None,
            reply: PhantomData,
        }
    }

    /// Asks a pattern that has no contract for a stream; a single reply is a stream of one.
    pub fn stream_at<R: DeserializeOwned + Send + 'static>(
        &self,
        pattern: impl Into<ByteString>,
        payload: &(impl Serialize + ?Sized),
    ) -> StreamCall<'_, R> {
        StreamCall {
            call: self.call(pattern, payload),
            within: None,
            reply: PhantomData,
        }
    }

    /// Emits an event and waits for the acknowledgement the transport has, if any.
    #[expect(clippy::needless_pass_by_value, reason = "what is sent is given away")]
    pub fn emit<E: Event>(&self, event: E) -> EmitCall<'_> {
        self.emit_encoded(
            ByteString::from_static(E::PATTERN),
            E::DELIVERY,
            event.key(),
            Codec::Json.encode(&event),
        )
    }

    /// Emits an event that has no contract, as best effort.
    pub fn emit_at(
        &self,
        pattern: impl Into<ByteString>,
        payload: &(impl Serialize + ?Sized),
    ) -> EmitCall<'_> {
        self.emit_encoded(
            pattern,
            Guarantee::BestEffort,
            None,
            Codec::Json.encode(payload),
        )
    }

    pub(crate) fn emit_encoded(
        &self,
        pattern: impl Into<ByteString>,
        needs: Guarantee,
        key: Option<String>,
        payload: Result<Bytes, RpcError>,
    ) -> EmitCall<'_> {
        let mut call = self.call_encoded(pattern, Codec::Json, payload);
        if let Ok(envelope) = &mut call.envelope {
            if let Some(key) = key {
                envelope.headers.set(header::KEY, key);
            }
            if needs == Guarantee::AtLeastOnce {
                envelope
                    .headers
                    .set(header::EVENT_ID, Uuid::now_v7().to_string());
            }
        }
        EmitCall { call, needs }
    }

    /// What the transport behind it gives.
    pub fn capabilities(&self) -> Capabilities {
        self.inner.capabilities
    }

    /// The wire it speaks.
    pub fn wire(&self) -> Wire {
        self.inner.wire
    }

    /// The scheme of the transport behind it.
    pub fn transport(&self) -> &'static str {
        self.inner.transport.name()
    }

    /// Lets go of the connection; calls that wait end with `Unavailable`.
    pub async fn close(&self) {
        self.inner.transport.close().await;
    }

    fn call(
        &self,
        pattern: impl Into<ByteString>,
        payload: &(impl Serialize + ?Sized),
    ) -> Call<'_> {
        let codec = self.inner.codec;
        self.call_encoded(pattern, codec, codec.encode(payload))
    }

    fn call_encoded(
        &self,
        pattern: impl Into<ByteString>,
        codec: Codec,
        payload: Result<Bytes, RpcError>,
    ) -> Call<'_> {
        let envelope = payload.map(|payload| {
            let pattern = match self.inner.wire {
                Wire::Native => pattern::route(pattern.into()),
                Wire::Nest | Wire::NestText => pattern.into(),
            };
            let mut envelope = Envelope::new(pattern, payload);
            if let Some(content_type) = codec.content_type() {
                envelope
                    .headers
                    .set(header::CONTENT_TYPE, ByteString::from_static(content_type));
            }
            envelope
        });
        Call {
            client: self,
            codec,
            envelope,
            timeout: None,
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("transport", &self.transport())
            .finish_non_exhaustive()
    }
}

/// A call about to be made: what the three public kinds have in common.
struct Call<'a> {
    client: &'a Client,
    codec: Codec,
    envelope: Result<Envelope, RpcError>,
    timeout: Option<Duration>,
}

impl<'a> Call<'a> {
    fn header(&mut self, name: impl Into<ByteString>, value: impl Into<ByteString>) {
        if let Ok(envelope) = &mut self.envelope {
            envelope.headers.insert(name, value);
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

            /// Sends these bytes as they are: a payload that is encoded already, or none at all.
            pub fn payload(mut self, payload: impl Into<Bytes>) -> Self {
                if let Ok(envelope) = &mut self.call.envelope {
                    envelope.payload = payload.into();
                }
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

impl<R> StreamCall<'_, R> {
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
