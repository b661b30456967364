//! The sending side: one reply inbox per client, shared by all its calls.

use std::{
    collections::HashMap,
    future::poll_fn,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{self, Poll},
    time::Duration,
};

use async_nats::{
    Client, Message, Subscriber, client::traits::Publisher, connection::State,
    message::OutboundMessage,
};
use async_trait::async_trait;
use bytestring::ByteString;
use futures_util::StreamExt;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{
    super::{
        Address, Capabilities, ClientIdentity, ClientTransport, Control, Error, ErrorKind, Expect,
        Item, Pending, Replies, Task, Wire, nest::CallIds, pending::lock,
    },
    NAME, PATIENCE, capabilities, client_wire, closed, connect, jetstream, max_payload, nest,
    not_published, pause, unique_token,
    wire::{self, NoItem},
    writer::Writer,
};
use crate::envelope::Envelope;

/// How often a request looks whether the connection is back.
const RECONNECT_CHECK: Duration = Duration::from_millis(20);

pub(super) async fn open(
    address: Address,
    identity: ClientIdentity,
) -> Result<Arc<dyn ClientTransport>, Error> {
    let speech = Speech::of(&address)?;
    let durable = jetstream::wanted(&address)?;
    if durable && speech.wire() != Wire::Native {
        let text = format!("{address}: wire=nest has no durable events");
        return Err(Error::new(ErrorKind::Config, text));
    }
    let name = format!("{}/{}", identity.service, identity.instance);
    let inbox = speech.reply_prefix(&unique_token());
    let (connection, replies) = Connection::open(&address, &name, &inbox).await?;
    if durable {
        jetstream::create_streams(&connection.client).await?;
    }
    let pending = Pending::new();
    let shared = Arc::new(Shared {
        address,
        name,
        inbox,
        speech,
        durable,
        pending: Arc::clone(&pending),
        calls: Mutex::default(),
        connection: Mutex::new(Arc::new(connection)),
        closed: AtomicBool::new(false),
    });
    let control = Arc::downgrade(&shared);
    pending.set_control(control);
    let reader = Task::spawn(read(Arc::clone(&shared), replies));
    Ok(Arc::new(NatsClient {
        shared,
        _reader: reader,
    }))
}

/// What a client says its requests in.
enum Speech {
    Native {
        /// Whether requests say by a header too what they are: `?mark=header` is for accounts whose
        /// imports rewrite reply subjects.
        mark: bool,
    },
    Nest {
        ids: CallIds,
    },
}

impl Speech {
    fn of(address: &Address) -> Result<Self, Error> {
        let config = |message| Err(Error::new(ErrorKind::Config, message));
        match (client_wire(address)?, address.option("mark")) {
            (Wire::Native, None | Some("reply")) => Ok(Self::Native { mark: false }),
            (Wire::Native, Some("header")) => Ok(Self::Native { mark: true }),
            (Wire::Native, Some(other)) => config(format!(
                "{address}: mark cannot be {other:?}, only reply or header"
            )),
            (_, None) => Ok(Self::Nest {
                ids: CallIds::new(),
            }),
            (_, Some(_)) => config(format!("{address}: wire=nest has no mark")),
        }
    }

    fn wire(&self) -> Wire {
        match self {
            Self::Native { .. } => Wire::Native,
            Self::Nest { .. } => Wire::Nest,
        }
    }

    /// The subject of a client's replies up to the call's number.
    fn reply_prefix(&self, client: &str) -> String {
        match self {
            Self::Native { .. } => wire::reply_prefix(client),
            Self::Nest { .. } => nest::reply_prefix(client),
        }
    }

    fn request(
        &self,
        envelope: Envelope,
        inbox: &str,
        call: u64,
    ) -> Result<OutboundMessage, Error> {
        match self {
            Self::Native { mark } => {
                let reply = wire::reply_subject(inbox, call, envelope.deadline);
                wire::request(envelope, reply, *mark)
            }
            Self::Nest { ids } => {
                let reply = wire::reply_subject(inbox, call, None);
                nest::request(&envelope, reply, &ids.text(call))
            }
        }
    }

    fn event(&self, envelope: Envelope) -> Result<OutboundMessage, Error> {
        match self {
            Self::Native { .. } => wire::event(envelope),
            Self::Nest { .. } => nest::event(&envelope),
        }
    }

