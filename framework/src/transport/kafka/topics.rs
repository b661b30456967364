//! Topics: their names, whether they exist, and making those that do not.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    config::FromClientConfigAndContext,
    error::{KafkaResult, RDKafkaErrorCode},
    metadata::Metadata,
    types::RDKafkaRespErr,
};

use super::{CONNECT, Logged, MAX_RECORD, Settings, blocking, let_go};
use crate::transport::{Error, ErrorKind, pending::lock};

/// Kafka's own limit.
const LONGEST: usize = 249;
/// The topic that says what time it is at the brokers. What is written there is looked at by nobody.
pub(super) const CLOCK: &str = "nestling.clock";
/// How much is left of the name of a service whose own name is no topic's.
const LONGEST_READABLE: usize = 200;
/// How long one of the questions takes whether the cluster answers.
const CONNECT_STEP: Duration = Duration::from_millis(500);
/// How often a new topic's leaders are asked for.
const POLL: Duration = Duration::from_millis(10);
/// A reply that nobody has fetched by then has no caller any more.
const REPLY_RETENTION: &str = "600000";
/// As long as it takes until dead letters that were discarded may be cleaned away.
const DEAD_SEGMENT: &str = "86400000";
/// How many callers of one service read apart from each other.
const REPLY_PARTITIONS: i32 = 8;

/// Where events go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EventTopics {
    /// One topic for all events of a service, so that those of one key keep their order.
    PerService,
    /// One topic per event, named by its pattern.
    PerPattern,
    /// The one topic, and a copy of each event in a topic of its own, for NestJS applications.
    Both,
}

impl EventTopics {
    /// The topic of an event.
    pub(super) fn topic(self, pattern: &str) -> Result<String, Error> {
        let name = match self {
            Self::PerPattern => pattern.to_owned(),
            Self::PerService | Self::Both => {
                let service = pattern
                    .split_once('.')
                    .map_or(pattern, |(service, _)| service);
                format!("{service}.events")
            }
        };
        check(&name).map(|()| name)
    }
}

/// The topic that replies to a service's calls arrive by.
pub(super) fn replies(service: &str) -> Result<String, Error> {
    let name = format!("{service}.replies");
    check(&name).map(|()| name)
}

/// The topic of what a service has given up. A name that Kafka would not take is made one that it
/// does, and told from others by a hash.
pub(super) fn dead_letters(service: &str) -> String {
    let name = format!("{service}.dead-letters");
    if is_legal(&name) {
        return name;
    }
    let legal = service.bytes().map(|byte| match is_legal_byte(byte) {
        true => char::from(byte),
        false => '-',
    });
    let legal: String = legal.take(LONGEST_READABLE).collect();
    format!("{legal}-{:016x}.dead-letters", fnv1a(service))
}

/// Always the same, unlike the hashes of the standard library.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The topic that NestJS services answer to calls of `route` by.
pub(super) fn nest_replies(route: &str) -> Result<String, Error> {
    let name = format!("{route}.reply");
    check(&name).map(|()| name)
}

/// Refuses what Kafka does not take as the name of a topic.
pub(super) fn check(name: &str) -> Result<(), Error> {
    if is_legal(name) {
        return Ok(());
    }
    let reason =
        "a Kafka topic is named by up to 249 letters, digits, dots, dashes and underscores";
    Err(Error::new(
        ErrorKind::Config,
        format!("{name:?} cannot be a topic: {reason}"),
    ))
}

pub(super) fn is_legal(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= LONGEST
        && name != "."
        && name != ".."
        && name.bytes().all(is_legal_byte)
}

fn is_legal_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
}

/// What a topic is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Requests,
    Events,
    Replies,
    DeadLetters,
    Clock,
}

/// Asks the cluster for the metadata of one topic or of all, within a limit.
pub(super) type Lookup = Arc<dyn Fn(Option<&str>, Duration) -> KafkaResult<Metadata> + Send + Sync>;

/// The topics of a cluster, as far as they were asked for.
pub(super) struct Topics {
    settings: Settings,
    lookup: Lookup,
    known: Mutex<HashSet<String>>,
}

impl Topics {
    pub(super) fn new(settings: Settings, lookup: Lookup) -> Self {
        Self {
            settings,
            lookup,
            known: Mutex::default(),
        }
    }

