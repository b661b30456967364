//! The warehouse: reservations are one transaction each, and the database itself refuses to promise
//! more than there is.

use std::{collections::BTreeMap, time::Duration};

use contracts::{
    Fields, Meta, OrderId, ProductId, Timestamp,
    order::OrderConfirmed,
    product::{
        Quantity, Released, Reservation, ReserveStock, ShortLine, Stock, StockChanged, StockExpired,
    },
};
use nestling::{
    Context, RpcError,
    sqlite::{Inbox, Outbox},
};
use sqlx::{Row, SqliteConnection, SqlitePool};

/// How often expired reservations are looked for.
const SWEEP: Duration = Duration::from_secs(1);
/// How long reservations are held at least after a start.
const GRACE: Duration = Duration::from_secs(60);

/// Stock and reservations.
#[derive(Clone, Debug)]
pub(crate) struct StockStore {
    pool: SqlitePool,
    outbox: Outbox,
}

/// What is known of an order's reservation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Held,
    Committed,
    Released,
    Expired,
}

impl State {
    fn as_str(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Committed => "committed",
            Self::Released => "released",
            Self::Expired => "expired",
        }
    }

    fn parse(text: &str) -> Result<Self, RpcError> {
        [Self::Held, Self::Committed, Self::Released, Self::Expired]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| RpcError::internal("unknown state of a reservation"))
    }
}

impl StockStore {
    pub(crate) fn new(pool: SqlitePool, outbox: Outbox) -> Self {
        Self { pool, outbox }
    }

    pub(crate) async fn get(&self, products: &[ProductId]) -> Result<Vec<Stock>, RpcError> {
        let mut fields = Fields::new();
        fields.check(
            products.len() <= 100,
            "/product_ids",
            "length",
            "at most 100",
        );
        fields.finish()?;
        let mut connection = self.pool.acquire().await?;
        let mut stock = Vec::with_capacity(products.len());
        for product in products {
            stock.extend(read(&mut connection, *product).await?);
        }
        Ok(stock)
    }

    /// All lines or none; the same answer while it is held.
    pub(crate) async fn reserve(&self, request: &ReserveStock) -> Result<Reservation, RpcError> {
        let mut fields = Fields::new();
        fields.check(
            !request.lines.is_empty(),
            "/lines",
            "length",
            "at least one line",
        );
        fields.check(
            request.lines.len() <= 100,
            "/lines",
            "length",
            "at most 100",
        );
        fields.check(
            request.lines.iter().all(|line| line.qty > 0),
            "/lines",
            "range",
            "at least 1",
        );
        fields.finish()?;
        let lines = merged(&request.lines);
        let expires_at = Timestamp::now().plus(Duration::from_secs(u64::from(request.ttl_s)));
        let order_id = request.order_id;

        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        match state(&mut tx, order_id).await? {
            Some(State::Released) => return Ok(Reservation::Released),
            Some(State::Committed) => return Ok(Reservation::Reserved { expires_at }),
            Some(State::Held) => {
                set_state(&mut tx, order_id, State::Held, expires_at).await?;
                tx.commit().await?;
                return Ok(Reservation::Reserved { expires_at });
            }
            Some(State::Expired) | None => {}
        }
        if let Some(short) = hold(&mut tx, &lines).await? {
            // The transaction is dropped, and with it whatever was held so far.
            return Ok(Reservation::Short { lines: short });
        }
        set_state(&mut tx, order_id, State::Held, expires_at).await?;
        sqlx::query("DELETE FROM reservation_lines WHERE order_id = ?")
            .bind(order_id.to_string())
            .execute(&mut *tx)
            .await?;
        for (product, qty) in &lines {
            sqlx::query(
                "INSERT INTO reservation_lines (order_id, product_id, qty) VALUES (?, ?, ?)",
            )
            .bind(order_id.to_string())
            .bind(product.to_string())
            .bind(qty)
            .execute(&mut *tx)
            .await?;
        }
        self.announce(&mut tx, lines.keys().copied()).await?;
        self.outbox.commit(tx).await?;
        Ok(Reservation::Reserved { expires_at })
    }

