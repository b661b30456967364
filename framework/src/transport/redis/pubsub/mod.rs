//! The wire of NestJS on Redis: requests and events on a channel with the name of their route,
//! replies on `<channel>.reply`.
//!
//! Pub/Sub keeps nothing: what is published while a subscriber is away is lost, and every subscriber
//! gets everything, replicas of one service too.

mod channels;
mod client;
mod inbox;
mod names;
mod outbox;
mod responder;
mod sender;
mod source;

pub(super) use self::{client::PubSubClient, source::PubSubSource};
use super::Options;
use crate::{
    contract::Guarantee,
    transport::{Capabilities, Order},
};

/// What the name of a channel gets for that of its replies.
const REPLY: &str = ".reply";

/// What this wire gives, on either side.
pub(super) fn capabilities(options: &Options) -> Capabilities {
    Capabilities {
        events: Guarantee::BestEffort,
        replicas_share: false,
        fan_out: true,
        durable: false,
        order: Order::Subject,
        redelivers: false,
        cancels: false,
        stream_credit: false,
        detects_absence: true,
        max_payload: options.max_payload,
    }
}
