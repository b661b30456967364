//! What is JetStream's own: what the streams keep, and how long.

#![cfg(feature = "nats")]

use std::time::Duration;

use bytes::Bytes;
use nestling::{Client, Context, Endpoint, Guarantee, Router, RpcError, Running, Server};
use nestling_testkit::{
    Broker, Kind, Options, broker_or_skip,
    suite::witness::{Gate, Record, eventually},
    unique,
};
use serde_json::Value;

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
