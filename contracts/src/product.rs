//! `product.*`, `category.*`, `stock.*`: the catalogue and what is in the warehouse.

use std::collections::BTreeMap;

use nestling::{Event, Message, RpcError};
use serde::{Deserialize, Serialize};

use crate::{
    CategoryId, Fields, Meta, Money, OrderId, Page, PageRequest, ProductId, TaxRate, Timestamp,
};

crate::svc!("product");

/// How a product reaches its buyer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fulfilment {
    /// It is shipped.
    Physical,
    /// It is sent by mail at once.
    Digital,
}

/// Whether a product is sold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProductStatus {
    /// Not yet.
    Draft,
    /// Yes.
    Active,
    /// No more.
    Archived,
}

/// A product in a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProductCard {
    /// Id.
    pub id: ProductId,
    /// Its name in URLs.
    pub slug: String,
    /// Name.
    pub name: String,
    /// Price before tax.
    pub net: Money,
    /// Price with tax.
    pub gross: Money,
    /// How many can be bought now.
    pub available: u32,
    /// Mean rating times 100, when there are reviews.
    pub rating: Option<u32>,
    /// How many reviews.
    pub reviews: u32,
    /// Path of its picture.
    pub image: String,
}

/// A product with everything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Product {
    /// What a list shows.
    pub card: ProductCard,
    /// Stock keeping unit, unique.
    pub sku: String,
    /// Text.
    pub description: String,
    /// Who delivers it.
    pub supplier: Option<String>,
    /// Where it is listed.
    pub categories: Vec<CategoryId>,
    /// Tax in basis points.
    pub tax: TaxRate,
    /// How it reaches its buyer.
    pub fulfilment: Fulfilment,
    /// In grams.
    pub weight_g: u32,
    /// Anything else.
    pub attributes: BTreeMap<String, String>,
    /// Whether it is sold.
    pub status: ProductStatus,
    /// How many are in the warehouse.
    pub on_hand: u32,
    /// How many of them are promised to orders.
    pub reserved: u32,
    /// Counts changes of the catalogue's data.
    pub version: u64,
}

/// The order of a list of products.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProductSort {
    /// By name.
    #[default]
    Name,
    /// Cheapest first.
    PriceAsc,
    /// Dearest first.
    PriceDesc,
    /// Newest first.
    Newest,
}

/// Lists products. Errors: `validation`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, Message)]
#[message(pattern = "product.list", reply = Page<ProductCard>, idempotent)]
pub struct ListProducts {
    /// Only those in this category.
    pub category_id: Option<CategoryId>,
    /// Only those with these words.
    pub q: Option<String>,
    /// Net minor units at least.
    pub price_min: Option<i64>,
    /// Net minor units at most.
    pub price_max: Option<i64>,
    /// Only those that can be bought now.
    pub in_stock: Option<bool>,
    /// Active ones unless said otherwise; others are for managers.
    pub status: Option<ProductStatus>,
    /// In which order.
    pub sort: ProductSort,
    /// Which page.
    pub page: PageRequest,
}

impl ListProducts {
    /// # Errors
    /// `validation`.
    pub fn validate(&self) -> Result<(), RpcError> {
        let mut fields = Fields::new();
        self.page.check(&mut fields);
        if let Some(q) = &self.q {
            fields.length(q, 1..=200, "/q");
        }
        fields.finish()
    }
}

/// How a product is asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProductKey {
    /// By id.
    Id(ProductId),
    /// By its name in URLs.
    Slug(String),
}

/// Reads a product. Errors: `not_found`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Message)]
#[message(pattern = "product.get", reply = Product, idempotent)]
pub struct GetProduct {
    /// Which.
    pub key: ProductKey,
}

/// What a manager writes about a product.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProductDraft {
    /// Stock keeping unit, unique.
    pub sku: String,
    /// Name.
    pub name: String,
    /// Text.
    pub description: String,
    /// Who delivers it.
    pub supplier: Option<String>,
    /// Where it is listed.
    pub categories: Vec<CategoryId>,
    /// Price before tax.
    pub net: Money,
    /// Tax in basis points.
    pub tax: TaxRate,
    /// How it reaches its buyer.
    pub fulfilment: Fulfilment,
    /// In grams.
    pub weight_g: u32,
    /// Anything else.
    pub attributes: BTreeMap<String, String>,
    /// Whether it is sold.
    pub status: ProductStatus,
}

impl ProductDraft {
    /// Notes what is wrong with it, under `pointer`.
    pub fn check(&self, fields: &mut Fields, pointer: &str) {
        fields.length(self.sku.trim(), 1..=64, &format!("{pointer}/sku"));
        fields.length(self.name.trim(), 1..=200, &format!("{pointer}/name"));
        fields.length(
            &self.description,
            0..=10_000,
            &format!("{pointer}/description"),
        );
        let amount = (0..=100_000_000).contains(&self.net.amount);
        fields.check(
            amount,
            &format!("{pointer}/net/amount"),
            "range",
            "0 to 100 000 000",
        );
        fields.check(
            self.tax.0 <= 10_000,
            &format!("{pointer}/tax"),
            "range",
            "0 to 10 000",
        );
    }
}

/// Adds a product, for managers. Errors: `validation`, `state_conflict` when the sku is taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Message)]
#[message(pattern = "product.create", reply = Product)]
pub struct CreateProduct {
    /// The product.
    pub draft: ProductDraft,
    /// How many there are at the start.
    pub on_hand: u32,
}

