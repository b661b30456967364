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
        Pending, Replies, Task, pending::lock,
    },
    NAME, PATIENCE, capabilities, closed, connect, max_payload, not_published, pause, unique_token,
    wire,
    writer::Writer,
};
use crate::envelope::Envelope;

/// How often a request looks whether the connection is back.
const RECONNECT_CHECK: Duration = Duration::from_millis(20);

pub(super) async fn open(
    address: Address,
    identity: ClientIdentity,
) -> Result<Arc<dyn ClientTransport>, Error> {
    let mark = mark(&address)?;
    let name = format!("{}/{}", identity.service, identity.instance);
    let inbox = wire::reply_prefix(&unique_token());
    let (connection, replies) = Connection::open(&address, &name, &inbox).await?;
    let pending = Pending::new();
    let shared = Arc::new(Shared {
        address,
        name,
        inbox,
        mark,
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

/// `?mark=header` is for accounts whose imports rewrite reply subjects.
fn mark(address: &Address) -> Result<bool, Error> {
    match address.option("mark") {
        None | Some("reply") => Ok(false),
        Some("header") => Ok(true),
        Some(other) => {
            let message = format!("{address}: mark cannot be {other:?}, only reply or header");
            Err(Error::new(ErrorKind::Config, message))
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
    /// Whether requests say by a header too what they are.
    mark: bool,
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
        capabilities(&self.shared.connection().client)
    }

    async fn request(&self, envelope: Envelope, kind: Expect) -> Result<Replies, Error> {
        let shared = &*self.shared;
        let (connection, limit) = shared.prepare(&envelope).await?;
        let headers = wire::headers(&envelope, shared.mark)?;
        let (call, replies) = shared.pending.register(kind);
        let subject = wire::subject(&envelope.pattern);
        lock(&shared.calls).insert(call, envelope.pattern);
        let message = OutboundMessage {
            subject,
            reply: Some(wire::reply_subject(&shared.inbox, call, envelope.deadline)),
            payload: envelope.payload,
            headers,
        };
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
        let message = OutboundMessage {
            subject: wire::subject(&envelope.pattern),
            reply: None,
            headers: wire::headers(&envelope, true)?,
            payload: envelope.payload,
        };
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

    fn tell(&self, call: u64, pattern: &str, control: wire::Control) {
        let reply = wire::reply_subject(&self.inbox, call, None);
        self.connection()
            .writer
            .send(control.message(pattern, reply));
    }

    fn receive(&self, message: Message) {
        let Some(call) = wire::call_of(&self.inbox, &message.subject) else {
            tracing::debug!(subject = %message.subject, "a reply that names no call");
            return;
        };
        let pattern = if wire::is_value(&message) {
            None
        } else {
            lock(&self.calls).remove(&call)
        };
        let item = wire::item(message, pattern.as_deref().unwrap_or_default());
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
