//! Both wires on one service: who gets what, and within which limits.

use std::{
    future::IntoFuture,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt, future::join_all, stream};
use nestling::{
    Client, Code, Context, Guarantee, Payload, Router, RpcError, Server, StartError, Streaming,
    transport::{ErrorKind, Memory},
};
use nestling_testkit::{Kind, broker_or_skip, unique};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};

use crate::{
    broker,
    captured::handlers::echo,
    nest_client,
    peer::{Answer, Peer, SOON, command},
    start,
};

macro_rules! redis {
    () => {
        match broker_or_skip(Kind::Redis) {
            Some(url) => url,
            None => return,
        }
    };
}

/// Sends what it was called with to the test.
fn tell<T: Send + Sync + Clone + 'static>(
    heard: &mpsc::UnboundedSender<T>,
    what: T,
) -> impl Fn() -> std::future::Ready<Result<T, RpcError>> + Clone + use<T> {
    let heard = heard.clone();
    move || {
        let told = heard.send(what.clone()).map_err(RpcError::internal);
        std::future::ready(told.map(|()| what.clone()))
    }
}

#[tokio::test]
async fn a_pattern_of_both_kinds_gets_every_packet_once_on_either_wire() {
    let url = redis!();
    let pattern = unique("both");
    let (heard, mut hearing) = mpsc::unbounded_channel();
    let router = Router::new()
        .message_at(pattern.clone(), tell(&heard, "message"))
        .event_at(pattern.clone(), tell(&heard, "event"));
    let server = start(&url, &pattern, router).await;
    let native = Client::connect(&*url).await.unwrap();
    for client in [native, nest_client(&url).await] {
        for _ in 0..20 {
            let reply = client.send_at::<String>(pattern.clone(), &()).timeout(SOON);
            assert_eq!(reply.await.as_deref(), Ok("message"));
            assert_eq!(hearing.recv().await, Some("message"));
            client.emit_at(pattern.clone(), &()).await.unwrap();
            assert_eq!(hearing.recv().await, Some("event"));
        }
    }
    assert!(hearing.is_empty());
    server.shutdown().await;
}

#[tokio::test]
async fn a_server_of_the_native_wire_does_not_hear_channels() {
    let url = redis!();
    let pattern = unique("native");
    let router = || Router::new().message_at(pattern.clone(), echo);
    let only_native = start(&format!("{url}?wire=native"), &pattern, router()).await;
    let mut peer = Peer::connect(&url).await;
    let packet = r#"{"data":1,"id":1}"#;
    assert_eq!(peer.publish(&pattern, packet).await, 0);
    let native = Client::connect(&*url).await.unwrap();
    assert_eq!(native.send_at::<u64>(pattern.clone(), &1).await, Ok(1));

    let only_channels = url.replace("redis://", "redis+pubsub://");
    let channels = start(&only_channels, &unique("channels"), router()).await;
    assert_eq!(peer.publish(&pattern, packet).await, 1);
    let client = Client::connect(&*only_channels).await.unwrap();
    assert_eq!(client.transport(), "redis+pubsub");
    assert_eq!(client.send_at::<u64>(pattern.clone(), &2).await, Ok(2));
    channels.shutdown().await;
    assert_eq!(peer.publish(&pattern, packet).await, 0);
    only_native.shutdown().await;
}

#[tokio::test]
async fn channels_alone_do_not_do_for_events_that_must_arrive() {
    let url = redis!().replace("redis://", "redis+pubsub://");
    let handler = || async { Ok::<_, RpcError>(()) };
    let router = Router::new().event_with("thing.happened", Guarantee::AtLeastOnce, handler);
    let refused = Server::new("strict", router).listen(&*url).start().await;
    assert!(matches!(refused, Err(StartError::Unfit { .. })));
}

#[tokio::test]
async fn where_nobody_is_subscribed_a_call_fails_at_once() {
    let url = redis!();
    let client = nest_client(&url).await;
    let begun = Instant::now();
    let error = client.send_at::<()>(unique("nobody"), &()).await;
    let error = error.unwrap_err();
    assert_eq!(error.code, Code::Unavailable);
    let source = std::error::Error::source(&error).unwrap();
    let source: &nestling::transport::Error = source.downcast_ref().unwrap();
    assert_eq!(source.kind(), ErrorKind::NoResponders);
    assert!(begun.elapsed() < Duration::from_secs(1));
    client.emit_at(unique("nobody"), &()).await.unwrap();
}

