//! Services that are away for a moment, and for longer.
//!
//! Time is paused: it passes only while everybody waits.

use std::{sync::atomic::Ordering, time::Duration};

use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::{fakes::product_id, shop::Shop};

/// More requests than it takes to open a circuit breaker.
const MANY: usize = 20;

#[tokio::test(start_paused = true)]
async fn a_read_waits_out_the_restart_of_a_service() {
    let mut shop = Shop::open().await;
    shop.stop("product").await;
    let read = shop.get("/v1/products").answer();
    // The first of the two is looked at first, and nobody is there yet for its first try.
    let (answer, _product) = tokio::join!(biased; read, shop.serve("product"));
    assert_eq!(answer.status, 200, "{}", answer.body);
}

#[tokio::test(start_paused = true)]
async fn an_open_breaker_answers_at_once_and_says_when_to_come_again() {
    let mut shop = Shop::open().await;
    shop.stop("product").await;
    let mut asked = 0;
    let refused = loop {
        let before = Instant::now();
        let answer = shop.get("/v1/products").answer().await;
        assert_eq!(answer.header("retry-after"), "1");
        if answer.body["code"] == "circuit_open" {
            answer.is_problem(503, "circuit_open");
            break before.elapsed();
        }
        answer.is_problem(503, "unavailable");
        asked += 1;
        assert!(asked < MANY, "the breaker does not open");
    };
    assert_eq!(refused, Duration::ZERO);
    let reviews = format!("/v1/products/{}/reviews", product_id());
    let other = shop.get(&reviews).answer().await;
    assert_eq!(other.status, 200, "one service is away, not all");

    shop.start("product").await;
    sleep(Duration::from_secs(2)).await;
    assert_eq!(shop.get("/v1/products").answer().await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_write_that_is_not_idempotent_is_made_once() {
    let shop = Shop::open().await;
    let register =
        json!({"email": "stopping@example.org", "password": "correct horse", "name": "S"});
    let answer = shop
        .post("/v1/auth/register")
        .json(&register)
        .answer()
        .await;
    answer.is_problem(503, "unavailable");
    assert_eq!(answer.header("retry-after"), "1");
    assert_eq!(shop.world.registrations.load(Ordering::Relaxed), 1);
}
