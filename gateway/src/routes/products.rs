//! The catalogue.

use std::time::Duration;

use axum::{
    Json,
    extract::{Path, State},
    http::header,
    response::{IntoResponse, Response},
};
use contracts::{
    product::{GetProduct, ListCategories, ListProducts, Product, ProductKey, ProductSort},
    recommendation::RecommendForProduct,
    review::SummarizeReviews,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::{IntoParams, ToSchema};

use super::{members, page};
use crate::{
    Gateway,
    auth::Visitor,
    body::{Search, id},
    calls::Calls,
    docs,
    error::Problem,
};

/// What a page can do without is waited for this long.
const PART: Duration = Duration::from_millis(800);
/// How many other products are shown with one.
const RECOMMENDED: u32 = 8;
/// Lists are the same for everybody.
const SHARED: [(header::HeaderName, &str); 1] = [(header::CACHE_CONTROL, "public, max-age=30")];

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ProductQuery {
    /// Only those in this category.
    category_id: Option<String>,
    /// Only those with these words.
    q: Option<String>,
    /// Net minor units at least.
    price_min: Option<i64>,
    /// Net minor units at most.
    price_max: Option<i64>,
    /// Only those that can be bought now.
    in_stock: Option<bool>,
    sort: Option<Sort>,
    /// 1 to 100, 25 unless said otherwise.
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Sort {
    Name,
    PriceAsc,
    PriceDesc,
    Newest,
}

impl From<Sort> for ProductSort {
    fn from(sort: Sort) -> Self {
        match sort {
            Sort::Name => Self::Name,
            Sort::PriceAsc => Self::PriceAsc,
            Sort::PriceDesc => Self::PriceDesc,
            Sort::Newest => Self::Newest,
        }
    }
}

/// Lists products.
#[utoipa::path(
    get, path = "/v1/products", tag = "catalogue", params(ProductQuery),
    responses((status = 200, description = "a page of products", body = docs::ProductPage)),
)]
pub(crate) async fn list(
    State(gateway): State<Gateway>,
    calls: Calls,
    Search(query): Search<ProductQuery>,
) -> Result<Response, Problem> {
    let category_id = query.category_id.as_deref();
    let message = ListProducts {
        category_id: category_id
            .map(|text| id(text, "category_id"))
            .transpose()?,
        q: query.q,
        price_min: query.price_min,
        price_max: query.price_max,
        in_stock: query.in_stock,
        status: None,
        sort: query.sort.map(Into::into).unwrap_or_default(),
        page: page(query.limit, query.cursor),
    };
    let products = calls.send(&gateway.clients.product, message).await?;
    Ok((SHARED, Json(products)).into_response())
}

/// Lists categories.
#[utoipa::path(
    get, path = "/v1/categories", tag = "catalogue",
    responses((status = 200, description = "all categories", body = [docs::Category])),
)]
pub(crate) async fn categories(
    State(gateway): State<Gateway>,
    calls: Calls,
) -> Result<Response, Problem> {
    let categories = calls
        .send(&gateway.clients.product, ListCategories {})
        .await?;
    Ok((SHARED, Json(categories)).into_response())
}

/// A product with its ratings and what goes with it.
#[utoipa::path(
    get, path = "/v1/products/{id}", tag = "catalogue",
    params(("id" = String, Path, description = "id or slug")),
    responses((status = 200, description = "the product", body = docs::ProductPageView)),
)]
pub(crate) async fn get(
    State(gateway): State<Gateway>,
    calls: Calls,
    Visitor(visitor): Visitor,
    Path(key): Path<String>,
) -> Result<Json<Value>, Problem> {
    // Managers see drafts.
    let calls = visitor.map_or_else(|| calls.clone(), |actor| calls.by(&actor));
    let key = match key.parse() {
        Ok(id) => ProductKey::Id(id),
        Err(_) => ProductKey::Slug(key),
    };
    let product = calls
        .send(&gateway.clients.product, GetProduct { key })
        .await?;
    let product_id = product.card.id;
    let part = calls.at_most(PART);
    let summary = SummarizeReviews {
        product_ids: vec![product_id],
    };
    let related = RecommendForProduct {
        product_id,
        limit: RECOMMENDED,
    };
    let (summaries, related) = tokio::join!(
        part.send(&gateway.clients.review, summary),
        part.send(&gateway.clients.recommendation, related),
    );
    let summary = summaries.map(|summaries| summaries.into_iter().next());
    let mut view = flat(product);
    let mut partial = Vec::new();
    for (name, value) in [
        ("review_summary", summary.map(|summary| json!(summary))),
        ("recommendations", related.map(|related| json!(related))),
    ] {
        let value = value.unwrap_or_else(|error| {
            tracing::warn!(part = name, ?error, "a part of the page is missing");
            partial.push(name);
            Value::Null
        });
        view.insert(name.to_owned(), value);
    }
    view.insert("partial".to_owned(), json!(partial));
    Ok(Json(Value::Object(view)))
}

/// A product as one object: what a list shows of it is not apart.
pub(super) fn flat(product: Product) -> Map<String, Value> {
    let mut view = members(product);
    if let Some(Value::Object(card)) = view.remove("card") {
        view.extend(card);
    }
    view
}
