//! Buyers at the checkout while services and brokers die, and what must be true of every order afterwards.

#![allow(dead_code, reason = "shared by tests, each of which uses a part")]

use std::{
    collections::BTreeMap,
    fmt,
    path::Path,
    time::{Duration, Instant},
};

use contracts::{
    MethodId, ProductId, UserId,
    order::{ListOrders, OrderStatus, OrderView, PaymentStatus},
    payment::PaymentState,
};
use futures_util::{StreamExt as _, stream};
use gateway::Clients;
use nestling_testkit::Kind;
use shop::{
    Staff,
    verify::{Finding, verify},
};
use tokio::sync::watch;

use crate::{
    buyer::{Buyer, GOOD_CARD, add_product},
    fleet::Fleet,
};

/// What is done to the shop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blow {
    /// A service dies.
    Kill(&'static str),
    /// It comes back.
    Start(&'static str),
    /// A broker dies, and comes back with what it has on disk.
    Restart(Kind),
}

/// A buyer with a card.
struct Visit {
    buyer: Buyer,
    card: MethodId,
    product_id: ProductId,
    qty: u32,
    /// Whether the buyer cancels right after ordering.
    regrets: bool,
}

/// How many there are of what is wanted by more than can have it.
const RARE_LAMPS: u32 = 3;
/// How many buyers prepare at once, and how many order at once.
const PREPARING: usize = 32;
const BUYING: usize = 8;

/// How it went.
#[derive(Debug)]
pub(crate) struct Summary {
    outcomes: BTreeMap<String, u32>,
    /// From the first order to the last.
    placing: Duration,
    /// Until the last had come to its end and everything was checked.
    in_all: Duration,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (status, orders) in &self.outcomes {
            write!(f, "{orders} {status}, ")?;
        }
        let (placing, in_all) = (self.placing.as_secs(), self.in_all.as_secs());
        write!(
            f,
            "placed in {placing} s, over and checked after {in_all} s"
        )
    }
}

/// So many orders, blows as soon as so many of them are placed, and what must be true afterwards. None
/// where there cannot be brokers.
pub(crate) async fn endure(number: u32, blows: &[(u32, Blow)]) -> Option<Summary> {
    let mut fleet = Fleet::start().await?;
    let clients = fleet.clients.clone();
    let staff = Staff::connect(fleet.url("product")).await.unwrap();
    // More than all of them want.
    let lamps = 2 * number;
    let lamp = add_product(&staff, "lamp", lamps).await;
    let rare_lamp = add_product(&staff, "rare-lamp", RARE_LAMPS).await;
    let preparing = stream::iter(0..number).map(async |number| {
        let buyer = Buyer::new(&clients, UserId::new());
        let card = buyer.add_card(GOOD_CARD).await;
        let product_id = if number % 8 == 3 { rare_lamp } else { lamp };
        Visit {
            buyer,
            card,
            product_id,
            qty: 1 + number % 2,
            regrets: number % 8 == 6,
        }
    });
    let visits: Vec<_> = preparing.buffered(PREPARING).collect().await;

    let began = Instant::now();
    let (placed, mut watched) = watch::channel(0_u32);
    let buying = stream::iter(&visits).map(async |visit| {
        let Visit { buyer, card, .. } = visit;
        // Priced when it is wanted: a price does not hold for ever.
        let form = buyer.fill_in(visit.product_id, visit.qty, *card).await;
        let order = buyer.place(&form, "only").await;
        placed.send_modify(|count| *count += 1);
        if visit.regrets {
            buyer.cancel(order.id).await;
        }
        order.id
    });
    let buying = buying.buffered(BUYING).collect::<Vec<_>>();
    let striking = async {
        for (count, blow) in blows {
            let reached = watched.wait_for(|placed| placed >= count).await;
            reached.expect("buyers are still there");
            match blow {
                Blow::Kill(service) => fleet.kill(service),
                Blow::Start(service) => fleet.start_again(service),
                Blow::Restart(kind) => fleet.restart_broker(*kind),
            }
        }
    };
    let (order_ids, ()) = tokio::join!(buying, striking);
    let placing = began.elapsed();

    let over = visits.iter().zip(order_ids);
    let over = over.map(|(visit, order_id)| visit.buyer.until(order_id, is_over));
    let orders: Vec<_> = stream::iter(over).buffered(PREPARING).collect().await;
    let mut sold = BTreeMap::from([(lamp, 0), (rare_lamp, 0)]);
    let mut outcomes = BTreeMap::new();
    for (visit, order) in visits.iter().zip(&orders) {
        assert_consistent(&clients, visit, order).await;
        let status = format!("{:?}", order.status).to_lowercase();
        *outcomes.entry(status).or_default() += 1;
        if order.status == OrderStatus::Confirmed {
            *sold.entry(order.lines[0].product_id).or_default() += order.lines[0].qty;
        }
        if order.status == OrderStatus::Rejected {
            assert_eq!(order.lines[0].product_id, rare_lamp, "{order:?}");
        }
    }
    // They want two each, so that only the first gets any.
    assert_eq!(sold[&rare_lamp], 2);
    for (product_id, there_were) in [(lamp, lamps), (rare_lamp, RARE_LAMPS)] {
        let left = there_were - sold[&product_id];
        visits[0].buyer.until_on_hand(product_id, left).await;
    }
    assert_the_books_agree(fleet.data()).await;
    fleet.assert_all_run();
    Some(Summary {
        outcomes,
        placing,
        in_all: began.elapsed(),
    })
}

/// One order, and its payments where they belong.
async fn assert_consistent(clients: &Clients, visit: &Visit, order: &OrderView) {
    let Visit { buyer, regrets, .. } = visit;
    let all = buyer.send(&clients.order, ListOrders::default()).await;
    let all: Vec<_> = all.unwrap().items.iter().map(|order| order.id).collect();
    assert_eq!(all, [order.id], "a request was repeated");
    let payments = buyer.payments(order).await;
    let states: Vec<_> = payments.iter().map(|payment| payment.state).collect();
    match order.status {
        OrderStatus::Confirmed => assert_eq!(states, [PaymentState::Captured], "{order:?}"),
        OrderStatus::Rejected => {
            assert_eq!(order.reason.as_deref(), Some("out_of_stock"), "{order:?}");
            assert_eq!(states, [], "{order:?}");
        }
        OrderStatus::Cancelled => {
            assert!(regrets, "{order:?}");
            let is_undone =
                |state| matches!(state, &PaymentState::Voided | &PaymentState::Refunded);
            assert!(states.iter().all(is_undone), "{states:?} of {order:?}");
        }
        other => panic!("{other:?} is not the end of {order:?}"),
    }
}

/// Whether neither the order nor its payment has anywhere to go from here.
fn is_over(order: &OrderView) -> bool {
    match order.status {
        OrderStatus::Confirmed => order.payment == PaymentStatus::Captured,
        OrderStatus::Cancelled => !matches!(
            order.payment,
            PaymentStatus::Pending | PaymentStatus::Authorized | PaymentStatus::Captured
        ),
        status => status.is_settled(),
    }
}

/// Holds the books against every law, and says how often each was applied.
pub(crate) async fn assert_the_books_agree(data: &Path) {
    let findings = verify(data, Duration::ZERO).await.unwrap();
    for finding in &findings {
        println!("{finding}");
    }
    for Finding { law, breaches, .. } in findings {
        assert!(breaches.is_empty(), "{law}: {breaches:?}");
    }
}
