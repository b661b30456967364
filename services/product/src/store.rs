//! The catalogue's tables.

use std::collections::HashSet;

use contracts::{
    CategoryId, Cursor, Fields, Meta, Money, Page, ProductId, Reason, TaxRate, Timestamp,
    product::{
        Category, CreateCategory, CreateProduct, Fulfilment, ImportProducts, Imported,
        ListProducts, Product, ProductCard, ProductChanged, ProductDraft, ProductKey, ProductSort,
        ProductStatus, Quantity, QuotedLine, QuotedLines, UpdateProduct,
    },
    review::RatingSummary,
};
use nestling::{RpcError, sqlite::Outbox};
use serde::{Serialize, de::DeserializeOwned};
use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection, SqlitePool, sqlite::SqliteRow};

use crate::catalogue::{gross, image, search_terms, slug};

const SCHEMA: &[&str] = &[
    "CREATE TABLE IF NOT EXISTS categories (
        id TEXT PRIMARY KEY,
        slug TEXT NOT NULL UNIQUE,
        name TEXT NOT NULL,
        parent TEXT REFERENCES categories (id),
        version INTEGER NOT NULL
    )",
    "CREATE TABLE IF NOT EXISTS products (
        id TEXT PRIMARY KEY,
        sku TEXT NOT NULL UNIQUE,
        slug TEXT NOT NULL UNIQUE,
        name TEXT NOT NULL,
        description TEXT NOT NULL,
        supplier TEXT,
        net INTEGER NOT NULL,
        currency TEXT NOT NULL,
        tax_bps INTEGER NOT NULL,
        fulfilment TEXT NOT NULL,
        weight_g INTEGER NOT NULL,
        attributes TEXT NOT NULL,
        status TEXT NOT NULL,
        rating INTEGER,
        reviews INTEGER NOT NULL DEFAULT 0,
        version INTEGER NOT NULL,
        created_at INTEGER NOT NULL
    )",
    "CREATE INDEX IF NOT EXISTS products_by_name ON products (status, name, id)",
    "CREATE INDEX IF NOT EXISTS products_by_price ON products (status, net, id)",
    "CREATE TABLE IF NOT EXISTS product_categories (
        product_id TEXT NOT NULL REFERENCES products (id),
        category_id TEXT NOT NULL REFERENCES categories (id),
        PRIMARY KEY (category_id, product_id)
    ) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS categories_of_product ON product_categories (product_id)",
    "CREATE VIRTUAL TABLE IF NOT EXISTS product_search USING fts5 (id UNINDEXED, sku, name, description)",
    "CREATE TABLE IF NOT EXISTS stock (
        product_id TEXT PRIMARY KEY REFERENCES products (id),
        on_hand INTEGER NOT NULL,
        reserved INTEGER NOT NULL DEFAULT 0,
        version INTEGER NOT NULL DEFAULT 1,
        CHECK (0 <= reserved AND reserved <= on_hand)
    ) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS stock_movements (
        position INTEGER PRIMARY KEY AUTOINCREMENT,
        product_id TEXT NOT NULL REFERENCES products (id),
        delta INTEGER NOT NULL,
        reason TEXT NOT NULL,
        ref TEXT NOT NULL,
        at INTEGER NOT NULL
    )",
    // `state` is held, committed, released or expired.
    "CREATE TABLE IF NOT EXISTS reservations (
        order_id TEXT PRIMARY KEY,
        state TEXT NOT NULL,
        expires_at INTEGER NOT NULL
    ) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS reservations_by_expiry ON reservations (state, expires_at)",
    "CREATE TABLE IF NOT EXISTS reservation_lines (
        order_id TEXT NOT NULL REFERENCES reservations (order_id),
        product_id TEXT NOT NULL REFERENCES products (id),
        qty INTEGER NOT NULL,
        PRIMARY KEY (order_id, product_id)
    ) WITHOUT ROWID",
];

const COLUMNS: &str =
    "SELECT p.*, s.on_hand, s.reserved FROM products p JOIN stock s ON s.product_id = p.id";

/// The catalogue.
#[derive(Clone, Debug)]
pub(crate) struct ProductStore {
    pool: SqlitePool,
    outbox: Outbox,
}

impl ProductStore {
    pub(crate) async fn open(pool: SqlitePool, outbox: Outbox) -> Result<Self, sqlx::Error> {
        for statement in SCHEMA {
            sqlx::query(*statement).execute(&pool).await?;
        }
        Ok(Self { pool, outbox })
    }

