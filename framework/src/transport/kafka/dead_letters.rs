//! What services have given up, in a compacted topic for each.

use std::{
    collections::{BTreeSet, HashMap},
    panic::{AssertUnwindSafe, catch_unwind},
    str,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytestring::ByteString;
use rdkafka::{
    Offset, TopicPartitionList,
    config::FromClientConfigAndContext,
    consumer::Consumer as _,
    error::{KafkaError, KafkaResult},
    message::{BorrowedHeaders, BorrowedMessage, Headers as _, Message as _, OwnedHeaders},
};

use super::{
    CONNECT, Logged, Settings, blocking, let_go,
    reader::{Consumer, NoGroup},
    record::{self, Encoded},
    sender::Sender,
    topics,
};
use crate::{
    envelope::{Envelope, Headers},
    transport::{Address, ClientIdentity, DeadLetter, DeadLetters, Error, ErrorKind},
};

/// How much of a reason is kept, in bytes.
const LONGEST_REASON: usize = 4096;
/// How many of those that may still be there are remembered by one reading of the topic.
const MOST_KNOWN: usize = 100_000;
/// How long one poll waits.
const TICK: Duration = Duration::from_millis(100);
/// How long nothing may come before reading fails.
const SILENCE: Duration = Duration::from_secs(10);

/// The key of the dead letter of an event: the same when it is given up a second time, after a crash.
pub(super) fn key(topic: &str, partition: i32, offset: i64) -> String {
    // A slash is in no topic's name.
    format!("{topic}/{partition}/{offset}")
}

/// The record that a dead letter is stored as: the event's payload as it was, its headers and key,
/// and what became of it.
pub(super) fn encode(mut dead: DeadLetter) -> Encoded {
    let reason = &mut dead.rejection.reason;
    reason.truncate(reason.floor_char_boundary(LONGEST_REASON));
    let envelope = dead.into_envelope();
    let headers = record::start(envelope.headers.len() + 1);
    let add =
        |headers, (name, value): (&ByteString, &ByteString)| record::add(headers, name, value);
    Encoded {
        headers: envelope.headers.iter().fold(headers, add),
        payload: Some(envelope.payload),
    }
}

/// The dead letter in a record, if it is one.
fn decode(message: &BorrowedMessage<'_>) -> Option<DeadLetter> {
    let headers = message.headers()?;
    // The library panics at a header whose name is not UTF-8, and names come off the wire.
    let read = catch_unwind(AssertUnwindSafe(|| read_headers(headers)));
    let envelope = Envelope {
        headers: read.ok().flatten()?,
        ..Envelope::new("", record::payload(message))
    };
    DeadLetter::from_envelope(envelope)
}

fn read_headers(stored: &BorrowedHeaders) -> Option<Headers> {
    let mut headers = Headers::new();
    let mut is_native = false;
    for header in stored.iter() {
        let value = str::from_utf8(header.value.unwrap_or_default()).ok()?;
        match header.key {
            record::NATIVE => is_native = value == record::VERSION,
            name => headers.insert(name, value),
        }
    }
    is_native.then_some(headers)
}

pub(super) async fn open(address: Address) -> Result<Arc<dyn DeadLetters>, Error> {
    let identity = ClientIdentity {
        service: "nestling-dead-letters".to_owned(),
        instance: format!("{:08x}", fastrand::u32(..)),
    };
    let sender = Sender::open(Settings::new(&address)?, identity).await?;
    Ok(Arc::new(KafkaDeadLetters {
        sender: Arc::new(sender),
    }))
}

struct KafkaDeadLetters {
    sender: Arc<Sender>,
}

/// A dead letter, and the key that it is taken away by.
struct Found {
    key: Vec<u8>,
    letter: DeadLetter,
}

#[async_trait]
impl DeadLetters for KafkaDeadLetters {
    async fn list(
        &self,
        service: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, DeadLetter)>, Error> {
        let from = match after.map(|id| (id, parse(id))) {
            None => 0,
            Some((_, Some(offset))) => offset.saturating_add(1),
            Some((id, None)) => {
                let message = format!("{id:?} is no dead letter's id");
                return Err(Error::new(ErrorKind::Config, message));
            }
        };
        if limit == 0 {
            return Ok(Vec::new());
        }
        let name = service.to_owned();
        let page = self.read(service, move |log| log.page(&name, from, limit));
        Ok(page.await?.unwrap_or_default())
    }

    async fn find(&self, service: &str, id: &str) -> Result<Option<DeadLetter>, Error> {
        let found = self.look_up(service, id).await?;
        Ok(found.map(|found| found.letter))
    }

    async fn discard(&self, service: &str, id: &str) -> Result<bool, Error> {
        let Some(Found { key, .. }) = self.look_up(service, id).await? else {
            return Ok(false);
        };
        let nothing = Encoded {
            headers: OwnedHeaders::new(),
            payload: None,
        };
        let topic = topics::dead_letters(service);
        self.sender.events.store(&topic, &key, nothing).await?;
        Ok(true)
    }
}

impl KafkaDeadLetters {
    async fn look_up(&self, service: &str, id: &str) -> Result<Option<Found>, Error> {
        let Some(offset) = parse(id) else {
            return Ok(None);
        };
        let found = self.read(service, move |log| log.find(offset)).await?;
        let found = found.flatten();
        Ok(found.filter(|found| found.letter.service == service))
    }

    /// Reads a service's topic as it is now; `None` when there is none.
    async fn read<T: Send + 'static>(
        &self,
        service: &str,
        work: impl FnOnce(&Log) -> KafkaResult<T> + Send + 'static,
    ) -> Result<Option<T>, Error> {
        let topic = topics::dead_letters(service);
        if !self.sender.topics.exists(&topic).await? {
            return Ok(None);
        }
        let sender = Arc::clone(&self.sender);
        blocking(move || {
            let read = || {
                let log = Log {
                    settings: sender.settings.clone(),
                    end: sender.end(&topic, 0)?,
                    topic,
                };
                work(&log)
            };
            read()
                .map(Some)
                .map_err(|error| sender.settings.failed("read dead letters", error))
        })
        .await
    }
}