    /// What a message on a call's reply subject says; `None` if it is not about this call.
    fn item(&self, message: Message, call: u64) -> Option<Result<Item, NoItem>> {
        match self {
            Self::Native { .. } => Some(wire::item(message)),
            Self::Nest { ids } => nest::item(&message, ids, call),
        }
    }
}

struct NatsClient {
    shared: Arc<Shared>,
    _reader: Task,
}

struct Shared {
    address: Address,
    name: String,
    connection: Mutex<Arc<Connection>>,
    /// The subject of replies up to the call's id.
    inbox: String,
    speech: Speech,
    /// Whether events go to JetStream.
    durable: bool,
    pending: Arc<Pending>,
    /// The pattern of each call that waits: where its replicas listen for control messages.
    calls: Mutex<HashMap<u64, ByteString>>,
    closed: AtomicBool,
}

struct Connection {
    client: Client,
    writer: Writer,
}

impl Connection {
    async fn open(address: &Address, name: &str, inbox: &str) -> Result<(Self, Subscriber), Error> {
        let client = connect(address, name.to_owned()).await?;
        let replies = client
            .subscribe(format!("{inbox}>"))
            .await
            .map_err(closed)?;
        let writer = Writer::new(client.clone());
        Ok((Self { client, writer }, replies))
    }
}

#[async_trait]
impl ClientTransport for NatsClient {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        let given = capabilities(&self.shared.connection().client, self.shared.durable);
        match self.wire() {
            Wire::Native => given,
            // NestJS's wire has no way back to the server of a call.
            _ => Capabilities {
                cancels: false,
                stream_credit: false,
                ..given
            },
        }
    }

    fn wire(&self) -> Wire {
        self.shared.speech.wire()
    }

    async fn request(&self, envelope: Envelope, kind: Expect) -> Result<Replies, Error> {
        let shared = &*self.shared;
        let (connection, limit) = shared.prepare(&envelope).await?;
        let (call, replies) = shared.pending.register(kind);
        let pattern = envelope.pattern.clone();
        let message = shared.speech.request(envelope, &shared.inbox, call)?;
        lock(&shared.calls).insert(call, pattern);
        match shared.send(&connection.client, message, limit).await {
            Ok(()) => Ok(replies),
            Err(error) => {
                // Nobody has seen this call: dropping the replies must not cancel it on the wire.
                lock(&shared.calls).remove(&call);
                Err(error)
            }
        }
    }

    async fn publish(&self, envelope: Envelope) -> Result<(), Error> {
        let shared = &*self.shared;
        let (connection, limit) = shared.prepare(&envelope).await?;
        if shared.durable {
            return jetstream::publish(&connection.client, envelope, limit).await;
        }
        let message = shared.speech.event(envelope)?;
        shared.send(&connection.client, message, limit).await?;
        match timeout_at(limit, connection.client.flush()).await {
            Ok(flushed) => flushed.map_err(closed),
            Err(_) => Err(shared.too_late()),
        }
    }

    async fn close(&self) {
        self.shared.closed.store(true, Ordering::Relaxed);
        self.shared.end("the client was closed");
        // Also writes out what was handed to the connection before.
        match timeout(PATIENCE, self.shared.connection().client.drain()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the connection was closed already"),
            Err(_) => tracing::warn!(address = %self.shared.address, "not closed in time"),
        }
    }
}

impl Shared {
    /// Checks what can be checked before anything is sent; returns how long sending may take.
    async fn prepare(&self, envelope: &Envelope) -> Result<(Arc<Connection>, Instant), Error> {
        let mut connection = self.connection();
        let (length, most) = (envelope.payload.len(), max_payload(&connection.client));
        if length > most {
            return Err(Error::too_large(length, most));
        }
        let limit = envelope
            .deadline
            .unwrap_or_else(|| Instant::now() + PATIENCE);
        // What is handed over while the broker is away would be sent when it comes back, with time
        // left that has long run out.
        while connection.client.connection_state() != State::Connected {
            self.check_open()?;
            if Instant::now() >= limit {
                let text = format!("no connection to {}", self.address);
                return Err(Error::new(ErrorKind::Connect, text));
            }
            sleep(RECONNECT_CHECK).await;
            connection = self.connection();
        }
        self.check_open()?;
        Ok((connection, limit))
    }

