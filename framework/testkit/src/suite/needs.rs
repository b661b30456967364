//! What a case may need of a transport: the words after `if` in the list.

use nestling::{
    Guarantee,
    transport::{Capabilities, Order},
};

/// A question to the capabilities, with its name.
pub type Need = (&'static str, fn(&Capabilities) -> bool);

/// A dropped call reaches the handler.
pub fn cancels(capabilities: &Capabilities) -> bool {
    capabilities.cancels
}

/// A slow reader of a stream slows its producer.
pub fn stream_credit(capabilities: &Capabilities) -> bool {
    capabilities.stream_credit
}

/// Each service sees each event.
pub fn fan_out(capabilities: &Capabilities) -> bool {
    capabilities.fan_out
}

/// Events with one key keep their order, whichever replica gets them.
pub fn order_by_key(capabilities: &Capabilities) -> bool {
    capabilities.order == Order::Key
}

/// Events with one key keep their order as long as one replica gets them.
pub fn order_by_key_in_a_replica(capabilities: &Capabilities) -> bool {
    matches!(capabilities.order, Order::Key | Order::KeyInReplica)
}

/// What one client sends to one place is begun in that order.
pub fn order(capabilities: &Capabilities) -> bool {
    capabilities.order != Order::None
}

/// Events wait for a stopped consumer.
pub fn durable(capabilities: &Capabilities) -> bool {
    capabilities.durable
}

/// Each message is handled by one of a service's replicas.
pub fn replicas_share(capabilities: &Capabilities) -> bool {
    capabilities.replicas_share
}

/// An event is given to another when its consumer dies.
pub fn at_least_once(capabilities: &Capabilities) -> bool {
    capabilities.events == Guarantee::AtLeastOnce
}

/// So is a request.
pub fn redelivers(capabilities: &Capabilities) -> bool {
    capabilities.redelivers
}

/// What a service gives up is kept.
pub fn dead_letters(capabilities: &Capabilities) -> bool {
    capabilities.dead_letters
}
