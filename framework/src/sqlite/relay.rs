//! [`Relay`]: publishes what an [`Outbox`] holds, beside any number of others.
//!
//! The events of one key are a lane, and so is an event without one. A relay publishes in rounds: one
//! transaction takes the oldest events together with a lease on their lanes, then the lanes are
//! published side by side, and the transaction of the next round removes what was published and gives
//! the lanes back. Others leave leased lanes alone until the lease has run out, which it does when a
//! relay has died; one that lives renews it. A relay whose lease has run out, because it was paused,
//! finishes the publication it is at and begins no other.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use super::{Lag, Outbox, millis, millis_since_epoch};
use crate::{
    client::Client, contract::Guarantee, envelope::header, error::RpcError, transport::Task,
};

/// How many events one round takes.
const BATCH: i64 = 256;
/// How long one publication may take.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(10);
/// After how long a round begins no more publications: the lanes that are done wait for it.
const ROUND: Duration = Duration::from_secs(2);
/// How long a lane belongs to a relay that is not heard of.
const LEASE: Duration = Duration::from_secs(8);
/// How often a relay is heard of during a round.
const RENEWAL: Duration = Duration::from_secs(2);
/// How often a relay looks without being woken: for events of another process.
const IDLE: Duration = Duration::from_secs(1);
/// The longest pause after failures.
const MOST_BACKOFF: Duration = Duration::from_secs(5);
/// How many lanes that cannot be published are passed over before the relay waits for them.
const MOST_STUCK: usize = 1024;
/// How often the lag is looked at.
const LOOK: Duration = Duration::from_secs(5);
/// How long an event may wait before somebody should know.
const LATE: Duration = Duration::from_secs(60);

/// Publishes an [`Outbox`] until it is dropped.
///
/// It warns in the log when the oldest event has waited for over a minute, once, and says so when it
/// has caught up.
#[derive(Debug)]
#[must_use = "nothing is published once it is dropped"]
pub struct Relay {
    _task: Task,
}

impl Relay {
    pub(super) fn start(outbox: Outbox, bus: Client) -> Self {
        Self {
            _task: Task::spawn(Publisher::new(outbox, bus).run()),
        }
    }
}

/// What a relay may take, oldest first. To bind: stuck lanes as JSON, the relay, now, until when a
/// lease can last, and how many.
macro_rules! waiting {
    ($columns:literal) => {
        concat!(
            "SELECT ",
            $columns,
            " FROM outbox
             WHERE COALESCE(key, event_id) NOT IN (SELECT value FROM json_each(?))
               AND COALESCE(key, event_id) NOT IN (
                   SELECT lane FROM outbox_leases WHERE holder <> ? AND until > ? AND until <= ?
               )
             ORDER BY position LIMIT ?"
        )
    };
}

struct Publisher {
    outbox: Outbox,
    bus: Client,
    /// The name its leases are in.
    holder: String,
    /// It may have leases.
    holds: bool,
    /// What was published and is still in the table.
    published: Vec<i64>,
    /// Lanes whose first event could not be published, until they are tried again. Meanwhile the
    /// others go on.
    stuck: HashSet<String>,
    retry_at: Instant,
    failures: u32,
}

impl Publisher {
    fn new(outbox: Outbox, bus: Client) -> Self {
        Self {
            outbox,
            bus,
            holder: Uuid::new_v4().simple().to_string(),
            holds: false,
            published: Vec::new(),
            stuck: HashSet::new(),
            retry_at: Instant::now(),
            failures: 0,
        }
    }

    async fn run(mut self) {
        let mut unread = 0;
        let mut watch = Watch::default();
        let mut looked = Instant::now();
        loop {
            match self.round().await {
                Ok(found) => {
                    unread = 0;
                    if found == 0 {
                        self.rest().await;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "outbox: its rows cannot be read or removed");
                    unread += 1;
                    sleep(backoff(unread)).await;
                }
            }
            if looked.elapsed() >= LOOK {
                looked = Instant::now();
                watch.look(&self.outbox).await;
            }
        }
    }

    /// Waits until there may be something to do.
    async fn rest(&self) {
        let pause = match self.stuck.is_empty() {
            true => IDLE,
            false => IDLE.min(self.retry_at.saturating_duration_since(Instant::now())),
        };
        // Whether woken or not makes no difference.
        timeout(pause, self.outbox.added.notified()).await.ok();
    }

