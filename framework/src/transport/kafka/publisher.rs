//! Events, each of which is acknowledged.

use std::{sync::Arc, time::Duration};

use rdkafka::{
    error::KafkaResult,
    producer::{DeliveryResult, ProducerContext},
};
use tokio::{
    sync::{OnceCell, oneshot},
    time::{Instant, timeout_at},
};

use super::{
    Logged, Settings,
    producer::{self, Outgoing, Producer, Reports},
    record::Encoded,
    sender::{PATIENCE, deadline, within},
    topics::{Purpose, Topics},
};
use crate::{
    envelope::{Envelope, header},
    transport::{Error, ErrorKind},
};

/// Publishes events for one client.
pub(super) struct Publisher {
    settings: Settings,
    /// What the brokers know this client by.
    name: String,
    topics: Arc<Topics>,
    /// Made with the first event.
    producer: OnceCell<Arc<Producer<Logged<EventReports>>>>,
}

/// Tells publishers what became of their events.
struct EventReports;

type Acknowledge = oneshot::Sender<KafkaResult<()>>;
type Acknowledged = oneshot::Receiver<KafkaResult<()>>;

impl ProducerContext for Logged<EventReports> {
    type DeliveryOpaque = Box<Acknowledge>;

    fn delivery(&self, result: &DeliveryResult<'_>, publisher: Box<Acknowledge>) {
        let result = match result {
            Ok(_) => Ok(()),
            Err((error, _)) => Err(error.clone()),
        };
        // A publisher that stopped waiting has told its caller so.
        publisher.send(result).unwrap_or_default();
    }
}

impl Publisher {
    pub(super) fn new(settings: Settings, name: String, topics: Arc<Topics>) -> Self {
        Self {
            settings,
            name,
            topics,
            producer: OnceCell::new(),
        }
    }

    /// Has a topic of dead letters and a producer.
    pub(super) async fn prepare(&self, topic: &str) -> Result<(), Error> {
        self.topics.ensure_one(topic, Purpose::DeadLetters).await?;
        self.producer
            .get_or_try_init(|| self.open())
            .await
            .map(drop)
    }

    /// Writes a dead letter, or with a payload that is null takes one away, and waits until that is
    /// acknowledged.
    pub(super) async fn store(
        &self,
        topic: &str,
        key: &[u8],
        record: Encoded,
    ) -> Result<(), Error> {
        let deadline = Instant::now() + PATIENCE;
        within(deadline, self.prepare(topic)).await?;
        let producer = within(deadline, self.producer.get_or_try_init(|| self.open())).await?;
        let (acknowledge, acknowledged) = oneshot::channel();
        let outgoing = Outgoing {
            topic,
            partition: Some(0),
            key: Some(key),
            headers: record.headers,
            payload: record.payload.as_deref(),
        };
        producer
            .send_by(outgoing, Box::new(acknowledge), deadline)
            .await?;
        self.acknowledged(topic, topic, acknowledged, deadline)
            .await
    }

    /// Writes one event to each of these topics, which are made if they do not exist, and waits
    /// until all of them are acknowledged.
    pub(super) async fn publish(
        &self,
        envelope: &Envelope,
        records: Vec<(String, Encoded)>,
    ) -> Result<(), Error> {
        let deadline = deadline(envelope);
        for (topic, _) in &records {
            within(deadline, self.topics.ensure_one(topic, Purpose::Events)).await?;
        }
        let opening = self.producer.get_or_try_init(|| self.open());
        let producer = within(deadline, opening).await?;
        let mut sent = Vec::with_capacity(records.len());
        for (topic, Encoded { headers, payload }) in records {
            let (acknowledge, acknowledged) = oneshot::channel();
            let outgoing = Outgoing {
                topic: &topic,
                partition: None,
                key: envelope.headers.get(header::KEY).map(str::as_bytes),
                headers,
                payload: payload.as_deref(),
            };
            producer
                .send_by(outgoing, Box::new(acknowledge), deadline)
                .await?;
            sent.push((topic, acknowledged));
        }
        for (topic, acknowledged) in sent {
            self.acknowledged(&envelope.pattern, &topic, acknowledged, deadline)
                .await?;
        }
        Ok(())
    }

    async fn acknowledged(
        &self,
        what: &str,
        topic: &str,
        acknowledged: Acknowledged,
        deadline: Instant,
    ) -> Result<(), Error> {
        let doing = || format!("publish {what:?}");
        match timeout_at(deadline, acknowledged).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(error))) => {
                if producer::kind(&error) == ErrorKind::NoResponders {
                    self.topics.forget(topic);
                }
                Err(Error::new(producer::kind(&error), doing()).with_source(error))
            }
            Ok(Err(_)) => Err(Error::new(ErrorKind::Closed, doing())),
            Err(_) => Err(Error::new(ErrorKind::Timeout, doing())),
        }
    }

    async fn open(&self) -> Result<Arc<Producer<Logged<EventReports>>>, Error> {
        let producer = Producer::new(&self.settings, &self.name, Reports::All, || {
            Logged::new(EventReports)
        })?;
        // An idempotent producer asks for its id with the first metadata, or half a second later.
        Topics::new(self.settings.clone(), producer.lookup())
            .connect()
            .await?;
        Ok(producer)
    }

    /// Waits on this thread until everything is sent.
    pub(super) fn flush(&self, limit: Duration) {
        if let Some(producer) = self.producer.get() {
            producer.flush(limit);
        }
    }
}
