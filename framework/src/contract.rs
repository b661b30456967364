//! Contracts: types that know their pattern and, for messages, their reply.

use serde::{Serialize, de::DeserializeOwned};

/// A message: somebody sends it and waits for a reply, or for a stream of them.
///
/// Written by `#[derive(Message)]`, or by hand:
///
/// ```
/// use nestling::{Message, Single};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Add(i64, i64);
///
/// impl Message for Add {
///     const PATTERN: &'static str = "math.add";
///     const IDEMPOTENT: bool = true;
///     type Reply = i64;
///     type Shape = Single;
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a message contract",
    label = "expected a type with `#[derive(Message)]`",
    note = "derive `Message` for it, or name the pattern: `#[message_pattern(\"service.verb\")]` with `Payload<{Self}>`"
)]
pub trait Message: Serialize + DeserializeOwned + Send + 'static {
    /// The routing name, `service.verb`.
    const PATTERN: &'static str;
    /// Whether running it twice is the same as running it once.
    ///
    /// Decides what a crash leaves behind on a transport that redelivers (an idempotent message
    /// runs again, any other leaves its caller with a timeout), whether a client may retry it, and
    /// whether its handler is dropped when its caller has gone.
    const IDEMPOTENT: bool = false;
    /// What a reply holds; one value of a [`Many`] reply.
    type Reply: Serialize + DeserializeOwned + Send + 'static;
    /// [`Single`] or [`Many`].
    type Shape: Shape;
}

/// How many values a reply has: [`Single`] or [`Many`].
pub trait Shape: sealed::Sealed + 'static {
    /// Whether it is a stream.
    const MANY: bool;
}

/// Exactly one reply.
#[derive(Debug, Clone, Copy)]
pub enum Single {}

/// A stream of replies, possibly empty, possibly ended by an error.
#[derive(Debug, Clone, Copy)]
pub enum Many {}

impl Shape for Single {
    const MANY: bool = false;
}

impl Shape for Many {
    const MANY: bool = true;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Single {}
    impl Sealed for super::Many {}
}

/// An event: a fact that services react to and nobody answers.
///
/// Written by `#[derive(Event)]`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an event contract",
    label = "expected a type with `#[derive(Event)]`",
    note = "derive `Event` for it, or name the pattern: `#[event_pattern(\"noun.happened\")]` with `Payload<{Self}>`"
)]
pub trait Event: Serialize + DeserializeOwned + Send + 'static {
    /// The routing name, `noun.past_participle`.
    const PATTERN: &'static str;
    /// What losing one would mean.
    const DELIVERY: Guarantee = Guarantee::AtLeastOnce;

    /// The id of what the event is about: events with equal keys are handled in order, where the
    /// transport has an order.
    fn key(&self) -> Option<String> {
        None
    }
}

/// How sure the delivery of an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Guarantee {
    /// It arrives once if nothing breaks, else not at all.
    BestEffort,
    /// It arrives, perhaps more than once.
    AtLeastOnce,
}
