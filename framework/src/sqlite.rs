//! Events and the database, in one transaction: [`Outbox`] and [`Inbox`] over SQLite.
//!
//! A service that changes its state and then emits an event can crash in between; one that handles
//! an event and then acknowledges it can crash in between too. So the event is written to the
//! outbox in the transaction of the change and published afterwards, by a [`Relay`], until the bus
//! has acknowledged it; and the id of a handled event is written to the inbox in the transaction of
//! its effect, so that a second delivery finds it and does nothing.
//!
//! ```no_run
//! # use nestling::{Context, RpcError, sqlite::{Inbox, Outbox}};
//! # #[derive(serde::Serialize, serde::Deserialize)]
//! # struct OrderPaid { order: String }
//! # impl nestling::Event for OrderPaid { const PATTERN: &'static str = "order.paid"; }
//! # async fn example(pool: sqlx::SqlitePool, outbox: Outbox, cx: Context) -> Result<(), RpcError> {
//! let mut tx = pool.begin_with("BEGIN IMMEDIATE").await?;
//! if Inbox::is_new(&mut tx, "order.on_payment", &cx).await? {
//!     sqlx::query("UPDATE orders SET paid = 1 WHERE id = ?").bind("ord_1").execute(&mut *tx).await?;
//!     outbox.add(&mut tx, &OrderPaid { order: "ord_1".to_owned() }).await?;
//! }
//! outbox.commit(tx).await?;
//! # Ok(())
//! # }
//! ```

use std::{
    collections::{HashMap, HashSet},
    fmt,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::future::join_all;
use sqlx::{
    Row, Sqlite, SqliteConnection, SqlitePool, Transaction,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};
use uuid::Uuid;

use crate::{
    client::Client,
    codec::Codec,
    context::Context,
    contract::{Event, Guarantee},
    envelope::{Headers, header},
    error::RpcError,
    transport::Task,
};

/// Opens a service's database file, making it if it is not there: write-ahead log, foreign keys on,
/// writers queue for up to five seconds.
///
/// # Errors
/// When the file cannot be opened.
pub async fn open(path: impl AsRef<Path>) -> Result<SqlitePool, sqlx::Error> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Normal)
        .foreign_keys(true)
        .busy_timeout(Duration::from_secs(5));
    SqlitePoolOptions::new()
        .max_connections(8)
        .connect_with(options)
        .await
}

/// Opens a database in memory, with one connection: for tests and for a whole system in one process.
///
/// # Errors
/// When SQLite cannot.
pub async fn open_in_memory() -> Result<SqlitePool, sqlx::Error> {
    let options = SqliteConnectOptions::new()
        .in_memory(true)
        .foreign_keys(true);
    SqlitePoolOptions::new()
        .min_connections(1)
        .max_connections(1)
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_with(options)
        .await
}

/// A database that cannot be reached in time is `Unavailable`; anything else is a fault of ours.
impl From<sqlx::Error> for RpcError {
    fn from(error: sqlx::Error) -> Self {
        let is_busy = match &error {
            sqlx::Error::PoolTimedOut => true,
            // SQLITE_BUSY and its extended codes share the low byte 5.
            sqlx::Error::Database(database) => database
                .code()
                .and_then(|code| code.parse::<u32>().ok())
                .is_some_and(|code| code & 0xff == 5),
            _ => false,
        };
        if is_busy {
            Self::unavailable("the database is busy").with_source(error)
        } else {
            Self::internal(error)
        }
    }
}

/// How many rows one round of the relay takes.
const BATCH: i64 = 256;
/// How long one publication may take.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the relay looks without being woken: for rows of another process.
const IDLE: Duration = Duration::from_secs(1);
/// How often old entries of the inbox are removed.
const CLEANING: Duration = Duration::from_secs(600);
/// The longest pause after failures.
const MOST_BACKOFF: Duration = Duration::from_secs(5);
/// How long handled events are remembered: far longer than any bus redelivers.
const REMEMBERED: Duration = Duration::from_secs(7 * 24 * 3600);

/// Events that were decided and not yet published.
#[derive(Clone)]
pub struct Outbox {
    pool: SqlitePool,
    added: Arc<Notify>,
}

