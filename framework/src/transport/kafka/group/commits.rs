//! Committing what has been settled.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::Duration,
};

use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{CommitMode, Consumer as _},
    topic_partition_list::TopicPartitionListElem,
};

use super::{Group, GroupConsumer};
use crate::transport::{
    kafka::{
        offsets::{Commit, Tries},
        partition::Partition,
    },
    pending::lock,
};

/// How often what is settled is committed.
const COMMIT: Duration = Duration::from_millis(100);

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

    /// Commits what has been settled, in one request; false when that failed.
    fn commit_once(&self, consumer: &GroupConsumer) -> bool {
        // Nothing is revoked while this is held, so no position is committed that is somebody
        // else's already.
        let _under_way = lock(&self.commits.under_way);
        let mut list = TopicPartitionList::new();
        let mut commits = Vec::new();
        for partition in lock(&self.partitions).iter() {
            if let Some(commit) = partition.uncommitted() {
                add(&mut list, partition, &commit);
                commits.push((Arc::clone(partition), commit));
            }
        }
        if commits.is_empty() {
            return true;
        }
        if let Err(error) = consumer.commit(&list, CommitMode::Sync) {
            tracing::debug!(%error, "commit to Kafka");
            return false;
        }
        for (partition, commit) in commits {
            partition.committed(commit);
        }
        self.note_placed();
        true
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

/// What was committed with an offset.
pub(super) fn tries(element: &TopicPartitionListElem<'_>) -> Tries {
    // The library panics at metadata that is not UTF-8, and anybody may have committed it.
    let read = catch_unwind(AssertUnwindSafe(|| Tries::parse(element.metadata())));
    read.unwrap_or_default()
}
