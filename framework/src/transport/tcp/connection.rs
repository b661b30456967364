//! One connection of a server: a source.

use std::{
    collections::VecDeque,
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{self, Poll, ready},
};

use bytes::Bytes;
use tokio::{io::AsyncWrite, time::Instant};

use super::{
    alive::{Alive, Now, Remedy, Sign},
    answer::{Arrived, Caller, Deliveries},
    closing::{Closing, Draining, Parting},
    frame::{self, Frame, Violation},
    input::Input,
    outbox::{Outbox, Outgoing},
    packet::{self, Letter, Received},
    shared::Shared,
};
use crate::{
    error::RpcError,
    transport::{Calls, Delivery, Item, Source, tls::Stream},
};

/// How much may be read ahead of the handlers.
const AHEAD_BYTES: usize = 1024 * 1024;

/// What the other end speaks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wire {
    /// It has not said.
    Unknown,
    Native,
    Nest,
}

/// One connection. Its task, the only one to touch the socket, owns both directions.
pub(super) struct Connection {
    /// Gone when the connection is lost.
    socket: Option<Stream>,
    peer: SocketAddr,
    wire: Wire,
    input: Input,
    writing: Outgoing,
    outbox: Arc<Outbox>,
    calls: Calls<u64>,
    /// How many calls there were on a wire that does not number them.
    called: u64,
    /// The largest payload of a reply.
    max_reply: usize,
    ahead: VecDeque<Arrived>,
    ahead_bytes: usize,
    /// Something of it was handed out since the last tick.
    moved: bool,
    /// Requests that find no room ahead are refused, instead of waiting where a cancel or credit
    /// frame behind them cannot be seen.
    shedding: bool,
    /// There is no room for replies.
    full: bool,
    alive: Alive,
    /// Writing waits for the next poll, so that handlers that finish together are written together.
    deferred: bool,
    parting: Option<Parting>,
    draining: Option<Draining>,
    closing: Option<Closing>,
    shared: Arc<Shared>,
}