    /// Frees what is held, puts back what is committed, remembers what is unknown.
    pub(crate) async fn release(
        &self,
        order_id: OrderId,
        reason: &str,
    ) -> Result<Released, RpcError> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let before = state(&mut tx, order_id).await?;
        let lines = match before {
            Some(State::Held | State::Committed) => lines_of(&mut tx, order_id).await?,
            Some(State::Released | State::Expired) | None => Vec::new(),
        };
        for (product, qty) in &lines {
            if before == Some(State::Held) {
                free(&mut tx, *product, *qty).await?;
            } else {
                move_stock(&mut tx, *product, i64::from(*qty), reason, order_id).await?;
            }
        }
        set_state(&mut tx, order_id, State::Released, Timestamp::now()).await?;
        self.announce(&mut tx, lines.iter().map(|(product, _)| *product))
            .await?;
        self.outbox.commit(tx).await?;
        Ok(Released {
            released: u32::try_from(lines.len()).unwrap_or(u32::MAX),
        })
    }

    /// A confirmed order takes its goods out of the warehouse, once.
    pub(crate) async fn commit(
        &self,
        event: &OrderConfirmed,
        cx: &Context,
    ) -> Result<(), RpcError> {
        let order_id = event.order_id;
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        if !Inbox::is_new(&mut tx, "product.commit_stock", cx).await? {
            return Ok(());
        }
        let held = match state(&mut tx, order_id).await? {
            Some(State::Held) => lines_of(&mut tx, order_id).await?,
            // Released by a cancellation that overtook this, or committed already.
            Some(State::Released | State::Committed) => return Ok(tx.commit().await?),
            // Too late for the reservation: what is there now is taken, if it is enough.
            Some(State::Expired) => {
                let lines = lines_of(&mut tx, order_id).await?;
                if let Some(short) = hold(&mut tx, &lines.iter().copied().collect()).await? {
                    return Err(RpcError::unavailable(format!(
                        "order {order_id} was confirmed after its reservation expired, and {} lines are short",
                        short.len()
                    )));
                }
                lines
            }
            None => {
                return Err(RpcError::unavailable(
                    "the order's reservation is not known yet",
                ));
            }
        };
        for (product, qty) in &held {
            free(&mut tx, *product, *qty).await?;
            move_stock(&mut tx, *product, -i64::from(*qty), "order", order_id).await?;
        }
        set_state(&mut tx, order_id, State::Committed, Timestamp::now()).await?;
        self.announce(&mut tx, held.iter().map(|(product, _)| *product))
            .await?;
        Ok(self.outbox.commit(tx).await?)
    }

    /// Frees reservations that were not used in time, for as long as the service runs.
    pub(crate) async fn sweep(self) {
        // While the service was down nobody could use what is held: orders that were confirmed
        // meanwhile get their goods first.
        let grace = Timestamp::now().plus(GRACE);
        let extended = sqlx::query(
            "UPDATE reservations SET expires_at = MAX(expires_at, ?) WHERE state = 'held'",
        );
        if let Err(error) = extended.bind(grace.millis()).execute(&self.pool).await {
            tracing::warn!(%error, "reservations could not be extended");
        }
        loop {
            tokio::time::sleep(SWEEP).await;
            if let Err(error) = self.expire(Timestamp::now()).await {
                tracing::warn!(?error, "expired reservations could not be freed");
            }
        }
    }

    pub(crate) async fn expire(&self, now: Timestamp) -> Result<usize, RpcError> {
        let expired: Vec<String> = sqlx::query_scalar(
            "SELECT order_id FROM reservations WHERE state = 'held' AND expires_at <= ? LIMIT 100",
        )
        .bind(now.millis())
        .fetch_all(&self.pool)
        .await?;
        let mut freed = 0;
        for order in expired {
            let order_id: OrderId = order.parse().map_err(RpcError::internal)?;
            let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
            // It may have been extended or used since it was found.
            let due = "SELECT 1 FROM reservations WHERE order_id = ? AND state = 'held' AND expires_at <= ?";
            let due = sqlx::query(due).bind(&order).bind(now.millis());
            if due.fetch_optional(&mut *tx).await?.is_none() {
                continue;
            }
            let lines = lines_of(&mut tx, order_id).await?;
            for (product, qty) in &lines {
                free(&mut tx, *product, *qty).await?;
            }
            set_state(&mut tx, order_id, State::Expired, now).await?;
            let meta = Meta {
                at: now,
                version: 1,
            };
            self.outbox
                .add(&mut tx, &StockExpired { order_id, meta })
                .await?;
            self.announce(&mut tx, lines.iter().map(|(product, _)| *product))
                .await?;
            self.outbox.commit(tx).await?;
            freed += 1;
        }
        Ok(freed)
    }

    async fn announce(
        &self,
        tx: &mut SqliteConnection,
        products: impl Iterator<Item = ProductId>,
    ) -> Result<(), RpcError> {
        for product_id in products {
            if let Some(stock) = read(tx, product_id).await? {
                let meta = Meta {
                    at: Timestamp::now(),
                    version: stock.version,
                };
                let event = StockChanged {
                    product_id,
                    available: stock.available,
                    meta,
                };
                self.outbox.add(tx, &event).await?;
            }
        }
        Ok(())
    }
}

