//! Both wires on one server, and events that both worlds hear.

use std::time::Duration;

use bytes::Bytes;
use nestling::{Client, Code, Context, Guarantee, Payload, Router, RpcError, header};
use nestling_testkit::unique;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{sync::mpsc, time::timeout};

use super::{
    SOON, kafka, nest_client,
    peer::{Peer, Plain},
    start,
};

#[derive(Debug, PartialEq, Deserialize, Serialize)]
struct Placed {
    order: u64,
    value: Option<String>,
}

/// A service that tells a channel of its events.
fn hearing(patterns: &[&str]) -> (Router, mpsc::UnboundedReceiver<String>) {
    let (tell, told) = mpsc::unbounded_channel();
    let mut router = Router::new();
    for pattern in patterns {
        let tell = tell.clone();
        let handler = move |Payload(text): Payload<String>, cx: Context| {
            let key = cx.header(header::KEY).unwrap_or("-");
            tell.send(format!("{key} {text}")).unwrap();
            async { Ok::<_, RpcError>(()) }
        };
        router = router.event_with((*pattern).to_owned(), Guarantee::AtLeastOnce, handler);
    }
    (router, told)
}

async fn next(told: &mut mpsc::UnboundedReceiver<String>) -> String {
    timeout(SOON, told.recv()).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_is_whatever_the_handler_takes() {
    let url = kafka!();
    let prefix = unique("typed");
    let peer = Peer::new(&url);
    let reply_topic = format!("{prefix}.reply");
    peer.make_topics(std::slice::from_ref(&reply_topic), 1)
        .await;
    let local = |name: &str| format!("{prefix}.{name}");
    let router = Router::new()
        .message_at(local("number"), async |Payload(n): Payload<f64>| {
            Ok::<_, RpcError>(n)
        })
        .message_at(local("text"), async |Payload(text): Payload<String>| {
            Ok::<_, RpcError>(text)
        })
        .message_at(local("bool"), async |Payload(yes): Payload<bool>| {
            Ok::<_, RpcError>(!yes)
        })
        .message_at(local("nothing"), async |Payload(()): Payload<()>| {
            Ok::<_, RpcError>(())
        })
        .message_at(local("maybe"), async |Payload(n): Payload<Option<u8>>| {
            Ok::<_, RpcError>(json!({ "key": n }))
        })
        .message_at(local("bytes"), async |bytes: Bytes, cx: Context| {
            let encoding = cx.header(header::CONTENT_TYPE).unwrap_or("-");
            Ok::<_, RpcError>(format!("{encoding} {}", bytes.len()))
        })
        // Committed before it runs, as it is not idempotent.
        .message_with(
            local("once"),
            false,
            async |Payload(placed): Payload<Placed>| Ok::<_, RpcError>(placed),
        );
    let server = start(&url, &prefix, router).await;
    let mut count = 0;
    for (name, value, expected) in [
        ("number", Some(&b"42"[..]), Some("42")),
        ("number", Some(b"1e21"), Some("1e+21")),
        ("text", Some(b"42"), Some("42")),
        ("text", Some(b"\"q\""), Some("\"q\"")),
        ("text", Some(b""), Some("")),
        ("bool", Some(b"true"), Some("false")),
        ("nothing", Some(b""), None),
        ("nothing", None, None),
        ("maybe", None, Some(r#"{"key":null}"#)),
        ("maybe", Some(b"7"), Some(r#"{"key":7}"#)),
        (
            "bytes",
            Some(b"\0\x01\x02"),
            Some("application/octet-stream 3"),
        ),
        ("bytes", Some(b"{}"), Some("- 2")),
        ("bytes", Some(b"x"), Some("text/plain 1")),
        (
            "once",
            Some(br#"{"order":1,"value":"x"}"#),
            Some(r#"{"order":1,"value":"x"}"#),
        ),
    ] {
        let record = Plain {
            value: value.map(<[u8]>::to_vec),
            ..Plain::default()
        };
        peer.send(&local(name), &record.asking("c", &reply_topic));
        count += 1;
        let reply = peer.nth(&reply_topic, count).await;
        assert_eq!(reply.text(), expected, "{name} {value:?}");
    }
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_heard_once_on_either_wire_with_its_key_and_order() {
    let url = kafka!();
    let domain = unique("order");
    let placed = format!("{domain}.placed");
    let (router, mut told) = hearing(&[&placed]);
    let server = start(&url, &unique("both"), router).await;
    let native = Client::connect(&*url).await.unwrap();
    let nest = nest_client(&url).await;
    let both = Client::connect(format!("{url}?topic=both")).await.unwrap();
    for client in [&native, &nest, &both] {
        for n in 0..10 {
            let call = client.emit_at(placed.clone(), &n.to_string());
            call.header(header::KEY, "ada").await.unwrap();
        }
        for n in 0..10 {
            assert_eq!(next(&mut told).await, format!("ada {n}"));
        }
    }
    server.shutdown().await;
    assert!(
        told.try_recv().is_err(),
        "copies are not events of their own"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_for_nestjs_is_as_nestjs_writes_it() {
    let url = kafka!();
    let placed = format!("{}.placed", unique("order"));
    let peer = Peer::new(&url);
    // Whoever reads one topic per pattern gets the copy, and as the native event that it is.
    let (router, mut told) = hearing(&[&placed]);
    let per_pattern = format!("{url}?topic=pattern&partitions=1");
    let server = start(&per_pattern, &unique("pattern"), router).await;
    let both = Client::connect(format!("{url}?topic=both")).await.unwrap();
    let call = both.emit_at(placed.clone(), "a text");
    call.header(header::KEY, "ada")
        .header("x-own", "x")
        .await
        .unwrap();
    let copy = peer.nth(&placed, 1).await;
    let expected = Plain {
        key: Some(b"ada".to_vec()),
        ..Plain::new("a text")
            .header("nestling", "1")
            .header("content-type", "text/plain")
            .header("x-own", "x")
    };
    assert_eq!(copy, expected);
    assert_eq!(next(&mut told).await, "ada a text");
    both.emit_at(
        placed.clone(),
        &Placed {
            order: 1,
            value: None,
        },
    )
    .await
    .unwrap();
    let copy = peer.nth(&placed, 2).await;
    assert_eq!(copy.text(), Some(r#"{"order":1,"value":null}"#));
    let error = both.emit_at("a.ä", &1).await.unwrap_err();
    assert_eq!(error.code, Code::FailedPrecondition);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_may_be_native_only() {
    let url = kafka!();
    let prefix = unique("native");
    let echo = format!("{prefix}.echo");
    let happened = format!("{prefix}.happened");
    let (router, mut told) = hearing(&[&happened]);
    let router = router.message_at(echo.clone(), async |Payload(n): Payload<u64>| {
        Ok::<_, RpcError>(n)
    });
    let server = start(&format!("{url}?wire=native"), &prefix, router).await;
    let nest = nest_client(&url).await;
    let call = nest.send_at::<u64>(echo.clone(), &1);
    let error = call.timeout(Duration::from_millis(500)).await.unwrap_err();
    assert_eq!(error.code, Code::DeadlineExceeded);
    nest.emit_at(happened.clone(), "not heard").await.unwrap();
    let native = Client::connect(format!("{url}?wire=native")).await.unwrap();
    assert_eq!(native.send_at::<u64>(echo, &2).await, Ok(2));
    native.emit_at(happened, "heard").await.unwrap();
    assert_eq!(next(&mut told).await, "- heard");
    server.shutdown().await;
    assert!(told.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_waited_beyond_its_deadline_is_not_handled() {
    let url = kafka!();
    let prefix = unique("late");
    let echo = format!("{prefix}.echo");
    let reply_topic = format!("{prefix}.reply");
    let peer = Peer::new(&url);
    peer.make_topics(std::slice::from_ref(&reply_topic), 1)
        .await;
    let router = || {
        Router::new().message_at(echo.clone(), async |Payload(n): Payload<u64>| {
            Ok::<_, RpcError>(n)
        })
    };
    start(&url, &prefix, router()).await.shutdown().await;
    for (value, deadline) in [("1", "1"), ("2", "60000")] {
        let record = Plain {
            key: Some(b"one partition".to_vec()),
            ..Plain::new(value).asking(value, &reply_topic)
        };
        peer.send(&echo, &record.header("deadline", deadline));
    }
    tokio::time::sleep(Duration::from_millis(5)).await;
    let server = start(&url, &prefix, router()).await;
    let reply = peer.nth(&reply_topic, 1).await;
    assert_eq!(reply.text(), Some("2"));
    server.shutdown().await;
}

/// A service that tells a channel what it was asked.
fn asked(pattern: &str) -> (Router, mpsc::UnboundedReceiver<String>) {
    let (tell, told) = mpsc::unbounded_channel();
    let handler = move |Payload(text): Payload<String>| {
        tell.send(text).unwrap();
        async { Ok::<_, RpcError>(()) }
    };
    let router = Router::new().message_with(pattern.to_owned(), true, handler);
    (router, told)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_service_has_answered_is_not_answered_again() {
    let url = kafka!();
    let ask = format!("{}.ask", unique("earlier"));
    let peer = Peer::new(&url);
    peer.make_topics(std::slice::from_ref(&ask), 1).await;
    let request = |text: &str| Plain::new(text).asking("c", "nobody.reply");
    peer.send(&ask, &request("answered"));
    let (router, mut told) = asked(&ask);
    let server = start(&url, &unique("successor"), router).await;
    peer.send(&ask, &request("new"));
    assert_eq!(next(&mut told).await, "new");
    server.shutdown().await;
    assert!(told.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_goes_on_where_a_nestjs_service_of_its_group_has_stopped() {
    let url = kafka!();
    let (ask, group) = (format!("{}.ask", unique("group")), unique("old-server"));
    let peer = Peer::new(&url);
    peer.make_topics(std::slice::from_ref(&ask), 1).await;
    for text in ["answered", "waiting"] {
        peer.send(&ask, &Plain::new(text).asking("c", "nobody.reply"));
    }
    peer.commit_as(&group, &ask, 1);
    let (router, mut told) = asked(&ask);
    let server = start(&url, &group, router).await;
    assert_eq!(next(&mut told).await, "waiting");
    server.shutdown().await;
    assert!(told.try_recv().is_err());
}
