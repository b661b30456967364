//! Persistence: the only place that knows SQL.
//!
//! `order_events` is the truth and is only ever appended to; `order_view` and `saga` follow from it
//! and are written in the transaction of the append, together with the outbox.

mod carts;
mod orders;
mod sagas;

use std::fmt;

use contracts::{Timestamp, UserId};
use nestling::sqlite::Outbox;
use serde::{Serialize, de::DeserializeOwned};
use sqlx::{Row, Sqlite, SqliteConnection, SqlitePool, Transaction};
use uuid::Uuid;

pub use self::{
    carts::{StoredCart, StoredLine, StoredQuote, cart_name},
    orders::{Filter, Replayed, replay},
    sagas::{Claim, Lease},
};
use crate::error::Error;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS carts (
    owner TEXT PRIMARY KEY,
    version INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cart_lines (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    owner TEXT NOT NULL REFERENCES carts (owner),
    product_id TEXT NOT NULL,
    qty INTEGER NOT NULL CHECK (qty > 0),
    name TEXT NOT NULL,
    unit_net INTEGER NOT NULL,
    currency TEXT NOT NULL,
    UNIQUE (owner, product_id)
);
CREATE TABLE IF NOT EXISTS quotes (
    id TEXT PRIMARY KEY,
    user_id TEXT,
    cart TEXT NOT NULL,
    body TEXT NOT NULL,
    expires_at INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS quotes_by_expiry ON quotes (expires_at);
CREATE TABLE IF NOT EXISTS order_events (
    order_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    kind TEXT NOT NULL,
    at INTEGER NOT NULL,
    actor TEXT,
    data TEXT NOT NULL,
    PRIMARY KEY (order_id, version)
) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS order_events_stay BEFORE UPDATE ON order_events
BEGIN SELECT RAISE(ABORT, 'events are never altered'); END;
CREATE TRIGGER IF NOT EXISTS order_events_remain BEFORE DELETE ON order_events
BEGIN SELECT RAISE(ABORT, 'events are never removed'); END;
CREATE TABLE IF NOT EXISTS order_view (
    order_id TEXT PRIMARY KEY,
    user_id TEXT NOT NULL,
    status TEXT NOT NULL,
    placed_at INTEGER NOT NULL,
    body TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS order_view_by_user ON order_view (user_id, placed_at, order_id);
CREATE INDEX IF NOT EXISTS order_view_by_time ON order_view (placed_at, order_id);
CREATE TABLE IF NOT EXISTS saga (
    order_id TEXT PRIMARY KEY,
    step TEXT NOT NULL,
    tries INTEGER NOT NULL,
    next_at INTEGER NOT NULL,
    deadline INTEGER,
    lease TEXT,
    lease_until INTEGER NOT NULL DEFAULT 0,
    trace TEXT
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS saga_by_time ON saga (next_at);
CREATE TABLE IF NOT EXISTS idempotency (
    user_id TEXT NOT NULL,
    pattern TEXT NOT NULL,
    key TEXT NOT NULL,
    request TEXT NOT NULL,
    reply TEXT NOT NULL,
    at INTEGER NOT NULL,
    PRIMARY KEY (user_id, pattern, key)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS idempotency_by_time ON idempotency (at);
CREATE TABLE IF NOT EXISTS secrets (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;
";

/// How long an idempotency key is remembered.
const KEY_LIFETIME_MS: i64 = 24 * 3600 * 1000;

/// A transaction that writes.
pub type Tx = Transaction<'static, Sqlite>;

/// The service's database.
#[derive(Clone)]
pub struct Store {
    pool: SqlitePool,
    outbox: Outbox,
    cursor_key: Uuid,
    instance: Option<String>,
}

/// A request that is to have one effect.
#[derive(Clone, Copy, Debug)]
pub struct Once<'a> {
    /// Who asks.
    pub user_id: UserId,
    /// For what.
    pub pattern: &'static str,
    /// The caller's word that two requests are one.
    pub key: &'a str,
    /// The request's fingerprint.
    pub request: Uuid,
}

impl Store {
    /// Opens it for the replica of this name, if it has one, and makes the tables that are not
    /// there.
    ///
    /// # Errors
    /// When the database cannot.
    pub async fn open(pool: SqlitePool, instance: Option<String>) -> Result<Self, Error> {
        sqlx::raw_sql(SCHEMA).execute(&pool).await?;
        sqlx::query("INSERT OR IGNORE INTO secrets (name, value) VALUES ('cursor', ?)")
            .bind(Uuid::new_v4().to_string())
            .execute(&pool)
            .await?;
        let key: String = sqlx::query("SELECT value FROM secrets WHERE name = 'cursor'")
            .fetch_one(&pool)
            .await?
            .try_get(0)?;
        let cursor_key = key
            .parse()
            .map_err(|error: uuid::Error| Error::Row(error.into()))?;
        let outbox = Outbox::open(pool.clone()).await?;
        let store = Self {
            pool,
            outbox,
            cursor_key,
            instance,
        };
        store.end_own_leases().await?;
        Ok(store)
    }

    /// Where events wait to be published.
    pub fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// Begins to write: one transaction at a time.
    ///
    /// # Errors
    /// When the database cannot.
    pub async fn begin(&self) -> Result<Tx, Error> {
        Ok(self.pool.begin_with("BEGIN IMMEDIATE").await?)
    }

    /// Commits, and has the events that were added published.
    ///
    /// # Errors
    /// When the database cannot.
    pub async fn commit(&self, tx: Tx) -> Result<(), Error> {
        Ok(self.outbox.commit(tx).await?)
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn check(&self) -> Result<(), Error> {
        sqlx::query("SELECT 1").execute(&self.pool).await?;
        Ok(())
    }

    /// The reply to an earlier request under the same key.
    ///
    /// # Errors
    /// [`Error::KeyReused`] when that was another request.
    pub async fn find_reply<T: DeserializeOwned>(
        &self,
        once: &Once<'_>,
    ) -> Result<Option<T>, Error> {
        let mut connection = self.pool.acquire().await?;
        find_reply(&mut connection, once).await
    }

    /// The same inside a transaction, where it is certain.
    ///
    /// # Errors
    /// [`Error::KeyReused`] when that was another request.
    pub async fn find_reply_in<T: DeserializeOwned>(
        &self,
        tx: &mut SqliteConnection,
        once: &Once<'_>,
    ) -> Result<Option<T>, Error> {
        find_reply(tx, once).await
    }

    /// Remembers a reply in the transaction of the effect, and forgets those of yesterday.
    ///
    /// # Errors
    /// When the database cannot.
    pub async fn remember<T: Serialize>(
        &self,
        tx: &mut SqliteConnection,
        once: &Once<'_>,
        reply: &T,
        now: Timestamp,
    ) -> Result<(), Error> {
        sqlx::query("DELETE FROM idempotency WHERE at < ?")
            .bind(now.millis().saturating_sub(KEY_LIFETIME_MS))
            .execute(&mut *tx)
            .await?;
        sqlx::query(
            "INSERT INTO idempotency (user_id, pattern, key, request, reply, at)
             VALUES (?, ?, ?, ?, ?, ?)",
        )
        .bind(once.user_id.to_string())
        .bind(once.pattern)
        .bind(once.key)
        .bind(once.request.to_string())
        .bind(serde_json::to_string(reply)?)
        .bind(now.millis())
        .execute(tx)
        .await?;
        Ok(())
    }
}

async fn find_reply<T: DeserializeOwned>(
    connection: &mut SqliteConnection,
    once: &Once<'_>,
) -> Result<Option<T>, Error> {
    let row = sqlx::query(
        "SELECT request, reply FROM idempotency WHERE user_id = ? AND pattern = ? AND key = ?",
    )
    .bind(once.user_id.to_string())
    .bind(once.pattern)
    .bind(once.key)
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let (request, reply): (String, String) = (row.try_get(0)?, row.try_get(1)?);
    if request != once.request.to_string() {
        return Err(Error::KeyReused);
    }
    Ok(Some(serde_json::from_str(&reply)?))
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Store")
    }
}
