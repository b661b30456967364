use std::{sync::Arc, time::Duration};

use contracts::{
    Meta, Reason, UserId,
    order::{CancelOrder, OrderStatus, PaymentStatus},
    payment::{PaymentCaptured, PaymentRefunded, payment_id},
    product::StockExpired,
};
use nestling::header;
use tokio::sync::Semaphore;

use crate::{
    peers::{Fault, bad_card, good_card},
    shop::{Shop, actor, ada, config, reason, wait_until},
};

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn too_little_stock_rejects_and_leaves_the_cart() {
    let shop = Shop::open().await;
    let lamp = shop.add_product("lamp", 1);
    let order = shop.order(lamp, 2, good_card()).await;
    let order = shop.until_status(order.id, OrderStatus::Rejected).await;
    assert_eq!(order.reason.as_deref(), Some("out_of_stock"));
    let short = order.short[0];
    assert_eq!(
        (short.product_id, short.requested, short.available),
        (lamp, 2, 1)
    );
    assert!(!order.can_cancel);
    assert_eq!(
        shop.events(order.id, "order.rejected").await,
        ["order.placed", "order.rejected"]
    );
    assert_eq!(shop.cart(&ada()).await.lines[0].qty, 2);
    assert_eq!(shop.peers.calls("payment.authorize"), 0);
    assert_eq!(
        reason(&shop.cancel(order.id).await.unwrap_err()),
        Reason::NotCancellable
    );
    let error = shop.pay(order.id, good_card(), "k").await.unwrap_err();
    assert_eq!(reason(&error), Reason::StateConflict);
}

#[tokio::test]
async fn a_product_service_that_comes_back_is_asked_again() {
    let shop = Shop::open().await;
    for _ in 0..7 {
        shop.peers.fail("stock.reserve", Fault::Unavailable);
    }
    let order = shop.simple_order().await;
    shop.until_status(order.id, OrderStatus::Confirmed).await;
    assert_eq!(shop.peers.calls("stock.reserve"), 8);
}

#[tokio::test]
async fn a_product_service_that_stays_away_rejects_and_is_told_to_release() {
    let shop = Shop::open().await;
    shop.peers.set_down("stock.reserve", true);
    shop.peers.set_down("stock.release", true);
    let order = shop.simple_order().await;
    wait_until(async || shop.peers.calls("stock.reserve") >= 3).await;
    assert_eq!(shop.view(order.id).await.status, OrderStatus::Placed);
    shop.advance(MINUTE);
    let order = shop.until_status(order.id, OrderStatus::Rejected).await;
    assert_eq!(order.reason.as_deref(), Some("stock_unavailable"));
    wait_until(async || shop.peers.calls("stock.release") >= 3).await;
    assert!(!shop.peers.is_released(order.id));
    shop.peers.set_down("stock.release", false);
    shop.until(order.id, |view| view.version == 3).await;
    assert!(shop.peers.is_released(order.id));
    assert_eq!(
        shop.kinds(order.id).await,
        ["placed", "rejected", "stock_released"]
    );
}

#[tokio::test]
async fn three_refused_payments_reject_the_order() {
    let shop = Shop::open().await;
    let lamp = shop.add_product("lamp", 5);
    let order = shop.order(lamp, 1, bad_card()).await;
    let is_failed = |attempts| {
        move |view: &contracts::order::OrderView| {
            view.payment == PaymentStatus::Failed && view.attempts == attempts
        }
    };
    let failed = shop.until(order.id, is_failed(1)).await;
    assert_eq!(
        (failed.status, failed.can_cancel),
        (OrderStatus::AwaitingPayment, true)
    );

    let paid = shop.pay(order.id, bad_card(), "second").await.unwrap();
    assert_eq!((paid.attempts, paid.payment), (2, PaymentStatus::Pending));
    shop.until(order.id, is_failed(2)).await;
    // A repetition gets the first answer and tries nothing.
    assert_eq!(
        shop.pay(order.id, bad_card(), "second").await.unwrap(),
        paid
    );
    let error = shop.pay(order.id, good_card(), "second").await.unwrap_err();
    assert_eq!(reason(&error), Reason::IdempotencyKeyReused);

    shop.pay(order.id, bad_card(), "third").await.unwrap();
    let order = shop.until_status(order.id, OrderStatus::Rejected).await;
    assert_eq!(
        (order.reason.as_deref(), order.attempts),
        (Some("card_declined"), 3)
    );
    wait_until(async || shop.peers.is_released(order.id)).await;
    wait_until(async || shop.peers.is_reversed(payment_id(order.id, 3))).await;
    assert_eq!(
        (
            shop.peers.available(lamp),
            shop.cart(&ada()).await.lines.len()
        ),
        (5, 1)
    );
    let failed = "order.payment_failed";
    assert_eq!(
        shop.events(order.id, "order.rejected").await,
        [
            "order.placed",
            "order.awaiting_payment",
            failed,
            failed,
            failed,
            "order.rejected"
        ]
    );
}

