//! `review.*`: what buyers think.

use nestling::{Event, Message, RpcError};
use serde::{Deserialize, Serialize};

use crate::{Fields, Meta, Page, PageRequest, ProductId, ReviewId, Timestamp, UserId};

crate::svc!("review");

/// A review.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Review {
    /// Id.
    pub id: ReviewId,
    /// Of which product.
    pub product_id: ProductId,
    /// By whom.
    pub user_id: UserId,
    /// 1 to 5.
    pub rating: u8,
    /// A line.
    pub title: String,
    /// Text.
    pub body: String,
    /// Whether the author bought it here.
    pub verified: bool,
    /// How many found it helpful.
    pub helpful: u32,
    /// When.
    pub created_at: Timestamp,
    /// Counts changes.
    pub version: u64,
}

/// Writes a review, one per user and product. Errors: `validation`, `already_reviewed`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Message)]
#[message(pattern = "review.create", reply = Review)]
pub struct CreateReview {
    /// Of which product.
    pub product_id: ProductId,
    /// 1 to 5.
    pub rating: u8,
    /// At most 120 characters.
    pub title: String,
    /// At most 5000 characters.
    pub body: String,
}

impl CreateReview {
    /// # Errors
    /// `validation`.
    pub fn validate(&self) -> Result<(), RpcError> {
        let mut fields = Fields::new();
        fields.check((1..=5).contains(&self.rating), "/rating", "range", "1 to 5");
        fields.length(self.title.trim(), 1..=120, "/title");
        fields.length(&self.body, 0..=5000, "/body");
        fields.finish()
    }
}

/// The order of a list of reviews.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReviewSort {
    /// Newest first.
    #[default]
    Newest,
    /// Best first.
    High,
    /// Worst first.
    Low,
    /// Most helpful first.
    Helpful,
}

/// Lists reviews of a product. Errors: `validation`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Message)]
#[message(pattern = "review.list", reply = Page<Review>, idempotent)]
pub struct ListReviews {
    /// Of which product.
    pub product_id: ProductId,
    /// In which order.
    pub sort: ReviewSort,
    /// Only those with this rating.
    pub rating: Option<u8>,
    /// Only those by buyers.
    pub verified: Option<bool>,
    /// Which page.
    pub page: PageRequest,
}

/// Reads the ratings of at most 100 products.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Message)]
#[message(pattern = "review.summary", reply = Vec<RatingSummary>, idempotent)]
pub struct SummarizeReviews {
    /// Which.
    pub product_ids: Vec<ProductId>,
}

/// The ratings of a product. Means are times 100, so that no float travels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RatingSummary {
    /// Of which product.
    pub product_id: ProductId,
    /// How many.
    pub count: u32,
    /// Mean times 100; 0 when there are none.
    pub mean: u32,
    /// How many with 1, 2, 3, 4, 5.
    pub histogram: [u32; 5],
    /// (Σ ratings + 10 × the shop's mean) / (n + 10), times 100.
    pub bayes: u32,
}

/// A review can be read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Event)]
#[event(pattern = "review.published", key = product_id)]
pub struct ReviewPublished {
    /// Of which product.
    pub product_id: ProductId,
    /// The review.
    pub review: Review,
    /// The product's ratings with it.
    pub summary: RatingSummary,
    /// When, which version.
    pub meta: Meta,
}