impl Connection {
    pub(super) fn new(socket: Stream, peer: SocketAddr, shared: Arc<Shared>) -> Self {
        Self {
            socket: Some(socket),
            peer,
            wire: Wire::Unknown,
            input: Input::new(shared.max_frame),
            writing: Outgoing::default(),
            outbox: Arc::default(),
            calls: Calls::new(),
            called: 0,
            max_reply: shared.max_payload,
            ahead: VecDeque::new(),
            ahead_bytes: 0,
            moved: false,
            shedding: false,
            full: false,
            alive: Alive::new(),
            deferred: false,
            parting: None,
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

    /// Whether replies leave it room; where nothing but requests and events can arrive, reading on
    /// has no use.
    fn may_read_on(&self) -> bool {
        !(self.full && self.wire == Wire::Nest)
    }

    fn may_read(&self, deliveries: &Deliveries<'_>) -> bool {
        let ahead = || self.has_room_ahead() || (self.shedding && !self.outbox.is_full());
        let has_room = deliveries.have_room() || (deliveries.room == 0 && ahead());
        has_room && self.may_read_on()
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
        while self.may_read(deliveries) {
            match self.take(now, deliveries) {
                Ok(true) => self.alive.whole(),
                Ok(false) => match self.fill(cx, now) {
                    Poll::Ready(true) => {}
                    Poll::Ready(false) | Poll::Pending => return,
                },
                Err(violation) => return self.give_up(&violation),
            }
        }
    }

    /// Reads once; false when there is nothing more to read, ever.
    fn fill(&mut self, cx: &mut task::Context<'_>, now: Instant) -> Poll<bool> {
        let Some(socket) = self.socket.as_mut().filter(|_| self.parting.is_none()) else {
            return Poll::Ready(false);
        };
        match ready!(self.input.poll_fill(cx, socket)) {
            Ok(0) if self.wire == Wire::Nest => {
                self.parting = Some(Parting::new());
                Poll::Ready(false)
            }
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

    /// Takes what has arrived entirely, one frame, and does what it says; false when there is none.
    fn take(&mut self, now: Instant, deliveries: &mut Deliveries<'_>) -> Result<bool, Violation> {
        match self.wire {
            Wire::Unknown => return self.greet(),
            Wire::Native => match self.input.frame(now)? {
                Some(frame) => self.accept(frame, deliveries)?,
                None => return Ok(false),
            },
            Wire::Nest => match self.input.body()? {
                Some(body) => self.accept_packet(&body, now, deliveries)?,
                None => return Ok(false),
            },
        }
        Ok(true)
    }

    /// Finds out what the other end speaks; true when that is settled.
    fn greet(&mut self) -> Result<bool, Violation> {
        match self.input.first() {
            None => return Ok(false),
            Some(first) if first == frame::MAGIC[0] => {
                let Some(preface) = self.input.preface() else {
                    return Ok(false);
                };
                let (_, max_frame) = frame::read_preface(&preface)?;
                let max_payload = self.shared.max_payload;
                self.max_reply = max_payload.min(max_frame - frame::REPLY_OVERHEAD);
                self.wire = Wire::Native;
                let preface = frame::preface(self.shared.max_frame);
                self.outbox
                    .push(|out| out.append(&Bytes::new(), |tail| tail.extend(preface)));
            }
            Some(_) if self.shared.routes.is_some() => self.wire = Wire::Nest,
            Some(_) => {
                self.shared.refuse_foreigner(self.peer);
                self.input.clear();
                self.hang_up();
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn accept(&mut self, frame: Frame, deliveries: &mut Deliveries<'_>) -> Result<(), Violation> {
        match frame {
            // Read after the connection was lost: its caller has gone, while events still count.
            Frame::Request { .. } if self.socket.is_none() => {}
            Frame::Request { call, envelope } => {
                let caller = Caller::new(self.calls.open(call), None);
                self.deliver(Arrived::new(envelope, Some(caller)), deliveries);
            }
            Frame::Event { envelope } => self.deliver(Arrived::new(envelope, None), deliveries),
            Frame::Cancel { call } => self.calls.cancel(&call),
            Frame::Credit { call, values } => self.calls.credit(&call, values),
            // Somebody who asks without reading the answers gets no more of them.
            Frame::Ping if self.outbox.is_full() => {}
            Frame::Ping => self.outbox.push(Outgoing::pong),
            Frame::Pong => {}
            Frame::Goaway => {
                if let Some(draining) = &mut self.draining {
                    draining.silent = true;
                }
            }
            Frame::Reply { .. } => return Err(Violation("reply from a client")),
        }
        Ok(())
    }

    fn accept_packet(
        &mut self,
        body: &Bytes,
        now: Instant,
        deliveries: &mut Deliveries<'_>,
    ) -> Result<(), Violation> {
        let Some(routes) = &self.shared.routes else {
            return Err(Violation("does not speak the native wire"));
        };
        let Received { id, letter } = packet::read(body, routes, now)?;
        match (letter, id) {
            // As on the native wire.
            (_, Some(_)) if self.socket.is_none() => {}
            (Letter::Unknown(_), Some(id)) => self.answer(|out| out.nest_no_handler(&id)),
            (Letter::Unknown(pattern), None) => self.shared.lose_event(self.peer, &pattern),
            // Nothing on this wire tells the client to go elsewhere.
            (_, Some(id)) if self.draining.as_ref().is_some_and(|it| it.silent) => {
                let leaving = Item::Fail(RpcError::unavailable("the service is shutting down"));
                self.answer(|out| out.nest_reply(&id, &leaving));
            }
            (Letter::Handled(envelope, subscription), id) => {
                let caller = id.map(|id| {
                    self.called += 1;
                    Caller::new(self.calls.open(self.called), Some(id))
                });
                let mut arrived = Arrived::new(envelope, caller);
                arrived.subscription = subscription;
                self.deliver(arrived, deliveries);
            }
        }
        Ok(())
    }

    /// Answers without a handler, whose number nothing else limits.
    fn answer(&mut self, write: impl FnOnce(&mut Outgoing)) {
        self.outbox.push(write);
        self.full = self.outbox.is_full();
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
        let Some(caller) = arrived.caller else {
            return tracing::warn!(peer = %self.peer, "event lost: the service is too busy");
        };
        let busy = Item::Fail(RpcError::resource_exhausted("the service is too busy"));
        self.outbox.push(|out| caller.reply(out, &busy));
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
        if !self.has_room_ahead() || !self.may_read_on() {
            // It is we who do not listen.
            self.alive.heard(now);
            self.alive.whole();
            let is_stuck = !self.moved && !self.outbox.is_full();
            self.shedding = is_stuck && self.wire == Wire::Native;
        }
        self.moved = false;
        let state = Now {
            busy: !self.calls.is_empty(),
            // A NestJS application says nothing until it has something to say.
            open: self.wire != Wire::Unknown || self.shared.routes.is_some(),
            remedy: match self.wire {
                Wire::Native => Remedy::Ask,
                Wire::Nest | Wire::Unknown => Remedy::None,
            },
            partial: self.input.partial(),
            unwritten: self.writing.len(),
        };
        match self.alive.judge(now, &state) {
            Sign::Quiet | Sign::Leave => {}
            Sign::Ping => self.outbox.push(Outgoing::ping),
            Sign::Dead(reason) => return self.give_up(&reason),
        }
        self.input.shrink();
        self.outbox.shrink(&mut self.writing);
    }

    /// Whether nothing will come any more.
    fn has_ended(&mut self, cx: &mut task::Context<'_>) -> bool {
        if let Some(parting) = &mut self.parting
            && parting.poll(cx).is_ready()
        {
            self.hang_up();
        }
        // A NestJS application cannot be told to go, so nothing is gained by waiting for it to be
        // silent: with none of its calls in work it is as well off now as a second later.
        let is_drained = |draining: &Draining| draining.silent || self.wire != Wire::Native;
        let is_over = self.parting.is_some() || self.draining.as_ref().is_some_and(is_drained);
        // While calls are in work their cancel and credit frames are read, and replies written.
        let is_idle = self.socket.is_none() || (is_over && self.calls.is_empty());
        self.ahead.is_empty() && is_idle
    }
}

impl Source for Connection {
    fn poll_deliveries(
        &mut self,
        cx: &mut task::Context<'_>,
        room: usize,
        batch: &mut Vec<Delivery>,
    ) -> Poll<Option<usize>> {
        if let Some(draining) = &mut self.draining {
            draining.poll(cx);
        }
        let woken = self.outbox.resume();
        self.deferred = woken && !self.deferred && self.writing.is_empty();
        let blocked = !self.deferred && self.flush(cx).is_pending();
        // A slow reader of replies gets no further ones made, and control frames still get in.
        self.full = self.outbox.is_full();
        let room = if self.full { 0 } else { room };
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
        self.draining = Some(Draining::new());
        if self.wire == Wire::Native {
            self.outbox.push(Outgoing::goaway);
        }
    }

    fn poll_close(&mut self, cx: &mut task::Context<'_>) -> Poll<()> {
        loop {
            let closing = self.closing.get_or_insert_with(Closing::writing);
            let lingering = closing.lingering;
            if closing.poll_late(cx).is_ready() || self.wire == Wire::Unknown {
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
                    Ok(()) => self.closing = Some(Closing::lingering()),
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
mod tests;
