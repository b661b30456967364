//! Storing what a service has given up, before its record is settled.

use std::{sync::Arc, time::Duration};

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::{sync::mpsc, time::sleep};

use super::{
    Settings, dead_letters,
    partition::Partition,
    publisher::Publisher,
    record::Encoded,
    topics::{self, Topics},
};
use crate::transport::{DeadLetter, Rejection, Task};

/// How many dead letters may wait to be stored. Partitions take nothing more long before.
const MOST_WAITING: usize = 4096;
/// How many are stored at once.
const AT_ONCE: usize = 64;
/// When an event comes again whose dead letter found no room.
const LATER: Duration = Duration::from_secs(1);
/// The pause before a dead letter is tried again to be stored, at first and at most.
const PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Stores dead letters by a task that ends with this.
pub(super) struct Burial {
    letters: mpsc::Sender<Letter>,
    _task: Task,
}

/// A dead letter, and the record that is settled once it is stored.
struct Letter {
    partition: Arc<Partition>,
    offset: i64,
    record: Encoded,
}

impl Burial {
    /// For one service. The topic is made with its first dead letter.
    pub(super) fn new(settings: &Settings, topics: &Arc<Topics>, service: &str) -> Self {
        let (letters, waiting) = mpsc::channel(MOST_WAITING);
        let name = format!("{service}-dead-letters");
        let publisher = Publisher::new(settings.clone(), name, Arc::clone(topics));
        let digger = Digger {
            publisher,
            topic: topics::dead_letters(service),
        };
        Self {
            letters,
            _task: Task::spawn(async move { digger.run(waiting).await }),
        }
    }

    /// Queues the dead letter of a record, which stays in work until it is stored.
    pub(super) fn bury(
        &self,
        service: &str,
        partition: &Arc<Partition>,
        offset: i64,
        rejection: Rejection,
    ) {
        let permit = match self.letters.try_reserve() {
            Ok(permit) => permit,
            Err(error) => {
                let (topic, partition_number) = (&partition.topic, partition.number);
                tracing::warn!(topic, partition_number, offset, %error, "no room for a dead letter");
                return partition.give_back(offset, LATER);
            }
        };
        partition.begin_burying();
        permit.send(Letter {
            partition: Arc::clone(partition),
            offset,
            record: dead_letters::encode(DeadLetter::new(service, rejection)),
        });
    }
}

struct Digger {
    publisher: Publisher,
    topic: String,
}

impl Digger {
    async fn run(&self, mut letters: mpsc::Receiver<Letter>) {
        let Some(first) = letters.recv().await else {
            return;
        };
        self.prepare().await;
        let mut storing = FuturesUnordered::new();
        storing.push(self.store(first));
        loop {
            tokio::select! {
                letter = letters.recv(), if storing.len() < AT_ONCE => match letter {
                    Some(letter) => storing.push(self.store(letter)),
                    None => return,
                },
                Some(()) = storing.next() => {}
            }
        }
    }

    /// Has the topic, once for all that wait: they are sent in the order in which they came.
    async fn prepare(&self) {
        let mut pause = PAUSE;
        while let Err(error) = self.publisher.prepare(&self.topic).await {
            let topic = &self.topic;
            tracing::error!(topic, %error, "dead letters cannot be stored yet");
            rest(&mut pause).await;
        }
    }

    /// Tries until it is stored, or until the event is somebody else's to handle again.
    async fn store(&self, letter: Letter) {
        let Letter {
            partition,
            offset,
            record,
        } = letter;
        let key = dead_letters::key(&partition.topic, partition.number, offset);
        let mut pause = PAUSE;
        loop {
            let storing = self
                .publisher
                .store(&self.topic, key.as_bytes(), record.clone());
            let Err(error) = storing.await else {
                return partition.buried(offset);
            };
            if partition.is_revoked() {
                tracing::warn!(key, %error, "a dead letter is left to whoever gets its event next");
                return;
            }
            tracing::error!(key, %error, "a dead letter cannot be stored yet");
            rest(&mut pause).await;
        }
    }
}

/// Between half and all of the pause, and a longer one next time.
async fn rest(pause: &mut Duration) {
    sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
    *pause = (*pause * 2).min(LONGEST_PAUSE);
}
