//! What a buyer does and sees, said in contracts.

use std::{
    fmt::Display,
    time::{Duration, Instant},
};

use contracts::{
    Actor, Currency, MethodId, Money, OrderId, ProductId, Role, Secret, SessionId, TaxRate, UserId,
    order::{
        Address, CancelOrder, GetOrder, OrderView, Owner, PlaceOrder, PutCartLine, QuoteCart,
        ShipTo,
    },
    payment::{AddMethod, Card, GetPayment, Payment, payment_id},
    product::{CreateProduct, Fulfilment, GetStock, ProductDraft, ProductStatus, Stock},
};
use gateway::Clients;
use nestling::{Client, Code, Message, RpcError, Single, header};
use shop::Staff;

/// How long anything is waited for; much more than it takes on a machine that is busy with other things.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(50);
const CALL: Duration = Duration::from_secs(20);
/// Short, as what is sent with a key can be sent again.
const CALL_WITH_KEY: Duration = Duration::from_secs(5);

/// The number of a card that is always good for it.
pub(crate) const GOOD_CARD: &str = "4242 4242 4242 4242";

/// Somebody with a session.
#[derive(Clone)]
pub(crate) struct Buyer {
    pub(crate) user_id: UserId,
    clients: Clients,
    actor: String,
}

impl Buyer {
    /// Signed in as `user_id`, as the gateway would say it.
    pub(crate) fn new(clients: &Clients, user_id: UserId) -> Self {
        let session = SessionId::new();
        let actor = Actor {
            user_id,
            roles: vec![Role::Customer],
            session,
        };
        Self {
            user_id,
            clients: clients.clone(),
            actor: actor.to_header(),
        }
    }

    /// Sends a message as this buyer.
    pub(crate) async fn send<M: Message<Shape = Single>>(
        &self,
        client: &Client,
        message: M,
    ) -> Result<M::Reply, RpcError> {
        client
            .send(message)
            .header(header::ACTOR, self.actor.clone())
            .timeout(CALL)
            .await
    }

    /// As [`send`](Self::send), for messages that want to know whether they were sent before.
    pub(crate) async fn send_once<M: Message<Shape = Single>>(
        &self,
        client: &Client,
        message: M,
        key: &str,
    ) -> Result<M::Reply, RpcError> {
        client
            .send(message)
            .header(header::ACTOR, self.actor.clone())
            .header(header::IDEMPOTENCY_KEY, key)
            .timeout(CALL_WITH_KEY)
            .await
    }

    /// Adds a card.
    pub(crate) async fn add_card(&self, number: &str) -> MethodId {
        let card = Card {
            pan: Secret::new(number),
            exp: "12/99".to_owned(),
            cvc: Secret::new("123"),
            holder: "Ada Buyer".to_owned(),
        };
        let user_id = self.user_id;
        let method = self
            .send(&self.clients.payment, AddMethod { user_id, card })
            .await;
        method.expect("the card is added").id
    }

    /// Puts goods into the cart, asks for the price, and fills in the form, repeating each while there is
    /// no answer.
    pub(crate) async fn fill_in(
        &self,
        product_id: ProductId,
        qty: u32,
        method_id: MethodId,
    ) -> PlaceOrder {
        let order = &self.clients.order;
        let owner = Owner::User(self.user_id);
        let line = PutCartLine {
            owner: owner.clone(),
            product_id,
            qty,
        };
        let cart = until_answered(async || self.send(order, line.clone()).await).await;
        assert_eq!(cart.lines[0].qty, qty);
        let address = address();
        let quote = QuoteCart {
            owner,
            ship_to: Some(ShipTo {
                country: address.country.clone(),
                postcode: address.postcode.clone(),
            }),
            shipping_option: None,
        };
        let quote = until_answered(async || self.send(order, quote.clone()).await).await;
        PlaceOrder {
            user_id: self.user_id,
            quote_id: quote.id,
            address: Some(address),
            shipping_option: quote.shipping_option,
            method_id: Some(method_id),
            email: "ada@example.org".to_owned(),
        }
    }

    /// Places an order once for each key, repeating it while there is no answer.
    pub(crate) async fn place(&self, request: &PlaceOrder, key: &str) -> OrderView {
        until_answered(async || {
            self.send_once(&self.clients.order, request.clone(), key)
                .await
        })
        .await
    }

