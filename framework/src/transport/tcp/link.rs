//! One connection of a client, and the task that owns its socket.

use std::{
    fmt, io,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{self, Poll},
};

use tokio::{
    io::{AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    alive::{self, Alive, Now, Remedy, Sign},
    frame::{self, Frame, Violation},
    input::Input,
    outbox::{Outbox, Outgoing, Refused},
};
use crate::{
    envelope::Envelope,
    transport::{
        Control, Error, ErrorKind, Expect, Pending, Wire,
        nest::{self, Answer, CallIds},
        tls::{self, Connector, Stream},
    },
};

/// How the answer of a server begins that expects a TLS handshake.
const TLS_ALERT: u8 = 0x15;

/// What callers and the connection's task share.
pub(super) struct Link {
    host: String,
    outbox: Outbox,
    pending: Arc<Pending>,
    /// What calls are named on NestJS's wire; without this the native one is spoken.
    ids: Option<CallIds>,
    max_payload: usize,
    closing: AtomicBool,
    ended: CancellationToken,
}

impl Link {
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// The calls in flight.
    pub(super) fn pending(&self) -> &Arc<Pending> {
        &self.pending
    }

    /// Writes a message, for the call of this number.
    pub(super) fn request(
        &self,
        out: &mut Outgoing,
        call: u64,
        expect: Expect,
        envelope: &Envelope,
    ) {
        let now = Instant::now();
        match &self.ids {
            None => out.request(call, expect, envelope, now),
            Some(ids) => out.nest_request(&ids.text(call), envelope, now),
        }
    }

    /// Writes an event.
    pub(super) fn event(&self, out: &mut Outgoing, envelope: &Envelope) {
        let now = Instant::now();
        match &self.ids {
            None => out.event(envelope, now),
            Some(_) => out.nest_event(envelope, now),
        }
    }

    /// The largest payload that the other end takes.
    pub(super) fn max_payload(&self) -> usize {
        self.max_payload
    }

    /// Whether it takes new calls.
    pub(super) fn is_open(&self) -> bool {
        self.outbox.refused().is_none()
    }

    /// Whether its task is gone.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.is_cancelled()
    }

    /// Waits until its task is gone.
    pub(super) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Writes what is queued and ends, whatever is in flight.
    pub(super) fn close_soon(&self) {
        self.outbox.drain(|_| {});
        self.closing.store(true, Ordering::Release);
        self.outbox.wake();
    }

    fn fail_all(&self) {
        let what = if self.closing.load(Ordering::Acquire) {
            "the client was closed".to_owned()
        } else {
            format!("the connection to tcp://{} was lost", self.host)
        };
        self.pending
            .fail_all(&Error::new(ErrorKind::Closed, what).into());
    }
}

/// NestJS's wire has neither.
impl Control for Link {
    fn cancel(&self, call: u64) {
        if self.ids.is_none() {
            self.outbox.push(|out| out.cancel(call));
        }
    }