fn id(offset: i64) -> String {
    format!("{offset:020}")
}

fn parse(id: &str) -> Option<i64> {
    let offset: i64 = id.parse().ok()?;
    (offset >= 0 && self::id(offset) == id).then_some(offset)
}

/// A topic of dead letters, up to where it ended when it was looked at.
struct Log {
    settings: Settings,
    topic: String,
    end: i64,
}

impl Log {
    /// The first `limit` of `service` from an offset on that are still there.
    fn page(
        &self,
        service: &str,
        mut from: i64,
        limit: usize,
    ) -> KafkaResult<Vec<(String, DeadLetter)>> {
        let mut page = Vec::new();
        loop {
            let mut left = Left::new(MOST_KNOWN);
            self.each(from, self.end, |message| {
                left.see(message.offset(), message.key(), message.payload().is_some());
                true
            })?;
            if let (Some(first), Some(last)) = (left.offsets.first(), left.offsets.last()) {
                self.each(*first, *last + 1, |message| {
                    if left.offsets.contains(&message.offset()) {
                        match decode(message) {
                            Some(letter) if letter.service == service => {
                                page.push((id(message.offset()), letter));
                            }
                            Some(_) => {}
                            None => self.skip(message),
                        }
                    }
                    page.len() < limit
                })?;
            }
            match left.more {
                Some(more) if page.len() < limit => from = more,
                _ => return Ok(page),
            }
        }
    }

    /// The one at an offset, if it is still there.
    fn find(&self, offset: i64) -> KafkaResult<Option<Found>> {
        let mut found: Option<Found> = None;
        self.each(offset, self.end, |message| {
            let key = message.key().unwrap_or_default();
            match &found {
                None if message.offset() == offset && message.payload().is_some() => {
                    found = decode(message).map(|letter| Found {
                        key: key.to_vec(),
                        letter,
                    });
                }
                None => {}
                Some(it) if it.key == key => found = None,
                Some(_) => {}
            }
            found.is_some()
        })?;
        Ok(found)
    }

    fn skip(&self, message: &BorrowedMessage<'_>) {
        let (topic, offset) = (&self.topic, message.offset());
        tracing::warn!(topic, offset, "a record among dead letters is none");
    }

