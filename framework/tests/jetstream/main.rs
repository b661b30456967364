//! What is JetStream's own: what the streams keep, and how long.

#![cfg(feature = "nats")]
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test may fail, and its tasks end with it"
)]

mod dead_letters;

use std::{
    future::{Ready, ready},
    time::Duration,
};

use bytes::Bytes;
use nestling::{
    Client, Context, Endpoint, Guarantee, Payload, Router, RpcError, Running, Server,
    transport::DeadLetter,
};
use nestling_testkit::{
    Broker, Kind, Options, broker_or_skip,
    suite::witness::{Gate, Record, eventually},
    unique,
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{TcpListener, TcpStream},
};

fn durable(url: &str) -> String {
    format!("{url}?events=jetstream")
}

async fn start(url: &str, service: &str, router: Router) -> Running {
    let server = Server::new(service, router).listen(durable(url));
    let server = server.retry(1, Duration::from_millis(1));
    server.start().await.expect("the server starts")
}

/// How many messages a stream has.
async fn kept(nats: &async_nats::Client, stream: &str) -> u64 {
    let subject = format!("$JS.API.STREAM.INFO.{stream}");
    let answer = nats.request(subject, Bytes::new()).await;
    let answer = answer.expect("JetStream answers");
    let info: Value = serde_json::from_slice(&answer.payload).expect("it is JSON");
    info["state"]["messages"].as_u64().expect("a number")
}

/// A way to a broker, and who has taken it. It breaks when the first message comes by with these
/// bytes, which never arrives.
async fn way(broker: u16, broken_by: &'static str) -> (String, &'static Record<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    let connections = Record::new();
    let whole = Gate::new();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            connections.push(());
            tokio::spawn(async move {
                let far = TcpStream::connect(("127.0.0.1", broker)).await?;
                let ((mut near, mut back), (mut answers, mut far)) =
                    (near.into_split(), far.into_split());
                let there = async {
                    let mut bytes = vec![0; 64 * 1024];
                    loop {
                        let count = near.read(&mut bytes).await?;
                        let text = String::from_utf8_lossy(&bytes[..count]);
                        let is_last = !broken_by.is_empty() && text.contains(broken_by);
                        if count == 0 || is_last && !whole.is_open() {
                            whole.open();
                            return Ok::<_, std::io::Error>(());
                        }
                        far.write_all(&bytes[..count]).await?;
                    }
                };
                tokio::select! {
                    ended = there => ended,
                    ended = copy(&mut answers, &mut back) => ended.map(drop),
                }
            });
        }
    });
    (url, connections)
}

/// Acknowledged, rejected and given up for one service: the event goes when the last has settled it,
/// and not before, even if the broker dies meanwhile.
#[tokio::test]
async fn an_event_is_kept_until_everybody_has_settled_it() {
    if broker_or_skip(Kind::Nats).is_none() {
        return;
    }
    let mut broker = Broker::start(Kind::Nats, Options::default()).unwrap();
    let url = broker.url();
    let nats = async_nats::connect(&url).await.unwrap();
    let seen = Record::new();
    let handler = |who: &'static str| {
        move |cx: Context| async move {
            seen.push(who);
            match cx.header("x-bad") {
                Some(_) => Err(RpcError::invalid_argument("bad")),
                None => Ok(()),
            }
        }
    };
    let router = |who| Router::new().event_with("a.b", Guarantee::AtLeastOnce, handler(who));
    let _one = start(&url, "one", router("one")).await;
    let other = start(&url, "other", router("other")).await;
    let client = Client::connect(durable(&url)).await.unwrap();
    client.emit_at("a.b", &1).await.unwrap();
    client
        .emit_at("a.b", &2)
        .header("x-bad", "1")
        .await
        .unwrap();
    seen.at_least(4).await;
    let empty = async || (kept(&nats, "nestling-events").await == 0).then_some(());
    eventually("both to have settled both", empty).await;
    assert_eq!(kept(&nats, "nestling-dead-letters").await, 2);

    other.shutdown().await;
    client
        .emit_at("a.b", &3)
        .header("event-id", "e3")
        .await
        .unwrap();
    client
        .emit_at("a.b", &3)
        .header("event-id", "e3")
        .await
        .unwrap();
    seen.at_least(5).await;
    assert_eq!(
        kept(&nats, "nestling-events").await,
        1,
        "one event, twice sent"
    );
    broker.kill();
    broker.restart().unwrap();
    let _other = start(&url, "other", router("other")).await;
    eventually("the other to have settled it", empty).await;
    // The broker may have forgotten an acknowledgement that had just come, but no event.
    let others = seen.all().iter().filter(|who| **who == "other").count();
    assert_eq!(others, 3);
    assert_eq!(kept(&nats, "nestling-tries").await, 0);
    // Whoever was there before goes on by itself.
    let before = seen.count();
    client.emit_at("a.b", &4).await.unwrap();
    seen.at_least(before + 2).await;
}

