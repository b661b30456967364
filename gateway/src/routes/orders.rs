//! From the quote to the confirmed order.

use std::time::Duration;

use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use contracts::{
    MethodId, OrderId, Page, PaymentId, Reason, Timestamp,
    order::{
        Address, CancelOrder, GetHistory, GetOrder, HistoryEntry, ListOrders, OrderStatus,
        OrderView, PayOrder, PaymentStatus, PlaceOrder, QuoteCart, ShipTo,
    },
    payment::GetPayment,
    user::GetUser,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use utoipa::{IntoParams, ToSchema};

use super::{cart::CartOwner, members, page};
use crate::{
    Gateway,
    auth::SignedIn,
    body::{Body, IdempotencyKey, OptionalKey, Search, id},
    calls::Calls,
    docs,
    error::Problem,
    version::tagged,
};

/// The longest that anybody may have the gateway wait for an order.
const LONGEST_WAIT: u64 = 10;
/// How long one look at an order may take.
const LOOK: Duration = Duration::from_secs(2);
/// The pause between two looks grows from the first to the second.
const PAUSES: [Duration; 2] = [Duration::from_millis(25), Duration::from_millis(250)];
/// What a page can do without is waited for this long.
const PART: Duration = Duration::from_millis(800);
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

#[derive(Deserialize, ToSchema)]
pub(crate) struct QuoteBody {
    #[schema(value_type = Option<docs::ShipTo>)]
    ship_to: Option<ShipTo>,
    /// The id of one of the options of an earlier quote.
    shipping_option: Option<String>,
}

/// Prices the cart for checkout.
#[utoipa::path(
    post, path = "/v1/checkout/quote", tag = "orders", security((), ("bearer" = [])),
    params(("X-Cart-Token" = Option<String>, Header, description = "names an anonymous cart")),
    request_body = QuoteBody,
    responses((status = 200, description = "prices for ten minutes", body = docs::Quote)),
)]
pub(crate) async fn quote(
    State(gateway): State<Gateway>,
    owner: CartOwner,
    Body(body): Body<QuoteBody>,
) -> Result<Response, Problem> {
    let QuoteBody {
        ship_to,
        shipping_option,
    } = body;
    let message = QuoteCart {
        owner: owner.owner.clone(),
        ship_to,
        shipping_option,
    };
    let quote = owner.calls.send(&gateway.clients.order, message).await?;
    Ok(owner.respond(Json(quote)))
}

#[derive(Deserialize, ToSchema)]
pub(crate) struct PlaceBody {
    quote_id: String,
    /// Where to, if anything is shipped.
    #[schema(value_type = Option<docs::Address>)]
    address: Option<Address>,
    /// Which way, if anything is shipped.
    shipping_option: Option<String>,
    /// The stored card to pay with.
    method_id: Option<String>,
    /// Where mail goes; the account's address unless said otherwise.
    email: Option<String>,
}

/// Places an order. With `Prefer: wait=5` the answer says what became of it.
#[utoipa::path(
    post, path = "/v1/orders", tag = "orders", security(("bearer" = [])),
    params(
        ("Idempotency-Key" = String, Header, description = "a repetition gets the same order"),
        ("Prefer" = Option<String>, Header, description = "`wait=` and seconds, at most 10"),
    ),
    request_body = PlaceBody,
    responses(
        (status = 201, description = "confirmed", body = docs::Order),
        (status = 202, description = "accepted; `Location` says where to look", body = docs::Order),
        (status = 402, description = "the payment was declined; the problem holds the `order`"),
        (status = 409, description = "out of stock, or prices changed"),
    ),
)]
pub(crate) async fn place(
    State(gateway): State<Gateway>,
    calls: Calls,
    SignedIn(actor): SignedIn,
    IdempotencyKey(key): IdempotencyKey,
    headers: HeaderMap,
    Body(body): Body<PlaceBody>,
) -> Result<Response, Problem> {
    let calls = calls.by(&actor);
    let quote_id = id(&body.quote_id, "quote_id")?;
    let method_id = body
        .method_id
        .as_deref()
        .map(|text| id(text, "method_id"))
        .transpose()?;
    let email = match body.email {
        Some(email) => email,
        None => {
            let message = GetUser {
                user_id: actor.user_id,
            };
            calls.send(&gateway.clients.user, message).await?.email
        }
    };
    let message = PlaceOrder {
        user_id: actor.user_id,
        quote_id,
        address: body.address,
        shipping_option: body.shipping_option,
        method_id,
        email,
    };
    let order = calls
        .with_key(Some(key))
        .send(&gateway.clients.order, message)
        .await?;
    settled(&gateway, &calls, order, &headers, StatusCode::CREATED).await
}

