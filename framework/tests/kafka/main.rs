//! What is Kafka's own: groups and positions, replies, keys, limits, drain, a broker that is killed.
//! What every transport does is in the conformance suite.

#![cfg(feature = "kafka")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod dead_letters;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{future::join_all, stream};
use nestling::{
    Client, Code, Context, Guarantee, Payload, Router, RpcError, Running, Server, Streaming, header,
};
use nestling_testkit::{Broker, Kind, Options, broker_or_skip, unique};
use rdkafka::{
    ClientConfig,
    consumer::{BaseConsumer, Consumer as _},
    message::{Header, Headers as _, Message as _, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer as _},
};
use tokio::{
    sync::{Semaphore, mpsc},
    time::{sleep, timeout},
};

const SOON: Duration = Duration::from_secs(20);

macro_rules! kafka {
    () => {
        match broker_or_skip(Kind::Kafka) {
            Some(url) => url,
            None => return,
        }
    };
}
use kafka;

/// A pattern of one test's own.
fn pattern(name: &str) -> &'static str {
    format!("{}.{name}", unique("t")).leak()
}

async fn start(url: &str, service: &str, router: Router) -> Running {
    Server::new(service, router)
        .listen(url)
        .start()
        .await
        .unwrap()
}

async fn start_as(url: &str, service: &str, instance: &str, router: Router) -> Running {
    Server::new(service, router)
        .instance(instance)
        .listen(url)
        .start()
        .await
        .unwrap()
}

async fn client(url: &str) -> Client {
    Client::connect(url).await.unwrap()
}

fn config(url: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", url.strip_prefix("kafka://").unwrap());
    config
}

fn send_raw(url: &str, topic: &str, key: &str, headers: &[(&str, &str)], payload: &[u8]) {
    let producer: BaseProducer = config(url).create().unwrap();
    let headers = headers
        .iter()
        .fold(OwnedHeaders::new(), |all, (key, value)| {
            all.insert(Header {
                key,
                value: Some(*value),
            })
        });
    let record = BaseRecord::to(topic)
        .key(key)
        .payload(payload)
        .headers(headers);
    producer.send(record).map_err(|(error, _)| error).unwrap();
    producer.flush(SOON).unwrap();
}

async fn double(Payload(n): Payload<u64>) -> Result<u64, RpcError> {
    n.checked_mul(2)
        .ok_or_else(|| RpcError::invalid_argument("too large"))
}

async fn count(Payload(n): Payload<u32>) -> Streaming<u32> {
    Streaming::new(stream::iter((0..n).map(Ok)))
}

/// Tells a channel what arrives.
fn telling(
    tell: &mpsc::UnboundedSender<u32>,
) -> impl Fn(Payload<u32>) -> std::future::Ready<Result<(), RpcError>> + Clone + Send + Sync + 'static
{
    let tell = tell.clone();
    move |Payload(n)| {
        tell.send(n).ok();
        std::future::ready(Ok(()))
    }
}

