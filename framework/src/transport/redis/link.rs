//! A connection that is made again when it is lost, and the broker's clock.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Cmd, ErrorKind as Cause, Pipeline, PushInfo, PushKind, RedisError,
    RedisResult, Value, aio::MultiplexedConnection,
};
use tokio::time::{Instant, sleep, timeout};

use super::{CONNECT, Options};
use crate::transport::{Error, ErrorKind, Task, clock::Clock, tls};

/// What arrives on a connection without having been asked for.
pub(super) enum Push {
    /// A message of a channel.
    Message(Message),
    /// The connection is lost.
    Lost,
}

/// What somebody published.
pub(super) struct Message {
    /// The glob it came by, unless it came by its channel's own name.
    pub(super) glob: Option<Vec<u8>>,
    pub(super) channel: Vec<u8>,
    pub(super) payload: Vec<u8>,
}

impl Message {
    fn of_channel(data: Vec<Value>) -> Option<Self> {
        let [channel, payload] = data.try_into().ok()?;
        Some(Self {
            glob: None,
            channel: bytes(channel)?,
            payload: bytes(payload)?,
        })
    }

    fn of_glob(data: Vec<Value>) -> Option<Self> {
        let [glob, channel, payload] = data.try_into().ok()?;
        Some(Self {
            glob: Some(bytes(glob)?),
            channel: bytes(channel)?,
            payload: bytes(payload)?,
        })
    }
}

fn bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        _ => None,
    }
}

/// Called by the task that reads the connection, which waits for it.
type OnPush = Arc<dyn Fn(Push) + Send + Sync>;

