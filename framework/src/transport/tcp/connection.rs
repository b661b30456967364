//! One connection of a server: a source.

use std::{
    collections::VecDeque,
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{self, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::AsyncWrite,
    net::TcpStream,
    time::{Instant, Sleep, sleep},
};

use super::{
    Settings,
    alive::{Alive, Now, Sign},
    answer::{Arrived, Deliveries},
    frame::{self, Frame, Violation},
    input::Input,
    outbox::{Outbox, Outgoing},
};
use crate::{
    error::RpcError,
    transport::{Calls, Delivery, Item, Source},
};

/// How much may be read ahead of the handlers, so that control frames behind it are seen.
const AHEAD: usize = 1024;
const LEAST_AHEAD: usize = 64;
const AHEAD_BYTES: usize = 1024 * 1024;
/// How long a client has for saying that it sends no more, when we drain.
const GRACE: Duration = Duration::from_secs(1);
/// How long the last replies may take to be written…
const LAST_WRITES: Duration = Duration::from_secs(5);
/// …and how long the client then has for closing its side.
const LINGER: Duration = Duration::from_secs(1);

/// What the connections of a listener share.
pub(super) struct Shared {
    max_frame: usize,
    max_payload: usize,
    /// How many envelopes may wait.
    ahead: usize,
    foreigner_seen: AtomicBool,
}

impl Shared {
    pub(super) fn new(settings: &Settings, max_in_flight: usize) -> Self {
        Self {
            max_frame: settings.max_frame,
            max_payload: settings.max_payload(),
            ahead: max_in_flight.clamp(LEAST_AHEAD, AHEAD),
            foreigner_seen: AtomicBool::new(false),
        }
    }
}

/// What the other end speaks.
enum Wire {
    /// It has not said.
    Unknown,
    Native,
}

/// One connection. Its task, the only one to touch the socket, owns both directions.
pub(super) struct Connection {
    /// Gone when the connection is lost.
    socket: Option<TcpStream>,
    peer: SocketAddr,
    wire: Wire,
    input: Input,
    writing: Outgoing,
    outbox: Arc<Outbox>,
    calls: Calls<u64>,
    /// The largest payload of a reply.
    max_reply: usize,
    ahead: VecDeque<Arrived>,
    ahead_bytes: usize,
    /// Something of it was handed out since the last tick.
    moved: bool,
    /// Requests that find no room ahead are refused, instead of waiting where a cancel or credit
    /// frame behind them cannot be seen.
    shedding: bool,
    alive: Alive,
    /// Writing waits for the next poll, so that handlers that finish together are written together.
    deferred: bool,
    draining: Option<Draining>,
    closing: Option<Closing>,
    shared: Arc<Shared>,
}

struct Draining {
    /// The client sends no more.
    agreed: bool,
    grace: Pin<Box<Sleep>>,
}

enum Closing {
    Writing(Pin<Box<Sleep>>),
    Lingering(Pin<Box<Sleep>>),
}

impl Connection {
    pub(super) fn new(socket: TcpStream, peer: SocketAddr, shared: Arc<Shared>) -> Self {
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(%peer, %error, "cannot switch Nagle's algorithm off");
        }
        Self {
            socket: Some(socket),
            peer,
            wire: Wire::Unknown,
            input: Input::new(shared.max_frame),
            writing: Outgoing::default(),
            outbox: Arc::default(),
            calls: Calls::new(),
            max_reply: shared.max_payload,
            ahead: VecDeque::new(),
            ahead_bytes: 0,
            moved: false,
            shedding: false,
            alive: Alive::new(),
            deferred: false,
            draining: None,
            closing: None,
            shared,
        }
    }

    /// The connection is lost, or given up: nobody waits for a reply any more.
    fn hang_up(&mut self) {
        self.socket = None;
        self.writing = Outgoing::default();
        self.outbox.close();
        self.calls.cancel_all();
    }

    /// The same, because of what the other end did; what it sent since is not looked at.
    fn give_up(&mut self, reason: &dyn fmt::Display) {
        tracing::warn!(peer = %self.peer, "closing TCP connection: {reason}");
        self.input.clear();
        self.hang_up();
    }

    fn lost(&mut self, error: &io::Error) {
        tracing::debug!(peer = %self.peer, %error, "TCP connection lost");
        self.hang_up();
    }

    fn flush(&mut self, cx: &mut task::Context<'_>) -> Poll<()> {
        let Some(socket) = &mut self.socket else {
            return Poll::Ready(());
        };
        let flushed = self
            .outbox
            .poll_flush(cx, &mut self.writing, Pin::new(socket));
        if let Err(error) = ready!(flushed) {
            self.lost(&error);
        }
        Poll::Ready(())
    }

    fn has_room_ahead(&self) -> bool {
        self.ahead.len() < self.shared.ahead && self.ahead_bytes < AHEAD_BYTES
    }

    fn may_read_ahead(&self) -> bool {
        self.has_room_ahead() || (self.shedding && !self.outbox.is_full())
    }

    /// Hands out what was read ahead.
    fn hand_out(&mut self, deliveries: &mut Deliveries<'_>) {
        while deliveries.have_room() {
            let Some(arrived) = self.ahead.pop_front() else {
                return;
            };
            self.ahead_bytes -= arrived.size();
            (self.moved, self.shedding) = (true, false);
            // Nobody waits for it and nothing has been done for it.
            if !arrived.is_cancelled() {
                deliveries.push(arrived.into_delivery(&self.outbox, self.max_reply));
            }
        }
    }

    /// Reads and takes frames, for as long as there is room for what they bring.
    fn receive(
        &mut self,
        cx: &mut task::Context<'_>,
        now: Instant,
        deliveries: &mut Deliveries<'_>,
    ) {
        while deliveries.have_room() || (deliveries.room == 0 && self.may_read_ahead()) {
            match self.take(now) {
                Ok(Some(frame)) => {
                    self.alive.whole();
                    if let Err(violation) = self.accept(frame, deliveries) {
                        return self.give_up(&violation);
                    }
                }
                Ok(None) => match self.fill(cx, now) {
                    Poll::Ready(true) => {}
                    Poll::Ready(false) | Poll::Pending => return,
                },
                Err(violation) => return self.give_up(&violation),
            }
        }
    }

    /// Reads once; false when there is nothing more to read, ever.
    fn fill(&mut self, cx: &mut task::Context<'_>, now: Instant) -> Poll<bool> {
        let Some(socket) = &mut self.socket else {
            return Poll::Ready(false);
        };
        match ready!(self.input.poll_fill(cx, socket)) {
            Ok(0) => {
                self.hang_up();
                Poll::Ready(false)
            }
            Ok(_) => {
                self.alive.heard(now);
                Poll::Ready(true)
            }
            Err(error) => {
                self.lost(&error);
                Poll::Ready(false)
            }
        }
    }

    /// The next frame, once it is settled what the other end speaks.
    fn take(&mut self, now: Instant) -> Result<Option<Frame>, Violation> {
        match self.wire {
            Wire::Native => self.input.frame(now),
            Wire::Unknown => match self.input.first() {
                None => Ok(None),
                Some(first) if first == frame::MAGIC[0] => self.greet(now),
                Some(_) => {
                    self.refuse_foreigner();
                    Ok(None)
                }
            },
        }
    }

    /// The other end does not speak the native wire: here NestJS is told from noise.
    fn refuse_foreigner(&mut self) {
        let peer = self.peer;
        if self.shared.foreigner_seen.swap(true, Ordering::Relaxed) {
            tracing::debug!(%peer, "closing TCP connection: it does not speak the native wire");
        } else {
            tracing::warn!(%peer, "closing TCP connection: it does not speak the native wire, the only one here");
        }
        self.input.clear();
        self.hang_up();
    }

    fn greet(&mut self, now: Instant) -> Result<Option<Frame>, Violation> {
        let Some(preface) = self.input.preface() else {
            return Ok(None);
        };
        let (_, max_frame) = frame::read_preface(&preface)?;
        self.max_reply = self
            .shared
            .max_payload
            .min(max_frame - frame::REPLY_OVERHEAD);
        self.wire = Wire::Native;
        self.alive.whole();
        let preface = frame::preface(self.shared.max_frame);
        self.outbox
            .push(|out| out.append(&Bytes::new(), |tail| tail.extend(preface)));
        self.input.frame(now)
    }

    fn accept(&mut self, frame: Frame, deliveries: &mut Deliveries<'_>) -> Result<(), Violation> {
        match frame {
            // Read after the connection was lost: its caller has gone, while events still count.
            Frame::Request { .. } if self.socket.is_none() => {}
            Frame::Request { call, envelope } => {
                let call = Some(self.calls.open(call));
                self.deliver(Arrived { envelope, call }, deliveries);
            }
            Frame::Event { envelope } => self.deliver(
                Arrived {
                    envelope,
                    call: None,
                },
                deliveries,
            ),
            Frame::Cancel { call } => self.calls.cancel(&call),
            Frame::Credit { call, values } => self.calls.credit(&call, values),
            // Somebody who asks without reading the answers gets no more of them.
            Frame::Ping if self.outbox.is_full() => {}
            Frame::Ping => self.outbox.push(Outgoing::pong),
            Frame::Pong => {}
            Frame::Goaway => {
                if let Some(draining) = &mut self.draining {
                    draining.agreed = true;
                }
            }
            Frame::Reply { .. } => return Err(Violation("reply from a client")),
        }
        Ok(())
    }

    fn deliver(&mut self, arrived: Arrived, deliveries: &mut Deliveries<'_>) {
        if deliveries.have_room() {
            deliveries.push(arrived.into_delivery(&self.outbox, self.max_reply));
        } else if self.has_room_ahead() {
            self.ahead_bytes += arrived.size();
            self.ahead.push_back(arrived);
        } else {
            self.shed(arrived);
        }
    }

    fn shed(&self, arrived: Arrived) {
        let Some(call) = arrived.call else {
            return tracing::warn!(peer = %self.peer, "event lost: the service is too busy");
        };
        let busy = Item::Fail(RpcError::resource_exhausted("the service is too busy"));
        self.outbox.push(|out| out.reply(*call.key(), &busy));
    }

    /// Looks at the clock, now and then.
    fn watch(&mut self, cx: &mut task::Context<'_>) {
        if self.socket.is_none() {
            return;
        }
        while let Poll::Ready(now) = self.alive.poll_tick(cx) {
            self.tick(now);
            if self.shedding {
                cx.waker().wake_by_ref();
            }
        }
    }

    fn tick(&mut self, now: Instant) {
        if !self.has_room_ahead() {
            // It is we who do not listen.
            self.alive.heard(now);
            self.alive.whole();
            self.shedding = !self.moved && !self.outbox.is_full();
        }
        self.moved = false;
        let state = Now {
            busy: !self.calls.is_empty(),
            open: matches!(self.wire, Wire::Native),
            partial: self.input.len(),
            unwritten: self.writing.len(),
        };
        match self.alive.judge(now, &state) {
            Sign::Quiet => {}
            Sign::Ping => self.outbox.push(Outgoing::ping),
            Sign::Dead(reason) => return self.give_up(&reason),
        }
        self.input.shrink();
        self.outbox.shrink(&mut self.writing);
    }

    /// Whether nothing will come any more.
    fn has_ended(&mut self, cx: &mut task::Context<'_>) -> bool {
        if !self.ahead.is_empty() {
            return false;
        }
        let Some(draining) = &mut self.draining else {
            return self.socket.is_none();
        };
        let silent = draining.agreed
            || matches!(self.wire, Wire::Unknown)
            || draining.grace.as_mut().poll(cx).is_ready();
        // While calls are in work their cancel and credit frames are read, and replies written.
        self.socket.is_none() || (silent && self.calls.is_empty())
    }
}