/// A handler that says by which name it was called.
async fn name(cx: Context) -> Result<String, RpcError> {
    Ok(cx.pattern().to_owned())
}

#[tokio::test]
async fn a_glob_gets_what_it_matches_and_not_its_own_replies() {
    let url = redis!();
    let base = unique("glob");
    let (heard, mut hearing) = mpsc::unbounded_channel();
    let note = move |cx: Context| {
        let told = heard.send(cx.pattern().to_owned());
        async move { told.map_err(RpcError::internal) }
    };
    let router = Router::new()
        .message_at(format!("{base}.users.*"), name)
        .message_at(format!("{base}.users.[ab]?"), name)
        .event_at(format!("{base}.*.reply"), note.clone())
        .event_at(format!("{base}.news.*"), note);
    let server = start(&url, &base, router).await;
    let client = nest_client(&url).await;
    for verb in ["users.1", "users.1.2", "users.[ab]?"] {
        let pattern = format!("{base}.{verb}");
        let reply = client.send_at::<String>(pattern.clone(), &()).await;
        assert_eq!(reply.as_deref(), Ok(&*pattern));
        // What asks for replies by name gets them.
        assert_eq!(hearing.recv().await, Some(format!("{pattern}.reply")));
        if verb == "users.[ab]?" {
            // Its own handler and the glob's have both answered.
            assert_eq!(hearing.recv().await, Some(format!("{pattern}.reply")));
        }
    }
    for verb in ["news.x", "news.x.reply"] {
        client.emit_at(format!("{base}.{verb}"), &1).await.unwrap();
        assert_eq!(hearing.recv().await, Some(format!("{base}.{verb}")));
    }
    // By two globs, as Redis delivers it twice.
    assert_eq!(hearing.recv().await, Some(format!("{base}.news.x.reply")));
    server.shutdown().await;
    assert!(hearing.is_empty());
}

#[tokio::test]
async fn every_replica_answers_and_the_first_reply_counts() {
    let url = redis!();
    let pattern = unique("replicas");
    let (heard, mut hearing) = mpsc::unbounded_channel();
    let mut replicas = Vec::new();
    for replica in 0..3 {
        let router = Router::new().message_at(pattern.clone(), tell(&heard, replica));
        replicas.push(start(&url, &pattern, router).await);
    }
    let client = nest_client(&url).await;
    for _ in 0..10 {
        let reply = client.send_at::<i32>(pattern.clone(), &()).await;
        assert!((0..3).contains(&reply.unwrap()));
        let mut runs = Vec::new();
        for _ in 0..3 {
            runs.push(hearing.recv().await.unwrap());
        }
        runs.sort_unstable();
        assert_eq!(runs, [0, 1, 2]);
    }
    for replica in replicas {
        replica.shutdown().await;
    }
}

#[tokio::test]
async fn clients_that_share_a_reply_channel_get_their_own_replies() {
    let url = redis!();
    let pattern = unique("shared");
    let server = start(
        &url,
        &pattern,
        Router::new().message_at(pattern.clone(), echo),
    )
    .await;
    let clients = [nest_client(&url).await, nest_client(&url).await];
    let calls = (0..200_usize).map(|n| {
        let call = clients[n % 2].send_at::<usize>(pattern.clone(), &n);
        call.into_future()
    });
    let expected: Vec<_> = (0..200).map(Ok).collect();
    assert_eq!(join_all(calls).await, expected);
    server.shutdown().await;
}

/// The commands of others that a monitoring connection sees, up to the one with `last` in it.
async fn commands(monitor: &mut Peer, last: &str) -> Vec<String> {
    let mut all = Vec::new();
    loop {
        let line = monitor.monitored().await;
        let is_last = line.contains(last);
        let first = line.split(' ').next().unwrap().to_ascii_uppercase();
        if ["\"SUBSCRIBE\"", "\"UNSUBSCRIBE\"", "\"PUBLISH\""].contains(&&*first) {
            all.push(line);
        }
        if is_last {
            return all;
        }
    }
}

