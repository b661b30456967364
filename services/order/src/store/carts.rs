//! Carts and quotes.

use contracts::{
    Currency, Money, MoneyError, ProductId, QuoteId, Timestamp, UserId,
    order::{OrderLine, Owner, Quote},
};
use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};
use uuid::Uuid;

use super::{Store, Tx};
use crate::error::Error;

/// How long an expired quote is kept, so that it can be told from one that never was.
const QUOTE_KEPT_MS: i64 = 24 * 3600 * 1000;

/// A cart as it is stored: prices are those of when a line was put in.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StoredCart {
    /// Counts changes.
    pub version: u64,
    /// In the order they were added.
    pub lines: Vec<StoredLine>,
}

/// A line of it.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredLine {
    /// Which product.
    pub product_id: ProductId,
    /// How many.
    pub qty: u32,
    /// Its name then.
    pub name: String,
    /// Its price then.
    pub unit_net: Money,
}

/// A quote and who may use it.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredQuote {
    /// The user it was made for; whoever has its id, if nobody was signed in.
    pub user_id: Option<UserId>,
    /// The cart it was made from.
    pub cart: String,
    /// The quote.
    pub quote: Quote,
}

/// The store's name for a cart. Tokens are as good as passwords, so only a digest is kept.
pub fn cart_name(owner: &Owner) -> String {
    match owner {
        Owner::User(user_id) => user_id.to_string(),
        Owner::Anon(token) => {
            format!(
                "anon_{}",
                Uuid::new_v5(&Uuid::NAMESPACE_OID, token.as_bytes()).simple()
            )
        }
    }
}

impl Store {
    /// Reads a cart; one that nobody touched is empty.
    ///
    /// # Errors
    /// When the database cannot.
    pub async fn cart(&self, cart: &str) -> Result<StoredCart, Error> {
        let mut connection = self.pool.acquire().await?;
        read_cart(&mut connection, cart).await
    }

    /// The same inside a transaction.
    ///
    /// # Errors
    /// When the database cannot.
    pub async fn cart_in(&self, tx: &mut Tx, cart: &str) -> Result<StoredCart, Error> {
        read_cart(tx, cart).await
    }

    /// Sets a line.
    ///
    /// # Errors
    /// When the database cannot.
    pub async fn put_line(&self, tx: &mut Tx, cart: &str, line: &StoredLine) -> Result<(), Error> {
        touch(tx, cart).await?;
        sqlx::query(
            "INSERT INTO cart_lines (owner, product_id, qty, name, unit_net, currency)
             VALUES (?, ?, ?, ?, ?, ?)
             ON CONFLICT (owner, product_id) DO UPDATE SET
                 qty = excluded.qty, name = excluded.name,
                 unit_net = excluded.unit_net, currency = excluded.currency",
        )
        .bind(cart)
        .bind(line.product_id.to_string())
        .bind(line.qty)
        .bind(&line.name)
        .bind(line.unit_net.amount)
        .bind(line.unit_net.currency.code())
        .execute(&mut **tx)
        .await?;
        Ok(())
    }

    /// Takes a product out.
    ///
    /// # Errors
    /// When the database cannot.
    pub async fn drop_line(
        &self,
        tx: &mut Tx,
        cart: &str,
        product_id: ProductId,
    ) -> Result<(), Error> {
        let dropped = sqlx::query("DELETE FROM cart_lines WHERE owner = ? AND product_id = ?")
            .bind(cart)
            .bind(product_id.to_string())
            .execute(&mut **tx)
            .await?;
        if dropped.rows_affected() > 0 {
            touch(tx, cart).await?;
        }
        Ok(())
    }

    /// Takes everything out.
    ///
    /// # Errors
    /// When the database cannot.
    pub async fn clear_cart(&self, tx: &mut Tx, cart: &str) -> Result<(), Error> {
        let dropped = sqlx::query("DELETE FROM cart_lines WHERE owner = ?")
            .bind(cart)
            .execute(&mut **tx)
            .await?;
        if dropped.rows_affected() > 0 {
            touch(tx, cart).await?;
        }
        Ok(())
    }