    /// Reads records from one offset up to another, until `each` has seen enough. Blocks.
    fn each(
        &self,
        from: i64,
        to: i64,
        mut each: impl FnMut(&BorrowedMessage<'_>) -> bool,
    ) -> KafkaResult<()> {
        if from >= to {
            return Ok(());
        }
        // One for each reading: nothing of another can come out of it.
        let mut config = self.settings.consumer_config("nestling-dead-letters");
        config.set("enable.partition.eof", "true");
        let consumer = Consumer::from_config_and_context(&config, Logged::new(NoGroup))?;
        let read = self.read(&consumer, from, to, &mut each);
        let_go(consumer);
        read
    }

    fn read(
        &self,
        consumer: &Consumer,
        from: i64,
        to: i64,
        each: &mut impl FnMut(&BorrowedMessage<'_>) -> bool,
    ) -> KafkaResult<()> {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.topic, 0, Offset::Offset(from))?;
        consumer.assign(&list)?;
        // Has the leader found out now rather than within a second.
        consumer.fetch_metadata(Some(&self.topic), CONNECT)?;
        let mut heard = Instant::now();
        loop {
            match consumer.poll(TICK) {
                Some(Ok(message)) => {
                    heard = Instant::now();
                    if message.offset() >= to || !each(&message) || message.offset() + 1 >= to {
                        return Ok(());
                    }
                }
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(()),
                Some(Err(error)) if heard.elapsed() >= SILENCE => return Err(error),
                Some(Err(error)) => tracing::debug!(%error, "read dead letters"),
                None if heard.elapsed() >= SILENCE => {
                    let timed_out = rdkafka::types::RDKafkaErrorCode::OperationTimedOut;
                    return Err(KafkaError::MessageConsumption(timed_out));
                }
                None => {}
            }
        }
    }
}

/// Which records of a topic are left once later ones with their keys have taken their places.
///
/// No more than `most` are looked after in one reading; the next begins where this has passed over
/// the first.
struct Left {
    most: usize,
    offsets: BTreeSet<i64>,
    by_key: HashMap<Vec<u8>, i64>,
    more: Option<i64>,
}

impl Left {
    fn new(most: usize) -> Self {
        Self {
            most,
            offsets: BTreeSet::new(),
            by_key: HashMap::new(),
            more: None,
        }
    }

    fn see(&mut self, offset: i64, key: Option<&[u8]>, has_value: bool) {
        let key = key.unwrap_or_default();
        if let Some(earlier) = self.by_key.remove(key) {
            self.offsets.remove(&earlier);
        }
        if !has_value || self.more.is_some() {
            return;
        }
        if self.offsets.len() == self.most {
            self.more = Some(offset);
        } else {
            self.offsets.insert(offset);
            self.by_key.insert(key.to_vec(), offset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(most: usize, records: &[(&str, bool)]) -> (Vec<i64>, Option<i64>) {
        let mut left = Left::new(most);
        for (offset, (key, has_value)) in records.iter().enumerate() {
            left.see(offset as i64, Some(key.as_bytes()), *has_value);
        }
        (left.offsets.into_iter().collect(), left.more)
    }

    #[test]
    fn what_is_taken_away_or_replaced_later_is_not_left() {
        let records = [
            ("a", true),
            ("b", true),
            ("a", false),
            ("c", true),
            ("b", true),
            ("d", false),
        ];
        assert_eq!(left(9, &records), (vec![3, 4], None));
    }

    #[test]
    fn one_reading_looks_after_so_many_and_the_next_begins_where_it_stopped() {
        let records = [
            ("a", true),
            ("b", true),
            ("c", true),
            ("a", false),
            ("d", true),
            ("b", true),
        ];
        assert_eq!(left(2, &records), (vec![], Some(2)));
        assert_eq!(
            left(3, &records),
            (vec![2, 4, 5], None),
            "there was room again"
        );
        assert_eq!(
            left(2, &records[2..]).0,
            [0, 2],
            "c and d, seen from the third on"
        );
    }

    #[test]
    fn ids_sort_from_old_to_new() {
        assert!(id(9) < id(10) && id(10) < id(i64::MAX));
        for offset in [0, 7, i64::MAX] {
            assert_eq!(parse(&id(offset)), Some(offset));
        }
        for nonsense in [
            "",
            "7",
            "-1",
            "+0000000000000000007",
            "0000000000000000000x",
        ] {
            assert_eq!(parse(nonsense), None, "{nonsense:?}");
        }
    }
}
