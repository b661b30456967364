//! The sending side.

use std::{
    collections::hash_map::DefaultHasher,
    future::poll_fn,
    hash::{Hash, Hasher},
    sync::{Arc, Weak},
    task::{self, Poll},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::task::AtomicWaker;
use rdkafka::{
    Offset, TopicPartitionList,
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, Consumer as _, ConsumerContext, base_consumer::PartitionQueue},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::{BorrowedMessage, Message as _},
    producer::{DeliveryResult, ProducerContext},
};
use tokio::{
    sync::{OnceCell, oneshot},
    time::{Instant, timeout_at},
};

use super::{
    CAPABILITIES, CONNECT, Logged, NAME, Settings, blocking, let_go, patiently,
    producer::{self, Outgoing, Producer, Reports},
    record::{self, Record, ReplyAddress},
    topics::{self, Purpose, Topics},
};
use crate::{
    envelope::{Envelope, header},
    error::RpcError,
    transport::{
        Address, Capabilities, ClientIdentity, ClientTransport, Error, ErrorKind, Expect, Item,
        Pending, Replies, Task,
    },
};

/// How long a call without a deadline may take to be sent.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long closing waits for what is queued.
const FLUSH: Duration = Duration::from_secs(5);
/// How many replies one turn of the reading task takes.
const BATCH: usize = 256;
/// How often what the consumer has to say for itself is read.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

pub(super) async fn open(
    address: Address,
    identity: ClientIdentity,
) -> Result<Arc<dyn ClientTransport>, Error> {
    let settings = Settings::new(&address)?;
    let pending = Pending::new();
    let reports = Arc::downgrade(&pending);
    let requests = Producer::new(&settings, &identity.service, Reports::Failures, move || {
        Logged::new(RequestReports(Weak::clone(&reports)))
    })?;
    let topics = Topics::new(settings.clone(), requests.lookup());
    topics.connect().await?;
    Ok(Arc::new(KafkaClient {
        settings,
        identity,
        topics: Arc::new(topics),
        pending,
        requests,
        events: OnceCell::new(),
        replies: OnceCell::new(),
        prefix: format!("{:016x}-", fastrand::u64(..)),
    }))
}

struct KafkaClient {
    settings: Settings,
    identity: ClientIdentity,
    topics: Arc<Topics>,
    pending: Arc<Pending>,
    requests: Arc<Producer<Logged<RequestReports>>>,
    /// Made with the first event.
    events: OnceCell<Arc<Producer<Logged<EventReports>>>>,
    /// Made with the first request.
    replies: OnceCell<ReplyReader>,
    /// What tells this client's calls from those of others that share its reply partition.
    prefix: String,
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

/// Tells publishers what became of their events.
struct EventReports;

type Acknowledge = oneshot::Sender<KafkaResult<()>>;

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

#[async_trait]
impl ClientTransport for KafkaClient {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    async fn request(&self, envelope: Envelope, expect: Expect) -> Result<Replies, Error> {
        record::check_size(&envelope)?;
        let topic = &envelope.pattern;
        topics::check(topic)?;
        let deadline = deadline(&envelope);
        let reader = match self.replies.get() {
            Some(reader) => reader,
            None => {
                within(
                    deadline,
                    self.replies.get_or_try_init(|| self.read_replies()),
                )
                .await?
            }
        };
        if !within(deadline, self.topics.exists(topic)).await? {
            let message = format!("nobody handles {topic:?}: there is no such topic");
            return Err(Error::new(ErrorKind::NoResponders, message));
        }
        let (call, replies) = self.pending.register(expect);
        let address = ReplyAddress {
            topic: reader.topic.as_str().into(),
            partition: Some(reader.partition),
            correlation: format!("{}{call}", self.prefix).into(),
        };
        let outgoing = Outgoing {
            topic,
            partition: None,
            key: envelope.headers.get(header::KEY).map(str::as_bytes),
            headers: record::request_headers(&envelope, &address),
            payload: &envelope.payload,
        };
        // The ids are below 2^57, so that this loses something on 32 bits only; there the call
        // ends by its deadline.
        let sent = self
            .requests
            .send_by(outgoing, call as usize, deadline)
            .await;
        if let Err(error) = sent {
            if error.kind() == ErrorKind::NoResponders {
                self.topics.forget(topic);
            }
            return Err(error);
        }
        Ok(replies)
    }

