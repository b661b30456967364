//! The shop as processes over real brokers: under a rush of buyers, and while services are killed.
#![allow(
    clippy::unwrap_used,
    reason = "a failed test panics, in its helpers too"
)]

mod buyer;
mod fleet;

use std::collections::{BTreeMap, HashMap};

use contracts::{
    UserId,
    order::{ListOrders, OrderStatus, OrderView, PaymentStatus, PlaceOrder},
    payment::PaymentState,
};
use futures_util::{StreamExt as _, future::join_all, stream};
use gateway::Clients;
use shop::Staff;
use sqlx::{SqlitePool, sqlite::SqliteConnectOptions};
use tokio::sync::watch;

use crate::{
    buyer::{Buyer, GOOD_CARD, add_product},
    fleet::Fleet,
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

/// What is done to a service.
#[derive(Clone, Copy)]
enum Blow {
    Kill(&'static str),
    Start(&'static str),
}

/// A buyer at the checkout.
struct Visit {
    buyer: Buyer,
    form: PlaceOrder,
    /// Whether the buyer cancels right after ordering.
    regrets: bool,
}

/// How many there are: of one more than are wanted, of the other too few.
const LAMPS: u32 = 200;
const RARE_LAMPS: u32 = 3;

/// So many orders, blows as soon as so many of them are placed, and what must be true afterwards.
async fn endure(number: u32, blows: &[(u32, Blow)]) {
    let Some(mut fleet) = Fleet::start().await else {
        return;
    };
    let clients = fleet.clients.clone();
    let staff = Staff::connect(fleet.url("product")).await.unwrap();
    let lamp = add_product(&staff, "lamp", LAMPS).await;
    let rare_lamp = add_product(&staff, "rare-lamp", RARE_LAMPS).await;
    let visits = join_all((0..number).map(async |number| {
        let buyer = Buyer::new(&clients, UserId::new());
        let card = buyer.add_card(GOOD_CARD).await;
        let product_id = if number % 8 == 3 { rare_lamp } else { lamp };
        let form = buyer.fill_in(product_id, 1 + number % 2, card).await;
        let regrets = number % 8 == 6;
        Visit {
            buyer,
            form,
            regrets,
        }
    }));
    let visits = visits.await;

    let (placed, mut watched) = watch::channel(0_u32);
    let buying = stream::iter(&visits).map(async |visit| {
        let order = visit.buyer.place(&visit.form, "only").await;
        placed.send_modify(|count| *count += 1);
        if visit.regrets {
            visit.buyer.cancel(order.id).await;
        }
        order.id
    });
    let buying = buying.buffered(8).collect::<Vec<_>>();
    let striking = async {
        for (count, blow) in blows {
            let reached = watched.wait_for(|placed| placed >= count).await;
            reached.expect("buyers are still there");
            match blow {
                Blow::Kill(service) => fleet.kill(service),
                Blow::Start(service) => fleet.start_again(service),
            }
        }
    };
    let (order_ids, ()) = tokio::join!(buying, striking);

    let over = visits.iter().zip(order_ids);
    let over = over.map(|(visit, order_id)| visit.buyer.until(order_id, is_over));
    let orders = join_all(over).await;
    let mut sold = BTreeMap::from([(lamp, 0), (rare_lamp, 0)]);
    for (visit, order) in visits.iter().zip(&orders) {
        assert_consistent(&clients, visit, order).await;
        if order.status == OrderStatus::Confirmed {
            *sold.entry(order.lines[0].product_id).or_default() += order.lines[0].qty;
        }
        if order.status == OrderStatus::Rejected {
            assert_eq!(order.lines[0].product_id, rare_lamp, "{order:?}");
        }
    }
    // They want two each, so that only the first gets any.
    assert_eq!(sold[&rare_lamp], 2);
    for (product_id, there_were) in [(lamp, LAMPS), (rare_lamp, RARE_LAMPS)] {
        let left = there_were - sold[&product_id];
        visits[0].buyer.until_on_hand(product_id, left).await;
    }
    assert_the_books_agree(&fleet, &orders).await;
    fleet.assert_all_run();
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

/// What the contracts do not show: the provider moved no money twice, and the ledger has exactly
/// what the confirmed orders cost.
async fn assert_the_books_agree(fleet: &Fleet, orders: &[OrderView]) {
    let file = SqliteConnectOptions::new()
        .filename(fleet.database("payment"))
        .read_only(true);
    let books = SqlitePool::connect_with(file).await.unwrap();
    let count = async |query: &'static str| -> i64 {
        sqlx::query_scalar(query).fetch_one(&books).await.unwrap()
    };
    let twice = "SELECT COUNT(*) FROM (SELECT 1 FROM sim_log WHERE operation != 'void'
                 GROUP BY payment_id, operation HAVING COUNT(*) > 1)";
    assert_eq!(count(twice).await, 0, "the provider moved money twice");
    let several = "SELECT COUNT(*) FROM (SELECT 1 FROM payments WHERE captured > refunded
                   GROUP BY order_id HAVING COUNT(*) > 1)";
    assert_eq!(
        count(several).await,
        0,
        "an order was paid for several times"
    );
    let open = "SELECT COUNT(*) FROM sim_charges WHERE state = 'authorized'";
    assert_eq!(
        count(open).await,
        0,
        "the provider still holds buyers' money"
    );

    let confirmed = orders
        .iter()
        .filter(|order| order.status == OrderStatus::Confirmed);
    let (number, gross) = confirmed.fold((0, 0), |(number, gross), order| {
        (number + 1, gross + order.totals.gross.amount)
    });
    let taken = "SELECT COUNT(*) FROM sim_charges WHERE state = 'captured'";
    assert_eq!(count(taken).await, number);
    let cleared = "SELECT COALESCE(SUM(debit - credit), 0) FROM ledger_entries
                   WHERE account = 'provider_clearing'";
    assert_eq!(count(cleared).await, gross);
    let balance = "SELECT COALESCE(SUM(debit - credit), 0) FROM ledger_entries";
    assert_eq!(count(balance).await, 0);
    books.close().await;
}
