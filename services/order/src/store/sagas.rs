//! Which orders have something to be done, when, and who does it.

use std::time::Duration;

use contracts::{OrderId, Timestamp};
use sqlx::{Row, SqliteConnection};
use uuid::Uuid;

use super::Store;
use crate::{
    error::Error,
    order::{Order, Step},
};

/// How many due sagas are looked up at once.
const BATCH: i64 = 256;

/// The right to run the saga of an order, until it ends.
#[derive(Clone, Debug)]
pub struct Lease {
    /// Of which order.
    pub order_id: OrderId,
    token: String,
}

/// A saga that was claimed.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The right to run it.
    pub lease: Lease,
    /// How often its step was tried and failed.
    pub tries: u32,
    /// The trace it belongs to.
    pub trace: Option<String>,
}

impl Store {
    /// Ends the leases that this replica left behind when it crashed. Two replicas that run at the
    /// same time have different names.
    pub(super) async fn end_own_leases(&self) -> Result<(), Error> {
        let Some(instance) = &self.instance else {
            return Ok(());
        };
        sqlx::query(
            "UPDATE saga SET lease = NULL, lease_until = 0
             WHERE substr(lease, 1, length(?1) + 1) = ?1 || '/'",
        )
        .bind(instance)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Writes what the order's saga does next. A lease on it stays: whoever runs it finds out when
    /// it appends, and goes on with what is next then.
    pub(super) async fn plan(
        &self,
        tx: &mut SqliteConnection,
        order: &Order,
        trace: Option<&str>,
        now: Timestamp,
    ) -> Result<(), Error> {
        let order_id = order.id.to_string();
        let Some(step) = order.next_step() else {
            sqlx::query("DELETE FROM saga WHERE order_id = ?")
                .bind(order_id)
                .execute(tx)
                .await?;
            return Ok(());
        };
        let next_at = match step {
            Step::AwaitPayment => order.deadline,
            _ => now,
        };
        sqlx::query(
            "INSERT INTO saga (order_id, step, tries, next_at, deadline, trace)
             VALUES (?, ?, 0, ?, ?, ?)
             ON CONFLICT (order_id) DO UPDATE SET
                 step = excluded.step, tries = 0, next_at = excluded.next_at,
                 deadline = excluded.deadline, trace = COALESCE(excluded.trace, trace)",
        )
        .bind(order_id)
        .bind(step.as_str())
        .bind(next_at.millis())
        .bind(order.step_deadline().map(Timestamp::millis))
        .bind(trace)
        .execute(tx)
        .await?;
        Ok(())
    }

    /// The orders whose sagas are due and run by nobody, those that wait longest first.
    ///
    /// # Errors
    /// When the database cannot.
    pub async fn due_sagas(&self, now: Timestamp) -> Result<Vec<OrderId>, Error> {
        let rows = sqlx::query(
            "SELECT order_id FROM saga WHERE next_at <= ?1 AND lease_until <= ?1
             ORDER BY next_at LIMIT ?2",
        )
        .bind(now.millis())
        .bind(BATCH)
        .fetch_all(&self.pool)
        .await?;
        let read = |row: &sqlx::sqlite::SqliteRow| -> Result<OrderId, Error> {
            Ok(row.try_get::<String, _>(0)?.parse()?)
        };
        rows.iter().map(read).collect()
    }

    /// Takes the lease of a due saga, unless somebody has it.
    ///
    /// # Errors
    /// When the database cannot.
    pub async fn claim(
        &self,
        order_id: OrderId,
        now: Timestamp,
        lease: Duration,
    ) -> Result<Option<Claim>, Error> {
        let holder = self.instance.as_deref().unwrap_or_default();
        let token = format!("{holder}/{}", Uuid::new_v4().simple());
        let row = sqlx::query(
            "UPDATE saga SET lease = ?3, lease_until = ?4
             WHERE order_id = ?1 AND next_at <= ?2 AND lease_until <= ?2
             RETURNING tries, trace",
        )
        .bind(order_id.to_string())
        .bind(now.millis())
        .bind(&token)
        .bind(now.plus(lease).millis())
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let lease = Lease { order_id, token };
        Ok(Some(Claim {
            lease,
            tries: row.try_get(0)?,
            trace: row.try_get(1)?,
        }))
    }

    /// Extends the lease; false when it was lost or the saga is over.
    ///
    /// # Errors
    /// When the database cannot.
    pub async fn renew(
        &self,
        lease: &Lease,
        now: Timestamp,
        duration: Duration,
    ) -> Result<bool, Error> {
        let renewed =
            sqlx::query("UPDATE saga SET lease_until = ? WHERE order_id = ? AND lease = ?")
                .bind(now.plus(duration).millis())
                .bind(lease.order_id.to_string())
                .bind(&lease.token)
                .execute(&self.pool)
                .await?;
        Ok(renewed.rows_affected() == 1)
    }

    /// Puts the step off, unless the order has moved on since it was read.
    ///
    /// # Errors
    /// When the database cannot.
    pub async fn postpone(
        &self,
        lease: &Lease,
        order: &Order,
        tries: u32,
        next_at: Timestamp,
    ) -> Result<(), Error> {
        sqlx::query(
            "UPDATE saga SET tries = ?3, next_at = ?4
             WHERE order_id = ?1 AND lease = ?2
               AND ?5 = (SELECT MAX(version) FROM order_events WHERE order_id = ?1)",
        )
        .bind(lease.order_id.to_string())
        .bind(&lease.token)
        .bind(tries)
        .bind(next_at.millis())
        .bind(i64::try_from(order.version).unwrap_or(i64::MAX))
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Gives the lease back; true when the saga is due again already.
    ///
    /// # Errors
    /// When the database cannot.
    pub async fn give_back(&self, lease: &Lease, now: Timestamp) -> Result<bool, Error> {
        let row = sqlx::query(
            "UPDATE saga SET lease = NULL, lease_until = 0 WHERE order_id = ? AND lease = ?
             RETURNING next_at",
        )
        .bind(lease.order_id.to_string())
        .bind(&lease.token)
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else { return Ok(false) };
        Ok(row.try_get::<i64, _>(0)? <= now.millis())
    }

    /// Makes a saga that waits for payment's answer due at once.
    ///
    /// # Errors
    /// When the database cannot.
    pub async fn hurry(&self, order_id: OrderId, now: Timestamp) -> Result<(), Error> {
        sqlx::query(
            "UPDATE saga SET next_at = ?2
             WHERE order_id = ?1 AND next_at > ?2 AND step = 'authorize'",
        )
        .bind(order_id.to_string())
        .bind(now.millis())
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}
