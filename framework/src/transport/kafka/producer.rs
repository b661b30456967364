//! A producer that is replaced when the library has given it up.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use rdkafka::{
    ClientConfig,
    config::FromClientConfigAndContext,
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::OwnedHeaders,
    producer::{BaseRecord, NoCustomPartitioner, Producer as _, ProducerContext, ThreadedProducer},
};
use tokio::time::Instant;

use super::{CONNECT, Settings, let_go, topics::Lookup};
use crate::transport::{Error, ErrorKind};

/// How much may wait in the library, in KiB.
const BUFFER_KIB: &str = "65536";
/// How long a record may wait for its broker: as long as a caller usually does, twice.
const TIMEOUT_MS: &str = "10000";
/// How often a full queue is tried again.
const RETRY: Duration = Duration::from_millis(2);

/// A record about to be sent.
pub(super) struct Outgoing<'a> {
    pub(super) topic: &'a str,
    pub(super) partition: Option<i32>,
    pub(super) key: Option<&'a [u8]>,
    pub(super) headers: OwnedHeaders,
    /// `None` is a value that is null.
    pub(super) payload: Option<&'a [u8]>,
}

/// Which delivery reports are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reports {
    All,
    Failures,
}

/// An idempotent producer: what is sent is written once and in order, over reconnects too.
///
/// After an error from which it cannot go on without a gap the library refuses everything; then a
/// new one takes its place.
pub(super) struct Producer<C: ProducerContext + 'static> {
    config: ClientConfig,
    context: Box<dyn Fn() -> C + Send + Sync>,
    current: RwLock<Arc<Live<C>>>,
}

struct Live<C: ProducerContext + 'static>(Option<ThreadedProducer<C>>);

impl<C: ProducerContext + 'static> Live<C> {
    fn get(&self) -> &ThreadedProducer<C> {
        self.0.as_ref().expect("it is taken in `drop` only")
    }
}

impl<C: ProducerContext + 'static> Drop for Live<C> {
    fn drop(&mut self) {
        if let Some(producer) = self.0.take() {
            let_go(producer);
        }
    }
}