/// A consumer that dies with an event in its hands has not settled it: the event stays, though everybody else has, until
/// somebody comes for it.
#[tokio::test]
async fn an_event_is_kept_for_a_consumer_that_has_died() {
    if broker_or_skip(Kind::Nats).is_none() {
        return;
    }
    let broker = Broker::start(Kind::Nats, Options::default()).unwrap();
    let url = broker.url();
    let nats = async_nats::connect(&url).await.unwrap();
    let (seen, held, release) = (Record::new(), Gate::new(), Gate::new());
    let handle = move || async move {
        seen.push(());
        Ok::<_, RpcError>(())
    };
    let hold = move || async move {
        held.open();
        release.pass().await;
        Ok::<_, RpcError>(())
    };
    let handles = Router::new().event_with("a.b", Guarantee::AtLeastOnce, handle);
    let holds = Router::new().event_with("a.b", Guarantee::AtLeastOnce, hold);
    let one = start(&url, "one", handles).await;
    let other = start(&url, "other", holds.clone()).await;
    let client = Client::connect(durable(&url)).await.unwrap();
    client.emit_at("a.b", &1).await.unwrap();
    held.opened("the other to have it in its hands").await;
    drop(other);
    seen.first().await;
    one.shutdown().await;
    assert_eq!(kept(&nats, "nestling-events").await, 1);

    release.open();
    let _other = start(&url, "other", holds).await;
    let empty = async || (kept(&nats, "nestling-events").await == 0).then_some(());
    eventually("the other to have settled it", empty).await;
}

/// However a service names its broker, it is listened to by one connection.
#[tokio::test]
async fn messages_and_events_of_one_broker_come_by_one_connection() {
    if broker_or_skip(Kind::Nats).is_none() {
        return;
    }
    let broker = Broker::start(Kind::Nats, Options::default()).unwrap();
    let url = broker.url();
    let seen = Record::new();
    let router = || {
        Router::new()
            .message_at("a.b", || async { Ok::<_, RpcError>(7) })
            .event_with(
                "a.b",
                Guarantee::AtLeastOnce,
                move |cx: Context| async move {
                    seen.push(cx.header("n").map(str::to_owned));
                    Ok::<_, RpcError>(())
                },
            )
    };
    let client = Client::connect(durable(&url)).await.unwrap();
    let nats = async_nats::connect(&url).await.unwrap();
    let (way, connections) = way(broker.port(), "").await;
    let mut expected = 0;
    for (round, (listen, events)) in [
        (durable(&way), None),
        (way.clone(), Some(durable(&way))),
        (durable(&way), Some(way.clone())),
    ]
    .into_iter()
    .enumerate()
    {
        let mut server = Server::new("one", router()).listen(listen);
        if let Some(events) = events {
            server = server.events(events);
        }
        let server = server.start().await.unwrap();
        assert_eq!(connections.count(), round + 1);
        for n in 0..20 {
            assert_eq!(client.send_at::<u32>("a.b", &()).await, Ok(7));
            let event = client.emit_at("a.b", &()).header("n", n.to_string());
            event.await.unwrap();
        }
        expected += 20;
        seen.at_least(expected).await;
        eventually("all to be settled", async || {
            (kept(&nats, "nestling-events").await == 0).then_some(())
        })
        .await;
        assert_eq!(seen.count(), expected);
        server.shutdown().await;
    }
    let refused = Server::new("one", router())
        .listen(format!("{url}?wire=native"))
        .events(durable(&url));
    let error = refused.start().await.unwrap_err().to_string();
    assert!(error.contains("give both the same wire"), "{error}");
}

fn noting(
    seen: &'static Record<u32>,
) -> impl Fn(Payload<u32>) -> Ready<Result<(), RpcError>> + Clone {
    move |Payload(n)| {
        seen.push(n);
        ready(Ok(()))
    }
}

/// Ids are their senders' choice: an order that is placed and paid may have one for both facts.
#[tokio::test]
async fn events_of_two_patterns_may_share_an_id() {
    let Some(url) = broker_or_skip(Kind::Nats) else {
        return;
    };
    let service = unique("ids");
    let seen = Record::new();
    let pattern = |name: &str| -> &'static str { format!("{service}.{name}").leak() };
    let patterns = [pattern("placed"), pattern("paid")];
    let mut router = Router::new();
    for pattern in patterns {
        router = router.event_with(pattern, Guarantee::AtLeastOnce, noting(seen));
    }
    let server = start(&url, &service, router).await;
    let client = Client::connect(durable(&url)).await.unwrap();
    for (n, pattern) in (1..).zip(patterns) {
        let event = client.emit_at(pattern, &n);
        event.header("event-id", &*service).await.unwrap();
    }
    let mut all = seen.at_least(2).await;
    all.sort_unstable();
    assert_eq!(all, [1, 2]);
    server.shutdown().await;
}

