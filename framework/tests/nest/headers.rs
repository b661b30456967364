//! What travels beside a message: a packet's metadata on TCP and Redis, headers on NATS and Kafka.

use std::time::Duration;

use nestling_testkit::unique;
use serde_json::{Value, json};

use crate::stage::Stage;

pub(crate) async fn headers_of_a_message_travel(stage: Stage) {
    let headers = [("x-trace", "trace 1"), ("x-other", "0.5")];
    let received = stage.send_with("headers", json!({}), &headers).await;
    assert_eq!(received["x-trace"], json!("trace 1"), "{received}");
    assert_eq!(received["x-other"], json!("0.5"), "{received}");
}

pub(crate) async fn headers_of_an_event_travel(stage: Stage) {
    let data = json!({ "mark": unique("e") });
    let headers = [("x-trace", "trace 2")];
    let pattern = stage.at("event.happened");
    stage.caller.emit(&pattern, &data, &headers).await;
    let seen = stage.seen("event.happened", |seen| *seen == data).await;
    assert_eq!(seen["metadata"]["x-trace"], json!("trace 2"), "{seen}");
}

pub(crate) async fn a_message_without_headers_is_fine(stage: Stage) {
    let received = stage.send("headers", json!({})).await;
    assert_eq!(received.get("x-trace"), None, "{received}");
}

pub(crate) async fn the_deadline_travels_to_nestjs(stage: Stage) {
    let pattern = stage.at("headers").text;
    let call = stage.client().send_at::<Value>(pattern, &json!({}));
    let received = call.timeout(Duration::from_secs(20)).await.unwrap();
    let deadline = &received["deadline"];
    let remaining: u64 = match deadline.as_str() {
        Some(text) => text.parse().unwrap(),
        None => panic!("no deadline in {received}"),
    };
    assert!((1..=20_000).contains(&remaining), "{remaining}");
}

pub(crate) async fn a_deadline_from_nestjs_counts(stage: Stage) {
    let headers = [("deadline", "20000")];
    let received = stage.send_with("remaining", json!({}), &headers).await;
    let remaining = received
        .as_u64()
        .or_else(|| received.as_str()?.parse().ok())
        .unwrap_or_else(|| panic!("no time remains: {received}"));
    // A nestling caller has a deadline of its own, which is later.
    assert!((1..=30_000).contains(&remaining), "{remaining}");
}
