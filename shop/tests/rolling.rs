//! Every service and the gateway restarted, replica after replica, while buyers go on.
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
mod front;
mod ordeal;

use contracts::UserId;
use shop::Staff;

use crate::{
    buyer::{Buyer, add_product},
    fleet::Fleet,
    front::{Front, Load},
    ordeal::assert_the_books_agree,
};

const REPLICAS: usize = 2;
/// More than all orders want.
const LAMPS: u32 = 100_000;
const BUYERS: usize = 4;

/// One after the other, those that others call first.
const ROUND: [&str; 7] = [
    "product",
    "recommendation",
    "payment",
    "user",
    "review",
    "order",
    "gateway",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarting_everything_one_by_one_is_noticed_by_nobody() {
    let Some(mut fleet) = Fleet::start_replicated(REPLICAS).await else {
        return;
    };
    let staff = Staff::connect(fleet.url("product")).await.unwrap();
    let lamp = add_product(&staff, "lamp", LAMPS).await;
    let front = Front::new(fleet.start_gateways(REPLICAS).await);
    let load = Load::start(&front, lamp, BUYERS).await;

    for name in ROUND {
        for replica in 0..REPLICAS {
            load.until_everything_was_done_again().await;
            let took = fleet.restart(name, replica).await;
            println!("{name} {replica} ended in {took:?}");
        }
    }
    load.until_everything_was_done_again().await;
    let done = load.stop().await;
    println!("{done}");

    assert_eq!(done.failures, [""; 0]);
    for order in &done.orders {
        assert_eq!(order["status"], "confirmed", "{order}");
        assert_eq!(order["payment"], "captured", "{order}");
    }
    assert_eq!(done.listed, done.orders.len(), "an order was placed twice");
    let sold = u32::try_from(done.orders.len()).unwrap();
    let visitor = Buyer::new(&fleet.clients, UserId::new());
    visitor.until_on_hand(lamp, LAMPS - sold).await;
    assert_the_books_agree(fleet.data()).await;
    fleet.assert_all_run();
}
