//! What was captured between real NestJS applications, replayed in both roles.
//!
//! As a server we get the bytes of the captured client and have to answer with those of the captured
//! server; as a client it is the other way round. Where we differ, a table says how and why.

use std::collections::HashSet;

use nestling::{Client, Code, Context, Payload, Router, RpcError, transport::Wire};
use serde::Serialize;
use serde_json::{Value, json, value::RawValue};

use crate::{
    broker,
    captured::{
        OTHER_REPLIES,
        handlers::{self, Calls, calls, wait_for},
        id_of, other, vectors,
    },
    peer::{Frame, Peer, SOON},
    start,
};

/// What we send where the captured client sent something else, or nothing.
const OTHER_REQUESTS: [(&str, &str); 5] = [
    // Nothing is a value of JSON, and `()` a payload.
    ("req_null_data", r#"{"pattern":"echo","data":null,"id":ID}"#),
    (
        "req_undefined_data",
        r#"{"pattern":"echo","data":null,"id":ID}"#,
    ),
    // Patterns are texts or objects; servers go by the subject.
    (
        "req_number_pattern",
        r#"{"pattern":"123","data":{"k":"v"},"id":ID}"#,
    ),
    // Headers travel as headers of NATS.
    (
        "req_with_metadata",
        r#"{"pattern":"echo","data":{"a":1},"id":ID}"#,
    ),
    ("event_with_metadata", r#"{"pattern":"evt","data":{"a":1}}"#),
];

/// What cannot be a subject.
const NO_SUBJECTS: [&str; 3] = [
    "subject_with_space",
    "obj_pattern_with_space",
    "emit_subject_with_space",
];

/// Connecting is the client library's business: it names itself, and subscribes in a queue group.
const HANDSHAKE: &str = "handshake";

/// One call of the captured client, and the frames that belong to it.
struct Case<'a> {
    name: &'a str,
    call: &'a Value,
    frames: Vec<&'a Value>,
}

fn cases(file: &Value) -> Vec<Case<'_>> {
    let frames = file["vectors"].as_array().unwrap();
    let calls = file["calls"].as_object().unwrap();
    assert_eq!((frames.len(), calls.len()), (298, 52));
    let cases: Vec<_> = calls
        .iter()
        .map(|(name, call)| Case {
            name,
            call,
            frames: frames.iter().filter(|f| f["name"] == **name).collect(),
        })
        .collect();
    let known = cases.iter().map(|case| case.frames.len()).sum::<usize>();
    let handshake = frames.iter().filter(|f| f["name"] == HANDSHAKE).count();
    assert_eq!(known + handshake, frames.len());
    let names: HashSet<_> = cases.iter().map(|case| case.name).collect();
    let tables = OTHER_REPLIES.iter().chain(&OTHER_REQUESTS).map(|(n, _)| n);
    for name in tables.chain(&NO_SUBJECTS) {
        assert!(names.contains(name), "{name} is gone");
    }
    cases
}

impl Case<'_> {
    /// The frames that one end sent to another.
    fn sent(&self, direction: &str) -> Vec<Vec<u8>> {
        let sent = self.frames.iter().filter(|f| f["direction"] == direction);
        sent.map(|frame| bytes(frame)).collect()
    }

    /// The calls of event handlers: their names and what they got.
    fn handled(&self) -> Vec<Value> {
        match &self.call["event_handler_calls"] {
            // Not written down when it was captured.
            Value::Null if self.name == "event_record_headers" => vec![json!(["evt", "x"])],
            Value::Null if self.name == "event_with_metadata" => {
                vec![json!(["evt", { "a": 1 }])]
            }
            Value::Null => Vec::new(),
            calls => serde_json::from_value(calls.clone()).unwrap(),
        }
    }

    /// The request or event that the captured server got.
    fn packet(&self) -> Option<String> {
        let got = self
            .frames
            .iter()
            .find(|f| f["direction"] == "broker->server")?;
        let text = got["payload_utf8"].as_str().unwrap();
        let (_, packet) = text.rsplit_once("\r\n\r\n").unwrap_or(("", text));
        Some(packet.to_owned())
    }
}

fn bytes(frame: &Value) -> Vec<u8> {
    let hex = frame["hex"].as_str().unwrap();
    let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(byte).collect()
}

