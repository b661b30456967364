//! What goes with what.

use std::collections::HashMap;

use axum::{Json, extract::State};
use contracts::{
    product::{Quantity, QuoteLines},
    recommendation::{RecommendForProduct, Recommendations},
};
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};

use crate::{
    Gateway,
    body::{Search, id},
    calls::Calls,
    docs,
    error::Problem,
};

const USUAL: u32 = 8;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct RecommendationQuery {
    /// What they are to go with.
    r#for: For,
    /// The product's id.
    id: String,
    /// 1 to 50, 8 unless said otherwise.
    limit: Option<u32>,
}

#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum For {
    Product,
}

/// What is bought together with a product and can be bought now, with names and prices.
#[utoipa::path(
    get, path = "/v1/recommendations", tag = "catalogue", params(RecommendationQuery),
    responses((status = 200, description = "best first", body = docs::Recommendations)),
)]
pub(crate) async fn list(
    State(gateway): State<Gateway>,
    calls: Calls,
    Search(query): Search<RecommendationQuery>,
) -> Result<Json<Value>, Problem> {
    let For::Product = query.r#for;
    let product_id = id(&query.id, "id")?;
    let message = RecommendForProduct {
        product_id,
        limit: query.limit.unwrap_or(USUAL),
    };
    let found = calls.send(&gateway.clients.recommendation, message).await?;
    let Recommendations {
        items,
        strategy,
        model_version,
    } = found;
    let lines = items.iter().map(|item| Quantity {
        product_id: item.product_id,
        qty: 1,
    });
    let quote = QuoteLines {
        lines: lines.collect(),
    };
    let quoted = match calls.send(&gateway.clients.product, quote).await {
        Ok(quoted) => Some(quoted.lines),
        Err(error) => {
            tracing::warn!(?error, "recommendations without names and prices");
            None
        }
    };
    let partial: &[&str] = if quoted.is_some() { &[] } else { &["products"] };
    let known: Option<HashMap<_, _>> = quoted.map(|lines| {
        lines
            .into_iter()
            .map(|line| (line.product_id, line))
            .collect()
    });
    let items: Vec<_> = items
        .into_iter()
        .filter_map(|item| {
            let line = match &known {
                // Nobody is led to what cannot be bought.
                Some(known) => Some(
                    known
                        .get(&item.product_id)
                        .filter(|line| line.available > 0)?,
                ),
                None => None,
            };
            Some(json!({
                "product_id": item.product_id,
                "score": item.score,
                "because": item.because,
                "name": line.map(|line| &line.name),
                "unit_net": line.map(|line| line.unit_net),
                "available": line.map(|line| line.available),
                "image": line.map(|line| &line.image),
            }))
        })
        .collect();
    Ok(Json(json!({
        "items": items,
        "strategy": strategy,
        "model_version": model_version,
        "partial": partial,
    })))
}