impl Outbox {
    /// The outbox in this database; makes the tables of [`Outbox`] and [`Inbox`] if they are not
    /// there.
    ///
    /// # Errors
    /// When the database cannot.
    pub async fn open(pool: SqlitePool) -> Result<Self, sqlx::Error> {
        for statement in [
            "CREATE TABLE IF NOT EXISTS outbox (
                position INTEGER PRIMARY KEY AUTOINCREMENT,
                event_id TEXT NOT NULL,
                pattern TEXT NOT NULL,
                key TEXT,
                headers TEXT NOT NULL,
                payload BLOB NOT NULL,
                added_at INTEGER NOT NULL
            )",
            "CREATE TABLE IF NOT EXISTS inbox (
                handler TEXT NOT NULL,
                event_id TEXT NOT NULL,
                handled_at INTEGER NOT NULL,
                PRIMARY KEY (handler, event_id)
            ) WITHOUT ROWID",
        ] {
            sqlx::query(statement).execute(&pool).await?;
        }
        Ok(Self {
            pool,
            added: Arc::default(),
        })
    }

    /// Adds an event to the caller's transaction. It keeps the trace and the actor of the message
    /// being handled.
    ///
    /// # Errors
    /// When the event cannot be encoded or the database cannot.
    pub async fn add<E: Event>(
        &self,
        tx: &mut SqliteConnection,
        event: &E,
    ) -> Result<(), RpcError> {
        let payload = Codec::Json.encode(event)?;
        let cx = Context::current();
        let inherited = [header::TRACEPARENT, header::TRACESTATE, header::ACTOR].map(|name| {
            let value = cx.as_ref().and_then(|cx| cx.header(name));
            value.map(|value| (name, value.to_owned()))
        });
        let headers: HashMap<_, _> = inherited.into_iter().flatten().collect();
        sqlx::query(
            "INSERT INTO outbox (event_id, pattern, key, headers, payload, added_at)
             VALUES (?, ?, ?, ?, ?, ?)",
        )
        .bind(Uuid::now_v7().to_string())
        .bind(E::PATTERN)
        .bind(event.key())
        .bind(serde_json::to_string(&headers).map_err(RpcError::internal)?)
        .bind(&*payload)
        .bind(millis_since_epoch())
        .execute(tx)
        .await?;
        Ok(())
    }

    /// Commits the transaction and wakes the relay.
    ///
    /// # Errors
    /// When the database cannot.
    pub async fn commit(&self, tx: Transaction<'_, Sqlite>) -> Result<(), sqlx::Error> {
        tx.commit().await?;
        self.added.notify_one();
        Ok(())
    }

    /// How many events wait to be published, and for how long the oldest has.
    ///
    /// # Errors
    /// When the database cannot.
    pub async fn lag(&self) -> Result<(u64, Duration), sqlx::Error> {
        let row = sqlx::query("SELECT COUNT(*), COALESCE(MIN(added_at), 0) FROM outbox")
            .fetch_one(&self.pool)
            .await?;
        let (count, oldest): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
        let age = if count == 0 {
            0
        } else {
            millis_since_epoch().saturating_sub(oldest)
        };
        let millis = |value: i64| u64::try_from(value).unwrap_or_default();
        Ok((millis(count), Duration::from_millis(millis(age))))
    }

    /// Publishes through `bus`, for as long as the relay lives: in order for each key, again and
    /// again until the bus has acknowledged.
    pub fn relay(&self, bus: Client) -> Relay {
        let outbox = self.clone();
        Relay {
            _task: Task::spawn(async move { outbox.publish_all(bus).await }),
        }
    }

    async fn publish_all(self, bus: Client) {
        // Lanes whose first event could not be published, and when they are tried again. Meanwhile
        // the others go on.
        let mut stuck = HashSet::new();
        let mut failures = 0;
        let mut retry_at = Instant::now();
        let mut cleaned = Instant::now();
        loop {
            if !stuck.is_empty() && retry_at <= Instant::now() {
                stuck.clear();
            }
            if cleaned.elapsed() > CLEANING {
                cleaned = Instant::now();
                if let Err(error) = Inbox::forget_old(&self.pool).await {
                    tracing::warn!(%error, "inbox: old entries could not be removed");
                }
            }
            let known = stuck.len();
            let found = match self.publish_round(&bus, &mut stuck).await {
                Ok(found) => found,
                Err(error) => {
                    tracing::warn!(%error, "outbox: its rows cannot be read or removed");
                    failures += 1;
                    sleep(backoff(failures)).await;
                    continue;
                }
            };
            if known == 0 {
                failures = if stuck.is_empty() { 0 } else { failures + 1 };
                retry_at = Instant::now() + backoff(failures);
            }
            if found == 0 {
                let pause = match stuck.is_empty() {
                    true => IDLE,
                    false => IDLE.min(retry_at.saturating_duration_since(Instant::now())),
                };
                // Whether woken or not: there may be something to do.
                timeout(pause, self.added.notified()).await.ok();
            }
        }
    }

    /// Publishes the oldest rows that are not in a stuck lane; returns how many it looked at. Rows of
    /// one lane (a key, or an event without one) go one after the other, and the first that fails
    /// keeps those behind it: the lane is stuck.
    async fn publish_round(
        &self,
        bus: &Client,
        stuck: &mut HashSet<String>,
    ) -> Result<usize, RpcError> {
        let excluded: Vec<_> = stuck.iter().collect();
        let rows = sqlx::query(
            "SELECT position, event_id, pattern, key, headers, payload FROM outbox
             WHERE COALESCE(key, event_id) NOT IN (SELECT value FROM json_each(?))
             ORDER BY position LIMIT ?",
        )
        .bind(serde_json::to_string(&excluded).map_err(RpcError::internal)?)
        .bind(BATCH)
        .fetch_all(&self.pool)
        .await?;
        let found = rows.len();
        let mut lanes: HashMap<String, Vec<Stored>> = HashMap::new();
        for row in rows {
            let stored = Stored::read(&row)?;
            let lane = stored.key.as_ref().unwrap_or(&stored.event_id).clone();
            lanes.entry(lane).or_default().push(stored);
        }
        let published = lanes.into_iter().map(async |(lane, rows)| {
            let (positions, error) = publish_lane(bus, rows).await;
            (positions, error.map(|error| (lane, error)))
        });
        let mut done = Vec::new();
        for (positions, failed) in join_all(published).await {
            done.extend(positions);
            if let Some((lane, error)) = failed {
                tracing::warn!(%error, lane, "outbox: an event could not be published yet");
                stuck.insert(lane);
            }
        }
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        for position in &done {
            sqlx::query("DELETE FROM outbox WHERE position = ?")
                .bind(position)
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        Ok(found)
    }
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Outbox")
    }
}