/// One connection, owned by one task.
pub(super) struct Link {
    options: Arc<Options>,
    /// How long an answer may take.
    answer: Duration,
    clock: Arc<Clock>,
    channels: Vec<String>,
    globs: Vec<String>,
    on_push: Option<OnPush>,
    connection: Option<MultiplexedConnection>,
    /// Moves what the connection writes and reads.
    _driver: Option<Task>,
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
            globs: Vec::new(),
            on_push: None,
            connection: None,
            _driver: None,
            lost: Arc::default(),
            id: 0,
            failures: 0,
        }
    }

    /// Subscribes to `channels`, now and after each loss.
    pub(super) fn listening(
        mut self,
        channels: Vec<String>,
        on_push: impl Fn(Push) + Send + Sync + 'static,
    ) -> Self {
        self.channels = channels;
        self.on_push = Some(Arc::new(on_push));
        self
    }

    /// The same for all channels that `globs` match.
    pub(super) fn matching(mut self, globs: Vec<String>) -> Self {
        self.globs = globs;
        self
    }

    /// Connects, trying again for a while: the broker may be about to come back.
    pub(super) async fn open(&mut self) -> Result<(), Error> {
        let shown = self.options.shown.clone();
        let failed = |kind, error: RedisError| {
            Error::new(kind, format!("connect to {shown}")).with_source(error)
        };
        let deadline = Instant::now() + CONNECT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match timeout(left, self.connect()).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) if is_refused(&error) => {
                    return Err(failed(ErrorKind::Refused, error));
                }
                Ok(Err(error)) if error.kind() == Cause::InvalidClientConfig => {
                    return Err(failed(ErrorKind::Connect, error));
                }
                Ok(Err(error)) if Instant::now() + self.delay() >= deadline => {
                    return Err(failed(ErrorKind::Connect, error));
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
        if self.is_up() {
            return Ok(());
        }
        self.connection = None;
        self.establish().await
    }

    /// Whether there is a connection, as far as anybody knows.
    pub(super) fn is_up(&self) -> bool {
        self.connection.is_some() && !self.lost.load(Ordering::Acquire)
    }

    async fn establish(&mut self) -> RedisResult<()> {
        let lost = Arc::new(AtomicBool::new(false));
        let (flag, on_push) = (Arc::clone(&lost), self.on_push.clone());
        let receive = move |push: PushInfo| {
            let push = match push.kind {
                PushKind::Disconnection => {
                    flag.store(true, Ordering::Release);
                    Some(Push::Lost)
                }
                PushKind::Message => Message::of_channel(push.data).map(Push::Message),
                PushKind::PMessage => Message::of_glob(push.data).map(Push::Message),
                _ => None,
            };
            if let (Some(on_push), Some(push)) = (&on_push, push) {
                on_push(push);
            }
            Ok::<_, redis::aio::SendError>(())
        };
        let config = AsyncConnectionConfig::new()
            .set_response_timeout(Some(self.answer))
            .set_push_sender(receive);
        let connecting = timeout(CONNECT, self.greet(config)).await;
        let (mut connection, driver) = connecting.map_err(|_| late())??;
        self.id = redis::cmd("CLIENT")
            .arg("ID")
            .query_async(&mut connection)
            .await?;
        // A server that is still loading its data refuses this.
        let asked = Instant::now();
        let time = redis::cmd("TIME").query_async(&mut connection).await?;
        self.clock.showed(millis(time), asked);
        if !self.channels.is_empty() {
            connection.subscribe(&self.channels).await?;
        }
        if !self.globs.is_empty() {
            connection.psubscribe(&self.globs).await?;
        }
        self.connection = Some(connection);
        self._driver = Some(driver);
        self.lost = lost;
        Ok(())
    }

    /// Connects and says who we are. The connection works for as long as its task is kept.
    async fn greet(
        &self,
        config: AsyncConnectionConfig,
    ) -> RedisResult<(MultiplexedConnection, Task)> {
        let Options {
            host,
            tls,
            settings,
            ..
        } = &*self.options;
        let connecting = tls::connect(host, tls.as_ref());
        let stream = connecting.await.map_err(handshake_failed)?;
        let connecting = MultiplexedConnection::new_with_config(settings, stream, config);
        let (connection, driver) = connecting.await.map_err(without_arguments)?;
        Ok((connection, Task::spawn(driver)))
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
        self.run_all_here(pipeline).await
    }

    /// The same, but not on another connection than the present one.
    pub(super) async fn run_all_here(&mut self, pipeline: &Pipeline) -> RedisResult<Vec<Value>> {
        let Some(connection) = &mut self.connection else {
            return Err(closed());
        };
        let result = connection
            .send_packed_commands(pipeline, 0, pipeline.len())
            .await;
        self.check(result)
    }

    /// Makes sure, while there is nothing to say, that there is a connection and that it answers.
    pub(super) async fn keep_up(&mut self) -> RedisResult<()> {
        match self.is_up() {
            true => self.probe().await,
            false => self.connect().await,
        }
    }

    /// Finds out whether the present connection is still there, if there is one.
    pub(super) async fn probe(&mut self) -> RedisResult<()> {
        let Some(connection) = &mut self.connection else {
            return Ok(());
        };
        let result = connection.send_packed_command(&redis::cmd("PING")).await;
        self.check(result).map(drop)
    }

    /// Subscribes to more channels, until the connection is lost.
    pub(super) async fn subscribe(&mut self, channels: &[String]) -> RedisResult<()> {
        let Some(connection) = &mut self.connection else {
            return Err(closed());
        };
        let result = connection.subscribe(channels).await;
        self.check(result)
    }

    /// Ends subscriptions to some channels.
    pub(super) async fn unsubscribe(&mut self, channels: &[String]) -> RedisResult<()> {
        let Some(connection) = &mut self.connection else {
            return Ok(());
        };
        let result = connection.unsubscribe(channels).await;
        self.check(result)
    }

    /// Ends all subscriptions, for good. Everything that Redis sent before has arrived by then.
    pub(super) async fn stop_listening(&mut self) -> RedisResult<()> {
        let channels = std::mem::take(&mut self.channels);
        let globs = std::mem::take(&mut self.globs);
        if !channels.is_empty() {
            self.unsubscribe(&channels).await?;
        }
        if let (Some(connection), false) = (&mut self.connection, globs.is_empty()) {
            let result = connection.punsubscribe(&globs).await;
            self.check(result)?;
        }
        Ok(())
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

fn late() -> RedisError {
    io::Error::from(io::ErrorKind::TimedOut).into()
}

/// A server that does not know how it is greeted repeats what it was told, the password included.
fn without_arguments(error: RedisError) -> RedisError {
    match error.detail() {
        Some(detail) if detail.contains("unknown command") => (
            Cause::InvalidClientConfig,
            "Redis does not know HELLO or AUTH",
        )
            .into(),
        _ => error,
    }
}

/// Whether it is our name, password or certificate that Redis does not like.
fn is_refused(error: &RedisError) -> bool {
    error.kind() == Cause::AuthenticationFailed
        || matches!(error.code(), Some("NOAUTH" | "WRONGPASS"))
}

/// TLS says of an authority or a name that it is wrong: the next attempt will fail as well.
fn handshake_failed(error: io::Error) -> RedisError {
    match error.kind() {
        io::ErrorKind::InvalidData => {
            let what = "the TLS handshake failed";
            (Cause::InvalidClientConfig, what, error.to_string()).into()
        }
        _ => error.into(),
    }
}

/// What `TIME` answered, seconds and microseconds, in milliseconds.
pub(super) fn millis((seconds, micros): (i64, i64)) -> i64 {
    seconds.saturating_mul(1000).saturating_add(micros / 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_we_were_greeted_with_is_not_repeated() {
        let told = "unknown command 'HELLO', with args beginning with: '3' 'AUTH' 'ada' 'hunter2'";
        let error = (Cause::InvalidClientConfig, "ERR", told.to_owned()).into();
        let text = format!("{0} {0:?}", without_arguments(error));
        assert!(
            text.contains("HELLO") && !text.contains("hunter2"),
            "{text}"
        );
        let other = RedisError::from((Cause::AuthenticationFailed, "WRONGPASS"));
        assert!(is_refused(&without_arguments(other)));
    }
}
