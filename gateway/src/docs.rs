//! What `/openapi.json` says besides the routes, which document themselves.
//!
//! The types here are the shapes of the contracts' JSON. Contracts are no types of HTTP, so they do
//! not derive schemas; a test compares these with what the routes answer.
#![expect(dead_code, reason = "only their schemas are used")]

use std::collections::BTreeMap;

use serde_json::{Value, json};
use utoipa::{
    OpenApi, ToSchema,
    openapi::{self},
};

/// The document the routes are added to.
#[derive(OpenApi)]
#[openapi(
    info(title = "nestling shop", description = "The shop's HTTP interface"),
    components(schemas(Problem)),
    tags(
        (name = "accounts", description = "Registering, signing in, one's own account"),
        (name = "catalogue", description = "Products, categories, reviews, recommendations"),
        (name = "cart", description = "Carts; anonymous ones go by `X-Cart-Token`"),
        (name = "orders", description = "From the quote to the confirmed order"),
        (name = "admin", description = "For those who run the shop"),
        (name = "system", description = "The gateway itself"),
    ),
)]
pub(crate) struct Api;

/// The finished document: what holds of every operation is added here, once.
pub(crate) fn complete(document: openapi::OpenApi) -> String {
    let mut document = serde_json::to_value(document).unwrap_or_default();
    let content = json!({ "schema": { "$ref": "#/components/schemas/Problem" } });
    let refused = json!({
        "description": "what went wrong (RFC 9457)",
        "content": { "application/problem+json": content },
    });
    let items = document["paths"]
        .as_object_mut()
        .into_iter()
        .flat_map(|paths| paths.values_mut());
    for operation in items
        .filter_map(Value::as_object_mut)
        .flat_map(|item| item.values_mut())
    {
        operation["responses"]["default"] = refused.clone();
    }
    document["components"]["securitySchemes"]["bearer"] =
        json!({ "type": "http", "scheme": "bearer", "bearerFormat": "JWT" });
    document.to_string()
}

/// What went wrong (RFC 9457).
#[derive(ToSchema)]
struct Problem {
    /// `/problems/` and the code.
    r#type: String,
    /// The status in words.
    title: String,
    status: u16,
    /// What it was in this case.
    detail: String,
    /// The id of the request.
    instance: String,
    /// For programs: `out_of_stock`, `validation` …
    code: String,
    /// Each field that is wrong.
    errors: Vec<FieldError>,
}

#[derive(ToSchema)]
struct FieldError {
    /// JSON pointer into the request's body.
    pointer: String,
    code: String,
    message: String,
}

/// An amount in minor units (cents).
#[derive(ToSchema)]
pub(crate) struct Money {
    amount: i64,
    /// ISO 4217.
    currency: String,
}

#[derive(ToSchema)]
pub(crate) struct User {
    id: String,
    email: String,
    name: String,
    roles: Vec<String>,
    locale: String,
    verified: bool,
    disabled: bool,
    version: u64,
    created_at: String,
}

#[derive(ToSchema)]
pub(crate) struct Tokens {
    /// A JWT for `Authorization: Bearer`.
    access: String,
    /// Seconds.
    expires_in: u32,
    user: User,
}

/// A stored card.
#[derive(ToSchema)]
pub(crate) struct Method {
    id: String,
    brand: String,
    last4: String,
    exp: String,
}

#[derive(ToSchema)]
pub(crate) struct ProductPage {
    items: Vec<ProductCard>,
    next_cursor: Option<String>,
}

#[derive(ToSchema)]
pub(crate) struct ProductCard {
    id: String,
    slug: String,
    name: String,
    net: Money,
    gross: Money,
    available: u32,
    /// Times 100.
    rating: Option<u32>,
    reviews: u32,
    image: String,
}

/// A product with what other services know about it; `partial` names the parts that are missing.
#[derive(ToSchema)]
pub(crate) struct ProductPageView {
    id: String,
    slug: String,
    name: String,
    net: Money,
    gross: Money,
    available: u32,
    rating: Option<u32>,
    reviews: u32,
    image: String,
    sku: String,
    description: String,
    supplier: Option<String>,
    categories: Vec<String>,
    tax: u32,
    fulfilment: String,
    weight_g: u32,
    attributes: BTreeMap<String, String>,
    status: String,
    on_hand: u32,
    reserved: u32,
    version: u64,
    review_summary: Option<RatingSummary>,
    recommendations: Option<RecommendedIds>,
    partial: Vec<String>,
}

#[derive(ToSchema)]
pub(crate) struct Product {
    id: String,
    slug: String,
    name: String,
    net: Money,
    gross: Money,
    available: u32,
    rating: Option<u32>,
    reviews: u32,
    image: String,
    sku: String,
    description: String,
    supplier: Option<String>,
    categories: Vec<String>,
    tax: u32,
    fulfilment: String,
    weight_g: u32,
    attributes: BTreeMap<String, String>,
    status: String,
    on_hand: u32,
    reserved: u32,
    version: u64,
}

#[derive(ToSchema)]
pub(crate) struct RatingSummary {
    product_id: String,
    count: u32,
    /// Times 100.
    mean: u32,
    histogram: Vec<u32>,
    /// Times 100.
    bayes: u32,
}