#[tokio::test]
async fn a_reply_channel_is_subscribed_to_before_the_first_call_and_then_kept() {
    let Some(broker) = broker() else { return };
    let router = (0..300).fold(Router::new(), |router, n| {
        router.message_at(format!("route.{n}"), echo)
    });
    let server = start(&broker.url(), "routes", router).await;
    let client = nest_client(&broker.url()).await;
    let mut monitor = Peer::connect(&broker.url()).await;
    assert_eq!(
        monitor.command(&["MONITOR"]).await,
        Answer::Line("OK".to_owned())
    );

    for _ in 0..2 {
        assert_eq!(client.send_at::<u64>("route.0", &1).await, Ok(1));
    }
    client.emit_at("last", &1).await.unwrap();
    let seen = commands(&mut monitor, "\"last\"").await;
    assert_eq!(seen[0], r#""SUBSCRIBE" "route.0.reply""#);
    assert!(
        seen[1].starts_with(r#""PUBLISH" "route.0" "#),
        "{}",
        seen[1]
    );
    let subscriptions = seen.iter().filter(|line| line.contains("SUBSCRIBE"));
    assert_eq!(subscriptions.count(), 1, "{seen:?}");

    // Beyond a limit those that nobody has used for long are given up, but not those in use.
    for n in 1..300 {
        assert_eq!(client.send_at::<u64>(format!("route.{n}"), &n).await, Ok(n));
    }
    client.emit_at("last", &2).await.unwrap();
    let seen = commands(&mut monitor, "\"last\"").await;
    let given_up = seen.iter().find(|line| line.starts_with("\"UNSUBSCRIBE\""));
    assert!(given_up.unwrap().contains("\"route.0.reply\""));
    assert_eq!(client.send_at::<u64>("route.0", &3).await, Ok(3));
    assert_eq!(client.send_at::<u64>("route.299", &4).await, Ok(4));
    server.shutdown().await;
}

#[tokio::test]
async fn what_is_too_large_is_refused_and_hurts_nobody() {
    let url = redis!();
    let pattern = unique("large");
    let (heard, mut hearing) = mpsc::unbounded_channel();
    let length = move |Payload(text): Payload<String>| {
        let told = heard.send(text.len()).map_err(RpcError::internal);
        async move { told.map(|()| text.len()) }
    };
    let router = Router::new().message_at(pattern.clone(), length);
    let server = start(&format!("{url}?max_payload=1000"), &pattern, router).await;
    let client = nest_client(&url).await;
    let call = client.send_at::<usize>(pattern.clone(), &"x".repeat(999));
    assert_eq!(call.await.unwrap_err().code, Code::ResourceExhausted);
    let event = client.emit_at(pattern.clone(), &"x".repeat(999));
    event.await.unwrap();
    let call = client.send_at::<usize>(pattern.clone(), &"x".repeat(998));
    assert_eq!(call.await, Ok(998));
    assert_eq!(hearing.recv().await, Some(998));
    server.shutdown().await;
    assert!(hearing.is_empty());
}

#[tokio::test]
async fn more_requests_than_can_wait_are_refused_and_events_dropped() {
    const WAIT: usize = 16 * 1024;
    const MORE: usize = 50;
    let Some(broker) = broker() else { return };
    let doors = Arc::new(Semaphore::new(0));
    let gate = Arc::clone(&doors);
    let wait = move |Payload(n): Payload<usize>| {
        let gate = Arc::clone(&gate);
        async move {
            gate.acquire().await.map_err(RpcError::internal)?.forget();
            Ok::<_, RpcError>(n)
        }
    };
    let router = Router::new().message_at("wait", wait);
    let server = Server::new("busy", router).max_in_flight(1);
    let server = server.listen(&*broker.url()).start().await.unwrap();
    let mut caller = Peer::connect(&broker.url()).await;
    caller.command(&["SUBSCRIBE", "wait.reply"]).await;
    let mut peer = Peer::connect(&broker.url()).await;
    // One is in work, and up to a round of others is with the server already.
    let rounds = 1 + 64;
    for n in 0..rounds + WAIT + MORE {
        let packet = format!(r#"{{"data":{n},"id":{n}}}"#);
        peer.write(&command(&[b"PUBLISH", b"wait", packet.as_bytes()]))
            .await;
    }
    for _ in 0..rounds + WAIT + MORE {
        assert_eq!(peer.number().await, 1);
    }
    let first = caller.heard().await.payload;
    assert!(first.contains("RESOURCE_EXHAUSTED"), "{first}");
    let event = peer.publish("wait", r#"{"data":0}"#).await;
    assert_eq!(event, 1);
    doors.add_permits(2 * WAIT);
    let (mut refused, mut answered) = (1, 0);
    while refused + answered < rounds + WAIT + MORE {
        let reply: Value = serde_json::from_str(&caller.heard().await.payload).unwrap();
        match reply.get("err") {
            Some(error) => {
                assert_eq!(error["code"], "RESOURCE_EXHAUSTED");
                refused += 1;
            }
            None => {
                assert_eq!(reply["response"], reply["id"]);
                answered += 1;
            }
        }
    }
    assert!((MORE..=MORE + rounds).contains(&refused), "{refused}");
    peer.publish("wait", r#"{"data":7,"id":"after"}"#).await;
    assert!(caller.heard().await.payload.contains("after"));
    server.shutdown().await;
}

#[tokio::test]
async fn a_stream_is_made_no_faster_than_redis_takes_it() {
    const COUNT: u32 = 100_000;
    let Some(broker) = broker() else { return };
    let made = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&made);
    let count = move || {
        let made = Arc::clone(&counter);
        let values = stream::iter(0..COUNT).map(move |n| {
            made.fetch_add(1, Ordering::SeqCst);
            Ok(n)
        });
        async move { Streaming::new(values) }
    };
    let router = Router::new().message_at("count", count);
    let server = start(&broker.url(), "count", router).await;
    let mut caller = Peer::connect(&broker.url()).await;
    caller.command(&["SUBSCRIBE", "count.reply"]).await;
    let mut peer = Peer::connect(&broker.url()).await;
    peer.publish_and_pause("count", r#"{"data":0,"id":1}"#)
        .await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let ahead = made.load(Ordering::SeqCst);
    assert!((1..10_000).contains(&ahead), "{ahead} values were made");
    peer.command(&["CLIENT", "UNPAUSE"]).await;
    for n in 0..COUNT {
        let reply: Value = serde_json::from_str(&caller.heard().await.payload).unwrap();
        assert_eq!(reply["response"], json!(n));
    }
    server.shutdown().await;
}

#[tokio::test]
async fn a_server_that_stops_leaves_nothing_unanswered_that_it_has_heard() {
    let url = redis!();
    let pattern = unique("drain");
    let router = Router::new().message_at(pattern.clone(), echo);
    let server = start(&url, &pattern, router).await;
    let client = nest_client(&url).await;
    let (stopped, answered) = (AtomicBool::new(false), AtomicU32::new(0));
    let calls = async {
        loop {
            let batch =
                (0..50_usize).map(|n| client.send_at::<usize>(pattern.clone(), &n).into_future());
            for (n, reply) in join_all(batch).await.into_iter().enumerate() {
                match reply {
                    Ok(reply) => assert_eq!(reply, n),
                    // Nobody is subscribed any more.
                    Err(error) => assert_eq!(error.code, Code::Unavailable, "{error}"),
                }
                answered.fetch_add(1, Ordering::SeqCst);
            }
            if stopped.load(Ordering::SeqCst) {
                return;
            }
        }
    };
    let stop = async {
        while answered.load(Ordering::SeqCst) < 100 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        server.shutdown().await;
        stopped.store(true, Ordering::SeqCst);
    };
    let both = async { tokio::join!(calls, stop) };
    tokio::time::timeout(4 * SOON, both)
        .await
        .expect("a call or the server hangs");
}

#[tokio::test]
async fn an_event_whose_bus_is_elsewhere_is_heard_here_too() {
    let url = redis!();
    let service = unique("elsewhere");
    let pattern = format!("{service}.happened");
    let (sender, mut seen) = mpsc::unbounded_channel();
    let hear = move |Payload(n): Payload<u64>| {
        let sent = sender.send(n);
        async move { sent.map_err(RpcError::internal) }
    };
    let bus = Memory::new();
    let router = Router::new().event_with(pattern.clone(), Guarantee::AtLeastOnce, hear);
    let server = Server::new(&*service, router).listen(&url).events(&bus);
    let server = server.start().await.unwrap();
    let mut nestjs = Peer::connect(&url).await;
    let packet = format!(r#"{{"pattern":"{pattern}","data":1}}"#);
    assert_eq!(nestjs.publish(&pattern, packet).await, 1);
    assert_eq!(seen.recv().await, Some(1));
    let client = Client::connect(&bus).await.unwrap();
    client.emit_at(pattern, &2).await.unwrap();
    assert_eq!(seen.recv().await, Some(2));
    server.shutdown().await;
}