#[derive(Serialize)]
struct Seen {
    subj: String,
    h: Option<[(&'static str, Vec<String>); 2]>,
    d: Value,
}

/// What a handler under a wildcard sees, in the words of the captured one.
async fn seen(Payload(d): Payload<Value>, cx: Context) -> Result<Seen, RpcError> {
    let values = |name: &'static str| {
        let joined = cx.header(name).unwrap_or_default();
        (name, joined.split(", ").map(str::to_owned).collect())
    };
    let has_headers = cx.header("x-version").is_some();
    let h = has_headers.then(|| [values("x-version"), values("x-multi")]);
    let subj = cx.pattern().to_owned();
    Ok(Seen { subj, h, d })
}

/// The captured server's handlers, with those that only NATS has.
fn router(calls: Calls) -> Router {
    handlers::router(calls)
        .message_at("time.us.*", seen)
        .message_at("queued", || async { Ok::<_, RpcError>("q") })
        .message_at("deep.>", |cx: Context| async move {
            Ok::<_, RpcError>(cx.pattern().to_owned())
        })
}

#[tokio::test]
async fn a_server_answers_a_captured_client_with_the_bytes_of_nestjs() {
    let Some(broker) = broker() else { return };
    let calls = calls();
    let server = start(&broker.url(), "vectors", router(calls)).await;
    let mut peer = Peer::connect(&broker.url()).await;
    let file = vectors("nats");
    let (mut answered, mut compared) = (0, 0);
    for case in cases(&file) {
        let name = case.name;
        for frame in case.sent("client->broker") {
            // What nobody subscribes to any more would not be seen when it comes too late.
            if !frame.starts_with(b"UNSUB") {
                peer.write(&frame).await;
            }
        }
        let expected = case.sent("broker->client");
        answered += usize::from(!expected.is_empty());
        for (position, expected) in expected.iter().enumerate() {
            let frame = peer.frame().await;
            compared += 1;
            match other(&OTHER_REPLIES, name) {
                Some(packet) => {
                    assert_eq!(position, 0, "{name}");
                    let id = id_of(&case.packet().unwrap()).unwrap();
                    assert_eq!(frame.payload(), packet.replace("ID", &id), "{name}");
                }
                None => assert_eq!(text(&frame.bytes()), text(expected), "{name}"),
            }
        }
        wait_for(calls, case.handled(), name).await;
    }
    assert_eq!((answered, compared), (39, 49));
    assert_eq!(peer.frames().await, [], "more than was captured");
    server.shutdown().await;
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
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
            // Nothing was sent, or to nobody.
            return Self {
                pattern: written(&case.call["pattern"].to_string()),
                data: case.call["data"].clone(),
            };
        };
        let parts: Parts<'_> = serde_json::from_str(&packet).unwrap();
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

/// Plays the captured server: its subscriptions are those of the vectors.
async fn captured_server(url: &str, file: &Value) -> Peer {
    let mut peer = Peer::connect(url).await;
    let frames = file["vectors"].as_array().unwrap();
    let mut subscriptions = 0;
    for frame in frames
        .iter()
        .filter(|f| f["name"] == HANDSHAKE && f["op"] == "SUB")
    {
        peer.write(&bytes(frame)).await;
        subscriptions += 1;
    }
    assert_eq!(subscriptions, 27);
    peer.round_trip().await;
    peer
}

#[tokio::test]
async fn a_client_sends_what_a_captured_one_sent_and_understands_the_answers() {
    let Some(broker) = broker() else { return };
    let file = vectors("nats");
    let mut peer = captured_server(&broker.url(), &file).await;
    let client = Client::connect(format!("{}?wire=nest", broker.url()))
        .await
        .unwrap();
    assert_eq!(client.wire(), Wire::Nest);
    let (mut requests, mut events) = (0, 0);
    for case in cases(&file) {
        if NO_SUBJECTS.contains(&case.name) {
            check_refused(&client, &case).await;
        } else if case.call["api"] == "emit" {
            check_event(&client, &mut peer, &case).await;
            events += 1;
        } else {
            check_request(&client, &mut peer, &case).await;
            requests += 1;
        }
    }
    assert_eq!((requests, events), (41, 8));
    assert_eq!(peer.frames().await, [], "more than was captured");
}

async fn check_refused(client: &Client, case: &Case<'_>) {
    let Asked { pattern, data } = Asked::of(case);
    let error = match &case.call["api"] {
        api if api == "emit" => client.emit_at(pattern, &data).await.unwrap_err(),
        _ => client.send_at::<Value>(pattern, &data).await.unwrap_err(),
    };
    assert_eq!(error.code, Code::FailedPrecondition, "{}", case.name);
    assert!(error.message.contains("no white space"), "{error}");
}

async fn check_event(client: &Client, peer: &mut Peer, case: &Case<'_>) {
    let name = case.name;
    let Asked { pattern, data } = Asked::of(case);
    let mut call = client.emit_at(pattern, &data);
    let headers = headers(name);
    for (header, value) in headers {
        call = call.header(*header, *value);
    }
    call.await.unwrap();
    let Some(expected) = case.sent("broker->server").pop() else {
        assert_eq!(name, "unknown_event");
        return;
    };
    let frame = peer.frame().await;
    assert_eq!(sorted(frame.headers()), lines(headers), "{name}");
    match other(&OTHER_REQUESTS, name) {
        Some(packet) => assert_eq!(frame.payload(), packet, "{name}"),
        None if headers.is_empty() => assert_eq!(text(&frame.bytes()), text(&expected), "{name}"),
        None => assert_eq!(Some(frame.payload()), case.packet().as_deref(), "{name}"),
    }
}

/// The headers of a case as they are set here: of each name one.
fn headers(case: &str) -> &'static [(&'static str, &'static str)] {
    match case {
        "record_headers" | "event_record_headers" => &[("x-multi", "a, b"), ("x-version", "1.0.0")],
        "req_with_metadata" | "event_with_metadata" => &[("x-request-id", "trace-1")],
        _ => &[],
    }
}

