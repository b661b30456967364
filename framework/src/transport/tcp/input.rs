//! What has arrived on a connection and is not taken yet.

use std::{
    io,
    pin::pin,
    task::{self, Poll},
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time::Instant,
};

use super::{
    frame::{self, Frame, Violation},
    text::Decoder,
};

/// How much is read at once: little at first, so that ten thousand silent connections cost
/// little, then more while reads fill what there is.
const LEAST_READ: usize = 2 * 1024;
const MOST_READ: usize = 64 * 1024;

/// Received bytes. Frames are cut from it without copying their payloads, and the memory is used
/// again once their owners have let go of them.
pub(super) struct Input {
    buffer: BytesMut,
    /// Of the frames of NestJS's wire.
    decoder: Decoder,
    /// How many bytes are missing at least, as far as a frame that has begun says.
    missing: usize,
    read: usize,
    max_frame: usize,
}

impl Input {
    pub(super) fn new(max_frame: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            decoder: Decoder::default(),
            missing: 0,
            read: LEAST_READ,
            max_frame,
        }
    }

    /// Reads once; 0 is the end.
    pub(super) fn poll_fill(
        &mut self,
        cx: &mut task::Context<'_>,
        socket: &mut (impl AsyncRead + Unpin),
    ) -> Poll<io::Result<usize>> {
        // A large frame grows the buffer as it arrives, not as it is announced.
        let wanted = self.missing.min(self.buffer.len()).max(self.read);
        let room = self.buffer.capacity() - self.buffer.len();
        if room < wanted.min(self.read / 2) {
            self.buffer.reserve(wanted);
        }
        let room = self.buffer.capacity() - self.buffer.len();
        // The future holds no state of its own, so it can be made anew for each poll.
        let read = pin!(socket.read_buf(&mut self.buffer)).poll(cx);
        if matches!(read, Poll::Ready(Ok(count)) if count == room) {
            self.read = (2 * self.read).min(MOST_READ);
        }
        read
    }

    /// The first byte, which says what wire the other end speaks.
    pub(super) fn first(&self) -> Option<u8> {
        self.buffer.first().copied()
    }

    /// The other end's preface, when all of it is there.
    pub(super) fn preface(&mut self) -> Option<Bytes> {
        (self.buffer.len() >= frame::PREFACE).then(|| self.buffer.split_to(frame::PREFACE).freeze())
    }

    /// The next whole frame of the native wire.
    pub(super) fn frame(&mut self, now: Instant) -> Result<Option<Frame>, Violation> {
        let frame = frame::next(&mut self.buffer, self.max_frame, now)?;
        self.missing = frame::missing(&self.buffer).unwrap_or_default();
        Ok(frame)
    }

    /// The next whole body of NestJS's wire.
    pub(super) fn body(&mut self) -> Result<Option<Bytes>, Violation> {
        let body = self.decoder.next(&mut self.buffer, self.max_frame)?;
        self.missing = self.decoder.missing();
        Ok(body)
    }

    /// Bytes of a frame that is not whole yet.
    pub(super) fn partial(&self) -> usize {
        // The length has been taken where a body is missing.
        self.buffer.len().max(self.missing.min(1))
    }

    /// Forgets what is not taken.
    pub(super) fn clear(&mut self) {
        self.buffer = BytesMut::new();
        self.decoder = Decoder::default();
        self.missing = 0;
    }

    /// Gives memory back that a busy time has left.
    pub(super) fn shrink(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
            self.read = LEAST_READ;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test]
    async fn an_announced_length_reserves_nothing() {
        let mut input = Input::new(1 << 30);
        let mut socket: &[u8] = &[0, 0, 0, 0x3f, 2, 0];
        assert_eq!(
            poll_fn(|cx| input.poll_fill(cx, &mut socket))
                .await
                .unwrap(),
            6
        );
        assert!(input.frame(Instant::now()).unwrap().is_none());
        assert_eq!(
            poll_fn(|cx| input.poll_fill(cx, &mut socket))
                .await
                .unwrap(),
            0
        );
        assert!(input.buffer.capacity() <= 2 * LEAST_READ);
    }

    #[tokio::test]
    async fn a_full_buffer_makes_the_next_read_larger() {
        let mut input = Input::new(1 << 20);
        let bytes = vec![1; 200_000];
        let mut socket = &bytes[..];
        let mut reads = 0;
        while poll_fn(|cx| input.poll_fill(cx, &mut socket))
            .await
            .unwrap()
            > 0
        {
            reads += 1;
            assert!(input.buffer.capacity() <= 2 * (input.partial() + MOST_READ));
        }
        assert_eq!(input.partial(), bytes.len());
        assert!(reads < 12, "{reads} reads");
    }
}
