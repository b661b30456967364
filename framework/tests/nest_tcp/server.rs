//! nestling where the captured server was.

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use super::{
    Case, Raw, body, cases, framed,
    handlers::{Events, router, router_of_strings},
    id, serve, vectors,
};

/// Cases of `tcp.json` in which we answer otherwise: what, and why. `$id` is the id of the request.
const DIFFERENT: [(&str, &str, &str); 8] = [
    (
        "error_object",
        r#"{"err":{"status":"error","message":"bad","details":{"code":42,"extra":[1,"x"],"message":"bad"}},"isDisposed":true,"id":"$id"}"#,
        "an error has a message, and details for all else",
    ),
    (
        "error_rpcexception_no_arg",
        r#"{"err":{"status":"error","message":""},"isDisposed":true,"id":"$id"}"#,
        "an error has a message",
    ),
    (
        "error_rpcexception_number",
        r#"{"err":{"status":"error","message":"5"},"isDisposed":true,"id":"$id"}"#,
        "a message is text",
    ),
    (
        "error_unknown",
        r#"{"err":{"status":"error","message":"internal error","code":"INTERNAL"},"isDisposed":true,"id":"$id"}"#,
        "an error has a code; a fault says as little",
    ),
    (
        "error_http_exception",
        r#"{"err":{"status":"error","message":"bad request","code":"INVALID_ARGUMENT"},"isDisposed":true,"id":"$id"}"#,
        "an error has a code, and only faults are hidden",
    ),
    (
        "error_raw_throw",
        r#"{"err":{"status":"error","message":"internal error","code":"INTERNAL"},"isDisposed":true,"id":"$id"}"#,
        "an error has a code; a fault says as little",
    ),
    (
        "error_guard_forbidden",
        r#"{"err":{"status":"error","message":"Forbidden resource","code":"PERMISSION_DENIED"},"isDisposed":true,"id":"$id"}"#,
        "an error has a code",
    ),
    (
        "request_to_two_event_handlers",
        r#"{"isDisposed":true,"id":"$id"}"#,
        "event handlers return nothing",
    ),
];

fn replies(name: &str, case: &Case) -> String {
    let different = DIFFERENT.iter().find(|(differs, ..)| *differs == name);
    let Some((_, reply, _)) = different else {
        return case.replies.concat();
    };
    let reply = framed(&reply.replace("$id", &id(body(&case.sent[0]))));
    assert_ne!(reply, case.replies.concat(), "{name} does not differ");
    reply
}

#[tokio::test]
async fn the_captured_clients_get_the_captured_replies() {
    let calls = vectors("tcp")["calls"].take();
    let events = Events::default();
    let server = serve(router(&events)).await;
    let mut raw = Raw::connect(&server).await;
    let mut differed = 0;
    for (name, case) in cases() {
        raw.write(case.sent.concat()).await;
        raw.expect(&replies(&name, &case)).await;
        differed += usize::from(DIFFERENT.iter().any(|(differs, ..)| *differs == name));
        // Nothing else was answered, and whatever is to happen has happened.
        let last = raw.ask(r#"{"pattern":"echo","data":"last","id":0}"#).await;
        assert_eq!(
            last, r#"{"response":"last","isDisposed":true,"id":0}"#,
            "{name}"
        );
        let seen: Vec<_> = std::mem::take(&mut *events.lock().unwrap());
        let expected = match &calls[&name]["event_handler_calls"] {
            Value::Null if name == "event_with_metadata" => json!([["evt", { "a": 1 }]]),
            Value::Null => json!([]),
            captured => captured.clone(),
        };
        assert_eq!(Value::from(seen), expected, "{name}");
    }
    assert_eq!(differed, DIFFERENT.len());
}

/// Cases of `tcp_server_edge.json` in which a handler of ours is found: a pattern whose text is an
/// object counts as that object, and NestJS never finds one that was registered as a string.
const OBJECTS: [&str; 3] = [
    r#"pattern_str "{\"b\":1,\"a\":2}""#,
    r#"pattern_str "{ \"a\":2, \"b\":1 }""#,
    "pattern_obj",
];

/// Cases with limits that no URL can set; tests inside of the transport have them.
const OTHER_LIMITS: [&str; 6] = [
    "max_exceeded_single",
    "max_exceeded_pipelined",
    "max_exact",
    "declared_bigger_than_max_no_data",
    "incomplete_timeout",
    "incomplete_timeout_len_only",
];

/// What was sent, where the file does not hold the bytes themselves.
fn chunks(name: &str, case: &Value) -> Vec<Vec<u8>> {
    match name {
        "split_bytes" => {
            let frame = framed(r#"{"pattern":"echo","data":"żó😀","id":"x"}"#);
            frame.bytes().map(|byte| vec![byte]).collect()
        }
        "invalid_utf8" => {
            vec![b"41#{\"pattern\":\"echo\",\"data\":\"\xff\xfe\",\"id\":\"x\"}".to_vec()]
        }
        "pattern_deep20000" => {
            let deep = format!("{}1{}", r#"{"d":"#.repeat(20_000), "}".repeat(20_000));
            let frame = framed(&format!(r#"{{"pattern":{deep},"data":1,"id":"x"}}"#));
            assert_eq!(frame.len(), 120_038);
            vec![frame.into_bytes()]
        }
        _ => {
            let chunks = case["sent_chunks_utf8"].as_array().unwrap();
            let bytes = |chunk: &Value| chunk.as_str().unwrap().as_bytes().to_vec();
            chunks.iter().map(bytes).collect()
        }
    }
}

#[tokio::test]
async fn odd_input_has_the_captured_effect() {
    let vectors = vectors("tcp_server_edge");
    let cases = vectors["vectors"].as_array().unwrap();
    assert_eq!(cases.len(), 73);
    let server = serve(router_of_strings(router(&Events::default()))).await;
    let (mut tried, mut found, mut cut_off, mut ignored) = (0, 0, 0, 0);
    for case in cases {
        let text = |member: &str| case[member].as_str().unwrap();
        let name = text("name");
        if OTHER_LIMITS.contains(&name) {
            continue;
        }
        tried += 1;
        let mut raw = Raw::connect(&server).await;
        for chunk in chunks(name, case) {
            // The server may have closed already.
            drop(raw.socket.write_all(&chunk).await);
            tokio::task::yield_now().await;
        }
        let mut expected = text("received_utf8").to_owned();
        if OBJECTS.contains(&name) {
            found += 1;
            let data = if name == "pattern_obj" { "1" } else { "[1]" };
            expected = framed(&format!(
                r#"{{"response":"hit:{data}","isDisposed":true,"id":"x"}}"#
            ));
        }
        let log = case["server_log"].to_string();
        if log.contains("error | Error:") {
            cut_off += 1;
        } else {
            if log.contains("no matching event handler") {
                ignored += 1;
                raw.write(framed(r#"{"pattern":"echo","data":1,"id":"x"}"#))
                    .await;
                expected = framed(r#"{"response":1,"isDisposed":true,"id":"x"}"#);
            }
            raw.socket.shutdown().await.unwrap();
        }
        assert_eq!(raw.rest().await, expected, "{name}");
    }
    assert_eq!((tried, found), (73 - OTHER_LIMITS.len(), OBJECTS.len()));
    assert_eq!((cut_off, ignored), (8, 7));
}
