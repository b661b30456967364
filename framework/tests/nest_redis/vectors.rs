//! What was captured between real NestJS applications, replayed in both roles.
//!
//! As a server we get the bytes of the captured client and have to answer with those of the captured
//! server; as a client it is the other way round. Where we differ, a table says how and why.

use std::collections::{BTreeMap, HashSet};

use nestling::{Client, Code, RpcError, transport::Wire};
use serde_json::{Value, json, value::RawValue};

use crate::{
    broker,
    captured::{
        OTHER_REPLIES,
        handlers::{calls, router, wait_for},
        id_of, other, vectors,
    },
    nest_client,
    peer::{Heard, Peer, SOON},
    start,
};

/// What we send where the captured client sent something else, or nothing.
const OTHER_REQUESTS: [(&str, &str); 3] = [
    // Nothing is a value of JSON, and `()` a payload.
    ("req_null_data", r#"{"pattern":"echo","data":null,"id":ID}"#),
    (
        "req_undefined_data",
        r#"{"pattern":"echo","data":null,"id":ID}"#,
    ),
    // Patterns are texts or objects; servers go by the channel.
    (
        "req_number_pattern",
        r#"{"pattern":"123","data":{"k":"v"},"id":ID}"#,
    ),
];

/// With wildcards every name is a glob for NestJS, and this one does not match itself, for its
/// backslashes. For us only a name with a `*` is one, and the caller is answered.
const NO_GLOB: &str = "req_nested_unordered_pattern";
const NO_GLOB_REPLY: &str = r#"{"response":{"got":{"k":"v"}},"isDisposed":true,"id":ID}"#;

/// Connecting is the client library's business: it names itself, and one connection is enough.
const HANDSHAKE: &str = "handshake";
/// Two calls of one pattern at once, which are not in the list of calls.
const CONCURRENT: &str = "concurrent_same_pattern";

fn frames(file: &Value) -> &Vec<Value> {
    file["vectors"].as_array().unwrap()
}

/// One call of the captured client, and the frames that belong to it.
struct Case<'a> {
    name: &'a str,
    call: &'a Value,
    frames: Vec<&'a Value>,
}

fn cases<'a>(file: &'a Value, all_frames: usize) -> Vec<Case<'a>> {
    let (frames, calls) = (frames(file), file["calls"].as_object().unwrap());
    assert_eq!((frames.len(), calls.len()), (all_frames, 43));
    let of = |name: &str| frames.iter().filter(|f| f["name"] == *name).collect();
    let case = |(name, call): (&'a String, &'a Value)| Case {
        name,
        call,
        frames: of(name),
    };
    let mut cases: Vec<_> = calls.iter().map(case).collect();
    cases.push(Case {
        name: CONCURRENT,
        call: &Value::Null,
        frames: of(CONCURRENT),
    });
    let known = cases.iter().map(|case| case.frames.len()).sum::<usize>();
    let handshake = frames.iter().filter(|f| f["name"] == HANDSHAKE).count();
    assert_eq!(known + handshake, frames.len());
    let names: HashSet<_> = cases.iter().map(|case| case.name).collect();
    let tables = OTHER_REPLIES.iter().chain(&OTHER_REQUESTS).map(|(n, _)| *n);
    for name in tables.chain([NO_GLOB]) {
        assert!(names.contains(name), "{name} is gone");
    }
    cases
}

impl Case<'_> {
    /// What one end published.
    fn published(&self, direction: &str) -> impl Iterator<Item = &Value> {
        let frames = self.frames.iter().copied();
        frames.filter(move |f| f["op"] == "publish" && f["direction"] == direction)
    }

    /// The calls of event handlers: their names and what they got.
    fn handled(&self) -> Vec<Value> {
        match &self.call["event_handler_calls"] {
            // Not written down when it was captured.
            Value::Null if self.name == "event_with_metadata" => vec![json!(["evt", { "a": 1 }])],
            Value::Null => Vec::new(),
            calls => serde_json::from_value(calls.clone()).unwrap(),
        }
    }

    /// The request or event of the captured client.
    fn packet(&self) -> Option<&str> {
        self.published("client->broker").next()?["payload_utf8"].as_str()
    }
}

fn message(frame: &Value) -> Heard {
    let text = |member: &str| frame[member].as_str().unwrap().to_owned();
    Heard {
        channel: text("channel"),
        payload: text("payload_utf8"),
    }
}

fn bytes(frame: &Value) -> Vec<u8> {
    let hex = frame["hex_resp_command"].as_str().unwrap();
    let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(byte).collect()
}