    pub(crate) async fn list(&self, request: &ListProducts) -> Result<Page<ProductCard>, RpcError> {
        let mut query = QueryBuilder::<Sqlite>::new(COLUMNS);
        let status = request.status.unwrap_or(ProductStatus::Active);
        query.push(" WHERE p.status = ").push_bind(word(&status)?);
        if let Some(category) = request.category_id {
            query
                .push(
                    " AND p.id IN (SELECT product_id FROM product_categories WHERE category_id = ",
                )
                .push_bind(category.to_string())
                .push(")");
        }
        if let Some(q) = &request.q {
            let terms = search_terms(q);
            if terms.is_empty() {
                return Ok(Page {
                    items: Vec::new(),
                    next_cursor: None,
                });
            }
            query
                .push(" AND p.id IN (SELECT id FROM product_search WHERE product_search MATCH ")
                .push_bind(terms)
                .push(")");
        }
        if let Some(least) = request.price_min {
            query.push(" AND p.net >= ").push_bind(least);
        }
        if let Some(most) = request.price_max {
            query.push(" AND p.net <= ").push_bind(most);
        }
        if request.in_stock == Some(true) {
            query.push(" AND s.on_hand > s.reserved");
        }
        let (column, is_descending) = match request.sort {
            ProductSort::Name => ("p.name", false),
            ProductSort::PriceAsc => ("p.net", false),
            ProductSort::PriceDesc => ("p.net", true),
            ProductSort::Newest => ("p.created_at", true),
        };
        let (comparison, direction) = if is_descending {
            ("<", "DESC")
        } else {
            (">", "ASC")
        };
        if let Some(cursor) = &request.page.cursor {
            query.push(format!(" AND ({column}, p.id) {comparison} ("));
            match request.sort {
                ProductSort::Name => {
                    let (name, id): (String, String) = Cursor::decode(cursor)?;
                    query.push_bind(name).push(", ").push_bind(id);
                }
                _ => {
                    let (number, id): (i64, String) = Cursor::decode(cursor)?;
                    query.push_bind(number).push(", ").push_bind(id);
                }
            }
            query.push(")");
        }
        let limit = usize::try_from(request.page.limit).unwrap_or(25);
        query.push(format!(
            " ORDER BY {column} {direction}, p.id {direction} LIMIT "
        ));
        query.push_bind(i64::from(request.page.limit) + 1);
        let mut rows = query.build().fetch_all(&self.pool).await?;
        let has_more = rows.len() > limit;
        rows.truncate(limit);
        let items = rows.iter().map(card).collect::<Result<Vec<_>, _>>()?;
        let next_cursor = match (has_more, items.last(), rows.last()) {
            (true, Some(last), Some(row)) => Some(match request.sort {
                ProductSort::Name => Cursor::encode(&(&last.name, last.id.to_string())),
                ProductSort::Newest => {
                    let created_at: i64 = row.try_get("created_at")?;
                    Cursor::encode(&(created_at, last.id.to_string()))
                }
                _ => Cursor::encode(&(last.net.amount, last.id.to_string())),
            }),
            _ => None,
        };
        Ok(Page { items, next_cursor })
    }

    pub(crate) async fn get(&self, key: &ProductKey) -> Result<Product, RpcError> {
        let mut connection = self.pool.acquire().await?;
        read(&mut connection, key).await?.ok_or_else(not_found)
    }

    pub(crate) async fn create(&self, request: &CreateProduct) -> Result<Product, RpcError> {
        let mut fields = Fields::new();
        request.draft.check(&mut fields, "/draft");
        fields.finish()?;
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let id = ProductId::new();
        if sku_owner(&mut tx, &request.draft.sku).await?.is_some() {
            return Err(Reason::StateConflict.error("this sku is taken"));
        }
        let product = self
            .add(&mut tx, id, &request.draft, request.on_hand)
            .await?;
        self.outbox.commit(tx).await?;
        Ok(product)
    }

    pub(crate) async fn import(&self, request: &ImportProducts) -> Result<Imported, RpcError> {
        let mut fields = Fields::new();
        fields.check(
            request.products.len() <= 500,
            "/products",
            "length",
            "at most 500",
        );
        for (position, product) in request.products.iter().enumerate() {
            product
                .draft
                .check(&mut fields, &format!("/products/{position}/draft"));
        }
        fields.finish()?;
        let mut imported = Imported { added: 0, known: 0 };
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        for product in &request.products {
            if sku_owner(&mut tx, &product.draft.sku).await?.is_some() {
                imported.known += 1;
                continue;
            }
            let id = ProductId::derive(&product.draft.sku);
            self.add(&mut tx, id, &product.draft, product.on_hand)
                .await?;
            imported.added += 1;
        }
        self.outbox.commit(tx).await?;
        Ok(imported)
    }

