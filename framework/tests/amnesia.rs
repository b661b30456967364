//! A broker that comes back without its data: services make again what they need there, and go on.

#![cfg(all(feature = "nats", feature = "redis", feature = "kafka"))]
#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

use std::time::Duration;

use nestling::{Client, Guarantee, Payload, Router, RpcError, Server};
use nestling_testkit::{
    Broker, Kind, Options, broker_or_skip,
    suite::witness::{Record, eventually, within},
    unique,
};

/// A call or an event may meet the broker while it is not itself yet.
const IMPATIENCE: Duration = Duration::from_secs(2);

async fn service_goes_on(kind: Kind, options: &str) {
    if broker_or_skip(kind).is_none() {
        return;
    }
    // Another test may have been first.
    let log = tracing_subscriber::fmt()
        .with_test_writer()
        .with_ansi(false);
    log.with_max_level(tracing::Level::INFO)
        .try_init()
        .unwrap_or_default();
    let mut broker = Broker::start(kind, Options::default()).unwrap();
    let url = format!("{}?{options}", broker.url());
    let name = unique("amnesia");
    let pattern = |what: &str| -> &'static str { format!("{name}.{what}").leak() };
    let (ask, once, happened, refused) = (
        pattern("ask"),
        pattern("once"),
        pattern("happened"),
        pattern("refused"),
    );
    let events = Record::new();
    let react = move |Payload(n): Payload<u64>| async move {
        events.push(n);
        Ok::<_, RpcError>(())
    };
    let refuse = || async { Err::<(), _>(RpcError::invalid_argument("never")) };
    let echo = |Payload(n): Payload<u64>| async move { Ok::<_, RpcError>(n) };
    let router = Router::new()
        .message_with(ask, true, echo)
        .message_at(once, echo)
        .event_with(happened, Guarantee::AtLeastOnce, react)
        .event_with(refused, Guarantee::AtLeastOnce, refuse);
    let server = Server::new(&*name, router).listen(&*url);
    let server = within("a start", server.start()).await.unwrap();
    let client = Client::connect(&*url).await.unwrap();
    assert_eq!(client.send_at::<u64>(ask, &1).await, Ok(1));
    assert_eq!(client.send_at::<u64>(once, &1).await, Ok(1));
    client.emit_at(happened, &1).await.unwrap();
    events.at_least(1).await;

    broker.wipe().unwrap();
    let restarted = tokio::task::spawn_blocking(move || broker.restart().map(|()| broker));
    let _broker = restarted.await.unwrap().unwrap();
    for pattern in [ask, once] {
        eventually("an answer", async || {
            let call = client.send_at::<u64>(pattern, &2).timeout(IMPATIENCE);
            call.await.ok()
        })
        .await;
    }
    // What is published while the service's place is not made again yet may be for nobody.
    eventually("an event", async || {
        let emitted = client.emit_at(happened, &2).timeout(IMPATIENCE).await;
        (emitted.is_ok() && events.all().contains(&2)).then_some(())
    })
    .await;
    let dead = nestling::Endpoint::from(&*url);
    let dead = within("dead letters", dead.dead_letters()).await.unwrap();
    eventually("a dead letter", async || {
        let emitted = client.emit_at(refused, &3).timeout(IMPATIENCE).await;
        let letters = dead.list(&name, None, 10).await.unwrap_or_default();
        (emitted.is_ok() && !letters.is_empty()).then_some(())
    })
    .await;
    // Nothing waits any more for something to be made: each event comes once.
    let before = events.count();
    for n in 10..20 {
        client.emit_at(happened, &n).await.unwrap();
    }
    let mut all = events.at_least(before + 10).await.split_off(before);
    all.retain(|n| *n >= 10);
    all.sort_unstable();
    assert_eq!(all, (10..20).collect::<Vec<_>>());
    within("a stop", server.shutdown()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_goes_on_when_redis_has_lost_everything() {
    service_goes_on(Kind::Redis, "claim_idle=500").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_goes_on_when_jetstream_has_lost_everything() {
    service_goes_on(Kind::Nats, "events=jetstream").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_goes_on_when_kafka_has_lost_everything() {
    service_goes_on(Kind::Kafka, "").await;
}
