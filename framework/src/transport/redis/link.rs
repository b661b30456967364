//! A connection that is made again when it is lost, and the broker's clock.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Cmd, ErrorKind as Cause, Pipeline, PushInfo, PushKind, RedisError,
    RedisResult, Value, aio::MultiplexedConnection,
};
use tokio::time::{Instant, sleep, timeout};

use super::{CONNECT, Options};
use crate::transport::{Error, ErrorKind};

/// What arrives on a connection without having been asked for.
pub(super) enum Push<'a> {
    /// A message of a channel.
    Message(&'a [u8]),
    /// The connection is lost.
    Lost,
}

type OnPush = Arc<dyn Fn(Push<'_>) + Send + Sync>;

/// One connection, owned by one task.
pub(super) struct Link {
    options: Arc<Options>,
    /// How long an answer may take.
    answer: Duration,
    clock: Arc<Clock>,
    channels: Vec<String>,
    on_push: Option<OnPush>,
    connection: Option<MultiplexedConnection>,
    lost: Arc<AtomicBool>,
    id: i64,
    failures: u32,
}

impl Link {
    pub(super) fn new(options: Arc<Options>, clock: Arc<Clock>, answer: Duration) -> Self {
        Self {
            options,
            answer,
            clock,
            channels: Vec::new(),
            on_push: None,
            connection: None,
            lost: Arc::default(),
            id: 0,
            failures: 0,
        }
    }

    /// Subscribes to `channels`, now and after each loss.
    pub(super) fn listening(
        mut self,
        channels: Vec<String>,
        on_push: impl Fn(Push<'_>) + Send + Sync + 'static,
    ) -> Self {
        self.channels = channels;
        self.on_push = Some(Arc::new(on_push));
        self
    }

    /// Connects, trying again for a while: the broker may be about to come back.
    pub(super) async fn open(&mut self) -> Result<(), Error> {
        let shown = self.options.shown.clone();
        let connect = |error: RedisError| {
            Error::new(ErrorKind::Connect, format!("connect to {shown}")).with_source(error)
        };
        let deadline = Instant::now() + CONNECT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match timeout(left, self.connect()).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) if error.kind() == Cause::AuthenticationFailed => {
                    return Err(connect(error));
                }
                Ok(Err(error)) if Instant::now() + self.delay() >= deadline => {
                    return Err(connect(error));
                }
                Ok(Err(error)) => self.pause(&error).await,
                Err(elapsed) => {
                    let message = format!("connect to {shown}");
                    return Err(Error::new(ErrorKind::Connect, message).with_source(elapsed));
                }
            }
        }
    }

    /// Makes sure that there is a connection, with one attempt.
    pub(super) async fn connect(&mut self) -> RedisResult<()> {
        if self.connection.is_some() && !self.lost.load(Ordering::Acquire) {
            return Ok(());
        }
        self.connection = None;
        self.establish().await
    }

    async fn establish(&mut self) -> RedisResult<()> {
        let lost = Arc::new(AtomicBool::new(false));
        let (flag, on_push) = (Arc::clone(&lost), self.on_push.clone());
        let receive = move |push: PushInfo| {
            match push.kind {
                PushKind::Disconnection => {
                    flag.store(true, Ordering::Release);
                    if let Some(on_push) = &on_push {
                        on_push(Push::Lost);
                    }
                }
                PushKind::Message => {
                    if let (Some(on_push), Some(Value::BulkString(payload))) =
                        (&on_push, push.data.get(1))
                    {
                        on_push(Push::Message(payload));
                    }
                }
                _ => {}
            }
            Ok::<_, redis::aio::SendError>(())
        };
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT))
            .set_response_timeout(Some(self.answer))
            .set_push_sender(receive);
        let client = redis::Client::open(self.options.info.clone())?;
        let mut connection = client
            .get_multiplexed_async_connection_with_config(&config)
            .await?;
        self.id = redis::cmd("CLIENT")
            .arg("ID")
            .query_async(&mut connection)
            .await?;
        // A server that is still loading its data refuses this.
        let asked = Instant::now();
        let time = redis::cmd("TIME").query_async(&mut connection).await?;
        self.clock.set(time, asked);
        if !self.channels.is_empty() {
            connection.subscribe(&self.channels).await?;
        }
        self.connection = Some(connection);
        self.lost = lost;
        Ok(())
    }

    /// The connection's number in Redis, by which another can unblock it.
    pub(super) fn id(&self) -> i64 {
        self.id
    }

    pub(super) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Runs a command; the connection is given up when it fails to answer.
    pub(super) async fn run(&mut self, command: &Cmd) -> RedisResult<Value> {
        self.connect().await?;
        let Some(connection) = &mut self.connection else {
            return Err(closed());
        };
        let result = connection.send_packed_command(command).await;
        self.check(result)?.extract_error()
    }

    /// Runs commands together; each has its own answer, which may be a refusal.
    pub(super) async fn run_all(&mut self, pipeline: &Pipeline) -> RedisResult<Vec<Value>> {
        if pipeline.is_empty() {
            return Ok(Vec::new());
        }
        self.connect().await?;
        let Some(connection) = &mut self.connection else {
            return Err(closed());
        };
        let result = connection
            .send_packed_commands(pipeline, 0, pipeline.len())
            .await;
        self.check(result)
    }

    fn check<T>(&mut self, result: RedisResult<T>) -> RedisResult<T> {
        match &result {
            Ok(_) if self.failures > 0 => {
                tracing::info!(url = %self.options.shown, "redis answers again");
                self.failures = 0;
            }
            Ok(_) => {}
            Err(_) => self.connection = None,
        }
        result
    }

    /// Waits before the next attempt, longer each time.
    pub(super) async fn pause(&mut self, error: &RedisError) {
        if self.failures == 0 {
            tracing::warn!(url = %self.options.shown, %error, "redis does not answer");
        }
        sleep(self.delay()).await;
        self.failures = self.failures.saturating_add(1);
    }

    fn delay(&self) -> Duration {
        let base = 25_u64 << self.failures.min(6);
        Duration::from_millis(base + fastrand::u64(..base))
    }
}

