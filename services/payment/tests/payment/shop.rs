//! A payment service to ask, and somebody who listens to its events.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use contracts::{
    Actor, Currency, Meta, MethodId, Money, OrderId, PaymentId, Role, Secret, SessionId, Timestamp,
    UserId,
    order::{FulfilmentStatus, OrderConfirmed, OrderStatus, OrderView, PaymentStatus, Totals},
    payment::*,
};
use nestling::{
    Client, Message, Router, RpcError, Running, Server, Single, header, sqlite, transport::Memory,
};
use payment::{App, Deps, Provider, SealKey};
use tokio::sync::mpsc;

pub(crate) struct Shop {
    pub(crate) client: Client,
    pub(crate) pool: sqlx::SqlitePool,
    pub(crate) user_id: UserId,
    pub(crate) events: mpsc::Receiver<(&'static str, PaymentId)>,
    memory: Memory,
    _servers: Vec<Running>,
    _background: Vec<Box<dyn Send>>,
}

pub(crate) async fn shop() -> Shop {
    let pool = sqlite::open_in_memory().await.unwrap();
    serve(
        pool.clone(),
        |deps| async { payment::start(deps).await.unwrap() },
        Vec::new(),
    )
    .await
}

pub(crate) async fn shop_with(
    provider: Arc<dyn Provider>,
    pool: sqlx::SqlitePool,
    task: impl Send + 'static,
) -> Shop {
    let start = |deps| async move { payment::start_with(deps, provider).await.unwrap() };
    serve(pool, start, vec![Box::new(task)]).await
}

pub(crate) async fn serve<F: Future<Output = App>>(
    pool: sqlx::SqlitePool,
    start: impl FnOnce(Deps) -> F,
    mut background: Vec<Box<dyn Send>>,
) -> Shop {
    let memory = Memory::new();
    let client = Client::connect(&memory).await.unwrap();
    let app = start(deps(&pool, &client)).await;
    background.push(Box::new(app.background));
    let server = Server::new("payment", app.router)
        .listen(&memory)
        .start()
        .await
        .unwrap();
    let (seen, events) = mpsc::channel(64);
    let listener = Server::new("listener", listener(&seen))
        .listen(&memory)
        .start()
        .await
        .unwrap();
    let _servers = vec![server, listener];
    Shop {
        client,
        pool,
        user_id: UserId::new(),
        events,
        memory,
        _servers,
        _background: background,
    }
}

fn deps(pool: &sqlx::SqlitePool, bus: &Client) -> Deps {
    let seal_key = SealKey::from_hex(&Secret::new("2a".repeat(32))).unwrap();
    Deps {
        pool: pool.clone(),
        bus: bus.clone(),
        seal_key,
    }
}

/// Hands on what happened to which payment.
fn listener(seen: &mpsc::Sender<(&'static str, PaymentId)>) -> Router {
    macro_rules! events {
        ($($event:ident)*) => {
            Router::new()$(.event({
                let seen = seen.clone();
                move |event: $event| {
                    let seen = seen.clone();
                    async move {
                        let event = (stringify!($event), event.payment_id);
                        seen.send(event).await.map_err(|_| RpcError::unavailable("test over"))
                    }
                }
            }))*
        };
    }
    events!(PaymentAuthorized PaymentDeclined PaymentVoided PaymentCaptured PaymentRefunded)
}

pub(crate) fn actor(user_id: UserId, role: Role) -> String {
    Actor {
        user_id,
        roles: vec![role],
        session: SessionId::new(),
    }
    .to_header()
}

pub(crate) fn card(number: &str) -> Card {
    let (pan, cvc) = (Secret::new(number), Secret::new("123"));
    Card {
        pan,
        exp: "12/99".to_owned(),
        cvc,
        holder: "Ada Lovelace".to_owned(),
    }
}

pub(crate) fn euro(amount: i64) -> Money {
    Money::new(amount, Currency::EUR)
}

pub(crate) fn decline_code(authorization: &Authorization) -> Option<(&str, bool)> {
    match authorization {
        Authorization::Declined {
            code, retryable, ..
        } => Some((code, *retryable)),
        Authorization::Authorized | Authorization::Pending => None,
    }
}

pub(crate) fn confirmed(request: &Authorize) -> OrderConfirmed {
    let zero = euro(0);
    let order = OrderView {
        id: request.order_id,
        number: String::new(),
        user_id: request.user_id,
        email: String::new(),
        status: OrderStatus::Confirmed,
        payment: PaymentStatus::Authorized,
        fulfilment: FulfilmentStatus::Pending,
        reason: None,
        short: Vec::new(),
        lines: Vec::new(),
        totals: Totals {
            items_net: zero,
            shipping_net: zero,
            tax: zero,
            gross: request.amount,
        },
        address: None,
        payment_id: Some(request.payment_id),
        attempts: 1,
        can_cancel: true,
        version: 3,
        placed_at: Timestamp::now(),
    };
    let meta = Meta {
        at: Timestamp::now(),
        version: 3,
    };
    OrderConfirmed {
        order_id: request.order_id,
        order,
        payment_id: request.payment_id,
        meta,
    }
}

impl Shop {
    /// Another instance of the service, which shares the work.
    pub(crate) async fn add_instance(&mut self, pool: &sqlx::SqlitePool) {
        let app = payment::start(deps(pool, &self.client)).await.unwrap();
        let server = Server::new("payment", app.router)
            .instance("second")
            .listen(&self.memory);
        self._servers.push(server.start().await.unwrap());
        self._background.push(Box::new(app.background));
    }

    pub(crate) async fn as_user<M: Message<Shape = Single>>(
        &self,
        message: M,
    ) -> Result<M::Reply, RpcError> {
        let actor = actor(self.user_id, Role::Customer);
        self.client.send(message).header(header::ACTOR, actor).await
    }

    pub(crate) async fn add_card(&self, number: &str) -> Method {
        self.as_user(AddMethod {
            user_id: self.user_id,
            card: card(number),
        })
        .await
        .unwrap()
    }

    pub(crate) fn request(&self, method_id: Option<MethodId>, amount: i64) -> Authorize {
        let order_id = OrderId::new();
        let payment_id = payment_id(order_id, 1);
        Authorize {
            payment_id,
            order_id,
            user_id: self.user_id,
            amount: euro(amount),
            method_id,
        }
    }

    /// A request with a good card.
    pub(crate) async fn good_request(&self, amount: i64) -> Authorize {
        let method = self.add_card("4242 4242 4242 4242").await;
        self.request(Some(method.id), amount)
    }

    pub(crate) async fn authorize(&self, request: &Authorize) -> Authorization {
        self.client.send(request.clone()).await.unwrap()
    }

    pub(crate) async fn capture(&self, payment_id: PaymentId) -> Result<Payment, RpcError> {
        self.client.send(Capture { payment_id }).await
    }

    pub(crate) async fn reverse(&self, payment_id: PaymentId) -> Result<Reversal, RpcError> {
        self.client
            .send(Reverse {
                payment_id,
                reason: "cancelled".to_owned(),
            })
            .await
    }

    pub(crate) async fn get(&self, payment_id: PaymentId) -> Payment {
        self.client.send(GetPayment { payment_id }).await.unwrap()
    }

    pub(crate) async fn event(&mut self) -> (&'static str, PaymentId) {
        tokio::time::timeout(Duration::from_secs(10), self.events.recv())
            .await
            .unwrap()
            .unwrap()
    }

    /// Debit minus credit of each account; both sides of every movement are equal.
    pub(crate) async fn balances(&self) -> BTreeMap<String, i64> {
        let unbalanced: i64 = sqlx::query_scalar(
            "SELECT COUNT(*) FROM (SELECT 1 FROM ledger_entries GROUP BY payment_id, movement
                HAVING SUM(debit) <> SUM(credit))",
        )
        .fetch_one(&self.pool)
        .await
        .unwrap();
        assert_eq!(unbalanced, 0);
        let rows: Vec<(String, i64)> = sqlx::query_as(
            "SELECT account, SUM(debit - credit) FROM ledger_entries GROUP BY account",
        )
        .fetch_all(&self.pool)
        .await
        .unwrap();
        rows.into_iter().collect()
    }
}

pub(crate) async fn until(mut condition: impl AsyncFnMut() -> bool) {
    let check = async {
        while !condition().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), check)
        .await
        .expect("the condition in time");
}
