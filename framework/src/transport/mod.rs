//! The seam: what a transport must provide, and the table of those that exist.
//!
//! A transport moves [`Envelope`]s between processes. On the receiving side it hands out
//! [`Source`]s, from which the [`Server`](crate::Server) *pulls* deliveries; it never calls a
//! handler and never polls a handler's stream. On the sending side it starts requests and
//! publishes events. Everything else (routing, concurrency, deadlines, retries, drain) is written
//! once, outside.
//!
//! To add one, implement [`ServerTransport`] and [`ClientTransport`]; `examples/custom_transport.rs`
//! shows both over a Unix socket.

mod address;
mod calls;
#[cfg(any(feature = "kafka", feature = "redis"))]
mod clock;
mod dead_letters;
mod delivery;
mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
#[cfg(feature = "kafka")]
mod kafka;
mod memory;
#[cfg(feature = "nats")]
mod nats;
#[cfg_attr(
    not(all(
        feature = "tcp",
        feature = "nats",
        feature = "redis",
        feature = "kafka"
    )),
    allow(dead_code, unused_imports, reason = "each transport uses a part of it")
)]
mod nest;
mod pending;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "sqlx")]
pub(crate) mod sqlite;
#[cfg(feature = "tcp")]
mod tcp;
#[cfg_attr(
    not(all(feature = "tcp", feature = "nats", feature = "redis", feature = "tls")),
    allow(dead_code, unused_imports, reason = "each transport uses a part of it")
)]
mod tls;
#[cfg(any(feature = "nats", feature = "redis", feature = "kafka"))]
mod trials;

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{self, Poll},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use bytestring::ByteString;
use futures_core::Stream;

pub use self::{
    address::Address,
    calls::{Call, Calls, WINDOW},
    dead_letters::{DeadLetter, DeadLetterStore, DeadLetters, replay},
    delivery::{Delivery, Kind},
    error::{Error, ErrorKind},
    memory::Memory,
    pending::{Control, Item, Pending, Replies},
};
pub(crate) use self::{dead_letters::Only, delivery::Unsettled};
use crate::{contract::Guarantee, envelope::Envelope, error::RpcError, handler::BoxFuture};

/// The receiving side of a transport.
#[async_trait]
pub trait ServerTransport: Send + Sync + 'static {
    /// The scheme of its URLs, such as `nats`.
    fn name(&self) -> &'static str;

    /// What it gives.
    fn capabilities(&self) -> Capabilities;

    /// Starts to receive what the subscription names. Called once.
    ///
    /// Returns when peers and brokers can see the subscription: a message sent afterwards arrives.
    ///
    /// # Errors
    /// When the broker cannot be reached or the address cannot be bound.
    async fn subscribe(&self, subscription: Subscription) -> Result<Sources, Error>;

    /// Where clients reach it, if that is more definite than the URL it was made from: the port
    /// that `tcp://127.0.0.1:0` was bound to. Known after [`subscribe`](Self::subscribe).
    fn local_url(&self) -> Option<String> {
        None
    }

    /// Takes no more sources (stops listening). Called when the server drains, before the sources
    /// are stopped.
    async fn close(&self) {}
}

/// The sources of a subscription, as they appear: connections, partitions, subscriptions.
pub type Sources = Pin<Box<dyn Stream<Item = Box<dyn Source>> + Send>>;

/// Whatever has an order and a back-pressure of its own: a TCP connection, a Kafka partition, a
/// NATS or Redis subscription.
///
/// One task owns a source and everything that happens on it: it polls for deliveries, and each
/// poll is also the source's chance to write replies that were settled since the last one.
pub trait Source: Send + 'static {
    /// Appends up to `room` deliveries that are ready to `batch` and returns how many; `None` when
    /// there will be no more.
    ///
    /// With `room` 0 nothing may be appended, but writes, acknowledgements and control frames still
    /// make progress; it then returns `Pending`, or `None` at the end.
    /// A settled outcome must wake the task that polled last, if anything is left to write.
    fn poll_deliveries(
        &mut self,
        cx: &mut task::Context<'_>,
        room: usize,
        batch: &mut Vec<Delivery>,
    ) -> Poll<Option<usize>>;

    /// The server drains: take nothing new. What cannot be given back is still delivered, then
    /// [`poll_deliveries`](Self::poll_deliveries) returns `None`.
    fn stop(&mut self);

    /// After the last delivery has been settled: write out what is left and let go.
    fn poll_close(&mut self, cx: &mut task::Context<'_>) -> Poll<()>;
}

