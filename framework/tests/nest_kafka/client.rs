//! Our client in the place of the captured NestJS one, and beside others.

use futures_util::{StreamExt, future::join_all};
use nestling::{Client, Code, Payload, Router, RpcError, header};
use nestling_testkit::unique;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{
    Value, json,
    value::{RawValue, to_raw_value},
};
use tokio::{task::JoinHandle, time::timeout};

use super::{
    SOON, kafka, nest_client,
    peer::{Peer, Plain},
    start,
    vectors::{Assigner, Call, Captured, Conversations, read},
};

/// Calls that send other bytes here, or none.
const DIFFERENT: &[(&str, &str)] = &[
    ("req_null_data", "null may be sent: it is a null value"),
    ("req_undefined_data", "the same"),
    (
        "not_subscribed",
        "reply topics are read when they are needed; a topic that does not exist fails the call",
    ),
    (
        "evt_ctx",
        "names of headers are lower case, so none is taken for NestJS's own",
    ),
];

/// What a call gave its caller: values, and how it ended.
type Got = (Vec<Value>, Option<RpcError>);

#[tokio::test(flavor = "multi_thread")]
async fn captured_calls_leave_the_same_bytes_and_see_the_same_replies() {
    let url = kafka!();
    let conversations: Conversations = read("kafka");
    let prefix = unique("vectors");
    let peer = Peer::new(&url);
    let client = nest_client(&url).await;
    let played: Vec<_> = conversations
        .calls
        .iter()
        .filter(|(name, _)| DIFFERENT.iter().all(|(known, _)| known != name))
        .collect();
    assert_eq!(played.len(), 50);
    // A topic for each case, so that each is the first of its pattern.
    let topic = |name: &str| {
        let captured = &conversations.request(name).unwrap().topic;
        format!("{prefix}.{name}.{captured}")
    };
    let topics: Vec<_> = played
        .iter()
        .flat_map(|(name, _)| [topic(name), topic(name) + ".reply"])
        .collect();
    peer.make_topics(&topics, 1).await;
    for (name, call) in played {
        let request = conversations.request(name).unwrap();
        let topic = topic(name);
        let reply_topic = format!("{topic}.reply");
        if call.api == "emit" {
            let data = call.data.as_ref().unwrap();
            client.emit_at(topic.clone(), data).await.unwrap();
            let sent = peer.nth(&topic, 1).await;
            assert_eq!(sent, expected(request, &topic, None), "{name}");
        } else {
            let got = send(&client, &topic, name, call);
            let sent = peer.nth(&topic, 1).await;
            let id = sent.get("kafka_correlationId").unwrap().to_vec();
            assert_eq!(id.len(), 21, "{name}");
            assert!(
                id.iter()
                    .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
            );
            let own = |(name, _): &(String, Vec<u8>)| name != "deadline";
            let mut visible = sent.clone();
            visible.headers.retain(own);
            assert_eq!(visible.headers.len() + 1, sent.headers.len(), "{name}");
            assert_eq!(visible, expected(request, &topic, Some(&id)), "{name}");

            let replies = conversations.replies(name);
            for reply in &replies {
                let record = expected(reply, &topic, Some(&id));
                peer.send_to(&reply_topic, Some(reply.partition), &record);
            }
            if replies.is_empty() {
                got.abort();
            } else {
                let got = timeout(SOON, got).await.expect(name).unwrap();
                check(name, call, &replies, got);
            }
        }
    }
    client.close().await;
}

/// What was captured, with the names and the id of this run.
fn expected(captured: &Captured, topic: &str, id: Option<&[u8]>) -> Plain {
    let headers = captured.headers().into_iter().map(|(name, value)| {
        let value = match name.as_str() {
            "kafka_correlationId" => id.unwrap().to_vec(),
            "kafka_replyTopic" => format!("{topic}.reply").into_bytes(),
            _ => value,
        };
        (name, value)
    });
    Plain {
        key: captured.key(),
        value: captured.value(),
        headers: headers.collect(),
    }
}