impl Source for Connection {
    fn poll_deliveries(
        &mut self,
        cx: &mut task::Context<'_>,
        room: usize,
        batch: &mut Vec<Delivery>,
    ) -> Poll<Option<usize>> {
        let woken = self.outbox.resume();
        self.deferred = woken && !self.deferred && self.writing.is_empty();
        let blocked = !self.deferred && self.flush(cx).is_pending();
        // A slow reader of replies gets no further ones made, and control frames still get in.
        let room = if self.outbox.is_full() { 0 } else { room };
        let mut deliveries = Deliveries {
            batch,
            room,
            count: 0,
        };
        self.hand_out(&mut deliveries);
        self.receive(cx, Instant::now(), &mut deliveries);
        if deliveries.count > 0 {
            return Poll::Ready(Some(deliveries.count));
        }
        self.watch(cx);
        if self.has_ended(cx) {
            return Poll::Ready(None);
        }
        if !self.outbox.park(cx.waker(), blocked) {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn stop(&mut self) {
        let grace = Box::pin(sleep(GRACE));
        self.draining = Some(Draining {
            agreed: false,
            grace,
        });
        if matches!(self.wire, Wire::Native) {
            self.outbox.push(Outgoing::goaway);
        }
    }

    fn poll_close(&mut self, cx: &mut task::Context<'_>) -> Poll<()> {
        loop {
            let closing = self
                .closing
                .get_or_insert_with(|| Closing::Writing(Box::pin(sleep(LAST_WRITES))));
            let (Closing::Writing(limit) | Closing::Lingering(limit)) = closing;
            let late = limit.as_mut().poll(cx).is_ready();
            let lingering = matches!(closing, Closing::Lingering(_));
            if late || matches!(self.wire, Wire::Unknown) {
                self.hang_up();
            }
            if !lingering {
                ready!(self.flush(cx));
            }
            let Some(socket) = &mut self.socket else {
                return Poll::Ready(());
            };
            if lingering {
                // Closing with something unread would reset the connection, and the client would
                // lose what it has not read of the replies.
                self.input.clear();
                match ready!(self.input.poll_fill(cx, socket)) {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => self.hang_up(),
                }
            } else {
                match ready!(Pin::new(socket).poll_shutdown(cx)) {
                    Ok(()) => self.closing = Some(Closing::Lingering(Box::pin(sleep(LINGER)))),
                    Err(error) => self.lost(&error),
                }
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.hang_up();
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;
    use crate::{
        envelope::Envelope,
        transport::{Expect, Kind},
    };

    /// A connection with room for 64 envelopes ahead, and its client, which has been greeted.
    async fn pair() -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let settings = Settings {
            hosts: vec![address.to_string()],
            max_frame: 1 << 20,
        };
        let mut client = TcpStream::connect(address).await.unwrap();
        let (socket, peer) = listener.accept().await.unwrap();
        let mut server = Connection::new(socket, peer, Arc::new(Shared::new(&settings, 1)));
        client.write_all(&frame::preface(1 << 20)).await.unwrap();
        let mut preface = [0; frame::PREFACE];
        let greeted = async { client.read_exact(&mut preface).await.unwrap() };
        alongside(&mut server, 0, greeted).await;
        (server, client)
    }

    /// Polls the source, as its task would, until `other` is done.
    async fn alongside<T>(
        server: &mut Connection,
        room: usize,
        other: impl Future<Output = T>,
    ) -> (T, Vec<Delivery>) {
        let mut other = std::pin::pin!(other);
        let mut batch = Vec::new();
        let result = poll_fn(|cx| {
            while server.poll_deliveries(cx, room, &mut batch).is_ready() {}
            other.as_mut().poll(cx)
        });
        (result.await, batch)
    }

    fn requests(calls: std::ops::Range<u64>) -> Vec<u8> {
        let mut out = Outgoing::default();
        for call in calls {
            out.request(
                call,
                Expect::Single,
                &Envelope::new("p", ""),
                Instant::now(),
            );
        }
        out.to_vec()
    }

    #[tokio::test]
    async fn a_cancel_behind_too_many_requests_is_seen_in_the_end() {
        let (mut server, mut client) = pair().await;
        let mut cancel = Outgoing::default();
        cancel.cancel(0);
        let bytes = [requests(0..100), cancel.to_vec()].concat();
        client.write_all(&bytes).await.unwrap();
        poll_fn(|cx| {
            let polled = server.poll_deliveries(cx, 0, &mut Vec::new());
            assert!(polled.is_pending());
            if server.ahead.len() == 64 {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
        server.tick(Instant::now());
        let refused = async {
            let mut calls = Vec::new();
            for _ in 64..100 {
                let length = client.read_u32_le().await.unwrap();
                let mut body = vec![0; length as usize];
                client.read_exact(&mut body).await.unwrap();
                calls.push(u64::from(body[1]));
            }
            calls
        };
        let (refused, _) = alongside(&mut server, 0, refused).await;
        assert_eq!(refused, (64..100).collect::<Vec<_>>());
        let (_, batch) = alongside(&mut server, 64, std::future::ready(())).await;
        assert_eq!(batch.len(), 63, "the cancelled one is not handed out");
        assert!(!server.shedding);
        drop(batch);
        assert!(server.calls.is_empty());
    }

    #[tokio::test]
    async fn what_was_read_outlives_the_connection_if_it_is_an_event() {
        let (mut server, mut client) = pair().await;
        let mut out = Outgoing::default();
        for _ in 0..100 {
            out.event(&Envelope::new("e", ""), Instant::now());
        }
        let bytes = [requests(0..10), out.to_vec()].concat();
        let written = async { client.write_all(&bytes).await.unwrap() };
        alongside(&mut server, 0, written).await;
        drop(client);
        let mut batch = Vec::new();
        while poll_fn(|cx| server.poll_deliveries(cx, 7, &mut batch))
            .await
            .is_some()
        {}
        assert_eq!(
            batch
                .iter()
                .filter(|delivery| delivery.kind == Kind::Event)
                .count(),
            100
        );
    }
}
