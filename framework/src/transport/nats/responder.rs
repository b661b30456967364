//! Where the outcome of a delivery goes.

use std::{
    hash::{BuildHasher, RandomState},
    sync::Arc,
    task::{self, Poll},
};

use async_nats::{Client, Subject, message::OutboundMessage};
use bytes::Bytes;

use super::{
    super::{Call, Calls, Gone, Item, Outcome, Responder},
    max_payload, nest, wire,
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

    /// Answers as the native wire does, if the sender said where.
    pub(super) fn native(self: &Arc<Self>, reply: Option<Subject>) -> NatsResponder {
        self.responder(reply.map(|subject| Caller::Native {
            call: self.calls.open(self.key(&subject)),
            subject,
        }))
    }

    /// Answers the request with this id as NestJS does, if the sender said where.
    pub(super) fn nest(self: &Arc<Self>, reply: Option<Subject>, id: Bytes) -> NatsResponder {
        self.responder(reply.map(|subject| Caller::Nest { subject, id }))
    }

    fn responder(self: &Arc<Self>, caller: Option<Caller>) -> NatsResponder {
        NatsResponder {
            shared: Arc::clone(self),
            caller,
        }
    }
}

pub(super) struct NatsResponder {
    shared: Arc<Shared>,
    /// Gone when nobody waits, or when the call was ended before its handler.
    caller: Option<Caller>,
}

/// Who waits for a reply, and on which wire.
enum Caller {
    Native { subject: Subject, call: Call<u64> },
    Nest { subject: Subject, id: Bytes },
}

impl Caller {
    fn is_cancelled(&self) -> bool {
        match self {
            Self::Native { call, .. } => call.is_cancelled(),
            Self::Nest { .. } => false,
        }
    }

    fn message(&self, item: Item) -> OutboundMessage {
        match self {
            Self::Native { subject, .. } => wire::reply(subject.clone(), item),
            Self::Nest { subject, id } => nest::reply(subject.clone(), id, &item),
        }
    }
}

impl NatsResponder {
    fn send(&mut self, item: Item) {
        let Some(caller) = &self.caller else {
            return;
        };
        if caller.is_cancelled() {
            return;
        }
        let client = &self.shared.client;
        let (length, most) = (length(&item), max_payload(client));
        let mut message = caller.message(item);
        if length > most || message.payload.len() > client.max_payload() {
            let length = length.max(message.payload.len());
            let text = format!("a reply of {length} bytes is above the limit of {most}");
            message = caller.message(Item::Fail(RpcError::resource_exhausted(text)));
            // That ended the call, whatever its handler still has to say.
            self.caller = None;
        }
        self.shared.writer.send(message);
    }
}

fn length(item: &Item) -> usize {
    match item {
        Item::Value(payload) | Item::Last(payload) => payload.len(),
        Item::End | Item::Fail(_) => 0,
    }
}

impl Responder for NatsResponder {
    fn poll_ready(&mut self, cx: &mut task::Context<'_>) -> Poll<Result<(), Gone>> {
        match &self.caller {
            Some(Caller::Native { call, .. }) => call.poll_credit(cx),
            // There is no credit: the connection itself is what slows a stream.
            Some(Caller::Nest { .. }) => self.shared.writer.poll_room(cx),
            None => Poll::Ready(Err(Gone)),
        }
    }

    fn value(&mut self, payload: Bytes) {
        self.send(Item::Value(payload));
    }

    fn poll_cancelled(&mut self, cx: &mut task::Context<'_>) -> Poll<()> {
        match &self.caller {
            Some(Caller::Native { call, .. }) => call.poll_cancelled(cx),
            Some(Caller::Nest { .. }) | None => Poll::Pending,
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
