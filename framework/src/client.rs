//! [`Client`]: sends messages and events to whoever handles them.

mod call;
mod exchange;
mod policy;

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use bytestring::ByteString;
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::timeout;
use uuid::Uuid;

use self::{call::Call, policy::Policies};
pub use self::{
    call::{EmitCall, SendCall, SendFuture, StreamCall},
    policy::{Breaker, Policy, Retry},
};
use crate::{
    codec::Codec,
    contract::{Event, Guarantee, Many, Message, Single},
    endpoint::{Endpoint, patiently},
    envelope::{Envelope, header},
    error::RpcError,
    pattern,
    transport::{
        self, Capabilities, ClientIdentity, ClientTransport, DeadLetters, Error, ErrorKind, Wire,
    },
};

/// How long a call waits, unless it says otherwise.
const TIMEOUT: Duration = Duration::from_secs(5);

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
    policies: Option<Policies>,
}

/// The settings of a [`Client`].
#[derive(Debug)]
pub struct Builder {
    endpoint: Endpoint,
    identity: ClientIdentity,
    codec: Codec,
    timeout: Duration,
    emits: Vec<(&'static str, Guarantee)>,
    policy: Option<Policy>,
    policies: Vec<(ByteString, Policy)>,
    patience: Duration,
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

    /// What to do when calls fail: without this, nothing.
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = Some(policy);
        self
    }

    /// The same for one pattern; what `policy` leaves unset is as for the others.
    #[must_use]
    pub fn policy_for(mut self, pattern: impl Into<ByteString>, policy: Policy) -> Self {
        self.policies.push((pattern.into(), policy));
        self
    }

    /// How long [`build`](Self::build) goes on trying while the broker is away; without this, not at
    /// all. For a process that is started together with its broker.
    #[must_use]
    pub fn patience(mut self, limit: Duration) -> Self {
        self.patience = limit;
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
        let (endpoint, identity) = (&self.endpoint, &self.identity);
        let open = || endpoint.open_client(identity.clone());
        let transport = patiently(self.patience, Error::may_pass, open).await?;
        let capabilities = transport.capabilities();
        for (pattern, needs) in self.emits {
            check_guarantee(&*transport, &capabilities, pattern, needs)?;
        }
        let Self {
            codec,
            timeout,
            policy,
            policies,
            ..
        } = self;
        let wire = transport.wire();
        if wire != Wire::Native && codec != Codec::Json {
            let message = format!("NestJS's wire carries JSON, and not {codec:?}");
            return Err(Error::new(ErrorKind::Config, message));
        }
        let own = policies
            .into_iter()
            .map(|(pattern, policy)| (route(wire, pattern), policy));
        let policies = Policies::new(Arc::clone(&transport), policy, own.collect());
        Ok(Client {
            inner: Arc::new(Inner {
                transport,
                capabilities,
                codec,
                wire,
                timeout,
                policies,
            }),
        })
    }
}

/// A pattern as the wire has it.
fn route(wire: Wire, pattern: ByteString) -> ByteString {
    match wire {
        Wire::Native => pattern::route(pattern),
        Wire::Nest | Wire::NestText => pattern,
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
            policy: None,
            policies: Vec::new(),
            patience: Duration::ZERO,
        }
    }

    /// Sends a message and waits for its reply.
    #[expect(clippy::needless_pass_by_value, reason = "what is sent is given away")]
    pub fn send<M: Message<Shape = Single>>(&self, message: M) -> SendCall<'_, M::Reply> {
        let mut call = self.call(ByteString::from_static(M::PATTERN), &message);
        call.idempotent = M::IDEMPOTENT;
        SendCall::new(call)
    }

    /// Sends to a pattern that has no contract.
    pub fn send_at<R: DeserializeOwned>(
        &self,
        pattern: impl Into<ByteString>,
        payload: &(impl Serialize + ?Sized),
    ) -> SendCall<'_, R> {
        SendCall::new(self.call(pattern, payload))
    }

    /// Sends a message whose reply is a stream.
    #[expect(clippy::needless_pass_by_value, reason = "what is sent is given away")]
    pub fn stream<M: Message<Shape = Many>>(&self, message: M) -> StreamCall<'_, M::Reply> {
        let mut call = self.call(ByteString::from_static(M::PATTERN), &message);
        call.idempotent = M::IDEMPOTENT;
        StreamCall::new(call)
    }

    /// Asks a pattern that has no contract for a stream; a single reply is a stream of one.
    pub fn stream_at<R: DeserializeOwned + Send + 'static>(
        &self,
        pattern: impl Into<ByteString>,
        payload: &(impl Serialize + ?Sized),
    ) -> StreamCall<'_, R> {
        StreamCall::new(self.call(pattern, payload))
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
        EmitCall::new(call, needs)
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

    /// Gives a dead letter once more to the handlers that failed, and removes it; false if there is
    /// none with this id. Handlers should expect to see such an event twice: a crash in between leaves
    /// the dead letter where it is.
    ///
    /// # Errors
    /// When the event was not acknowledged, or the dead letters cannot be reached.
    pub async fn replay(
        &self,
        dead_letters: &dyn DeadLetters,
        service: &str,
        id: &str,
    ) -> Result<bool, RpcError> {
        let replayed = transport::replay(dead_letters, &*self.inner.transport, service, id);
        match timeout(self.inner.timeout, replayed).await {
            Ok(replayed) => Ok(replayed?),
            Err(_) => Err(RpcError::deadline_exceeded("not replayed in time")),
        }
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
            let pattern = route(self.inner.wire, pattern.into());
            let mut envelope = Envelope::new(pattern, payload);
            if let Some(content_type) = codec.content_type() {
                envelope
                    .headers
                    .set(header::CONTENT_TYPE, ByteString::from_static(content_type));
            }
            envelope
        });
        Call::new(self, codec, envelope)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("transport", &self.transport())
            .finish_non_exhaustive()
    }
}
