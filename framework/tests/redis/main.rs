//! What is Redis's own: the wire as others see it, pending entries and who takes them over,
//! waiting time, absence, reconnecting. What every transport does is in the conformance suite.

#![cfg(feature = "redis")]
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test may fail, and its tasks end with it"
)]

/// The URL of a broker, with a prefix of the test's own; and a plain connection to it.
macro_rules! broker {
    ($options:expr) => {{
        let Some(url) = broker_or_skip(Kind::Redis) else {
            return;
        };
        let prefix = unique("test");
        let plain = plain(&url).await;
        (format!("{url}?prefix={prefix}{}", $options), prefix, plain)
    }};
}

mod dead;
mod pending;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use nestling::{
    Client, Code, Context, Guarantee, Message, Payload, Router, RpcError, Running, Server, Single,
    Streaming, transport::WINDOW,
};
use nestling_testkit::{Broker, Kind, Options, Proxy, broker_or_skip, or_skip, unique};
use redis::{AsyncCommands, Value, aio::MultiplexedConnection};
use serde::{Deserialize, Serialize};
use tokio::{sync::mpsc, time::timeout};

const SOON: Duration = Duration::from_secs(10);

async fn plain(url: &str) -> MultiplexedConnection {
    let client = redis::Client::open(url).unwrap();
    let config = redis::AsyncConnectionConfig::new().set_response_timeout(Some(SOON));
    client
        .get_multiplexed_async_connection_with_config(&config)
        .await
        .unwrap()
}

async fn start(url: &str, service: &str, router: Router) -> Running {
    Server::new(service, router)
        .listen(url)
        .start()
        .await
        .unwrap()
}

async fn double(Payload(n): Payload<u64>) -> Result<u64, RpcError> {
    n.checked_mul(2)
        .ok_or_else(|| RpcError::invalid_argument("too large"))
}

#[derive(Serialize, Deserialize)]
struct Work(u64);

impl Message for Work {
    const PATTERN: &'static str = "work.do";
    const IDEMPOTENT: bool = true;
    type Reply = u32;
    type Shape = Single;
}

#[derive(Serialize, Deserialize)]
struct Happened(u32);

impl nestling::Event for Happened {
    const PATTERN: &'static str = "thing.happened";
    const DELIVERY: Guarantee = Guarantee::AtLeastOnce;

    fn key(&self) -> Option<String> {
        Some("same".to_owned())
    }
}

