//! nestling where the captured client was.

use std::time::Duration;

use nestling::{Client, Code, RpcError, Streaming};
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};
use tokio::net::{TcpListener, TcpStream};

use super::{Case, LIMIT, Raw, body, cases, framed, id, vectors, within};

const NO_HANDLER: &str = "There is no matching message handler defined in the remote service.";
const NO_MESSAGE: &str = "the remote service failed and said no more";

/// Cases that a Rust caller cannot make, or makes in another way.
const DIFFERENT: [(&str, &str); 3] = [
    ("req_null_data", "`null` is sent, and refused by NestJS"),
    ("req_undefined_data", "there is no such value"),
    (
        "req_number_pattern",
        "patterns are text, which leads to the same handler",
    ),
];

/// What plays the server.
struct Peer {
    listener: TcpListener,
    raw: Option<Raw>,
}

impl Peer {
    async fn listen() -> (Self, Client) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("tcp://{}?wire=nest", listener.local_addr().unwrap());
        let client = Client::builder(&*url).timeout(LIMIT).build().await;
        let peer = Self {
            listener,
            raw: None,
        };
        (peer, client.unwrap())
    }

    /// The connection that is there, or the next one.
    async fn raw(&mut self) -> &mut Raw {
        if self.raw.is_none() {
            let (socket, _) = within(self.listener.accept()).await.unwrap();
            self.raw = Some(Raw { socket });
        }
        self.raw.as_mut().unwrap()
    }

    /// The body of the next packet.
    async fn packet(&mut self) -> String {
        let raw = self.raw().await;
        // As long as it is announced; code units are counted again by whoever compares.
        let mut frame = Vec::new();
        loop {
            let mut byte = [0];
            within(tokio::io::AsyncReadExt::read_exact(
                &mut raw.socket,
                &mut byte,
            ))
            .await
            .unwrap();
            frame.push(byte[0]);
            let Ok(text) = std::str::from_utf8(&frame) else {
                continue;
            };
            if let Some((length, body)) = text.split_once('#')
                && body.encode_utf16().count() == length.parse::<usize>().unwrap()
            {
                return body.to_owned();
            }
        }
    }
}

/// Without the remaining time, which a nestling client always says.
fn without_deadline(packet: &str) -> String {
    let Some(start) = packet.find(r#""deadline":""#) else {
        return packet.to_owned();
    };
    let value = start + r#""deadline":""#.len();
    let end = value + packet[value..].find('"').unwrap() + 1;
    assert!(
        packet[value..end - 1]
            .parse::<u32>()
            .is_ok_and(|millis| millis > 0)
    );
    let rest = [&packet[..start], &packet[end..]].concat();
    rest.replace(r#","metadata":{}"#, "").replace(",}", "}")
}

#[derive(Deserialize)]
struct Packet<'a> {
    #[serde(borrow)]
    pattern: &'a RawValue,
    #[serde(borrow)]
    data: &'a RawValue,
    metadata: Option<Value>,
}

/// All values, and the error at the end if there is one.
async fn read_all(mut stream: Streaming<Value>) -> (Vec<Value>, Option<RpcError>) {
    let mut values = Vec::new();
    loop {
        match within(stream.try_next()).await {
            Ok(Some(value)) => values.push(value),
            Ok(None) => return (values, None),
            Err(error) => return (values, Some(error)),
        }
    }
}

/// What we make of an error that a caller in JavaScript got.
fn check_error(error: &RpcError, captured: &Value, case: &str) {
    let (code, message) = match captured {
        Value::String(text) if text == NO_HANDLER => (Code::Unimplemented, text.clone()),
        Value::String(text) => (Code::Unknown, text.clone()),
        _ if captured.get("__Error").is_some() => {
            assert_eq!(captured["message"], "Connection closed", "{case}");
            assert_eq!(error.code, Code::Unavailable, "{case}");
            return;
        }
        object => match object.get("message") {
            Some(Value::String(text)) => (Code::Unknown, text.clone()),
            Some(other) => (Code::Unknown, other.to_string()),
            None => (Code::Unknown, NO_MESSAGE.to_owned()),
        },
    };
    assert_eq!((error.code, &error.message), (code, &message), "{case}");
    if let Some(details) = &error.details {
        assert_eq!(details, captured, "{case}: nothing is lost");
    } else {
        let says_more = captured.as_object().is_some_and(|members| {
            let known = |name: &str, value: &Value| {
                (name == "status" && value == "error") || (name == "message" && value.is_string())
            };
            !members.iter().all(|(name, value)| known(name, value))
        });
        assert!(!says_more, "{case}: {captured}");
    }
}

