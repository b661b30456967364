//! Kafka's records: keys, text and what NestJS takes for a description of one.

use nestling::Client;
use nestling_testkit::unique;
use serde_json::{Value, json};

use crate::stage::{Side, Stage, within};

pub(crate) async fn a_handler_sees_the_record(stage: Stage) {
    if stage.half.server == Side::Nestling {
        let sent = stage.send("echo", json!({ "a": 1 })).await;
        assert_eq!(sent, json!({ "a": 1 }));
        return;
    }
    let headers = [("x-trace", "t")];
    let seen = stage
        .send_with("kafka.record", json!({ "a": 1 }), &headers)
        .await;
    assert_eq!(seen["value"], json!({ "a": 1 }), "{seen}");
    assert_eq!(seen["trace"], json!("t"), "{seen}");
}

/// NestJS takes a reply with `key` or `value` apart; its value is what the caller gets.
pub(crate) async fn a_reply_may_be_a_record(stage: Stage) {
    let reply = stage.send("kafka.keyed", json!({ "a": 1 })).await;
    assert_eq!(reply, json!({ "a": 1 }));
}

pub(crate) async fn a_number_is_text_to_nestjs(stage: Stage) {
    for (value, name) in [
        (json!(42), "string"),
        (json!("42"), "string"),
        (json!(true), "string"),
        (json!({}), "object"),
        (json!([]), "object"),
    ] {
        assert_eq!(stage.send("kafka.type", value).await, json!(name));
    }
}

pub(crate) async fn a_retriable_failure_is_tried_again(stage: Stage) {
    let reply = stage.send("kafka.retriable", json!(1)).await;
    let text = reply.as_str().unwrap_or_default();
    assert!(text.starts_with("attempt "), "{reply}");
}

/// A nestling service that emits on its own wire is heard where NestJS listens, if its URL says so.
pub(crate) async fn an_event_for_both_is_heard_by_nestjs(stage: Stage) {
    let url = format!("{}?topic=both", stage.url());
    let client = within("a client to connect", Client::connect(url)).await;
    let client = client.unwrap();
    let data = json!({ "mark": unique("e") });
    let pattern = stage.at("event.happened").text;
    let emitted = client.emit_at(pattern, &data).header("x-trace", "t").await;
    assert_eq!(emitted, Ok(()));
    let seen = stage.seen("event.happened", |seen| *seen == data).await;
    assert_eq!(seen["metadata"]["x-trace"], json!("t"), "{seen}");
}

/// A NestJS caller may give a key and headers; the handler gets the value.
pub(crate) async fn a_record_of_nestjs_is_its_value(stage: Stage) {
    let record = json!({ "key": "k", "value": { "a": 1 }, "headers": { "x-trace": "t" } });
    assert_eq!(stage.send("echo", record).await, json!({ "a": 1 }));
    let text = json!({ "key": "k", "value": "Ada" });
    assert_eq!(stage.send("echo", text).await, Value::from("Ada"));
}
