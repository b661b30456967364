//! One method per message and event.

use contracts::{
    Actor,
    order::OrderConfirmed,
    payment::{
        AddMethod, Authorization, Authorize, Capture, GetPayment, ListMethods, Method, Payment,
        Reversal, Reverse,
    },
};
use nestling::{Context, FromContext, RpcError, controller, header};

use crate::cashier::Cashier;

/// Money is moved for other services, which send `authorize`, `capture` and `reverse` without an
/// actor or with whoever happens to be at the other end; cards and payments are shown to their
/// owners.
pub(crate) struct PaymentController {
    pub(crate) cashier: Cashier,
}

#[controller]
impl PaymentController {
    #[message_pattern]
    async fn add_method(&self, request: AddMethod, actor: Actor) -> Result<Method, RpcError> {
        actor.require_own(request.user_id)?;
        self.cashier.add_method(request).await
    }

    #[message_pattern]
    async fn list_methods(
        &self,
        request: ListMethods,
        actor: Actor,
    ) -> Result<Vec<Method>, RpcError> {
        actor.require_own(request.user_id)?;
        self.cashier.store.methods(request.user_id).await
    }

    #[message_pattern]
    async fn authorize(&self, request: Authorize) -> Result<Authorization, RpcError> {
        self.cashier.authorize(&request).await
    }

    #[message_pattern]
    async fn capture(&self, request: Capture) -> Result<Payment, RpcError> {
        self.cashier.capture(request.payment_id, None).await
    }

    #[message_pattern]
    async fn reverse(&self, request: Reverse) -> Result<Reversal, RpcError> {
        self.cashier.reverse(&request).await
    }

    #[message_pattern]
    async fn get(&self, request: GetPayment, cx: Context) -> Result<Payment, RpcError> {
        let payment = self.cashier.get(request.payment_id).await?;
        // Services ask without an actor; one that cannot be read is nobody's.
        if cx.header(header::ACTOR).is_some() {
            Actor::from_context(&cx)?.require_own(payment.user_id)?;
        }
        Ok(payment)
    }

    #[event_pattern]
    async fn order_confirmed(&self, event: OrderConfirmed, cx: Context) -> Result<(), RpcError> {
        self.cashier.confirmed(&event, &cx).await
    }
}
