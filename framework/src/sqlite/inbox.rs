//! [`Inbox`]: which events had their effect.

use std::time::Duration;

use sqlx::{SqliteConnection, SqlitePool};

use super::{millis, millis_since_epoch};
use crate::{context::Context, envelope::header};

/// How long handled events are remembered: far longer than any bus redelivers.
const REMEMBERED: Duration = Duration::from_secs(7 * 24 * 3600);
/// How many old events are forgotten for each new one: more than one, so that there will be fewer.
const FORGOTTEN: i64 = 4;

const SCHEMA: [&str; 2] = [
    "CREATE TABLE IF NOT EXISTS inbox (
        handler TEXT NOT NULL,
        event_id TEXT NOT NULL,
        handled_at INTEGER NOT NULL,
        PRIMARY KEY (handler, event_id)
    ) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS inbox_by_age ON inbox (handled_at)",
];

/// Which events had their effect. An event is remembered for seven days.
#[derive(Clone, Copy, Debug)]
pub struct Inbox;

impl Inbox {
    /// Makes its table if it is not there: for a service without an [`Outbox`](super::Outbox), which
    /// makes it too.
    ///
    /// # Errors
    /// When the database cannot.
    pub async fn open(pool: &SqlitePool) -> Result<(), sqlx::Error> {
        for statement in SCHEMA {
            sqlx::query(statement).execute(pool).await?;
        }
        Ok(())
    }

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
        let Some(event_id) = cx.headers().get(header::EVENT_ID) else {
            return Ok(true);
        };
        let now = millis_since_epoch();
        let inserted = sqlx::query(
            "INSERT OR IGNORE INTO inbox (handler, event_id, handled_at) VALUES (?, ?, ?)",
        )
        .bind(handler)
        .bind(event_id)
        .bind(now)
        .execute(&mut *tx)
        .await?;
        let is_new = inserted.rows_affected() == 1;
        if is_new {
            forget_old(tx, now).await?;
        }
        Ok(is_new)
    }
}

/// Removes a few of those that are too old. Who adds cleans up, so that the table stays bounded in
/// every service, whatever else runs there.
async fn forget_old(tx: &mut SqliteConnection, now: i64) -> Result<(), sqlx::Error> {
    sqlx::query(
        "DELETE FROM inbox WHERE (handler, event_id) IN (
            SELECT handler, event_id FROM inbox WHERE handled_at < ? ORDER BY handled_at LIMIT ?
         )",
    )
    .bind(now.saturating_sub(millis(REMEMBERED)))
    .bind(FORGOTTEN)
    .execute(tx)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{envelope::Envelope, sqlite::open_in_memory};

    fn event(id: &str) -> Context {
        let mut envelope = Envelope::new("test.counted", "");
        envelope.headers.set(header::EVENT_ID, id.to_owned());
        Context::new(envelope, "memory")
    }

    #[tokio::test]
    async fn a_rolled_back_transaction_remembers_nothing() {
        let pool = open_in_memory().await.unwrap();
        Inbox::open(&pool).await.unwrap();
        let cx = event("e1");
        let mut tx = pool.begin().await.unwrap();
        assert!(Inbox::is_new(&mut tx, "h", &cx).await.unwrap());
        tx.rollback().await.unwrap();

        let mut tx = pool.begin().await.unwrap();
        assert!(Inbox::is_new(&mut tx, "h", &cx).await.unwrap());
        assert!(!Inbox::is_new(&mut tx, "h", &cx).await.unwrap());
        assert!(Inbox::is_new(&mut tx, "other", &cx).await.unwrap());
    }

    #[tokio::test]
    async fn new_events_make_old_ones_forgotten() {
        let pool = open_in_memory().await.unwrap();
        Inbox::open(&pool).await.unwrap();
        let mut connection = pool.acquire().await.unwrap();
        let old = millis_since_epoch() - millis(REMEMBERED);
        for (id, at) in [
            ("old", old - 1),
            ("older", old - 2),
            ("young", old + 600_000),
        ] {
            sqlx::query("INSERT INTO inbox VALUES ('h', ?, ?)")
                .bind(id)
                .bind(at)
                .execute(&mut *connection)
                .await
                .unwrap();
        }
        assert!(
            Inbox::is_new(&mut connection, "h", &event("new"))
                .await
                .unwrap()
        );
        let left: Vec<String> = sqlx::query_scalar("SELECT event_id FROM inbox ORDER BY event_id")
            .fetch_all(&mut *connection)
            .await
            .unwrap();
        assert_eq!(left, ["new", "young"]);
    }

    #[tokio::test]
    async fn forgetting_reads_no_more_than_it_removes() {
        let pool = open_in_memory().await.unwrap();
        Inbox::open(&pool).await.unwrap();
        let plan = sqlx::query_as::<_, (i64, i64, i64, String)>(
            "EXPLAIN QUERY PLAN SELECT handler, event_id FROM inbox
             WHERE handled_at < 1 ORDER BY handled_at LIMIT 4",
        );
        let plan = plan.fetch_all(&pool).await.unwrap();
        let steps: Vec<_> = plan.into_iter().map(|(.., step)| step).collect();
        assert_eq!(steps.len(), 1, "{steps:?}");
        assert!(steps[0].contains("inbox_by_age"), "{steps:?}");
    }
}
