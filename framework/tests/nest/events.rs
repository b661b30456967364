//! Messages that nobody answers.

use nestling_testkit::unique;
use serde_json::{Value, json};

use crate::stage::Stage;

async fn arrives(stage: &Stage, event: &str, data: Value) {
    let pattern = match event {
        "user.created" => stage.names.user_created(),
        name => stage.at(name),
    };
    stage.caller.emit(&pattern, &data, &[]).await;
    stage.seen(event, |seen| *seen == data).await;
}

pub(crate) async fn an_event_reaches_its_handler(stage: Stage) {
    arrives(
        &stage,
        "event.happened",
        json!({ "mark": unique("e"), "n": [1, null] }),
    )
    .await;
}

pub(crate) async fn an_object_is_a_pattern_of_an_event(stage: Stage) {
    arrives(&stage, "user.created", json!({ "mark": unique("e") })).await;
}

pub(crate) async fn text_is_an_event(stage: Stage) {
    arrives(&stage, "event.happened", json!(unique("text"))).await;
}

/// Where the transport promises something of events, a handler that asks for it gets NestJS's, too.
pub(crate) async fn an_event_that_must_not_be_lost_arrives(stage: Stage) {
    arrives(&stage, "event.kept", json!({ "mark": unique("e") })).await;
}

/// NestJS runs the handler of a message for an event, too; nobody gets what it returns.
pub(crate) async fn a_message_may_be_emitted(stage: Stage) {
    arrives(&stage, "note", json!({ "mark": unique("e") })).await;
}

/// The other way round, the caller is told that the handler has ended.
pub(crate) async fn an_event_may_be_sent(stage: Stage) {
    let data = json!({ "mark": unique("e") });
    let reply = stage.send("event.happened", data.clone()).await;
    assert_eq!(reply, Value::Null);
    stage.seen("event.happened", |seen| *seen == data).await;
}

pub(crate) async fn a_wildcard_sees_events(stage: Stage) {
    for name in ["audit.one", "audit.two.three"] {
        let data = json!({ "mark": unique("e") });
        stage.caller.emit(&stage.at(name), &data, &[]).await;
        let seen = stage.seen("audit", |seen| *seen == data).await;
        assert_eq!(seen["destination"], json!(stage.at(name).text));
    }
}

pub(crate) async fn a_failing_event_lets_the_next_through(stage: Stage) {
    arrives(&stage, "event.fails", json!({ "mark": unique("e") })).await;
    arrives(&stage, "event.happened", json!({ "mark": unique("e") })).await;
}
