//! One message, one reply.

use std::time::Duration;

use futures_util::future::join_all;
use nestling::{Client, Code};
use serde_json::{Value, json};

use crate::{
    caller::{Caller, Failure},
    stage::{Place, Side, Stage, Transport, connect, within},
};

const NO_HANDLER: &str = "There is no matching message handler defined in the remote service.";

pub(crate) async fn a_message_gets_its_reply(stage: Stage) {
    let reply = stage.send("greet", json!({ "name": "Ada" })).await;
    assert_eq!(reply, json!("Hello, Ada!"));
    let reply = stage.send("double", json!(21)).await;
    stage.check(&reply, &json!(42));
}

pub(crate) async fn values_of_every_type_travel(stage: Stage) {
    let nested = json!({ "a": [1, { "b": null }, "c"], "d": 1.5, "e": {}, "f": [], "g": true });
    for value in [
        nested,
        json!([1, "two", null]),
        json!(0),
        json!(-1.25),
        json!(false),
    ] {
        let reply = stage.send("echo", value.clone()).await;
        stage.check(&reply, &value);
    }
    let reply = stage.send("is_even", json!(4)).await;
    stage.check(&reply, &json!(true));
}

pub(crate) async fn text_stays_text(stage: Stage) {
    for text in ["Ada", "two words", "\"quoted\"", "line\nline", "{not json"] {
        let reply = stage.send("echo", json!(text)).await;
        assert_eq!(reply, json!(text));
    }
}

pub(crate) async fn unicode_travels(stage: Stage) {
    let text = "zażółć gęślą jaźń, 你好, 😀👩‍👩‍👧, \u{2028}";
    let value = json!({ "text": text, text: [text] });
    assert_eq!(stage.send("echo", value.clone()).await, value);
}

pub(crate) async fn a_typed_reply_is_decoded(stage: Stage) {
    let client = stage.client();
    let at = |name| stage.at(name).text;
    assert_eq!(client.send_at::<u32>(at("double"), &21).await, Ok(42));
    assert_eq!(
        client.send_at::<String>(at("echo"), "42").await,
        Ok("42".to_owned())
    );
    assert_eq!(
        client.send_at::<String>(at("echo"), "Ada").await,
        Ok("Ada".to_owned())
    );
    assert_eq!(client.send_at::<bool>(at("is_even"), &3).await, Ok(false));
    assert_eq!(client.send_at::<Option<u8>>(at("null"), &1).await, Ok(None));
    assert_eq!(client.send_at::<()>(at("null"), &1).await, Ok(()));
    let list = vec![1.5, 2.5];
    assert_eq!(
        client.send_at::<Vec<f64>>(at("echo"), &list).await,
        Ok(list)
    );
}

pub(crate) async fn an_object_is_a_pattern(stage: Stage) {
    let reply = stage.send_to(&stage.names.sum(), json!([1, 2, 3])).await;
    assert_eq!(reply, json!(6));
}

pub(crate) async fn the_order_of_keys_in_a_pattern_does_not_matter(stage: Stage) {
    for pattern in [stage.names.nested(), stage.names.nested_otherwise()] {
        let reply = stage.send_to(&pattern, json!({ "k": "v" })).await;
        assert_eq!(reply, json!({ "k": "v" }));
    }
}

pub(crate) async fn a_number_is_a_pattern(stage: Stage) {
    let reply = stage
        .send_to(&stage.names.number(), json!({ "k": "v" }))
        .await;
    assert_eq!(reply, json!({ "k": "v" }));
}

pub(crate) async fn a_pattern_may_be_any_text(stage: Stage) {
    assert_eq!(stage.send("zażółć.😀", json!("here")).await, json!("here"));
}

pub(crate) async fn null_is_a_reply(stage: Stage) {
    assert_eq!(stage.send("null", json!(1)).await, Value::Null);
}

pub(crate) async fn nothing_is_a_reply(stage: Stage) {
    assert_eq!(stage.send("undefined", json!(1)).await, Value::Null);
}

