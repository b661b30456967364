//! Reading replies: partitions that are assigned by hand, from where they end.

use std::{
    future::poll_fn,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{self, Poll},
    time::Duration,
};

use futures_util::task::AtomicWaker;
use rdkafka::{
    Offset, TopicPartitionList,
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, Consumer as _, ConsumerContext, base_consumer::PartitionQueue},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::BorrowedMessage,
};

use super::{CONNECT, Logged, Settings, blocking, let_go, mender::is_missing};
use crate::transport::{Error, Task, pending::lock};

/// How many replies of a partition one turn of the reading task takes.
const BATCH: usize = 256;
/// How often what the consumer has to say for itself is read.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

pub(super) struct NoGroup;

impl ConsumerContext for Logged<NoGroup> {}

pub(super) type Consumer = BaseConsumer<Logged<NoGroup>>;
type Queue = PartitionQueue<Logged<NoGroup>>;

/// Reads replies by a task that ends with this.
pub(super) struct Reader {
    settings: Settings,
    reading: Arc<Reading>,
    _task: Task,
}

impl Reader {
    /// Hands every record of the partitions that are followed to `each`. The name is what the
    /// brokers know it by; no group is joined.
    pub(super) fn open(
        settings: &Settings,
        name: &str,
        each: impl Fn(&BorrowedMessage<'_>) + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let config = settings.consumer_config(name);
        let consumer = Consumer::from_config_and_context(&config, Logged::new(NoGroup))
            .map_err(|error| settings.failed("make a Kafka consumer", error))?;
        let reading = Arc::new(Reading {
            open: Some(Open {
                queues: Mutex::default(),
                consumer: Arc::new(consumer),
            }),
            added: Mutex::default(),
            lost: AtomicBool::new(false),
            waker: Arc::default(),
        });
        let task = Task::spawn(Arc::clone(&reading).run(each));
        Ok(Self {
            settings: settings.clone(),
            reading,
            _task: task,
        })
    }

    /// Whether the broker no longer has what is read here: somebody has to make and follow it again.
    pub(super) fn is_lost(&self) -> bool {
        self.reading.lost.load(Ordering::Acquire)
    }

    /// Reads this partition too, from where it has been seen to end. Asking for "the end" instead
    /// would be answered later, and everything written until then would be passed over.
    pub(super) async fn follow(&self, topic: &str, partition: i32, end: i64) -> Result<(), Error> {
        let (reading, settings) = (Arc::clone(&self.reading), self.settings.clone());
        let topic = topic.to_owned();
        blocking(move || {
            let added = reading.add(&topic, partition, end);
            added
                .and_then(|()| reading.find_leader(&topic))
                .map_err(|error| settings.failed("read the reply topic", error))
        })
        .await
    }
}

struct Reading {
    /// Taken in `drop` only.
    open: Option<Open>,
    /// Each partition once, even if whoever asked first has stopped waiting.
    added: Mutex<Vec<(String, i32)>>,
    lost: AtomicBool,
    waker: Arc<AtomicWaker>,
}

struct Open {
    /// They go before the consumer they belong to.
    queues: Mutex<Vec<Queue>>,
    consumer: Arc<Consumer>,
}

impl Reading {
    /// Waits for the library, but not for the broker.
    fn add(&self, topic: &str, partition: i32, end: i64) -> KafkaResult<()> {
        let mut added = lock(&self.added);
        let is_this = |(known, number): &(String, i32)| known == topic && *number == partition;
        let Some(open) = &self.open else {
            return Ok(());
        };
        if added.iter().any(is_this) {
            return Ok(());
        }
        let queue = open.consumer.split_partition_queue(topic, partition);
        let mut queue = queue.ok_or(KafkaError::Global(RDKafkaErrorCode::UnknownPartition))?;
        let waker = Arc::clone(&self.waker);
        queue.set_nonempty_callback(move || waker.wake());
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(end))?;
        open.consumer.incremental_assign(&list)?;
        tracing::debug!(topic, partition, end, "reading replies");
        lock(&open.queues).push(queue);
        added.push((topic.to_owned(), partition));
        // Something may have arrived before the queue was among those that are read.
        self.waker.wake();
        Ok(())
    }

    /// Has the library find out now who leads a topic it did not know, which it otherwise does once a
    /// second. Blocks.
    fn find_leader(&self, topic: &str) -> KafkaResult<()> {
        match &self.open {
            Some(open) => open.consumer.fetch_metadata(Some(topic), CONNECT).map(drop),
            None => Ok(()),
        }
    }

    fn hear(&self, error: Option<&KafkaError>) {
        if error.is_some_and(is_missing) {
            self.lost.store(true, Ordering::Release);
        }
    }

    async fn run(self: Arc<Self>, each: impl Fn(&BorrowedMessage<'_>) + Send + Sync + 'static) {
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        poll_fn(|cx| {
            self.waker.register(cx.waker());
            if let Some(open) = &self.open {
                while housekeeping.poll_tick(cx).is_ready() {
                    // Errors and log lines, which go to the context too.
                    while let Some(said) = open.consumer.poll(Duration::ZERO) {
                        self.hear(said.err().as_ref());
                    }
                }
                let error = open.take(cx, &each);
                self.hear(error.as_ref());
            }
            Poll::<()>::Pending
        })
        .await;
    }
}

impl Open {
    /// Hands out what has arrived, and returns the last error.
    fn take(
        &self,
        cx: &mut task::Context<'_>,
        each: &impl Fn(&BorrowedMessage<'_>),
    ) -> Option<KafkaError> {
        let mut last = None;
        for queue in lock(&self.queues).iter() {
            let mut taken = 0;
            while taken < BATCH {
                match queue.poll(Duration::ZERO) {
                    None => break,
                    Some(Ok(message)) => each(&message),
                    Some(Err(error)) => {
                        tracing::warn!(%error, "read replies from Kafka");
                        last = Some(error);
                    }
                }
                taken += 1;
            }
            if taken == BATCH {
                cx.waker().wake_by_ref();
            }
        }
        last
    }
}

/// Closes the consumer off the runtime's threads.
impl Drop for Reading {
    fn drop(&mut self) {
        if let Some(open) = self.open.take() {
            let_go(open);
        }
    }
}