/// The id in a packet, in JSON.
/// What the captured server published, but for the differences in the table.
fn replies(case: &Case<'_>) -> Vec<Heard> {
    let mut replies: Vec<_> = case.published("server->broker").map(message).collect();
    let id = || id_of(case.packet().unwrap()).unwrap();
    if let Some(packet) = other(&OTHER_REPLIES, case.name) {
        assert_eq!(replies.len(), 1, "{}", case.name);
        replies[0].payload = packet.replace("ID", &id());
    }
    if case.name == NO_GLOB && replies.is_empty() {
        let request = case.published("client->broker").map(message).next();
        replies.push(Heard {
            channel: format!("{}.reply", request.unwrap().channel),
            payload: NO_GLOB_REPLY.replace("ID", &id()),
        });
    }
    replies
}

/// Replies to several calls may come in any order, those to one call not.
fn by_call(replies: Vec<Heard>) -> BTreeMap<Option<String>, Vec<Heard>> {
    let mut calls = BTreeMap::<_, Vec<_>>::new();
    for reply in replies {
        calls.entry(id_of(&reply.payload)).or_default().push(reply);
    }
    calls
}

async fn serve_a_captured_client(file: &str, all_frames: usize, counts: (usize, usize)) {
    let Some(broker) = broker() else { return };
    let calls = calls();
    let server = start(&broker.url(), "vectors", router(calls)).await;
    let mut peer = Peer::connect(&broker.url()).await;
    let mut caller = Peer::of_all_replies(&broker.url()).await;
    let file = vectors(file);
    let (mut answered, mut compared) = (0, 0);
    for case in cases(&file, all_frames) {
        let name = case.name;
        for frame in case.published("client->broker") {
            peer.write(&bytes(frame)).await;
            peer.number().await;
        }
        let expected = replies(&case);
        answered += usize::from(!expected.is_empty());
        compared += expected.len();
        let mut seen = Vec::new();
        for _ in &expected {
            seen.push(caller.heard().await);
        }
        assert_eq!(by_call(seen), by_call(expected), "{name}");
        wait_for(calls, case.handled(), name).await;
    }
    assert_eq!((answered, compared), counts);
    assert_eq!(caller.all_heard().await, [], "more than was captured");
    server.shutdown().await;
}

#[tokio::test]
async fn a_server_answers_a_captured_client_with_the_bytes_of_nestjs() {
    serve_a_captured_client("redis", 293, (34, 49)).await;
}

#[tokio::test]
async fn a_server_answers_a_captured_client_of_a_server_with_wildcards() {
    serve_a_captured_client("redis_wildcards", 290, (34, 49)).await;
}

/// What our client has to be asked for, so that it sends the packet.
struct Asked {
    pattern: String,
    data: Value,
}

impl Asked {
    fn of(case: &Case<'_>) -> Self {
        #[derive(serde::Deserialize)]
        struct Parts<'a> {
            #[serde(borrow)]
            pattern: &'a RawValue,
            data: Value,
        }
        let Some(packet) = case.packet() else {
            // Nothing was sent.
            return Self {
                pattern: written(&case.call["pattern"].to_string()),
                data: case.call["data"].clone(),
            };
        };
        let parts: Parts<'_> = serde_json::from_str(packet).unwrap();
        Self {
            pattern: written(parts.pattern.get()),
            data: parts.data,
        }
    }
}

/// A pattern in JSON as it is written in Rust: strings as they are, objects as JSON.
fn written(json: &str) -> String {
    serde_json::from_str(json).unwrap_or_else(|_| json.to_owned())
}

/// The metadata of a case, which are headers here.
fn header(case: &str) -> Option<(&'static str, &'static str)> {
    matches!(case, "req_with_metadata" | "event_with_metadata")
        .then_some(("x-request-id", "trace-1"))
}

/// Plays the captured server: its subscriptions are those of the vectors.
async fn captured_server(url: &str, file: &Value) -> Peer {
    let mut peer = Peer::connect(url).await;
    let mut subscriptions = 0;
    for frame in frames(file) {
        if frame["direction"] == "server->broker"
            && frame["op"].as_str().unwrap().ends_with("subscribe")
        {
            peer.write(&bytes(frame)).await;
            peer.answer().await;
            subscriptions += 1;
        }
    }
    assert_eq!(subscriptions, 24);
    peer
}