    async fn publish(&self, envelope: Envelope) -> Result<(), Error> {
        record::check_size(&envelope)?;
        let deadline = deadline(&envelope);
        let topic = self.settings.event_topics.topic(&envelope.pattern)?;
        within(deadline, self.topics.ensure_one(&topic, Purpose::Events)).await?;
        let events = within(deadline, self.events.get_or_try_init(|| self.open_events())).await?;
        let (acknowledge, acknowledged) = oneshot::channel();
        let outgoing = Outgoing {
            topic: &topic,
            partition: None,
            key: envelope.headers.get(header::KEY).map(str::as_bytes),
            headers: record::event_headers(&envelope),
            payload: &envelope.payload,
        };
        events
            .send_by(outgoing, Box::new(acknowledge), deadline)
            .await?;
        let doing = || format!("publish {:?}", envelope.pattern);
        match timeout_at(deadline, acknowledged).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(error))) => {
                if producer::kind(&error) == ErrorKind::NoResponders {
                    self.topics.forget(&topic);
                }
                Err(Error::new(producer::kind(&error), doing()).with_source(error))
            }
            Ok(Err(_)) => Err(Error::new(ErrorKind::Closed, doing())),
            Err(_) => Err(Error::new(ErrorKind::Timeout, doing())),
        }
    }

    async fn close(&self) {
        self.pending
            .fail_all(&Error::new(ErrorKind::Closed, "the client was closed").into());
        let (requests, events) = (Arc::clone(&self.requests), self.events.get().cloned());
        let flushed = blocking(move || {
            requests.flush(FLUSH);
            if let Some(events) = events {
                events.flush(FLUSH);
            }
            Ok(())
        });
        if let Err(error) = flushed.await {
            tracing::debug!(%error, "close a Kafka client");
        }
    }
}

impl KafkaClient {
    async fn open_events(&self) -> Result<Arc<Producer<Logged<EventReports>>>, Error> {
        let producer = Producer::new(&self.settings, &self.identity.service, Reports::All, || {
            Logged::new(EventReports)
        })?;
        // An idempotent producer asks for its id with the first metadata, or half a second later.
        Topics::new(self.settings.clone(), producer.lookup())
            .connect()
            .await?;
        Ok(producer)
    }

    /// Has a position in the reply topic before any request is sent: a reply that is written
    /// before its reader has one would be lost.
    async fn read_replies(&self) -> Result<ReplyReader, Error> {
        let topic = topics::replies(&self.identity.service)?;
        let config = self.settings.consumer_config(&topic);
        let settings = &self.settings;
        let consumer = ReplyConsumer::from_config_and_context(&config, Logged::new(NoGroup))
            .map_err(|error| settings.failed("make a Kafka consumer", error))?;
        let consumer = Arc::new(consumer);
        let made = self
            .topics
            .ensure(vec![(topic.clone(), Purpose::Replies)])
            .await;
        let partitions = match made {
            Ok(partitions) => partitions.get(&topic).copied().unwrap_or(1),
            Err(error) => {
                let_go(consumer);
                return Err(error);
            }
        };
        let mut hasher = DefaultHasher::new();
        self.identity.instance.hash(&mut hasher);
        let partition =
            i32::try_from(hasher.finish() % u64::from(partitions.unsigned_abs().max(1)));
        let partition = partition.unwrap_or_default();
        let (settings, name) = (settings.clone(), topic.clone());
        let queue = blocking(move || {
            assign(&consumer, &name, partition)
                .map(|queue| Reading { queue, consumer })
                .map_err(|error| settings.failed("find the end of the reply topic", error))
        })
        .await?;
        tracing::debug!(topic, partition, "reading replies");
        let (pending, prefix) = (Arc::clone(&self.pending), self.prefix.clone());
        let task = Task::spawn(queue.run(pending, prefix));
        Ok(ReplyReader {
            topic,
            partition,
            _task: task,
        })
    }
}