async fn next(told: &mut mpsc::UnboundedReceiver<u32>) -> u32 {
    timeout(SOON, told.recv()).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_streams_and_errors_are_answered() {
    let url = kafka!();
    let (one, many) = (pattern("one"), pattern("many"));
    let router = Router::new()
        .message_with(one, true, double)
        .message_at(many, count);
    let server = start(&url, &unique("basic"), router).await;
    let client = client(&url).await;
    assert_eq!(client.send_at::<u64>(one, &21).await.unwrap(), 42);
    let error = client.send_at::<u64>(one, &u64::MAX).await.unwrap_err();
    assert_eq!(error.code, Code::InvalidArgument);
    for length in [0, 1, 1000] {
        let mut values = client.stream_at::<u32>(many, &length).await.unwrap();
        let mut seen = 0;
        while let Some(value) = values.try_next().await.unwrap() {
            assert_eq!(value, seen);
            seen += 1;
        }
        assert_eq!(seen, length);
    }
    let calls = join_all((0..200_u64).map(|n| client.send_at::<u64>(one, &n).into_future()));
    for (n, reply) in calls.await.into_iter().enumerate() {
        assert_eq!(reply.unwrap(), 2 * n as u64);
    }
    server.shutdown().await;
    client.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pattern_that_nobody_ever_handled_fails_at_once() {
    let url = kafka!();
    let client = client(&url).await;
    client
        .send_at::<u64>(pattern("warm"), &1)
        .await
        .unwrap_err();
    let began = Instant::now();
    let error = client
        .send_at::<u64>(pattern("absent"), &1)
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::Unavailable);
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn large_payloads_pass_and_larger_ones_are_refused_by_the_sender() {
    let url = kafka!();
    let (echo, grow) = (pattern("echo"), pattern("grow"));
    let router = Router::new()
        .message_with(echo, true, async |Payload(text): Payload<String>| {
            Ok::<_, RpcError>(text)
        })
        .message_at(grow, async |Payload(n): Payload<usize>| {
            Ok::<_, RpcError>("x".repeat(n))
        });
    let server = start(&url, &unique("large"), router).await;
    let client = client(&url).await;
    let large = "x".repeat(900 << 10);
    assert_eq!(client.send_at::<String>(echo, &large).await.unwrap(), large);
    let limit = client.capabilities().max_payload;
    let edge = "x".repeat(limit - 2);
    assert_eq!(
        client.send_at::<String>(echo, &edge).await.unwrap().len(),
        edge.len()
    );
    let error = client
        .send_at::<String>(echo, &"x".repeat(limit - 1))
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::ResourceExhausted);
    let error = client.send_at::<String>(grow, &limit).await.unwrap_err();
    assert_eq!(error.code, Code::ResourceExhausted);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_native_hurts_nobody() {
    let url = kafka!();
    let one = pattern("one");
    let server = start(
        &url,
        &unique("foreign"),
        Router::new().message_with(one, true, double),
    )
    .await;
    send_raw(&url, one, "", &[], b"21");
    send_raw(
        &url,
        one,
        "",
        &[("kafka_correlationId", "1"), ("kafka_replyTopic", "x")],
        b"21",
    );
    send_raw(&url, one, "", &[("nestling", "2")], b"\xff\x00");
    let strange = [
        ("nestling", "1"),
        ("reply-to", "not a topic"),
        ("deadline", "soon"),
    ];
    send_raw(&url, one, "", &strange, b"21");
    let nowhere = [
        ("nestling", "1"),
        ("reply-to", one),
        ("reply-partition", "999"),
        ("correlation-id", "x"),
    ];
    send_raw(&url, one, "", &nowhere, b"21");
    let client = client(&url).await;
    for n in 0..20 {
        assert_eq!(client.send_at::<u64>(one, &n).await.unwrap(), 2 * n);
    }
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_client_can_speak_the_wire() {
    let url = kafka!();
    let one = pattern("one");
    let replies = pattern("replies");
    let server = start(&url, &unique("wire"), Router::new().message_at(one, double)).await;
    // A server is a way to have a topic made.
    let other = start(
        &url,
        &unique("other"),
        Router::new().message_at(replies, double),
    )
    .await;
    other.shutdown().await;
    let request = [
        ("nestling", "1"),
        ("reply-to", replies),
        ("reply-partition", "1"),
        ("correlation-id", "my own"),
        ("deadline", "9000"),
    ];
    send_raw(&url, one, "", &request, b"21");
    let consumer: BaseConsumer = config(&url)
        .set("group.id", unique("group"))
        .create()
        .unwrap();
    let mut list = rdkafka::TopicPartitionList::new();
    list.add_partition_offset(replies, 1, rdkafka::Offset::Beginning)
        .unwrap();
    consumer.assign(&list).unwrap();
    let message = consumer.poll(SOON).unwrap().unwrap();
    assert_eq!(message.payload(), Some(&b"42"[..]));
    let headers = message.headers().unwrap();
    let headers: Vec<_> = headers.iter().map(|h| (h.key, h.value.unwrap())).collect();
    let expected: [(&str, &[u8]); 3] = [
        ("nestling", b"1"),
        ("correlation-id", b"my own"),
        ("item", b"last"),
    ];
    assert_eq!(headers, expected);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_waited_beyond_its_deadline_is_not_handled() {
    let url = kafka!();
    let (service, tell) = (unique("late"), pattern("tell"));
    let (sender, mut told) = mpsc::unbounded_channel();
    let router = || Router::new().message_with(tell, true, telling(&sender));
    start(&url, &service, router()).await.shutdown().await;
    send_raw(
        &url,
        tell,
        "a",
        &[("nestling", "1"), ("deadline", "1")],
        b"1",
    );
    send_raw(
        &url,
        tell,
        "a",
        &[("nestling", "1"), ("deadline", "60000")],
        b"2",
    );
    sleep(Duration::from_millis(5)).await;
    let server = start(&url, &service, router()).await;
    assert_eq!(next(&mut told).await, 2);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_wait_for_a_stopped_service_and_each_service_sees_them() {
    let url = kafka!();
    let happened = pattern("happened");
    let (one, mut told_one) = mpsc::unbounded_channel();
    let (other, mut told_other) = mpsc::unbounded_channel();
    let (first, second) = (unique("first"), unique("second"));
    let router = |tell: &mpsc::UnboundedSender<u32>| {
        Router::new().event_with(happened, Guarantee::AtLeastOnce, telling(tell))
    };
    let client = client(&url).await;
    client.emit_at(happened, &1).await.unwrap();
    let a = start(&url, &first, router(&one)).await;
    let b = start(&url, &second, router(&other)).await;
    client.emit_at(happened, &2).await.unwrap();
    // What was before a service's first start is not its business.
    assert_eq!(next(&mut told_one).await, 2);
    assert_eq!(next(&mut told_other).await, 2);
    a.shutdown().await;
    client.emit_at(happened, &3).await.unwrap();
    assert_eq!(next(&mut told_other).await, 3);
    let a = start(&url, &first, router(&one)).await;
    assert_eq!(next(&mut told_one).await, 3);
    a.shutdown().await;
    b.shutdown().await;
    assert!(told_one.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_one_key_keep_their_order_and_carry_their_key() {
    let url = kafka!();
    let domain = unique("order");
    let patterns: [&'static str; 2] = [
        format!("{domain}.placed").leak(),
        format!("{domain}.paid").leak(),
    ];
    let (tell, mut told) = mpsc::unbounded_channel::<String>();
    let handler = move |Payload(n): Payload<u32>, cx: Context| {
        let tell = tell.clone();
        async move {
            sleep(Duration::from_millis(u64::from(9 - n % 10))).await;
            tell.send(format!("{} {n}", cx.header(header::KEY).unwrap_or("none")))
                .ok();
            Ok::<_, RpcError>(())
        }
    };
    let mut router = Router::new();
    for pattern in patterns {
        router = router.event_with(pattern, Guarantee::AtLeastOnce, handler.clone());
    }
    let server = start(&url, &unique("keys"), router).await;
    let client = client(&url).await;
    for n in 0..30 {
        let call = client
            .emit_at(patterns[n % 2], &n)
            .header(header::KEY, "ada");
        call.await.unwrap();
    }
    for n in 0..30 {
        assert_eq!(
            timeout(SOON, told.recv()).await.unwrap().unwrap(),
            format!("ada {n}")
        );
    }
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_can_have_a_topic_each() {
    let url = kafka!();
    let happened = pattern("happened");
    let (tell, mut told) = mpsc::unbounded_channel();
    let url = format!("{url}?topic=pattern&partitions=1");
    let router = Router::new().event_with(happened, Guarantee::AtLeastOnce, telling(&tell));
    let server = start(&url, &unique("topics"), router).await;
    client(&url).await.emit_at(happened, &7).await.unwrap();
    assert_eq!(next(&mut told).await, 7);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_share_the_work_and_a_leaving_one_hands_it_over() {
    let url = kafka!();
    let (service, tell) = (unique("shared"), pattern("tell"));
    let counts: [Arc<AtomicU32>; 2] = Default::default();
    let router = |count: &Arc<AtomicU32>| {
        let count = Arc::clone(count);
        Router::new().message_with(tell, true, move |Payload(_): Payload<u32>| {
            count.fetch_add(1, Ordering::SeqCst);
            async { Ok::<_, RpcError>(()) }
        })
    };
    let one = start(&url, &service, router(&counts[0])).await;
    let other = start(&url, &service, router(&counts[1])).await;
    let client = client(&url).await;
    let mut sent = 0;
    let began = Instant::now();
    while counts.iter().any(|count| count.load(Ordering::SeqCst) < 10) {
        assert!(began.elapsed() < SOON, "{counts:?}");
        client.send_at::<()>(tell, &sent).await.unwrap();
        sent += 1;
    }
    one.shutdown().await;
    let began = Instant::now();
    for _ in 0..20 {
        client.send_at::<()>(tell, &sent).await.unwrap();
        sent += 1;
    }
    println!("20 requests after a replica left: {:?}", began.elapsed());
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "the other has taken over"
    );
    let handled: u32 = counts
        .iter()
        .map(|count| count.load(Ordering::SeqCst))
        .sum();
    assert_eq!(handled, sent, "each once");
    other.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_repeats_events_and_idempotent_requests_only() {
    let url = kafka!();
    let service = unique("crash");
    let (again, once, happened) = (pattern("again"), pattern("once"), pattern("happened"));
    let (tell, mut told) = mpsc::unbounded_channel();
    let handler = |offset: u32, gate: &Arc<Semaphore>| {
        let (tell, gate) = (tell.clone(), Arc::clone(gate));
        move |Payload(n): Payload<u32>| {
            let (tell, gate) = (tell.clone(), Arc::clone(&gate));
            async move {
                tell.send(n + offset).ok();
                drop(gate.acquire().await);
                Ok::<_, RpcError>(n)
            }
        }
    };
    let done = |offset: u32, gate: &Arc<Semaphore>| {
        let handler = handler(offset, gate);
        move |n: Payload<u32>| {
            let work = handler(n);
            async move { work.await.map(drop) }
        }
    };
    let router = |gate: &Arc<Semaphore>| {
        Router::new()
            .message_with(again, true, handler(100, gate))
            .message_with(once, false, handler(200, gate))
            .event_with(happened, Guarantee::AtLeastOnce, done(300, gate))
    };
    let (shut, open) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(9)));
    let server = start_as(&url, &service, "a", router(&shut)).await;
    let client = Arc::new(client(&url).await);
    let call = |pattern: &'static str| {
        let client = Arc::clone(&client);
        async move { client.send_at::<u32>(pattern, &1).timeout(SOON).await }
    };
    let mut calls = tokio::task::JoinSet::new();
    calls.spawn(call(again));
    client.emit_at(happened, &1).await.unwrap();
    let mut first = vec![next(&mut told).await, next(&mut told).await];
    first.sort_unstable();
    assert_eq!(first, [101, 301]);
    let mut lost = tokio::task::JoinSet::new();
    lost.spawn(call(once));
    assert_eq!(next(&mut told).await, 201);
    drop(server);
    let began = Instant::now();
    let server = start_as(&url, &service, "a", router(&open)).await;
    let mut second = vec![next(&mut told).await, next(&mut told).await];
    println!("handled again after {:?}", began.elapsed());
    second.sort_unstable();
    assert_eq!(second, [101, 301]);
    assert_eq!(calls.join_next().await.unwrap().unwrap().unwrap(), 1);
    assert_eq!(
        lost.join_next().await.unwrap().unwrap().unwrap_err().code,
        Code::Unavailable,
        "torn down, not killed"
    );
    server.shutdown().await;
    assert!(told.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn shutting_down_answers_what_has_begun() {
    let url = kafka!();
    let slow = pattern("slow");
    let (tell, mut told) = mpsc::unbounded_channel();
    let handler = move |Payload(n): Payload<u32>| {
        tell.send(n).ok();
        async move {
            sleep(Duration::from_millis(500)).await;
            Ok::<_, RpcError>(n)
        }
    };
    let server = start(
        &url,
        &unique("drain"),
        Router::new().message_with(slow, true, handler),
    )
    .await;
    let client = client(&url).await;
    let calls = (0..10).map(|n| client.send_at::<u32>(slow, &n).into_future());
    let stop = async {
        for _ in 0..10 {
            next(&mut told).await;
        }
        let began = Instant::now();
        server.shutdown().await;
        println!("drained in {:?}", began.elapsed());
    };
    let (replies, ()) = tokio::join!(join_all(calls), stop);
    for (n, reply) in replies.into_iter().enumerate() {
        assert_eq!(reply.unwrap() as usize, n);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_killed_and_comes_back_loses_no_event() {
    let mut broker = match Broker::start(Kind::Kafka, Options::default()) {
        Ok(broker) => broker,
        Err(unavailable) => {
            assert_ne!(
                std::env::var("REQUIRE_BROKERS").as_deref(),
                Ok("1"),
                "{unavailable}"
            );
            return;
        }
    };
    let url = broker.url();
    let (one, happened) = (pattern("one"), pattern("happened"));
    let (tell, mut told) = mpsc::unbounded_channel();
    let router = Router::new().message_with(one, true, double).event_with(
        happened,
        Guarantee::AtLeastOnce,
        telling(&tell),
    );
    let server = start(&url, &unique("outage"), router).await;
    let client = client(&url).await;
    assert_eq!(client.send_at::<u64>(one, &1).await.unwrap(), 2);
    client.emit_at(happened, &1).await.unwrap();
    assert_eq!(next(&mut told).await, 1);
    broker.kill();
    let outage = client
        .send_at::<u64>(one, &1)
        .timeout(Duration::from_millis(200))
        .await;
    assert!(matches!(
        outage.unwrap_err().code,
        Code::DeadlineExceeded | Code::Unavailable
    ));
    let mut broker = tokio::task::spawn_blocking(move || broker.restart().map(|()| broker))
        .await
        .unwrap()
        .unwrap();
    let began = Instant::now();
    client.emit_at(happened, &2).timeout(SOON).await.unwrap();
    while next(&mut told).await != 2 {}
    println!("an event {:?} after the restart", began.elapsed());
    assert_eq!(
        client.send_at::<u64>(one, &2).timeout(SOON).await.unwrap(),
        4
    );
    println!("a request {:?} after the restart", began.elapsed());
    server.shutdown().await;
    broker.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_not_there_is_said_so_in_time() {
    let began = Instant::now();
    let error = Client::connect("kafka://127.0.0.1:1").await.unwrap_err();
    assert_eq!(error.kind(), nestling::transport::ErrorKind::Connect);
    assert!(
        began.elapsed() < Duration::from_secs(7),
        "{:?}",
        began.elapsed()
    );
}
