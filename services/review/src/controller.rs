//! One method per message and event.

use contracts::{
    Actor, Fields, Page,
    order::{OrderConfirmed, OrderImported},
    review::{CreateReview, ListReviews, RatingSummary, Review, SummarizeReviews},
};
use nestling::{Context, RpcError, controller};

use crate::store::ReviewStore;

pub(crate) struct ReviewController {
    pub(crate) store: ReviewStore,
}

#[controller]
impl ReviewController {
    /// Everybody writes in their own name.
    #[message_pattern]
    async fn create(&self, request: CreateReview, actor: Actor) -> Result<Review, RpcError> {
        request.validate()?;
        self.store.create(&request, &actor).await
    }

    #[message_pattern]
    async fn list(&self, request: ListReviews) -> Result<Page<Review>, RpcError> {
        let mut fields = Fields::new();
        request.page.check(&mut fields);
        let is_rating = request
            .rating
            .is_none_or(|rating| (1..=5).contains(&rating));
        fields.check(is_rating, "/rating", "range", "1 to 5");
        fields.finish()?;
        self.store.list(&request).await
    }

    #[message_pattern]
    async fn summarize(&self, request: SummarizeReviews) -> Result<Vec<RatingSummary>, RpcError> {
        let mut fields = Fields::new();
        fields.check(
            request.product_ids.len() <= 100,
            "/product_ids",
            "length",
            "at most 100",
        );
        fields.finish()?;
        self.store.summarize(&request.product_ids).await
    }

    #[event_pattern]
    async fn order_confirmed(&self, event: OrderConfirmed, cx: Context) -> Result<(), RpcError> {
        let products: Vec<_> = event
            .order
            .lines
            .iter()
            .map(|line| line.product_id)
            .collect();
        self.store
            .add_purchase("review.confirmed", event.order.user_id, &products, &cx)
            .await
    }

    #[event_pattern]
    async fn order_imported(&self, event: OrderImported, cx: Context) -> Result<(), RpcError> {
        self.store
            .add_purchase("review.imported", event.user_id, &event.product_ids, &cx)
            .await
    }
}