    async fn add(
        &self,
        tx: &mut SqliteConnection,
        id: ProductId,
        draft: &ProductDraft,
        on_hand: u32,
    ) -> Result<Product, RpcError> {
        let now = Timestamp::now();
        let mut slug = slug(&draft.name);
        let taken = sqlx::query("SELECT 1 FROM products WHERE slug = ?").bind(&slug);
        if taken.fetch_optional(&mut *tx).await?.is_some() {
            slug = format!("{slug}-{}", crate::slug(&draft.sku));
            let taken = sqlx::query("SELECT 1 FROM products WHERE slug = ?").bind(&slug);
            if taken.fetch_optional(&mut *tx).await?.is_some() {
                slug = format!("{slug}-{}", id.to_string().to_lowercase());
            }
        }
        sqlx::query(
            "INSERT INTO products (id, sku, slug, name, description, supplier, net, currency, tax_bps,
                fulfilment, weight_g, attributes, status, version, created_at)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1, ?)",
        )
        .bind(id.to_string())
        .bind(&draft.sku)
        .bind(slug)
        .bind(&draft.name)
        .bind(&draft.description)
        .bind(&draft.supplier)
        .bind(draft.net.amount)
        .bind(draft.net.currency.code())
        .bind(draft.tax.0)
        .bind(word(&draft.fulfilment)?)
        .bind(draft.weight_g)
        .bind(serde_json::to_string(&draft.attributes).map_err(RpcError::internal)?)
        .bind(word(&draft.status)?)
        .bind(now.millis())
        .execute(&mut *tx)
        .await?;
        sqlx::query("INSERT INTO stock (product_id, on_hand) VALUES (?, ?)")
            .bind(id.to_string())
            .bind(on_hand)
            .execute(&mut *tx)
            .await?;
        sqlx::query(
            "INSERT INTO stock_movements (product_id, delta, reason, ref, at) VALUES (?, ?, 'initial', '', ?)",
        )
        .bind(id.to_string())
        .bind(on_hand)
        .bind(now.millis())
        .execute(&mut *tx)
        .await?;
        index(tx, id, draft).await?;
        let product = self.after_change(tx, id, None).await?;
        Ok(product)
    }

    pub(crate) async fn update(&self, request: &UpdateProduct) -> Result<Product, RpcError> {
        let UpdateProduct {
            product_id,
            expected_version,
            draft,
        } = request;
        let mut fields = Fields::new();
        draft.check(&mut fields, "/draft");
        fields.finish()?;
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let before = read(&mut tx, &ProductKey::Id(*product_id))
            .await?
            .ok_or_else(not_found)?;
        if before.version != *expected_version {
            return Err(Reason::VersionConflict.error("the product was changed meanwhile"));
        }
        if sku_owner(&mut tx, &draft.sku)
            .await?
            .is_some_and(|owner| owner != product_id.to_string())
        {
            return Err(Reason::StateConflict.error("this sku is taken"));
        }
        sqlx::query(
            "UPDATE products SET sku = ?, name = ?, description = ?, supplier = ?, net = ?,
                currency = ?, tax_bps = ?, fulfilment = ?, weight_g = ?, attributes = ?, status = ?,
                version = version + 1
             WHERE id = ?",
        )
        .bind(&draft.sku)
        .bind(&draft.name)
        .bind(&draft.description)
        .bind(&draft.supplier)
        .bind(draft.net.amount)
        .bind(draft.net.currency.code())
        .bind(draft.tax.0)
        .bind(word(&draft.fulfilment)?)
        .bind(draft.weight_g)
        .bind(serde_json::to_string(&draft.attributes).map_err(RpcError::internal)?)
        .bind(word(&draft.status)?)
        .bind(product_id.to_string())
        .execute(&mut *tx)
        .await?;
        for table in [
            "DELETE FROM product_search WHERE id = ?",
            "DELETE FROM product_categories WHERE product_id = ?",
        ] {
            sqlx::query(table)
                .bind(product_id.to_string())
                .execute(&mut *tx)
                .await?;
        }
        index(&mut tx, *product_id, draft).await?;
        let product = self
            .after_change(&mut tx, *product_id, Some(before.card.net))
            .await?;
        self.outbox.commit(tx).await?;
        Ok(product)
    }

    async fn after_change(
        &self,
        tx: &mut SqliteConnection,
        product_id: ProductId,
        old_net: Option<Money>,
    ) -> Result<Product, RpcError> {
        let product = read(tx, &ProductKey::Id(product_id))
            .await?
            .ok_or_else(not_found)?;
        let meta = Meta {
            at: Timestamp::now(),
            version: product.version,
        };
        let event = ProductChanged {
            product_id,
            product: product.clone(),
            old_net,
            meta,
        };
        self.outbox.add(tx, &event).await?;
        Ok(product)
    }

    pub(crate) async fn categories(&self) -> Result<Vec<Category>, RpcError> {
        let rows = sqlx::query(
            "SELECT c.*, (SELECT COUNT(*) FROM product_categories pc JOIN products p ON p.id = pc.product_id
                WHERE pc.category_id = c.id AND p.status = 'active') AS products
             FROM categories c ORDER BY c.name",
        )
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(category).collect()
    }

    /// Adds a category; one of the same name that is there is returned as it is.
    pub(crate) async fn create_category(
        &self,
        request: &CreateCategory,
    ) -> Result<Category, RpcError> {
        let mut fields = Fields::new();
        fields.length(request.name.trim(), 1..=80, "/name");
        fields.finish()?;
        let slug = slug(&request.name);
        let id = CategoryId::derive(&slug);
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        if let Some(parent) = request.parent {
            let known =
                sqlx::query("SELECT 1 FROM categories WHERE id = ?").bind(parent.to_string());
            if known.fetch_optional(&mut *tx).await?.is_none() {
                return Err(Reason::NotFound.error("no such parent category"));
            }
        }
        sqlx::query("INSERT OR IGNORE INTO categories (id, slug, name, parent, version) VALUES (?, ?, ?, ?, 1)")
            .bind(id.to_string())
            .bind(slug)
            .bind(request.name.trim())
            .bind(request.parent.map(|parent| parent.to_string()))
            .execute(&mut *tx)
            .await?;
        let row = sqlx::query("SELECT *, 0 AS products FROM categories WHERE id = ?")
            .bind(id.to_string())
            .fetch_one(&mut *tx)
            .await?;
        let category = category(&row)?;
        tx.commit().await?;
        Ok(category)
    }

    pub(crate) async fn quote(&self, lines: &[Quantity]) -> Result<QuotedLines, RpcError> {
        let mut fields = Fields::new();
        fields.check(lines.len() <= 100, "/lines", "length", "at most 100");
        fields.finish()?;
        let mut quoted = QuotedLines {
            lines: Vec::new(),
            missing: Vec::new(),
        };
        let mut connection = self.pool.acquire().await?;
        for line in lines {
            let product = read(&mut connection, &ProductKey::Id(line.product_id)).await?;
            match product.filter(|product| product.status == ProductStatus::Active) {
                None => quoted.missing.push(line.product_id),
                Some(product) => quoted.lines.push(QuotedLine {
                    product_id: line.product_id,
                    sku: product.sku,
                    name: product.card.name,
                    unit_net: product.card.net,
                    tax: product.tax,
                    available: product.card.available,
                    fulfilment: product.fulfilment,
                    weight_g: product.weight_g,
                    image: product.card.image,
                }),
            }
        }
        Ok(quoted)
    }

    /// Takes over a product's ratings, unless newer ones are there.
    pub(crate) async fn rate(&self, summary: &RatingSummary) -> Result<(), RpcError> {
        sqlx::query("UPDATE products SET rating = ?, reviews = ? WHERE id = ? AND reviews <= ?")
            .bind(summary.mean)
            .bind(summary.count)
            .bind(summary.product_id.to_string())
            .bind(summary.count)
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}

