//! Orders: their events, and the view that follows from them.

use contracts::{
    OrderId, Page, PageRequest, Reason, Timestamp, UserId,
    order::{HistoryEntry, OrderStatus, OrderView},
};
use nestling::{Context, header};
use sqlx::{Connection as _, Row, SqliteConnection, sqlite::SqliteRow};
use uuid::Uuid;

use super::{Store, Tx};
use crate::{announce::announce, error::Error, fact::Fact, order::Order};

/// How many hexadecimal digits of its check a cursor carries.
const CHECK_DIGITS: usize = 16;

/// Which orders a list holds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filter {
    /// Whose; everybody's when absent.
    pub user_id: Option<UserId>,
    /// Where they stand.
    pub status: Option<OrderStatus>,
    /// Placed at this time or later.
    pub from: Option<Timestamp>,
    /// Placed before this time.
    pub to: Option<Timestamp>,
}

impl Store {
    /// Reads an order by replaying its events.
    ///
    /// # Errors
    /// [`Error::NoOrder`] when there are none.
    pub async fn order(&self, id: OrderId) -> Result<Order, Error> {
        let mut connection = self.pool.acquire().await?;
        load(&mut connection, id).await
    }

    /// The same inside a transaction, where nobody can append meanwhile.
    ///
    /// # Errors
    /// [`Error::NoOrder`] when there are none.
    pub async fn order_in(&self, tx: &mut Tx, id: OrderId) -> Result<Order, Error> {
        load(tx, id).await
    }

    /// Whether there is such an order.
    ///
    /// # Errors
    /// When the database cannot.
    pub async fn has_order(&self, tx: &mut Tx, id: OrderId) -> Result<bool, Error> {
        let row = sqlx::query("SELECT 1 FROM order_events WHERE order_id = ? AND version = 1")
            .bind(id.to_string())
            .fetch_optional(&mut **tx)
            .await?;
        Ok(row.is_some())
    }

    /// Appends facts after the version of `order`, and writes everything that follows from them:
    /// the view, the saga, the events for the others, the cart.
    ///
    /// # Errors
    /// [`Error::Conflict`] when somebody else has appended since `order` was read.
    pub async fn append(
        &self,
        tx: &mut Tx,
        order: &mut Order,
        facts: &[Fact],
        actor: Option<UserId>,
        now: Timestamp,
    ) -> Result<(), Error> {
        for fact in facts {
            order.apply(fact, now);
            insert_event(tx, order, fact, actor, now).await?;
            announce(&self.outbox, tx, order, fact, now).await?;
            if matches!(fact, Fact::Confirmed { .. }) {
                self.take_ordered(tx, &order.cart, &order.lines).await?;
            }
        }
        project(tx, &order.view()).await?;
        let cx = Context::current();
        let trace = cx.as_ref().and_then(|cx| cx.header(header::TRACEPARENT));
        self.plan(tx, order, trace, now).await
    }

    /// Reads the view of an order.
    ///
    /// # Errors
    /// [`Error::NoOrder`] when there is none.
    pub async fn view(&self, id: OrderId) -> Result<OrderView, Error> {
        let row = sqlx::query("SELECT body FROM order_view WHERE order_id = ?")
            .bind(id.to_string())
            .fetch_optional(&self.pool)
            .await?
            .ok_or(Error::NoOrder)?;
        read_view(&row)
    }

    /// Lists views, newest first.
    ///
    /// # Errors
    /// `validation` for a cursor that is not ours.
    pub async fn views(
        &self,
        filter: &Filter,
        page: &PageRequest,
    ) -> Result<Page<OrderView>, Error> {
        let (before, before_id) = match &page.cursor {
            Some(cursor) => self.read_cursor(cursor)?,
            None => (i64::MAX, String::from("p")),
        };
        // One more than asked for tells whether there is another page.
        let limit = i64::from(page.limit) + 1;
        // With the user in every row's condition and not in an `OR`, the index by user serves.
        let statement = match filter.user_id {
            Some(_) => {
                "SELECT body FROM order_view
                 WHERE user_id = ?1
                   AND (?2 IS NULL OR status = ?2) AND placed_at >= ?3 AND placed_at < ?4
                   AND (placed_at, order_id) < (?5, ?6)
                 ORDER BY placed_at DESC, order_id DESC LIMIT ?7"
            }
            None => {
                "SELECT body FROM order_view
                 WHERE ?1 IS NULL
                   AND (?2 IS NULL OR status = ?2) AND placed_at >= ?3 AND placed_at < ?4
                   AND (placed_at, order_id) < (?5, ?6)
                 ORDER BY placed_at DESC, order_id DESC LIMIT ?7"
            }
        };
        let rows = sqlx::query(statement)
            .bind(filter.user_id.map(|user_id| user_id.to_string()))
            .bind(filter.status.map(status_name).transpose()?)
            .bind(filter.from.map_or(i64::MIN, Timestamp::millis))
            .bind(filter.to.map_or(i64::MAX, Timestamp::millis))
            .bind(before)
            .bind(before_id)
            .bind(limit)
            .fetch_all(&self.pool)
            .await?;
        let mut items = rows.iter().map(read_view).collect::<Result<Vec<_>, _>>()?;
        let wanted = usize::try_from(page.limit).unwrap_or(usize::MAX);
        let has_more = items.len() > wanted;
        items.truncate(wanted);
        let next_cursor = items
            .last()
            .filter(|_| has_more)
            .map(|last| self.cursor_after(last));
        Ok(Page { items, next_cursor })
    }