/// Where the outcome of one delivery goes.
pub trait Responder: Send + 'static {
    /// Whether there is room for one more value of a streamed reply. Once it has said yes it is
    /// not asked again before that value has been given.
    ///
    /// # Errors
    /// [`Gone`] when nobody will read it any more.
    fn poll_ready(&mut self, cx: &mut task::Context<'_>) -> Poll<Result<(), Gone>>;

    /// One value of a streamed reply, after [`poll_ready`](Self::poll_ready) said yes.
    fn value(&mut self, payload: Bytes);

    /// Ready when the caller has dropped its call, where the wire can tell.
    fn poll_cancelled(&mut self, cx: &mut task::Context<'_>) -> Poll<()>;

    /// Another try has failed, the `attempts`-th that this event has had. Whoever gets it next, should
    /// this process end, counts on from here; where the transport has no place for it, not.
    fn tried(&mut self, _attempts: u32) {}

    /// What became of the delivery. Never waits: it queues to the transport's writer.
    fn settle(self: Box<Self>, outcome: Outcome);
}

/// The caller of a streamed reply has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

/// What became of a delivery.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The one value of a reply, or the last of a stream whose end came with it.
    Reply(Bytes),
    /// The end of a streamed reply, or of a message that has no answer.
    Done,
    /// The error that answers a message, alone or after values.
    Fail(RpcError),
    /// An event was handled.
    Ack,
    /// It was not handled here: somebody should get it again, where the transport can.
    Retry {
        /// Not earlier than this.
        after: Duration,
    },
    /// The service has given an event up: it goes to the dead letters, if the transport has them, and
    /// is then acknowledged. Where it has none, the server has kept it already, or nobody does.
    Reject(Box<Rejection>),
}

/// Why, and after what, an event was given up.
#[derive(Clone, Debug, PartialEq)]
pub struct Rejection {
    /// What its handlers said.
    pub reason: String,
    /// How often it was tried.
    pub attempts: u32,
    /// The handlers that failed, by their place among the service's handlers of this event.
    pub handlers: Vec<usize>,
    /// The event, as it arrived.
    pub envelope: Envelope,
}

/// What a service wants to receive.
#[derive(Clone, Debug)]
pub struct Subscription {
    /// The service's name: replicas with one name share the work, services with different names
    /// each see an event.
    pub service: String,
    /// Which replica this is: unique among those of a service, stable over a restart if it can be.
    pub instance: String,
    /// Messages to answer.
    pub messages: Vec<MessagePattern>,
    /// Events to react to.
    pub events: Vec<EventPattern>,
    /// Events that arrive by another transport, and may be emitted here too by who knows no better:
    /// NestJS applications do, where the wire they speak promises nothing.
    pub heard: Vec<ByteString>,
    /// Whether this process is all of the service and nobody comes back under its name, so that a
    /// broker need keep nothing for it once it has stopped.
    pub temporary: bool,
    /// How many deliveries the service works on at once: how far a transport may read ahead.
    pub max_in_flight: usize,
}

/// A message that a service answers.
#[derive(Clone, Debug)]
pub struct MessagePattern {
    /// Its pattern.
    pub pattern: ByteString,
    /// Whether a crash may run it again: then it is acknowledged after its handler, else before.
    pub idempotent: bool,
}

/// An event that a service reacts to.
#[derive(Clone, Debug)]
pub struct EventPattern {
    /// Its pattern.
    pub pattern: ByteString,
    /// What losing one would mean.
    pub needs: Guarantee,
}

