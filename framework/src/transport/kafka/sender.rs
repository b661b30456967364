//! What the clients of both wires have in common: where records leave, and how calls end that could
//! not be made.

use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash, Hasher},
    sync::{Arc, Weak},
    time::Duration,
};

use rdkafka::{
    error::KafkaResult,
    message::Message as _,
    producer::{DeliveryResult, ProducerContext},
};
use tokio::time::{Instant, timeout_at};

use super::{
    Logged, Settings, blocking, patiently,
    producer::{self, Outgoing, Producer, Reports},
    publisher::Publisher,
    reader::Reader,
    record::Encoded,
    topics::{Purpose, Topics},
};
use crate::{
    envelope::{Envelope, header},
    error::RpcError,
    transport::{ClientIdentity, Error, ErrorKind, Item, Pending},
};

/// How long a call without a deadline may take to be sent.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// How long closing waits for what is queued.
const FLUSH: Duration = Duration::from_secs(5);

/// Sends requests and events.
pub(super) struct Sender {
    pub(super) settings: Settings,
    pub(super) identity: ClientIdentity,
    pub(super) pending: Arc<Pending>,
    pub(super) events: Arc<Publisher>,
    pub(super) topics: Arc<Topics>,
    requests: Arc<Producer<Logged<RequestReports>>>,
}

/// Ends the calls whose requests could not be delivered.
struct RequestReports(Weak<Pending>);

impl ProducerContext for Logged<RequestReports> {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, call: usize) {
        let Err((error, message)) = result else {
            return;
        };
        let Some(pending) = self.owner.0.upgrade() else {
            return;
        };
        let doing = format!("send to {}", message.topic());
        let error = Error::new(producer::kind(error), doing).with_source(error.clone());
        pending.complete(call as u64, Item::Fail(RpcError::from(error)));
    }
}

impl Sender {
    /// Connects.
    pub(super) async fn open(settings: Settings, identity: ClientIdentity) -> Result<Self, Error> {
        let pending = Pending::new();
        let reports = Arc::downgrade(&pending);
        let name = &identity.service;
        let known = settings.clone();
        let requests = Producer::new(&settings, name, Reports::Failures, move || {
            Logged::new(RequestReports(Weak::clone(&reports))).reporting(&known)
        })?;
        let topics = Arc::new(Topics::new(settings.clone(), requests.lookup()));
        topics.connect().await?;
        let events = Publisher::new(settings.clone(), name.clone(), Arc::clone(&topics));
        Ok(Self {
            settings,
            identity,
            pending,
            events: Arc::new(events),
            topics,
            requests,
        })
    }

    /// Refuses a topic that does not exist, which nobody reads.
    pub(super) async fn expect_topic(&self, topic: &str, deadline: Instant) -> Result<(), Error> {
        if within(deadline, self.topics.exists(topic)).await? {
            return Ok(());
        }
        let message = format!("nobody handles {topic:?}: there is no such topic");
        Err(Error::new(ErrorKind::NoResponders, message))
    }

    /// Sends the request of a call that is pending.
    pub(super) async fn send(
        &self,
        call: u64,
        topic: &str,
        envelope: &Envelope,
        request: Encoded,
        deadline: Instant,
    ) -> Result<(), Error> {
        let outgoing = Outgoing {
            topic,
            partition: None,
            key: envelope.headers.get(header::KEY).map(str::as_bytes),
            headers: request.headers,
            payload: request.payload.as_deref(),
        };
        // The ids are below 2^57, so that this loses something on 32 bits only; there the call
        // ends by its deadline.
        let sent = self
            .requests
            .send_by(outgoing, call as usize, deadline)
            .await;
        if let Err(error) = &sent
            && error.kind() == ErrorKind::NoResponders
        {
            self.topics.forget(topic);
        }
        sent
    }

    /// Reads replies in a partition of this topic, which is made unless it exists, and returns
    /// which: the processes of a service read apart from each other as far as there are enough.
    ///
    /// There is a position in it then. A reply that is written before its reader has one would be
    /// lost.
    pub(super) async fn read_replies(&self, reader: &Reader, topic: &str) -> Result<i32, Error> {
        let wanted = vec![(topic.to_owned(), Purpose::Replies)];
        let partitions = self.topics.ensure(wanted).await?;
        let count = partitions.get(topic).copied().unwrap_or(1);
        let partition = partition_of(&self.identity.instance, count);
        let (requests, settings) = (Arc::clone(&self.requests), self.settings.clone());
        let name = topic.to_owned();
        let end = blocking(move || {
            patiently(|| requests.end(&name, partition))
                .map_err(|error| settings.failed("find the end of the reply topic", error))
        });
        reader.follow(topic, partition, end.await?).await?;
        Ok(partition)
    }

    /// Where a partition ends. Blocks.
    pub(super) fn end(&self, topic: &str, partition: i32) -> KafkaResult<i64> {
        patiently(|| self.requests.end(topic, partition))
    }

    pub(super) async fn close(&self) {
        self.pending
            .fail_all(&Error::new(ErrorKind::Closed, "the client was closed").into());
        let (requests, events) = (Arc::clone(&self.requests), Arc::clone(&self.events));
        let flushed = blocking(move || {
            requests.flush(FLUSH);
            events.flush(FLUSH);
            Ok(())
        });
        if let Err(error) = flushed.await {
            tracing::debug!(%error, "close a Kafka client");
        }
    }
}

/// An instance's partition among so many.
fn partition_of(instance: &str, count: i32) -> i32 {
    let mut hasher = DefaultHasher::new();
    instance.hash(&mut hasher);
    let partition = i32::try_from(hasher.finish() % u64::from(count.unsigned_abs().max(1)));
    partition.unwrap_or_default()
}

/// When whoever made the call stops waiting.
pub(super) fn deadline(envelope: &Envelope) -> Instant {
    envelope
        .deadline
        .unwrap_or_else(|| Instant::now() + PATIENCE)
}

pub(super) async fn within<T>(
    deadline: Instant,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    match timeout_at(deadline, work).await {
        Ok(result) => result,
        Err(_) => Err(Error::new(ErrorKind::Timeout, "wait for Kafka")),
    }
}
