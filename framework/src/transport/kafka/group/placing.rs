//! Where to begin in a partition that was just assigned.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
};

use rdkafka::{
    TopicPartitionList, consumer::Consumer as _, topic_partition_list::TopicPartitionListElem,
};

use super::{Group, GroupConsumer, LOOKUP, position};
use crate::transport::kafka::{metadata::Metadata, offsets::Offsets};

type Key = (String, i32);
/// What is committed, where anything is; nothing of a partition that could not be asked for.
type Committed = HashMap<Key, Option<(i64, Metadata)>>;

impl Group {
    /// Where the service stands in each partition of the list.
    pub(super) fn look_up(consumer: &GroupConsumer, list: &TopicPartitionList) -> Committed {
        let mut committed = HashMap::new();
        if list.count() == 0 {
            return committed;
        }
        match consumer.committed_offsets(list.clone(), LOOKUP) {
            Ok(found) => {
                for element in &found.elements() {
                    let key = (element.topic().to_owned(), element.partition());
                    let known = position(element.offset());
                    committed.insert(key, known.map(|known| (known, metadata(element))));
                }
            }
            // The library asks again by itself, and starts there.
            Err(error) => tracing::warn!(%error, "look up committed offsets"),
        }
        committed
    }

    pub(super) fn place(
        &self,
        consumer: &GroupConsumer,
        key: &Key,
        committed: &Committed,
    ) -> Offsets {
        let (offsets, metadata) = match committed.get(key) {
            Some(Some((position, metadata))) => (Offsets::new(*position, true), metadata.clone()),
            Some(None) => {
                let begin = self.begin.get().and_then(|begin| begin.get(key));
                let begin = begin.copied().unwrap_or_default();
                (Offsets::new(begin, false), Metadata::default())
            }
            None => return Offsets::new(0, true),
        };
        let (topic, number) = key;
        let carries = self.carried.get(topic);
        if !carries.is_some_and(|carries| carries.holds_events()) {
            return offsets;
        }
        let mut offsets = offsets.began(metadata);
        if offsets.is_suspect() {
            let most = i64::try_from(self.most_taken).unwrap_or(i64::MAX);
            let furthest = offsets.position().saturating_add(most);
            // What is newer than this reader has killed nobody.
            let until = match consumer.fetch_watermarks(topic, *number, LOOKUP) {
                Ok((_, end)) => end.min(furthest),
                Err(error) => {
                    tracing::debug!(topic, number, %error, "find the end of a partition");
                    furthest
                }
            };
            let position = offsets.position();
            if until > position {
                tracing::warn!(
                    topic,
                    number,
                    position,
                    until,
                    "readers have died here: one event is tried after the other"
                );
            }
            offsets.be_careful_until(until);
        }
        offsets
    }
}

/// What was committed with an offset.
fn metadata(element: &TopicPartitionListElem<'_>) -> Metadata {
    // The library panics at metadata that is not UTF-8, and anybody may have committed it.
    let read = catch_unwind(AssertUnwindSafe(|| Metadata::parse(element.metadata())));
    read.unwrap_or_default()
}
