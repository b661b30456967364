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

pub(crate) async fn a_failing_event_lets_the_next_through(stage: Stage) {
    arrives(&stage, "event.fails", json!({ "mark": unique("e") })).await;
    arrives(&stage, "event.happened", json!({ "mark": unique("e") })).await;
}
