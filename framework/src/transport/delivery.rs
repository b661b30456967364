//! [`Delivery`]: an envelope that has been received.

use std::{fmt, time::Duration};

use bytestring::ByteString;

use super::{Outcome, Responder};
use crate::envelope::Envelope;

/// Whether somebody waits for a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A message: answered.
    Message,
    /// An event: acknowledged.
    Event,
}

/// A received envelope, to be settled exactly once.
///
/// One that is dropped unsettled counts as [`Outcome::Retry`]: nothing is lost by a panic or an
/// early return.
pub struct Delivery {
    /// Message or event.
    pub kind: Kind,
    /// What arrived.
    pub envelope: Envelope,
    /// The subscribed pattern it came by, where that is not the envelope's own (wildcards).
    pub subscription: Option<ByteString>,
    /// The how-manieth try this is, counted from 1, as far as the transport knows. What came to
    /// nothing because its process died counts once it is clear that it was to blame.
    pub attempt: u32,
    /// Deliveries of one source with equal lanes are handled one after the other.
    pub lane: Option<ByteString>,
    responder: Option<Box<dyn Responder>>,
}

impl Delivery {
    /// A first delivery without a lane.
    pub fn new(kind: Kind, envelope: Envelope, responder: Box<dyn Responder>) -> Self {
        let responder = Some(responder);
        Self {
            kind,
            envelope,
            subscription: None,
            attempt: 1,
            lane: None,
            responder,
        }
    }

    /// The pattern its handler is registered under.
    pub fn route(&self) -> &ByteString {
        self.subscription.as_ref().unwrap_or(&self.envelope.pattern)
    }

    /// Says what became of it.
    pub fn settle(mut self, outcome: Outcome) {
        self.take().settle(outcome);
    }

    /// Takes what is left of it once its envelope has gone to its handler, from where it lies.
    pub(crate) fn take(&mut self) -> Unsettled {
        Unsettled {
            kind: self.kind,
            responder: self.responder.take(),
        }
    }

    /// The responder, while the delivery is not settled.
    pub fn responder(&mut self) -> &mut dyn Responder {
        self.responder
            .as_deref_mut()
            .expect("whoever takes the responder is done with the delivery")
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        drop(self.take());
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("kind", &self.kind)
            .field("envelope", &self.envelope)
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}

/// What is left of a delivery when its handler has the envelope: somebody to answer, small enough to be
/// moved to a task. It is settled exactly once as well, and given back when it is dropped.
pub(crate) struct Unsettled {
    pub(crate) kind: Kind,
    responder: Option<Box<dyn Responder>>,
}

impl Unsettled {
    /// Says what became of it.
    pub(crate) fn settle(mut self, outcome: Outcome) {
        if let Some(responder) = self.responder.take() {
            responder.settle(outcome);
        }
    }

    /// The responder, while it is not settled.
    pub(crate) fn responder(&mut self) -> &mut dyn Responder {
        self.responder
            .as_deref_mut()
            .expect("only `settle` takes the responder, by value")
    }
}

impl Drop for Unsettled {
    fn drop(&mut self) {
        if let Some(responder) = self.responder.take() {
            responder.settle(Outcome::Retry {
                after: Duration::ZERO,
            });
        }
    }
}
