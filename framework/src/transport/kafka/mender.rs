//! Making topics again that the broker has lost.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

use super::topics::{Purpose, Topics};
use crate::transport::Task;

/// How often one of the topics is looked at without being told: a consumer does not always hear that
/// what it reads is gone.
const LOOK: Duration = Duration::from_secs(10);
/// The pause before it is tried again, at first and at most.
const PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Sees to the topics of a service, by a task that ends with this.
pub(super) struct Mender {
    shared: Arc<Shared>,
    _task: Task,
}

#[derive(Default)]
struct Shared {
    lost: Notify,
    made: AtomicBool,
}

impl Mender {
    pub(super) fn new(topics: &Arc<Topics>, wanted: Vec<(String, Purpose)>) -> Self {
        let shared = Arc::new(Shared::default());
        let (topics, mending) = (Arc::clone(topics), Arc::clone(&shared));
        let task = Task::spawn(async move {
            loop {
                if timeout(LOOK, mending.lost.notified()).await.is_err()
                    && !is_gone(&topics, &wanted).await
                {
                    continue;
                }
                mend(&topics, &wanted).await;
                // Each lost topic has an error of its own; all that came meanwhile are answered.
                mending.lost.notified().now_or_never();
                mending.made.store(true, Ordering::Release);
            }
        });
        Self {
            shared,
            _task: task,
        }
    }

    /// Looks after the topics if this error says that one is missing.
    pub(super) fn hear(&self, error: &KafkaError) {
        if is_missing(error) {
            self.shared.lost.notify_one();
        }
    }

    /// Whether all topics are there again since this was asked last. Consumers that were made
    /// before may take minutes to find them.
    pub(super) fn has_mended(&self) -> bool {
        self.shared.made.swap(false, Ordering::AcqRel)
    }
}

/// Whether the cluster has lost what a service reads: all of it or nothing, as a rule.
async fn is_gone(topics: &Topics, wanted: &[(String, Purpose)]) -> bool {
    let Some((first, _)) = wanted.first() else {
        return false;
    };
    // That no broker answers is said elsewhere.
    topics.is_gone(first).await.unwrap_or_default()
}

async fn mend(topics: &Topics, wanted: &[(String, Purpose)]) {
    let mut pause = PAUSE;
    loop {
        for (topic, _) in wanted {
            topics.forget(topic);
        }
        match topics.make_missing(wanted.to_vec()).await {
            Ok(missing) if missing.is_empty() => return,
            Ok(missing) => {
                return tracing::error!(?missing, "Kafka has lost topics; they are made again");
            }
            Err(error) => tracing::warn!(%error, "look after topics"),
        }
        sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Whether the broker does not know what it is asked for.
pub(super) fn is_missing(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::UnknownPartition
                | RDKafkaErrorCode::UnknownTopicId
        )
    )
}
