//! What waits to be written to a connection: anybody appends, the connection's one task writes.

use std::{
    collections::VecDeque,
    fmt,
    io::{self, IoSlice},
    mem,
    pin::Pin,
    sync::Mutex,
    task::{self, Poll, Waker, ready},
};

use bytes::{Buf, Bytes};
use tokio::io::AsyncWrite;

use super::super::pending::lock;

/// Payloads from this size on are written from where they are instead of being copied.
pub(super) const COPIED_BELOW: usize = 16 * 1024;
/// A larger buffer than this is not kept when it has been written.
const KEPT: usize = 64 * 1024;
/// Above this many waiting bytes there is no room.
pub(super) const HIGH_WATER: usize = 1024 * 1024;
/// Whoever waits for room is woken below this.
const LOW_WATER: usize = HIGH_WATER / 2;
/// Pieces of one vectored write.
const PIECES: usize = 16;

/// Bytes in the order they will be written.
#[derive(Default)]
pub(super) struct Outgoing {
    chunks: VecDeque<Bytes>,
    /// After the chunks; its first `written` bytes have gone.
    tail: Vec<u8>,
    written: usize,
    length: usize,
}

impl Outgoing {
    pub(super) fn len(&self) -> usize {
        self.length
    }

    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Appends what `head` writes and then the payload.
    pub(super) fn append(&mut self, payload: &Bytes, head: impl FnOnce(&mut Vec<u8>)) {
        let before = self.tail.len();
        head(&mut self.tail);
        self.length += self.tail.len() - before + payload.len();
        if payload.len() < COPIED_BELOW {
            self.tail.extend_from_slice(payload);
            return;
        }
        let mut tail = Bytes::from(mem::take(&mut self.tail));
        tail.advance(mem::take(&mut self.written));
        self.chunks.extend([tail, payload.clone()]);
    }

    /// Writes until nothing is left or the socket takes no more.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut task::Context<'_>,
        mut socket: Pin<&mut impl AsyncWrite>,
    ) -> Poll<io::Result<()>> {
        while self.length > 0 {
            let written = if self.chunks.is_empty() {
                ready!(socket.as_mut().poll_write(cx, &self.tail[self.written..]))?
            } else {
                let tail = &self.tail[self.written..];
                let mut pieces = [IoSlice::new(&[]); PIECES];
                let mut count = 0;
                let chunks = self.chunks.iter().map(|chunk| &chunk[..]).chain([tail]);
                for (piece, chunk) in pieces.iter_mut().zip(chunks) {
                    *piece = IoSlice::new(chunk);
                    count += 1;
                }
                ready!(socket.as_mut().poll_write_vectored(cx, &pieces[..count]))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, mut written: usize) {
        self.length -= written;
        while let Some(chunk) = self.chunks.front_mut() {
            if written < chunk.len() {
                chunk.advance(written);
                return;
            }
            written -= chunk.len();
            self.chunks.pop_front();
        }
        self.written += written;
        if self.written == self.tail.len() {
            self.written = 0;
            self.tail.clear();
            if self.tail.capacity() > KEPT {
                self.tail = Vec::new();
            }
        }
    }

    /// Gives memory back that a busy time has left.
    fn shrink(&mut self) {
        if self.is_empty() {
            *self = Self::default();
        }
    }

    #[cfg(test)]
    pub(super) fn to_vec(&self) -> Vec<u8> {
        let mut bytes = self.chunks.iter().flatten().copied().collect::<Vec<u8>>();
        bytes.extend_from_slice(&self.tail[self.written..]);
        bytes
    }
}

/// Why nothing more is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// The other end wants no new work: use another connection.
    Draining,
    /// The connection is gone.
    Closed,
}

/// The queue between those who send and the task that owns the socket.
///
/// The owner *parks* when it has nothing to do, and only a parked owner is woken: a burst of
/// frames costs one wake-up and leaves in one write.
#[derive(Default)]
pub(super) struct Outbox {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    queued: Outgoing,
    /// Bytes the owner has taken and not written.
    taken: usize,
    parked: Option<Waker>,
    /// Somebody woke the owner since it last looked.
    woken: bool,
    refused: Option<Refused>,
    waiting: Vec<Waker>,
}

