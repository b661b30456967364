//! What is received becomes a delivery, and its outcome a reply.

use std::{
    sync::Arc,
    task::{self, Poll, ready},
};

use bytes::Bytes;
use bytestring::ByteString;

use super::outbox::{Outbox, Outgoing};
use crate::{
    envelope::{Envelope, header},
    error::RpcError,
    transport::{Call, Delivery, Gone, Item, Kind, Outcome, Responder},
};

/// What an envelope is counted for beside its payload.
const ENVELOPE: usize = 256;

/// Whoever waits for the reply to a message.
pub(super) struct Caller {
    call: Call<u64>,
    /// What the call is called there, in JSON, if the caller speaks NestJS's wire.
    id: Option<Bytes>,
}

impl Caller {
    pub(super) fn new(call: Call<u64>, id: Option<Bytes>) -> Self {
        Self { call, id }
    }

    /// Writes an item for it.
    pub(super) fn reply(&self, out: &mut Outgoing, item: &Item) {
        reply(out, *self.call.key(), self.id.as_ref(), item);
    }
}

fn reply(out: &mut Outgoing, call: u64, id: Option<&Bytes>, item: &Item) {
    match id {
        None => out.reply(call, item),
        Some(id) => out.nest_reply(id, item),
    }
}

/// An envelope that waits for room among the deliveries.
pub(super) struct Arrived {
    envelope: Envelope,
    /// The registered pattern, if that is not the envelope's own.
    pub(super) subscription: Option<ByteString>,
    /// Nobody waits for an event.
    pub(super) caller: Option<Caller>,
}

impl Arrived {
    pub(super) fn new(envelope: Envelope, caller: Option<Caller>) -> Self {
        Self {
            envelope,
            subscription: None,
            caller,
        }
    }

    /// What it is counted for among what is read ahead.
    pub(super) fn size(&self) -> usize {
        let headers = self.envelope.headers.iter();
        let texts: usize = headers.map(|(name, value)| name.len() + value.len()).sum();
        ENVELOPE + texts + self.envelope.payload.len()
    }

    /// Whether nobody waits for it any more.
    pub(super) fn is_cancelled(&self) -> bool {
        let caller = self.caller.as_ref();
        caller.is_some_and(|caller| caller.call.is_cancelled())
    }

    pub(super) fn into_delivery(self, outbox: &Arc<Outbox>, max_reply: usize) -> Delivery {
        let Self {
            envelope,
            subscription,
            caller,
        } = self;
        let mut delivery = match caller {
            Some(caller) => {
                let outbox = Arc::clone(outbox);
                let answer = Answer {
                    caller,
                    outbox,
                    max_reply,
                    ended: false,
                };
                Delivery::new(Kind::Message, envelope, Box::new(answer))
            }
            None => {
                let lane = envelope.headers.get_shared(header::KEY).cloned();
                let mut delivery = Delivery::new(Kind::Event, envelope, Box::new(Unanswered));
                delivery.lane = lane;
                delivery
            }
        };
        delivery.subscription = subscription;
        delivery
    }
}

/// The room a poll was given, and what was put there.
pub(super) struct Deliveries<'a> {
    pub(super) batch: &'a mut Vec<Delivery>,
    pub(super) room: usize,
    pub(super) count: usize,
}

impl Deliveries<'_> {
    pub(super) fn have_room(&self) -> bool {
        self.count < self.room
    }

    pub(super) fn push(&mut self, delivery: Delivery) {
        self.batch.push(delivery);
        self.count += 1;
    }
}

/// The responder of a message.
struct Answer {
    caller: Caller,
    outbox: Arc<Outbox>,
    max_reply: usize,
    /// A value was too large, which has ended the call.
    ended: bool,
}

impl Answer {
    fn limited(&self, item: Item) -> Item {
        let length = match &item {
            Item::Value(payload) | Item::Last(payload) => payload.len(),
            Item::End => 0,
            // Rare, and usually small: measured by what will be written.
            Item::Fail(error) => error.to_bytes().len(),
        };
        if length <= self.max_reply {
            return item;
        }
        Item::Fail(RpcError::resource_exhausted(format!(
            "the reply of {length} bytes is above the limit of {}",
            self.max_reply
        )))
    }
}

impl Responder for Answer {
    fn poll_ready(&mut self, cx: &mut task::Context<'_>) -> Poll<Result<(), Gone>> {
        if self.ended {
            return Poll::Ready(Err(Gone));
        }
        ready!(self.outbox.poll_room(cx));
        let Caller { call, id } = &self.caller;
        match id {
            None => call.poll_credit(cx),
            // NestJS gives no credit: the room is all that holds a stream up.
            Some(_) if call.is_cancelled() => Poll::Ready(Err(Gone)),
            Some(_) => Poll::Ready(Ok(())),
        }
    }

    fn value(&mut self, payload: Bytes) {
        if self.ended || self.caller.call.is_cancelled() {
            return;
        }
        let item = self.limited(Item::Value(payload));
        self.ended = matches!(item, Item::Fail(_));
        self.outbox.push(|out| self.caller.reply(out, &item));
    }

    fn poll_cancelled(&mut self, cx: &mut task::Context<'_>) -> Poll<()> {
        self.caller.call.poll_cancelled(cx)
    }

    fn settle(self: Box<Self>, outcome: Outcome) {
        let item = match outcome {
            Outcome::Reply(payload) => Item::Last(payload),
            Outcome::Done | Outcome::Ack => Item::End,
            Outcome::Fail(error) => Item::Fail(error),
            Outcome::Retry { .. } => Item::Fail(RpcError::unavailable(
                "the service stopped before it replied",
            )),
            Outcome::Reject { reason } => Item::Fail(RpcError::failed_precondition(reason)),
        };
        let item = self.limited(item);
        let Self {
            caller: Caller { call, id },
            outbox,
            ended,
            ..
        } = *self;
        let key = *call.key();
        let nobody_waits = ended || call.is_cancelled();
        // A connection that drains ends with its last call, so that has to be gone when it looks.
        drop(call);
        if nobody_waits {
            outbox.wake();
        } else {
            outbox.push(|out| reply(out, key, id.as_ref(), &item));
        }
    }
}

/// The responder of an event: best effort has nothing to acknowledge.
struct Unanswered;

impl Responder for Unanswered {
    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> Poll<Result<(), Gone>> {
        Poll::Ready(Err(Gone))
    }

    fn value(&mut self, _: Bytes) {}

    fn poll_cancelled(&mut self, _: &mut task::Context<'_>) -> Poll<()> {
        Poll::Pending
    }

    fn settle(self: Box<Self>, _: Outcome) {}
}
