//! `shop verify` finds what is wrong with the books, and nothing where nothing is.
#![allow(
    clippy::unwrap_used,
    reason = "a failed test panics, in its helpers too"
)]
#![allow(
    dead_code,
    reason = "what other tests need too, each of which uses a part"
)]

mod buyer;

use std::{fs, path::Path, time::Duration};

use contracts::{
    UserId,
    order::{OrderStatus, PaymentStatus},
};
use nestling::{sqlite, transport::Memory};
use shop::{
    Layout, Shop, Staff,
    verify::{Finding, verify},
};

use crate::buyer::{Buyer, GOOD_CARD, add_product};

/// How to break each law, in the order they are told: whose books, and what is written into them.
const BREACHES: [(&str, &str); 15] = [
    ("product", "UPDATE stock SET on_hand = on_hand + 1"),
    ("product", "UPDATE stock SET reserved = reserved + 1"),
    (
        "product",
        "DELETE FROM stock_movements WHERE reason = 'order'",
    ),
    (
        "product",
        "INSERT INTO stock_movements (product_id, delta, reason, ref, at)
         SELECT product_id, delta, reason, ref, at FROM stock_movements WHERE reason = 'order'",
    ),
    (
        "payment",
        "UPDATE ledger_entries SET debit = debit + 1 WHERE debit > 0",
    ),
    (
        "payment",
        "PRAGMA ignore_check_constraints = 1; UPDATE payments SET refunded = captured + 1",
    ),
    (
        "payment",
        "UPDATE payments SET captured = captured - 1 WHERE refunded = 0",
    ),
    (
        "payment",
        "INSERT INTO sim_log (at, payment_id, operation, state)
         SELECT at, payment_id, operation, state FROM sim_log",
    ),
    (
        "payment",
        "INSERT INTO payments (id, order_id, user_id, state, amount, captured, currency, version, updated_at)
         SELECT 'pay_again', order_id, user_id, state, amount, captured, currency, version, updated_at
         FROM payments WHERE state = 'captured'",
    ),
    ("payment", "UPDATE sim_charges SET state = 'authorized'"),
    (
        "product",
        "UPDATE reservations SET state = 'expired' WHERE state = 'committed'",
    ),
    (
        "product",
        "UPDATE reservations SET state = 'held' WHERE state = 'released'",
    ),
    (
        "payment",
        "UPDATE sim_charges SET state = 'authorized' WHERE state != 'captured'",
    ),
    (
        "order",
        "INSERT INTO saga (order_id, step, tries, next_at) SELECT order_id, 'reserve', 7, 1 FROM order_view",
    ),
    (
        "order",
        "UPDATE order_view SET body = json_set(body, '$.attempts', 9)",
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_law_is_broken_by_what_it_forbids_and_by_nothing_else() {
    let data = tempfile::tempdir().unwrap();
    trade(data.path()).await;
    let findings = verify(data.path(), Duration::ZERO).await.unwrap();
    for finding in &findings {
        assert!(finding.breaches.is_empty(), "{finding}");
        assert!(finding.cases > 0, "{finding}");
    }
    assert_eq!(findings.len(), BREACHES.len());
    let unfinished = verify(data.path(), Duration::from_secs(3600)).await;
    let judged = |finding: &Finding| finding.law == "a confirmed order has its goods";
    let unfinished = unfinished.unwrap().into_iter().find(judged).unwrap();
    assert_eq!(unfinished.cases, 0, "too young to be judged");

    for (position, (name, statements)) in BREACHES.into_iter().enumerate() {
        let books = tempfile::tempdir().unwrap();
        for file in fs::read_dir(data.path()).unwrap() {
            let file = file.unwrap().path();
            fs::copy(&file, books.path().join(file.file_name().unwrap())).unwrap();
        }
        let pool = sqlite::open(books.path().join(format!("{name}.db"))).await;
        let mut connection = pool.unwrap().acquire().await.unwrap().detach();
        sqlx::raw_sql(statements)
            .execute(&mut connection)
            .await
            .unwrap();
        let findings = verify(books.path(), Duration::ZERO).await.unwrap();
        let finding = &findings[position];
        assert!(!finding.breaches.is_empty(), "{statements}: {finding}");
    }
}

/// One order that is confirmed, and one that is cancelled when it was paid for.
async fn trade(data: &Path) {
    let memory = Memory::new();
    let layout = Layout {
        data: Some(data.to_owned()),
        ..Layout::new(&memory, &memory)
    };
    let shop = Shop::start(&layout).await.unwrap();
    let staff = Staff::connect(&shop.product).await.unwrap();
    let lamp = add_product(&staff, "lamp", 10).await;
    let buyer = Buyer::new(&shop.clients, UserId::new());
    let card = buyer.add_card(GOOD_CARD).await;
    for (key, wanted) in [
        ("kept", PaymentStatus::Captured),
        ("cancelled", PaymentStatus::Refunded),
    ] {
        let form = buyer.fill_in(lamp, 2, card).await;
        let order = buyer.place(&form, key).await;
        buyer
            .until(order.id, |order| order.payment == PaymentStatus::Captured)
            .await;
        if wanted == PaymentStatus::Refunded {
            buyer.cancel(order.id).await;
        }
        let order = buyer
            .until(order.id, |order| {
                order.status.is_settled() && order.payment == wanted
            })
            .await;
        let is_kept = order.status == OrderStatus::Confirmed;
        assert_eq!(is_kept, key == "kept");
    }
    buyer.until_on_hand(lamp, 8).await;
    shop.shutdown().await;
}
