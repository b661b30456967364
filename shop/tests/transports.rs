//! The same checkout, whatever carries it: all services in one process over each transport.
//!
//! Patterns are fixed, so two shops on one broker would answer each other's messages: each test has
//! brokers of its own.
#![allow(
    clippy::unwrap_used,
    reason = "a failed test panics, in its helpers too"
)]

mod buyer;

use std::env;

use contracts::{
    Secret, UserId,
    order::{GetCart, GetHistory, OrderStatus, OrderView, Owner, PayOrder, PaymentStatus},
    payment::PaymentState,
    user::{GetUser, Login, Register},
};
use nestling::{Endpoint, transport::Memory};
use nestling_testkit::{Broker, Kind, Options};
use shop::{Layout, Shop, Staff};

use crate::buyer::{Buyer, GOOD_CARD, Unmet, add_product, until};

const DECLINED_CARD: &str = "4000 0000 0000 0002";

/// A broker of one's own; none, with a line that says so, where there cannot be one.
fn own_broker(kind: Kind) -> Option<Broker> {
    match Broker::start(kind, Options::default()) {
        Ok(broker) => Some(broker),
        Err(unavailable) => {
            let required = env::var("REQUIRE_BROKERS").is_ok_and(|value| value == "1");
            assert!(!required, "REQUIRE_BROKERS=1, but {unavailable}");
            eprintln!("skipped: {unavailable}");
            None
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checkout_in_memory() {
    checkout(&in_memory()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checkout_over_tcp() {
    checkout(&Layout::new("tcp://127.0.0.1:0", &Memory::new())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checkout_over_nats() {
    let Some(nats) = own_broker(Kind::Nats) else {
        return;
    };
    checkout(&Layout::new(nats.url(), &Memory::new())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checkout_over_redis() {
    let Some(redis) = own_broker(Kind::Redis) else {
        return;
    };
    checkout(&Layout::new(redis.url(), redis.url())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checkout_over_kafka() {
    let Some(kafka) = own_broker(Kind::Kafka) else {
        return;
    };
    checkout(&Layout::new(kafka.url(), kafka.url())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checkout_over_the_transport_each_service_has_by_default() {
    let (Some(nats), Some(redis), Some(kafka)) = (
        own_broker(Kind::Nats),
        own_broker(Kind::Redis),
        own_broker(Kind::Kafka),
    ) else {
        return;
    };
    let data = tempfile::tempdir().unwrap();
    let tcp = || Endpoint::from("tcp://127.0.0.1:0");
    checkout(&Layout {
        user: nats.url().into(),
        product: tcp(),
        order: kafka.url().into(),
        payment: redis.url().into(),
        review: nats.url().into(),
        recommendation: tcp(),
        events: kafka.url().into(),
        data: Some(data.path().to_owned()),
    })
    .await;
}

/// From the account to the empty cart.
async fn checkout(layout: &Layout) {
    let shop = Shop::start(layout).await.unwrap();
    let staff = Staff::connect(&shop.product).await.unwrap();
    let lamp = add_product(&staff, "lamp", 10).await;

    let user_id = sign_up(&shop).await;
    let buyer = Buyer::new(&shop.clients, user_id);
    let card = buyer.add_card(GOOD_CARD).await;
    let request = buyer.fill_in(lamp, 3, card).await;
    let placed = buyer.place(&request, "first").await;
    assert_eq!(placed.lines.len(), 1);
    let again = buyer.place(&request, "first").await;
    assert_eq!(again.id, placed.id);

    let order = buyer
        .until(placed.id, stands_at(OrderStatus::Confirmed))
        .await;
    assert_eq!(order.totals, placed.totals);
    let order = buyer.until(placed.id, is_paid).await;
    let payment = buyer.payments(&order).await.remove(0);
    assert_eq!(
        (payment.state, payment.captured),
        (PaymentState::Captured, order.totals.gross)
    );
    buyer.until_on_hand(lamp, 7).await;

    let history = GetHistory {
        order_id: order.id,
        after_version: 0,
    };
    let history = buyer.send(&shop.clients.order, history).await.unwrap();
    let kinds: Vec<_> = history.iter().map(|entry| entry.kind.as_str()).collect();
    assert_eq!(
        kinds,
        [
            "placed",
            "awaiting_payment",
            "payment_requested",
            "confirmed",
            "payment_captured"
        ]
    );
    until_cart_holds(&buyer, &shop, 0).await;
    staff.close().await;
    shop.shutdown().await;
}

fn stands_at(status: OrderStatus) -> impl Fn(&OrderView) -> bool {
    move |order| order.status == status
}

fn is_paid(order: &OrderView) -> bool {
    order.payment == PaymentStatus::Captured
}

/// Registers and signs in.
async fn sign_up(shop: &Shop) -> UserId {
    let user = &shop.clients.user;
    let password = || Secret::new("correct horse battery");
    let register = Register {
        email: "ada@example.org".to_owned(),
        password: password(),
        name: "Ada".to_owned(),
        locale: "en".to_owned(),
    };
    let account = user.send(register).await.unwrap();
    let login = Login {
        email: "Ada@Example.org".to_owned(),
        password: password(),
        device: "test".to_owned(),
    };
    let tokens = user.send(login).await.unwrap();
    assert_eq!(tokens.user.id, account.id);
    let user_id = account.id;
    let seen = Buyer::new(&shop.clients, user_id)
        .send(user, GetUser { user_id })
        .await
        .unwrap();
    assert_eq!(seen.email, "ada@example.org");
    user_id
}

async fn until_cart_holds(buyer: &Buyer, shop: &Shop, qty: u32) {
    until(async || {
        let owner = Owner::User(buyer.user_id);
        let cart = buyer.send(&shop.clients.order, GetCart { owner }).await?;
        let held: u32 = cart.lines.iter().map(|line| line.qty).sum();
        if held == qty {
            Ok(())
        } else {
            Err(Unmet::new(format_args!("{cart:?}")))
        }
    })
    .await;
}

fn in_memory() -> Layout {
    let memory = Memory::new();
    Layout::new(&memory, &memory)
}

#[tokio::test]
async fn an_order_of_more_than_there_is_comes_to_nothing_and_leaves_the_cart() {
    let shop = Shop::start(&in_memory()).await.unwrap();
    let staff = Staff::connect(&shop.product).await.unwrap();
    let lamp = add_product(&staff, "lamp", 2).await;
    let buyer = Buyer::new(&shop.clients, UserId::new());
    let card = buyer.add_card(GOOD_CARD).await;
    let request = buyer.fill_in(lamp, 3, card).await;
    let placed = buyer.place(&request, "greedy").await;

    let order = buyer
        .until(placed.id, stands_at(OrderStatus::Rejected))
        .await;
    assert_eq!(order.reason.as_deref(), Some("out_of_stock"));
    let short: Vec<_> = order.short.iter().map(|line| line.requested).collect();
    assert_eq!((short, order.short[0].available), (vec![3], 2));
    assert_eq!((order.payment_id, order.attempts), (None, 0));
    buyer.until_on_hand(lamp, 2).await;
    until_cart_holds(&buyer, &shop, 3).await;
    shop.shutdown().await;
}

#[tokio::test]
async fn a_declined_card_can_be_followed_by_a_good_one() {
    let shop = Shop::start(&in_memory()).await.unwrap();
    let staff = Staff::connect(&shop.product).await.unwrap();
    let lamp = add_product(&staff, "lamp", 5).await;
    let buyer = Buyer::new(&shop.clients, UserId::new());
    let bad_card = buyer.add_card(DECLINED_CARD).await;
    let request = buyer.fill_in(lamp, 1, bad_card).await;
    let placed = buyer.place(&request, "hopeful").await;

    let is_failed = |order: &OrderView| order.payment == PaymentStatus::Failed;
    let failed = buyer.until(placed.id, is_failed).await;
    assert_eq!(failed.status, OrderStatus::AwaitingPayment);
    assert_eq!(buyer.stock(lamp).await.unwrap().reserved, 1);

    let pay = PayOrder {
        order_id: placed.id,
        method_id: buyer.add_card(GOOD_CARD).await,
    };
    let paid = buyer.send_once(&shop.clients.order, pay, "second").await;
    assert_eq!(paid.unwrap().attempts, 2);
    let order = buyer
        .until(placed.id, stands_at(OrderStatus::Confirmed))
        .await;
    assert_eq!(order.attempts, 2);
    buyer.until_on_hand(lamp, 4).await;
    shop.shutdown().await;
}

#[tokio::test]
async fn a_cancelled_order_gives_money_and_goods_back() {
    let shop = Shop::start(&in_memory()).await.unwrap();
    let staff = Staff::connect(&shop.product).await.unwrap();
    let lamp = add_product(&staff, "lamp", 5).await;
    let buyer = Buyer::new(&shop.clients, UserId::new());
    let card = buyer.add_card(GOOD_CARD).await;
    let request = buyer.fill_in(lamp, 2, card).await;
    let placed = buyer.place(&request, "regretted").await;
    buyer.until(placed.id, is_paid).await;
    buyer.until_on_hand(lamp, 3).await;

    buyer.cancel(placed.id).await;
    let is_undone = |order: &OrderView| {
        order.status == OrderStatus::Cancelled && order.payment == PaymentStatus::Refunded
    };
    let order = buyer.until(placed.id, is_undone).await;
    assert_eq!(order.reason.as_deref(), Some("changed my mind"));
    let payment = buyer.payments(&order).await.remove(0);
    assert_eq!(
        (payment.state, payment.refunded),
        (PaymentState::Refunded, payment.captured)
    );
    buyer.until_on_hand(lamp, 5).await;
    shop.shutdown().await;
}
