//! `rec.*`: what goes with what.

use nestling::Message;
use serde::{Deserialize, Serialize};

use crate::ProductId;

crate::svc!("recommendation");

/// Asks what is bought together with a product.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Message)]
#[message(pattern = "rec.for_product", reply = Recommendations, idempotent)]
pub struct RecommendForProduct {
    /// Which.
    pub product_id: ProductId,
    /// 1 to 50.
    pub limit: u32,
}

/// What to show.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recommendations {
    /// Best first.
    pub items: Vec<Recommendation>,
    /// How they were found: `together`, `popular`.
    pub strategy: String,
    /// Which state of the model they come from.
    pub model_version: u64,
}

/// A product to show.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recommendation {
    /// Which.
    pub product_id: ProductId,
    /// Times 10 000; only the order means something.
    pub score: i64,
    /// The products that speak for it.
    pub because: Vec<ProductId>,
}