#[derive(Deserialize, ToSchema)]
pub(crate) struct PayBody {
    /// The stored card to pay with.
    method_id: String,
}

/// Tries another payment. With `Prefer: wait=5` the answer says what became of it.
#[utoipa::path(
    post, path = "/v1/orders/{id}/pay", tag = "orders", security(("bearer" = [])),
    params(
        ("id" = String, Path, description = "the order"),
        ("Idempotency-Key" = String, Header, description = "a repetition is no second payment"),
        ("Prefer" = Option<String>, Header, description = "`wait=` and seconds, at most 10"),
    ),
    request_body = PayBody,
    responses(
        (status = 200, description = "confirmed", body = docs::Order),
        (status = 202, description = "accepted; `Location` says where to look", body = docs::Order),
        (status = 402, description = "the payment was declined; the problem holds the `order`"),
        (status = 409, description = "no payment is awaited"),
    ),
)]
pub(crate) async fn pay(
    State(gateway): State<Gateway>,
    calls: Calls,
    SignedIn(actor): SignedIn,
    IdempotencyKey(key): IdempotencyKey,
    Path(order): Path<String>,
    headers: HeaderMap,
    Body(body): Body<PayBody>,
) -> Result<Response, Problem> {
    let calls = calls.by(&actor);
    let order_id: OrderId = id(&order, "id")?;
    let method_id: MethodId = id(&body.method_id, "method_id")?;
    let message = PayOrder {
        order_id,
        method_id,
    };
    let order = calls
        .with_key(Some(key))
        .send(&gateway.clients.order, message)
        .await?;
    settled(&gateway, &calls, order, &headers, StatusCode::OK).await
}

/// Waits for an order to settle, as long as its buyer prefers to, and answers accordingly.
async fn settled(
    gateway: &Gateway,
    calls: &Calls,
    mut order: OrderView,
    headers: &HeaderMap,
    confirmed: StatusCode,
) -> Result<Response, Problem> {
    let wait = preferred_wait(headers);
    if let Some(seconds) = wait {
        let until = Instant::now() + Duration::from_secs(seconds);
        let mut pause = PAUSES[0];
        while !is_decided(&order) && Instant::now() + pause < until {
            sleep(pause).await;
            pause = (pause * 2).min(PAUSES[1]);
            let look = calls.within(LOOK);
            match look
                .send(&gateway.clients.order, GetOrder { order_id: order.id })
                .await
            {
                Ok(now) => order = now,
                // The order is placed, whatever becomes of looking at it.
                Err(error) => tracing::warn!(?error, "an order cannot be looked at for now"),
            }
        }
    }
    if wait.is_some() && is_declined(&order) && order.reason.is_none() {
        order.reason = decline_code(gateway, &calls.within(PART), order.payment_id).await;
    }
    let location = format!("/v1/orders/{}", order.id);
    let mut response = match wait {
        Some(_) => outcome(order, confirmed),
        None => accepted(&order),
    };
    let headers = response.headers_mut();
    if let Ok(location) = HeaderValue::try_from(location) {
        headers.insert(header::LOCATION, location);
    }
    if let Some(seconds) = wait
        && let Ok(applied) = HeaderValue::try_from(format!("wait={seconds}"))
    {
        headers.insert(PREFERENCE_APPLIED, applied);
    }
    Ok(response)
}

/// Why the latest payment was declined, which the order does not say while another may be tried.
async fn decline_code(
    gateway: &Gateway,
    calls: &Calls,
    payment_id: Option<PaymentId>,
) -> Option<String> {
    let message = GetPayment {
        payment_id: payment_id?,
    };
    match calls.send(&gateway.clients.payment, message).await {
        Ok(payment) => payment.decline_code,
        Err(error) => {
            tracing::warn!(?error, "a declined payment cannot be looked at");
            None
        }
    }
}

