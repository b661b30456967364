//! Our server in the place of the captured NestJS service.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use nestling::{Context, Guarantee, Payload, Router, RpcError, Streaming, header};
use nestling_testkit::unique;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{
    SOON, kafka,
    peer::{Peer, Plain},
    start,
    vectors::{Captured, Conversations, read},
};

const HIDDEN: &str = r#"{"status":"error","message":"internal error","code":"INTERNAL"}"#;

/// Cases whose replies have other bytes here, with what those are and why.
///
/// `Error` replaces the value of `kafka_nest-err`, `Value` key, value and user headers.
const DIFFERENT: &[(&str, Other, &str)] = {
    use Other::{Error, Value};
    let message_only = "an error of ours has a code, a text and details, and no members of its own";
    let hidden = "what is not told is INTERNAL here, and its text is ours";
    let value = "a reply is a value, whatever its members are called";
    &[
        (
            "error_object",
            Error(
                r#"{"status":"error","message":"bad","details":{"code":42,"extra":[1,"x"],"message":"bad"}}"#,
            ),
            message_only,
        ),
        (
            "error_rpcexception_no_arg",
            Error(r#"{"status":"error","message":""}"#),
            message_only,
        ),
        (
            "error_rpcexception_number",
            Error(r#"{"status":"error","message":"5"}"#),
            message_only,
        ),
        ("error_unknown", Error(HIDDEN), hidden),
        ("error_http_exception", Error(HIDDEN), hidden),
        ("error_raw_throw", Error(HIDDEN), hidden),
        (
            "error_guard_forbidden",
            Error(
                r#"{"status":"error","message":"Forbidden resource","code":"PERMISSION_DENIED"}"#,
            ),
            "a guard's refusal has a code",
        ),
        (
            "retri.after",
            Error(r#"{"status":"error","message":"late"}"#),
            "there is no exception of its own for what may be tried again",
        ),
        (
            "kv",
            Value(r#"{"headers":{"h1":"v1"},"key":"k1","value":{"a":1}}"#),
            value,
        ),
        ("valkey", Value(r#"{"other":1,"value":5}"#), value),
        ("keyonly", Value(r#"{"key":"abc","other":1}"#), value),
        (
            "trap",
            Value(r#"{"d":1,"headers":{"a":"b"},"key":"looks-like-message"}"#),
            value,
        ),
    ]
};

/// The handler of these replies with what a NestJS context holds; compared is what it saw.
const CONTEXTS: &[&str] = &[
    "ctx_plain",
    "ctx_keyed",
    "ctx_buffer",
    "ctx_binary0",
    "ctx_numstr",
    "ctx_badjson",
    "ctx_value_undefined",
    "ctx_array",
    "ctx_data_pattern_shape",
];

/// NestJS refuses these before anything is sent.
const NEVER_SENT: &[&str] = &["req_null_data", "req_undefined_data", "not_subscribed"];

#[derive(Clone, Copy)]
enum Other {
    Error(&'static str),
    Value(&'static str),
}

/// What event handlers were called with.
type Seen = Arc<Mutex<Vec<Value>>>;

#[tokio::test(flavor = "multi_thread")]
async fn captured_requests_and_events_are_answered_as_nestjs_answers_them() {
    let url = kafka!();
    let conversations: Conversations = read("kafka");
    assert_eq!(conversations.vectors.len(), 113);
    assert_eq!(conversations.calls.len(), 54);
    let prefix = unique("vectors");
    let local = |topic: &str| format!("{prefix}.{topic}");
    let peer = Peer::new(&url);
    let replied = |captured: &&Captured| captured.direction == "server->broker";
    let mut reply_topics: Vec<_> = conversations
        .vectors
        .iter()
        .filter(replied)
        .map(|captured| local(&captured.topic))
        .chain([local("evt.reply"), local("dup.reply")])
        .collect();
    reply_topics.sort();
    reply_topics.dedup();
    peer.make_topics(&reply_topics, 1).await;
    let seen = Seen::default();
    let server = start(&url, &prefix, router(&prefix, &seen)).await;

    let mut played = 0;
    let mut replies: BTreeMap<String, i64> = BTreeMap::new();
    for (name, call) in &conversations.calls {
        if NEVER_SENT.contains(&name.as_str()) {
            assert!(conversations.request(name).is_none(), "{name}");
            continue;
        }
        seen.lock().unwrap().clear();
        let request = conversations.request(name).unwrap();
        let headers = request.headers().into_iter().map(|(name, value)| {
            let is_topic = name == "kafka_replyTopic";
            let text = String::from_utf8_lossy(&value).into_owned();
            match is_topic {
                true => (name, local(&text).into_bytes()),
                false => (name, value),
            }
        });
        let record = Plain {
            key: request.key(),
            value: request.value(),
            headers: headers.collect(),
        };
        peer.send(&local(&request.topic), &record);
        let expected = conversations.replies(name);
        if expected.is_empty() {
            let calls = call.event_handler_calls.len().max(1);
            let handled = async {
                while seen.lock().unwrap().len() < calls {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            timeout(SOON, handled).await.expect(name);
        } else {
            let topic = local(&expected[0].topic);
            let replies = replies.entry(topic.clone()).or_default();
            *replies += i64::try_from(expected.len()).unwrap();
            peer.wait_for(&topic, *replies).await;
        }
        check_handlers(name, &call.event_handler_calls, &seen);
        played += 1;
    }
    assert_eq!(played, 51);

    // It has replied to everything it ever will.
    server.shutdown().await;
    let mut all = peer.all(&reply_topics);
    for name in conversations.calls.keys() {
        let Some(request) = conversations.request(name) else {
            continue;
        };
        let expected = conversations.replies(name);
        let is_reply = |record: &Plain| {
            let id = record.get("kafka_correlationId");
            id.is_some() && id == request.correlation().as_deref()
        };
        let (found, others): (Vec<_>, Vec<_>) = all
            .into_iter()
            .partition(|(_, found)| is_reply(&found.record));
        all = others;
        assert_eq!(found.len(), expected.len(), "{name}: {found:?}");
        for ((topic, found), captured) in found.into_iter().zip(expected) {
            let place = (topic, found.partition);
            assert_eq!(
                place,
                (local(&captured.topic), captured.partition),
                "{name}"
            );
            check_reply(name, captured, &found.record);
        }
    }
    assert_eq!(all, [], "replies that nobody asked for");
}

fn check_reply(name: &str, captured: &Captured, found: &Plain) {
    let mut expected = Plain {
        key: captured.key(),
        value: captured.value(),
        headers: captured.headers(),
    };
    if CONTEXTS.contains(&name) {
        let parse = |record: &Plain| -> Value {
            serde_json::from_slice(record.value.as_deref().unwrap()).unwrap()
        };
        let (ours, theirs) = (parse(found), parse(&expected));
        // An absent payload is absent here, and the driver's whole message there.
        if name != "ctx_value_undefined" {
            assert_eq!(ours["d"], theirs["d"], "{name}");
        }
        assert_eq!(ours["k"], theirs["k"], "{name}");
        assert_eq!(ours["h"], theirs["h"]["h"], "{name}");
        expected.value.clone_from(&found.value);
    }
    let different = DIFFERENT.iter().find(|(known, ..)| *known == name);
    match different.map(|(_, other, _)| *other) {
        Some(Other::Error(error)) => {
            for (name, value) in &mut expected.headers {
                if name == "kafka_nest-err" {
                    assert_ne!(value, error.as_bytes());
                    error.as_bytes().clone_into(value);
                }
            }
        }
        Some(Other::Value(value)) => {
            expected.key = None;
            expected.value = Some(value.into());
            expected
                .headers
                .retain(|(name, _)| name.starts_with("kafka_"));
        }
        None => {}
    }
    assert_eq!(*found, expected, "{name}");
}

fn check_handlers(name: &str, expected: &[Value], seen: &Seen) {
    let mut seen = seen.lock().unwrap().clone();
    seen.sort_by_key(ToString::to_string);
    match name {
        // The headers that make a request are no part of the envelope.
        "evt_ctx" => assert_eq!(seen, [json!(["evtCtx", "V", "K", {}])]),
        "event_to_message_handler" => assert_eq!(seen, [json!(["echo", {"n": 3}])]),
        _ if expected.is_empty() => {}
        _ => assert_eq!(seen, expected, "{name}"),
    }
}

/// The payload as a NestJS application sees it.
fn data(payload: &Bytes, cx: &Context) -> Value {
    match cx.header(header::CONTENT_TYPE) {
        Some("text/plain") => std::str::from_utf8(payload).unwrap().into(),
        Some(_) => json!({ "type": "Buffer", "data": payload.as_ref() }),
        None if payload.is_empty() => Value::Null,
        None => serde_json::from_slice(payload).unwrap(),
    }
}

fn router(prefix: &str, seen: &Seen) -> Router {
    let local = |topic: &str| -> &'static str { format!("{prefix}.{topic}").leak() };
    let router = contexts(&local, seen);
    let router = streams(router, &local);
    let router = errors(router, &local);
    events(router, &local, seen)
}

type Local<'a> = &'a dyn Fn(&str) -> &'static str;

fn contexts(local: Local<'_>, seen: &Seen) -> Router {
    let seen = Arc::clone(seen);
    let mut router = Router::new()
        .message_at(local("echo"), move |payload: Bytes, cx: Context| {
            let data = data(&payload, &cx);
            seen.lock().unwrap().push(json!(["echo", data]));
            async move { Ok::<_, RpcError>(data) }
        })
        .message_at(local("ctx"), async |payload: Bytes, cx: Context| {
            let (key, h) = (cx.header(header::KEY), cx.header("h"));
            Ok::<_, RpcError>(json!({ "d": data(&payload, &cx), "k": key, "h": h }))
        });
    for (topic, value) in [
        ("undef", json!(null)),
        ("nul", json!(null)),
        ("retri", json!("ok after 3")),
        (
            "kv",
            json!({ "key": "k1", "value": { "a": 1 }, "headers": { "h1": "v1" } }),
        ),
        ("valkey", json!({ "value": 5, "other": 1 })),
        ("keyonly", json!({ "key": "abc", "other": 1 })),
        (
            "trap",
            json!({ "d": 1, "key": "looks-like-message", "headers": { "a": "b" } }),
        ),
    ] {
        router = router.message_at(local(topic), move || {
            let value = value.clone();
            async move { Ok::<_, RpcError>(value) }
        });
    }
    router
}

fn streams(mut router: Router, local: Local<'_>) -> Router {
    let vals = json!([
        "s",
        1.5,
        true,
        null,
        [1],
        { "x": 1 },
        "\u{1}\u{2}\u{3}",
        "Thu Jan 01 1970 00:00:00 GMT+0000 (Coordinated Universal Time)",
        ""
    ]);
    for (topic, values) in [
        ("stream3", json!([1, 2, 3])),
        ("promise.obs", json!(["p", "q"])),
        ("empty", json!([])),
        ("vals", vals),
    ] {
        router = router.message_at(local(topic), move || {
            let values = values.as_array().unwrap().clone();
            async move { Streaming::of(values) }
        });
    }
    router
        .message_at(local("stream.async"), async || {
            Streaming::new(stream::iter(1..=3).then(async |n| {
                tokio::task::yield_now().await;
                Ok(n)
            }))
        })
        .message_at(local("stream.late"), async || {
            let later = stream::once(tokio::task::yield_now()).filter_map(async |()| None);
            Streaming::new(stream::iter([Ok("a")]).chain(later))
        })
}

fn errors(mut router: Router, local: Local<'_>) -> Router {
    let object = json!({ "code": 42, "message": "bad", "extra": [1, "x"] });
    let internal = || RpcError::internal("secret");
    for (topic, error) in [
        ("err.string", RpcError::unknown("boom")),
        ("err.object", RpcError::unknown("bad").with_details(object)),
        ("err.noarg", RpcError::unknown("")),
        ("err.number", RpcError::unknown("5")),
        ("err.unknown", internal()),
        ("err.http", internal()),
        ("err.raw", internal()),
        ("guarded", RpcError::permission_denied("Forbidden resource")),
    ] {
        router = router.message_at(local(topic), move || {
            let error = error.clone();
            async move { Err::<(), _>(error) }
        });
    }
    for (topic, values, error) in [
        ("err.after", 2, "mid"),
        ("err.after.async", 2, "late"),
        ("retri.after", 1, "late"),
    ] {
        router = router.message_at(local(topic), move || async move {
            let values = (1..=values).map(Ok);
            Streaming::new(stream::iter(values.chain([Err(RpcError::unknown(error))])))
        });
    }
    router
}

fn events(mut router: Router, local: Local<'_>, seen: &Seen) -> Router {
    for (topic, name) in [("evt", "evt"), ("dup", "dup1"), ("dup", "dup2")] {
        let seen = Arc::clone(seen);
        let handler = move |payload: Bytes, cx: Context| {
            let seen = Arc::clone(&seen);
            async move {
                let data = data(&payload, &cx);
                seen.lock().unwrap().push(json!([name, data]));
                Ok::<_, RpcError>(())
            }
        };
        router = router.event_with(local(topic), Guarantee::AtLeastOnce, handler);
    }
    let all = Arc::clone(seen);
    let context = move |Payload(value): Payload<String>, cx: Context| {
        let mut headers: BTreeMap<_, _> = cx
            .headers()
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect();
        let key = headers.remove(header::KEY);
        headers.remove(header::CONTENT_TYPE);
        let call = json!(["evtCtx", value, key, headers]);
        all.lock().unwrap().push(call);
        async { Ok::<_, RpcError>(()) }
    };
    let all = Arc::clone(seen);
    let failing = move |cx: Context| {
        all.lock().unwrap().push(json!(["evtErr", cx.attempt()]));
        let result = match cx.attempt() {
            1 => Err(RpcError::unavailable("not now")),
            _ => Ok(()),
        };
        async { result }
    };
    router
        .event_with(local("evt.ctx"), Guarantee::AtLeastOnce, context)
        .event_with(local("evt.err"), Guarantee::AtLeastOnce, failing)
}
