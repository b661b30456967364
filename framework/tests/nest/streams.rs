//! One message, many replies: an Observable on one side, `Streaming` on the other.

use nestling::Code;
use serde_json::{Value, json};

use crate::{
    caller::Outcome,
    stage::{Side, Stage, Transport},
};

/// The values without what Kafka's completion adds: a record without a value, which NestJS's client cannot tell from
/// null.
fn values(stage: &Stage, outcome: &Outcome) -> Vec<Value> {
    let mut values = outcome.values.clone();
    let nest_on_kafka = stage.transport == Transport::Kafka && stage.half.caller == Side::Nest;
    if nest_on_kafka && values.last() == Some(&Value::Null) {
        values.pop();
    }
    values
}

async fn all_arrive(stage: Stage, name: &str, count: u32) {
    let outcome = stage.stream(name, count, None).await;
    assert_eq!(outcome.failure, None);
    let expected: Vec<Value> = (1..=count).map(Value::from).collect();
    stage.check_all(&values(&stage, &outcome), &expected);
}

pub(crate) async fn values_of_one_moment_arrive(stage: Stage) {
    all_arrive(stage, "stream.tick", 3).await;
}

pub(crate) async fn values_over_time_arrive(stage: Stage) {
    all_arrive(stage, "stream.time", 3).await;
}

pub(crate) async fn a_late_end_is_an_end(stage: Stage) {
    all_arrive(stage, "stream.late", 2).await;
}

pub(crate) async fn a_stream_may_be_empty(stage: Stage) {
    all_arrive(stage, "stream.none", 0).await;
}

pub(crate) async fn an_error_ends_a_stream_after_its_values(stage: Stage) {
    let outcome = stage.stream("stream.fails", 2, None).await;
    stage.check_all(&outcome.values, &[json!(1), json!(2)]);
    let failure = outcome.failure.unwrap();
    let details = json!({ "id": 7, "tags": ["a", "ż"] });
    let is = failure.is(Code::NotFound, "no such user", Some(&details));
    assert!(is, "{failure:?}");
}

/// The values come while the stream is open, and the caller may go; the server has no worse time of it.
pub(crate) async fn a_reader_may_leave_an_endless_stream(stage: Stage) {
    let outcome = stage.stream("stream.open", 2, Some(2)).await;
    assert_eq!(outcome.failure, None);
    stage.check_all(&outcome.values, &[json!(1), json!(2)]);
    let reply = stage.send("double", json!(4)).await;
    stage.check(&reply, &json!(8));
}

pub(crate) async fn a_thousand_values_keep_their_order(stage: Stage) {
    all_arrive(stage, "stream.tick", 1000).await;
}