async fn publish_lane(bus: &Client, lane: Vec<Stored>) -> (Vec<i64>, Option<RpcError>) {
    let mut published = Vec::new();
    for stored in lane {
        let position = stored.position;
        match stored.publish(bus).await {
            Ok(()) => published.push(position),
            Err(error) => return (published, Some(error)),
        }
    }
    (published, None)
}

/// A row of the outbox.
struct Stored {
    position: i64,
    event_id: String,
    pattern: String,
    key: Option<String>,
    headers: HashMap<String, String>,
    payload: Vec<u8>,
}

impl Stored {
    fn read(row: &sqlx::sqlite::SqliteRow) -> Result<Self, RpcError> {
        let headers: String = row.try_get("headers")?;
        Ok(Self {
            position: row.try_get("position")?,
            event_id: row.try_get("event_id")?,
            pattern: row.try_get("pattern")?,
            key: row.try_get("key")?,
            headers: serde_json::from_str(&headers).map_err(RpcError::internal)?,
            payload: row.try_get("payload")?,
        })
    }

    async fn publish(self, bus: &Client) -> Result<(), RpcError> {
        let payload = Ok(self.payload.into());
        let mut emit = bus
            .emit_encoded(self.pattern, Guarantee::AtLeastOnce, self.key, payload)
            .timeout(PUBLISH_TIMEOUT)
            .header(header::EVENT_ID, self.event_id);
        for (name, value) in self.headers {
            emit = emit.header(name, value);
        }
        emit.await
    }
}

fn backoff(failures: u32) -> Duration {
    let delay = Duration::from_millis(100)
        .saturating_mul(1 << failures.min(6))
        .min(MOST_BACKOFF);
    delay.mul_f64(0.5 + fastrand::f64() / 2.0)
}

/// Publishes an [`Outbox`] until it is dropped.
#[derive(Debug)]
#[must_use = "nothing is published once it is dropped"]
pub struct Relay {
    _task: Task,
}

/// Which events had their effect.
#[derive(Clone, Copy, Debug)]
pub struct Inbox;

impl Inbox {
    /// Whether `handler` sees this event for the first time, and from now on it does not. Part of
    /// the transaction of the effect: if that is rolled back, so is this.
    ///
    /// An event without an id, as NestJS applications send them, is always new.
    ///
    /// # Errors
    /// When the database cannot.
    pub async fn is_new(
        tx: &mut SqliteConnection,
        handler: &str,
        cx: &Context,
    ) -> Result<bool, sqlx::Error> {
        let Some(event_id) = event_id(cx.headers()) else {
            return Ok(true);
        };
        let inserted = sqlx::query(
            "INSERT OR IGNORE INTO inbox (handler, event_id, handled_at) VALUES (?, ?, ?)",
        )
        .bind(handler)
        .bind(event_id)
        .bind(millis_since_epoch())
        .execute(tx)
        .await?;
        Ok(inserted.rows_affected() == 1)
    }