    /// Publishes the oldest events that nobody else has and that are not stuck; returns how many it
    /// looked at.
    async fn round(&mut self) -> Result<usize, RpcError> {
        if self.retry_at <= Instant::now() {
            self.stuck.clear();
        }
        let Some(Claim { lanes, lease }) = self.claim().await? else {
            return Ok(0);
        };
        let found = lanes.values().map(Vec::len).sum();
        let publishing = lanes.into_iter().map(async |(lane, events)| {
            let (positions, error) = publish_lane(&self.bus, events, &lease).await;
            (positions, error.map(|error| (lane, error)))
        });
        let ends = tokio::select! {
            ends = join_all(publishing) => ends,
            never = self.renew(&lease) => match never {},
        };
        let mut failed = Vec::new();
        for (positions, failure) in ends {
            self.published.extend(positions);
            failed.extend(failure);
        }
        self.note(failed);
        Ok(found)
    }

    /// Remembers which lanes are stuck, and when to try them again.
    fn note(&mut self, failed: Vec<(String, RpcError)>) {
        if let Some((lane, error)) = failed.first() {
            let lanes = failed.len();
            tracing::warn!(%error, lane, lanes, "outbox: events could not be published yet");
        }
        if self.stuck.is_empty() {
            self.failures = match failed.is_empty() {
                true => 0,
                false => self.failures.saturating_add(1),
            };
            self.retry_at = Instant::now() + backoff(self.failures);
        }
        self.stuck.extend(failed.into_iter().map(|(lane, _)| lane));
    }

    /// Ends the last round and begins the next; `None` if there is nothing to do.
    async fn claim(&mut self) -> Result<Option<Claim>, RpcError> {
        let is_full = self.stuck.len() >= MOST_STUCK;
        if !self.holds && (is_full || !self.has_work().await?) {
            return Ok(None);
        }
        let mut tx = self.outbox.pool.begin_with("BEGIN IMMEDIATE").await?;
        let (began, now) = (Instant::now(), millis_since_epoch());
        self.end_round(&mut tx, now).await?;
        let mut lanes: HashMap<String, Vec<Stored>> = HashMap::new();
        if !is_full {
            let query = waiting!("position, event_id, pattern, key, headers, payload");
            let query = sqlx::query(query).bind(self.stuck()?).bind(&self.holder);
            let query = query.bind(now).bind(longest(now));
            for row in query.bind(BATCH).fetch_all(&mut *tx).await? {
                let stored = Stored::read(&row)?;
                lanes.entry(stored.lane()).or_default().push(stored);
            }
        }
        self.lease(&mut tx, lanes.keys(), now).await?;
        tx.commit().await?;
        self.published.clear();
        self.holds = !lanes.is_empty();
        let lease = Lease::new(lanes.len(), began);
        Ok(self.holds.then_some(Claim { lanes, lease }))
    }

    /// Whether a round would find something: asked before a transaction that writes.
    async fn has_work(&self) -> Result<bool, RpcError> {
        let now = millis_since_epoch();
        let found = sqlx::query(waiting!("1"))
            .bind(self.stuck()?)
            .bind(&self.holder)
            .bind(now)
            .bind(longest(now))
            .bind(1)
            .fetch_optional(&self.outbox.pool)
            .await?;
        Ok(found.is_some())
    }

    /// Removes what was published, and the leases that are ours or have run out.
    async fn end_round(&self, tx: &mut SqliteConnection, now: i64) -> Result<(), RpcError> {
        let published = serde_json::to_string(&self.published).map_err(RpcError::internal)?;
        sqlx::query("DELETE FROM outbox WHERE position IN (SELECT value FROM json_each(?))")
            .bind(published)
            .execute(&mut *tx)
            .await?;
        sqlx::query("DELETE FROM outbox_leases WHERE holder = ? OR until <= ? OR until > ?")
            .bind(&self.holder)
            .bind(now)
            .bind(longest(now))
            .execute(tx)
            .await?;
        Ok(())
    }

    async fn lease(
        &self,
        tx: &mut SqliteConnection,
        lanes: impl Iterator<Item = &String>,
        now: i64,
    ) -> Result<(), RpcError> {
        let lanes: Vec<_> = lanes.collect();
        sqlx::query(
            "INSERT INTO outbox_leases (lane, holder, until) SELECT value, ?, ? FROM json_each(?)",
        )
        .bind(&self.holder)
        .bind(now.saturating_add(millis(LEASE)))
        .bind(serde_json::to_string(&lanes).map_err(RpcError::internal)?)
        .execute(tx)
        .await?;
        Ok(())
    }