fn lines(headers: &[(&str, &str)]) -> Vec<String> {
    headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}"))
        .collect()
}

/// The client library keeps headers in no order.
fn sorted(lines: Vec<&str>) -> Vec<String> {
    let mut lines: Vec<_> = lines.into_iter().map(str::to_owned).collect();
    lines.sort();
    lines
}

async fn check_request(client: &Client, peer: &mut Peer, case: &Case<'_>) {
    let name = case.name;
    let Asked { pattern, data } = Asked::of(case);
    let mut call = client.stream_at::<Value>(pattern, &data).timeout(SOON);
    for (header, value) in headers(name) {
        call = call.header(*header, *value);
    }
    let mut replies = call.await.unwrap();
    if name == "unknown_request" {
        let error = replies.try_next().await.unwrap_err();
        assert_eq!(error, RpcError::unavailable("no responders for nope"));
        return;
    }
    let frame = peer.frame().await;
    let id = check_sent(&frame, case);
    if case.frames.is_empty() {
        return;
    }
    for sent in case.sent("server->broker") {
        let sent = text(&sent);
        let (_, packet) = sent.split_once("\r\n").unwrap();
        let captured_id = id_of(&case.packet().unwrap()).unwrap();
        let packet = packet.trim_end().replace(&captured_id, &id);
        peer.publish(frame.reply().unwrap(), None, &packet).await;
    }
    let observed = &case.call["observed_by_caller"];
    let mut values = Vec::new();
    let end = loop {
        match replies.try_next().await {
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
fn check_sent(frame: &Frame, case: &Case<'_>) -> String {
    let name = case.name;
    let id = id_of(frame.payload()).unwrap();
    assert!(
        id.len() == 23 && id.bytes().all(|byte| b"\"0123456789abcdef".contains(&byte)),
        "{id}"
    );
    let expected = match other(&OTHER_REQUESTS, name) {
        Some(packet) => packet.replace("ID", &id),
        None => {
            let packet = case.packet().unwrap();
            packet.replace(&id_of(&packet).unwrap(), &id)
        }
    };
    assert_eq!(frame.payload(), expected, "{name}");
    // Every call of a nestling client has a deadline, which is the only header it adds.
    let mut headers = sorted(frame.headers());
    let deadline = headers
        .iter()
        .position(|line| line.starts_with("deadline: "));
    headers.remove(deadline.unwrap());
    assert_eq!(headers, lines(self::headers(name)), "{name}");
    assert!(frame.reply().unwrap().starts_with("_INBOX."));
    if let Some(captured) = case.sent("broker->server").pop() {
        let captured = text(&captured);
        let address: Vec<_> = captured.split(' ').take(3).collect();
        assert_eq!(frame.subject(), address[1], "{name}");
        assert_eq!(frame.subscription().to_string(), address[2], "{name}");
    }
    id
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
