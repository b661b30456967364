//! Where the outcome of a delivery goes: to the caller's list and to the consumer group.

use std::{
    sync::{Arc, atomic::Ordering},
    task::{self, Poll},
};

use bytes::Bytes;

use super::{
    dead_letters::Burial,
    lot::Held,
    reader::{attempt_of, delivered_after},
    server::Shared,
    wire::{CallKey, ItemKind, Reply},
    writer::Op,
};
use crate::{
    error::RpcError,
    transport::{Call, Gone, Outcome, Responder, trials::Trial},
};

/// Answers a message.
pub(super) struct Answer {
    pub(super) shared: Arc<Shared>,
    pub(super) call: Call<CallKey>,
    /// The caller's list.
    pub(super) to: Bytes,
    pub(super) attempt: u8,
    pub(super) sequence: u32,
    pub(super) held: Held,
    /// Whether the entry can be given back: it was not acknowledged before.
    pub(super) redelivers: bool,
    /// A value could not be sent, and the caller has been told so.
    pub(super) broken: bool,
}

impl Answer {
    fn send(&mut self, kind: ItemKind, payload: Bytes) {
        if self.broken || self.to.is_empty() {
            return;
        }
        let limit = self.shared.options.max_payload;
        let (kind, payload) = match kind {
            ItemKind::Value | ItemKind::Last if payload.len() > limit => {
                self.broken = true;
                let message = format!("a reply of {} bytes is above {limit}", payload.len());
                (
                    ItemKind::Fail,
                    RpcError::resource_exhausted(message).to_bytes(),
                )
            }
            kind => (kind, payload),
        };
        let CallKey { client, call } = *self.call.key();
        let reply = Reply {
            kind,
            attempt: self.attempt,
            sequence: self.sequence,
            call,
            payload,
        };
        self.sequence = self.sequence.wrapping_add(1);
        self.shared.push(Op::Reply {
            to: self.to.clone(),
            client,
            reply,
        });
    }
}

impl Responder for Answer {
    fn poll_ready(&mut self, cx: &mut task::Context<'_>) -> Poll<Result<(), Gone>> {
        if self.broken {
            return Poll::Ready(Err(Gone));
        }
        self.call.poll_credit(cx)
    }

    fn value(&mut self, payload: Bytes) {
        self.send(ItemKind::Value, payload);
    }

    fn poll_cancelled(&mut self, cx: &mut task::Context<'_>) -> Poll<()> {
        self.call.poll_cancelled(cx)
    }

    fn settle(mut self: Box<Self>, outcome: Outcome) {
        match outcome {
            Outcome::Retry { after } if self.redelivers => {
                let Self { shared, held, .. } = *self;
                let delivered = None;
                return shared.push(Op::Back {
                    held,
                    after,
                    delivered,
                });
            }
            Outcome::Reply(payload) => self.send(ItemKind::Last, payload),
            Outcome::Done | Outcome::Ack => self.send(ItemKind::End, Bytes::new()),
            Outcome::Fail(error) => self.send(ItemKind::Fail, error.to_bytes()),
            Outcome::Retry { .. } => {
                let error = RpcError::unavailable("the service did not handle the message");
                self.send(ItemKind::Fail, error.to_bytes());
            }
            Outcome::Reject(rejection) => {
                let error = RpcError::failed_precondition(rejection.reason);
                self.send(ItemKind::Fail, error.to_bytes());
            }
        }
        let Self { shared, held, .. } = *self;
        shared.push(Op::Settle(held));
    }
}

/// Acknowledges an event.
pub(super) struct Acknowledgement {
    shared: Arc<Shared>,
    held: Held,
    /// What Redis counts.
    counted: u32,
    /// How many tries have failed.
    tried: u32,
    trial: Option<Trial>,
}

impl Acknowledgement {
    /// For an event that has been `delivered` so often, as Redis counts it.
    pub(super) fn new(
        shared: Arc<Shared>,
        held: Held,
        delivered: u32,
        trial: Option<Trial>,
    ) -> Self {
        Self {
            shared,
            held,
            counted: delivered,
            tried: attempt_of(delivered) - 1,
            trial,
        }
    }

    /// Whatever is on trial next may begin.
    fn end_trial(&mut self) {
        if self.trial.take().is_some() {
            let reading = self.shared.reading.load(Ordering::Acquire);
            self.shared.push(Op::Unblock(reading));
        }
    }
}

impl Responder for Acknowledgement {
    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> Poll<Result<(), Gone>> {
        Poll::Ready(Err(Gone))
    }

    fn value(&mut self, _: Bytes) {}

    fn poll_cancelled(&mut self, _: &mut task::Context<'_>) -> Poll<()> {
        Poll::Pending
    }

    fn tried(&mut self, attempts: u32) {
        // Handlers of one event count each for itself.
        self.tried = self.tried.max(attempts);
        let delivered = delivered_after(attempts);
        if delivered > self.counted {
            self.counted = delivered;
            self.shared.tried(&self.held, delivered);
        }
        self.end_trial();
    }

    fn settle(mut self: Box<Self>, outcome: Outcome) {
        self.end_trial();
        let Self {
            shared,
            held,
            tried,
            ..
        } = *self;
        let op = match outcome {
            Outcome::Retry { after } => Op::Back {
                held,
                after,
                delivered: Some(delivered_after(tried)),
            },
            Outcome::Reject(rejection) => {
                let burial = Burial::new(Arc::clone(&shared), held, *rejection);
                Op::Bury(Box::new(burial))
            }
            _ => Op::Settle(held),
        };
        shared.push(op);
    }
}
