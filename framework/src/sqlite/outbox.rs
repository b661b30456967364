//! [`Outbox`]: events that were decided and not yet published.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use sqlx::{Row, Sqlite, SqliteConnection, SqlitePool, Transaction};
use tokio::sync::Notify;
use uuid::Uuid;

use super::{Inbox, Relay, millis_since_epoch};
use crate::{
    client::Client, codec::Codec, context::Context, contract::Event, envelope::header,
    error::RpcError, handler::BoxFuture, introspect::Gauge,
};

/// How far waiting events are counted.
const MOST_COUNTED: i64 = 10_000;

const SCHEMA: [&str; 2] = [
    "CREATE TABLE IF NOT EXISTS outbox (
        position INTEGER PRIMARY KEY AUTOINCREMENT,
        event_id TEXT NOT NULL,
        pattern TEXT NOT NULL,
        key TEXT,
        headers TEXT NOT NULL,
        payload BLOB NOT NULL,
        added_at INTEGER NOT NULL
    )",
    // Which relay publishes the events of a key, and until when nobody else may.
    "CREATE TABLE IF NOT EXISTS outbox_leases (
        lane TEXT PRIMARY KEY,
        holder TEXT NOT NULL,
        until INTEGER NOT NULL
    ) WITHOUT ROWID",
];

/// Events that were decided and not yet published.
#[derive(Clone)]
pub struct Outbox {
    pub(super) pool: SqlitePool,
    pub(super) added: Arc<Notify>,
}

/// How far publishing is behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    /// How many events wait to be published, counted up to 10 000.
    pub waiting: u64,
    /// For how long the oldest has.
    pub oldest: Duration,
}

impl Outbox {
    /// The outbox in this database; makes the tables of [`Outbox`] and [`Inbox`] if they are not
    /// there.
    ///
    /// # Errors
    /// When the database cannot.
    pub async fn open(pool: SqlitePool) -> Result<Self, sqlx::Error> {
        for statement in SCHEMA {
            sqlx::query(statement).execute(&pool).await?;
        }
        Inbox::open(&pool).await?;
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

    /// How far publishing is behind. Cheap, however much waits.
    ///
    /// # Errors
    /// When the database cannot.
    pub async fn lag(&self) -> Result<Lag, sqlx::Error> {
        let now = millis_since_epoch();
        let row = sqlx::query(
            "SELECT (SELECT COUNT(*) FROM (SELECT 1 FROM outbox LIMIT ?)),
                    (SELECT added_at FROM outbox ORDER BY position LIMIT 1)",
        )
        .bind(MOST_COUNTED)
        .fetch_one(&self.pool)
        .await?;
        let (waiting, oldest): (i64, Option<i64>) = (row.try_get(0)?, row.try_get(1)?);
        let age = now.saturating_sub(oldest.unwrap_or(now));
        let number = |value: i64| u64::try_from(value).unwrap_or_default();
        Ok(Lag {
            waiting: number(waiting),
            oldest: Duration::from_millis(number(age)),
        })
    }

    /// The [`lag`](Self::lag) for [`Introspection::gauges`](crate::Introspection::gauges):
    /// `outbox.waiting` (events) and `outbox.oldest` (seconds).
    pub fn gauges(
        &self,
    ) -> impl Fn() -> BoxFuture<'static, Result<Vec<Gauge>, RpcError>> + Send + Sync + use<> {
        let outbox = self.clone();
        move || {
            let outbox = outbox.clone();
            Box::pin(async move {
                let lag = outbox.lag().await?;
                Ok(vec![
                    Gauge::new("outbox.waiting", lag.waiting as f64),
                    Gauge::new("outbox.oldest", lag.oldest.as_secs_f64()),
                ])
            })
        }
    }

    /// Publishes through `bus`, for as long as the relay lives: in order for each key, again and
    /// again until the bus has acknowledged. Any number of relays, in any number of processes, share
    /// the events of one database.
    pub fn relay(&self, bus: Client) -> Relay {
        Relay::start(self.clone(), bus)
    }
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Outbox")
    }
}