    /// Keeps the lanes of a round for as long as it takes.
    async fn renew(&self, lease: &Lease) -> Infallible {
        loop {
            sleep(RENEWAL).await;
            if let Err(error) = self.renew_once(lease).await {
                tracing::warn!(%error, "outbox: a lease could not be renewed");
            }
        }
    }

    async fn renew_once(&self, lease: &Lease) -> Result<(), sqlx::Error> {
        let (began, now) = (Instant::now(), millis_since_epoch());
        let renewed =
            sqlx::query("UPDATE outbox_leases SET until = ? WHERE holder = ? AND until > ?")
                .bind(now.saturating_add(millis(LEASE)))
                .bind(&self.holder)
                .bind(now)
                .execute(&self.outbox.pool)
                .await?;
        if renewed.rows_affected() == lease.lanes {
            lease.end_at(began + LEASE);
        } else {
            tracing::warn!("outbox: this relay was away for so long that others took over");
            lease.end_at(began);
        }
        Ok(())
    }

    fn stuck(&self) -> Result<String, RpcError> {
        serde_json::to_string(&self.stuck).map_err(RpcError::internal)
    }
}

/// Until when a lease can last: one that lasts longer was made before the clock was set back, and does
/// not count. Another's clock may have been read a little later.
fn longest(now: i64) -> i64 {
    now.saturating_add(2 * millis(LEASE))
}

/// What one round has to do, and may do alone.
struct Claim {
    lanes: HashMap<String, Vec<Stored>>,
    lease: Lease,
}

/// The right to publish the events of some lanes, while it lasts.
struct Lease {
    lanes: u64,
    round_ends: Instant,
    ends: Mutex<Instant>,
}

impl Lease {
    fn new(lanes: usize, began: Instant) -> Self {
        Self {
            lanes: lanes as u64,
            round_ends: Instant::now() + ROUND,
            ends: Mutex::new(began + LEASE),
        }
    }

    fn end_at(&self, end: Instant) {
        *self.ends.lock().unwrap_or_else(PoisonError::into_inner) = end;
    }

    /// Whether one more publication may begin.
    fn lasts(&self) -> bool {
        let ends = *self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        Instant::now() < ends.min(self.round_ends)
    }
}

/// Publishes events one after the other; the first that fails keeps those behind it.
async fn publish_lane(
    bus: &Client,
    lane: Vec<Stored>,
    lease: &Lease,
) -> (Vec<i64>, Option<RpcError>) {
    let mut published = Vec::new();
    for stored in lane {
        if !lease.lasts() {
            break;
        }
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
    fn read(row: &SqliteRow) -> Result<Self, RpcError> {
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

    fn lane(&self) -> String {
        self.key.as_ref().unwrap_or(&self.event_id).clone()
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

/// Says once that events wait for too long, and once that they do no more.
#[derive(Default)]
struct Watch {
    is_late: bool,
}

impl Watch {
    async fn look(&mut self, outbox: &Outbox) {
        let lag = match outbox.lag().await {
            Ok(lag) => lag,
            Err(error) => return tracing::warn!(%error, "outbox: its lag cannot be measured"),
        };
        let (waiting, oldest) = (lag.waiting, lag.oldest);
        match self.turns(lag) {
            Some(true) => {
                tracing::warn!(waiting, ?oldest, "outbox: events wait to be published");
            }
            Some(false) => tracing::info!(waiting, ?oldest, "outbox: caught up"),
            None => {}
        }
    }

    /// Whether it is late or has caught up, where that is news.
    fn turns(&mut self, lag: Lag) -> Option<bool> {
        let is_late = match self.is_late {
            true => lag.oldest > LATE / 2,
            false => lag.oldest > LATE,
        };
        (std::mem::replace(&mut self.is_late, is_late) != is_late).then_some(is_late)
    }
}

fn backoff(failures: u32) -> Duration {
    let delay = Duration::from_millis(100)
        .saturating_mul(1 << failures.min(6))
        .min(MOST_BACKOFF);
    delay.mul_f64(0.5 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests;
