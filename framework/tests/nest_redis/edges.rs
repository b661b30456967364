//! Odd input in both roles, and what NestJS was seen to make of it.

use std::time::Duration;

use nestling::{Client, Code, Context, Payload, Router, RpcError};
use serde_json::{Value, json};

use crate::{
    broker,
    captured::{
        handlers::{Calls, calls, echo, note, wait_for},
        id_of, malformed, read, vectors,
    },
    nest_client,
    peer::{Heard, Peer, SOON},
    start,
};

/// How long a call waits for an answer that is not one.
const SHORT: Duration = Duration::from_millis(300);
/// NestJS takes this for a class of characters; for us only a name with a `*` is a glob.
const NO_GLOB: &str = "[1,2]";
const NO_HANDLER: &str = r#"{"id":"x","status":"error","err":"There is no matching message handler defined in the remote service."}"#;

/// The handlers of the captured server, in the words in which it wrote down their calls.
fn router(calls: Calls) -> Router {
    let message = move |Payload(data): Payload<Value>, cx: Context| {
        let metadata = cx.header("k").map(|value| json!({ "k": value }));
        let channel = cx.pattern().to_owned();
        let call = json!(["w", data, channel, metadata]);
        calls.lock().unwrap().push(call);
        // Written by hand, since the order of the members counts.
        let reply = format!(r#"{{"ch":{},"d":{data}}}"#, json!(channel));
        let reply = serde_json::from_str::<Box<serde_json::value::RawValue>>(&reply);
        async move { reply.map_err(RpcError::internal) }
    };
    let event = move |Payload(data): Payload<Value>, cx: Context| {
        calls
            .lock()
            .unwrap()
            .push(json!(["we", data, cx.pattern()]));
        async { Ok::<_, RpcError>(()) }
    };
    Router::new()
        .message_at("users.*", message)
        .event_at("ev.*", event)
        .message_at("true", echo)
        .message_at("\"q\"", echo)
        .message_at(NO_GLOB, echo)
        .message_at("echo", echo)
}

#[tokio::test]
async fn a_server_makes_of_odd_packets_what_nestjs_does() {
    let Some(broker) = broker() else { return };
    let calls = calls();
    let server = start(&broker.url(), "edges", router(calls)).await;
    let mut peer = Peer::connect(&broker.url()).await;
    let mut monitor = Peer::of_all_replies(&broker.url()).await;
    let file = vectors("redis_edge");
    let cases = file["server"]["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 20);
    let mut echoes = 0;
    for case in cases {
        let text = |member: &str| case[member].as_str().unwrap();
        let (channel, payload) = (text("channel"), text("payload_utf8"));
        match payload {
            "fffe00" => peer.publish(channel, [0xff, 0xfe, 0x00]).await,
            payload => peer.publish(channel, payload).await,
        };
        let seen = replies_until_barrier(&mut peer, &mut monitor).await;
        let published = case["published_on_reply_channels"].as_array().unwrap();
        let mut expected: Vec<_> = published
            .iter()
            .map(|reply| heard(&reply[0], &reply[1]))
            .collect();
        if channel == NO_GLOB {
            expected.push(heard(&json!("[1,2].reply"), &json!(NO_HANDLER)));
        }
        assert_eq!(seen, expected, "{channel} {payload}");

        let mut expected = case["handler_calls"].as_array().unwrap().clone();
        let before = expected.len();
        // The replies of a NestJS server run its handlers a second time, and ours do not.
        expected.retain(|call| call[1].get("isDisposed").is_none());
        echoes += before - expected.len();
        wait_for(calls, expected, &format!("{channel} {payload}")).await;
    }
    assert_eq!(echoes, 4);
    server.shutdown().await;
}

fn heard(channel: &Value, payload: &Value) -> Heard {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    Heard {
        channel: text(channel),
        payload: text(payload),
    }
}

/// What was published when the server has worked off everything: it does so in order.
async fn replies_until_barrier(peer: &mut Peer, monitor: &mut Peer) -> Vec<Heard> {
    peer.publish("echo", r#"{"data":0,"id":"barrier"}"#).await;
    let mut replies = Vec::new();
    loop {
        let heard = monitor.heard().await;
        if heard.channel == "echo.reply" {
            return replies;
        }
        replies.push(heard);
    }
}

/// What a peer answers, with our request's id in the place of ID.
fn answer(case: &str) -> &'static str {
    match case {
        "non-json reply" => "hello",
        "json without id" => r#"{"response":1,"isDisposed":true}"#,
        "external object with id" => r#"{"id":ID,"foo":1}"#,
        "null" => "null",
        _ => panic!("{case} is not known"),
    }
}

#[tokio::test]
async fn a_client_makes_of_odd_answers_what_nestjs_does() {
    let Some(broker) = broker() else { return };
    let mut service = Peer::connect(&broker.url()).await;
    service.command(&["SUBSCRIBE", "hand"]).await;
    let mut peer = Peer::connect(&broker.url()).await;
    let client = nest_client(&broker.url()).await;
    let file = vectors("redis_edge");
    let cases = file["client"]["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 4);
    for case in cases {
        let name = case["peer_reply"].as_str().unwrap();
        let call = client.stream_at::<Value>("hand", &1).timeout(SHORT);
        let mut replies = call.await.unwrap();
        let id = id_of(&service.heard().await.payload).unwrap();
        peer.publish("hand.reply", answer(name).replace("ID", &id))
            .await;
        let (values, end) = read(&mut replies).await;
        let mut expected = case["values"].clone();
        if name == "external object with id" {
            expected[0]["id"] = serde_json::from_str(&id).unwrap();
        }
        assert_eq!(json!(values), expected, "{name}");
        match case["never_terminated"] == true {
            true => assert_eq!(end.unwrap().code, Code::DeadlineExceeded, "{name}"),
            false => assert_eq!((end, &case["completed"]), (None, &json!(true)), "{name}"),
        }
    }
}

#[tokio::test]
async fn nothing_malformed_hurts_a_server_on_either_wire() {
    let Some(broker) = broker() else { return };
    let calls = calls();
    let router = Router::new()
        .message_at("echo", echo)
        .message_at("true", echo)
        .message_at("glob.*", echo)
        .event_at("evt", note(calls, "evt"));
    let server = start(&broker.url(), "edges", router).await;
    let mut peer = Peer::connect(&broker.url()).await;
    for body in malformed() {
        for channel in ["echo", "evt", "true", "glob.1", "glob.1.reply"] {
            assert_eq!(peer.publish(channel, &body).await, 1);
        }
    }
    for url in [broker.url(), format!("{}?wire=nest", broker.url())] {
        let client = Client::connect(&*url).await.unwrap();
        let call = client.send_at::<u64>("echo", &7).timeout(SOON);
        assert_eq!(call.await, Ok(7), "{url}");
        client.emit_at("evt", &"well").await.unwrap();
    }
    let well = async {
        let has_come = || {
            let calls = calls.lock().unwrap();
            calls.iter().filter(|call| call[1] == "well").count()
        };
        while has_come() < 2 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(SOON, well)
        .await
        .expect("events are lost");
    server.shutdown().await;
}

#[tokio::test]
async fn nothing_malformed_hurts_a_client() {
    let Some(broker) = broker() else { return };
    let server = start(
        &broker.url(),
        "edges",
        Router::new().message_at("echo", echo),
    )
    .await;
    let client = nest_client(&broker.url()).await;
    assert_eq!(client.send_at::<u64>("echo", &1).await, Ok(1));
    let mut peer = Peer::connect(&broker.url()).await;
    for body in malformed() {
        assert_eq!(peer.publish("echo.reply", &body).await, 1);
    }
    assert_eq!(client.send_at::<u64>("echo", &2).await, Ok(2));
    server.shutdown().await;
}
