//! The process ends at a step and another goes on.

use std::time::Duration;

use contracts::order::{OrderStatus, PaymentStatus};

use crate::{
    peers::{Fault, bad_card},
    shop::{Shop, config, wait_until},
};

/// Leases that end soon, so that what crashed is taken up soon.
async fn shop() -> Shop {
    Shop::with(order::Config {
        lease: Duration::from_millis(50),
        ..config()
    })
    .await
}

/// Crashes while the first call of `pattern` is lost in this way, and starts again.
async fn crash_at(shop: &mut Shop, pattern: &'static str, calls: usize) {
    wait_until(async || shop.peers.calls(pattern) == calls).await;
    shop.crash();
    shop.add_replica().await;
}

#[tokio::test]
async fn after_a_crash_at_any_step_the_order_is_confirmed_and_charged_once() {
    for pattern in ["stock.reserve", "payment.authorize"] {
        for fault in [Fault::LostRequest, Fault::LostReply] {
            let mut shop = shop().await;
            shop.peers.fail(pattern, fault.clone());
            let order = shop.simple_order().await;
            crash_at(&mut shop, pattern, 1).await;
            shop.until_status(order.id, OrderStatus::Confirmed).await;
            assert_eq!(shop.peers.promises(), 1, "{pattern} {fault:?}");
            assert!(shop.peers.holds(order.id));
            let kinds = shop.kinds(order.id).await;
            assert_eq!(
                kinds,
                [
                    "placed",
                    "awaiting_payment",
                    "payment_requested",
                    "confirmed"
                ]
            );
            let events = shop.events(order.id, "order.confirmed").await;
            assert_eq!(
                events
                    .iter()
                    .filter(|name| **name == "order.placed")
                    .count(),
                1
            );
        }
    }
}

#[tokio::test]
async fn after_a_crash_between_reply_and_first_step_the_order_goes_on() {
    let mut shop = shop().await;
    let order = shop.simple_order().await;
    shop.crash();
    shop.add_replica().await;
    shop.until_status(order.id, OrderStatus::Confirmed).await;
    assert_eq!(shop.peers.promises(), 1);
}

#[tokio::test]
async fn after_a_crash_while_compensating_everything_is_undone() {
    for pattern in ["stock.release", "payment.reverse"] {
        for fault in [Fault::LostRequest, Fault::LostReply] {
            let mut shop = shop().await;
            let order = shop.simple_order().await;
            shop.until_status(order.id, OrderStatus::Confirmed).await;
            shop.peers.fail(pattern, fault);
            shop.cancel(order.id).await.unwrap();
            crash_at(&mut shop, pattern, 1).await;
            shop.until_status(order.id, OrderStatus::Cancelled).await;
            assert!(!shop.peers.holds(order.id) && shop.peers.open_payments() == 0);
        }
    }
}

#[tokio::test]
async fn after_a_crash_an_order_that_awaits_payment_still_has_its_deadline() {
    let mut shop = shop().await;
    let lamp = shop.add_product("lamp", 5);
    let order = shop.order(lamp, 1, bad_card()).await;
    shop.until(order.id, |view| view.payment == PaymentStatus::Failed)
        .await;
    shop.crash();
    shop.advance(Duration::from_secs(600));
    shop.add_replica().await;
    shop.until_status(order.id, OrderStatus::Rejected).await;
    wait_until(async || shop.peers.available(lamp) == 5).await;
}

#[tokio::test]
async fn a_replica_with_a_name_takes_up_at_once_what_it_left() {
    let config = order::Config {
        lease: Duration::from_secs(3600),
        instance: Some("order-1".to_owned()),
        ..config()
    };
    let mut shop = Shop::with(config).await;
    shop.peers.fail("payment.authorize", Fault::LostReply);
    let order = shop.simple_order().await;
    crash_at(&mut shop, "payment.authorize", 1).await;
    shop.until_status(order.id, OrderStatus::Confirmed).await;
    assert_eq!(shop.peers.promises(), 1);
}