impl<C: ProducerContext + 'static> Producer<C> {
    pub(super) fn new(
        settings: &Settings,
        name: &str,
        reports: Reports,
        context: impl Fn() -> C + Send + Sync + 'static,
    ) -> Result<Arc<Self>, Error> {
        let mut config = settings.config(name);
        config
            .set("enable.idempotence", "true")
            .set("linger.ms", "0")
            // Records without a key are spread one by one, so that replicas share evenly.
            .set("sticky.partitioning.linger.ms", "0")
            // What Java and Node clients do, so that a key means the same partition to all.
            .set("partitioner", "murmur2_random")
            .set("queue.buffering.max.kbytes", BUFFER_KIB)
            .set("message.timeout.ms", TIMEOUT_MS)
            .set("topic.metadata.propagation.max.ms", "5000");
        if reports == Reports::Failures {
            config.set("delivery.report.only.error", "true");
        }
        let live = Self::open(&config, context())
            .map_err(|error| settings.failed("make a Kafka producer", error))?;
        let context = Box::new(context);
        Ok(Arc::new(Self {
            config,
            context,
            current: RwLock::new(live),
        }))
    }

    fn open(config: &ClientConfig, context: C) -> Result<Arc<Live<C>>, KafkaError> {
        let producer = ThreadedProducer::from_config_and_context(config, context)?;
        Ok(Arc::new(Live(Some(producer))))
    }

    fn current(&self) -> Arc<Live<C>> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Asks for metadata over this producer's connections.
    pub(super) fn lookup(self: &Arc<Self>) -> Lookup {
        let producer = Arc::clone(self);
        Arc::new(move |topic, limit| {
            producer
                .current()
                .get()
                .client()
                .fetch_metadata(topic, limit)
        })
    }

    /// Where a partition ends, asked over this producer's connections: a consumer's are kept busy by
    /// what it waits for. Blocks.
    pub(super) fn end(&self, topic: &str, partition: i32) -> KafkaResult<i64> {
        let live = self.current();
        let client = live.get().client();
        let (_, end) = client.fetch_watermarks(topic, partition, CONNECT)?;
        Ok(end)
    }

    /// Queues a record, without waiting. The opaque value comes back with its delivery report, or
    /// with the error.
    pub(super) fn send(
        &self,
        outgoing: Outgoing<'_>,
        opaque: C::DeliveryOpaque,
    ) -> Result<(), Unsent<C>> {
        let Outgoing {
            topic,
            partition,
            key,
            headers,
            payload,
        } = outgoing;
        let record = BaseRecord {
            topic,
            partition,
            payload,
            key,
            timestamp: None,
            headers: Some(headers),
            delivery_opaque: opaque,
        };
        let live = self.current();
        let (error, record) = match live.get().send(record) {
            Ok(()) => return Ok(()),
            Err(refused) => refused,
        };
        let (error, record) = match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::Fatal) => match self.replace(&live) {
                Ok(live) => match live.get().send(record) {
                    Ok(()) => return Ok(()),
                    Err(refused) => refused,
                },
                Err(error) => (error, record),
            },
            _ => (error, record),
        };
        Err(Unsent {
            error,
            opaque: record.delivery_opaque,
            headers: record.headers,
        })
    }

    /// As [`send`](Self::send), waiting for room until the deadline.
    pub(super) async fn send_by(
        &self,
        mut outgoing: Outgoing<'_>,
        mut opaque: C::DeliveryOpaque,
        deadline: Instant,
    ) -> Result<(), Error> {
        let Outgoing {
            topic,
            partition,
            key,
            payload,
            ..
        } = outgoing;
        loop {
            let unsent = match self.send(outgoing, opaque) {
                Ok(()) => return Ok(()),
                Err(unsent) => unsent,
            };
            let doing = format!("send to {topic}");
            if !unsent.is_full() {
                return Err(Error::new(kind(&unsent.error), doing).with_source(unsent.error));
            }
            if Instant::now() + RETRY >= deadline {
                return Err(Error::new(ErrorKind::Full, doing).with_source(unsent.error));
            }
            tokio::time::sleep(RETRY).await;
            opaque = unsent.opaque;
            let headers = unsent.headers.unwrap_or_default();
            outgoing = Outgoing {
                topic,
                partition,
                key,
                headers,
                payload,
            };
        }
    }

    /// Waits on this thread until everything is sent.
    pub(super) fn flush(&self, limit: Duration) {
        if let Err(error) = self.current().get().flush(limit) {
            tracing::warn!(%error, "records were not sent before the producer closed");
        }
    }

    /// The producer in place of `broken`, a new one unless somebody was quicker.
    fn replace(&self, broken: &Arc<Live<C>>) -> Result<Arc<Live<C>>, KafkaError> {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&current, broken) {
            tracing::error!("the Kafka producer has failed for good and is replaced");
            *current = Self::open(&self.config, (self.context)())?;
        }
        Ok(Arc::clone(&current))
    }
}

/// A record that was not queued.
pub(super) struct Unsent<C: ProducerContext<NoCustomPartitioner>> {
    pub(super) error: KafkaError,
    opaque: C::DeliveryOpaque,
    pub(super) headers: Option<OwnedHeaders>,
}

impl<C: ProducerContext> Unsent<C> {
    /// Whether there may be room later.
    pub(super) fn is_full(&self) -> bool {
        self.error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull)
    }
}

/// What an error of the library is to a caller.
pub(super) fn kind(error: &KafkaError) -> ErrorKind {
    match error.rdkafka_error_code() {
        Some(
            RDKafkaErrorCode::UnknownTopicOrPartition
            | RDKafkaErrorCode::UnknownTopic
            | RDKafkaErrorCode::UnknownPartition,
        ) => ErrorKind::NoResponders,
        Some(RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize) => {
            ErrorKind::TooLarge
        }
        Some(RDKafkaErrorCode::QueueFull) => ErrorKind::Full,
        Some(RDKafkaErrorCode::InvalidTopic) => ErrorKind::Config,
        _ => ErrorKind::Closed,
    }
}