fn closed() -> RedisError {
    (Cause::Io, "the connection is closed").into()
}

/// The broker's clock, as far as its last answer to `TIME` tells.
pub(super) struct Clock {
    origin: Instant,
    /// What the broker's clock showed at `origin`, in milliseconds.
    offset: AtomicI64,
}

impl Clock {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            origin: Instant::now(),
            offset: AtomicI64::new(0),
        })
    }

    /// Takes in what `TIME` answered: seconds and microseconds, as text.
    pub(super) fn set(&self, (seconds, micros): (i64, i64), asked: Instant) {
        self.set_at((seconds, micros), asked + asked.elapsed() / 2);
    }

    fn set_at(&self, (seconds, micros): (i64, i64), halfway: Instant) {
        let since = halfway.saturating_duration_since(self.origin).as_millis();
        let millis = seconds.saturating_mul(1000).saturating_add(micros / 1000);
        self.offset
            .store(millis.saturating_sub(signed(since)), Ordering::Relaxed);
    }

    /// How long ago the broker's clock showed `millis`.
    pub(super) fn since(&self, millis: u64, now: Instant) -> Duration {
        let local = signed(now.saturating_duration_since(self.origin).as_millis());
        let broker = self.offset.load(Ordering::Relaxed).saturating_add(local);
        Duration::from_millis(u64::try_from(broker).unwrap_or(0).saturating_sub(millis))
    }
}

fn signed(millis: u128) -> i64 {
    i64::try_from(millis).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_time_is_read_from_the_brokers_clock() {
        let clock = Clock::new();
        let now = Instant::now();
        clock.set_at((1_000, 500_000), now);
        let later = now + Duration::from_millis(250);
        assert_eq!(clock.since(1_000_600, later), Duration::from_millis(150));
        assert_eq!(clock.since(2_000_000, later), Duration::ZERO);
    }
}