/// The sending side of a transport.
#[async_trait]
pub trait ClientTransport: Send + Sync + 'static {
    /// The scheme of its URLs.
    fn name(&self) -> &'static str;

    /// What it gives.
    fn capabilities(&self) -> Capabilities;

    /// How patterns and payloads are written on its wire.
    fn wire(&self) -> Wire {
        Wire::Native
    }

    /// Sends a message; the replies arrive through what is returned, which forgets the call when
    /// it is dropped. Connects, or connects again, when it has to.
    ///
    /// # Errors
    /// When the message certainly was not sent: too large, no connection.
    async fn request(&self, envelope: Envelope, kind: Expect) -> Result<Replies, Error>;

    /// Does what [`request`](Self::request) does when it need not wait for anything, and otherwise
    /// gives the envelope back: then `request` is called. Worth having where waiting is rare.
    ///
    /// # Errors
    /// The envelope, of which nothing has been sent.
    fn try_request(
        &self,
        envelope: Envelope,
        _kind: Expect,
    ) -> Result<Result<Replies, Error>, Envelope> {
        Err(envelope)
    }

    /// Sends an event and waits for whatever acknowledgement the transport has.
    ///
    /// # Errors
    /// When it was not acknowledged.
    async fn publish(&self, envelope: Envelope) -> Result<(), Error>;

    /// Lets go of the connection; waiting calls end with [`ErrorKind::Closed`].
    async fn close(&self);
}

/// The wires that clients speak. Servers answer all of them at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Wire {
    /// Ours: any codec, and patterns in their normal form.
    Native,
    /// That of `@nestjs/microservices`, which carries JSON, and patterns as they were written.
    Nest,
    /// The same on Kafka, where what is neither an object nor an array travels as plain text.
    NestText,
}

/// How many replies a caller expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// One; the fast path.
    Single,
    /// A stream, with credit for [`WINDOW`] values at the start where the wire has credit.
    Many,
}

/// What a transport really gives. Contracts are checked against it, the conformance suite chooses
/// its cases by it, and the README's table shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// What is promised for an event.
    pub events: Guarantee,
    /// Each message is handled by one of a service's replicas.
    pub replicas_share: bool,
    /// Each service sees each event.
    pub fan_out: bool,
    /// Events wait for a stopped consumer.
    pub durable: bool,
    /// What keeps its order.
    pub order: Order,
    /// A request whose server dies is given to another. An event is wherever it is promised at least
    /// once.
    pub redelivers: bool,
    /// An event that a service gave up is kept until somebody looks at it.
    pub dead_letters: bool,
    /// A dropped call reaches the handler.
    pub cancels: bool,
    /// A slow reader of a stream slows its producer.
    pub stream_credit: bool,
    /// A request to a pattern nobody handles fails at once rather than by its deadline.
    pub detects_absence: bool,
    /// The largest payload in bytes; more is refused by the sender.
    pub max_payload: usize,
}

/// What keeps its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Order {
    /// Nothing.
    None,
    /// What one connection sends.
    Connection,
    /// What one publisher sends to one subject.
    Subject,
    /// Events with one key that one replica gets: replicas share them without regard to keys, and what
    /// is given back comes behind what follows it.
    KeyInReplica,
    /// Events with one key.
    Key,
}

type Opened<T> = BoxFuture<'static, Result<Arc<T>, Error>>;

/// A row of the table of transports.
pub(crate) struct Scheme {
    /// The part of a URL before `:`.
    pub(crate) name: &'static str,
    /// The query options its URLs may have, beside those of TLS.
    pub(crate) options: &'static [&'static str],
    pub(crate) server: fn(Address) -> Opened<dyn ServerTransport>,
    pub(crate) client: fn(Address, ClientIdentity) -> Opened<dyn ClientTransport>,
    /// Where the transport keeps what services give up, if it does.
    pub(crate) dead_letters: Option<fn(Address) -> Opened<dyn DeadLetters>>,
}

impl Scheme {
    fn has_option(&self, name: &str) -> bool {
        self.options.contains(&name) || tls::OPTIONS.contains(&name)
    }
}

/// Who is calling, for transports on which replies are addressed to a service and an instance.
#[derive(Clone, Debug)]
pub struct ClientIdentity {
    /// The calling service's name.
    pub service: String,
    /// Which of its processes.
    pub instance: String,
}