fn send(client: &Client, topic: &str, name: &str, call: &Call) -> JoinHandle<Got> {
    let (client, topic) = (client.clone(), topic.to_owned());
    let data = call.data.clone().unwrap();
    // Where NestJS has an object that describes the record, here are its key and headers.
    let (data, key, own) = match name {
        "ctx_keyed" => (json!({ "a": 1 }), Some("K"), Some("x")),
        "ctx_value_undefined" => (json!(null), Some("K"), None),
        "ctx_buffer" => (json!("hello"), None, None),
        "ctx_binary0" => (json!("\0\u{1}\u{2}"), None, None),
        _ => (data, None, None),
    };
    let data = match name {
        // Its members are in another order than ours would be.
        "ctx_data_pattern_shape" => RawValue::from_string(r#"{"pattern":"x","data":"y"}"#.into()),
        _ => to_raw_value(&data),
    };
    let data = data.unwrap();
    spawn(async move {
        let mut call = client.stream_at::<Value>(topic, &data).timeout(SOON);
        if let Some(key) = key {
            call = call.header(header::KEY, key);
        }
        if let Some(own) = own {
            call = call.header("h", own);
        }
        let mut stream = call.await.unwrap();
        let mut values = Vec::new();
        loop {
            match stream.next().await {
                Some(Ok(value)) => values.push(value),
                Some(Err(error)) => return (values, Some(error)),
                None => return (values, None),
            }
        }
    })
}

/// Runs a call while the peer answers it.
#[expect(clippy::disallowed_methods, reason = "the test waits for the handle")]
fn spawn<T: Send + 'static>(call: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
    tokio::spawn(call)
}

