//! What was captured between real NestJS applications, replayed in both roles.
//!
//! As a server we get the bytes of the captured client and have to answer with those of the captured
//! server; as a client it is the other way round. Where we differ, a table says how and why.

use std::{collections::HashSet, sync::Mutex, time::Duration};

use futures_util::{StreamExt, stream};
use nestling::{Client, Code, Context, Payload, Router, RpcError, Streaming, transport::Wire};
use serde::Serialize;
use serde_json::{Value, json, value::RawValue};
use tokio::time::sleep;

use crate::{
    broker,
    peer::{Frame, Peer, SOON},
    start,
};

/// What answers a request whose error no `RpcError` can say, or whose handlers' results we drop.
const OTHER_REPLIES: [(&str, &str); 4] = [
    // An RpcError has a message, and what else there is stands in its details.
    (
        "error_object",
        r#"{"err":{"status":"error","message":"bad","details":{"code":42,"extra":[1,"x"],"message":"bad"}},"isDisposed":true,"id":ID}"#,
    ),
    // It always has a message...
    (
        "error_rpcexception_no_arg",
        r#"{"err":{"status":"error","message":""},"isDisposed":true,"id":ID}"#,
    ),
    // ...which is text.
    (
        "error_rpcexception_number",
        r#"{"err":{"status":"error","message":"5"},"isDisposed":true,"id":ID}"#,
    ),
    // Event handlers have no results here that could be joined.
    (
        "request_to_two_event_handlers",
        r#"{"isDisposed":true,"id":ID}"#,
    ),
];

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

pub(crate) fn vectors(name: &str) -> Value {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/nest/vectors");
    let text = std::fs::read_to_string(format!("{folder}/{name}.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

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
    fn handled(&self) -> Vec<(String, Value)> {
        match &self.call["event_handler_calls"] {
            // Not written down when it was captured.
            Value::Null if self.name == "event_record_headers" => vec![("evt".into(), json!("x"))],
            Value::Null if self.name == "event_with_metadata" => {
                vec![("evt".into(), json!({ "a": 1 }))]
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

fn other<'a>(table: &[(&'a str, &'a str)], name: &str) -> Option<&'a str> {
    let found = table.iter().find(|(case, _)| *case == name);
    found.map(|(_, packet)| *packet)
}

pub(crate) fn id_of(packet: &str) -> Option<String> {
    let packet: Value = serde_json::from_str(packet).unwrap();
    packet.get("id").map(Value::to_string)
}

/// What the handlers were called with: one log for each test's own server.
pub(crate) type Calls = &'static Mutex<Vec<(String, Value)>>;

pub(crate) fn calls() -> Calls {
    Box::leak(Box::default())
}

/// An event handler that writes down what it gets.
pub(crate) fn note(
    calls: Calls,
    name: &'static str,
) -> impl Fn(Payload<Value>) -> std::future::Ready<Result<(), RpcError>> + Clone {
    move |Payload(data)| {
        calls.lock().unwrap().push((name.to_owned(), data));
        std::future::ready(Ok(()))
    }
}

async fn pause() {
    sleep(Duration::from_millis(2)).await;
}

/// The values with time between them; the end is known with the last one.
fn slowly<T: Send + 'static>(items: Vec<Result<T, RpcError>>) -> Streaming<T> {
    Streaming::new(stream::iter(items).then(|item| async {
        pause().await;
        item
    }))
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

/// The captured server's handlers.
fn router(calls: Calls) -> Router {
    let fail = |text: &'static str| move || async move { Err::<(), _>(RpcError::unknown(text)) };
    let none = || async { Streaming::of([0_u8; 0]) };
    let odd = || async {
        let details = json!({ "code": 42, "message": "bad", "extra": [1, "x"] });
        Err::<(), _>(RpcError::unknown("bad").with_details(details))
    };
    let late = || async {
        let values = stream::unfold(0, |n| async move {
            match n {
                0 => Some((Ok("a"), 1)),
                _ => {
                    pause().await;
                    None
                }
            }
        });
        Streaming::new(values)
    };
    let end = |text: &'static str| vec![Ok(1), Ok(2), Err(RpcError::unknown(text))];
    let sum = |Payload(numbers): Payload<Vec<i64>>| async move {
        Ok::<i64, RpcError>(numbers.iter().sum())
    };
    let got =
        |Payload(data): Payload<Value>| async move { Ok::<_, RpcError>(json!({ "got": data })) };
    let number = |Payload(data): Payload<Value>| async move {
        Ok::<_, RpcError>(format!("number pattern {data}"))
    };
    Router::new()
        .message_at("echo", echo)
        .message_at(r#"{"cmd":"sum"}"#, sum)
        .message_at(
            r#"{"z":1,"a":{"y":"q\"uote\\","b":true,"n":null},"B":[2,"x"]}"#,
            got,
        )
        .message_at("stream3", || async { Streaming::of([1, 2, 3]) })
        .message_at("stream.async", || async {
            slowly(vec![Ok(1), Ok(2), Ok(3)])
        })
        .message_at("stream.late", late)
        .message_at("empty", none)
        .message_at("undef", none)
        .message_at("nul", || async { Ok::<_, RpcError>(Value::Null) })
        .message_at("promise.obs", || async { Streaming::of(["p", "q"]) })
        .message_at("err.string", fail("boom"))
        .message_at("err.object", odd)
        .message_at("err.noarg", fail(""))
        .message_at("err.number", fail("5"))
        .message_at("err.unknown", fail("Internal server error"))
        .message_at("err.http", fail("Internal server error"))
        .message_at("err.raw", fail("Internal server error"))
        .message_at("err.after", move || async move {
            Streaming::new(stream::iter(end("mid")))
        })
        .message_at(
            "err.after.async",
            move || async move { slowly(end("late")) },
        )
        .message_at("guarded", fail("Forbidden resource"))
        .message_at("123", number)
        .message_at("time.us.*", seen)
        .message_at("queued", || async { Ok::<_, RpcError>("q") })
        .message_at("deep.>", |cx: Context| async move {
            Ok::<_, RpcError>(cx.pattern().to_owned())
        })
        .event_at("evt", note(calls, "evt"))
        .event_at("dup", note(calls, "dup1"))
        .event_at("dup", note(calls, "dup2"))
        .event_at(r#"{"type":"created","kind":"user"}"#, note(calls, "evtObj"))
}

pub(crate) async fn echo(Payload(data): Payload<Value>) -> Result<Value, RpcError> {
    Ok(data)
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

/// Waits until exactly these calls were made since the last time.
async fn wait_for(calls: Calls, expected: Vec<(String, Value)>, case: &str) {
    let done = async {
        while calls.lock().unwrap().len() < expected.len() {
            pause().await;
        }
    };
    tokio::time::timeout(SOON, done).await.expect(case);
    assert_eq!(
        std::mem::take(&mut *calls.lock().unwrap()),
        expected,
        "{case}"
    );
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
