//! Both wires on one subject: who gets what, once, and within which limits.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt, stream};
use nestling::{
    Client, Code, Context, Payload, Router, RpcError, Running, Server, Streaming,
    transport::ErrorKind,
};
use nestling_testkit::{Kind, broker_or_skip, unique};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    captured::handlers::echo,
    peer::{Peer, SOON},
    start,
};

macro_rules! nats {
    () => {
        match broker_or_skip(Kind::Nats) {
            Some(url) => url,
            None => return,
        }
    };
}

async fn clients(url: &str) -> [Client; 2] {
    let client = |wire| Client::connect(format!("{url}?wire={wire}"));
    [
        client("native").await.unwrap(),
        client("nest").await.unwrap(),
    ]
}

async fn stop(servers: impl IntoIterator<Item = Running>) {
    for server in servers {
        server.shutdown().await;
    }
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
async fn a_pattern_of_both_kinds_gets_every_packet_once() {
    let url = nats!();
    let pattern = unique("both");
    let (heard, mut hearing) = mpsc::unbounded_channel();
    let router = Router::new()
        .message_at(pattern.clone(), tell(&heard, "message"))
        .event_at(pattern.clone(), tell(&heard, "event"));
    let server = start(&url, "both", router).await;
    for client in clients(&url).await {
        for _ in 0..20 {
            let reply = client.send_at::<String>(pattern.clone(), &()).timeout(SOON);
            assert_eq!(reply.await.as_deref(), Ok("message"));
            assert_eq!(hearing.recv().await, Some("message"));
            client.emit_at(pattern.clone(), &()).await.unwrap();
            let told = timeout(SOON, hearing.recv()).await;
            assert_eq!(told.expect("the event is lost"), Some("event"));
        }
    }
    assert!(hearing.is_empty());
    server.shutdown().await;
}

#[tokio::test]
async fn overlapping_patterns_each_get_what_fits_them() {
    let url = nats!();
    let base = unique("overlap");
    let (heard, mut hearing) = mpsc::unbounded_channel();
    let (one, all) = (format!("{base}.a.b"), format!("{base}.>"));
    let router = Router::new()
        .message_at(one.clone(), tell(&heard, "exact"))
        .message_at(format!("{base}.a.*"), tell(&heard, "star"))
        .event_at(all, tell(&heard, "rest"));
    // Of two replicas each packet gets to one.
    let replicas = [
        start(&url, &base, router.clone()).await,
        start(&url, &base, router).await,
    ];
    let mut peer = Peer::connect(&url).await;
    for n in 0..10 {
        let inbox = format!("_INBOX.{base}.{n}");
        peer.subscribe(&inbox).await;
        peer.publish(&one, Some(&inbox), r#"{"data":1,"id":1}"#)
            .await;
        let mut answers = HashSet::new();
        for _ in 0..3 {
            assert!(answers.insert(peer.frame().await.payload().to_owned()));
        }
        let expected = [
            r#"{"response":"exact","isDisposed":true,"id":1}"#,
            r#"{"response":"star","isDisposed":true,"id":1}"#,
            r#"{"isDisposed":true,"id":1}"#,
        ];
        assert_eq!(answers, expected.map(str::to_owned).into());
        let mut told = Vec::new();
        for _ in 0..3 {
            told.push(hearing.recv().await.unwrap());
        }
        told.sort_unstable();
        assert_eq!(told, ["exact", "rest", "star"]);
    }
    // An event handler of a native message is another service's business to answer for.
    for client in clients(&url).await.iter().take(1) {
        for _ in 0..20 {
            let reply = client.send_at::<String>(one.clone(), &()).timeout(SOON);
            let reply = reply.await.unwrap();
            assert!(["exact", "star"].contains(&&*reply), "{reply}");
        }
    }
    assert_eq!(peer.frames().await, []);
    stop(replicas).await;
}

#[tokio::test]
async fn every_service_sees_an_event_once_and_its_replicas_share() {
    const EVENTS: usize = 30;
    let url = nats!();
    let pattern = unique("news");
    let (heard, mut hearing) = mpsc::unbounded_channel();
    let mut servers = Vec::new();
    for service in ["one", "two"] {
        let name = unique(service);
        for replica in 0..2 {
            let heard = heard.clone();
            let note = move |Payload(n): Payload<usize>| {
                let told = heard.send((service, replica, n));
                async move { told.map_err(RpcError::internal) }
            };
            let router = Router::new().event_at(pattern.clone(), note);
            servers.push(start(&url, &name, router).await);
        }
    }
    let mut peer = Peer::connect(&url).await;
    for n in 0..EVENTS {
        let packet = json!({ "pattern": "any", "data": n }).to_string();
        peer.publish(&pattern, None, &packet).await;
    }
    let (mut seen, mut replicas) = (HashSet::new(), HashSet::new());
    for _ in 0..2 * EVENTS {
        let (service, replica, n) = timeout(SOON, hearing.recv()).await.unwrap().unwrap();
        assert!(seen.insert((service, n)), "{service} saw {n} twice");
        replicas.insert((service, replica));
    }
    assert_eq!(replicas.len(), 4, "not every replica takes part");
    stop(servers).await;
    assert!(hearing.try_recv().is_err());
}

#[tokio::test]
async fn only_the_id_decides_and_not_the_reply_subject() {
    let url = nats!();
    let (message, event) = (unique("message"), unique("event"));
    let (heard, mut hearing) = mpsc::unbounded_channel();
    let note = move |Payload(data): Payload<Value>| {
        let told = heard.send(data.clone()).map_err(RpcError::internal);
        async move { told.map(|()| data) }
    };
    let router = Router::new()
        .message_at(message.clone(), note.clone())
        .event_at(event.clone(), note);
    let server = start(&url, "ids", router).await;
    let mut peer = Peer::connect(&url).await;
    let inbox = unique("_INBOX.ids");
    peer.subscribe(&inbox).await;
    for (subject, reply, packet, data) in [
        (&message, None, r#"{"data":1,"id":7}"#, json!(1)),
        (&message, Some(&*inbox), r#"{"data":2}"#, json!(2)),
        (&message, Some(&*inbox), r#"{"id":7}"#, json!({ "id": 7 })),
        (&message, Some(&*inbox), "[3]", json!([3])),
        (&event, None, r#"{"data":4,"id":null}"#, json!(4)),
        (&event, Some(&*inbox), r#"{"pattern":0}"#, Value::Null),
    ] {
        peer.publish(subject, reply, packet).await;
        let told = timeout(SOON, hearing.recv()).await;
        assert_eq!(told.expect(packet), Some(data), "{packet}");
    }
    peer.publish(&event, Some(&inbox), r#"{"data":5,"id":[null]}"#)
        .await;
    let frame = peer.frame().await;
    assert_eq!(frame.payload(), r#"{"isDisposed":true,"id":[null]}"#);
    assert_eq!(peer.frames().await, []);
    server.shutdown().await;
}

#[tokio::test]
async fn headers_and_metadata_reach_the_handler_with_the_deadline() {
    let url = nats!();
    let pattern = unique("headers");
    let show = |cx: Context| async move {
        let names = ["x-one", "x-two", "x-many", "deadline", "content-type"];
        let values = names.map(|name| cx.header(name).map(str::to_owned));
        let left = cx
            .deadline()
            .map(|at| at - tokio::time::Instant::now())
            .map(|left| left > Duration::from_secs(50) && left <= Duration::from_secs(60));
        Ok::<_, RpcError>((values, left))
    };
    let server = start(
        &url,
        "headers",
        Router::new().message_at(pattern.clone(), show),
    )
    .await;
    let mut peer = Peer::connect(&url).await;
    let inbox = unique("_INBOX.headers");
    peer.subscribe(&inbox).await;
    let headers =
        "X-One: header\r\nx-many: a\r\nx-many: b\r\ndeadline: 60000\r\ncontent-type: x\r\n";
    let packet = r#"{"data":1,"metadata":{"x-one":"metadata","X-Two":"metadata"},"id":1}"#;
    peer.publish_with_headers(&pattern, Some(&inbox), headers, packet)
        .await;
    let expected = json!([["header", "metadata", "a, b", null, null], true]);
    let expected = format!(r#"{{"response":{expected},"isDisposed":true,"id":1}}"#);
    assert_eq!(peer.frame().await.payload(), expected);

    peer.publish_with_headers(&pattern, Some(&inbox), "deadline: 0\r\n", packet)
        .await;
    let late = peer.frame().await;
    assert!(late.payload().contains("DEADLINE_EXCEEDED"), "{late:?}");
    server.shutdown().await;
}

#[tokio::test]
async fn a_server_that_only_speaks_native_ignores_the_rest() {
    let url = nats!();
    let pattern = unique("native");
    let (heard, mut hearing) = mpsc::unbounded_channel();
    let router = Router::new().message_at(pattern.clone(), tell(&heard, "native"));
    let server = start(&format!("{url}?wire=native"), "native", router).await;
    let mut peer = Peer::connect(&url).await;
    let control = format!("_nestling.ctl.{pattern}");
    for junk in ["", "\u{fffd}\0", r#"{"pattern":"a","data":1,"id":"x"}"#] {
        peer.publish(&pattern, Some("nowhere"), junk).await;
        peer.publish(&control, Some("nowhere"), junk).await;
    }
    peer.round_trip().await;
    let [native, nest] = clients(&url).await;
    let short = Duration::from_millis(200);
    let error = nest.send_at::<String>(pattern.clone(), &()).timeout(short);
    assert_eq!(error.await.unwrap_err().code, Code::DeadlineExceeded);
    assert!(hearing.try_recv().is_err());
    let reply = native.send_at::<String>(pattern, &()).timeout(SOON);
    assert_eq!(reply.await.as_deref(), Ok("native"));
    server.shutdown().await;
}

/// It is from a later nestling, and certainly not from NestJS.
#[tokio::test]
async fn a_version_that_nobody_knows_runs_nothing() {
    let url = nats!();
    let pattern = unique("later");
    let (heard, mut hearing) = mpsc::unbounded_channel();
    let router = Router::new()
        .message_at(pattern.clone(), tell(&heard, "message"))
        .event_at(pattern.clone(), tell(&heard, "event"));
    let server = start(&url, "later", router).await;
    let mut peer = Peer::connect(&url).await;
    let inbox = unique("_INBOX.later");
    peer.subscribe(&inbox).await;
    for reply in [None, Some(&*inbox), Some("_nestling.re.x.1")] {
        let packet = r#"{"data":1,"id":1}"#;
        peer.publish_with_headers(&pattern, reply, "nestling: 2\r\n", packet)
            .await;
    }
    peer.publish(&pattern, Some(&inbox), r#"{"data":1,"id":2}"#)
        .await;
    let expected = r#"{"response":"message","isDisposed":true,"id":2}"#;
    assert_eq!(peer.frame().await.payload(), expected);
    assert_eq!(hearing.recv().await, Some("message"));
    assert!(hearing.is_empty());
    server.shutdown().await;
}

#[tokio::test]
async fn options_and_patterns_that_make_no_sense_are_refused_at_start() {
    let url = nats!();
    let refused = |url: String, pattern: &'static str| async move {
        let router = Router::new().message_at(pattern, echo);
        let error = Server::new("refused", router).listen(url).start().await;
        error.map(drop).unwrap_err().to_string()
    };
    let error = refused(format!("{url}?wire=nest"), "a.b").await;
    assert!(error.contains("only native"), "{error}");
    for pattern in [r#"{"cmd":"a b"}"#, "a b", "a..b", ""] {
        let error = refused(url.clone(), pattern).await;
        assert!(error.contains("has no white space"), "{pattern}: {error}");
    }
    for option in ["wire=morse", "wire=nest&mark=header"] {
        let error = Client::connect(format!("{url}?{option}")).await;
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Config, "{option}");
    }
}

#[tokio::test]
async fn what_is_too_large_to_answer_is_an_error_packet() {
    let url = nats!();
    let (blow, blow_many) = (unique("blow"), unique("blow-many"));
    let one =
        |Payload(length): Payload<usize>| async move { Ok::<_, RpcError>("x".repeat(length)) };
    let many = |Payload(length): Payload<usize>| async move {
        Streaming::of([1, length, 1].map(|length| "x".repeat(length)))
    };
    let router = Router::new()
        .message_at(blow.clone(), one)
        .message_at(blow_many.clone(), many);
    let server = start(&url, "large", router).await;
    let mut peer = Peer::connect(&url).await;
    let inbox = unique("_INBOX.large");
    peer.subscribe(&inbox).await;
    let id = format!("\"{}\"", "i".repeat(600_000));
    for (data, id) in [(1 << 20, "1"), (600_000, &*id)] {
        let packet = format!(r#"{{"data":{data},"id":{id}}}"#);
        peer.publish(&blow, Some(&inbox), &packet).await;
        let frame = peer.frame().await;
        let start: String = frame.payload().chars().take(200).collect();
        assert!(start.contains(r#""code":"RESOURCE_EXHAUSTED""#), "{start}");
        assert!(
            frame
                .payload()
                .ends_with(&format!(r#""isDisposed":true,"id":{id}}}"#))
        );
    }
    let packet = format!(r#"{{"data":{},"id":2}}"#, 1 << 20);
    peer.publish(&blow_many, Some(&inbox), &packet).await;
    assert_eq!(peer.frame().await.payload(), r#"{"response":"x","id":2}"#);
    assert!(peer.frame().await.payload().contains("RESOURCE_EXHAUSTED"));
    peer.publish(&blow, Some(&inbox), r#"{"data":1,"id":3}"#)
        .await;
    assert!(
        peer.frame()
            .await
            .payload()
            .starts_with(r#"{"response":"x""#)
    );
    server.shutdown().await;
}

#[tokio::test]
async fn more_packets_than_a_service_can_hold_are_refused_not_lost() {
    const SENT: usize = 20_000;
    /// What waits, and what the server takes at once.
    const TAKEN: usize = 16 * 1024 + 64;
    let url = nats!();
    let busy = unique("busy");
    let gate = Arc::new(Semaphore::new(0));
    let waited = Arc::clone(&gate);
    let wait = move || {
        let gate = Arc::clone(&waited);
        async move { gate.acquire().await.map(drop).map_err(RpcError::internal) }
    };
    let router = Router::new().message_at(busy.clone(), wait);
    let server = Server::new("busy", router).max_in_flight(1).listen(&*url);
    let server = server.start().await.unwrap();
    let mut peer = Peer::connect(&url).await;
    let inbox = unique("_INBOX.busy");
    peer.subscribe(&inbox).await;
    let mut requests = String::new();
    for id in 10_000..10_000 + SENT {
        let packet = format!(r#"{{"data":1,"id":{id}}}"#);
        requests += &format!("PUB {busy} {inbox} {}\r\n{packet}\r\n", packet.len());
    }
    peer.write(requests.as_bytes()).await;
    for _ in 0..SENT - TAKEN {
        let frame = peer.frame().await;
        assert!(frame.payload().contains("RESOURCE_EXHAUSTED"), "{frame:?}");
    }
    gate.add_permits(1);
    for _ in 0..TAKEN {
        peer.frame().await;
    }
    server.shutdown().await;
}

/// Forwards to the broker, and stops to take from the server while told so.
struct Valve {
    url: String,
    shut: Arc<AtomicBool>,
    _forwarding: JoinSet<()>,
}

impl Valve {
    async fn before(url: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = format!("nats://{}", listener.local_addr().unwrap());
        let broker = url.strip_prefix("nats://").unwrap().to_owned();
        let shut = Arc::new(AtomicBool::new(false));
        let closed = Arc::clone(&shut);
        let mut forwarding = JoinSet::new();
        forwarding.spawn(async move {
            let (mut server, _) = listener.accept().await.unwrap();
            let mut broker = TcpStream::connect(broker).await.unwrap();
            let (mut from_server, mut to_server) = server.split();
            let (mut from_broker, mut to_broker) = broker.split();
            let back = tokio::io::copy(&mut from_broker, &mut to_server);
            let there = async {
                let mut buffer = [0; 16 * 1024];
                loop {
                    while closed.load(Ordering::SeqCst) {
                        sleep(Duration::from_millis(5)).await;
                    }
                    let read = from_server.read(&mut buffer).await.unwrap_or_default();
                    if read == 0 {
                        return;
                    }
                    to_broker.write_all(&buffer[..read]).await.unwrap();
                }
            };
            tokio::select! {
                () = there => {}
                ended = back => drop(ended),
            }
        });
        Self {
            url: own,
            shut,
            _forwarding: forwarding,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_takes_nothing_slows_a_stream() {
    let url = nats!();
    let endless = unique("endless");
    let made: &'static AtomicU64 = Box::leak(Box::default());
    let produce = move || async move {
        let text = "x".repeat(1000);
        Streaming::new(stream::iter(0_u64..).map(move |_| {
            made.fetch_add(1, Ordering::SeqCst);
            Ok(text.clone())
        }))
    };
    let valve = Valve::before(&url).await;
    let router = Router::new().message_at(endless.clone(), produce);
    let server = start(&valve.url, "endless", router).await;
    let client = Client::connect(format!("{url}?wire=nest")).await.unwrap();
    let call = client.stream_at::<String>(endless, &()).timeout(SOON);
    let mut values = call.await.unwrap();
    assert!(values.try_next().await.unwrap().is_some());
    valve.shut.store(true, Ordering::SeqCst);
    let mut before = made.load(Ordering::SeqCst);
    let stands = async {
        loop {
            sleep(Duration::from_millis(300)).await;
            let now = made.load(Ordering::SeqCst);
            if now == before {
                return;
            }
            before = now;
        }
    };
    timeout(SOON, stands)
        .await
        .expect("nothing slows the stream");
    valve.shut.store(false, Ordering::SeqCst);
    let goes_on = async {
        while made.load(Ordering::SeqCst) <= before + 1000 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, goes_on)
        .await
        .expect("the stream stands still");
    drop((values, server));
}

/// Says so when it is dropped.
struct Ended(mpsc::UnboundedSender<()>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.send(()).ok();
    }
}

/// It cannot be taken up again, and nothing else would end it: there is no credit on this wire.
#[tokio::test]
async fn a_stream_ends_with_a_connection_that_broke_down() {
    let url = nats!();
    let (endless, other) = (unique("endless"), unique("other"));
    let (ended, mut ends) = mpsc::unbounded_channel();
    let produce = move || {
        let held = Ended(ended.clone());
        async move {
            Streaming::new(stream::iter(0_u64..).then(move |n| {
                let _held = &held;
                async move {
                    sleep(Duration::from_millis(1)).await;
                    Ok(n)
                }
            }))
        }
    };
    let router = Router::new()
        .message_at(endless.clone(), produce)
        .message_at(other.clone(), echo);
    let server = start(&url, "broken", router).await;
    let mut peer = Peer::connect(&url).await;
    let inbox = unique("_INBOX.broken");
    peer.subscribe(&inbox).await;
    peer.publish(&endless, Some(&inbox), r#"{"data":1,"id":1}"#)
        .await;
    assert_eq!(peer.frame().await.payload(), r#"{"response":0,"id":1}"#);
    // The client library panics on it.
    peer.publish_with_headers(&other, None, "x: a\rb\r\n", "1")
        .await;
    let [_, nest] = clients(&url).await;
    let back = async { while nest.send_at::<u64>(other.clone(), &7).await.is_err() {} };
    timeout(SOON, back).await.expect("the service is gone");
    let end = timeout(SOON, ends.recv()).await;
    assert_eq!(end.expect("the stream goes on"), Some(()));
    server.shutdown().await;
}
