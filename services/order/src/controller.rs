//! The service's messages and events: each finds its flow.

use contracts::{
    Actor, Page, Reason,
    order::{
        CancelOrder, Cart, ClearCart, GetCart, GetHistory, GetOrder, HistoryEntry, ImportOrders,
        ListOrders, OrderView, Owner, PayOrder, PlaceOrder, PutCartLine, Quote, QuoteCart,
    },
    payment::{
        PaymentAuthorized, PaymentCaptured, PaymentDeclined, PaymentRefunded, PaymentVoided,
    },
    product::{Imported, StockExpired},
};
use nestling::{Context, FromContext, RpcError, controller, header};

use crate::{cart::Carts, checkout::Checkout, error::Error, order::Input, orders::Orders};

/// What the service answers.
#[derive(Debug)]
pub(crate) struct OrderController {
    pub(crate) carts: Carts,
    pub(crate) checkout: Checkout,
    pub(crate) orders: Orders,
}

#[controller]
impl OrderController {
    #[message_pattern]
    async fn get_cart(&self, request: GetCart, actor: Option<Actor>) -> Result<Cart, Error> {
        require_owner(&request.owner, actor.as_ref())?;
        self.carts.get(&request.owner).await
    }

    #[message_pattern]
    async fn put_line(&self, request: PutCartLine, actor: Option<Actor>) -> Result<Cart, Error> {
        require_owner(&request.owner, actor.as_ref())?;
        self.carts.put(&request).await
    }

    #[message_pattern]
    async fn clear_cart(&self, request: ClearCart, actor: Option<Actor>) -> Result<Cart, Error> {
        require_owner(&request.owner, actor.as_ref())?;
        self.carts.clear(&request.owner).await
    }

    #[message_pattern]
    async fn quote(&self, request: QuoteCart, actor: Option<Actor>) -> Result<Quote, Error> {
        require_owner(&request.owner, actor.as_ref())?;
        self.checkout.quote(&request).await
    }

    #[message_pattern]
    async fn place(
        &self,
        request: PlaceOrder,
        actor: Actor,
        key: IdempotencyKey,
    ) -> Result<OrderView, Error> {
        actor.require_own(request.user_id)?;
        self.checkout.place(request, &key.0).await
    }

    #[message_pattern]
    async fn pay(
        &self,
        request: PayOrder,
        actor: Actor,
        key: IdempotencyKey,
    ) -> Result<OrderView, Error> {
        self.orders.pay(&request, &actor, &key.0).await
    }

    #[message_pattern]
    async fn get(&self, request: GetOrder, actor: Actor) -> Result<OrderView, Error> {
        self.orders.get(&request, &actor).await
    }

    #[message_pattern]
    async fn list(&self, request: ListOrders, actor: Actor) -> Result<Page<OrderView>, Error> {
        self.orders.list(&request, &actor).await
    }

    #[message_pattern]
    async fn history(&self, request: GetHistory, actor: Actor) -> Result<Vec<HistoryEntry>, Error> {
        self.orders.history(&request, &actor).await
    }

    #[message_pattern]
    async fn cancel(&self, request: CancelOrder, actor: Actor) -> Result<OrderView, Error> {
        self.orders.cancel(&request, &actor).await
    }

    #[message_pattern]
    async fn import(&self, request: ImportOrders, actor: Actor) -> Result<Imported, Error> {
        self.orders.import(&request, &actor).await
    }

    #[event_pattern]
    async fn authorized(&self, event: PaymentAuthorized) -> Result<(), Error> {
        self.orders.hurry(event.order_id).await
    }

    #[event_pattern]
    async fn declined(&self, event: PaymentDeclined) -> Result<(), Error> {
        self.orders.hurry(event.order_id).await
    }

    #[event_pattern]
    async fn captured(&self, event: PaymentCaptured, cx: Context) -> Result<(), Error> {
        let PaymentCaptured {
            order_id,
            payment_id,
            amount,
            ..
        } = event;
        let input = Input::Captured { payment_id, amount };
        self.orders
            .hear("order.captured", order_id, &input, &cx)
            .await
    }

    #[event_pattern]
    async fn refunded(&self, event: PaymentRefunded, cx: Context) -> Result<(), Error> {
        let PaymentRefunded {
            order_id,
            payment_id,
            amount,
            full,
            ..
        } = event;
        let input = Input::Refunded {
            payment_id,
            amount,
            full,
        };
        self.orders
            .hear("order.refunded", order_id, &input, &cx)
            .await
    }

    #[event_pattern]
    async fn voided(&self, event: PaymentVoided, cx: Context) -> Result<(), Error> {
        let input = Input::Voided {
            payment_id: event.payment_id,
        };
        self.orders
            .hear("order.voided", event.order_id, &input, &cx)
            .await
    }

    #[event_pattern]
    async fn stock_expired(&self, event: StockExpired, cx: Context) -> Result<(), Error> {
        self.orders
            .hear(
                "order.stock_expired",
                event.order_id,
                &Input::StockExpired,
                &cx,
            )
            .await
    }
}

/// A user's cart is the user's; any other belongs to whoever has its token.
fn require_owner(owner: &Owner, actor: Option<&Actor>) -> Result<(), RpcError> {
    match (owner, actor) {
        (Owner::User(user_id), Some(actor)) => actor.require_own(*user_id),
        (Owner::User(_), None) => Err(Reason::Unauthenticated.error("sign in first")),
        (Owner::Anon(token), _) => {
            let mut fields = contracts::Fields::new();
            fields.length(token, 1..=200, "/owner/anon");
            fields.finish()
        }
    }
}

/// The caller's word that two requests are one.
struct IdempotencyKey(String);

impl FromContext for IdempotencyKey {
    fn from_context(cx: &Context) -> Result<Self, RpcError> {
        let key = cx
            .header(header::IDEMPOTENCY_KEY)
            .filter(|key| !key.is_empty());
        let missing = || Reason::IdempotencyKeyMissing.error("an idempotency key is needed");
        let key = key.ok_or_else(missing)?;
        if key.len() > 200 {
            return Err(Reason::Malformed.error("the idempotency key is too long"));
        }
        Ok(Self(key.to_owned()))
    }
}
