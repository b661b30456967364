//! What handlers fail with, as their callers see it.

use nestling::Code;
use serde_json::json;

use crate::{
    caller::Failure,
    stage::{Side, Stage},
};

pub(crate) async fn a_typed_error_keeps_code_message_and_details(stage: Stage) {
    let failure = stage.refused("error.coded").await;
    let details = json!({ "id": 7, "tags": ["a", "ż"] });
    let is = failure.is(Code::NotFound, "no such user", Some(&details));
    assert!(is, "{failure:?}");
}

pub(crate) async fn an_error_without_details_has_none(stage: Stage) {
    let failure = stage.refused("error.bare").await;
    let is = failure.is(Code::Aborted, "version conflict", None);
    assert!(is, "{failure:?}");
}

pub(crate) async fn a_fault_says_nothing_of_itself(stage: Stage) {
    let failure = stage.refused("error.plain").await;
    let is = match stage.half.server {
        Side::Nest => failure.is_message("Internal server error"),
        Side::Nestling => failure.is(Code::Internal, "internal error", None),
    };
    assert!(is, "{failure:?}");
}

pub(crate) async fn an_undecodable_payload_is_the_callers_fault(stage: Stage) {
    let failure = stage.refused("greet").await;
    let code = match &failure {
        Failure::Raw(raw) => raw["code"].clone(),
        other => json!(other.rpc().code),
    };
    assert_eq!(code, json!("INVALID_ARGUMENT"), "{failure:?}");
}

pub(crate) async fn a_text_is_a_message(stage: Stage) {
    let failure = stage.refused("error.string").await;
    assert!(failure.is_message("boom"), "{failure:?}");
}

pub(crate) async fn an_object_is_kept_whole(stage: Stage) {
    let whole = json!({ "reason": "broken", "at": [1, 2] });
    match stage.refused("error.object").await {
        Failure::Raw(raw) => assert_eq!(raw, whole),
        other => {
            assert_eq!(other.rpc().code, Code::Unknown);
            assert_eq!(other.rpc().details, Some(whole));
        }
    }
}

pub(crate) async fn a_number_is_an_error(stage: Stage) {
    match stage.refused("error.number").await {
        Failure::Raw(raw) => assert_eq!(raw, json!({ "status": "error", "message": 5 })),
        other => assert_eq!(other.rpc().code, Code::Unknown),
    }
}

pub(crate) async fn an_error_may_say_nothing(stage: Stage) {
    match stage.refused("error.empty").await {
        Failure::Raw(raw) => assert_eq!(raw, json!({ "status": "error" })),
        other => assert_eq!(other.rpc().code, Code::Unknown),
    }
}

pub(crate) async fn a_stream_may_fail_at_once(stage: Stage) {
    let outcome = stage.stream("error.stream", 1, None).await;
    assert!(outcome.values.is_empty(), "{outcome:?}");
    let failure = outcome.failure.unwrap();
    assert!(failure.is_message("boom"), "{failure:?}");
}

pub(crate) async fn the_server_goes_on(stage: Stage) {
    for _ in 0..3 {
        stage.refused("error.plain").await;
        stage.refused("error.coded").await;
    }
    let reply = stage.send("double", json!(4)).await;
    stage.check(&reply, &json!(8));
}