    /// Whether the cluster answers.
    pub(super) async fn connect(&self) -> Result<(), Error> {
        let (lookup, settings) = (Arc::clone(&self.lookup), self.settings.clone());
        blocking(move || {
            let doing = "connect to Kafka";
            let deadline = Instant::now() + CONNECT;
            loop {
                // A name that cannot exist: the answer is small however many topics there are.
                let Err(error) = lookup(Some(".nestling.none"), CONNECT_STEP) else {
                    return Ok(());
                };
                let is_late = Instant::now() >= deadline;
                match settings.verdict.failure() {
                    // No time helps against the first; the library tells of neither.
                    Some((kind, reason)) if kind == ErrorKind::Refused || is_late => {
                        return Err(settings.error(kind, doing).with_source(reason));
                    }
                    None if is_late => return Err(settings.failed(doing, error)),
                    _ => thread::sleep(POLL),
                }
            }
        })
        .await
    }

    /// Whether `topic` exists; one that was seen once is taken to stay.
    pub(super) async fn exists(&self, topic: &str) -> Result<bool, Error> {
        if lock(&self.known).contains(topic) {
            return Ok(true);
        }
        let names = vec![topic.to_owned()];
        let present = look_up(&self.lookup, &self.settings, names).await?;
        Ok(self.remember(&present).contains(topic))
    }

    /// Whether the cluster says that there is no such topic; one that has no leader yet is there.
    pub(super) async fn is_gone(&self, topic: &str) -> Result<bool, Error> {
        let (lookup, settings) = (Arc::clone(&self.lookup), self.settings.clone());
        let name = topic.to_owned();
        blocking(move || {
            let metadata = lookup(Some(&name), CONNECT)
                .map_err(|error| settings.failed("ask Kafka for a topic", error))?;
            let found = metadata.topics().iter().find(|topic| topic.name() == name);
            Ok(found.is_none_or(|topic| {
                let unknown = RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
                topic.error() == Some(unknown)
            }))
        })
        .await
    }

    /// A topic that was seen is gone.
    pub(super) fn forget(&self, topic: &str) {
        lock(&self.known).remove(topic);
    }

    /// Makes those of `wanted` that do not exist; returns how many partitions each has.
    pub(super) async fn ensure(
        &self,
        wanted: Vec<(String, Purpose)>,
    ) -> Result<HashMap<String, i32>, Error> {
        let names = || {
            wanted
                .iter()
                .map(|(name, _)| name.clone())
                .collect::<Vec<_>>()
        };
        let mut present = look_up(&self.lookup, &self.settings, names()).await?;
        let missing: Vec<_> = wanted
            .iter()
            .filter(|(name, _)| !present.contains_key(name))
            .cloned()
            .collect();
        if !missing.is_empty() {
            create(&self.settings, &missing).await?;
            let deadline = Instant::now() + CONNECT;
            loop {
                present = look_up(&self.lookup, &self.settings, names()).await?;
                if wanted.iter().all(|(name, _)| present.contains_key(name)) {
                    break;
                }
                if Instant::now() >= deadline {
                    return Err(self
                        .settings
                        .error(ErrorKind::Timeout, "wait for new topics"));
                }
                tokio::time::sleep(POLL).await;
            }
        }
        self.remember(&present);
        Ok(present)
    }

    /// As [`ensure`](Self::ensure); returns which did not exist.
    pub(super) async fn make_missing(
        &self,
        wanted: Vec<(String, Purpose)>,
    ) -> Result<Vec<String>, Error> {
        let names: Vec<_> = wanted.iter().map(|(name, _)| name.clone()).collect();
        let present = look_up(&self.lookup, &self.settings, names.clone()).await?;
        self.ensure(wanted).await?;
        let missing = names.into_iter().filter(|name| !present.contains_key(name));
        Ok(missing.collect())
    }

    /// As [`ensure`](Self::ensure) for one topic that probably exists.
    pub(super) async fn ensure_one(&self, topic: &str, purpose: Purpose) -> Result<(), Error> {
        if lock(&self.known).contains(topic) {
            return Ok(());
        }
        self.ensure(vec![(topic.to_owned(), purpose)])
            .await
            .map(drop)
    }

    fn remember<'a>(&self, present: &'a HashMap<String, i32>) -> HashSet<&'a str> {
        lock(&self.known).extend(present.keys().cloned());
        present.keys().map(String::as_str).collect()
    }
}

