//! One's stored cards.

use axum::{Json, extract::State, http::StatusCode};
use contracts::{
    Secret,
    payment::{AddMethod, Card, ListMethods, Method},
};
use serde::Deserialize;
use utoipa::ToSchema;

use crate::{
    Gateway,
    auth::SignedIn,
    body::{Body, OptionalKey},
    calls::Calls,
    docs,
    error::Problem,
};

/// One's stored cards.
#[utoipa::path(
    get, path = "/v1/me/payment-methods", tag = "accounts", security(("bearer" = [])),
    responses((status = 200, description = "the cards", body = [docs::Method])),
)]
pub(crate) async fn list(
    State(gateway): State<Gateway>,
    calls: Calls,
    SignedIn(actor): SignedIn,
) -> Result<Json<Vec<Method>>, Problem> {
    let message = ListMethods {
        user_id: actor.user_id,
    };
    Ok(Json(
        calls
            .by(&actor)
            .send(&gateway.clients.payment, message)
            .await?,
    ))
}

#[derive(Deserialize, ToSchema)]
pub(crate) struct CardBody {
    /// One of the test cards, such as 4242 4242 4242 4242.
    #[schema(value_type = String)]
    pan: Secret,
    /// `MM/YY`.
    exp: String,
    #[schema(value_type = String)]
    cvc: Secret,
    holder: String,
}

/// Stores a card.
#[utoipa::path(
    post, path = "/v1/me/payment-methods", tag = "accounts", security(("bearer" = [])),
    params(("Idempotency-Key" = Option<String>, Header, description = "passed on to the service")),
    request_body = CardBody,
    responses((status = 201, description = "the card without its number", body = docs::Method)),
)]
pub(crate) async fn add(
    State(gateway): State<Gateway>,
    calls: Calls,
    SignedIn(actor): SignedIn,
    OptionalKey(key): OptionalKey,
    Body(body): Body<CardBody>,
) -> Result<(StatusCode, Json<Method>), Problem> {
    let CardBody {
        pan,
        exp,
        cvc,
        holder,
    } = body;
    let card = Card {
        pan,
        exp,
        cvc,
        holder,
    };
    let message = AddMethod {
        user_id: actor.user_id,
        card,
    };
    let method = calls
        .by(&actor)
        .with_key(key)
        .send(&gateway.clients.payment, message)
        .await;
    let method = method.map_err(|error| Problem::from(error).without_prefix("/card"))?;
    Ok((StatusCode::CREATED, Json(method)))
}
