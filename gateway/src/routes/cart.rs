//! The cart: that of the user who is signed in, else that of whoever has its token.

use axum::{
    Json,
    extract::{FromRequestParts, Path, State},
    http::{HeaderValue, request::Parts},
    response::{IntoResponse, Response},
};
use contracts::{
    Reason,
    order::{Cart, ClearCart, GetCart, Owner, PutCartLine},
};
use nestling::{Message, RpcError, Single};
use serde::Deserialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    Gateway,
    auth::Visitor,
    body::{Body, id},
    calls::Calls,
    docs,
    error::Problem,
};

const CART_TOKEN: &str = "x-cart-token";

/// Whose cart, and the calls in that one's name.
pub(super) struct CartOwner {
    pub(super) owner: Owner,
    pub(super) calls: Calls,
    token: Option<HeaderValue>,
}

impl FromRequestParts<Gateway> for CartOwner {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, gateway: &Gateway) -> Result<Self, Problem> {
        let Ok(calls) = Calls::from_request_parts(parts, gateway).await;
        let Visitor(actor) = Visitor::from_request_parts(parts, gateway).await?;
        if let Some(actor) = actor {
            let owner = Owner::User(actor.user_id);
            return Ok(Self {
                owner,
                calls: calls.by(&actor),
                token: None,
            });
        }
        let refuse = || {
            let detail = "X-Cart-Token: 16 to 64 letters, digits, hyphens";
            Problem::new(Reason::Malformed, detail)
        };
        let token = match parts.headers.get(CART_TOKEN) {
            Some(token) => token
                .to_str()
                .ok()
                .filter(|token| is_token(token))
                .ok_or_else(refuse)?,
            // Nobody can guess it: 122 random bits.
            None => &Uuid::new_v4().simple().to_string(),
        };
        Ok(Self {
            owner: Owner::Anon(token.to_owned()),
            calls,
            token: HeaderValue::try_from(token).ok(),
        })
    }
}

fn is_token(text: &str) -> bool {
    (16..=64).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

impl CartOwner {
    /// The response, with the token by which an anonymous cart is found again.
    pub(super) fn respond(self, response: impl IntoResponse) -> Response {
        let mut response = response.into_response();
        if let Some(token) = self.token {
            response.headers_mut().insert(CART_TOKEN, token);
        }
        response
    }

    async fn cart<M>(self, gateway: &Gateway, message: M) -> Result<Response, Problem>
    where
        M: Message<Shape = Single, Reply = Cart>,
    {
        let cart: Result<Cart, RpcError> = self.calls.send(&gateway.clients.order, message).await;
        Ok(self.respond(Json(cart?)))
    }
}

/// The cart.
#[utoipa::path(
    get, path = "/v1/cart", tag = "cart", security((), ("bearer" = [])),
    params(("X-Cart-Token" = Option<String>, Header, description = "names an anonymous cart")),
    responses((status = 200, description = "the cart, priced as of now", body = docs::Cart)),
)]
pub(crate) async fn get(
    State(gateway): State<Gateway>,
    owner: CartOwner,
) -> Result<Response, Problem> {
    let message = GetCart {
        owner: owner.owner.clone(),
    };
    owner.cart(&gateway, message).await
}

/// Empties the cart.
#[utoipa::path(
    delete, path = "/v1/cart", tag = "cart", security((), ("bearer" = [])),
    params(("X-Cart-Token" = Option<String>, Header, description = "names an anonymous cart")),
    responses((status = 200, description = "the empty cart", body = docs::Cart)),
)]
pub(crate) async fn clear(
    State(gateway): State<Gateway>,
    owner: CartOwner,
) -> Result<Response, Problem> {
    let message = ClearCart {
        owner: owner.owner.clone(),
    };
    owner.cart(&gateway, message).await
}

#[derive(Deserialize, ToSchema)]
pub(crate) struct LineBody {
    /// 0 to 99; 0 takes it out.
    qty: u32,
}

/// Sets how many of a product the cart holds.
#[utoipa::path(
    put, path = "/v1/cart/lines/{product_id}", tag = "cart", security((), ("bearer" = [])),
    params(
        ("product_id" = String, Path, description = "the product"),
        ("X-Cart-Token" = Option<String>, Header, description = "names an anonymous cart"),
    ),
    request_body = LineBody,
    responses((status = 200, description = "the cart", body = docs::Cart)),
)]
pub(crate) async fn put_line(
    State(gateway): State<Gateway>,
    owner: CartOwner,
    Path(product): Path<String>,
    Body(LineBody { qty }): Body<LineBody>,
) -> Result<Response, Problem> {
    let product_id = id(&product, "product_id")?;
    let message = PutCartLine {
        owner: owner.owner.clone(),
        product_id,
        qty,
    };
    owner.cart(&gateway, message).await
}

/// Takes a product out of the cart.
#[utoipa::path(
    delete, path = "/v1/cart/lines/{product_id}", tag = "cart", security((), ("bearer" = [])),
    params(
        ("product_id" = String, Path, description = "the product"),
        ("X-Cart-Token" = Option<String>, Header, description = "names an anonymous cart"),
    ),
    responses((status = 200, description = "the cart", body = docs::Cart)),
)]
pub(crate) async fn remove_line(
    State(gateway): State<Gateway>,
    owner: CartOwner,
    Path(product): Path<String>,
) -> Result<Response, Problem> {
    let product_id = id(&product, "product_id")?;
    let message = PutCartLine {
        owner: owner.owner.clone(),
        product_id,
        qty: 0,
    };
    owner.cart(&gateway, message).await
}