pub(crate) async fn null_is_a_request(stage: Stage) {
    assert_eq!(stage.send("echo", Value::Null).await, Value::Null);
}

pub(crate) async fn two_hundred_callers_each_get_their_own_reply(stage: Stage) {
    let calls = (0..200).map(|number| {
        let stage = &stage;
        async move {
            let value = json!({ "number": number });
            assert_eq!(stage.send("echo", value.clone()).await, value);
        }
    });
    within("two hundred calls", join_all(calls)).await;
}

pub(crate) async fn two_hundred_kilobytes_travel_both_ways(stage: Stage) {
    let value = json!({ "text": "ż😀".repeat(34_000) });
    assert_eq!(stage.send("echo", value.clone()).await, value);
}

pub(crate) async fn an_unknown_pattern_is_an_error(stage: Stage) {
    let call = stage.client().send_at::<Value>(stage.at("nobody").text, &1);
    let error = call.timeout(Duration::from_secs(2)).await.unwrap_err();
    let expected: &[Code] = match stage.transport {
        Transport::Tcp => &[Code::Unimplemented],
        Transport::Nats => &[Code::Unimplemented, Code::Unavailable],
        // Nobody is there to say so.
        Transport::Redis | Transport::Kafka => &[
            Code::Unimplemented,
            Code::Unavailable,
            Code::DeadlineExceeded,
        ],
    };
    assert!(expected.contains(&error.code), "{error:?}");
}

pub(crate) async fn an_unknown_pattern_is_told_as_nestjs_does(stage: Stage) {
    let failure = stage.refused("nobody").await;
    match stage.transport {
        Transport::Tcp => assert_eq!(failure, Failure::Raw(json!(NO_HANDLER))),
        _ => match failure {
            Failure::Exception(name, message) => {
                assert_eq!(name, "EmptyResponseException", "{message}");
            }
            other => panic!("{other:?}"),
        },
    }
}

pub(crate) async fn a_handler_without_an_answer_runs_into_the_deadline(stage: Stage) {
    let call = stage.client().send_at::<Value>(stage.at("silent").text, &1);
    let error = call.timeout(Duration::from_millis(300)).await.unwrap_err();
    assert_eq!(error.code, Code::DeadlineExceeded, "{error:?}");
    let reply = stage.send("greet", json!({ "name": "Ada" })).await;
    assert_eq!(reply, json!("Hello, Ada!"));
}

/// A NestJS client, a nestling client that speaks NestJS, and one that does not.
pub(crate) async fn callers_of_every_kind_share_a_server(stage: Stage) {
    let native = within("a client to connect", Client::connect(stage.url())).await;
    let callers = [
        stage.caller.clone(),
        connect(Side::Nestling, stage.url(), &stage.names).await,
        Caller::Nestling(native.unwrap()),
    ];
    let calls = (0..50).flat_map(|number| callers.iter().map(move |caller| (number, caller)));
    let calls = calls.map(|(number, caller)| {
        let stage = &stage;
        async move {
            let sent = caller.send(&stage.at("double"), &json!(number), &[]).await;
            stage.check(&sent.unwrap(), &json!(number * 2));
        }
    });
    within("calls of every kind", join_all(calls)).await;
}

/// NATS has them in its subjects; a NestJS server has them on Redis when it is told to, for all its patterns.
pub(crate) async fn a_wildcard_handler_is_reached(stage: Stage) {
    let ask = async |caller: &Caller, names: &crate::names::Names| {
        let pattern = names.at("time.us.east");
        let reply = caller.send(&pattern, &json!(1), &[]).await.unwrap();
        assert_eq!(reply, json!({ "destination": pattern.text }));
    };
    if stage.transport == Transport::Nats || stage.half.server == Side::Nestling {
        return ask(&stage.caller, &stage.names).await;
    }
    let place = Place::nest(stage.url().to_owned(), &["--wildcards"]).await;
    let caller = connect(stage.half.caller, &place.url, &place.names).await;
    ask(&caller, &place.names).await;
}