    async fn forget_old(pool: &SqlitePool) -> Result<(), sqlx::Error> {
        let age = i64::try_from(REMEMBERED.as_millis()).unwrap_or(i64::MAX);
        sqlx::query("DELETE FROM inbox WHERE handled_at < ?")
            .bind(millis_since_epoch().saturating_sub(age))
            .execute(pool)
            .await?;
        Ok(())
    }
}

fn event_id(headers: &Headers) -> Option<&str> {
    headers.get(header::EVENT_ID)
}

fn millis_since_epoch() -> i64 {
    let elapsed = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};
    use tokio::sync::mpsc;

    use super::*;
    use crate::{router::Router, server::Server, transport::Memory};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Counted {
        key: String,
        number: u32,
    }

    impl Event for Counted {
        const PATTERN: &'static str = "test.counted";

        fn key(&self) -> Option<String> {
            Some(self.key.clone())
        }
    }

    async fn outbox() -> (SqlitePool, Outbox) {
        let pool = open_in_memory().await.unwrap();
        (pool.clone(), Outbox::open(pool).await.unwrap())
    }

    async fn add(pool: &SqlitePool, outbox: &Outbox, key: &str, number: u32) {
        let mut tx = pool.begin().await.unwrap();
        outbox
            .add(
                &mut tx,
                &Counted {
                    key: key.to_owned(),
                    number,
                },
            )
            .await
            .unwrap();
        outbox.commit(tx).await.unwrap();
    }

    #[tokio::test]
    async fn events_go_out_in_order_for_each_key_and_leave_the_table() {
        let (pool, outbox) = outbox().await;
        for number in 0..20 {
            add(
                &pool,
                &outbox,
                if number % 2 == 0 { "even" } else { "odd" },
                number,
            )
            .await;
        }
        assert_eq!(outbox.lag().await.unwrap().0, 20);

        let memory = Memory::new();
        let (sender, mut seen) = mpsc::channel(64);
        let router = Router::new().event(move |event: Counted| {
            let sender = sender.clone();
            async move {
                sender
                    .send(event)
                    .await
                    .map_err(|_| RpcError::unavailable("test over"))
            }
        });
        let _server = Server::new("test", router)
            .listen(&memory)
            .start()
            .await
            .unwrap();
        let _relay = outbox.relay(Client::connect(&memory).await.unwrap());

        let mut last: HashMap<String, u32> = HashMap::new();
        for _ in 0..20 {
            let event = seen.recv().await.unwrap();
            let before = last.insert(event.key, event.number);
            assert!(before < Some(event.number));
        }
        while outbox.lag().await.unwrap().0 > 0 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_rolled_back_transaction_publishes_nothing_and_remembers_nothing() {
        let (pool, outbox) = outbox().await;
        let mut envelope = crate::Envelope::new("test.counted", "");
        envelope.headers.set(header::EVENT_ID, "e1");
        let cx = Context::new(envelope, "memory");

        let mut tx = pool.begin().await.unwrap();
        assert!(Inbox::is_new(&mut tx, "h", &cx).await.unwrap());
        outbox
            .add(
                &mut tx,
                &Counted {
                    key: "k".to_owned(),
                    number: 1,
                },
            )
            .await
            .unwrap();
        tx.rollback().await.unwrap();
        assert_eq!(outbox.lag().await.unwrap().0, 0);

        let mut tx = pool.begin().await.unwrap();
        assert!(Inbox::is_new(&mut tx, "h", &cx).await.unwrap());
        assert!(!Inbox::is_new(&mut tx, "h", &cx).await.unwrap());
        assert!(Inbox::is_new(&mut tx, "other", &cx).await.unwrap());
    }

    #[tokio::test]
    async fn an_event_that_cannot_be_published_keeps_only_those_of_its_key() {
        let (pool, outbox) = outbox().await;
        add(&pool, &outbox, "stuck", 1).await;
        add(&pool, &outbox, "free", 2).await;
        add(&pool, &outbox, "stuck", 3).await;
        // More than the bus takes.
        sqlx::query("UPDATE outbox SET payload = zeroblob(17 << 20) WHERE position = 1")
            .execute(&pool)
            .await
            .unwrap();
        let bus = Client::connect(&Memory::new()).await.unwrap();
        let mut stuck = HashSet::new();
        assert_eq!(outbox.publish_round(&bus, &mut stuck).await.unwrap(), 3);
        assert_eq!(stuck, HashSet::from(["stuck".to_owned()]));
        assert_eq!(outbox.lag().await.unwrap().0, 2);
        add(&pool, &outbox, "free", 4).await;
        assert_eq!(outbox.publish_round(&bus, &mut stuck).await.unwrap(), 1);
        assert_eq!(outbox.publish_round(&bus, &mut stuck).await.unwrap(), 0);
        assert_eq!(outbox.lag().await.unwrap().0, 2);
    }
}
