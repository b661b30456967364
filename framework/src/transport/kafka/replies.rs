//! What a server answers with.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    task::{self, Poll, Waker},
    time::Duration,
};

use rdkafka::{
    error::KafkaError,
    message::Message as _,
    producer::{DeliveryResult, ProducerContext},
};

use super::{
    Logged, MAX_PAYLOAD, Settings, nest,
    producer::{Outgoing, Producer, Reports},
    record::{self, Encoded, ReplyAddress},
    topics::Lookup,
};
use crate::{
    error::RpcError,
    transport::{Error, Item, pending::lock},
};

/// Sends replies to the topics of those who wait for them.
pub(super) struct ReplyWriter {
    producer: Arc<Producer<Logged<ReplyReports>>>,
    late: Mutex<Late>,
}

/// What did not fit into the producer's queue. It is bounded by what is in work: a stream waits
/// until this is empty.
#[derive(Default)]
struct Late {
    waiting: VecDeque<(Arc<ReplyAddress>, Encoded)>,
    wakers: Vec<Waker>,
}

pub(super) struct ReplyReports;

impl ProducerContext for Logged<ReplyReports> {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, message)) = result {
            lost(message.topic(), error);
        }
    }
}

fn lost(topic: &str, error: &KafkaError) {
    tracing::warn!(topic, %error, "a reply could not be delivered");
}

impl ReplyWriter {
    pub(super) fn new(settings: &Settings) -> Result<Self, Error> {
        let known = settings.clone();
        let producer = Producer::new(settings, "nestling-replies", Reports::Failures, move || {
            Logged::new(ReplyReports).reporting(&known)
        })?;
        Ok(Self {
            producer,
            late: Mutex::default(),
        })
    }

    pub(super) fn lookup(&self) -> Lookup {
        self.producer.lookup()
    }

    /// Queues one item; one that is too large becomes an error. Returns whether the caller can
    /// expect more.
    pub(super) fn send(&self, address: &Arc<ReplyAddress>, item: Item) -> bool {
        let (item, fits) = match item {
            Item::Value(payload) | Item::Last(payload) if payload.len() > MAX_PAYLOAD => {
                let error = Error::too_large(payload.len(), MAX_PAYLOAD);
                let error = RpcError::resource_exhausted(format!("the reply's {error}"));
                (Item::Fail(error), false)
            }
            Item::Fail(error) => (Item::Fail(shortened(error)), true),
            item => (item, true),
        };
        self.write(address, record::reply(address, &item));
        fits
    }

    /// Tells a NestJS application that nobody here handles what it asked for.
    pub(super) fn send_no_handler(&self, address: &Arc<ReplyAddress>) {
        self.write(address, nest::no_handler(&address.correlation));
    }

    fn write(&self, address: &Arc<ReplyAddress>, reply: Encoded) {
        let mut late = lock(&self.late);
        if !late.waiting.is_empty() {
            late.waiting.push_back((Arc::clone(address), reply));
            return;
        }
        drop(late);
        if let Some(reply) = self.try_send(address, reply) {
            lock(&self.late)
                .waiting
                .push_back((Arc::clone(address), reply));
        }
    }

    /// Gives the reply back when the queue is full.
    fn try_send(&self, address: &ReplyAddress, reply: Encoded) -> Option<Encoded> {
        let Encoded { headers, payload } = reply;
        let outgoing = Outgoing {
            topic: &address.topic,
            partition: address.partition,
            key: None,
            headers,
            payload: payload.as_deref(),
        };
        match self.producer.send(outgoing, ()) {
            Ok(()) => None,
            Err(unsent) if unsent.is_full() => Some(Encoded {
                headers: unsent.headers.unwrap_or_default(),
                payload,
            }),
            Err(unsent) => {
                lost(&address.topic, &unsent.error);
                None
            }
        }
    }

    /// Whether a stream may go on.
    pub(super) fn poll_ready(&self, cx: &mut task::Context<'_>) -> Poll<()> {
        let mut late = lock(&self.late);
        if late.waiting.is_empty() {
            return Poll::Ready(());
        }
        if !late.wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
            late.wakers.push(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Tries again what did not fit.
    pub(super) fn send_late(&self) {
        let mut late = lock(&self.late);
        while let Some((address, reply)) = late.waiting.pop_front() {
            if let Some(reply) = self.try_send(&address, reply) {
                late.waiting.push_front((address, reply));
                return;
            }
        }
        let wakers = std::mem::take(&mut late.wakers);
        drop(late);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Waits on this thread until everything is sent.
    pub(super) fn flush(&self, limit: Duration) {
        self.send_late();
        self.producer.flush(limit);
    }
}

/// An error whose details do not fit goes without them.
fn shortened(mut error: RpcError) -> RpcError {
    if error.details.is_some() && error.to_bytes().len() > MAX_PAYLOAD {
        error.details = None;
    }
    if error.message.len() > MAX_PAYLOAD / 2 {
        error.message = error.message.chars().take(1000).collect();
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_always_fits() {
        let large = "x".repeat(2 * MAX_PAYLOAD);
        let error = RpcError::aborted(large.clone()).with_details(serde_json::json!(large));
        assert!(shortened(error).to_bytes().len() < 2000);
        let error = RpcError::aborted("small").with_details(serde_json::json!(1));
        assert_eq!(shortened(error.clone()), error);
    }
}