impl State {
    fn backlog(&self) -> usize {
        self.queued.len() + self.taken
    }

    fn unpark(&mut self) -> Option<Waker> {
        let waker = self.parked.take();
        self.woken |= waker.is_some();
        waker
    }

    fn poll_room(&mut self, cx: &task::Context<'_>) -> Poll<()> {
        if self.backlog() < HIGH_WATER || self.refused.is_some() {
            return Poll::Ready(());
        }
        // Looking at a few is enough to keep one that polls again and again from filling the list.
        let known = self
            .waiting
            .iter()
            .rev()
            .take(8)
            .any(|waker| waker.will_wake(cx.waker()));
        if !known {
            self.waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl Outbox {
    /// Appends something small, or something whose number is bounded elsewhere; nothing when the
    /// connection is gone.
    pub(super) fn push(&self, write: impl FnOnce(&mut Outgoing)) {
        let mut state = lock(&self.state);
        if state.refused != Some(Refused::Closed) {
            write(&mut state.queued);
        }
        let waker = state.unpark();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Appends, if there is room and nothing is refused.
    pub(super) fn try_push<T>(&self, write: impl FnOnce(&mut Outgoing) -> T) -> Option<T> {
        let mut state = lock(&self.state);
        if state.backlog() >= HIGH_WATER || state.refused.is_some() {
            return None;
        }
        let result = write(&mut state.queued);
        let waker = state.unpark();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Some(result)
    }

    /// Waits for room, then appends.
    pub(super) fn poll_push<T>(
        &self,
        cx: &mut task::Context<'_>,
        write: impl FnOnce(&mut Outgoing) -> T,
    ) -> Poll<Result<T, Refused>> {
        let mut state = lock(&self.state);
        ready!(state.poll_room(cx));
        if let Some(refused) = state.refused {
            return Poll::Ready(Err(refused));
        }
        let result = write(&mut state.queued);
        let waker = state.unpark();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Poll::Ready(Ok(result))
    }

    /// Ready when there is room, or never will be.
    pub(super) fn poll_room(&self, cx: &task::Context<'_>) -> Poll<()> {
        lock(&self.state).poll_room(cx)
    }

    /// Whether there is no room.
    pub(super) fn is_full(&self) -> bool {
        lock(&self.state).backlog() >= HIGH_WATER
    }

    /// Whether, and why, new work is refused.
    pub(super) fn refused(&self) -> Option<Refused> {
        lock(&self.state).refused
    }

    /// New work is refused from now on; everything queued before `last` is written before it.
    pub(super) fn drain(&self, last: impl FnOnce(&mut Outgoing)) {
        let mut state = lock(&self.state);
        if state.refused.is_none() {
            state.refused = Some(Refused::Draining);
            last(&mut state.queued);
            state.wake_all();
        }
    }

    /// Nothing is taken any more, and nothing kept.
    pub(super) fn close(&self) {
        let mut state = lock(&self.state);
        state.refused = Some(Refused::Closed);
        state.queued = Outgoing::default();
        state.taken = 0;
        state.wake_all();
    }

    /// Wakes the owner.
    pub(super) fn wake(&self) {
        self.push(|_| {});
    }

    /// The owner is running; true when somebody woke it to write.
    pub(super) fn resume(&self) -> bool {
        let mut state = lock(&self.state);
        state.parked = None;
        mem::take(&mut state.woken)
    }

    /// The owner has nothing more to do; false when meanwhile there is something to write, unless
    /// it is `blocked` by the socket.
    pub(super) fn park(&self, waker: &Waker, blocked: bool) -> bool {
        let mut state = lock(&self.state);
        if !state.queued.is_empty() && !blocked {
            return false;
        }
        state.parked = Some(waker.clone());
        true
    }

    /// Writes what is queued, by way of `writing`, the owner's half.
    pub(super) fn poll_flush(
        &self,
        cx: &mut task::Context<'_>,
        writing: &mut Outgoing,
        mut socket: Pin<&mut impl AsyncWrite>,
    ) -> Poll<io::Result<()>> {
        loop {
            let written = writing.poll_write(cx, socket.as_mut());
            let mut state = lock(&self.state);
            if written.is_ready() && writing.is_empty() {
                mem::swap(&mut state.queued, writing);
            }
            state.taken = writing.len();
            if state.backlog() < LOW_WATER {
                state.wake_all();
            }
            drop(state);
            ready!(written)?;
            if writing.is_empty() {
                // TLS may hold back some of it.
                return socket.as_mut().poll_flush(cx);
            }
        }
    }

    /// Gives memory back that a busy time has left.
    pub(super) fn shrink(&self, writing: &mut Outgoing) {
        writing.shrink();
        lock(&self.state).queued.shrink();
    }
}

impl State {
    /// The lock is held, which is fine: waking only puts tasks into a queue.
    fn wake_all(&mut self) {
        self.waiting.drain(..).for_each(Waker::wake);
    }
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox")
            .field("backlog", &lock(&self.state).backlog())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    fn append(payload: &'static [u8]) -> impl FnOnce(&mut Outgoing) {
        move |out| out.append(&Bytes::from_static(payload), |tail| tail.push(b'#'))
    }

    #[tokio::test]
    async fn small_and_large_payloads_leave_in_order() {
        static LARGE: [u8; COPIED_BELOW] = [7; COPIED_BELOW];
        let outbox = Outbox::default();
        let mut expected = Vec::new();
        for payload in [&b"a"[..], &LARGE, b"b", b"c", &LARGE, &LARGE, b"d"] {
            outbox.push(append(payload));
            expected.push(b'#');
            expected.extend_from_slice(payload);
        }
        // A pipe shorter than a chunk makes every kind of partial write.
        let (mut near, mut far) = tokio::io::duplex(1000);
        let mut writing = Outgoing::default();
        let write = async {
            poll_fn(|cx| outbox.poll_flush(cx, &mut writing, Pin::new(&mut near)))
                .await
                .unwrap();
            drop(near);
        };
        let mut received = Vec::new();
        let read = tokio::io::AsyncReadExt::read_to_end(&mut far, &mut received);
        tokio::join!(write, async { read.await.unwrap() });
        assert_eq!(received, expected);
        assert_eq!(lock(&outbox.state).backlog(), 0);
    }

    #[tokio::test]
    async fn what_the_socket_holds_back_is_flushed() {
        let outbox = Outbox::default();
        outbox.push(append(b"x"));
        let (near, mut far) = tokio::io::duplex(1000);
        let mut near = tokio::io::BufWriter::new(near);
        let mut writing = Outgoing::default();
        poll_fn(|cx| outbox.poll_flush(cx, &mut writing, Pin::new(&mut near)))
            .await
            .unwrap();
        let mut received = [0; 10];
        let read = tokio::io::AsyncReadExt::read(&mut far, &mut received);
        let read = futures_util::FutureExt::now_or_never(read);
        assert!(read.expect("it is there").unwrap() > 0);
    }

    #[tokio::test]
    async fn senders_wait_for_room_and_are_told_of_the_end() {
        let outbox = Outbox::default();
        let big = Bytes::from(vec![0; HIGH_WATER]);
        outbox.push(|out| out.append(&big, |_| {}));
        assert!(outbox.is_full());
        let push = poll_fn(|cx| outbox.poll_push(cx, append(b"x")));
        let mut writing = Outgoing::default();
        let mut sink = tokio::io::sink();
        let flush = poll_fn(|cx| outbox.poll_flush(cx, &mut writing, Pin::new(&mut sink)));
        let (pushed, flushed) = tokio::join!(push, flush);
        assert_eq!(pushed, Ok(()));
        flushed.unwrap();
        outbox.drain(append(b"last"));
        let push = poll_fn(|cx| outbox.poll_push(cx, append(b"x"))).await;
        assert_eq!(push, Err(Refused::Draining));
        outbox.close();
        let push = poll_fn(|cx| outbox.poll_push(cx, append(b"x"))).await;
        assert_eq!(push, Err(Refused::Closed));
    }

    #[test]
    fn only_a_parked_owner_is_woken() {
        let outbox = Outbox::default();
        assert!(outbox.park(Waker::noop(), false));
        outbox.push(append(b"x"));
        assert!(outbox.resume());
        assert!(
            !outbox.park(Waker::noop(), false),
            "there is something to write"
        );
        assert!(!outbox.resume());
    }
}
