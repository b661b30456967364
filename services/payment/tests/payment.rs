//! The payment service over the memory transport.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use contracts::{
    Actor, Currency, Meta, MethodId, Money, OrderId, PaymentId, Reason, Role, Secret, SessionId,
    Timestamp, UserId,
    order::{FulfilmentStatus, OrderConfirmed, OrderStatus, OrderView, PaymentStatus, Totals},
    payment::*,
};
use futures_util::future::join_all;
use nestling::{
    Client, Message, Router, RpcError, Running, Server, Single, header, sqlite, transport::Memory,
};
use payment::{Answer, App, Charge, Deps, Provider, ProviderError, SealKey, Simulator, StoredCard};
use tokio::sync::mpsc;

struct Shop {
    client: Client,
    pool: sqlx::SqlitePool,
    user_id: UserId,
    events: mpsc::Receiver<(&'static str, PaymentId)>,
    _servers: [Running; 2],
    _background: Vec<Box<dyn Send>>,
}

async fn shop() -> Shop {
    let pool = sqlite::open_in_memory().await.unwrap();
    serve(
        pool.clone(),
        |deps| async { payment::start(deps).await.unwrap() },
        Vec::new(),
    )
    .await
}

async fn shop_with(
    provider: Arc<dyn Provider>,
    pool: sqlx::SqlitePool,
    task: impl Send + 'static,
) -> Shop {
    let start = |deps| async move { payment::start_with(deps, provider).await.unwrap() };
    serve(pool, start, vec![Box::new(task)]).await
}

async fn serve<F: Future<Output = App>>(
    pool: sqlx::SqlitePool,
    start: impl FnOnce(Deps) -> F,
    mut background: Vec<Box<dyn Send>>,
) -> Shop {
    let memory = Memory::new();
    let client = Client::connect(&memory).await.unwrap();
    let seal_key = SealKey::from_hex(&Secret::new("2a".repeat(32))).unwrap();
    let app = start(Deps {
        pool: pool.clone(),
        bus: client.clone(),
        seal_key,
    })
    .await;
    background.push(Box::new(app.background));
    let server = Server::new("payment", app.router)
        .listen(&memory)
        .start()
        .await
        .unwrap();
    let (seen, events) = mpsc::channel(64);
    let listener = Server::new("listener", listener(seen))
        .listen(&memory)
        .start()
        .await
        .unwrap();
    let _servers = [server, listener];
    Shop {
        client,
        pool,
        user_id: UserId::new(),
        events,
        _servers,
        _background: background,
    }
}

/// Hands on what happened to which payment.
fn listener(seen: mpsc::Sender<(&'static str, PaymentId)>) -> Router {
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

fn actor(user_id: UserId, role: Role) -> String {
    Actor {
        user_id,
        roles: vec![role],
        session: SessionId::new(),
    }
    .to_header()
}

fn card(number: &str) -> Card {
    let (pan, cvc) = (Secret::new(number), Secret::new("123"));
    Card {
        pan,
        exp: "12/99".to_owned(),
        cvc,
        holder: "Ada Lovelace".to_owned(),
    }
}

fn euro(amount: i64) -> Money {
    Money::new(amount, Currency::EUR)
}

fn decline_code(authorization: &Authorization) -> Option<(&str, bool)> {
    match authorization {
        Authorization::Declined {
            code, retryable, ..
        } => Some((code, *retryable)),
        Authorization::Authorized | Authorization::Pending => None,
    }
}

fn confirmed(request: &Authorize) -> OrderConfirmed {
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
    async fn as_user<M: Message<Shape = Single>>(&self, message: M) -> Result<M::Reply, RpcError> {
        let actor = actor(self.user_id, Role::Customer);
        self.client.send(message).header(header::ACTOR, actor).await
    }

    async fn add_card(&self, number: &str) -> Method {
        self.as_user(AddMethod {
            user_id: self.user_id,
            card: card(number),
        })
        .await
        .unwrap()
    }

    fn request(&self, method_id: Option<MethodId>, amount: i64) -> Authorize {
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
    async fn good_request(&self, amount: i64) -> Authorize {
        let method = self.add_card("4242 4242 4242 4242").await;
        self.request(Some(method.id), amount)
    }

    async fn authorize(&self, request: &Authorize) -> Authorization {
        self.client.send(request.clone()).await.unwrap()
    }

    async fn capture(&self, payment_id: PaymentId) -> Result<Payment, RpcError> {
        self.client.send(Capture { payment_id }).await
    }

    async fn reverse(&self, payment_id: PaymentId) -> Result<Reversal, RpcError> {
        self.client
            .send(Reverse {
                payment_id,
                reason: "cancelled".to_owned(),
            })
            .await
    }

    async fn get(&self, payment_id: PaymentId) -> Payment {
        self.client.send(GetPayment { payment_id }).await.unwrap()
    }

    async fn event(&mut self) -> (&'static str, PaymentId) {
        tokio::time::timeout(Duration::from_secs(10), self.events.recv())
            .await
            .unwrap()
            .unwrap()
    }

    /// Debit minus credit of each account; both sides of every movement are equal.
    async fn balances(&self) -> BTreeMap<String, i64> {
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

async fn until(mut condition: impl AsyncFnMut() -> bool) {
    let check = async {
        while !condition().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), check)
        .await
        .expect("the condition in time");
}

#[tokio::test]
async fn cards_belong_to_their_owners() {
    let shop = shop().await;
    let visa = shop.add_card("4242 4242 4242 4242").await;
    assert_eq!(
        (visa.brand.as_str(), visa.last4.as_str(), visa.exp.as_str()),
        ("visa", "4242", "12/99")
    );
    let mastercard = shop.add_card("5555555555554444").await;
    let listed = shop
        .as_user(ListMethods {
            user_id: shop.user_id,
        })
        .await
        .unwrap();
    assert_eq!(listed, [visa, mastercard]);

    let stranger = actor(UserId::new(), Role::Customer);
    let list = ListMethods {
        user_id: shop.user_id,
    };
    let error = shop
        .client
        .send(list.clone())
        .header(header::ACTOR, stranger.clone())
        .await
        .unwrap_err();
    assert_eq!(Reason::of(&error), Some(Reason::Forbidden));
    let add = AddMethod {
        user_id: shop.user_id,
        card: card("4242424242424242"),
    };
    let error = shop
        .client
        .send(add)
        .header(header::ACTOR, stranger)
        .await
        .unwrap_err();
    assert_eq!(Reason::of(&error), Some(Reason::Forbidden));
    let error = shop.client.send(list).await.unwrap_err();
    assert_eq!(Reason::of(&error), Some(Reason::Unauthenticated));
}

#[tokio::test]
async fn only_test_cards_that_have_not_expired_are_taken() {
    let shop = shop().await;
    let mut expired = card("4242424242424242");
    expired.exp = "01/20".to_owned();
    for (card, code) in [
        (card("4111 1111 1111 1111"), "card_number"),
        (expired, "expired"),
    ] {
        let error = shop
            .as_user(AddMethod {
                user_id: shop.user_id,
                card,
            })
            .await
            .unwrap_err();
        assert_eq!(Reason::of(&error), Some(Reason::Validation));
        assert_eq!(error.details.as_ref().unwrap()["errors"][0]["code"], code);
        assert!(!format!("{error:?}").contains("1111 1111"));
    }
}

#[tokio::test]
async fn no_number_and_no_token_is_in_the_database() {
    let dir = std::env::temp_dir().join(format!("nestling-payment-{}", PaymentId::new()));
    std::fs::create_dir_all(&dir).unwrap();
    let pool = sqlite::open(dir.join("payment.db")).await.unwrap();
    let shop = serve(
        pool,
        |deps| async { payment::start(deps).await.unwrap() },
        Vec::new(),
    )
    .await;
    let request = shop.good_request(100).await;
    assert_eq!(shop.authorize(&request).await, Authorization::Authorized);
    sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)")
        .execute(&shop.pool)
        .await
        .unwrap();
    let mut bytes = std::fs::read(dir.join("payment.db")).unwrap();
    bytes.extend(std::fs::read(dir.join("payment.db-wal")).unwrap_or_default());
    let has = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
    assert!(has(request.payment_id.to_string().as_bytes()));
    for secret in ["4242424242424242", "4242 4242 4242 4242", "tok_", "ch_"] {
        assert!(!has(secret.as_bytes()), "{secret}");
    }
    drop(shop);
    std::fs::remove_dir_all(dir).unwrap();
}

#[tokio::test]
async fn a_payment_goes_from_promise_to_money_and_says_so() {
    let mut shop = shop().await;
    let request = shop.good_request(11_900).await;
    let id = request.payment_id;
    for _ in 0..3 {
        assert_eq!(shop.authorize(&request).await, Authorization::Authorized);
    }
    assert_eq!(shop.event().await, ("PaymentAuthorized", id));
    assert!(shop.balances().await.is_empty());

    let captured = shop.capture(id).await.unwrap();
    assert_eq!(
        (captured.state, captured.captured, captured.refunded),
        (PaymentState::Captured, euro(11_900), euro(0))
    );
    assert_eq!(shop.capture(id).await.unwrap(), captured);
    assert_eq!(shop.event().await, ("PaymentCaptured", id));
    let expected = [("provider_clearing", 11_900), ("revenue", -11_900)];
    assert_eq!(
        shop.balances().await,
        expected.map(|(a, b)| (a.to_owned(), b)).into()
    );

    assert_eq!(shop.reverse(id).await, Ok(Reversal::Refunded));
    assert_eq!(shop.reverse(id).await, Ok(Reversal::Refunded));
    assert_eq!(shop.event().await, ("PaymentRefunded", id));
    let balances = shop.balances().await;
    assert_eq!(
        (balances["provider_clearing"], balances["refunds"]),
        (0, 11_900)
    );
    let refunded = shop.get(id).await;
    assert_eq!(
        (refunded.state, refunded.refunded),
        (PaymentState::Refunded, euro(11_900))
    );
    assert_eq!(refunded.card.unwrap().last4, "4242");
    let timeline: Vec<_> = refunded
        .timeline
        .iter()
        .map(|entry| entry.text.as_str())
        .collect();
    let expected = [
        "119.00 EUR asked for",
        "119.00 EUR authorized",
        "119.00 EUR captured",
        "to be reversed: cancelled",
        "119.00 EUR refunded",
    ];
    assert_eq!(timeline, expected);
}

#[tokio::test]
async fn cards_are_declined_for_their_own_reasons() {
    let mut shop = shop().await;
    let cards = [
        ("4000000000000002", "card_declined"),
        ("4000000000009995", "insufficient_funds"),
        ("4000000000000069", "expired_card"),
        ("4000000000000127", "incorrect_cvc"),
    ];
    for (number, code) in cards {
        let method = shop.add_card(number).await;
        let request = shop.request(Some(method.id), 100);
        let first = shop.authorize(&request).await;
        assert_eq!(decline_code(&first), Some((code, true)));
        assert_eq!(shop.authorize(&request).await, first);
        assert_eq!(shop.event().await, ("PaymentDeclined", request.payment_id));
        assert_eq!(
            shop.get(request.payment_id).await.decline_code.as_deref(),
            Some(code)
        );
        let error = shop.capture(request.payment_id).await.unwrap_err();
        assert_eq!(Reason::of(&error), Some(Reason::StateConflict));
        assert_eq!(
            shop.reverse(request.payment_id).await,
            Ok(Reversal::Nothing)
        );
    }
    assert!(shop.balances().await.is_empty());
}

#[tokio::test]
async fn nobody_pays_with_anothers_card_or_with_none() {
    let shop = shop().await;
    let mut request = shop.good_request(100).await;
    request.user_id = UserId::new();
    assert_eq!(
        decline_code(&shop.authorize(&request).await),
        Some(("unknown_method", true))
    );
    let request = shop.request(None, 100);
    assert_eq!(
        decline_code(&shop.authorize(&request).await),
        Some(("unknown_method", true))
    );
    let error = shop.client.send(shop.request(None, -1)).await.unwrap_err();
    assert_eq!(Reason::of(&error), Some(Reason::Validation));
}

#[tokio::test]
async fn one_id_is_one_payment() {
    let shop = shop().await;
    let mut request = shop.good_request(100).await;
    assert_eq!(shop.authorize(&request).await, Authorization::Authorized);
    request.amount = euro(200);
    let error = shop.client.send(request).await.unwrap_err();
    assert_eq!(Reason::of(&error), Some(Reason::StateConflict));
}

#[tokio::test]
async fn nothing_to_pay_needs_no_card_and_no_ledger() {
    let shop = shop().await;
    let request = shop.request(None, 0);
    assert_eq!(shop.authorize(&request).await, Authorization::Authorized);
    assert_eq!(
        shop.capture(request.payment_id).await.unwrap().state,
        PaymentState::Captured
    );
    assert_eq!(
        shop.reverse(request.payment_id).await,
        Ok(Reversal::Refunded)
    );
    let other = shop.request(None, 0);
    assert_eq!(shop.authorize(&other).await, Authorization::Authorized);
    assert_eq!(shop.reverse(other.payment_id).await, Ok(Reversal::Voided));
    assert!(shop.balances().await.is_empty());
}

#[tokio::test]
async fn a_promise_is_voided_and_then_never_captured() {
    let mut shop = shop().await;
    let request = shop.good_request(100).await;
    let id = request.payment_id;
    shop.authorize(&request).await;
    assert_eq!(shop.reverse(id).await, Ok(Reversal::Voided));
    assert_eq!(shop.reverse(id).await, Ok(Reversal::Voided));
    assert_eq!(shop.event().await, ("PaymentAuthorized", id));
    assert_eq!(shop.event().await, ("PaymentVoided", id));
    let error = shop.capture(id).await.unwrap_err();
    assert_eq!(Reason::of(&error), Some(Reason::StateConflict));
    assert_eq!(
        decline_code(&shop.authorize(&request).await),
        Some(("reversed", false))
    );
    assert!(shop.balances().await.is_empty());
}

#[tokio::test]
async fn a_reversal_before_the_payment_keeps_it_from_happening() {
    let shop = shop().await;
    let request = shop.good_request(100).await;
    assert_eq!(
        shop.reverse(request.payment_id).await,
        Ok(Reversal::Nothing)
    );
    assert_eq!(
        decline_code(&shop.authorize(&request).await),
        Some(("reversed", false))
    );
    assert_eq!(
        shop.reverse(request.payment_id).await,
        Ok(Reversal::Nothing)
    );
    let error = shop
        .client
        .send(GetPayment {
            payment_id: request.payment_id,
        })
        .await
        .unwrap_err();
    assert_eq!(Reason::of(&error), Some(Reason::NotFound));
}

#[tokio::test]
async fn a_payment_is_shown_to_its_owner_and_to_staff() {
    let shop = shop().await;
    let request = shop.good_request(100).await;
    shop.authorize(&request).await;
    let get = GetPayment {
        payment_id: request.payment_id,
    };
    assert!(shop.as_user(get.clone()).await.is_ok());
    let support = actor(UserId::new(), Role::Support);
    assert!(
        shop.client
            .send(get.clone())
            .header(header::ACTOR, support)
            .await
            .is_ok()
    );
    let stranger = actor(UserId::new(), Role::Customer);
    let error = shop
        .client
        .send(get)
        .header(header::ACTOR, stranger)
        .await
        .unwrap_err();
    assert_eq!(Reason::of(&error), Some(Reason::Forbidden));
}

#[tokio::test]
async fn a_confirmed_order_is_captured_once() {
    let mut shop = shop().await;
    let request = shop.good_request(700).await;
    let id = request.payment_id;
    shop.authorize(&request).await;
    let event = confirmed(&request);
    for _ in 0..3 {
        shop.client
            .emit(event.clone())
            .header(header::EVENT_ID, "event-1")
            .await
            .unwrap();
    }
    assert_eq!(shop.event().await, ("PaymentAuthorized", id));
    assert_eq!(shop.event().await, ("PaymentCaptured", id));
    until(async || shop.get(id).await.state == PaymentState::Captured).await;
    assert_eq!(shop.balances().await["provider_clearing"], 700);

    // A cancellation that overtakes the confirmation leaves nothing to take.
    let other = shop.good_request(900).await;
    shop.authorize(&other).await;
    assert_eq!(shop.reverse(other.payment_id).await, Ok(Reversal::Voided));
    shop.client.emit(confirmed(&other)).await.unwrap();
    assert_eq!(shop.event().await, ("PaymentAuthorized", other.payment_id));
    assert_eq!(shop.event().await, ("PaymentVoided", other.payment_id));
    assert_eq!(shop.balances().await["provider_clearing"], 700);
}

#[tokio::test]
async fn many_at_once_are_one_charge() {
    let shop = shop().await;
    let request = shop.good_request(250).await;
    let id = request.payment_id;
    let asked = join_all((0..20).map(|_| shop.client.send(request.clone()).into_future())).await;
    assert!(
        asked
            .iter()
            .all(|answer| *answer == Ok(Authorization::Authorized))
    );
    let captured =
        join_all((0..20).map(|_| shop.client.send(Capture { payment_id: id }).into_future())).await;
    assert!(captured.iter().all(Result::is_ok));
    let log: Vec<String> = sqlx::query_scalar("SELECT operation FROM sim_log ORDER BY position")
        .fetch_all(&shop.pool)
        .await
        .unwrap();
    assert_eq!(log, ["authorize", "capture"]);
    assert_eq!(shop.balances().await["provider_clearing"], 250);
}

#[tokio::test]
async fn capture_and_reversal_at_once_leave_no_money_behind() {
    let shop = shop().await;
    for _ in 0..10 {
        let request = shop.good_request(100).await;
        let payment_id = request.payment_id;
        shop.authorize(&request).await;
        let capture = shop.client.send(Capture { payment_id }).into_future();
        let reverse = shop
            .client
            .send(Reverse {
                payment_id,
                reason: String::new(),
            })
            .into_future();
        let (_, reversed) = tokio::join!(capture, reverse);
        assert!(matches!(
            reversed,
            Ok(Reversal::Voided | Reversal::Refunded)
        ));
        let state = shop.get(payment_id).await.state;
        assert!(matches!(
            state,
            PaymentState::Voided | PaymentState::Refunded
        ));
    }
    assert_eq!(
        shop.balances()
            .await
            .get("provider_clearing")
            .copied()
            .unwrap_or(0),
        0
    );
}

/// Does what it is told and loses the answer while `is_silent`.
#[derive(Debug)]
struct Lossy {
    inner: Simulator,
    is_silent: AtomicBool,
}

impl Lossy {
    fn lose<'a, T: Send + 'a>(&'a self, answer: Answer<'a, T>) -> Answer<'a, T> {
        Box::pin(async move {
            let answer = answer.await;
            if self.is_silent.load(Ordering::SeqCst) {
                Err(ProviderError::NoAnswer)
            } else {
                answer
            }
        })
    }
}

impl Provider for Lossy {
    fn tokenize(&self, card: Card) -> Answer<'_, StoredCard> {
        self.inner.tokenize(card)
    }

    fn authorize(&self, id: PaymentId, token: Secret, amount: Money) -> Answer<'_, Charge> {
        self.lose(self.inner.authorize(id, token, amount))
    }

    fn capture(&self, id: PaymentId) -> Answer<'_, Charge> {
        self.lose(self.inner.capture(id))
    }