#[derive(ToSchema)]
pub(crate) struct RecommendedIds {
    items: Vec<Recommendation>,
    strategy: String,
    model_version: u64,
}

#[derive(ToSchema)]
pub(crate) struct Recommendation {
    product_id: String,
    score: i64,
    because: Vec<String>,
}

/// What to show beside a product; `partial` names what is missing.
#[derive(ToSchema)]
pub(crate) struct Recommendations {
    items: Vec<RecommendedProduct>,
    strategy: String,
    model_version: u64,
    partial: Vec<String>,
}

#[derive(ToSchema)]
pub(crate) struct RecommendedProduct {
    product_id: String,
    score: i64,
    because: Vec<String>,
    name: Option<String>,
    unit_net: Option<Money>,
    available: Option<u32>,
    image: Option<String>,
}

#[derive(ToSchema)]
pub(crate) struct Category {
    id: String,
    slug: String,
    name: String,
    parent: Option<String>,
    products: u32,
    version: u64,
}

#[derive(ToSchema)]
pub(crate) struct ReviewPage {
    items: Vec<Review>,
    next_cursor: Option<String>,
}

#[derive(ToSchema)]
pub(crate) struct Review {
    id: String,
    product_id: String,
    user_id: String,
    rating: u8,
    title: String,
    body: String,
    verified: bool,
    helpful: u32,
    created_at: String,
    version: u64,
}

#[derive(ToSchema)]
pub(crate) struct Cart {
    lines: Vec<CartLine>,
    items_net: Money,
    tax: Money,
    gross: Money,
    version: u64,
}

#[derive(ToSchema)]
pub(crate) struct CartLine {
    product_id: String,
    name: String,
    qty: u32,
    unit_net: Money,
    line_net: Money,
    available: u32,
    price_changed: bool,
}

#[derive(ToSchema)]
pub(crate) struct Address {
    name: String,
    street: Vec<String>,
    postcode: String,
    city: String,
    region: Option<String>,
    /// ISO 3166-1, two capital letters.
    country: String,
    phone: Option<String>,
}

#[derive(ToSchema)]
pub(crate) struct ShipTo {
    /// ISO 3166-1, two capital letters.
    country: String,
    postcode: String,
}

#[derive(ToSchema)]
pub(crate) struct Totals {
    items_net: Money,
    shipping_net: Money,
    tax: Money,
    gross: Money,
}

#[derive(ToSchema)]
pub(crate) struct OrderLine {
    line_id: u32,
    product_id: String,
    sku: String,
    name: String,
    fulfilment: String,
    qty: u32,
    unit_net: Money,
    net: Money,
    tax_rate: u32,
    tax: Money,
    state: String,
}

#[derive(ToSchema)]
pub(crate) struct ShippingOption {
    id: String,
    name: String,
    net: Money,
    days: u32,
}

#[derive(ToSchema)]
pub(crate) struct Quote {
    id: String,
    lines: Vec<OrderLine>,
    totals: Totals,
    options: Vec<ShippingOption>,
    shipping_option: Option<String>,
    needs_address: bool,
    expires_at: String,
}

#[derive(ToSchema)]
pub(crate) struct ShortLine {
    product_id: String,
    requested: u32,
    available: u32,
}

#[derive(ToSchema)]
pub(crate) struct Order {
    id: String,
    number: String,
    user_id: String,
    email: String,
    status: String,
    payment: String,
    fulfilment: String,
    reason: Option<String>,
    short: Vec<ShortLine>,
    lines: Vec<OrderLine>,
    totals: Totals,
    address: Option<Address>,
    payment_id: Option<String>,
    attempts: u32,
    can_cancel: bool,
    version: u64,
    placed_at: String,
}

/// An order with its latest payment; `partial` names the parts that are missing.
#[derive(ToSchema)]
pub(crate) struct OrderDetail {
    id: String,
    number: String,
    user_id: String,
    email: String,
    status: String,
    payment: String,
    fulfilment: String,
    reason: Option<String>,
    short: Vec<ShortLine>,
    lines: Vec<OrderLine>,
    totals: Totals,
    address: Option<Address>,
    payment_id: Option<String>,
    attempts: u32,
    can_cancel: bool,
    version: u64,
    placed_at: String,
    payment_detail: Option<Payment>,
    partial: Vec<String>,
}

#[derive(ToSchema)]
pub(crate) struct Payment {
    id: String,
    order_id: String,
    user_id: String,
    state: String,
    amount: Money,
    captured: Money,
    refunded: Money,
    card: Option<Method>,
    decline_code: Option<String>,
    timeline: Vec<PaymentEntry>,
}

#[derive(ToSchema)]
pub(crate) struct PaymentEntry {
    at: String,
    text: String,
}

#[derive(ToSchema)]
pub(crate) struct OrderPage {
    items: Vec<Order>,
    next_cursor: Option<String>,
}

#[derive(ToSchema)]
pub(crate) struct HistoryEntry {
    version: u64,
    r#type: String,
    at: String,
    actor: Option<String>,
    summary: String,
}

#[derive(ToSchema)]
pub(crate) struct Readiness {
    ready: bool,
    services: BTreeMap<String, ServiceReadiness>,
}

#[derive(ToSchema)]
pub(crate) struct ServiceReadiness {
    ready: bool,
    transport: String,
    /// Why it is not: a code, or the checks that fail.
    error: Option<String>,
}