#[tokio::test]
async fn another_card_confirms_after_a_refusal() {
    let shop = Shop::open().await;
    let lamp = shop.add_product("lamp", 5);
    let order = shop.order(lamp, 1, bad_card()).await;
    shop.until(order.id, |view| view.payment == PaymentStatus::Failed)
        .await;
    shop.pay(order.id, good_card(), "k").await.unwrap();
    let order = shop.until_status(order.id, OrderStatus::Confirmed).await;
    assert_eq!(
        (order.attempts, order.payment_id),
        (2, Some(payment_id(order.id, 2)))
    );
    let error = shop.pay(order.id, good_card(), "other").await.unwrap_err();
    assert_eq!(reason(&error), Reason::StateConflict);
}

#[tokio::test]
async fn an_order_that_nobody_pays_for_is_rejected_at_its_deadline() {
    let shop = Shop::open().await;
    let lamp = shop.add_product("lamp", 5);
    let order = shop.order(lamp, 1, bad_card()).await;
    shop.until(order.id, |view| view.payment == PaymentStatus::Failed)
        .await;
    shop.advance(10 * MINUTE);
    let order = shop.until_status(order.id, OrderStatus::Rejected).await;
    assert_eq!(order.reason.as_deref(), Some("card_declined"));
    wait_until(async || shop.peers.available(lamp) == 5).await;
}

#[tokio::test]
async fn a_pending_payment_is_asked_about_until_it_is_decided() {
    let shop = Shop::open().await;
    shop.peers.set_pending(true);
    let order = shop.simple_order().await;
    wait_until(async || shop.peers.calls("payment.authorize") >= 4).await;
    let pending = shop.view(order.id).await;
    assert_eq!(
        (pending.status, pending.payment),
        (OrderStatus::AwaitingPayment, PaymentStatus::Pending)
    );
    assert_eq!(
        reason(&shop.pay(order.id, good_card(), "k").await.unwrap_err()),
        Reason::StateConflict
    );
    shop.peers.set_pending(false);
    shop.until_status(order.id, OrderStatus::Confirmed).await;
    assert_eq!(shop.peers.promises(), 1);
}

#[tokio::test]
async fn a_payment_that_stays_pending_times_out_and_is_reversed() {
    let shop = Shop::open().await;
    shop.peers.set_pending(true);
    let order = shop.simple_order().await;
    wait_until(async || shop.peers.calls("payment.authorize") >= 1).await;
    shop.advance(10 * MINUTE);
    let order = shop.until_status(order.id, OrderStatus::Rejected).await;
    assert_eq!(order.reason.as_deref(), Some("payment_timeout"));
    wait_until(async || shop.peers.is_reversed(payment_id(order.id, 1))).await;
    wait_until(async || shop.peers.is_released(order.id)).await;
}

#[tokio::test]
async fn a_payment_service_that_refuses_to_try_counts_as_a_refusal() {
    let shop = Shop::open().await;
    shop.peers.fail("payment.authorize", Fault::Refused);
    let order = shop.simple_order().await;
    shop.until(order.id, |view| view.payment == PaymentStatus::Failed)
        .await;
    assert_eq!(shop.kinds(order.id).await.last().unwrap(), "payment_failed");
}