fn deadline(envelope: &Envelope) -> Instant {
    envelope
        .deadline
        .unwrap_or_else(|| Instant::now() + PATIENCE)
}

async fn within<T>(
    deadline: Instant,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    match timeout_at(deadline, work).await {
        Ok(result) => result,
        Err(_) => Err(Error::new(ErrorKind::Timeout, "wait for Kafka")),
    }
}

/// Where replies are read, by a task that ends with this.
struct ReplyReader {
    topic: String,
    partition: i32,
    _task: Task,
}

struct NoGroup;

impl ConsumerContext for Logged<NoGroup> {}

type ReplyConsumer = BaseConsumer<Logged<NoGroup>>;

/// Starts to read where the partition ends now. Asking for "the end" instead would be answered
/// later, and everything written until then would be passed over. Blocks.
fn assign(
    consumer: &Arc<ReplyConsumer>,
    topic: &str,
    partition: i32,
) -> KafkaResult<PartitionQueue<Logged<NoGroup>>> {
    let (_, end) = patiently(|| consumer.fetch_watermarks(topic, partition, CONNECT))?;
    let queue = consumer.split_partition_queue(topic, partition);
    let queue = queue.ok_or(KafkaError::Global(RDKafkaErrorCode::UnknownPartition))?;
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(end))?;
    consumer.assign(&list)?;
    Ok(queue)
}

struct Reading {
    /// Goes before the consumer it belongs to.
    queue: PartitionQueue<Logged<NoGroup>>,
    consumer: Arc<ReplyConsumer>,
}

impl Reading {
    async fn run(mut self, pending: Arc<Pending>, prefix: String) {
        let waker = Arc::new(AtomicWaker::new());
        let wake = Arc::clone(&waker);
        self.queue.set_nonempty_callback(move || wake.wake());
        let reading = LetGo(Some(self));
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        poll_fn(|cx| {
            waker.register(cx.waker());
            if let Some(reading) = &reading.0 {
                while housekeeping.poll_tick(cx).is_ready() {
                    // Errors and log lines, which go to the context.
                    while reading.consumer.poll(Duration::ZERO).is_some() {}
                }
                reading.take(cx, &pending, &prefix);
            }
            Poll::<()>::Pending
        })
        .await;
    }

    fn take(&self, cx: &mut task::Context<'_>, pending: &Pending, prefix: &str) {
        for _ in 0..BATCH {
            match self.queue.poll(Duration::ZERO) {
                None => return,
                Some(Ok(message)) => complete(&message, pending, prefix),
                Some(Err(error)) => tracing::warn!(%error, "read replies from Kafka"),
            }
        }
        cx.waker().wake_by_ref();
    }
}

/// Closes a consumer off the runtime's threads when its task ends, which is when it is aborted.
struct LetGo(Option<Reading>);

impl Drop for LetGo {
    fn drop(&mut self) {
        if let Some(reading) = self.0.take() {
            let_go(reading);
        }
    }
}

/// Hands a reply to its caller. Others read this partition too, and callers give up.
fn complete(message: &BorrowedMessage<'_>, pending: &Pending, prefix: &str) {
    let record = match Record::read(message) {
        Ok(record) => record,
        Err(foreign) => return tracing::debug!(?foreign, "a record is not a reply"),
    };
    let Some(call) = record.call(prefix) else {
        return;
    };
    if let Some(item) = record.reply(record::payload(message)) {
        pending.complete(call, item);
    }
}