    /// Cancels an order, repeating it while there is no answer.
    pub(crate) async fn cancel(&self, order_id: OrderId) -> OrderView {
        until_answered(async || {
            let reason = "changed my mind".to_owned();
            self.send(&self.clients.order, CancelOrder { order_id, reason })
                .await
        })
        .await
    }

    /// The order once it is as wanted.
    pub(crate) async fn until(
        &self,
        order_id: OrderId,
        is_wanted: impl Fn(&OrderView) -> bool,
    ) -> OrderView {
        until(async || {
            let order = self
                .send(&self.clients.order, GetOrder { order_id })
                .await?;
            if is_wanted(&order) {
                Ok(order)
            } else {
                Err(Unmet::new(format_args!("{order:?}")))
            }
        })
        .await
    }

    /// The payments of all attempts of an order; one that was undone before it began is not there.
    pub(crate) async fn payments(&self, order: &OrderView) -> Vec<Payment> {
        let mut payments = Vec::new();
        for attempt in 1..=order.attempts {
            let payment_id = payment_id(order.id, attempt);
            let payment = GetPayment { payment_id };
            match self.send(&self.clients.payment, payment).await {
                Ok(payment) => payments.push(payment),
                Err(error) => assert_eq!(error.code, Code::NotFound, "{error:?}"),
            }
        }
        payments
    }

    /// What there is of a product.
    pub(crate) async fn stock(&self, product_id: ProductId) -> Result<Stock, Unmet> {
        let product_ids = vec![product_id];
        let stock = self
            .send(&self.clients.product, GetStock { product_ids })
            .await?;
        stock
            .first()
            .copied()
            .ok_or_else(|| Unmet::new("no stock is known"))
    }

    /// Waits until so many are in the warehouse and none is promised to anybody.
    pub(crate) async fn until_on_hand(&self, product_id: ProductId, on_hand: u32) {
        until(async || {
            let stock = self.stock(product_id).await?;
            if (stock.on_hand, stock.reserved) == (on_hand, 0) {
                Ok(())
            } else {
                Err(Unmet::new(format_args!("{stock:?}, not {on_hand} on hand")))
            }
        })
        .await;
    }
}

/// Adds a product, as a manager.
pub(crate) async fn add_product(staff: &Staff, sku: &str, on_hand: u32) -> ProductId {
    let draft = ProductDraft {
        sku: sku.to_owned(),
        name: format!("Product {sku}"),
        description: String::new(),
        supplier: None,
        categories: Vec::new(),
        net: Money::new(1_999, Currency::EUR),
        tax: TaxRate(1_900),
        fulfilment: Fulfilment::Physical,
        weight_g: 500,
        attributes: Default::default(),
        status: ProductStatus::Active,
    };
    let product = staff.send(CreateProduct { draft, on_hand }).await;
    product.expect("the product is added").card.id
}

fn address() -> Address {
    Address {
        name: "Ada Buyer".to_owned(),
        street: vec!["Lane 1".to_owned()],
        postcode: "10115".to_owned(),
        city: "Berlin".to_owned(),
        region: None,
        country: "DE".to_owned(),
        phone: None,
    }
}

/// What was found instead of what is waited for.
#[derive(Debug)]
pub(crate) struct Unmet(String);

impl Unmet {
    pub(crate) fn new(found: impl Display) -> Self {
        Self(found.to_string())
    }
}

/// An answer that fails may come at the next look.
impl From<RpcError> for Unmet {
    fn from(error: RpcError) -> Self {
        Self(format!("{error:?}"))
    }
}

/// Asks until there is an answer: for requests that may be repeated.
async fn until_answered<T>(mut ask: impl AsyncFnMut() -> Result<T, RpcError>) -> T {
    until(async || match ask().await {
        Err(error) if !matches!(error.code, Code::Unavailable | Code::DeadlineExceeded) => {
            panic!("refused: {error:?}")
        }
        answer => Ok(answer?),
    })
    .await
}

/// Looks again and again until `look` finds what is waited for.
pub(crate) async fn until<T>(mut look: impl AsyncFnMut() -> Result<T, Unmet>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match look().await {
            Ok(found) => return found,
            Err(Unmet(found)) if Instant::now() >= deadline => {
                panic!("waited {PATIENCE:?} in vain: {found}")
            }
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}
