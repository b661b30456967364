//! Finding out what time it is at the brokers: a record is written to a topic that the broker dates, and
//! its acknowledgement says when that was.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rdkafka::{
    Timestamp,
    message::{BorrowedMessage, Message as _},
    producer::{DeliveryResult, ProducerContext},
};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};

use super::{
    Logged, Settings,
    producer::{Outgoing, Producer, Reports},
    record,
    sender::within,
    topics::{CLOCK, Purpose, Topics},
};
use crate::transport::{Error, ErrorKind, Task, clock::Clock};

/// How often they are asked again: clocks drift, and are set.
const INTERVAL: Duration = Duration::from_secs(60);
/// How soon after they could not be asked.
const AGAIN: Duration = Duration::from_secs(5);
/// How long asking may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often in a row; the quickest answer tells most.
const QUESTIONS: usize = 3;

/// Keeps a clock like the brokers', by a task that ends with this.
pub(super) struct Watch {
    _task: Task,
}

impl Watch {
    /// Sets the clock, and goes on doing so. Without an answer it is taken to agree with this machine's.
    pub(super) async fn start(
        settings: &Settings,
        topics: &Arc<Topics>,
        clock: &Arc<Clock>,
    ) -> Self {
        let asker = Asker {
            settings: settings.clone(),
            topics: Arc::clone(topics),
            clock: Arc::clone(clock),
        };
        let mut pause = asker.ask_or_say().await;
        let task = Task::spawn(async move {
            loop {
                sleep(pause.mul_f64(0.75 + fastrand::f64() / 2.0)).await;
                pause = asker.ask_or_say().await;
            }
        });
        Self { _task: task }
    }
}

struct Asker {
    settings: Settings,
    topics: Arc<Topics>,
    clock: Arc<Clock>,
}

impl Asker {
    /// Asks, and returns when to do so again.
    async fn ask_or_say(&self) -> Duration {
        match within(Instant::now() + PATIENCE, self.ask()).await {
            Ok(()) => INTERVAL,
            Err(error) => {
                // It may have gone with everything else that the brokers had.
                self.topics.forget(CLOCK);
                tracing::warn!(%error, "what time it is at the Kafka brokers is not known");
                AGAIN
            }
        }
    }

    async fn ask(&self) -> Result<(), Error> {
        self.topics.ensure_one(CLOCK, Purpose::Clock).await?;
        let producer = Producer::new(&self.settings, "nestling-clock", Reports::All, || {
            Logged::new(Appended)
        })?;
        let mut best = None;
        for _ in 0..QUESTIONS {
            let (answer, answered) = oneshot::channel();
            let question = Outgoing {
                topic: CLOCK,
                partition: Some(0),
                key: None,
                headers: record::start(1),
                payload: Some(&[]),
            };
            let asked = Instant::now();
            let deadline = asked + PATIENCE;
            producer
                .send_by(question, Box::new(answer), deadline)
                .await?;
            let Ok(Some(millis)) = answered.await else {
                return Err(self.settings.error(ErrorKind::Closed, "date a record"));
            };
            let took = asked.elapsed();
            if best.is_none_or(|(shortest, _)| took < shortest) {
                // As if that was just now: a request must not seem to have waited longer than it has.
                self.clock.showed(millis, Instant::now());
                best = Some((took, millis));
            }
        }
        tracing::debug!(?best, "the brokers' clock");
        Ok(())
    }
}

/// Says when the broker appended a record.
struct Appended;

impl ProducerContext for Logged<Appended> {
    type DeliveryOpaque = Box<oneshot::Sender<Option<i64>>>;

    fn delivery(&self, result: &DeliveryResult<'_>, asker: Self::DeliveryOpaque) {
        let appended = match result.as_ref().map(|record| record.timestamp()) {
            Ok(Timestamp::LogAppendTime(millis)) => Some(millis),
            // Somebody else made the topic, with other settings, or the record is lost.
            Ok(_) | Err(_) => None,
        };
        // Whoever stopped waiting asks again.
        asker.send(appended).unwrap_or_default();
    }
}

/// A clock that agrees with this machine's, as far as anybody knows.
pub(super) fn agreeing() -> Arc<Clock> {
    let clock = Clock::new();
    clock.showed(here(), Instant::now());
    clock
}

fn here() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// How long a record has waited since the broker wrote it, by the broker's clock; or, where the topic
/// leaves it to senders to date their records, since it was sent, by this machine's.
pub(super) fn waited(message: &BorrowedMessage<'_>, clock: &Clock, now: Instant) -> Duration {
    match message.timestamp() {
        Timestamp::NotAvailable => Duration::ZERO,
        Timestamp::CreateTime(millis) => {
            let waited = here().saturating_sub(millis);
            Duration::from_millis(u64::try_from(waited).unwrap_or_default())
        }
        Timestamp::LogAppendTime(millis) => {
            clock.has_shown(millis, now);
            clock.since(u64::try_from(millis).unwrap_or_default(), now)
        }
    }
}

#[cfg(test)]
mod tests {
    use nestling_testkit::{Kind, broker_or_skip};

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    /// The broker runs on this machine, so this machine's clock is right.
    #[tokio::test]
    async fn a_clock_an_hour_from_the_brokers_is_set() {
        let Some(url) = broker_or_skip(Kind::Kafka) else {
            return;
        };
        let settings = Settings::new(&url.parse().unwrap()).unwrap();
        let producer = Producer::new(&settings, "test", Reports::All, || Logged::new(Appended));
        let topics = Arc::new(Topics::new(settings.clone(), producer.unwrap().lookup()));
        let hour = i64::try_from(HOUR.as_millis()).unwrap();
        for wrong in [hour, -hour] {
            let clock = Clock::new();
            clock.showed(here() + wrong, Instant::now());
            let _watch = Watch::start(&settings, &topics, &clock).await;
            let then = u64::try_from(here() - 2 * hour).unwrap();
            let since = clock.since(then, Instant::now());
            let error = since.abs_diff(2 * HOUR);
            assert!(error < HOUR / 4, "{wrong} ms wrong, and still {error:?}");
        }
    }
}