fn check(name: &str, call: &Call, replies: &[&Captured], (values, error): Got) {
    let observed = &call.observed_by_caller;
    let mut expected = observed.values.clone();
    let last = replies.last().unwrap();
    // Where NestJS gives a null and the end, here is the end.
    if observed.completed && last.value().is_none() {
        assert_eq!(expected.pop(), Some(Value::Null), "{name}");
    }
    // An empty text is null to whoever takes any value, as a null value is; see the test below.
    for value in &mut expected {
        if value == "" {
            *value = Value::Null;
        }
    }
    assert_eq!(values, expected, "{name}");
    assert_eq!(error.is_none(), observed.completed, "{name}");
    let Some(error) = error else { return };
    let thrown = observed.error.as_ref().unwrap();
    assert_eq!(error.code, Code::Unknown, "{name}");
    if let Some(message) = thrown["message"].as_str() {
        assert_eq!(error.message, message, "{name}");
    }
    let known = ["status", "message"];
    let says_more = thrown
        .as_object()
        .unwrap()
        .iter()
        .any(|(member, value)| !known.contains(&member.as_str()) || !value.is_string());
    assert_eq!(error.details.is_some(), says_more, "{name}");
    assert!(error.details.is_none_or(|details| details == *thrown));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nestjs_refuses_to_send_is_a_null_value_or_an_error() {
    let url = kafka!();
    let peer = Peer::new(&url);
    let client = nest_client(&url).await;
    let topic = format!("{}.get", unique("null"));
    let absent = client.send_at::<()>(topic.clone(), &()).await;
    assert_eq!(absent.unwrap_err().code, Code::Unavailable);
    peer.make_topics(std::slice::from_ref(&topic), 1).await;
    let last = |request: &Plain| {
        let id = request.get("kafka_correlationId").unwrap();
        Plain::default()
            .header("kafka_correlationId", id)
            .header("kafka_nest-is-disposed", [0])
    };
    let call = call::<Option<String>>(&client, &topic, &());
    let request = peer.nth(&topic, 1).await;
    assert_eq!(request.value, None);
    reply(&peer, &request, &last(&request));
    assert_eq!(timeout(SOON, call).await.unwrap().unwrap(), Ok(None));

    let call = self::call::<String>(&client, &topic, "");
    let request = peer.nth(&topic, 2).await;
    assert_eq!(request.text(), Some(""));
    let empty = Plain {
        value: Some(Vec::new()),
        ..last(&request)
    };
    reply(&peer, &request, &empty);
    let text = timeout(SOON, call).await.unwrap().unwrap();
    assert_eq!(text.as_deref(), Ok(""));

    let error = client
        .send_at::<()>(r#"{"b":1,"a":2}"#, &1)
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::FailedPrecondition);
    assert!(error.message.contains(r#"a\":2"#), "{error}");
}

fn call<R: DeserializeOwned + Send + 'static>(
    client: &Client,
    topic: &str,
    data: &(impl Serialize + ?Sized),
) -> JoinHandle<Result<R, RpcError>> {
    let (client, topic, data) = (client.clone(), topic.to_owned(), to_raw_value(data));
    spawn(async move { client.send_at(topic, &data.unwrap()).await })
}

/// Sends a reply to where the request says, and returns which partition that is.
fn reply(peer: &Peer, request: &Plain, reply: &Plain) -> i32 {
    let text = |name| std::str::from_utf8(request.get(name).unwrap()).unwrap();
    let partition = text("kafka_replyPartition").parse().unwrap();
    peer.send_to(text("kafka_replyTopic"), Some(partition), reply);
    partition
}

/// A NestJS client without a partition of its own cannot send; here each instance has one, whatever
/// the group of NestJS clients makes of the rest.
#[tokio::test(flavor = "multi_thread")]
async fn instances_need_no_group_to_have_a_reply_partition() {
    let url = kafka!();
    let peer = Peer::new(&url);
    let vectors: Assigner = read("kafka_assigner");
    assert_eq!(vectors.data.cases.len(), 6);
    let mut surplus = 0;
    for case in vectors.data.cases {
        let (_, partitions) = case.topics.first_key_value().unwrap();
        let topic = format!("{}.get", unique("assigner"));
        let reply_topic = format!("{topic}.reply");
        peer.make_topics(std::slice::from_ref(&topic), 1).await;
        peer.make_topics(std::slice::from_ref(&reply_topic), *partitions)
            .await;
        surplus += case
            .result
            .iter()
            .filter(|member| member.assignment.values().any(Vec::is_empty))
            .count();
        let clients = join_all(case.result.iter().map(|_| nest_client(&url))).await;
        for (sent, client) in (1..).zip(&clients) {
            let call = call::<i64>(client, &topic, &sent);
            let request = peer.nth(&topic, sent).await;
            // Replies to others who read this partition: an instance, a NestJS client.
            let id = request.get("kafka_correlationId").unwrap().to_vec();
            for (id, value) in [
                (b"5e8eefe9529f1f22aac2f".to_vec(), "0".to_owned()),
                (b"0".to_vec(), "0".to_owned()),
                (id, sent.to_string()),
            ] {
                let last = Plain::new(value)
                    .header("kafka_correlationId", id)
                    .header("kafka_nest-is-disposed", [0]);
                let partition = reply(&peer, &request, &last);
                assert!((0..*partitions).contains(&partition), "{}", case.name);
            }
            let reply = timeout(SOON, call).await.unwrap().unwrap();
            assert_eq!(reply, Ok(sent), "{}", case.name);
        }
    }
    assert_eq!(surplus, 2, "members that NestJS leaves without");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_patterns_are_called_at_once_for_the_first_time() {
    let url = kafka!();
    let prefix = unique("first");
    let patterns: Vec<String> = (0..20).map(|n| format!("{prefix}.{n}")).collect();
    let router = patterns.iter().fold(Router::new(), |router, pattern| {
        router.message_at(pattern.clone(), async |Payload(n): Payload<u64>| {
            Ok::<_, RpcError>(2 * n)
        })
    });
    let server = start(&url, &prefix, router).await;
    let client = nest_client(&url).await;
    for _ in 0..2 {
        let calls = (0..).zip(&patterns).map(|(n, pattern)| {
            let call = client.send_at::<u64>(pattern.clone(), &n).timeout(SOON);
            async move { (n, call.await) }
        });
        for (n, reply) in join_all(calls).await {
            assert_eq!(reply, Ok(2 * n));
        }
    }
    server.shutdown().await;
    client.close().await;
}