fn not_found() -> RpcError {
    Reason::NotFound.error("no such product")
}

async fn sku_owner(tx: &mut SqliteConnection, sku: &str) -> Result<Option<String>, sqlx::Error> {
    sqlx::query_scalar("SELECT id FROM products WHERE sku = ?")
        .bind(sku)
        .fetch_optional(tx)
        .await
}

/// Writes what is kept beside a product's row: its search terms and its categories.
async fn index(
    tx: &mut SqliteConnection,
    id: ProductId,
    draft: &ProductDraft,
) -> Result<(), RpcError> {
    sqlx::query("INSERT INTO product_search (id, sku, name, description) VALUES (?, ?, ?, ?)")
        .bind(id.to_string())
        .bind(&draft.sku)
        .bind(&draft.name)
        .bind(&draft.description)
        .execute(&mut *tx)
        .await?;
    let categories: HashSet<_> = draft.categories.iter().map(ToString::to_string).collect();
    for category in categories {
        let known = sqlx::query("SELECT 1 FROM categories WHERE id = ?").bind(&category);
        if known.fetch_optional(&mut *tx).await?.is_none() {
            return Err(Reason::NotFound.error("no such category"));
        }
        sqlx::query("INSERT INTO product_categories (product_id, category_id) VALUES (?, ?)")
            .bind(id.to_string())
            .bind(category)
            .execute(&mut *tx)
            .await?;
    }
    Ok(())
}

