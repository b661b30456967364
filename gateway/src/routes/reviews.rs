//! Reviews of a product.

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use contracts::{
    Page,
    review::{CreateReview, ListReviews, Review, ReviewSort},
};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::page;
use crate::{
    Gateway,
    auth::SignedIn,
    body::{Body, OptionalKey, Search, id},
    calls::Calls,
    docs,
    error::Problem,
};

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ReviewQuery {
    sort: Option<Sort>,
    /// Only those with so many stars.
    rating: Option<u8>,
    /// Only those by buyers.
    verified: Option<bool>,
    /// 1 to 100, 25 unless said otherwise.
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = ReviewSort)]
pub(crate) enum Sort {
    Newest,
    High,
    Low,
    Helpful,
}

impl From<Sort> for ReviewSort {
    fn from(sort: Sort) -> Self {
        match sort {
            Sort::Newest => Self::Newest,
            Sort::High => Self::High,
            Sort::Low => Self::Low,
            Sort::Helpful => Self::Helpful,
        }
    }
}

/// Lists reviews of a product.
#[utoipa::path(
    get, path = "/v1/products/{id}/reviews", tag = "catalogue",
    params(("id" = String, Path, description = "the product's id"), ReviewQuery),
    responses((status = 200, description = "a page of reviews", body = docs::ReviewPage)),
)]
pub(crate) async fn list(
    State(gateway): State<Gateway>,
    calls: Calls,
    Path(product): Path<String>,
    Search(query): Search<ReviewQuery>,
) -> Result<Json<Page<Review>>, Problem> {
    let message = ListReviews {
        product_id: id(&product, "id")?,
        sort: query.sort.map(Into::into).unwrap_or_default(),
        rating: query.rating,
        verified: query.verified,
        page: page(query.limit, query.cursor),
    };
    Ok(Json(calls.send(&gateway.clients.review, message).await?))
}

#[derive(Deserialize, ToSchema)]
pub(crate) struct ReviewBody {
    /// 1 to 5.
    rating: u8,
    /// At most 120 characters.
    title: String,
    /// At most 5000 characters.
    #[serde(default)]
    body: String,
}

/// Writes a review, one per user and product.
#[utoipa::path(
    post, path = "/v1/products/{id}/reviews", tag = "catalogue", security(("bearer" = [])),
    params(
        ("id" = String, Path, description = "the product's id"),
        ("Idempotency-Key" = Option<String>, Header, description = "passed on to the service"),
    ),
    request_body = ReviewBody,
    responses((status = 201, description = "the review", body = docs::Review)),
)]
pub(crate) async fn create(
    State(gateway): State<Gateway>,
    calls: Calls,
    SignedIn(actor): SignedIn,
    OptionalKey(key): OptionalKey,
    Path(product): Path<String>,
    Body(body): Body<ReviewBody>,
) -> Result<(StatusCode, Json<Review>), Problem> {
    let ReviewBody {
        rating,
        title,
        body,
    } = body;
    let message = CreateReview {
        product_id: id(&product, "id")?,
        rating,
        title,
        body,
    };
    let review = calls
        .by(&actor)
        .with_key(key)
        .send(&gateway.clients.review, message)
        .await?;
    Ok((StatusCode::CREATED, Json(review)))
}