/// A replica asks for no more than it has room for, so that what it cannot begin is not its own.
#[tokio::test]
async fn a_busy_replica_leaves_the_rest_to_others() {
    const BUSY: usize = 2;

    let Some(url) = broker_or_skip(Kind::Nats) else {
        return;
    };
    let service = unique("busy");
    let pattern: &'static str = format!("{service}.happened").leak();
    let (held, seen, gate) = (Record::new(), Record::new(), Gate::new());
    let hold = move |Payload(n): Payload<u32>| async move {
        held.push(n);
        gate.pass().await;
        Ok::<_, RpcError>(())
    };
    let router = Router::new().event_with(pattern, Guarantee::AtLeastOnce, hold);
    let busy = Server::new(&*service, router)
        .listen(durable(&url))
        .max_in_flight(BUSY);
    let busy = busy.start().await.unwrap();
    let client = Client::connect(durable(&url)).await.unwrap();
    for n in 0..20 {
        client.emit_at(pattern, &n).await.unwrap();
    }
    held.at_least(BUSY).await;
    let router = Router::new().event_with(pattern, Guarantee::AtLeastOnce, noting(seen));
    let other = start(&url, &service, router).await;
    let all = seen.at_least(20 - BUSY).await;
    assert_eq!((all.len(), held.count()), (20 - BUSY, BUSY));
    gate.open();
    busy.shutdown().await;
    other.shutdown().await;
}

/// What this version cannot read waits for one that can, and is not asked for again and again.
#[tokio::test]
async fn an_event_of_a_later_version_waits() {
    const OTHERS: u32 = 30;

    let Some(url) = broker_or_skip(Kind::Nats) else {
        return;
    };
    let service = unique("later");
    let pattern: &'static str = format!("{service}.happened").leak();
    let seen = Record::new();
    let router = Router::new().event_with(pattern, Guarantee::AtLeastOnce, noting(seen));
    let server = start(&url, &service, router).await;
    let nats = async_nats::connect(&url).await.unwrap();
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("nestling", "99");
    let subject = format!("_nestling.ev.{pattern}");
    let stored = nats.request_with_headers(subject, headers, "x".into());
    stored.await.unwrap();
    let client = Client::connect(durable(&url)).await.unwrap();
    for n in 0..OTHERS {
        client.emit_at(pattern, &n).await.unwrap();
        seen.at_least(n as usize + 1).await;
    }
    let consumer = format!("{service}={service}_2Ehappened");
    let subject = format!("$JS.API.CONSUMER.INFO.nestling-events.{consumer}");
    let answer = nats.request(subject, Bytes::new()).await.unwrap();
    let info: Value = serde_json::from_slice(&answer.payload).unwrap();
    let delivered = info["delivered"]["consumer_seq"].as_u64().unwrap();
    // A slow machine may see it come back once or twice meanwhile.
    assert!(delivered <= u64::from(OTHERS) + 3, "{info}");
    server.shutdown().await;
}

/// A replica says of what it works on that it does, for longer than the broker would wait without.
#[tokio::test]
async fn a_handler_that_takes_long_keeps_its_event() {
    let Some(url) = broker_or_skip(Kind::Nats) else {
        return;
    };
    let service = unique("long");
    let pattern: &'static str = format!("{service}.happened").leak();
    let (begun, done) = (Record::new(), Record::new());
    let work = move |Payload(n): Payload<u32>| async move {
        begun.push(n);
        // Longer than the broker's patience of ten seconds.
        tokio::time::sleep(Duration::from_secs(14)).await;
        done.push(n);
        Ok::<_, RpcError>(())
    };
    let router = Router::new().event_with(pattern, Guarantee::AtLeastOnce, work);
    let one = start(&url, &service, router.clone()).await;
    let two = start(&url, &service, router).await;
    let client = Client::connect(durable(&url)).await.unwrap();
    client.emit_at(pattern, &1).await.unwrap();
    done.at_least(1).await;
    assert_eq!(begun.count(), 1);
    one.shutdown().await;
    two.shutdown().await;
}

/// A service that is new does not get what others have still to do.
#[tokio::test]
async fn a_service_begins_with_what_is_published_after_its_first_start() {
    let Some(url) = broker_or_skip(Kind::Nats) else {
        return;
    };
    let (old, new) = (unique("old"), unique("new"));
    let pattern: &'static str = format!("{old}.happened").leak();
    let (seen, unseen) = (Record::new(), Record::new());
    let router = |seen| Router::new().event_with(pattern, Guarantee::AtLeastOnce, noting(seen));
    start(&url, &old, router(unseen)).await.shutdown().await;
    let client = Client::connect(durable(&url)).await.unwrap();
    client.emit_at(pattern, &1).await.unwrap();
    let server = start(&url, &new, router(seen)).await;
    client.emit_at(pattern, &2).await.unwrap();
    seen.at_least(1).await;
    server.shutdown().await;
    let again = start(&url, &old, router(unseen)).await;
    unseen.at_least(2).await;
    assert_eq!(seen.all(), [2]);
    again.shutdown().await;
}