#[tokio::test]
async fn one_connection_is_enough() {
    let shop = Shop::in_memory().await;
    let order = shop.simple_order().await;
    shop.until_status(order.id, OrderStatus::Confirmed).await;
    shop.cancel(order.id).await.unwrap();
    shop.until_status(order.id, OrderStatus::Cancelled).await;
    shop.events(order.id, "order.cancelled").await;
}

/// The calls of the saga and what follows belong to the trace of whoever placed the order.
#[tokio::test]
async fn a_saga_keeps_the_trace_it_began_with() {
    let shop = Shop::open().await;
    let lamp = shop.add_product("lamp", 5);
    shop.put(&ada(), lamp, 1).await;
    let quote = shop.quote(&ada()).await;
    let request = Shop::place_request(&ada(), &quote, good_card());
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let call = shop.client.send(request).header(header::TRACEPARENT, trace);
    let call = call
        .header(header::ACTOR, ada().to_header())
        .header(header::IDEMPOTENCY_KEY, "k");
    let order = call.await.unwrap();
    shop.until_status(order.id, OrderStatus::Confirmed).await;
    assert_eq!(
        shop.peers.trace_of("payment.authorize").as_deref(),
        Some(trace)
    );
}

#[tokio::test]
async fn a_confirmed_order_is_cancelled_and_undone() {
    let shop = Shop::open().await;
    let order = shop.simple_order().await;
    shop.until_status(order.id, OrderStatus::Confirmed).await;
    shop.peers.set_down("payment.reverse", true);
    let cancelling = shop.cancel(order.id).await.unwrap();
    assert_eq!(
        (cancelling.status, cancelling.can_cancel),
        (OrderStatus::Cancelling, false)
    );
    wait_until(async || shop.peers.calls("payment.reverse") >= 2).await;
    assert_eq!(shop.view(order.id).await.status, OrderStatus::Cancelling);
    shop.peers.set_down("payment.reverse", false);
    let order = shop.until_status(order.id, OrderStatus::Cancelled).await;
    assert_eq!(
        (order.payment, order.reason.as_deref()),
        (PaymentStatus::Voided, Some("changed my mind"))
    );
    assert!(!shop.peers.holds(order.id) && shop.peers.open_payments() == 0);
    assert_eq!(
        *shop
            .events(order.id, "order.cancelled")
            .await
            .last()
            .unwrap(),
        "order.cancelled"
    );
    // Again is the same.
    assert_eq!(shop.cancel(order.id).await.unwrap(), order);
    let eve = actor(UserId::derive("eve"), contracts::Role::Customer);
    let request = CancelOrder {
        order_id: order.id,
        reason: "mine".to_owned(),
    };
    assert_eq!(
        reason(&shop.send(&eve, request).await.unwrap_err()),
        Reason::Forbidden
    );
}

#[tokio::test]
async fn money_that_arrives_while_an_order_is_cancelled_goes_back() {
    let shop = Shop::open().await;
    let gate = Arc::new(Semaphore::new(0));
    shop.peers
        .fail("payment.authorize", Fault::Gate(Arc::clone(&gate)));
    let order = shop.simple_order().await;
    wait_until(async || shop.peers.calls("payment.authorize") == 1).await;
    shop.cancel(order.id).await.unwrap();
    gate.add_permits(1);
    let order = shop.until_status(order.id, OrderStatus::Cancelled).await;
    assert_eq!(order.payment, PaymentStatus::Voided);
    assert_eq!((shop.peers.promises(), shop.peers.open_payments()), (1, 0));
    assert!(!shop.peers.holds(order.id));
    assert_eq!(
        shop.kinds(order.id).await,
        [
            "placed",
            "awaiting_payment",
            "payment_requested",
            "cancelling",
            "reply_noted",
            "stock_released",
            "payment_reversed",
            "cancelled"
        ]
    );
}

