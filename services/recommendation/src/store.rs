//! The table of baskets: what the model is learned from after a restart.

use contracts::{OrderId, ProductId, UserId};
use nestling::{Context, RpcError, sqlite::Inbox};
use sqlx::{SqliteConnection, SqlitePool};
use uuid::Uuid;

use crate::baskets::Baskets;

// One row for each order, its products side by side at 16 bytes each: the whole table is read at
// start. `is_undone` orders count no more, and not again if their confirmation comes late.
const SCHEMA: &str = "CREATE TABLE IF NOT EXISTS interactions (
    order_id BLOB PRIMARY KEY,
    user_id BLOB NOT NULL,
    product_ids BLOB NOT NULL,
    is_undone INTEGER NOT NULL
) WITHOUT ROWID";

/// What an event says about an order.
#[derive(Clone, Debug)]
pub(crate) struct Purchase {
    pub(crate) order_id: OrderId,
    pub(crate) user_id: UserId,
    pub(crate) products: Vec<ProductId>,
}

/// Baskets on disk.
#[derive(Clone, Debug)]
pub(crate) struct BasketStore {
    pool: SqlitePool,
}

impl BasketStore {
    pub(crate) async fn open(pool: SqlitePool) -> Result<Self, sqlx::Error> {
        sqlx::query(SCHEMA).execute(&pool).await?;
        Ok(Self { pool })
    }

    /// All of them.
    pub(crate) async fn load(&self) -> Result<Baskets, RpcError> {
        let rows: Vec<(Vec<u8>, Vec<u8>, bool)> =
            sqlx::query_as("SELECT order_id, product_ids, is_undone FROM interactions")
                .fetch_all(&self.pool)
                .await?;
        let mut baskets = Baskets::default();
        for (order, products, is_undone) in rows {
            let order = OrderId::from(id(&order)?);
            let products: Result<Vec<_>, _> = products
                .chunks(16)
                .map(|bytes| id(bytes).map(ProductId::from))
                .collect();
            baskets.add(order, &products?);
            if is_undone {
                baskets.remove(order);
            }
        }
        Ok(baskets)
    }

    /// Keeps a purchase; says whether it is to be learned.
    pub(crate) async fn add(
        &self,
        handler: &str,
        purchase: &Purchase,
        cx: &Context,
    ) -> Result<bool, RpcError> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        if !Inbox::is_new(&mut tx, handler, cx).await? {
            return Ok(false);
        }
        let is_added = insert(&mut tx, purchase, false).await?;
        tx.commit().await?;
        Ok(is_added)
    }

    /// Marks a purchase as undone; says whether it had been learned.
    pub(crate) async fn undo(
        &self,
        handler: &str,
        purchase: &Purchase,
        cx: &Context,
    ) -> Result<bool, RpcError> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        if !Inbox::is_new(&mut tx, handler, cx).await? {
            return Ok(false);
        }
        let undone = sqlx::query(
            "UPDATE interactions SET is_undone = 1 WHERE order_id = ? AND is_undone = 0",
        )
        .bind(bytes(purchase.order_id))
        .execute(&mut *tx)
        .await?;
        let was_learned = undone.rows_affected() == 1;
        if !was_learned {
            insert(&mut tx, purchase, true).await?;
        }
        tx.commit().await?;
        Ok(was_learned)
    }
}

async fn insert(
    tx: &mut SqliteConnection,
    purchase: &Purchase,
    is_undone: bool,
) -> Result<bool, RpcError> {
    let products: Vec<u8> = purchase
        .products
        .iter()
        .flat_map(|product| bytes(*product))
        .collect();
    let inserted = sqlx::query(
        "INSERT OR IGNORE INTO interactions (order_id, user_id, product_ids, is_undone)
         VALUES (?, ?, ?, ?)",
    )
    .bind(bytes(purchase.order_id))
    .bind(bytes(purchase.user_id))
    .bind(products)
    .bind(is_undone)
    .execute(tx)
    .await?;
    Ok(inserted.rows_affected() == 1)
}

fn bytes(id: impl Into<Uuid>) -> Vec<u8> {
    id.into().as_bytes().to_vec()
}

fn id(bytes: &[u8]) -> Result<Uuid, RpcError> {
    Uuid::from_slice(bytes).map_err(RpcError::internal)
}