    /// Reads what happened to an order after a version, oldest first.
    ///
    /// # Errors
    /// When the database cannot.
    pub async fn history(&self, id: OrderId, after: u64) -> Result<Vec<HistoryEntry>, Error> {
        let rows = sqlx::query(
            "SELECT version, kind, at, actor, data FROM order_events
             WHERE order_id = ? AND version > ? ORDER BY version",
        )
        .bind(id.to_string())
        .bind(i64::try_from(after).unwrap_or(i64::MAX))
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(read_entry).collect()
    }

    fn cursor_after(&self, view: &OrderView) -> String {
        let key = format!("{}.{}", view.placed_at.millis(), view.id);
        format!("{key}.{}", self.check_of(&key))
    }

    fn read_cursor(&self, cursor: &str) -> Result<(i64, String), Error> {
        let read = || {
            let (key, check) = cursor.rsplit_once('.')?;
            let (millis, id) = key.split_once('.')?;
            let is_ours = check == self.check_of(key);
            is_ours.then_some((millis.parse().ok()?, id.to_owned()))
        };
        let invalid = || Reason::Validation.error("the cursor is not one of ours");
        Ok(read().ok_or_else(invalid)?)
    }

    /// A keyed digest: cursors are made here or nowhere.
    fn check_of(&self, key: &str) -> String {
        let mut digest = Uuid::new_v5(&self.cursor_key, key.as_bytes())
            .simple()
            .to_string();
        digest.truncate(CHECK_DIGITS);
        digest
    }
}

/// What came of holding what is stored of orders against their events.
#[derive(Clone, Debug)]
pub struct Replayed {
    /// How many orders there are.
    pub orders: u64,
    /// Those whose view says something else than their events.
    pub diverged: Vec<OrderId>,
}

/// Replays the events of every order, and compares what they say with the view that is stored. Writes
/// nothing; orders may be placed meanwhile.
///
/// # Errors
/// When the database cannot, or holds what this version does not know.
pub async fn replay(connection: &mut SqliteConnection) -> Result<Replayed, Error> {
    let ids: Vec<String> = sqlx::query_scalar("SELECT DISTINCT order_id FROM order_events")
        .fetch_all(&mut *connection)
        .await?;
    let mut replayed = Replayed {
        orders: 0,
        diverged: Vec::new(),
    };
    for id in ids {
        let id: OrderId = id.parse()?;
        // Both at one moment.
        let mut tx = connection.begin().await?;
        let order = load(&mut tx, id).await?;
        let row = sqlx::query("SELECT body FROM order_view WHERE order_id = ?")
            .bind(id.to_string())
            .fetch_optional(&mut *tx)
            .await?;
        let stored = row.as_ref().map(read_view).transpose()?;
        if stored != Some(order.view()) {
            replayed.diverged.push(id);
        }
        replayed.orders += 1;
    }
    Ok(replayed)
}

async fn load(connection: &mut SqliteConnection, id: OrderId) -> Result<Order, Error> {
    let rows = sqlx::query("SELECT at, data FROM order_events WHERE order_id = ? ORDER BY version")
        .bind(id.to_string())
        .fetch_all(connection)
        .await?;
    if rows.is_empty() {
        return Err(Error::NoOrder);
    }
    let mut order = Order::blank(id);
    for row in rows {
        let (at, data): (i64, String) = (row.try_get(0)?, row.try_get(1)?);
        let fact: Fact = serde_json::from_str(&data)?;
        order.apply(&fact, Timestamp::from_millis(at));
    }
    Ok(order)
}

async fn insert_event(
    tx: &mut SqliteConnection,
    order: &Order,
    fact: &Fact,
    actor: Option<UserId>,
    now: Timestamp,
) -> Result<(), Error> {
    let inserted = sqlx::query(
        "INSERT INTO order_events (order_id, version, kind, at, actor, data)
         VALUES (?, ?, ?, ?, ?, ?)",
    )
    .bind(order.id.to_string())
    .bind(i64::try_from(order.version).unwrap_or(i64::MAX))
    .bind(fact.kind())
    .bind(now.millis())
    .bind(actor.map(|user_id| user_id.to_string()))
    .bind(serde_json::to_string(fact)?)
    .execute(tx)
    .await;
    match inserted {
        Ok(_) => Ok(()),
        Err(sqlx::Error::Database(error)) if error.is_unique_violation() => Err(Error::Conflict),
        Err(error) => Err(error.into()),
    }
}

async fn project(tx: &mut SqliteConnection, view: &OrderView) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO order_view (order_id, user_id, status, placed_at, body)
         VALUES (?, ?, ?, ?, ?)
         ON CONFLICT (order_id) DO UPDATE SET status = excluded.status, body = excluded.body",
    )
    .bind(view.id.to_string())
    .bind(view.user_id.to_string())
    .bind(status_name(view.status)?)
    .bind(view.placed_at.millis())
    .bind(serde_json::to_string(view)?)
    .execute(tx)
    .await?;
    Ok(())
}

/// The status as JSON has it.
fn status_name(status: OrderStatus) -> Result<String, Error> {
    Ok(serde_json::to_string(&status)?.trim_matches('"').to_owned())
}

fn read_view(row: &SqliteRow) -> Result<OrderView, Error> {
    Ok(serde_json::from_str(&row.try_get::<String, _>(0)?)?)
}

fn read_entry(row: &SqliteRow) -> Result<HistoryEntry, Error> {
    let (version, at, data): (i64, i64, String) =
        (row.try_get(0)?, row.try_get(2)?, row.try_get(4)?);
    let actor: Option<String> = row.try_get(3)?;
    let fact: Fact = serde_json::from_str(&data)?;
    Ok(HistoryEntry {
        version: version.unsigned_abs(),
        kind: row.try_get(1)?,
        at: Timestamp::from_millis(at),
        actor: actor.map(|text| text.parse()).transpose()?,
        summary: fact.summary(),
    })
}