/// The partition counts of those topics that exist and can be written to.
async fn look_up(
    lookup: &Lookup,
    settings: &Settings,
    names: Vec<String>,
) -> Result<HashMap<String, i32>, Error> {
    let (lookup, settings) = (Arc::clone(lookup), settings.clone());
    blocking(move || {
        let one = match names.as_slice() {
            [one] => Some(one.as_str()),
            _ => None,
        };
        let metadata =
            lookup(one, CONNECT).map_err(|error| settings.failed("ask Kafka for topics", error))?;
        let wanted: HashSet<&str> = names.iter().map(String::as_str).collect();
        let mut present = HashMap::new();
        for topic in metadata.topics() {
            let led = topic
                .partitions()
                .iter()
                .all(|partition| partition.leader() >= 0);
            let partitions = i32::try_from(topic.partitions().len()).unwrap_or(i32::MAX);
            if topic.error().is_none() && led && partitions > 0 && wanted.contains(topic.name()) {
                present.insert(topic.name().to_owned(), partitions);
            }
        }
        Ok(present)
    })
    .await
}

async fn create(settings: &Settings, missing: &[(String, Purpose)]) -> Result<(), Error> {
    let longest = MAX_RECORD.to_string();
    let topics: Vec<_> = missing
        .iter()
        .map(|(name, purpose)| {
            let replication = TopicReplication::Fixed(settings.replication);
            let partitions = match purpose {
                Purpose::Replies => REPLY_PARTITIONS,
                // One, so that they have one order.
                Purpose::DeadLetters | Purpose::Clock => 1,
                Purpose::Requests | Purpose::Events => settings.partitions,
            };
            let longest = &*longest;
            let topic = NewTopic::new(name, partitions, replication);
            match purpose {
                // The time a request has waited is told from when the broker got it.
                Purpose::Requests => topic.set("message.timestamp.type", "LogAppendTime"),
                Purpose::Clock => topic
                    .set("message.timestamp.type", "LogAppendTime")
                    .set("retention.ms", REPLY_RETENTION)
                    .set("segment.ms", REPLY_RETENTION),
                Purpose::Events => topic,
                Purpose::Replies => topic
                    .set("retention.ms", REPLY_RETENTION)
                    .set("segment.ms", REPLY_RETENTION),
                // Each is kept until it is discarded, which is a record without a value.
                Purpose::DeadLetters => topic
                    .set("cleanup.policy", "compact")
                    .set("segment.ms", DEAD_SEGMENT)
                    .set("max.message.bytes", longest),
            }
        })
        .collect();
    let failed = |error| settings.failed("make topics", error);
    let admin = AdminClient::from_config_and_context(&settings.config("nestling"), Logged::new(()))
        .map_err(failed)?;
    let options = AdminOptions::new()
        .request_timeout(Some(CONNECT))
        .operation_timeout(Some(CONNECT));
    let results = admin.create_topics(&topics, &options).await;
    let_go(admin);
    for result in results.map_err(failed)? {
        match result {
            Ok(topic) => tracing::info!(topic, "topic made"),
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((topic, code)) => {
                let doing = format!("make topic {topic}");
                return Err(settings.error(ErrorKind::Config, &doing).with_source(code));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_of_a_service_share_a_topic_unless_told_otherwise() {
        let shared = EventTopics::PerService;
        assert_eq!(shared.topic("order.placed").unwrap(), "order.events");
        assert_eq!(shared.topic("order.item.added").unwrap(), "order.events");
        assert_eq!(shared.topic("ping").unwrap(), "ping.events");
        assert_eq!(
            EventTopics::Both.topic("order.placed").unwrap(),
            "order.events"
        );
        assert_eq!(
            EventTopics::PerPattern.topic("order.placed").unwrap(),
            "order.placed"
        );
    }

    #[test]
    fn every_service_has_a_topic_for_what_it_gives_up() {
        assert_eq!(dead_letters("user"), "user.dead-letters");
        let odd = dead_letters("größe/1");
        assert_eq!(odd, "gr----e-1-f4936ea97036f61a.dead-letters");
        let services = [
            "größe/2",
            "",
            ".",
            "a b",
            "a-b",
            &"x".repeat(249),
            &"ü".repeat(249),
        ];
        let mut names: Vec<_> = services.iter().map(|name| dead_letters(name)).collect();
        assert!(names.iter().all(|name| is_legal(name)), "{names:?}");
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), services.len());
    }

    #[test]
    fn what_kafka_would_not_take_is_refused() {
        for name in [
            "",
            ".",
            "..",
            "a b",
            "{\"cmd\":1}",
            "ä",
            "a\0b",
            &"x".repeat(250),
        ] {
            assert_eq!(
                check(name).unwrap_err().kind(),
                ErrorKind::Config,
                "{name:?}"
            );
        }
        assert!(check("user.get_all-2").is_ok());
    }
}
