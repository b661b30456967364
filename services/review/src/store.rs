//! The tables of reviews, their sums, and who bought what.

use contracts::{
    Actor, Cursor, Meta, Page, ProductId, Reason, ReviewId, Timestamp, UserId,
    review::{CreateReview, ListReviews, RatingSummary, Review, ReviewPublished, ReviewSort},
};
use nestling::{
    Context, RpcError,
    sqlite::{Inbox, Outbox},
};
use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection, SqlitePool, sqlite::SqliteRow};

use crate::rating::{ShopRating, summarize};

const SCHEMA: &[&str] = &[
    "CREATE TABLE IF NOT EXISTS reviews (
        id TEXT PRIMARY KEY,
        product_id TEXT NOT NULL,
        user_id TEXT NOT NULL,
        rating INTEGER NOT NULL CHECK (rating BETWEEN 1 AND 5),
        title TEXT NOT NULL,
        body TEXT NOT NULL,
        verified INTEGER NOT NULL,
        helpful INTEGER NOT NULL DEFAULT 0,
        created_at INTEGER NOT NULL,
        version INTEGER NOT NULL,
        UNIQUE (user_id, product_id)
    )",
    "CREATE INDEX IF NOT EXISTS reviews_by_age ON reviews (product_id, created_at, id)",
    "CREATE INDEX IF NOT EXISTS reviews_by_rating ON reviews (product_id, rating, id)",
    "CREATE INDEX IF NOT EXISTS reviews_by_helpful ON reviews (product_id, helpful, id)",
    "CREATE TABLE IF NOT EXISTS rating_agg (
        product_id TEXT NOT NULL,
        rating INTEGER NOT NULL,
        count INTEGER NOT NULL,
        PRIMARY KEY (product_id, rating)
    ) WITHOUT ROWID",
    // One row: the sums over all products.
    "CREATE TABLE IF NOT EXISTS rating_shop (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        count INTEGER NOT NULL,
        total INTEGER NOT NULL
    )",
    "INSERT OR IGNORE INTO rating_shop (id, count, total) VALUES (1, 0, 0)",
    "CREATE TABLE IF NOT EXISTS purchases (
        user_id TEXT NOT NULL,
        product_id TEXT NOT NULL,
        PRIMARY KEY (user_id, product_id)
    ) WITHOUT ROWID",
];

/// Reviews.
#[derive(Clone, Debug)]
pub(crate) struct ReviewStore {
    pool: SqlitePool,
    outbox: Outbox,
}

impl ReviewStore {
    pub(crate) async fn open(pool: SqlitePool, outbox: Outbox) -> Result<Self, sqlx::Error> {
        for statement in SCHEMA {
            sqlx::query(*statement).execute(&pool).await?;
        }
        Ok(Self { pool, outbox })
    }