/// Waits until `condition` holds.
async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let begun = Instant::now();
    while !condition().await {
        // Beside a build, three thousand of anything take a while.
        assert!(begun.elapsed() < 6 * SOON, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn pending_in(plain: &MultiplexedConnection, stream: &str, group: &str) -> usize {
    let mut plain = plain.clone();
    let reply: redis::streams::StreamPendingReply = plain.xpending(stream, group).await.unwrap();
    reply.count()
}

fn head(call: u64, reply: &str) -> Vec<u8> {
    let mut head = vec![1];
    head.extend(5000_u32.to_be_bytes());
    head.extend(7_u64.to_be_bytes());
    head.extend(call.to_be_bytes());
    for text in [reply, ""] {
        head.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
        head.extend(text.as_bytes());
    }
    head.extend(0_u32.to_be_bytes());
    head
}

#[tokio::test]
async fn a_plain_redis_client_can_speak_the_wire() {
    let (url, prefix, mut plain) = broker!("");
    let server = start(
        &url,
        "wire",
        Router::new().message_at("math.double", double),
    )
    .await;
    let (stream, list) = (
        format!("{prefix}:message:math.double"),
        format!("{prefix}:mine"),
    );
    let fields = [("h", head(9, &list)), ("p", b"21".to_vec())];
    let _: String = plain.xadd(&stream, "*", &fields).await.unwrap();
    let (_, reply): (String, Vec<u8>) = plain.blpop(&list, 5.0).await.unwrap();
    let mut expected = vec![2, 1, 0, 0, 0, 0];
    expected.extend(9_u64.to_be_bytes());
    expected.extend(b"42");
    assert_eq!(reply, expected);
    until("the entry is removed", async || {
        plain.clone().xlen::<_, usize>(&stream).await.unwrap() == 0
    })
    .await;
    server.shutdown().await;
}

#[tokio::test]
async fn what_is_not_native_is_dropped_and_hurts_nobody() {
    let (url, prefix, mut plain) = broker!("");
    let router = Router::new().message(|_: Work| async { Ok::<_, RpcError>(1) });
    let server = start(&url, "foreign", router).await;
    let stream = format!("{prefix}:message:work.do");
    for fields in [
        [("pattern", "x"), ("data", "y")],
        [("h", "\u{1}\u{7f}"), ("p", "{}")],
    ] {
        let _: String = plain.xadd(&stream, "*", &fields).await.unwrap();
    }
    let client = Client::connect(&*url).await.unwrap();
    assert_eq!(client.send(Work(1)).await.unwrap(), 1);
    until("all entries are removed", async || {
        plain.clone().xlen::<_, usize>(&stream).await.unwrap() == 0
    })
    .await;
    assert_eq!(pending_in(&plain, &stream, "foreign").await, 0);
    server.shutdown().await;
}

#[tokio::test]
async fn where_nobody_has_ever_subscribed_a_call_fails_at_once() {
    let (url, prefix, mut plain) = broker!("");
    let client = Client::connect(&*url).await.unwrap();
    let begun = Instant::now();
    let error = client.send(Work(1)).await.unwrap_err();
    assert_eq!(error.code, Code::Unavailable);
    assert!(begun.elapsed() < Duration::from_secs(1));
    client.emit(Happened(1)).await.unwrap();
    let keys: Vec<String> = plain.keys(format!("{prefix}:*")).await.unwrap();
    assert!(keys.is_empty(), "{keys:?}");
}

#[tokio::test]
async fn nothing_is_kept_for_a_temporary_service_that_has_stopped() {
    let (url, prefix, mut plain) = broker!("");
    let (heard, mut hearing) = mpsc::unbounded_channel();
    let router = move |name: &'static str| {
        let heard = heard.clone();
        Router::new()
            .message_at("math.double", double)
            .event(move |_: Happened| {
                let told = heard.send(name);
                async move { told.map_err(RpcError::internal) }
            })
    };
    let lasting = start(&url, "lasting", router("lasting")).await;
    let passing = Server::new("passing", router("passing")).temporary();
    let passing = passing.listen(&*url).start().await.unwrap();
    let client = Client::connect(&*url).await.unwrap();
    assert_eq!(client.send_at::<u64>("math.double", &1).await, Ok(2));
    client.emit(Happened(1)).await.unwrap();
    let mut heard = [hearing.recv().await, hearing.recv().await];
    heard.sort_unstable();
    assert_eq!(heard, [Some("lasting"), Some("passing")]);
    passing.shutdown().await;
    lasting.shutdown().await;
    for stream in ["message:math.double", "events:thing"] {
        let stream = format!("{prefix}:{stream}");
        let groups: redis::streams::StreamInfoGroupsReply =
            plain.xinfo_groups(&stream).await.unwrap();
        let names: Vec<_> = groups.groups.iter().map(|group| &*group.name).collect();
        assert_eq!(names, ["lasting"], "{stream}");
    }
}

/// So many numbers, and then an error; counts what it has made.
fn counting(made: Arc<AtomicU32>) -> Router {
    Router::new().message_at("numbers.count", move |Payload(n): Payload<u32>| {
        let made = Arc::clone(&made);
        async move {
            let count = stream::iter(0..n).map(move |n| {
                made.fetch_add(1, Ordering::SeqCst);
                Ok(n)
            });
            Streaming::new(count.chain(stream::once(async { Err(RpcError::aborted("enough")) })))
        }
    })
}

#[tokio::test]
async fn a_stream_arrives_whole_and_in_order() {
    let (url, _, _) = broker!("");
    let server = start(&url, "count", counting(Arc::default())).await;
    let client = Client::connect(&*url).await.unwrap();
    let mut numbers = client
        .stream_at::<u32>("numbers.count", &1000)
        .await
        .unwrap();
    for n in 0..1000 {
        assert_eq!(numbers.next().await.unwrap().unwrap(), n);
    }
    assert_eq!(
        numbers.next().await.unwrap().unwrap_err().code,
        Code::Aborted
    );
    assert!(numbers.next().await.is_none());
    server.shutdown().await;
}

#[tokio::test]
async fn a_stream_waits_for_its_reader_and_ends_with_it() {
    let (url, _, _) = broker!("");
    let made = Arc::new(AtomicU32::new(0));
    let server = start(&url, "count", counting(Arc::clone(&made))).await;
    let client = Client::connect(&*url).await.unwrap();
    let mut numbers = client
        .stream_at::<u32>("numbers.count", &1_000_000)
        .await
        .unwrap();
    numbers.next().await.unwrap().unwrap();
    until("the window is full", async || {
        made.load(Ordering::SeqCst) >= WINDOW
    })
    .await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(made.load(Ordering::SeqCst) <= WINDOW + 1);
    drop(numbers);
    // The handler ends, or this would wait for the drain timeout.
    let begun = Instant::now();
    server.shutdown().await;
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_dropped_call_reaches_its_handler() {
    struct Dropped(mpsc::UnboundedSender<()>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.send(()).ok();
        }
    }
    let (url, _, _) = broker!("");
    let (dropped, mut drops) = mpsc::unbounded_channel();
    let (started, mut starts) = mpsc::unbounded_channel();
    let router = Router::new().message(move |_: Work| {
        let (guard, started) = (Dropped(dropped.clone()), started.clone());
        async move {
            let _guard = guard;
            started.send(()).unwrap();
            std::future::pending::<Result<u32, RpcError>>().await
        }
    });
    let server = start(&url, "drop", router).await;
    let client = Client::connect(&*url).await.unwrap();
    let caller = client.clone();
    let call = tokio::spawn(async move { caller.send(Work(1)).await });
    timeout(SOON, starts.recv()).await.unwrap().unwrap();
    call.abort();
    timeout(Duration::from_secs(2), drops.recv())
        .await
        .unwrap()
        .unwrap();
    server.shutdown().await;
}

#[tokio::test]
async fn what_is_too_large_is_refused_and_hurts_nobody() {
    let (url, _, _) = broker!("&max_payload=100000");
    let router = Router::new()
        .message_at("text.make", |Payload(n): Payload<usize>| async move {
            Ok::<_, RpcError>("x".repeat(n))
        })
        .message_at("text.length", |Payload(text): Payload<String>| async move {
            Ok::<_, RpcError>(text.len())
        });
    let server = start(&url, "large", router).await;
    let client = Client::connect(&*url).await.unwrap();
    let error = client
        .send_at::<usize>("text.length", &"x".repeat(100_000))
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::ResourceExhausted);
    let error = client
        .send_at::<String>("text.make", &100_000)
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::ResourceExhausted);
    assert_eq!(
        client
            .send_at::<usize>("text.length", &"x".repeat(90_000))
            .await
            .unwrap(),
        90_000
    );
    assert_eq!(
        client
            .send_at::<String>("text.make", &90_000)
            .await
            .unwrap()
            .len(),
        90_000
    );
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_that_is_dead_is_noticed_before_it_is_needed() {
    let Some(broker) = or_skip(Broker::start(Kind::Redis, Options::default())) else {
        return;
    };
    let server = start(
        &broker.url(),
        "idle",
        Router::new().message_at("one", double),
    )
    .await;
    // On the native wire one connection writes and one reads.
    for (options, connections) in [("", 2), ("?wire=nest", 1)] {
        let link = Proxy::start().await.unwrap();
        link.forward_to(broker.port());
        let url = format!("redis://127.0.0.1:{}{options}", link.port());
        let client = Client::connect(&*url).await.unwrap();
        assert_eq!(client.send_at::<u64>("one", &21).await, Ok(42));
        let made = link.made();
        link.abandon();
        let noticed = link.has_made(made + connections);
        timeout(Duration::from_secs(90), noticed).await.unwrap();
        assert_eq!(client.send_at::<u64>("one", &21).await, Ok(42));
    }
    server.shutdown().await;
}
