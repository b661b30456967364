//! What a case may need: the words after `if` in the list.

use crate::stage::{Half, Side, Transport};

/// A question to a cell of the table, with its name.
pub(crate) type Need = (&'static str, fn(Transport, Half) -> bool);

pub(crate) fn nest_caller(_: Transport, half: Half) -> bool {
    half.caller == Side::Nest
}

pub(crate) fn nestling_caller(_: Transport, half: Half) -> bool {
    half.caller == Side::Nestling
}

pub(crate) fn nest_server(_: Transport, half: Half) -> bool {
    half.server == Side::Nest
}

pub(crate) fn nestling_server(_: Transport, half: Half) -> bool {
    half.server == Side::Nestling
}

pub(crate) fn tcp(transport: Transport, _: Half) -> bool {
    transport == Transport::Tcp
}

pub(crate) fn kafka(transport: Transport, _: Half) -> bool {
    transport == Transport::Kafka
}

/// Names of topics have neither braces nor quotes nor letters with accents.
pub(crate) fn object_patterns(transport: Transport, _: Half) -> bool {
    transport != Transport::Kafka
}

/// NestJS's client does not send null; its Kafka server takes a record without a value for something else.
pub(crate) fn null_requests(transport: Transport, half: Half) -> bool {
    half.caller == Side::Nestling && transport != Transport::Kafka
}

/// Somebody answers a request that nobody handles.
pub(crate) fn no_handler_replies(transport: Transport, _: Half) -> bool {
    matches!(transport, Transport::Tcp | Transport::Nats)
}

/// NestJS takes the records of a consumer one after the other: a handler that never ends stops it.
pub(crate) fn parallel_handlers(transport: Transport, half: Half) -> bool {
    !(transport == Transport::Kafka && half.server == Side::Nest)
}

/// Replicas of one service share its requests.
pub(crate) fn shares(transport: Transport, _: Half) -> bool {
    matches!(transport, Transport::Nats | Transport::Kafka)
}

/// Patterns of handlers may have wildcards.
pub(crate) fn wildcards(transport: Transport, _: Half) -> bool {
    matches!(transport, Transport::Nats | Transport::Redis)
}

pub(crate) fn nats(transport: Transport, _: Half) -> bool {
    transport == Transport::Nats
}

/// A message to a handler of events is answered; NestJS on Kafka is silent.
pub(crate) fn event_replies(transport: Transport, _: Half) -> bool {
    transport != Transport::Kafka
}