    /// Takes out what was ordered; more that was put in since stays.
    pub(super) async fn take_ordered(
        &self,
        tx: &mut SqliteConnection,
        cart: &str,
        lines: &[OrderLine],
    ) -> Result<(), Error> {
        let mut changed = 0;
        for line in lines {
            let product_id = line.product_id.to_string();
            let gone = sqlx::query(
                "DELETE FROM cart_lines WHERE owner = ? AND product_id = ? AND qty <= ?",
            )
            .bind(cart)
            .bind(&product_id)
            .bind(line.qty)
            .execute(&mut *tx)
            .await?;
            let less = sqlx::query(
                "UPDATE cart_lines SET qty = qty - ?3
                 WHERE owner = ?1 AND product_id = ?2 AND qty > ?3",
            )
            .bind(cart)
            .bind(&product_id)
            .bind(line.qty)
            .execute(&mut *tx)
            .await?;
            changed += gone.rows_affected() + less.rows_affected();
        }
        if changed > 0 {
            touch(tx, cart).await?;
        }
        Ok(())
    }

    /// Keeps a quote, and drops those that expired long ago.
    ///
    /// # Errors
    /// When the database cannot.
    pub async fn add_quote(&self, stored: &StoredQuote, now: Timestamp) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        sqlx::query("DELETE FROM quotes WHERE expires_at < ?")
            .bind(now.millis().saturating_sub(QUOTE_KEPT_MS))
            .execute(&mut *tx)
            .await?;
        sqlx::query(
            "INSERT INTO quotes (id, user_id, cart, body, expires_at) VALUES (?, ?, ?, ?, ?)",
        )
        .bind(stored.quote.id.to_string())
        .bind(stored.user_id.map(|user_id| user_id.to_string()))
        .bind(&stored.cart)
        .bind(serde_json::to_string(&stored.quote)?)
        .bind(stored.quote.expires_at.millis())
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(())
    }

    /// Finds a quote.
    ///
    /// # Errors
    /// When the database cannot.
    pub async fn quote(&self, id: QuoteId) -> Result<Option<StoredQuote>, Error> {
        let row = sqlx::query("SELECT user_id, cart, body FROM quotes WHERE id = ?")
            .bind(id.to_string())
            .fetch_optional(&self.pool)
            .await?;
        let Some(row) = row else { return Ok(None) };
        let (user_id, body): (Option<String>, String) = (row.try_get(0)?, row.try_get(2)?);
        let user_id = user_id.map(|text| text.parse()).transpose()?;
        Ok(Some(StoredQuote {
            user_id,
            cart: row.try_get(1)?,
            quote: serde_json::from_str(&body)?,
        }))
    }
}

async fn touch(tx: &mut SqliteConnection, cart: &str) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO carts (owner, version) VALUES (?, 1)
         ON CONFLICT (owner) DO UPDATE SET version = version + 1",
    )
    .bind(cart)
    .execute(tx)
    .await?;
    Ok(())
}

async fn read_cart(connection: &mut SqliteConnection, cart: &str) -> Result<StoredCart, Error> {
    let version = sqlx::query("SELECT version FROM carts WHERE owner = ?")
        .bind(cart)
        .fetch_optional(&mut *connection)
        .await?
        .map(|row| row.try_get::<i64, _>(0))
        .transpose()?;
    let rows = sqlx::query(
        "SELECT product_id, qty, name, unit_net, currency FROM cart_lines
         WHERE owner = ? ORDER BY position",
    )
    .bind(cart)
    .fetch_all(connection)
    .await?;
    let lines = rows.iter().map(read_line).collect::<Result<_, _>>()?;
    Ok(StoredCart {
        version: version.unwrap_or_default().unsigned_abs(),
        lines,
    })
}

fn read_line(row: &SqliteRow) -> Result<StoredLine, Error> {
    let (product_id, currency): (String, String) = (row.try_get(0)?, row.try_get(4)?);
    let currency: Currency = currency
        .parse()
        .map_err(|error: MoneyError| Error::Row(error.into()))?;
    Ok(StoredLine {
        product_id: product_id.parse()?,
        qty: row.try_get(1)?,
        name: row.try_get(2)?,
        unit_net: Money::new(row.try_get(3)?, currency),
    })
}
