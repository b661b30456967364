//! Kafka: a consumer group per service, a reply topic per calling service.
//!
//! `kafka://name:password@host:9092,host:9092?partitions=3&replication=1&topic=both`. What travels is
//! written down in `docs/wire/kafka.md`.

mod client;
mod server;

mod burial;
mod careful;
mod carries;
mod clock;
mod dead_letters;
mod delivery;
mod group;
mod mender;
mod metadata;
mod nest;
mod offsets;
mod partition;
mod producer;
mod publisher;
mod reader;
mod record;
mod replies;
mod security;
mod sender;
mod topics;

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, ClientContext,
    config::RDKafkaLogLevel,
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
};

use self::security::{Security, Verdict};
use super::{Address, Capabilities, Error, ErrorKind, Order, Scheme, Wire, pending::lock};
use crate::contract::Guarantee;

pub(super) const SCHEME: Scheme = Scheme {
    name: NAME,
    options: &[
        "partitions",
        "replication",
        security::MECHANISM,
        "topic",
        "wire",
    ],
    server: |address| Box::pin(server::open(address)),
    client: |address, identity| Box::pin(client::open(address, identity)),
    dead_letters: Some(|address| Box::pin(dead_letters::open(address))),
};

const NAME: &str = "kafka";
const PORT: u16 = 9092;
/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(5);
/// The largest payload; with [`MAX_HEADERS`] it stays below the 1 MiB that brokers take by default.
const MAX_PAYLOAD: usize = 1_000_000;
/// What key and headers may add.
const MAX_HEADERS: usize = 40_000;
/// The largest record: a dead letter, of an event that somebody else has sent.
const MAX_RECORD: usize = 16 << 20;
/// The partitions of a topic that is made here, unless the URL says otherwise.
const PARTITIONS: i32 = 3;

const CAPABILITIES: Capabilities = Capabilities {
    events: Guarantee::AtLeastOnce,
    replicas_share: true,
    fan_out: true,
    durable: true,
    order: Order::Key,
    redelivers: true,
    dead_letters: true,
    cancels: false,
    stream_credit: false,
    detects_absence: true,
    max_payload: MAX_PAYLOAD,
};

/// What a URL says.
#[derive(Clone, Debug)]
struct Settings {
    brokers: String,
    /// The URL, for messages.
    label: String,
    partitions: i32,
    replication: i32,
    event_topics: topics::EventTopics,
    /// The one wire it asks for.
    wire: Option<Wire>,
    security: Security,
    /// What the brokers think of that.
    verdict: Verdict,
}

impl Settings {
    /// Those of a server, which answers both wires unless it is told not to.
    fn of_server(address: &Address) -> Result<Self, Error> {
        let settings = Self::new(address)?;
        if settings.wire == Some(Wire::NestText) {
            let message = format!(
                "{address}: a server answers NestJS's wire by itself; its wire can only be native"
            );
            return Err(Error::new(ErrorKind::Config, message));
        }
        Ok(settings)
    }

    /// Those of a client, which speaks one wire.
    fn of_client(address: &Address) -> Result<Self, Error> {
        let settings = Self::new(address)?;
        if settings.wire == Some(Wire::NestText) && address.option("topic").is_some() {
            let message = format!(
                "{address}: on NestJS's wire an event's topic is its pattern; leave topic away"
            );
            return Err(Error::new(ErrorKind::Config, message));
        }
        Ok(settings)
    }

    fn new(address: &Address) -> Result<Self, Error> {
        let refuse = |what: &str| Err(Error::new(ErrorKind::Config, format!("{address}: {what}")));
        let brokers = address.hosts(PORT).join(",");
        if brokers.is_empty() {
            return refuse("there is no host");
        }
        if !address.path().is_empty() {
            return refuse("there is no path in a Kafka URL");
        }
        let wire = match address.option("wire") {
            None => None,
            Some("native") => Some(Wire::Native),
            Some("nest") => Some(Wire::NestText),
            Some(_) => return refuse("wire can be native or, for a client, nest"),
        };
        let event_topics = match address.option("topic") {
            None => topics::EventTopics::PerService,
            Some("pattern") => topics::EventTopics::PerPattern,
            Some("both") => topics::EventTopics::Both,
            Some(_) => return refuse("topic can be pattern or both"),
        };
        let partitions = address.parsed_option("partitions")?.unwrap_or(PARTITIONS);
        // -1 leaves it to the broker.
        let replication = address.parsed_option("replication")?.unwrap_or(-1);
        if partitions < 1 || replication == 0 || replication < -1 {
            return refuse("partitions and replication are counted from 1");
        }
        Ok(Self {
            brokers,
            label: address.to_string(),
            partitions,
            replication,
            event_topics,
            wire,
            security: Security::of(address)?,
            verdict: Verdict::default(),
        })
    }

