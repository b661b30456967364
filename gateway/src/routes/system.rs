//! The gateway itself.

use std::time::Duration;

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use contracts::{order, payment, product, recommendation, review, user};
use nestling::{Client, Health, Message, Single};
use serde_json::{Value, json};

use crate::{Gateway, calls::Calls, docs};

/// How long a service may take to say that it is ready.
const PATIENCE: Duration = Duration::from_secs(1);

const OVERVIEW: &str = "\
nestling shop

  /openapi.json      every route
  /readyz            which services are ready
  /healthz           whether this gateway is alive
  /v1/products       the catalogue
  /v1/categories     its categories

POST /v1/auth/register and /v1/auth/login give a token for Authorization: Bearer.
";

/// What there is.
#[utoipa::path(
    get, path = "/", tag = "system",
    responses((status = 200, description = "an overview", body = String, content_type = "text/plain")),
)]
pub(crate) async fn overview() -> &'static str {
    OVERVIEW
}

/// Whether the gateway is alive.
#[utoipa::path(
    get, path = "/healthz", tag = "system",
    responses((status = 200, description = "it is", body = String, content_type = "text/plain")),
)]
pub(crate) async fn healthz() -> &'static str {
    "ok\n"
}

/// Which services are ready.
#[utoipa::path(
    get, path = "/readyz", tag = "system",
    responses(
        (status = 200, description = "all are", body = docs::Readiness),
        (status = 503, description = "some are not", body = docs::Readiness),
    ),
)]
pub(crate) async fn readyz(State(gateway): State<Gateway>, calls: Calls) -> Response {
    let clients = &gateway.clients;
    let calls = calls.within(PATIENCE);
    let (user, product, order, payment, review, recommendation) = tokio::join!(
        ask(&calls, &clients.user, user::svc::GetHealth {}),
        ask(&calls, &clients.product, product::svc::GetHealth {}),
        ask(&calls, &clients.order, order::svc::GetHealth {}),
        ask(&calls, &clients.payment, payment::svc::GetHealth {}),
        ask(&calls, &clients.review, review::svc::GetHealth {}),
        ask(
            &calls,
            &clients.recommendation,
            recommendation::svc::GetHealth {}
        ),
    );
    let all = [&user, &product, &order, &payment, &review, &recommendation];
    let ready = all.iter().all(|(ready, _)| *ready);
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let services = json!({
        "user": user.1,
        "product": product.1,
        "order": order.1,
        "payment": payment.1,
        "review": review.1,
        "recommendation": recommendation.1,
    });
    (
        status,
        Json(json!({ "ready": ready, "services": services })),
    )
        .into_response()
}

async fn ask<M>(calls: &Calls, client: &Client, message: M) -> (bool, Value)
where
    M: Message<Shape = Single, Reply = Health>,
{
    let (ready, error) = match calls.send(client, message).await {
        Ok(Health { ready: true, .. }) => (true, None),
        Ok(health) => {
            let failing = health
                .checks
                .into_iter()
                .filter(|check| check.error.is_some());
            let names: Vec<_> = failing.map(|check| check.name).collect();
            (false, Some(names.join(", ")))
        }
        Err(error) => (false, Some(error.code.to_string())),
    };
    (
        ready,
        json!({ "ready": ready, "transport": client.transport(), "error": error }),
    )
}

/// This interface, described.
#[utoipa::path(
    get, path = "/openapi.json", tag = "system",
    responses((status = 200, description = "OpenAPI 3.1", content_type = "application/json")),
)]
pub(crate) async fn openapi(State(gateway): State<Gateway>) -> Response {
    let json = [(header::CONTENT_TYPE, "application/json")];
    (json, gateway.document.clone()).into_response()
}
