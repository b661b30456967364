//! Where the outcome of a delivery goes.

use std::{
    hash::{BuildHasher, RandomState},
    sync::Arc,
    task::{self, Poll},
};

use async_nats::{Client, Subject};
use bytes::Bytes;

use super::{
    super::{Call, Calls, Gone, Item, Outcome, Responder},
    max_payload, wire,
    writer::Writer,
};
use crate::error::RpcError;

/// What a source and its responders share.
pub(super) struct Shared {
    pub(super) writer: Writer,
    pub(super) client: Client,
    /// The calls in work, by the hash of their reply subject: it is looked up, never shown.
    pub(super) calls: Calls<u64>,
    hasher: RandomState,
}

impl Shared {
    pub(super) fn new(client: Client) -> Arc<Self> {
        let writer = Writer::new(client.clone());
        Arc::new(Self {
            writer,
            client,
            calls: Calls::new(),
            hasher: RandomState::new(),
        })
    }

    pub(super) fn key(&self, reply: &Subject) -> u64 {
        self.hasher.hash_one(wire::call_key(reply))
    }

    pub(super) fn responder(self: &Arc<Self>, reply: Option<Subject>) -> NatsResponder {
        let reply = reply.map(|subject| (self.calls.open(self.key(&subject)), subject));
        NatsResponder {
            shared: Arc::clone(self),
            reply,
        }
    }
}

pub(super) struct NatsResponder {
    shared: Arc<Shared>,
    /// Where the reply goes, if the sender said so.
    reply: Option<(Call<u64>, Subject)>,
}

impl NatsResponder {
    fn send(&mut self, item: Item) {
        let Some((call, subject)) = &self.reply else {
            return;
        };
        if call.is_cancelled() {
            return;
        }
        let mut message = wire::reply(subject.clone(), item);
        let (length, most) = (message.payload.len(), max_payload(&self.shared.client));
        if length > most {
            let text = format!("a reply of {length} bytes is above the limit of {most}");
            message = wire::reply(
                subject.clone(),
                Item::Fail(RpcError::resource_exhausted(text)),
            );
            // That ended the call, whatever its handler still has to say.
            self.reply = None;
        }
        self.shared.writer.send(message);
    }
}

impl Responder for NatsResponder {
    fn poll_ready(&mut self, cx: &mut task::Context<'_>) -> Poll<Result<(), Gone>> {
        match &self.reply {
            Some((call, _)) => call.poll_credit(cx),
            None => Poll::Ready(Err(Gone)),
        }
    }

    fn value(&mut self, payload: Bytes) {
        self.send(Item::Value(payload));
    }

    fn poll_cancelled(&mut self, cx: &mut task::Context<'_>) -> Poll<()> {
        match &self.reply {
            Some((call, _)) => call.poll_cancelled(cx),
            None => Poll::Pending,
        }
    }

    fn settle(mut self: Box<Self>, outcome: Outcome) {
        let item = match outcome {
            Outcome::Reply(payload) => Item::Last(payload),
            Outcome::Done => Item::End,
            Outcome::Fail(error) => Item::Fail(error),
            Outcome::Ack => return,
            // Core NATS cannot give it to another replica; the caller can ask again.
            Outcome::Retry { .. } => Item::Fail(RpcError::unavailable("not handled here")),
            Outcome::Reject { reason } => Item::Fail(RpcError::failed_precondition(reason)),
        };
        self.send(item);
    }
}

/// Core NATS knows no acknowledgement: an event is gone once it was delivered.
pub(super) struct Acknowledged;

impl Responder for Acknowledged {
    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> Poll<Result<(), Gone>> {
        Poll::Ready(Err(Gone))
    }

    fn value(&mut self, _: Bytes) {}

    fn poll_cancelled(&mut self, _: &mut task::Context<'_>) -> Poll<()> {
        Poll::Pending
    }

    fn settle(self: Box<Self>, _: Outcome) {}
}