async fn read(
    connection: &mut SqliteConnection,
    key: &ProductKey,
) -> Result<Option<Product>, RpcError> {
    let mut query = QueryBuilder::<Sqlite>::new(COLUMNS);
    match key {
        ProductKey::Id(id) => query.push(" WHERE p.id = ").push_bind(id.to_string()),
        ProductKey::Slug(slug) => query.push(" WHERE p.slug = ").push_bind(slug.clone()),
    };
    let Some(row) = query.build().fetch_optional(&mut *connection).await? else {
        return Ok(None);
    };
    let card = card(&row)?;
    let categories: Vec<String> = sqlx::query_scalar(
        "SELECT category_id FROM product_categories WHERE product_id = ? ORDER BY category_id",
    )
    .bind(card.id.to_string())
    .fetch_all(connection)
    .await?;
    let attributes: String = row.try_get("attributes")?;
    Ok(Some(Product {
        card,
        sku: row.try_get("sku")?,
        description: row.try_get("description")?,
        supplier: row.try_get("supplier")?,
        categories: parse_all(&categories)?,
        tax: TaxRate(row.try_get("tax_bps")?),
        fulfilment: from_word::<Fulfilment>(row.try_get("fulfilment")?)?,
        weight_g: row.try_get("weight_g")?,
        attributes: serde_json::from_str(&attributes).map_err(RpcError::internal)?,
        status: from_word::<ProductStatus>(row.try_get("status")?)?,
        on_hand: row.try_get("on_hand")?,
        reserved: row.try_get("reserved")?,
        version: row.try_get::<i64, _>("version")?.unsigned_abs(),
    }))
}

fn parse_all(categories: &[String]) -> Result<Vec<CategoryId>, RpcError> {
    categories
        .iter()
        .map(|id| id.parse().map_err(RpcError::internal))
        .collect()
}

fn card(row: &SqliteRow) -> Result<ProductCard, RpcError> {
    let id: ProductId = row
        .try_get::<String, _>("id")?
        .parse()
        .map_err(RpcError::internal)?;
    let currency = row
        .try_get::<String, _>("currency")?
        .parse()
        .map_err(RpcError::internal)?;
    let net = Money::new(row.try_get("net")?, currency);
    let (on_hand, reserved): (u32, u32) = (row.try_get("on_hand")?, row.try_get("reserved")?);
    Ok(ProductCard {
        id,
        slug: row.try_get("slug")?,
        name: row.try_get("name")?,
        net,
        gross: gross(net, TaxRate(row.try_get("tax_bps")?))?,
        available: on_hand.saturating_sub(reserved),
        rating: row.try_get("rating")?,
        reviews: row.try_get("reviews")?,
        image: image(id),
    })
}

fn category(row: &SqliteRow) -> Result<Category, RpcError> {
    let parent: Option<String> = row.try_get("parent")?;
    Ok(Category {
        id: row
            .try_get::<String, _>("id")?
            .parse()
            .map_err(RpcError::internal)?,
        slug: row.try_get("slug")?,
        name: row.try_get("name")?,
        parent: parent
            .map(|id| id.parse())
            .transpose()
            .map_err(RpcError::internal)?,
        products: row.try_get("products")?,
        version: row.try_get::<i64, _>("version")?.unsigned_abs(),
    })
}

/// The one word a unit variant is in JSON, which is how it is stored.
fn word<T: Serialize>(value: &T) -> Result<String, RpcError> {
    let json = serde_json::to_value(value).map_err(RpcError::internal)?;
    json.as_str()
        .map(str::to_owned)
        .ok_or_else(|| RpcError::internal("not a word"))
}

fn from_word<T: DeserializeOwned>(word: String) -> Result<T, RpcError> {
    serde_json::from_value(word.into()).map_err(RpcError::internal)
}