    /// What producers and consumers have in common.
    fn config(&self, name: &str) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.brokers)
            .set("client.id", name)
            .set("socket.nagle.disable", "true")
            .set("socket.keepalive.enable", "true")
            .set("socket.connection.setup.timeout.ms", "5000")
            .set("socket.timeout.ms", "10000")
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "1000")
            .set("log.connection.close", "false")
            .set("allow.auto.create.topics", "false")
            // What is sent is kept small by `record::check_size`, apart from dead letters.
            .set("message.max.bytes", MAX_RECORD.to_string());

        config.set_log_level(RDKafkaLogLevel::Info);
        self.security.apply(&mut config);
        config
    }

    fn consumer_config(&self, group: &str) -> ClientConfig {
        let mut config = self.config(group);
        config
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "earliest")
            // A topic that is gone is reported after so long; it might be new.
            .set("topic.metadata.propagation.max.ms", "5000")
            // The broker answers as soon as there is anything. The limit bounds how long a partition
            // that was just added or moved waits for the fetch that is under way.
            .set("fetch.min.bytes", "1")
            .set("fetch.wait.max.ms", "50")
            .set("fetch.error.backoff.ms", "50")
            // A full read-ahead is looked at again soon; the default would stall it for a second.
            .set("fetch.queue.backoff.ms", "10")
            .set("queued.min.messages", "1000")
            .set("queued.max.messages.kbytes", "16384");
        config
    }

    fn error(&self, kind: ErrorKind, doing: &str) -> Error {
        Error::new(kind, format!("{doing} at {}", self.label))
    }

    fn failed(&self, doing: &str, source: KafkaError) -> Error {
        self.error(ErrorKind::Connect, doing).with_source(source)
    }
}

/// The context of every client of the library: sends its messages to the log.
struct Logged<T> {
    owner: T,
    verdict: Verdict,
    log: Rationed,
}

impl<T> Logged<T> {
    fn new(owner: T) -> Self {
        Self {
            owner,
            verdict: Verdict::default(),
            log: Rationed::default(),
        }
    }

    /// Notes for `settings` that the brokers do not let us in.
    fn reporting(self, settings: &Settings) -> Self {
        let verdict = settings.verdict.clone();
        Self { verdict, ..self }
    }
}

impl<T: Send + Sync> ClientContext for Logged<T> {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                tracing::warn!(facility, "kafka: {message}");
            }
            // A broker that has just started cannot give producers their ids yet.
            RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning if facility != "GETPID" => {
                if self.log.allows() {
                    tracing::warn!(facility, "kafka: {message}");
                }
            }
            _ => tracing::debug!(facility, "kafka: {message}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code();
        if let Some(code) = code {
            self.verdict.note(code, reason);
        }
        match code {
            Some(RDKafkaErrorCode::AllBrokersDown) if self.log.allows() => {
                tracing::warn!("kafka: no broker can be reached: {reason}");
            }
            // Each connection attempt says so, and the line above sums it up.
            _ => tracing::debug!(%error, "kafka: {reason}"),
        }
    }
}

/// At most a few lines a second, so that a lost broker does not flood the log.
#[derive(Default)]
struct Rationed {
    window: Mutex<Option<(Instant, u32)>>,
    dropped: AtomicBool,
}

impl Rationed {
    const LINES: u32 = 5;

    fn allows(&self) -> bool {
        let mut window = lock(&self.window);
        let now = Instant::now();
        let lines = match &mut *window {
            Some((start, lines)) if now.duration_since(*start) < Duration::from_secs(1) => lines,
            other => &mut other.insert((now, 0)).1,
        };
        *lines += 1;
        let allows = *lines <= Self::LINES;
        let silent = !allows && !self.dropped.swap(true, Ordering::Relaxed);
        drop(window);
        if silent {
            tracing::warn!(
                "kafka: more messages than {} a second are left out",
                Self::LINES
            );
        }
        allows
    }
}

/// Drops `value` on a thread of its own: the library's clients wait for their threads when they go,
/// which a task must not.
fn let_go<T: Send + 'static>(value: T) {
    let spawned = thread::Builder::new()
        .name("kafka-close".to_owned())
        .spawn(move || drop(value));
    if let Err(error) = spawned {
        tracing::warn!(%error, "close a Kafka client in place");
    }
}

/// Repeats a call of the library that may fail while a new topic or a group settles. Blocks.
fn patiently<T>(mut call: impl FnMut() -> KafkaResult<T>) -> KafkaResult<T> {
    let deadline = Instant::now() + CONNECT;
    loop {
        match call() {
            Err(error) if Instant::now() < deadline => {
                tracing::debug!(%error, "asking Kafka again");
                thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

/// Runs a call of the library that blocks, for `limit` by its own promise.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => {
            Err(Error::new(ErrorKind::Closed, "the runtime is going down").with_source(error))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str) -> Result<Settings, Error> {
        Settings::new(&url.parse()?)
    }

    #[test]
    fn a_url_names_brokers_and_what_topics_are_made_with() {
        let settings =
            settings("kafka://one,two:1?partitions=6&replication=3&topic=pattern").unwrap();
        assert_eq!(settings.brokers, "one:9092,two:1");
        assert_eq!((settings.partitions, settings.replication), (6, 3));
        assert_eq!(settings.event_topics, topics::EventTopics::PerPattern);
    }

    #[test]
    fn a_url_that_makes_no_sense_is_refused() {
        for url in [
            "kafka://",
            "kafka://ada:secret@localhost?sasl=none",
            "kafka://localhost/path",
            "kafka://localhost?partitions=0",
            "kafka://localhost?topic=other",
            "kafka://localhost?wire=other",
        ] {
            let error = settings(url).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config, "{url}");
            assert!(!error.to_string().contains("secret"));
        }
    }

    #[test]
    fn a_server_answers_both_wires_or_the_native_one_and_a_client_speaks_one() {
        let check = |options: &str, server: bool, client: bool| {
            let address = format!("kafka://localhost?{options}").parse().unwrap();
            assert_eq!(Settings::of_server(&address).is_ok(), server, "{options}");
            assert_eq!(Settings::of_client(&address).is_ok(), client, "{options}");
        };
        check("wire=native", true, true);
        check("wire=nest", false, true);
        check("wire=native&topic=both", true, true);
        check("wire=nest&topic=both", false, false);
    }
}