/// Changes a product, for managers. Errors: `validation`, `not_found`, `version_conflict`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Message)]
#[message(pattern = "product.update", reply = Product)]
pub struct UpdateProduct {
    /// Which.
    pub product_id: ProductId,
    /// The version that was read.
    pub expected_version: u64,
    /// What it is to be.
    pub draft: ProductDraft,
}

/// A group of products.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Category {
    /// Id.
    pub id: CategoryId,
    /// Its name in URLs.
    pub slug: String,
    /// Name.
    pub name: String,
    /// The one above it.
    pub parent: Option<CategoryId>,
    /// How many active products it lists.
    pub products: u32,
    /// Counts changes.
    pub version: u64,
}

/// Lists all categories.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Message)]
#[message(pattern = "category.list", reply = Vec<Category>, idempotent)]
pub struct ListCategories {}

/// Adds a category, for managers. Errors: `validation`, `not_found` for the parent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Message)]
#[message(pattern = "category.create", reply = Category)]
pub struct CreateCategory {
    /// Name.
    pub name: String,
    /// The one above it.
    pub parent: Option<CategoryId>,
}

/// So many of a product.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quantity {
    /// Which.
    pub product_id: ProductId,
    /// How many.
    pub qty: u32,
}

/// Asks for prices: the only source of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Message)]
#[message(pattern = "product.quote", reply = QuotedLines, idempotent)]
pub struct QuoteLines {
    /// At most 100.
    pub lines: Vec<Quantity>,
}

/// Prices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuotedLines {
    /// In the order asked for.
    pub lines: Vec<QuotedLine>,
    /// What is not sold.
    pub missing: Vec<ProductId>,
}

/// The price of a line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuotedLine {
    /// Which.
    pub product_id: ProductId,
    /// Stock keeping unit.
    pub sku: String,
    /// Name.
    pub name: String,
    /// Price of one before tax.
    pub unit_net: Money,
    /// Tax in basis points.
    pub tax: TaxRate,
    /// How many can be bought now.
    pub available: u32,
    /// How it reaches its buyer.
    pub fulfilment: Fulfilment,
    /// Of one, in grams.
    pub weight_g: u32,
    /// Path of its picture.
    pub image: String,
}

/// Adds products and their stock in bulk, or brings them up to date, by their sku: repeating it
/// changes nothing. For managers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Message)]
#[message(pattern = "product.import", reply = Imported, idempotent)]
pub struct ImportProducts {
    /// At most 500. Their ids are derived from their skus.
    pub products: Vec<ImportedProduct>,
}

/// A product of a bulk import.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImportedProduct {
    /// The product.
    pub draft: ProductDraft,
    /// How many there are, if it is new.
    pub on_hand: u32,
}

/// What a bulk import did.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Imported {
    /// How many were new.
    pub added: u32,
    /// How many were there.
    pub known: u32,
}

/// What there is of a product.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stock {
    /// Which.
    pub product_id: ProductId,
    /// In the warehouse.
    pub on_hand: u32,
    /// Promised to orders.
    pub reserved: u32,
    /// The difference.
    pub available: u32,
    /// Counts changes.
    pub version: u64,
}

/// Reads the stock of at most 100 products; unknown ones are left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Message)]
#[message(pattern = "stock.get", reply = Vec<Stock>, idempotent)]
pub struct GetStock {
    /// Which.
    pub product_ids: Vec<ProductId>,
}

/// Promises stock to an order, all lines or none. Repeated while it is held: the same answer, and
/// it is held for longer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Message)]
#[message(pattern = "stock.reserve", reply = Reservation, idempotent)]
pub struct ReserveStock {
    /// For which order.
    pub order_id: OrderId,
    /// What.
    pub lines: Vec<Quantity>,
    /// For how many seconds.
    pub ttl_s: u32,
}

/// Whether stock was promised.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reservation {
    /// Yes.
    Reserved {
        /// Until then.
        expires_at: Timestamp,
    },
    /// No: too few of these.
    Short {
        /// Each line with too few.
        lines: Vec<ShortLine>,
    },
    /// No: the order was released before.
    Released,
}

/// A line with too little stock.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShortLine {
    /// Which.
    pub product_id: ProductId,
    /// How many were asked for.
    pub requested: u32,
    /// How many there are.
    pub available: u32,
}

/// Gives back what an order holds: held stock is freed, committed stock is back on hand, and an
/// unknown order is remembered, so that a late reservation does nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Message)]
#[message(pattern = "stock.release", reply = Released, idempotent)]
pub struct ReleaseStock {
    /// Of which order.
    pub order_id: OrderId,
    /// Why.
    pub reason: String,
}

/// What was given back.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Released {
    /// How many lines.
    pub released: u32,
}

/// A product is new or has changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Event)]
#[event(pattern = "product.changed", key = product_id)]
pub struct ProductChanged {
    /// Which.
    pub product_id: ProductId,
    /// As it is now.
    pub product: Product,
    /// The net price it had.
    pub old_net: Option<Money>,
    /// When, which version.
    pub meta: Meta,
}

/// How many can be bought has changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Event)]
#[event(pattern = "stock.changed", key = product_id)]
pub struct StockChanged {
    /// Of which product.
    pub product_id: ProductId,
    /// So many now.
    pub available: u32,
    /// When, which version of the stock.
    pub meta: Meta,
}

/// A reservation was not used in time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Event)]
#[event(pattern = "stock.expired", key = order_id)]
pub struct StockExpired {
    /// Of which order.
    pub order_id: OrderId,
    /// When.
    pub meta: Meta,
}
