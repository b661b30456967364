//! Committing what has been settled.

use std::{
    sync::{Arc, Condvar, Mutex, PoisonError, atomic::Ordering},
    thread,
    time::Duration,
};

use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{CommitMode, Consumer as _},
    error::{KafkaError, RDKafkaErrorCode},
};

use super::{Group, GroupConsumer};
use crate::transport::{
    kafka::{offsets::Commit, partition::Partition},
    pending::lock,
};

/// How often what is settled is committed.
const COMMIT: Duration = Duration::from_millis(100);
/// So much metadata a broker that takes any has room for.
const ALWAYS_TAKEN: usize = 64;
/// With less than that nothing is of use.
const LEAST_ROOM: usize = 16;

/// Between those who want a commit and the thread that makes them.
#[derive(Default)]
pub(super) struct Commits {
    pub(super) wanted: Mutex<Wanted>,
    pub(super) signal: Condvar,
    pub(super) under_way: Mutex<()>,
}

#[derive(Default)]
pub(super) struct Wanted {
    soon: bool,
    pub(super) ended: bool,
}

impl Group {
    /// Commits what has been settled, again and again, on a thread of its own: the library tells
    /// the result of a commit only to whoever waits for it.
    pub(super) fn commit_settled(&self, consumer: &GroupConsumer) {
        let mut ended = false;
        while !ended {
            let mut wanted = lock(&self.commits.wanted);
            let idle = |wanted: &mut Wanted| !wanted.soon && !wanted.ended;
            if idle(&mut wanted) {
                let waited = self.commits.signal.wait_timeout_while(wanted, COMMIT, idle);
                wanted = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            wanted.soon = false;
            ended = wanted.ended;
            drop(wanted);
            if !self.commit_once(consumer) {
                thread::sleep(COMMIT);
            }
        }
    }

    /// Commits what has been settled; false when that failed.
    fn commit_once(&self, consumer: &GroupConsumer) -> bool {
        // Nothing is revoked while this is held, so no position is committed that is somebody
        // else's already.
        let _under_way = lock(&self.commits.under_way);
        let room = self.metadata_room();
        let partitions = lock(&self.partitions).clone();
        let wanted = partitions.into_iter().filter_map(|partition| {
            let commit = partition.uncommitted(room)?;
            Some((partition, commit))
        });
        // The library tells of a refusal only when it meets all partitions of a request.
        let (doubtful, small): (Vec<_>, Vec<_>) =
            wanted.partition(|(_, commit)| commit.tries.len() > ALWAYS_TAKEN);
        let requests = std::iter::once(small).chain(doubtful.into_iter().map(|one| vec![one]));
        let mut all = true;
        for request in requests.filter(|request| !request.is_empty()) {
            all &= self.commit_request(consumer, request, room);
        }
        if all {
            self.note_placed();
        }
        all
    }

    fn commit_request(
        &self,
        consumer: &GroupConsumer,
        commits: Vec<(Arc<Partition>, Commit)>,
        room: usize,
    ) -> bool {
        let mut list = TopicPartitionList::new();
        for (partition, commit) in &commits {
            add(&mut list, partition, commit);
        }
        if let Err(error) = consumer.commit(&list, CommitMode::Sync) {
            tracing::debug!(%error, "commit to Kafka");
            if is_too_large(&error) {
                self.shrink_metadata(room);
            }
            return false;
        }
        for (partition, commit) in commits {
            partition.committed(commit);
        }
        true
    }

    /// How many bytes of metadata the broker is thought to take.
    pub(super) fn metadata_room(&self) -> usize {
        self.metadata_room.load(Ordering::Acquire)
    }

    /// The broker has refused so much. Positions must be committed, whatever becomes of the counts.
    fn shrink_metadata(&self, refused: usize) {
        let room = match refused / 2 {
            room if room < LEAST_ROOM => 0,
            room => room,
        };
        self.metadata_room.store(room, Ordering::Release);
        match room {
            0 => tracing::error!(
                "the broker's offset.metadata.max.bytes leaves no room: tries are not counted \
                 over restarts, and an event that ends its process comes again without end"
            ),
            room => tracing::warn!(
                room,
                "the broker's offset.metadata.max.bytes is small: tries of fewer events are \
                 counted over restarts"
            ),
        }
    }

    /// Has what is settled committed at once rather than with the next batch.
    pub(in super::super) fn commit_soon(&self) {
        lock(&self.commits.wanted).soon = true;
        self.commits.signal.notify_one();
    }
}

/// Adds what is to be committed of a partition.
pub(super) fn add(list: &mut TopicPartitionList, partition: &Partition, commit: &Commit) {
    let Commit { position, tries } = commit;
    let mut element = list.add_partition(&partition.topic, partition.number);
    if let Err(error) = element.set_offset(Offset::Offset(*position)) {
        tracing::error!(%error, position, "an offset cannot be committed");
    }
    if !tries.is_empty() {
        element.set_metadata(tries);
    }
}

fn is_too_large(error: &KafkaError) -> bool {
    error.rdkafka_error_code() == Some(RDKafkaErrorCode::OffsetMetadataTooLarge)
}
