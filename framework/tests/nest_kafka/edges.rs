//! Records made by hand: the captured reactions of a NestJS service, and worse.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use nestling::{Client, Code, Context, Guarantee, Payload, Router, RpcError, header};
use nestling_testkit::unique;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    kafka, nest_client,
    peer::{Peer, Plain},
    start,
    vectors::{Edges, read},
};

/// Where we answer otherwise, and what.
const DIFFERENT: &[(&str, &str, &str)] = &[
    (
        "null value",
        "undefined",
        "there is no driver's message to hand over; the payload is absent",
    ),
    (
        "json corr",
        "x",
        "an id is echoed as it is; NestJS parses it and fails",
    ),
];

/// What the handler of `rawctx` replies with: the kind, the class and the JSON of its data.
fn described(payload: &Bytes, cx: &Context) -> String {
    let text = || std::str::from_utf8(payload).unwrap();
    match cx.header(header::CONTENT_TYPE) {
        Some("text/plain") if payload.is_empty() => r#"string::"""#.to_owned(),
        Some("text/plain") => format!("string:String:{}", json!(text())),
        Some(_) => format!(
            "object:Buffer:{}",
            r#"{"type":"Buffer","data":"#.to_owned() + &json!(payload.as_ref()).to_string() + "}"
        ),
        None if payload.is_empty() => "undefined".to_owned(),
        None => format!("object:Object:{}", text()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn captured_oddities_are_answered_as_nestjs_answers_them() {
    let url = kafka!();
    let vectors: Edges = read("kafka_edge");
    assert_eq!(vectors.cases.len(), 16);
    let prefix = unique("edge");
    let local = |topic: &str| -> &'static str { format!("{prefix}.{topic}").leak() };
    let reply_topic = local("nobody.reply").to_owned();
    let peer = Peer::new(&url);
    peer.make_topics(std::slice::from_ref(&reply_topic), 4)
        .await;
    let seen: Arc<Mutex<Vec<Value>>> = Arc::default();
    let noted = Arc::clone(&seen);
    let never = async || Ok::<_, RpcError>("never");
    let router = Router::new()
        .message_at(local("echo"), async |payload: Bytes, cx: Context| {
            let text = String::from_utf8_lossy(&payload).into_owned();
            match cx.header(header::CONTENT_TYPE) {
                None => Ok::<Value, RpcError>(serde_json::from_str(&text).unwrap()),
                Some(_) => Ok(text.into()),
            }
        })
        .message_at(local("rawctx"), async |payload: Bytes, cx: Context| {
            Ok::<_, RpcError>(described(&payload, &cx))
        })
        .message_at("true", never)
        .message_at("1.0", never)
        .message_at(local("rx.one"), async || Ok::<_, RpcError>("rx:rx.one"))
        .event_with(
            local("evt"),
            Guarantee::AtLeastOnce,
            move |Payload(value): Payload<Value>| {
                noted.lock().unwrap().push(json!(["evt", value]));
                async { Ok::<_, RpcError>(()) }
            },
        );
    let server = start(&url, &prefix, router).await;
    let mut expected = Vec::new();
    for (number, case) in vectors.cases.iter().enumerate() {
        let topic = match case.name.as_str() {
            name @ ("true" | "1.0") => name.to_owned(),
            "rx" => local("rx.one").to_owned(),
            "evt" => local("evt").to_owned(),
            "null value" | "empty value" | "num" | "json str" | "leading ws json" | "magic0"
            | "pattern/data obj" => local("rawctx").to_owned(),
            _ => local("echo").to_owned(),
        };
        // An id of its own for each case; that of one is what is odd about it.
        let own = |id: &str| id.replace("cc", &format!("cc-{number}"));
        let headers = case.record.headers.0.iter().map(|(name, value)| {
            let value = match name.as_str() {
                "kafka_correlationId" => own(value),
                "kafka_replyTopic" => reply_topic.clone(),
                _ => value.clone(),
            };
            (name.clone(), value.into_bytes())
        });
        let value = match &case.record.value {
            Value::Null => None,
            Value::String(text) => Some(text.clone().into_bytes()),
            buffer => Some(Vec::deserialize(&buffer["data"]).unwrap()),
        };
        let record = Plain {
            key: None,
            value,
            headers: headers.collect(),
        };
        peer.send(&topic, &record);
        for reply in &case.replies_on_reply_topic {
            let headers = reply.headers.0.iter().map(|(name, value)| {
                let value = match value.as_str() {
                    "hex:00" => vec![0],
                    text => own(text).into_bytes(),
                };
                (name.clone(), value)
            });
            let mut plain = Plain {
                key: None,
                value: reply.value.clone().map(String::into_bytes),
                headers: headers.collect(),
            };
            if case.name == "null value" {
                plain.value = Some(DIFFERENT[0].1.into());
            }
            let partition = (case.name == "partition 2").then_some(reply.partition);
            expected.push((partition, plain));
        }
        if case.name == "json corr" {
            assert!(case.replies_on_reply_topic.is_empty());
            let plain = Plain::new(DIFFERENT[1].1)
                .header("kafka_correlationId", r#"{"a":1}"#)
                .header("kafka_nest-is-disposed", [0]);
            expected.push((None, plain));
        }
    }
    let count = i64::try_from(expected.len()).unwrap();
    peer.wait_for(&reply_topic, count).await;
    server.shutdown().await;
    let found = peer.all(std::slice::from_ref(&reply_topic));
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for (partition, plain) in expected {
        let is_it = |(_, found): &&(String, super::peer::Found)| {
            found.record == plain && partition.is_none_or(|partition| partition == found.partition)
        };
        assert!(
            found.iter().any(|found| is_it(&found)),
            "{plain:?} is not in {found:?}"
        );
    }
    let event = vectors
        .cases
        .iter()
        .find(|case| case.name == "evt")
        .unwrap();
    assert_eq!(*seen.lock().unwrap(), event.handler_calls);
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_sent_the_server_serves_others_on_both_wires() {
    let url = kafka!();
    let peer = Peer::new(&url);
    let prefix = unique("odd");
    let (double, happened) = (format!("{prefix}.double"), format!("{prefix}.happened"));
    let reply_topic = format!("{prefix}.reply");
    peer.make_topics(std::slice::from_ref(&reply_topic), 1)
        .await;
    let router = Router::new()
        .message_with(double.clone(), true, async |Payload(n): Payload<u64>| {
            n.checked_mul(2)
                .ok_or_else(|| RpcError::invalid_argument("x".repeat(900_000)))
        })
        .event_with(
            happened.clone(),
            Guarantee::AtLeastOnce,
            async |Payload(_): Payload<u64>| Ok::<_, RpcError>(()),
        );
    let server = start(&url, &prefix, router).await;

    let asking = |value: &[u8]| Plain::new(value).asking("c", &reply_topic);
    let deep = "[".repeat(200_000) + &"]".repeat(200_000);
    let many = (0..300).fold(asking(b"1"), |all, n| all.header(&format!("h{n}"), "x"));
    let odd = [
        Plain::default(),
        Plain::new(""),
        Plain::new("x").header("nestling", "2"),
        Plain::new("x").header("nestling", [0xff]),
        Plain::new("x")
            .header("nestling", "1")
            .header("pattern", [0xff]),
        Plain::new("1").asking("c", "not a topic"),
        Plain::new("1").asking("c", &format!("{prefix}.nowhere")),
        Plain::new("1").asking("c", &"x".repeat(1000)),
        asking(b"1").header("kafka_replyPartition", "999"),
        Plain::new("1").asking("", &reply_topic),
        many,
    ];
    for record in &odd {
        peer.send(&double, record);
        peer.send(&happened, record);
    }
    // These are answered: three are not numbers, one is too large and its error as well.
    let answered = [
        (asking(b"\xff\xfe"), Err(())),
        (asking(deep.as_bytes()), Err(())),
        (asking(b"\0\0\0\0\x01"), Err(())),
        (asking(u64::MAX.to_string().as_bytes()), Err(())),
        (asking(b"4").header("kafka_replyPartition", "one"), Ok("8")),
        (asking(b"5").header("x", [0xff]).header("x", ""), Ok("10")),
        (
            Plain::new("6")
                .header("kafka_correlationId", [0xff, 0])
                .header("kafka_replyTopic", &*reply_topic),
            Ok("12"),
        ),
    ];
    for (number, (record, reply)) in (1..).zip(&answered) {
        peer.send(&double, record);
        let found = peer.nth(&reply_topic, number).await;
        assert_eq!(
            found.get("kafka_correlationId"),
            record.get("kafka_correlationId")
        );
        assert_eq!(found.get("kafka_nest-is-disposed"), Some(&[0][..]));
        match reply {
            Ok(value) => assert_eq!(found.text(), Some(*value)),
            Err(()) => {
                let error: Value =
                    serde_json::from_slice(found.get("kafka_nest-err").unwrap()).unwrap();
                assert_eq!(error["code"], "INVALID_ARGUMENT", "{error}");
            }
        }
    }
    for client in [
        Client::connect(&*url).await.unwrap(),
        nest_client(&url).await,
    ] {
        for n in 0..20 {
            let reply = client.send_at::<u64>(double.clone(), &n).await;
            assert_eq!(reply, Ok(2 * n));
        }
        let error = client.send_at::<u64>(double.clone(), &"x").await;
        assert_eq!(error.unwrap_err().code, Code::InvalidArgument);
        client.emit_at(happened.clone(), &1).await.unwrap();
    }
    server.shutdown().await;
}