/// One quantity per product, in one order for everybody.
fn merged(lines: &[Quantity]) -> BTreeMap<ProductId, u32> {
    let mut merged = BTreeMap::new();
    for line in lines {
        let qty: &mut u32 = merged.entry(line.product_id).or_default();
        *qty = qty.saturating_add(line.qty);
    }
    merged
}

/// Holds every line, or says which are short.
async fn hold(
    tx: &mut SqliteConnection,
    lines: &BTreeMap<ProductId, u32>,
) -> Result<Option<Vec<ShortLine>>, RpcError> {
    let mut short = Vec::new();
    for (product, qty) in lines {
        let held = sqlx::query(
            "UPDATE stock SET reserved = reserved + ?, version = version + 1
             WHERE product_id = ? AND on_hand - reserved >= ?",
        )
        .bind(qty)
        .bind(product.to_string())
        .bind(qty)
        .execute(&mut *tx)
        .await?;
        if held.rows_affected() == 0 {
            let available = read(tx, *product).await?.map_or(0, |stock| stock.available);
            short.push(ShortLine {
                product_id: *product,
                requested: *qty,
                available,
            });
        }
    }
    Ok((!short.is_empty()).then_some(short))
}

async fn free(tx: &mut SqliteConnection, product: ProductId, qty: u32) -> Result<(), RpcError> {
    sqlx::query(
        "UPDATE stock SET reserved = reserved - ?, version = version + 1 WHERE product_id = ?",
    )
    .bind(qty)
    .bind(product.to_string())
    .execute(tx)
    .await?;
    Ok(())
}

/// Changes what is on hand, with a line in the book of movements.
async fn move_stock(
    tx: &mut SqliteConnection,
    product: ProductId,
    delta: i64,
    reason: &str,
    order: OrderId,
) -> Result<(), RpcError> {
    sqlx::query(
        "UPDATE stock SET on_hand = on_hand + ?, version = version + 1 WHERE product_id = ?",
    )
    .bind(delta)
    .bind(product.to_string())
    .execute(&mut *tx)
    .await?;
    sqlx::query(
        "INSERT INTO stock_movements (product_id, delta, reason, ref, at) VALUES (?, ?, ?, ?, ?)",
    )
    .bind(product.to_string())
    .bind(delta)
    .bind(reason)
    .bind(order.to_string())
    .bind(Timestamp::now().millis())
    .execute(tx)
    .await?;
    Ok(())
}

async fn read(
    connection: &mut SqliteConnection,
    product_id: ProductId,
) -> Result<Option<Stock>, RpcError> {
    let row = sqlx::query("SELECT on_hand, reserved, version FROM stock WHERE product_id = ?")
        .bind(product_id.to_string())
        .fetch_optional(connection)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let (on_hand, reserved): (u32, u32) = (row.try_get(0)?, row.try_get(1)?);
    let version = row.try_get::<i64, _>(2)?.unsigned_abs();
    Ok(Some(Stock {
        product_id,
        on_hand,
        reserved,
        available: on_hand - reserved,
        version,
    }))
}

async fn state(tx: &mut SqliteConnection, order: OrderId) -> Result<Option<State>, RpcError> {
    let state: Option<String> =
        sqlx::query_scalar("SELECT state FROM reservations WHERE order_id = ?")
            .bind(order.to_string())
            .fetch_optional(tx)
            .await?;
    state.as_deref().map(State::parse).transpose()
}

async fn set_state(
    tx: &mut SqliteConnection,
    order: OrderId,
    state: State,
    expires_at: Timestamp,
) -> Result<(), RpcError> {
    sqlx::query(
        "INSERT INTO reservations (order_id, state, expires_at) VALUES (?, ?, ?)
         ON CONFLICT (order_id) DO UPDATE SET state = excluded.state, expires_at = excluded.expires_at",
    )
    .bind(order.to_string())
    .bind(state.as_str())
    .bind(expires_at.millis())
    .execute(tx)
    .await?;
    Ok(())
}

async fn lines_of(
    tx: &mut SqliteConnection,
    order: OrderId,
) -> Result<Vec<(ProductId, u32)>, RpcError> {
    let rows = sqlx::query(
        "SELECT product_id, qty FROM reservation_lines WHERE order_id = ? ORDER BY product_id",
    )
    .bind(order.to_string())
    .fetch_all(tx)
    .await?;
    let line = |row: &sqlx::sqlite::SqliteRow| {
        let product = row
            .try_get::<String, _>(0)?
            .parse()
            .map_err(RpcError::internal)?;
        Ok((product, row.try_get(1)?))
    };
    rows.iter().map(line).collect()
}
