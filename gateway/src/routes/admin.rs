//! For those who run the shop.

use std::collections::BTreeMap;

use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use contracts::{
    Currency, Money, Page, TaxRate,
    order::OrderView,
    product::{
        Category, CreateCategory, CreateProduct, Fulfilment, ProductDraft, ProductStatus,
        UpdateProduct,
    },
};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{orders::OrderQuery, products::flat};
use crate::{
    Gateway,
    auth::{ManagerOnly, StaffOnly},
    body::{Body, Search, id},
    calls::Calls,
    docs,
    error::Problem,
    version::{expected, tagged},
};

#[derive(Deserialize, ToSchema)]
pub(crate) struct ProductBody {
    /// Stock keeping unit, unique.
    sku: String,
    name: String,
    #[serde(default)]
    description: String,
    supplier: Option<String>,
    /// Ids of categories.
    #[serde(default)]
    categories: Vec<String>,
    net: MoneyBody,
    /// In basis points: 1900 is 19 %.
    tax: u32,
    /// `physical` or `digital`.
    #[schema(value_type = String)]
    fulfilment: Fulfilment,
    #[serde(default)]
    weight_g: u32,
    #[serde(default)]
    attributes: BTreeMap<String, String>,
    /// `draft`, `active` or `archived`; `active` unless said otherwise.
    #[schema(value_type = Option<String>)]
    status: Option<ProductStatus>,
    /// How many there are at the start; only for a new product.
    #[serde(default)]
    on_hand: u32,
    /// The version that was read, where it is not in `If-Match`; only for a change.
    expected_version: Option<u64>,
}

#[derive(Deserialize, ToSchema)]
pub(crate) struct MoneyBody {
    /// Minor units (cents).
    amount: i64,
    /// ISO 4217; `EUR` unless said otherwise.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    currency: Currency,
}

impl ProductBody {
    fn into_draft(self) -> Result<ProductDraft, Problem> {
        let categories = self.categories.iter().map(|text| id(text, "categories"));
        Ok(ProductDraft {
            categories: categories.collect::<Result<_, _>>()?,
            sku: self.sku,
            name: self.name,
            description: self.description,
            supplier: self.supplier,
            net: Money::new(self.net.amount, self.net.currency),
            tax: TaxRate(self.tax),
            fulfilment: self.fulfilment,
            weight_g: self.weight_g,
            attributes: self.attributes,
            status: self.status.unwrap_or(ProductStatus::Active),
        })
    }
}

/// Adds a product.
#[utoipa::path(
    post, path = "/v1/admin/products", tag = "admin", security(("bearer" = [])),
    request_body = ProductBody,
    responses((status = 201, description = "the product", body = docs::Product)),
)]
pub(crate) async fn create_product(
    State(gateway): State<Gateway>,
    calls: Calls,
    ManagerOnly(actor): ManagerOnly,
    Body(body): Body<ProductBody>,
) -> Result<Response, Problem> {
    let on_hand = body.on_hand;
    let message = CreateProduct {
        draft: body.into_draft()?,
        on_hand,
    };
    let product = calls
        .by(&actor)
        .send(&gateway.clients.product, message)
        .await;
    let product = product.map_err(|error| Problem::from(error).without_prefix("/draft"))?;
    Ok((StatusCode::CREATED, Json(flat(product))).into_response())
}

/// Changes a product: what it is to be, whole.
#[utoipa::path(
    put, path = "/v1/admin/products/{id}", tag = "admin", security(("bearer" = [])),
    params(
        ("id" = String, Path, description = "the product"),
        ("If-Match" = Option<String>, Header, description = "the version that was read, quoted"),
    ),
    request_body = ProductBody,
    responses((status = 200, description = "the product as it is now", body = docs::Product)),
)]
pub(crate) async fn update_product(
    State(gateway): State<Gateway>,
    calls: Calls,
    ManagerOnly(actor): ManagerOnly,
    Path(product): Path<String>,
    headers: HeaderMap,
    Body(body): Body<ProductBody>,
) -> Result<Response, Problem> {
    let product_id = id(&product, "id")?;
    let expected_version = expected(&headers, body.expected_version)?;
    let message = UpdateProduct {
        product_id,
        expected_version,
        draft: body.into_draft()?,
    };
    let product = calls
        .by(&actor)
        .send(&gateway.clients.product, message)
        .await;
    let product = product.map_err(|error| Problem::from(error).without_prefix("/draft"))?;
    Ok(tagged(product.version, flat(product), &HeaderMap::new()))
}

#[derive(Deserialize, ToSchema)]
pub(crate) struct CategoryBody {
    name: String,
    /// The id of the one above it.
    parent: Option<String>,
}

/// Adds a category.
#[utoipa::path(
    post, path = "/v1/admin/categories", tag = "admin", security(("bearer" = [])),
    request_body = CategoryBody,
    responses((status = 201, description = "the category", body = docs::Category)),
)]
pub(crate) async fn create_category(
    State(gateway): State<Gateway>,
    calls: Calls,
    ManagerOnly(actor): ManagerOnly,
    Body(CategoryBody { name, parent }): Body<CategoryBody>,
) -> Result<(StatusCode, Json<Category>), Problem> {
    let parent = parent
        .as_deref()
        .map(|text| id(text, "parent"))
        .transpose()?;
    let message = CreateCategory { name, parent };
    let category = calls
        .by(&actor)
        .send(&gateway.clients.product, message)
        .await?;
    Ok((StatusCode::CREATED, Json(category)))
}

/// Everybody's orders, newest first.
#[utoipa::path(
    get, path = "/v1/admin/orders", tag = "admin", security(("bearer" = [])), params(OrderQuery),
    responses((status = 200, description = "a page of orders", body = docs::OrderPage)),
)]
pub(crate) async fn orders(
    State(gateway): State<Gateway>,
    calls: Calls,
    StaffOnly(actor): StaffOnly,
    Search(query): Search<OrderQuery>,
) -> Result<Json<Page<OrderView>>, Problem> {
    let message = query.into_message()?;
    Ok(Json(
        calls
            .by(&actor)
            .send(&gateway.clients.order, message)
            .await?,
    ))
}