fn accepted(order: &OrderView) -> Response {
    (StatusCode::ACCEPTED, Json(order)).into_response()
}

/// Whether waiting longer brings nothing: it is settled, or its buyer has to do something.
fn is_decided(order: &OrderView) -> bool {
    order.status.is_settled() || is_declined(order)
}

fn is_declined(order: &OrderView) -> bool {
    order.status == OrderStatus::AwaitingPayment && order.payment == PaymentStatus::Failed
}

fn outcome(order: OrderView, confirmed: StatusCode) -> Response {
    let reason = order.reason.clone().unwrap_or_default();
    let problem = match order.status {
        OrderStatus::Confirmed | OrderStatus::Completed => {
            return (confirmed, Json(order)).into_response();
        }
        OrderStatus::AwaitingPayment if is_declined(&order) => Problem::new(
            Reason::PaymentDeclined,
            "the payment was declined; another may be tried",
        ),
        OrderStatus::Placed | OrderStatus::AwaitingPayment | OrderStatus::Cancelling => {
            return accepted(&order);
        }
        OrderStatus::Rejected if reason == "out_of_stock" => {
            Problem::new(Reason::OutOfStock, "too few are left").with("short", json!(order.short))
        }
        OrderStatus::Rejected if order.payment == PaymentStatus::Failed => {
            Problem::new(Reason::PaymentDeclined, "the payment was declined")
        }
        OrderStatus::Rejected | OrderStatus::Cancelled => {
            Problem::new(Reason::StateConflict, "the order came to nothing")
        }
    };
    problem
        .with("reason", json!(reason))
        .with("order", json!(order))
        .into_response()
}

/// The seconds of `Prefer: wait=5` (RFC 7240).
fn preferred_wait(headers: &HeaderMap) -> Option<u64> {
    let preferences = headers
        .get_all("prefer")
        .iter()
        .filter_map(|value| value.to_str().ok());
    let mut parts = preferences.flat_map(|value| value.split([',', ';']));
    let seconds: u64 = parts.find_map(|part| {
        let (name, value) = part.split_once('=')?;
        let is_wait = name.trim().eq_ignore_ascii_case("wait");
        is_wait.then(|| value.trim().parse().ok()).flatten()
    })?;
    Some(seconds.min(LONGEST_WAIT))
}

#[derive(Deserialize, ToSchema)]
pub(crate) struct CancelBody {
    #[serde(default)]
    reason: String,
}

/// Cancels an order.
#[utoipa::path(
    post, path = "/v1/orders/{id}/cancel", tag = "orders", security(("bearer" = [])),
    params(
        ("id" = String, Path, description = "the order"),
        ("Idempotency-Key" = Option<String>, Header, description = "not needed: repeating is safe"),
    ),
    request_body = CancelBody,
    responses((status = 200, description = "the order, being undone", body = docs::Order)),
)]
pub(crate) async fn cancel(
    State(gateway): State<Gateway>,
    calls: Calls,
    SignedIn(actor): SignedIn,
    OptionalKey(key): OptionalKey,
    Path(order): Path<String>,
    Body(CancelBody { reason }): Body<CancelBody>,
) -> Result<Json<OrderView>, Problem> {
    let reason = match reason.trim() {
        "" => "cancelled by the buyer".to_owned(),
        _ => reason,
    };
    let message = CancelOrder {
        order_id: id(&order, "id")?,
        reason,
    };
    let calls = calls.by(&actor).with_key(key);
    Ok(Json(calls.send(&gateway.clients.order, message).await?))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct OrderQuery {
    /// `placed`, `awaiting_payment`, `confirmed`, `completed`, `rejected`, `cancelling`, `cancelled`.
    #[param(value_type = Option<String>)]
    status: Option<OrderStatus>,
    /// Placed at this time or later.
    #[param(value_type = Option<String>)]
    from: Option<Timestamp>,
    /// Placed before this time.
    #[param(value_type = Option<String>)]
    to: Option<Timestamp>,
    /// 1 to 100, 25 unless said otherwise.
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
    /// Only those of this user; for staff.
    user_id: Option<String>,
}

impl OrderQuery {
    pub(super) fn into_message(self) -> Result<ListOrders, Problem> {
        Ok(ListOrders {
            user_id: self.user_id.map(|text| id(&text, "user_id")).transpose()?,
            status: self.status,
            from: self.from,
            to: self.to,
            page: page(self.limit, self.cursor),
        })
    }
}

/// One's own orders, newest first.
#[utoipa::path(
    get, path = "/v1/orders", tag = "orders", security(("bearer" = [])), params(OrderQuery),
    responses((status = 200, description = "a page of orders", body = docs::OrderPage)),
)]
pub(crate) async fn list(
    State(gateway): State<Gateway>,
    calls: Calls,
    SignedIn(actor): SignedIn,
    Search(query): Search<OrderQuery>,
) -> Result<Json<Page<OrderView>>, Problem> {
    let message = ListOrders {
        user_id: Some(actor.user_id),
        ..query.into_message()?
    };
    Ok(Json(
        calls
            .by(&actor)
            .send(&gateway.clients.order, message)
            .await?,
    ))
}