/// Every transport that a URL can name.
static SCHEMES: &[Scheme] = &[
    #[cfg(feature = "tcp")]
    tcp::SCHEME,
    #[cfg(feature = "nats")]
    nats::SCHEME,
    #[cfg(feature = "redis")]
    redis::SCHEME,
    #[cfg(feature = "redis")]
    redis::SCHEME_PUBSUB,
    #[cfg(feature = "kafka")]
    kafka::SCHEME,
];

/// Whether an option of this name is one of ours, and its value nothing to hide.
fn is_known_option(name: &str) -> bool {
    SCHEMES.iter().any(|scheme| scheme.has_option(name))
}

fn find(url: &str) -> Result<(&'static Scheme, Address), Error> {
    let address = url.parse::<Address>()?.without_alias();
    let config = |message| Err(Error::new(ErrorKind::Config, message));
    let Some(scheme) = SCHEMES
        .iter()
        .find(|scheme| scheme.name == address.scheme())
    else {
        if address.scheme() == "memory" {
            return config(
                "memory: has no address between processes: make one `Memory` and hand it to both sides".to_owned(),
            );
        }
        let known: Vec<_> = SCHEMES.iter().map(|scheme| scheme.name).collect();
        return config(format!(
            "no transport for {address}: this build knows {} (others are features of the crate)",
            known.join(", ")
        ));
    };
    if let Some(option) = address.options().find(|option| !scheme.has_option(option)) {
        return config(format!("{}:// has no option {option:?}", scheme.name));
    }
    Ok((scheme, address))
}

/// The one of two URLs that serves for both, if they name the same thing, so that it is opened once.
///
/// # Errors
/// When they name the same thing in ways that exclude each other.
pub(crate) fn joined<'a>(one: &'a str, other: &'a str) -> Result<Option<&'a str>, Error> {
    if one == other {
        return Ok(Some(one));
    }
    #[cfg(feature = "nats")]
    if let ((scheme, first), (second_scheme, second)) = (find(one)?, find(other)?)
        && scheme.name == nats::SCHEME.name
        && second_scheme.name == nats::SCHEME.name
    {
        let is_first = |joined: &Address| std::ptr::eq(joined, &first);
        let joined = nats::joined(&first, &second)?;
        return Ok(joined.map(|joined| if is_first(joined) { one } else { other }));
    }
    Ok(None)
}

/// Opens the receiving side of what `url` names.
pub(crate) async fn open_server(url: &str) -> Result<Arc<dyn ServerTransport>, Error> {
    let (scheme, address) = find(url)?;
    (scheme.server)(address).await
}

/// Opens the sending side of what `url` names.
pub(crate) async fn open_client(
    url: &str,
    identity: ClientIdentity,
) -> Result<Arc<dyn ClientTransport>, Error> {
    let (scheme, address) = find(url)?;
    (scheme.client)(address, identity).await
}

/// Opens the dead letters of what `url` names.
pub(crate) async fn open_dead_letters(url: &str) -> Result<Arc<dyn DeadLetters>, Error> {
    #[cfg(feature = "sqlx")]
    if let Some(path) = url.strip_prefix("sqlite:") {
        let path = path.strip_prefix("//").unwrap_or(path);
        return Ok(Arc::new(
            sqlite::DeadLetterTable::find_in(path.as_ref()).await?,
        ));
    }
    let (scheme, address) = find(url)?;
    match scheme.dead_letters {
        Some(open) => open(address).await,
        None => Err(Error::new(
            ErrorKind::Config,
            format!("{}:// keeps no dead letters", scheme.name),
        )),
    }
}

/// A task that ends with its owner.
#[derive(Debug)]
pub struct Task(tokio::task::JoinHandle<()>);

impl Task {
    /// Runs `future` until it ends or this is dropped.
    #[expect(
        clippy::disallowed_methods,
        reason = "the handle owns the task and aborts it on drop"
    )]
    pub fn spawn(future: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(future))
    }
}

impl Task {
    /// Whether it has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.0.is_finished()
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Future for Task {
    type Output = ();

    /// Waits for the end; a panic inside was logged by the runtime's hook.
    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<()> {
        Pin::new(&mut self.0).poll(cx).map(|_| ())
    }
}
