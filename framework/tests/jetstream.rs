//! What is JetStream's own: what the streams keep, and how long.

#![cfg(feature = "nats")]
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test may fail, and its tasks end with it"
)]

use std::time::Duration;

use bytes::Bytes;
use nestling::{
    Client, Context, Endpoint, Guarantee, Router, RpcError, Running, Server, transport::DeadLetter,
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

/// Bytes are bytes, a service's name is any text, and there may be many.
#[tokio::test]
async fn many_dead_letters_of_an_odd_service_are_paged() {
    const MANY: u32 = 1500;

    let Some(url) = broker_or_skip(Kind::Nats) else {
        return;
    };
    let pattern: &'static str = unique("odd").leak();
    let service = format!("{pattern}.ü/*{{}}>");
    let refuse = || async { Err::<(), _>(RpcError::invalid_argument("no")) };
    let router = Router::new().event_with(pattern, Guarantee::AtLeastOnce, refuse);
    let _server = start(&url, &service, router).await;
    let client = Client::connect(durable(&url)).await.unwrap();
    for n in 0..MANY {
        let [high, low] = (n as u16).to_be_bytes();
        let payload = Bytes::from(vec![0, 0xff, b'\n', high, low]);
        client.emit_at(pattern, &()).payload(payload).await.unwrap();
    }
    let dead = Endpoint::from(durable(&url)).dead_letters().await.unwrap();
    let all = eventually("all dead letters", async || {
        let all = dead.list(&service, None, 5000).await.unwrap();
        (all.len() == MANY as usize).then_some(all)
    })
    .await;
    let page = dead.list(&service, Some(&all[699].0), 10).await.unwrap();
    let ids = |page: &[(String, _)]| page.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&page), ids(&all[700..710]));
    let mut payloads: Vec<_> = all
        .iter()
        .map(|(_, letter)| letter.rejection.envelope.payload.to_vec())
        .collect();
    payloads.sort_unstable();
    payloads.dedup();
    assert_eq!(payloads.len(), MANY as usize);
    assert!(
        payloads
            .iter()
            .all(|payload| payload.starts_with(&[0, 0xff, b'\n']))
    );
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

/// The connection breaks between storing a dead letter and acknowledging its event: the event comes
/// again, and is one dead letter all the same.
#[tokio::test]
async fn a_dead_letter_whose_event_is_not_acknowledged_in_time_is_one() {
    if broker_or_skip(Kind::Nats).is_none() {
        return;
    }
    let broker = Broker::start(Kind::Nats, Options::default()).unwrap();
    let url = broker.url();
    let (way, connections) = way(broker.port(), "+TERM").await;
    let seen = Record::new();
    let refuse = move || async move {
        seen.push(());
        Err::<(), _>(RpcError::invalid_argument("never"))
    };
    let router = Router::new().event_with("a.b", Guarantee::AtLeastOnce, refuse);
    let server = start(&way, "one", router).await;
    let client = Client::connect(durable(&url)).await.unwrap();
    client.emit_at("a.b", &1).await.unwrap();
    let nats = async_nats::connect(&url).await.unwrap();
    connections.at_least(2).await;
    assert_eq!(kept(&nats, "nestling-dead-letters").await, 1);
    assert_eq!(kept(&nats, "nestling-events").await, 1);
    seen.at_least(2).await;
    eventually("the event to be settled", async || {
        (kept(&nats, "nestling-events").await == 0).then_some(())
    })
    .await;
    assert_eq!(kept(&nats, "nestling-dead-letters").await, 1);
    assert_eq!(seen.count(), 2);
    server.shutdown().await;
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

/// What just fitted on its way here fits into no one message with a reason beside it.
#[tokio::test]
async fn an_event_as_large_as_they_come_is_kept_when_it_is_given_up() {
    let Some(url) = broker_or_skip(Kind::Nats) else {
        return;
    };
    let service = unique("large");
    let pattern: &'static str = format!("{service}.happened").leak();
    let refuse = || async { Err::<(), _>(RpcError::invalid_argument("no".repeat(5000))) };
    let seen = Record::new();
    let other = move |cx: Context| async move {
        seen.push(cx.header("n").map(str::to_owned));
        Ok::<_, RpcError>(())
    };
    let next: &'static str = format!("{service}.next").leak();
    let router = Router::new()
        .event_with(pattern, Guarantee::AtLeastOnce, refuse)
        .event_with(next, Guarantee::AtLeastOnce, other);
    let server = start(&url, &service, router).await;
    let client = Client::connect(durable(&url)).await.unwrap();
    let dead = Endpoint::from(durable(&url)).dead_letters().await.unwrap();
    // A large payload, and large headers, of which a stream takes 64 KiB.
    let mut expected = Vec::new();
    for (payload, header) in [(1_032_000, 16_000), (100, 65_300)] {
        let (payload, header) = (vec![0xff; payload], "h".repeat(header));
        let event = client.emit_at(pattern, &()).payload(payload.clone());
        event.header("large", &*header).await.unwrap();
        expected.push((payload, header));
    }
    let letters = eventually("both", async || {
        let letters = dead.list(&service, None, 10).await.unwrap();
        (letters.len() == 2).then_some(letters)
    })
    .await;
    for (payload, header) in expected {
        let is_it = |(_, letter): &&(String, DeadLetter)| {
            letter.rejection.envelope.payload.len() == payload.len()
        };
        let (id, letter) = letters.iter().find(is_it).unwrap();
        let envelope = &letter.rejection.envelope;
        assert_eq!(envelope.payload, payload);
        assert_eq!(envelope.headers.get("large"), Some(&*header));
        assert_eq!(&*envelope.pattern, pattern);
        assert!(letter.rejection.reason.contains("nono"));
        assert!(envelope.headers.get("dead-event").is_none());
        assert!(dead.discard(&service, id).await.unwrap());
        assert!(!dead.discard(&service, id).await.unwrap());
    }
    assert!(dead.list(&service, None, 10).await.unwrap().is_empty());
    // Nothing is left of them, nor in the way of others.
    let nats = async_nats::connect(&url).await.unwrap();
    let subjects = subjects(&nats, &service).await;
    assert!(subjects.is_empty(), "{subjects:?}");
    client.emit_at(next, &1).header("n", "1").await.unwrap();
    seen.at_least(1).await;
    server.shutdown().await;
}

/// The subjects that have dead letters of a service.
async fn subjects(nats: &async_nats::Client, service: &str) -> Vec<String> {
    let body = r#"{"subjects_filter":"_nestling.dead.>"}"#;
    let subject = "$JS.API.STREAM.INFO.nestling-dead-letters";
    let answer = nats.request(subject, body.into()).await.unwrap();
    let info: Value = serde_json::from_slice(&answer.payload).unwrap();
    let subjects = info["state"]["subjects"].as_object();
    let names = subjects.into_iter().flat_map(|subjects| subjects.keys());
    names
        .filter(|name| name.contains(service))
        .cloned()
        .collect()
}
