//! One method per message and event.

use contracts::{
    Fields,
    order::{OrderCancelled, OrderConfirmed, OrderImported},
    recommendation::{RecommendForProduct, Recommendation, Recommendations},
};
use nestling::{Context, RpcError, controller};

use crate::{
    learner::Learner,
    model::{MOST, Scored},
    store::{BasketStore, Purchase},
};

pub(crate) struct RecommendationController {
    pub(crate) store: BasketStore,
    pub(crate) learner: Learner,
}

#[controller]
impl RecommendationController {
    #[message_pattern]
    async fn for_product(&self, request: RecommendForProduct) -> Result<Recommendations, RpcError> {
        let RecommendForProduct { product_id, limit } = request;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let mut fields = Fields::new();
        fields.check((1..=MOST).contains(&limit), "/limit", "range", "1 to 50");
        fields.finish()?;
        let model = self.learner.model();
        let together = model.together(product_id, limit);
        let (scored, strategy, because) = if together.is_empty() {
            (model.popular(product_id, limit), "popular", Vec::new())
        } else {
            (together, "together", vec![product_id])
        };
        let item = |(product_id, score): Scored| Recommendation {
            product_id,
            score: (score * 10_000.0).round() as i64,
            because: because.clone(),
        };
        Ok(Recommendations {
            items: scored.into_iter().map(item).collect(),
            strategy: strategy.to_owned(),
            model_version: model.version(),
        })
    }

    #[event_pattern]
    async fn order_confirmed(&self, event: OrderConfirmed, cx: Context) -> Result<(), RpcError> {
        let OrderConfirmed {
            order_id, order, ..
        } = event;
        let products = order.lines.iter().map(|line| line.product_id).collect();
        let purchase = Purchase {
            order_id,
            user_id: order.user_id,
            products,
        };
        self.learn("recommendation.confirmed", &purchase, &cx).await
    }

    #[event_pattern]
    async fn order_imported(&self, event: OrderImported, cx: Context) -> Result<(), RpcError> {
        let OrderImported {
            order_id,
            user_id,
            product_ids,
            ..
        } = event;
        let purchase = Purchase {
            order_id,
            user_id,
            products: product_ids,
        };
        self.learn("recommendation.imported", &purchase, &cx).await
    }

    /// What had been confirmed is subtracted; what had not was never learned.
    #[event_pattern]
    async fn order_cancelled(&self, event: OrderCancelled, cx: Context) -> Result<(), RpcError> {
        let OrderCancelled {
            order_id,
            user_id,
            lines,
            was_confirmed,
            ..
        } = event;
        if !was_confirmed {
            return Ok(());
        }
        let products = lines.iter().map(|line| line.product_id).collect();
        let purchase = Purchase {
            order_id,
            user_id,
            products,
        };
        if self
            .store
            .undo("recommendation.cancelled", &purchase, &cx)
            .await?
        {
            self.learner.remove(order_id);
        }
        Ok(())
    }
}

impl RecommendationController {
    async fn learn(
        &self,
        handler: &str,
        purchase: &Purchase,
        cx: &Context,
    ) -> Result<(), RpcError> {
        if self.store.add(handler, purchase, cx).await? {
            self.learner.add(purchase.order_id, &purchase.products);
        }
        Ok(())
    }
}
