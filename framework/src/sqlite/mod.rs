//! Events and the database, in one transaction: [`Outbox`] and [`Inbox`] over SQLite; and
//! [`DeadLetterTable`], for those that a service gives up.
//!
//! A service that changes its state and then emits an event can crash in between; one that handles
//! an event and then acknowledges it can crash in between too. So the event is written to the
//! outbox in the transaction of the change and published afterwards, by a [`Relay`], until the bus
//! has acknowledged it; and the id of a handled event is written to the inbox in the transaction of
//! its effect, so that a second delivery finds it and does nothing.
//!
//! SQLite is opened so that a crash of the process loses nothing that was committed; a loss of power may
//! take back the last transactions (`synchronous = NORMAL`), with what was published or acknowledged
//! for them meanwhile.
//!
//! Replicas of a service that share a database file each run a relay: events of one key keep their
//! order whichever of them publishes. [`Outbox::gauges`] shows how far publishing is behind.
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

mod inbox;
mod outbox;
mod relay;

use std::{
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use sqlx::{
    SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use tokio::time::{Instant, sleep};

pub use self::{
    inbox::Inbox,
    outbox::{Lag, Outbox},
    relay::Relay,
};
use crate::error::RpcError;
pub use crate::transport::sqlite::DeadLetterTable;

/// How long writers queue.
const BUSY: Duration = Duration::from_secs(5);
/// The longest pause before a file is opened again that somebody else is just making.
const OPENING_AGAIN: Duration = Duration::from_millis(20);

/// Opens a service's database file, making it if it is not there: write-ahead log, foreign keys on,
/// writers queue for up to five seconds. Replicas may open one at the same time.
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
        .busy_timeout(BUSY);
    let deadline = Instant::now() + BUSY;
    loop {
        let pool = SqlitePoolOptions::new().max_connections(8);
        match pool.connect_with(options.clone()).await {
            // SQLite lets nobody queue for the change of a new file to write-ahead logging.
            Err(error) if is_busy(&error) && Instant::now() < deadline => {
                sleep(OPENING_AGAIN.mul_f64(fastrand::f64())).await;
            }
            opened => return opened,
        }
    }
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
        if is_busy(&error) {
            Self::unavailable("the database is busy").with_source(error)
        } else {
            Self::internal(error)
        }
    }
}

fn is_busy(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::PoolTimedOut => true,
        // SQLITE_BUSY and its extended codes share the low byte 5.
        sqlx::Error::Database(database) => database
            .code()
            .and_then(|code| code.parse::<u32>().ok())
            .is_some_and(|code| code & 0xff == 5),
        _ => false,
    }
}

fn millis_since_epoch() -> i64 {
    let elapsed = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    millis(elapsed)
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