async fn call_a_captured_server(file: &str, all_frames: usize) {
    let Some(broker) = broker() else { return };
    let file = vectors(file);
    let mut service = captured_server(&broker.url(), &file).await;
    let mut replies = Peer::connect(&broker.url()).await;
    let client = nest_client(&broker.url()).await;
    assert_eq!(client.wire(), Wire::Nest);
    let (mut requests, mut events) = (0, 0);
    for case in cases(&file, all_frames) {
        if case.name == CONCURRENT {
            // The same calls one by one are `reply_stream_async`.
            continue;
        } else if case.call["api"] == "emit" {
            check_event(&client, &mut service, &case).await;
            events += 1;
        } else {
            check_request(&client, &mut service, &mut replies, &case).await;
            requests += 1;
        }
    }
    assert_eq!((requests, events), (36, 7));
    assert_eq!(service.all_heard().await, [], "more than was captured");
}

#[tokio::test]
async fn a_client_sends_what_a_captured_one_sent_and_understands_the_answers() {
    call_a_captured_server("redis", 293).await;
}

#[tokio::test]
async fn a_client_understands_a_captured_server_with_wildcards() {
    call_a_captured_server("redis_wildcards", 290).await;
}

async fn check_event(client: &Client, service: &mut Peer, case: &Case<'_>) {
    let Asked { pattern, data } = Asked::of(case);
    let mut call = client.emit_at(pattern, &data);
    if let Some((name, value)) = header(case.name) {
        call = call.header(name, value);
    }
    call.await.unwrap();
    if case.name != "unknown_event" {
        let expected = case.published("client->broker").map(message).next();
        assert_eq!(Some(service.heard().await), expected, "{}", case.name);
    }
}

async fn check_request(client: &Client, service: &mut Peer, replies: &mut Peer, case: &Case<'_>) {
    let name = case.name;
    let Asked { pattern, data } = Asked::of(case);
    let mut call = client.stream_at::<Value>(pattern, &data).timeout(SOON);
    if let Some((name, value)) = header(name) {
        call = call.header(name, value);
    }
    let mut stream = call.await.unwrap();
    let was_heard = case
        .frames
        .iter()
        .any(|f| f["direction"] == "broker->server");
    if case.packet().is_some() && !was_heard {
        // Redis says that nobody is subscribed; a NestJS client waits for ever.
        let error = stream.try_next().await.unwrap_err();
        assert_eq!(error.code, Code::Unavailable, "{name}");
        return;
    }
    let id = check_sent(&service.heard().await, case);
    let Some(packet) = case.packet() else {
        return;
    };
    let captured_id = id_of(packet).unwrap();
    for frame in case.published("server->broker") {
        let Heard { channel, payload } = message(frame);
        replies
            .publish(&channel, payload.replace(&captured_id, &id))
            .await;
    }
    let observed = &case.call["observed_by_caller"];
    let mut values = Vec::new();
    let end = loop {
        match stream.try_next().await {
            Ok(Some(value)) => values.push(value),
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };
    assert_eq!(json!(values), observed["values"], "{name}");
    assert_eq!(end.is_none(), observed["completed"] == true, "{name}");
    if let Some(error) = end {
        check_error(&error, &observed["error"]);
    }
}

/// Checks the bytes of a request, and returns its id in JSON.
fn check_sent(sent: &Heard, case: &Case<'_>) -> String {
    let name = case.name;
    let id = id_of(&sent.payload).unwrap();
    assert!(
        id.len() == 23 && id.bytes().all(|byte| b"\"0123456789abcdef".contains(&byte)),
        "{id}"
    );
    let expected = match (other(&OTHER_REQUESTS, name), case.packet()) {
        (Some(packet), _) => packet.replace("ID", &id),
        (None, Some(packet)) => packet.replace(&id_of(packet).unwrap(), &id),
        (None, None) => panic!("{name} was not captured"),
    };
    assert_eq!(without_deadline(&sent.payload), expected, "{name}");
    if let Some(frame) = case.published("client->broker").next() {
        assert_eq!(sent.channel, message(frame).channel, "{name}");
    }
    id
}

/// Every call of a nestling client has a deadline, which stands at the end of its metadata.
fn without_deadline(packet: &str) -> String {
    let (before, rest) = packet.split_once(r#""deadline":""#).unwrap();
    let (millis, after) = rest.split_once("\"}").unwrap();
    assert!(millis.parse::<u64>().is_ok(), "{packet}");
    match before.strip_suffix(r#","metadata":{"#) {
        Some(before) => format!("{before}{after}"),
        None => format!("{}}}{after}", before.strip_suffix(',').unwrap()),
    }
}

fn check_error(error: &RpcError, captured: &Value) {
    assert_eq!(error.code, Code::Unknown);
    match &captured["message"] {
        Value::String(text) => assert_eq!(error.message, *text),
        Value::Null => assert!(!error.message.is_empty()),
        other => assert_eq!(error.message, other.to_string()),
    }
    if captured.get("code").is_some() {
        assert_eq!(error.details.as_ref(), Some(captured));
    }
}