    pub(crate) async fn create(
        &self,
        request: &CreateReview,
        author: &Actor,
    ) -> Result<Review, RpcError> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let review = Review {
            id: ReviewId::new(),
            product_id: request.product_id,
            user_id: author.user_id,
            rating: request.rating,
            title: request.title.trim().to_owned(),
            body: request.body.trim().to_owned(),
            verified: has_bought(&mut tx, author.user_id, request.product_id).await?,
            helpful: 0,
            created_at: Timestamp::now(),
            version: 1,
        };
        let inserted = sqlx::query(
            "INSERT INTO reviews
                (id, product_id, user_id, rating, title, body, verified, created_at, version)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, 1)
             ON CONFLICT (user_id, product_id) DO NOTHING",
        )
        .bind(review.id.to_string())
        .bind(review.product_id.to_string())
        .bind(review.user_id.to_string())
        .bind(review.rating)
        .bind(&review.title)
        .bind(&review.body)
        .bind(review.verified)
        .bind(review.created_at.millis())
        .execute(&mut *tx)
        .await?;
        if inserted.rows_affected() == 0 {
            return Err(Reason::AlreadyReviewed.error("you have reviewed this product"));
        }
        count(&mut tx, review.product_id, review.rating).await?;
        let summary = summary(&mut tx, review.product_id).await?;
        let meta = Meta {
            at: review.created_at,
            version: u64::from(summary.count),
        };
        let product_id = review.product_id;
        let event = ReviewPublished {
            product_id,
            review: review.clone(),
            summary,
            meta,
        };
        self.outbox.add(&mut tx, &event).await?;
        self.outbox.commit(tx).await?;
        Ok(review)
    }

    pub(crate) async fn list(&self, request: &ListReviews) -> Result<Page<Review>, RpcError> {
        let (column, is_descending) = match request.sort {
            ReviewSort::Newest => ("created_at", true),
            ReviewSort::High => ("rating", true),
            ReviewSort::Low => ("rating", false),
            ReviewSort::Helpful => ("helpful", true),
        };
        let mut query = QueryBuilder::<Sqlite>::new("SELECT * FROM reviews WHERE product_id = ");
        query.push_bind(request.product_id.to_string());
        if let Some(rating) = request.rating {
            query.push(" AND rating = ").push_bind(rating);
        }
        if let Some(verified) = request.verified {
            query.push(" AND verified = ").push_bind(verified);
        }
        let (comparison, direction) = if is_descending {
            ("<", "DESC")
        } else {
            (">", "ASC")
        };
        if let Some(cursor) = &request.page.cursor {
            let (key, id): (i64, ReviewId) = Cursor::decode(cursor)?;
            query
                .push(format!(" AND ({column} {comparison} "))
                .push_bind(key)
                .push(format!(" OR ({column} = "))
                .push_bind(key)
                .push(" AND id < ")
                .push_bind(id.to_string())
                .push("))");
        }
        // Ids grow with time, so equals come newest first.
        query.push(format!(" ORDER BY {column} {direction}, id DESC LIMIT "));
        query.push_bind(i64::from(request.page.limit) + 1);
        let rows = query.build().fetch_all(&self.pool).await?;
        let limit = usize::try_from(request.page.limit).unwrap_or(usize::MAX);
        let items = rows
            .iter()
            .take(limit)
            .map(review)
            .collect::<Result<Vec<_>, _>>()?;
        let next_cursor = match items.last() {
            Some(last) if rows.len() > limit => Some(Cursor::encode(&match request.sort {
                ReviewSort::Newest => (last.created_at.millis(), last.id),
                ReviewSort::High | ReviewSort::Low => (i64::from(last.rating), last.id),
                ReviewSort::Helpful => (i64::from(last.helpful), last.id),
            })),
            _ => None,
        };
        Ok(Page { items, next_cursor })
    }

    /// One summary for each product, in the same order.
    pub(crate) async fn summarize(
        &self,
        products: &[ProductId],
    ) -> Result<Vec<RatingSummary>, RpcError> {
        let mut connection = self.pool.acquire().await?;
        let mut summaries = Vec::with_capacity(products.len());
        for product in products {
            summaries.push(summary(&mut connection, *product).await?);
        }
        Ok(summaries)
    }

    /// Whoever has bought something reviews it as its buyer, before and after.
    pub(crate) async fn add_purchase(
        &self,
        handler: &str,
        user: UserId,
        products: &[ProductId],
        cx: &Context,
    ) -> Result<(), RpcError> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        if !Inbox::is_new(&mut tx, handler, cx).await? {
            return Ok(());
        }
        let user = user.to_string();
        for product in products {
            sqlx::query("INSERT OR IGNORE INTO purchases (user_id, product_id) VALUES (?, ?)")
                .bind(&user)
                .bind(product.to_string())
                .execute(&mut *tx)
                .await?;
        }
        sqlx::query(
            "UPDATE reviews SET verified = 1, version = version + 1
             WHERE user_id = ? AND verified = 0
                AND product_id IN (SELECT product_id FROM purchases WHERE user_id = ?)",
        )
        .bind(&user)
        .bind(&user)
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }
}

async fn has_bought(
    tx: &mut SqliteConnection,
    user: UserId,
    product: ProductId,
) -> Result<bool, RpcError> {
    let bought = sqlx::query("SELECT 1 FROM purchases WHERE user_id = ? AND product_id = ?")
        .bind(user.to_string())
        .bind(product.to_string());
    Ok(bought.fetch_optional(tx).await?.is_some())
}

/// Adds a rating to the sums.
async fn count(tx: &mut SqliteConnection, product: ProductId, rating: u8) -> Result<(), RpcError> {
    sqlx::query(
        "INSERT INTO rating_agg (product_id, rating, count) VALUES (?, ?, 1)
         ON CONFLICT (product_id, rating) DO UPDATE SET count = count + 1",
    )
    .bind(product.to_string())
    .bind(rating)
    .execute(&mut *tx)
    .await?;
    sqlx::query("UPDATE rating_shop SET count = count + 1, total = total + ?")
        .bind(rating)
        .execute(tx)
        .await?;
    Ok(())
}

async fn summary(
    connection: &mut SqliteConnection,
    product: ProductId,
) -> Result<RatingSummary, RpcError> {
    let counts: Vec<(u8, u32)> =
        sqlx::query_as("SELECT rating, count FROM rating_agg WHERE product_id = ?")
            .bind(product.to_string())
            .fetch_all(&mut *connection)
            .await?;
    let mut histogram = [0; 5];
    for (rating, count) in counts {
        if let Some(stars) = histogram.get_mut(usize::from(rating).wrapping_sub(1)) {
            *stars = count;
        }
    }
    let (count, total): (i64, i64) = sqlx::query_as("SELECT count, total FROM rating_shop")
        .fetch_one(connection)
        .await?;
    let shop = ShopRating {
        count: count.unsigned_abs(),
        total: total.unsigned_abs(),
    };
    Ok(summarize(product, histogram, shop))
}

fn review(row: &SqliteRow) -> Result<Review, RpcError> {
    let id: String = row.try_get("id")?;
    let product_id: String = row.try_get("product_id")?;
    let user_id: String = row.try_get("user_id")?;
    Ok(Review {
        id: id.parse().map_err(RpcError::internal)?,
        product_id: product_id.parse().map_err(RpcError::internal)?,
        user_id: user_id.parse().map_err(RpcError::internal)?,
        rating: row.try_get("rating")?,
        title: row.try_get("title")?,
        body: row.try_get("body")?,
        verified: row.try_get("verified")?,
        helpful: row.try_get("helpful")?,
        created_at: Timestamp::from_millis(row.try_get("created_at")?),
        version: row.try_get::<i64, _>("version")?.unsigned_abs(),
    })
}
