//! Where the outcome of a delivery goes: to the reply channel, or nowhere.

use std::{
    sync::Arc,
    task::{self, Poll, ready},
};

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::PollSemaphore;

use super::{
    outbox::{Packet, Reply, Streamed},
    source::Shared,
};
use crate::{
    error::RpcError,
    transport::{Gone, Item, Outcome, Responder},
};

/// Answers a request.
pub(super) struct Answer {
    shared: Arc<Shared>,
    channel: Bytes,
    id: Bytes,
    streaming: Option<Streaming>,
    /// The call has ended before its handler did.
    broken: bool,
}

/// A reply of several values. The wire has no flow control, so that they wait for the connection.
struct Streaming {
    stream: Arc<Streamed>,
    room: PollSemaphore,
    taken: Option<OwnedSemaphorePermit>,
}

impl Answer {
    pub(super) fn new(shared: Arc<Shared>, channel: Bytes, id: Bytes) -> Self {
        Self {
            shared,
            channel,
            id,
            streaming: None,
            broken: false,
        }
    }

    fn send(&self, packet: Packet) {
        self.shared.reply(Reply {
            channel: self.channel.clone(),
            id: self.id.clone(),
            packet,
        });
    }

    fn end(&self, item: Item) {
        let stream = self.streaming.as_ref().map(|s| Arc::clone(&s.stream));
        self.send(Packet::End { item, stream });
    }

    /// The error that takes the place of a payload that is too large.
    fn check(&self, payload: &Bytes) -> Option<Item> {
        let limit = self.shared.options.max_payload;
        (payload.len() > limit).then(|| {
            let message = format!("a reply of {} bytes is above {limit}", payload.len());
            Item::Fail(RpcError::resource_exhausted(message))
        })
    }
}

impl Responder for Answer {
    fn poll_ready(&mut self, cx: &mut task::Context<'_>) -> Poll<Result<(), Gone>> {
        let room = &self.shared.room;
        let streaming = self.streaming.get_or_insert_with(|| Streaming {
            stream: Arc::default(),
            room: PollSemaphore::new(Arc::clone(room)),
            taken: None,
        });
        if self.broken || streaming.stream.is_torn() {
            return Poll::Ready(Err(Gone));
        }
        streaming.taken = ready!(streaming.room.poll_acquire(cx));
        Poll::Ready(Ok(()))
    }

    fn value(&mut self, payload: Bytes) {
        if self.broken {
            return;
        }
        if let Some(error) = self.check(&payload) {
            self.broken = true;
            return self.end(error);
        }
        let Some(streaming) = &mut self.streaming else {
            return;
        };
        let (stream, room) = (Arc::clone(&streaming.stream), streaming.taken.take());
        self.send(Packet::Value {
            payload,
            stream,
            _room: room,
        });
    }

    /// The wire has no word for it.
    fn poll_cancelled(&mut self, _: &mut task::Context<'_>) -> Poll<()> {
        Poll::Pending
    }

    fn settle(self: Box<Self>, outcome: Outcome) {
        if self.broken {
            return;
        }
        self.end(match outcome {
            Outcome::Reply(payload) => self.check(&payload).unwrap_or(Item::Last(payload)),
            Outcome::Done | Outcome::Ack => Item::End,
            Outcome::Fail(error) => Item::Fail(error),
            Outcome::Retry { .. } => Item::Fail(RpcError::unavailable(
                "the service did not handle the message",
            )),
            Outcome::Reject { reason } => Item::Fail(RpcError::internal(reason)),
        });
    }
}

/// Pub/Sub knows no acknowledgement: an event is gone once it was delivered.
pub(super) struct Heard {
    pub(super) shared: Arc<Shared>,
}

impl Responder for Heard {
    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> Poll<Result<(), Gone>> {
        Poll::Ready(Err(Gone))
    }

    fn value(&mut self, _: Bytes) {}

    fn poll_cancelled(&mut self, _: &mut task::Context<'_>) -> Poll<()> {
        Poll::Pending
    }

    fn settle(self: Box<Self>, outcome: Outcome) {
        if let Outcome::Retry { .. } = outcome {
            self.shared.lose();
        }
    }
}