#[tokio::test]
async fn the_captured_servers_get_the_captured_requests() {
    let calls = vectors("tcp")["calls"].take();
    let calls = calls.as_object().unwrap();
    assert_eq!(calls.len(), 43);
    let cases = cases();
    let (mut peer, client) = Peer::listen().await;
    let mut made = 0;
    for (name, call) in calls {
        if let Some(case) = cases.get(name) {
            make(name, call, case, &mut peer, &client).await;
            made += 1;
        } else {
            assert!(
                DIFFERENT.iter().any(|(differs, _)| differs == name),
                "{name}"
            );
        }
    }
    assert_eq!(made, 41);
    // The rest of those that differ.
    let null = client.stream_at::<Value>("echo", &());
    let ((), packet) = tokio::join!(
        async { drop(within(null.into_future()).await.unwrap()) },
        peer.packet()
    );
    assert!(
        packet.starts_with(r#"{"pattern":"echo","data":null,"#),
        "{packet}"
    );
}

/// Makes one call, with the captured server's replies.
async fn make(name: &str, call: &Value, case: &Case, peer: &mut Peer, client: &Client) {
    let captured = body(&case.sent[0]);
    let packet: Packet<'_> = serde_json::from_str(captured).unwrap();
    let pattern = match &call["pattern"] {
        Value::String(text) => text.clone(),
        Value::Object(_) if call["api"] == "emit" => call["pattern"].to_string(),
        // The order of the caller is kept in what was sent, and lost in what was read.
        _ => packet.pattern.get().to_owned(),
    };
    let header = packet.metadata.as_ref().map(|metadata| {
        assert_eq!(*metadata, json!({ "x-request-id": "trace-1" }), "{name}");
    });
    if call["api"] == "emit" {
        let mut event = client.emit_at(pattern, packet.data);
        if header.is_some() {
            event = event.header("x-request-id", "trace-1");
        }
        within(event.into_future()).await.unwrap();
        assert_eq!(peer.packet().await, captured, "{name}");
        return;
    }
    let mut request = client.stream_at::<Value>(pattern, packet.data);
    if header.is_some() {
        request = request.header("x-request-id", "trace-1");
    }
    let stream = within(request.into_future()).await.unwrap();
    let sent = peer.packet().await;
    let (own, theirs) = (id(&sent), id(captured));
    assert_eq!(own.len(), theirs.len());
    let mut expected = captured.to_owned();
    if DIFFERENT.iter().any(|(differs, _)| *differs == name) {
        expected = expected.replace(r#""pattern":123"#, r#""pattern":"123""#);
        assert_ne!(expected, captured);
    }
    let compared = without_deadline(&sent).replace(&own, &theirs);
    assert_eq!(compared, expected, "{name}");
    let replies = case.replies.concat().replace(&theirs, &own);
    peer.raw().await.write(replies).await;
    let (values, error) = read_all(stream).await;
    let observed = &call["observed_by_caller"];
    assert_eq!(values, *observed["values"].as_array().unwrap(), "{name}");
    assert_eq!(
        error.is_none(),
        observed["completed"] == true,
        "{name}: {error:?}"
    );
    if let Some(error) = error {
        check_error(&error, &observed["error"], name);
    }
}

/// What the captured peer did: the packets it sent, and then perhaps something else.
enum Then {
    Wait,
    Bytes(&'static str),
    Reset,
    Close,
}

/// The cases of `tcp_client_edge.json`; `ID` is the id of the request.
fn edge(name: &str) -> (&'static [&'static str], Then) {
    use Then::{Bytes, Close, Reset, Wait};
    match name {
        "response_then_disposed" => (
            &[
                r#"{"id":ID,"response":1}"#,
                r#"{"id":ID,"isDisposed":true}"#,
            ],
            Wait,
        ),
        "response_with_isDisposed" => (&[r#"{"id":ID,"response":1,"isDisposed":true}"#], Wait),
        "extra_key" => (
            &[r#"{"id":ID,"response":1,"isDisposed":false,"foo":1}"#],
            Wait,
        ),
        "id_only" => (&[r#"{"id":ID}"#], Wait),
        "id_status_only" => (&[r#"{"id":ID,"status":"error"}"#], Wait),
        "err_string" => (&[r#"{"id":ID,"err":"E"}"#], Wait),
        "err_empty_string" => (&[r#"{"id":ID,"err":""}"#], Wait),
        "err_null_with_response" => (
            &[r#"{"id":ID,"err":null,"response":5,"isDisposed":true}"#],
            Wait,
        ),
        "err_and_response" => (&[r#"{"id":ID,"err":{"m":1},"response":5}"#], Wait),
        "isDisposed_string" => (&[r#"{"id":ID,"response":2,"isDisposed":"yes"}"#], Wait),
        "isDisposed_false" => (&[r#"{"id":ID,"response":2,"isDisposed":false}"#], Wait),
        "no_id" => (&[r#"{"response":1,"isDisposed":true}"#], Wait),
        "wrong_id" => (&[r#"{"id":"zzz","response":1,"isDisposed":true}"#], Wait),
        "response_null_disposed" => (&[r#"{"id":ID,"response":null,"isDisposed":true}"#], Wait),
        "response_null_notdisposed" => (
            &[
                r#"{"id":ID,"response":null}"#,
                r#"{"id":ID,"isDisposed":true}"#,
            ],
            Wait,
        ),
        "after_disposed_ignored" => (
            &[
                r#"{"id":ID,"response":1,"isDisposed":true}"#,
                r#"{"id":ID,"response":2,"isDisposed":true}"#,
            ],
            Wait,
        ),
        "drop_connection" => (&[], Reset),
        "fin" => (&[], Close),
        "value_then_drop" => (&[r#"{"id":ID,"response":1}"#], Reset),
        "corrupt_len" => (&[], Bytes("zz#")),
        "bad_json" => (&[], Bytes("3#{a}")),
        "silent" => (&[], Wait),
        "json_null_frame" => (&["null"], Wait),
        "empty_object_frame" => (&["{}"], Wait),
        other => panic!("a new case: {other}"),
    }
}

#[tokio::test]
async fn odd_replies_have_the_captured_effect() {
    let vectors = vectors("tcp_client_edge");
    let cases = vectors["vectors"].as_array().unwrap();
    assert_eq!(cases.len(), 24);
    let (mut peer, client) = Peer::listen().await;
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let call = client
            .stream_at::<Value>("echo", &1)
            .timeout(Duration::from_secs(60));
        let (stream, sent) = tokio::join!(within(call.into_future()), peer.packet());
        let mut stream = stream.unwrap();
        let own = id(&sent);
        let (packets, then) = edge(name);
        for packet in packets {
            let packet = packet.replace("ID", &format!("\"{own}\""));
            peer.raw().await.write(framed(&packet)).await;
        }
        let expected = case["values"]
            .to_string()
            .replace("\"<undefined>\"", "null");
        let mut expected: Vec<Value> = serde_json::from_str(&expected).unwrap();
        for value in &mut expected {
            if let Some(captured) = value.get_mut("id") {
                *captured = own.clone().into();
            }
        }
        let mut values = Vec::new();
        while values.len() < expected.len() {
            values.extend(within(stream.try_next()).await.unwrap());
        }
        assert_eq!(values, expected, "{name}");
        let closes = !matches!(then, Then::Wait);
        match then {
            Then::Wait => {}
            Then::Bytes(bytes) => peer.raw().await.write(bytes).await,
            Then::Reset => peer.raw().await.socket.set_zero_linger().unwrap(),
            Then::Close => drop(peer.raw.take()),
        }
        if case["never_terminated"] == true {
            let more = tokio::time::timeout(Duration::from_millis(50), stream.try_next());
            assert!(more.await.is_err(), "{name}");
            continue;
        }
        if closes {
            // What broke the protocol is kept open: it is the client that lets go.
            let broken = name == "corrupt_len" || name == "bad_json";
            let kept = peer.raw.take().filter(|_| broken);
            let error = within(stream.try_next()).await.unwrap_err();
            check_error(&error, &case["error"], name);
            drop(kept);
            continue;
        }
        match within(stream.try_next()).await {
            Ok(end) => assert_eq!((end, &case["completed"]), (None, &json!(true)), "{name}"),
            Err(error) => check_error(&error, &case["error"], name),
        }
    }
}

#[tokio::test]
async fn one_connection_carries_the_calls_of_all_and_a_broken_one_is_replaced() {
    let (mut peer, client) = Peer::listen().await;
    let both = async {
        tokio::join!(
            client.send_at::<u32>("a", &1),
            client.send_at::<u32>("b", &2)
        )
    };
    let answer = async {
        let packets = [peer.packet().await, peer.packet().await];
        let raw = peer.raw().await;
        for packet in packets.iter().rev() {
            let id = id(packet);
            let reply = if packet.contains(r#""data":1"#) {
                10
            } else {
                20
            };
            let reply = format!(r#"{{"response":{reply},"isDisposed":true,"id":"{id}"}}"#);
            raw.write(framed(&reply)).await;
        }
    };
    let (replies, ()) = tokio::join!(both, answer);
    assert_eq!(replies, (Ok(10), Ok(20)));
    let both = async {
        tokio::join!(
            client.send_at::<u32>("a", &1),
            client.send_at::<u32>("b", &2)
        )
    };
    let break_it = async {
        let packets = (peer.packet().await, peer.packet().await);
        peer.raw().await.write("1#?").await;
        packets
    };
    let (failed, _) = within(async { tokio::join!(both, break_it) }).await;
    for error in [failed.0.unwrap_err(), failed.1.unwrap_err()] {
        assert_eq!(error.code, Code::Unavailable);
    }
    peer.raw = None;
    let again = async { client.send_at::<u32>("a", &1).await };
    let answer = async {
        let id = id(&peer.packet().await);
        let reply = format!(r#"{{"response":3,"isDisposed":true,"id":"{id}"}}"#);
        peer.raw().await.write(framed(&reply)).await;
    };
    assert_eq!(within(async { tokio::join!(again, answer) }).await.0, Ok(3));
}

#[tokio::test]
async fn calls_are_spread_over_several_addresses() {
    let (mut one, _) = Peer::listen().await;
    let (mut two, _) = Peer::listen().await;
    let hosts = [&one, &two].map(|peer| peer.listener.local_addr().unwrap().to_string());
    let client = Client::connect(format!("tcp://{}?wire=nest", hosts.join(",")))
        .await
        .unwrap();
    // Whoever has a call in flight gets the next one last.
    let calls = async {
        tokio::join!(
            client.send_at::<u32>("a", &1),
            client.send_at::<u32>("a", &2)
        )
    };
    let answer = async |peer: &mut Peer| {
        let id = id(&peer.packet().await);
        let reply = format!(r#"{{"response":3,"isDisposed":true,"id":"{id}"}}"#);
        peer.raw().await.write(framed(&reply)).await;
    };
    let answers = async { tokio::join!(answer(&mut one), answer(&mut two)) };
    let (replies, _) = within(async { tokio::join!(calls, answers) }).await;
    assert_eq!(replies, (Ok(3), Ok(3)));
}

#[tokio::test]
async fn a_client_that_closes_says_so_by_closing() {
    let (mut peer, client) = Peer::listen().await;
    client.emit_at("e", &1).await.unwrap();
    let packet = peer.packet().await;
    assert_eq!(packet, r#"{"pattern":"e","data":1}"#);
    let raw = peer.raw.take().unwrap();
    let closed = async {
        let mut raw = raw;
        assert_eq!(raw.rest().await, "");
    };
    within(async { tokio::join!(closed, client.close()) }).await;
    let refused = TcpStream::connect(peer.listener.local_addr().unwrap()).await;
    assert!(refused.is_ok(), "only the client is closed");
    let error = client.send_at::<u32>("a", &1).await.unwrap_err();
    assert_eq!(error.code, Code::Unavailable);
}
