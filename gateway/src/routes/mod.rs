//! The routes, a file for each resource.

mod account;
mod admin;
mod cart;
mod methods;
mod orders;
mod products;
mod recommendations;
mod reviews;
mod system;

use contracts::PageRequest;
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{Gateway, docs::Api};

/// Every route with its documentation: there is no other place to add one.
pub(crate) fn all() -> OpenApiRouter<Gateway> {
    OpenApiRouter::with_openapi(Api::openapi())
        .routes(routes!(account::register))
        .routes(routes!(account::login))
        .routes(routes!(account::me, account::change_me))
        .routes(routes!(methods::list, methods::add))
        .routes(routes!(products::list))
        .routes(routes!(products::get))
        .routes(routes!(products::categories))
        .routes(routes!(reviews::list, reviews::create))
        .routes(routes!(recommendations::list))
        .routes(routes!(cart::get, cart::clear))
        .routes(routes!(cart::put_line, cart::remove_line))
        .routes(routes!(orders::quote))
        .routes(routes!(orders::list, orders::place))
        .routes(routes!(orders::get))
        .routes(routes!(orders::timeline))
        .routes(routes!(orders::pay))
        .routes(routes!(orders::cancel))
        .routes(routes!(admin::create_product))
        .routes(routes!(admin::update_product))
        .routes(routes!(admin::create_category))
        .routes(routes!(admin::orders))
        .routes(routes!(system::overview))
        .routes(routes!(system::healthz))
        .routes(routes!(system::readyz))
        .routes(routes!(system::openapi))
}

/// Which page of a list, as a query says it.
fn page(limit: Option<u32>, cursor: Option<String>) -> PageRequest {
    PageRequest {
        limit: limit.unwrap_or(PageRequest::default().limit),
        cursor,
    }
}

/// The members of a JSON object, to be put together with those of others.
fn members(value: impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(value) {
        Ok(Value::Object(members)) => members,
        _ => Map::new(),
    }
}
