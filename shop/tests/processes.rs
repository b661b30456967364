//! The shop as processes over real brokers: under a rush of buyers, and while services are killed.
#![allow(
    clippy::unwrap_used,
    reason = "a failed test panics, in its helpers too"
)]
#![allow(
    dead_code,
    reason = "what other tests need too, each of which uses a part"
)]

mod buyer;
mod fleet;
mod ordeal;

use std::collections::HashMap;

use contracts::{UserId, order::OrderStatus};
use futures_util::future::join_all;
use shop::Staff;

use crate::{
    buyer::{Buyer, GOOD_CARD, add_product},
    fleet::Fleet,
    ordeal::{Blow, endure},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_buyers_of_ten_units_get_ten_orders() {
    let Some(mut fleet) = Fleet::start().await else {
        return;
    };
    let staff = Staff::connect(fleet.url("product")).await.unwrap();
    let lamp = add_product(&staff, "lamp", 10).await;
    let buyers: Vec<_> = (0..200)
        .map(|_| Buyer::new(&fleet.clients, UserId::new()))
        .collect();
    let forms = buyers.iter().map(|buyer| async {
        let card = buyer.add_card(GOOD_CARD).await;
        buyer.fill_in(lamp, 1, card).await
    });
    let forms: Vec<_> = join_all(forms).await;

    let rush = buyers.iter().zip(&forms).map(|(buyer, form)| async {
        let placed = buyer.place(form, "only").await;
        buyer
            .until(placed.id, |order| order.status.is_settled())
            .await
    });
    let orders = join_all(rush).await;

    let mut outcomes = HashMap::new();
    for order in &orders {
        *outcomes
            .entry((order.status, order.reason.as_deref()))
            .or_insert(0) += 1;
    }
    let expected = [
        ((OrderStatus::Confirmed, None), 10),
        ((OrderStatus::Rejected, Some("out_of_stock")), 190),
    ];
    assert_eq!(outcomes, HashMap::from(expected));
    buyers[0].until_on_hand(lamp, 0).await;
    fleet.assert_all_run();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_payment_and_then_order_leaves_no_order_stuck_and_none_charged_twice() {
    // While payment is away, orders pile up that nobody has charged.
    let blows = [
        (8, Blow::Kill("payment")),
        (18, Blow::Start("payment")),
        (28, Blow::Kill("order")),
        (28, Blow::Start("order")),
    ];
    endure(40, &blows).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_each_service_of_the_saga_time_and_again_changes_nothing() {
    let names = ["order", "product", "payment"].into_iter().cycle();
    let blows = (8..).step_by(8).zip(names).take(9);
    let blows = blows.flat_map(|(placed, name)| {
        // Only payment is not needed for orders to be placed.
        let away = if name == "payment" { 2 } else { 0 };
        [
            (placed, Blow::Kill(name)),
            (placed + away, Blow::Start(name)),
        ]
    });
    endure(84, &blows.collect::<Vec<_>>()).await;
}