    fn credit(&self, call: u64, values: u32) {
        if self.ids.is_none() {
            self.outbox.push(|out| out.credit(call, values));
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

/// Connects and greets. The second half has to be run for the first to work.
pub(super) async fn open(
    host: &str,
    tls: Option<&Connector>,
    max_frame: usize,
    wire: Wire,
) -> Result<(Arc<Link>, impl Future<Output = ()> + Send + use<>), Error> {
    let failed = |error: io::Error| {
        Error::new(ErrorKind::Connect, format!("connect to tcp://{host}")).with_source(error)
    };
    let mut socket = tls::connect(host, tls).await.map_err(failed)?;
    alive::set_up(socket.socket()).map_err(failed)?;
    // NestJS neither greets nor says what it accepts.
    let (ids, most) = match wire {
        Wire::Native => (None, greet(&mut socket, host, max_frame).await?),
        Wire::Nest | Wire::NestText => (Some(CallIds::new()), max_frame),
    };
    let pending = Pending::new();
    let link = Arc::new(Link {
        host: host.to_owned(),
        outbox: Outbox::default(),
        pending,
        ids,
        max_payload: most - frame::OVERHEAD,
        closing: AtomicBool::new(false),
        ended: CancellationToken::new(),
    });
    let control: Weak<Link> = Arc::downgrade(&link);
    link.pending.set_control(control);
    let driver = Driver {
        socket,
        input: Input::new(max_frame),
        writing: Outgoing::default(),
        link: Arc::clone(&link),
        alive: Alive::new(),
        deferred: false,
        shut: false,
    };
    Ok((link, driver))
}

fn speaks_tls(host: &str) -> Error {
    let what = format!("the server at tcp://{host} speaks TLS: ask for it with tls=on");
    Error::new(ErrorKind::Protocol, what)
}

/// Exchanges prefaces; returns the largest frame that both sides accept.
async fn greet(socket: &mut Stream, host: &str, max_frame: usize) -> Result<usize, Error> {
    let failed = |error: io::Error| {
        Error::new(ErrorKind::Connect, format!("connect to tcp://{host}")).with_source(error)
    };
    socket
        .write_all(&frame::preface(max_frame))
        .await
        .map_err(failed)?;
    // What was written may still be in the hands of TLS.
    socket.flush().await.map_err(failed)?;
    let mut preface = [0; frame::PREFACE];
    if let Err(error) = socket.read_exact(&mut preface).await {
        return Err(match preface[0] {
            TLS_ALERT => speaks_tls(host),
            _ => failed(error),
        });
    }
    let (version, peer_max_frame) = frame::read_preface(&preface)
        .and_then(|preface| match preface {
            (frame::VERSION, max_frame) => Ok((frame::VERSION, max_frame)),
            _ => Err(Violation("chose a version that was not offered")),
        })
        .map_err(|violation| {
            Error::new(
                ErrorKind::Protocol,
                format!("the server at tcp://{host} {violation}"),
            )
        })?;
    tracing::debug!(host, version, "connected");
    Ok(peer_max_frame.min(max_frame))
}

/// Owns the socket: reads replies, writes what callers have queued.
struct Driver {
    socket: Stream,
    input: Input,
    writing: Outgoing,
    link: Arc<Link>,
    alive: Alive,
    /// Writing waits for the next poll, so that callers that ask together are written together.
    deferred: bool,
    /// Everything has been written that ever will be.
    shut: bool,
}

/// Why a connection ends.
enum End {
    /// The other end closed it.
    Eof,
    /// We do, and nothing is in flight, or nobody cares.
    Done,
    Lost(io::Error),
    Violation(Violation),
    Dead(&'static str),
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<()> {
        let end = task::ready!(self.drive(cx));
        let host = &self.link.host;
        match end {
            End::Done => {}
            End::Eof => tracing::debug!(host, "TCP connection closed by the server"),
            End::Lost(error) => tracing::debug!(host, %error, "TCP connection lost"),
            End::Violation(Violation(reason)) | End::Dead(reason) => {
                tracing::warn!(host, "closing TCP connection: {reason}");
            }
        }
        Poll::Ready(())
    }
}

impl Driver {
    fn drive(&mut self, cx: &mut task::Context<'_>) -> Poll<End> {
        let woken = self.link.outbox.resume();
        if self.shut {
            return self.poll_eof(cx);
        }
        if let Poll::Ready(end) = self.receive(cx) {
            return Poll::Ready(end);
        }
        self.deferred = woken && !self.deferred && self.writing.is_empty();
        let mut blocked = false;
        if !self.deferred {
            let socket = Pin::new(&mut self.socket);
            match self.link.outbox.poll_flush(cx, &mut self.writing, socket) {
                Poll::Ready(Err(error)) => return Poll::Ready(End::Lost(error)),
                Poll::Ready(Ok(())) if self.is_done() => {
                    task::ready!(self.poll_shutdown(cx));
                    return self.poll_eof(cx);
                }
                Poll::Ready(Ok(())) => {}
                Poll::Pending => blocked = true,
            }
        }
        while let Poll::Ready(now) = self.alive.poll_tick(cx) {
            let state = Now {
                busy: !self.link.pending.is_empty(),
                open: true,
                remedy: match self.link.ids {
                    None => Remedy::Ask,
                    Some(_) => Remedy::Leave,
                },
                partial: self.input.partial(),
                unwritten: self.writing.len(),
            };
            match self.alive.judge(now, &state) {
                Sign::Quiet => {}
                Sign::Ping => self.link.outbox.push(Outgoing::ping),
                Sign::Leave => self.leave(),
                Sign::Dead(reason) => return Poll::Ready(End::Dead(reason)),
            }
            self.input.shrink();
            self.link.outbox.shrink(&mut self.writing);
        }
        // Being told to close queues nothing to write, so it would be slept through; it is looked at
        // after parking, so that a wake-up in between is not lost either.
        let parked = self.link.outbox.park(cx.waker(), blocked);
        if !parked || (!blocked && self.is_done()) {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// The calls that wait go on waiting here; later ones connect anew.
    fn leave(&self) {
        if self.link.is_open() {
            let host = &self.link.host;
            tracing::warn!(
                host,
                "nothing is answered on a TCP connection: later calls use another"
            );
            self.link.outbox.drain(|_| {});
        }
    }

    /// Reads what is there and hands it to the callers.
    fn receive(&mut self, cx: &mut task::Context<'_>) -> Poll<End> {
        let mut now = None;
        loop {
            let clock = *now.get_or_insert_with(Instant::now);
            match self.take(clock) {
                Ok(true) => {
                    self.alive.whole();
                    continue;
                }
                Ok(false) => {}
                Err(violation) => return Poll::Ready(End::Violation(violation)),
            }
            match task::ready!(self.input.poll_fill(cx, &mut self.socket)) {
                Ok(0) => return Poll::Ready(End::Eof),
                Ok(_) => self.alive.heard(clock),
                Err(error) => return Poll::Ready(End::Lost(error)),
            }
        }
    }

    /// Takes what has arrived entirely, one frame, and does what it says; false when there is none.
    fn take(&mut self, now: Instant) -> Result<bool, Violation> {
        let Some(ids) = &self.link.ids else {
            return match self.input.frame(now)? {
                Some(frame) => self.accept(frame).map(|()| true),
                None => Ok(false),
            };
        };
        let Some(body) = self.input.body()? else {
            return Ok(false);
        };
        let Answer { id, item } = nest::read_answer(&body).map_err(|error| {
            tracing::debug!(host = self.link.host, %error, "a reply that cannot be read");
            Violation("reply is not JSON")
        })?;
        // Also where a packet is no reply at all.
        let call = id.and_then(|id| ids.parse(&id));
        if !call.is_some_and(|call| self.link.pending.complete(call, item)) {
            tracing::trace!(call, "a reply that nobody waits for");
        }
        Ok(true)
    }

    fn accept(&mut self, frame: Frame) -> Result<(), Violation> {
        let Link {
            outbox, pending, ..
        } = &*self.link;
        match frame {
            // Nobody waits for it when a cancel and the reply have passed each other.
            Frame::Reply { call, item } => {
                if !pending.complete(call, item) {
                    tracing::trace!(call, "a reply that nobody waits for");
                }
            }
            Frame::Ping if outbox.is_full() => {}
            Frame::Ping => outbox.push(Outgoing::pong),
            Frame::Pong => {}
            Frame::Goaway => outbox.drain(Outgoing::goaway),
            Frame::Request { .. }
            | Frame::Event { .. }
            | Frame::Cancel { .. }
            | Frame::Credit { .. } => return Err(Violation("frame that only clients send")),
        }
        Ok(())
    }

    /// Whether everything that was written was the last.
    fn is_done(&self) -> bool {
        self.link.closing.load(Ordering::Acquire)
            || (self.link.outbox.refused() == Some(Refused::Draining)
                && self.link.pending.is_empty())
    }

    fn poll_shutdown(&mut self, cx: &mut task::Context<'_>) -> Poll<()> {
        let shut = task::ready!(Pin::new(&mut self.socket).poll_shutdown(cx));
        if let Err(error) = shut {
            tracing::debug!(host = self.link.host, %error, "cannot shut the connection down");
        }
        self.shut = true;
        self.link.fail_all();
        Poll::Ready(())
    }

    /// Waits for the other end to close, because closing with something unread resets the
    /// connection, and what was written last might not arrive.
    fn poll_eof(&mut self, cx: &mut task::Context<'_>) -> Poll<End> {
        loop {
            self.input.clear();
            match task::ready!(self.input.poll_fill(cx, &mut self.socket)) {
                Ok(1..) => {}
                Ok(0) | Err(_) => return Poll::Ready(End::Done),
            }
        }
    }
}

impl Drop for Driver {
    /// However the task ends, nobody is left waiting.
    fn drop(&mut self) {
        self.link.outbox.close();
        self.link.fail_all();
        self.link.ended.cancel();
    }
}