    fn void(&self, id: PaymentId) -> Answer<'_, Charge> {
        self.lose(self.inner.void(id))
    }

    fn refund(&self, id: PaymentId) -> Answer<'_, Charge> {
        self.lose(self.inner.refund(id))
    }

    fn status(&self, id: PaymentId) -> Answer<'_, Charge> {
        self.lose(self.inner.status(id))
    }
}

async fn lossy_shop() -> (Shop, Arc<Lossy>) {
    let pool = sqlite::open_in_memory().await.unwrap();
    let (inner, task) = Simulator::start(pool.clone()).await.unwrap();
    let provider = Arc::new(Lossy {
        inner,
        is_silent: AtomicBool::new(true),
    });
    (shop_with(provider.clone(), pool, task).await, provider)
}

#[tokio::test]
async fn a_lost_answer_is_pending_and_asked_for_again() {
    let (shop, provider) = lossy_shop().await;
    let request = shop.good_request(400).await;
    assert_eq!(shop.authorize(&request).await, Authorization::Pending);
    assert_eq!(
        shop.get(request.payment_id).await.state,
        PaymentState::Pending
    );
    provider.is_silent.store(false, Ordering::SeqCst);
    assert_eq!(shop.authorize(&request).await, Authorization::Authorized);

    provider.is_silent.store(true, Ordering::SeqCst);
    let error = shop.capture(request.payment_id).await.unwrap_err();
    assert_eq!(Reason::of(&error), Some(Reason::Unavailable));
    provider.is_silent.store(false, Ordering::SeqCst);
    let captured = shop.capture(request.payment_id).await.unwrap();
    assert_eq!(captured.captured, euro(400));
    assert_eq!(shop.balances().await["provider_clearing"], 400);
}

#[tokio::test]
async fn a_pending_payment_is_settled_without_being_asked() {
    let (shop, provider) = lossy_shop().await;
    let request = shop.good_request(400).await;
    assert_eq!(shop.authorize(&request).await, Authorization::Pending);
    provider.is_silent.store(false, Ordering::SeqCst);
    until(async || shop.get(request.payment_id).await.state == PaymentState::Authorized).await;
}

#[tokio::test]
async fn a_pending_payment_is_undone_as_soon_as_the_provider_speaks() {
    let (mut shop, provider) = lossy_shop().await;
    let request = shop.good_request(400).await;
    assert_eq!(shop.authorize(&request).await, Authorization::Pending);
    let error = shop.reverse(request.payment_id).await.unwrap_err();
    assert_eq!(Reason::of(&error), Some(Reason::Unavailable));
    provider.is_silent.store(false, Ordering::SeqCst);
    assert_eq!(
        decline_code(&shop.authorize(&request).await),
        Some(("reversed", false))
    );
    assert_eq!(shop.reverse(request.payment_id).await, Ok(Reversal::Voided));
    assert_eq!(shop.event().await, ("PaymentVoided", request.payment_id));
    assert!(shop.balances().await.is_empty());
}