    async fn send(
        &self,
        client: &Client,
        message: OutboundMessage,
        limit: Instant,
    ) -> Result<(), Error> {
        let length = message.payload.len();
        let mut sending = pin!(client.publish_message(message));
        // Nearly always there is room, and then no timer is needed.
        let first = poll_fn(|cx| Poll::Ready(sending.as_mut().poll(cx))).await;
        let sent = match first {
            Poll::Ready(sent) => sent,
            Poll::Pending => timeout_at(limit, sending)
                .await
                .map_err(|_| self.too_late())?,
        };
        sent.map_err(|error| not_published(error, length, client))
    }

    fn too_late(&self) -> Error {
        Error::new(
            ErrorKind::Timeout,
            format!("not sent to {} in time", self.address),
        )
    }

    fn check_open(&self) -> Result<(), Error> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Closed, "the client was closed"));
        }
        Ok(())
    }

    /// Where the wire has a way back to the server of a call.
    fn tell(&self, call: u64, pattern: &str, control: wire::Control) {
        if let Speech::Native { .. } = self.speech {
            let reply = wire::reply_subject(&self.inbox, call, None);
            self.connection()
                .writer
                .send(control.message(pattern, reply));
        }
    }

    fn receive(&self, message: Message) {
        let Some(call) = wire::call_of(&self.inbox, &message.subject) else {
            tracing::debug!(subject = %message.subject, "a reply that names no call");
            return;
        };
        let Some(item) = self.speech.item(message, call) else {
            tracing::debug!(call, "a reply with the id of another call");
            return;
        };
        let pattern = match item {
            Ok(Item::Value(_)) => None,
            _ => lock(&self.calls).remove(&call),
        };
        let item = item.unwrap_or_else(|no_item| {
            Item::Fail(no_item.into_error(pattern.as_deref().unwrap_or_default()))
        });
        if !self.pending.complete(call, item) {
            tracing::trace!(call, "a reply that nobody waits for");
        }
    }

    fn connection(&self) -> Arc<Connection> {
        Arc::clone(&lock(&self.connection))
    }

    /// Ends every call that waits.
    fn end(&self, why: &str) {
        lock(&self.calls).clear();
        self.pending
            .fail_all(&Error::new(ErrorKind::Closed, why).into());
    }
}

impl Shared {
    /// Hands replies to their callers, and control messages to the connection when it was full.
    fn poll_replies(
        &self,
        writer: &Writer,
        replies: &mut Subscriber,
        cx: &mut task::Context<'_>,
    ) -> Poll<()> {
        if writer.poll_drain(cx).is_pending() {
            tracing::trace!("control messages wait for the connection");
        }
        while let Some(message) = task::ready!(replies.poll_next_unpin(cx)) {
            self.receive(message);
        }
        Poll::Ready(())
    }
}

impl Control for Shared {
    fn cancel(&self, call: u64) {
        let pattern = lock(&self.calls).remove(&call);
        if let Some(pattern) = pattern {
            self.tell(call, &pattern, wire::Control::Cancel);
        }
    }

    fn credit(&self, call: u64, values: u32) {
        let pattern = lock(&self.calls).get(&call).cloned();
        if let Some(pattern) = pattern {
            self.tell(call, &pattern, wire::Control::Credit(values));
        }
    }
}

/// Reads replies until the client is closed.
///
/// A lost connection is made again by the client library. It gives up by itself only when its own
/// task panics, as it does on a header that has a lone carriage return; then a new one is made here.
async fn read(shared: Arc<Shared>, mut replies: Subscriber) {
    loop {
        let connection = shared.connection();
        poll_fn(|cx| shared.poll_replies(&connection.writer, &mut replies, cx)).await;
        shared.end("the connection was closed");
        let mut attempt = 1;
        replies = loop {
            if shared.closed.load(Ordering::Relaxed) {
                return;
            }
            tracing::error!(address = %shared.address, "the connection broke down, making a new one");
            sleep(pause(attempt)).await;
            attempt += 1;
            match Connection::open(&shared.address, &shared.name, &shared.inbox).await {
                Ok((connection, replies)) => {
                    *lock(&shared.connection) = Arc::new(connection);
                    break replies;
                }
                Err(error) => tracing::warn!(%error, "not connected again"),
            }
        };
    }
}