#[tokio::test]
async fn stock_that_arrives_while_an_order_is_cancelled_goes_back() {
    let shop = Shop::open().await;
    let gate = Arc::new(Semaphore::new(0));
    shop.peers
        .fail("stock.reserve", Fault::Gate(Arc::clone(&gate)));
    let order = shop.simple_order().await;
    wait_until(async || shop.peers.calls("stock.reserve") == 1).await;
    shop.cancel(order.id).await.unwrap();
    gate.add_permits(1);
    shop.until_status(order.id, OrderStatus::Cancelled).await;
    assert!(!shop.peers.holds(order.id));
    assert_eq!(shop.peers.calls("payment.authorize"), 0);
}

#[tokio::test]
async fn cancelling_at_any_moment_ends_in_one_state_with_nothing_left_over() {
    let shop = Shop::open().await;
    for round in 0..20_u32 {
        let order = shop.simple_order().await;
        for _ in 0..round {
            tokio::task::yield_now().await;
        }
        shop.cancel(order.id).await.unwrap();
        shop.until_status(order.id, OrderStatus::Cancelled).await;
        assert!(!shop.peers.holds(order.id));
    }
    assert_eq!(shop.peers.open_payments(), 0);
}

#[tokio::test]
async fn two_replicas_do_not_run_one_step_twice() {
    let mut shop = Shop::open().await;
    shop.add_replica().await;
    let gate = Arc::new(Semaphore::new(0));
    shop.peers
        .fail("stock.reserve", Fault::Gate(Arc::clone(&gate)));
    let order = shop.simple_order().await;
    wait_until(async || shop.peers.calls("stock.reserve") == 1).await;
    // Both look for due orders many times meanwhile.
    let mut ticks = tokio::time::interval(config().tick);
    for _ in 0..10 {
        ticks.tick().await;
    }
    assert_eq!(shop.peers.calls("stock.reserve"), 1);
    gate.add_permits(1);
    shop.until_status(order.id, OrderStatus::Confirmed).await;
    assert_eq!(
        (
            shop.peers.calls("stock.reserve"),
            shop.peers.calls("payment.authorize")
        ),
        (1, 1)
    );
}

#[tokio::test]
async fn news_of_the_money_reaches_the_order_once() {
    let shop = Shop::open().await;
    let order = shop.simple_order().await;
    let order = shop.until_status(order.id, OrderStatus::Confirmed).await;
    let (order_id, payment_id, amount) = (order.id, order.payment_id.unwrap(), order.totals.gross);
    let meta = Meta {
        at: shop.now(),
        version: 2,
    };
    for _ in 0..2 {
        shop.client
            .emit(PaymentCaptured {
                order_id,
                payment_id,
                amount,
                meta,
            })
            .await
            .unwrap();
    }
    shop.until(order_id, |view| view.payment == PaymentStatus::Captured)
        .await;
    let refunded = PaymentRefunded {
        order_id,
        payment_id,
        amount,
        full: true,
        meta,
    };
    shop.client.emit(refunded).await.unwrap();
    shop.until(order_id, |view| view.payment == PaymentStatus::Refunded)
        .await;
    let kinds = shop.kinds(order_id).await;
    assert_eq!(
        kinds[3..],
        ["confirmed", "payment_captured", "payment_refunded"]
    );
}

#[tokio::test]
async fn stock_that_ran_out_is_held_again_when_the_money_comes() {
    let shop = Shop::open().await;
    shop.peers.set_pending(true);
    let order = shop.simple_order().await;
    wait_until(async || shop.peers.calls("payment.authorize") >= 1).await;
    shop.peers.expire(order.id);
    let meta = Meta {
        at: shop.now(),
        version: 1,
    };
    shop.client
        .emit(StockExpired {
            order_id: order.id,
            meta,
        })
        .await
        .unwrap();
    wait_until(async || shop.kinds(order.id).await.last().unwrap() == "stock_expired").await;
    shop.peers.set_pending(false);
    shop.until_status(order.id, OrderStatus::Confirmed).await;
    assert!(shop.peers.holds(order.id));
    let kinds = shop.kinds(order.id).await;
    assert_eq!(
        kinds[3..],
        [
            "stock_expired",
            "payment_authorized",
            "stock_held",
            "confirmed"
        ]
    );
}