/// An order with its latest payment.
#[utoipa::path(
    get, path = "/v1/orders/{id}", tag = "orders", security(("bearer" = [])),
    params(("id" = String, Path, description = "the order")),
    responses(
        (status = 200, description = "the order; `ETag` is its version", body = docs::OrderDetail),
        (status = 304, description = "`If-None-Match` names this version"),
    ),
)]
pub(crate) async fn get(
    State(gateway): State<Gateway>,
    calls: Calls,
    SignedIn(actor): SignedIn,
    Path(order): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let calls = calls.by(&actor);
    let message = GetOrder {
        order_id: id(&order, "id")?,
    };
    let order = calls.send(&gateway.clients.order, message).await?;
    let version = order.version;
    let (payment, partial) = match order.payment_id {
        Some(payment_id) => payment(&gateway, &calls, payment_id).await,
        None => (Value::Null, json!([])),
    };
    let mut view = members(order);
    let is_whole = partial == json!([]);
    view.insert("payment_detail".to_owned(), payment);
    view.insert("partial".to_owned(), partial);
    if is_whole {
        Ok(tagged(version, view, &headers))
    } else {
        // Without a tag: it is not what this version looks like.
        Ok(Json(view).into_response())
    }
}

async fn payment(gateway: &Gateway, calls: &Calls, payment_id: PaymentId) -> (Value, Value) {
    let part = calls.at_most(PART);
    match part
        .send(&gateway.clients.payment, GetPayment { payment_id })
        .await
    {
        Ok(payment) => (json!(payment), json!([])),
        Err(error) => {
            tracing::warn!(?error, "an order without its payment");
            (Value::Null, json!(["payment_detail"]))
        }
    }
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct TimelineQuery {
    /// Only what came after this version.
    #[serde(default)]
    #[param(required = false)]
    after_version: u64,
}

/// What happened to an order, oldest first.
#[utoipa::path(
    get, path = "/v1/orders/{id}/timeline", tag = "orders", security(("bearer" = [])),
    params(("id" = String, Path, description = "the order"), TimelineQuery),
    responses((status = 200, description = "its history", body = [docs::HistoryEntry])),
)]
pub(crate) async fn timeline(
    State(gateway): State<Gateway>,
    calls: Calls,
    SignedIn(actor): SignedIn,
    Path(order): Path<String>,
    Search(query): Search<TimelineQuery>,
) -> Result<Json<Vec<Value>>, Problem> {
    let message = GetHistory {
        order_id: id(&order, "id")?,
        after_version: query.after_version,
    };
    let history = calls
        .by(&actor)
        .send(&gateway.clients.order, message)
        .await?;
    let entries = history.into_iter().map(|entry| {
        let HistoryEntry {
            version,
            kind,
            at,
            actor,
            summary,
        } = entry;
        json!({ "version": version, "type": kind, "at": at, "actor": actor, "summary": summary })
    });
    Ok(Json(entries.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_preferred_wait_is_bounded() {
        let wait = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("prefer", HeaderValue::from_static(text));
            preferred_wait(&headers)
        };
        assert_eq!(wait("wait=5"), Some(5));
        assert_eq!(wait("respond-async, Wait = 3"), Some(3));
        assert_eq!(wait("wait=600"), Some(LONGEST_WAIT));
        assert_eq!(wait("wait=x"), None);
        assert_eq!(wait("return=minimal"), None);
    }
}
