//! What is NATS's own: the wire as others see it, absence, cancellation, credit, limits, drain.
//! What every transport does is in the conformance suite.

#![cfg(feature = "nats")]

mod limits;

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use async_nats::HeaderMap;
use futures_util::{StreamExt, future::join_all, stream};
use nestling::{
    Client, Code, Context, Guarantee, Message, Payload, Router, RpcError, Running, Server, Single,
    Streaming,
    transport::{self, WINDOW},
};
use nestling_testkit::{Broker, Kind, Options, Proxy, broker_or_skip, unique};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Semaphore, mpsc},
    time::{sleep, timeout},
};

const SOON: Duration = Duration::from_secs(10);

macro_rules! nats {
    () => {
        match broker_or_skip(Kind::Nats) {
            Some(url) => url,
            None => return,
        }
    };
}
use nats;

/// A pattern of one test's own.
fn pattern(name: &str) -> &'static str {
    unique(name).leak()
}

async fn start(url: &str, service: &str, router: Router) -> Running {
    Server::new(service, router)
        .listen(url)
        .start()
        .await
        .expect("the server starts")
}

async fn double(Payload(n): Payload<u64>) -> Result<u64, RpcError> {
    n.checked_mul(2)
        .ok_or_else(|| RpcError::invalid_argument("too large"))
}

/// So many numbers, and then an error.
async fn count(Payload(n): Payload<u32>) -> Streaming<u32> {
    let end = stream::once(async { Err(RpcError::aborted("enough")) });
    Streaming::new(stream::iter(0..n).map(Ok).chain(end))
}

fn native() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("nestling", "1");
    headers
}

/// Says so when it is dropped.
struct Dropped(mpsc::UnboundedSender<()>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.send(()).ok();
    }
}

#[tokio::test]
async fn a_plain_nats_client_can_speak_the_wire() {
    let url = nats!();
    let (one, many) = (pattern("one"), pattern("many"));
    let router = Router::new()
        .message_at(one, double)
        .message_at(many, count);
    let server = start(&url, "wire", router).await;
    let nats = async_nats::connect(&url).await.unwrap();

    let reply = nats
        .request_with_headers(one, native(), "21".into())
        .await
        .unwrap();
    assert_eq!((&*reply.payload, reply.headers), (&b"42"[..], None));

    let short = format!("_nestling.re.{}.1.5000", unique("me"));
    let mut replies = nats.subscribe(short.clone()).await.unwrap();
    nats.publish_with_reply(one, short, "4".into())
        .await
        .unwrap();
    let reply = timeout(SOON, replies.next()).await.unwrap().unwrap();
    assert_eq!((&*reply.payload, reply.headers), (&b"8"[..], None));

    let inbox = nats.new_inbox();
    let mut replies = nats.subscribe(inbox.clone()).await.unwrap();
    nats.publish_with_reply_and_headers(many, inbox, native(), "2".into())
        .await
        .unwrap();
    let mut seen = Vec::new();
    for _ in 0..3 {
        let reply = timeout(SOON, replies.next()).await.unwrap().unwrap();
        let mark = reply.headers.unwrap().get("nestling").unwrap().to_string();
        seen.push((mark, String::from_utf8(reply.payload.to_vec()).unwrap()));
    }
    let item = |mark: &str, text: &str| (mark.to_owned(), text.to_owned());
    let error = r#"{"code":"ABORTED","message":"enough"}"#;
    assert_eq!(
        seen,
        [item("value", "0"), item("value", "1"), item("fail", error)]
    );
    server.shutdown().await;
}

#[tokio::test]
async fn headers_and_the_remaining_time_arrive_whichever_way_a_request_is_marked() {
    let url = nats!();
    let tell = pattern("tell");
    let handler = |cx: Context| async move {
        let shown = |name| cx.header(name).unwrap_or("none").to_owned();
        let values = [
            shown("actor"),
            shown("x-own"),
            shown("nestling"),
            shown("deadline"),
        ];
        let remaining = cx
            .deadline()
            .map(|deadline| deadline - tokio::time::Instant::now());
        Ok::<_, RpcError>((values, remaining))
    };
    let server = start(&url, "headers", Router::new().message_at(tell, handler)).await;
    for mark in ["reply", "header"] {
        let client = Client::connect(format!("{url}?mark={mark}")).await.unwrap();
        let call = client.send_at::<([String; 4], Option<Duration>)>(tell, &());
        let call = call
            .header("actor", "ada")
            .header("X-Own", "ü")
            .timeout(SOON);
        let (values, remaining) = call.await.unwrap();
        assert_eq!(values, ["ada", "ü", "none", "none"]);
        let remaining = remaining.unwrap();
        assert!(remaining > SOON / 2 && remaining <= SOON, "{remaining:?}");
    }
    server.shutdown().await;
}

#[tokio::test]
async fn a_pattern_nobody_handles_fails_at_once() {
    let url = nats!();
    let client = Client::connect(&url).await.unwrap();
    let began = Instant::now();
    let error = client
        .send_at::<u64>("nobody.home", &1)
        .timeout(SOON)
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::Unavailable);
    assert_eq!(error.message, "no responders for nobody.home");
    let kind = transport::Error::behind(&error).map(transport::Error::kind);
    assert_eq!(kind, Some(transport::ErrorKind::NoResponders));
    let mut stream = client
        .stream_at::<u64>("nobody.home", &1)
        .timeout(SOON)
        .await
        .unwrap();
    assert_eq!(stream.try_next().await.unwrap_err().code, Code::Unavailable);
    assert!(began.elapsed() < SOON / 2);
}

#[derive(Serialize, Deserialize)]
struct Wait(u32);

impl Message for Wait {
    const PATTERN: &'static str = "nats-test.wait";
    const IDEMPOTENT: bool = true;
    type Reply = ();
    type Shape = Single;
}

#[tokio::test]
async fn a_dropped_call_stops_its_handler_on_whichever_replica() {
    let url = nats!();
    let (started, mut starts) = mpsc::unbounded_channel();
    let (dropped, mut drops) = mpsc::unbounded_channel();
    let handler = move |_: Wait| {
        let (started, guard) = (started.clone(), Dropped(dropped.clone()));
        async move {
            started.send(()).ok();
            pending::<()>().await;
            drop(guard);
            Ok::<_, RpcError>(())
        }
    };
    let router = Router::new().message(handler);
    let service = unique("wait");
    let replicas = [
        start(&url, &service, router.clone()),
        start(&url, &service, router),
    ];
    let replicas = join_all(replicas).await;
    let client = Client::connect(&url).await.unwrap();
    for _ in 0..20 {
        let call = client.send(Wait(0)).timeout(SOON);
        tokio::select! {
            ended = call => panic!("{ended:?}"),
            _ = starts.recv() => {}
        }
        timeout(SOON, drops.recv())
            .await
            .expect("the handler goes on")
            .unwrap();
    }
    for replica in replicas {
        replica.shutdown().await;
    }
}

#[tokio::test]
async fn a_call_dropped_while_it_waits_never_runs() {
    const DROPPED: usize = 10;
    let url = nats!();
    let (busy, one) = (pattern("busy"), pattern("one"));
    let (runs, gate) = (Arc::new(AtomicU32::new(0)), Arc::new(Semaphore::new(0)));
    let (counted, waited) = (Arc::clone(&runs), Arc::clone(&gate));
    let handler = move || {
        let (runs, gate) = (Arc::clone(&counted), Arc::clone(&waited));
        async move {
            let turn = runs.fetch_add(1, Ordering::SeqCst);
            gate.acquire().await.unwrap().forget();
            Ok::<_, RpcError>(turn)
        }
    };
    let router = Router::new().message_at(busy, handler);
    let server = Server::new("busy", router)
        .max_in_flight(1)
        .listen(&url)
        .start()
        .await
        .unwrap();
    let other = start(&url, "other", Router::new().message_at(one, double)).await;
    let nats = async_nats::connect(&url).await.unwrap();
    let mut cancels = nats
        .subscribe(format!("_nestling.ctl.{busy}"))
        .await
        .unwrap();
    let client = Client::connect(&url).await.unwrap();
    assert!(client.send_at::<u64>(one, &1).await.is_ok());

    let first = client.send_at::<u32>(busy, &()).timeout(SOON);
    let others = async {
        while runs.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let short = Duration::from_millis(50);
        let call = |_| {
            client
                .send_at::<u32>(busy, &())
                .timeout(short)
                .into_future()
        };
        for result in join_all((0..DROPPED).map(call)).await {
            assert_eq!(result.unwrap_err().code, Code::DeadlineExceeded);
        }
        for _ in 0..DROPPED {
            timeout(SOON, cancels.next()).await.unwrap().unwrap();
        }
        // One way and back after them, so the busy server has heard of them too.
        assert!(client.send_at::<u64>(one, &1).await.is_ok());
        gate.add_permits(1);
    };
    assert_eq!(tokio::join!(first, others).0.unwrap(), 0);
    gate.add_permits(1);
    assert_eq!(
        client
            .send_at::<u32>(busy, &())
            .timeout(SOON)
            .await
            .unwrap(),
        1
    );
    server.shutdown().await;
    other.shutdown().await;
}

#[tokio::test]
async fn a_slow_reader_slows_the_stream_and_a_gone_one_ends_it() {
    let url = nats!();
    let endless = pattern("endless");
    let made = Arc::new(AtomicU32::new(0));
    let (dropped, mut drops) = mpsc::unbounded_channel();
    let counter = Arc::clone(&made);
    let handler = move || {
        let (made, guard) = (Arc::clone(&counter), Dropped(dropped.clone()));
        let next = move |n: u32| {
            let _alive = &guard;
            made.store(n + 1, Ordering::SeqCst);
            Ok(n)
        };
        async move { Streaming::new(stream::iter(0..).map(next)) }
    };
    let server = start(&url, "endless", Router::new().message_at(endless, handler)).await;
    let client = Client::connect(&url).await.unwrap();
    let mut numbers = client
        .stream_at::<u32>(endless, &())
        .timeout(SOON)
        .await
        .unwrap();
    assert_eq!(numbers.try_next().await.unwrap(), Some(0));
    sleep(Duration::from_millis(200)).await;
    assert!(
        made.load(Ordering::SeqCst) <= WINDOW + 1,
        "ran ahead of its reader"
    );
    for n in 1..10 * WINDOW {
        assert_eq!(numbers.try_next().await.unwrap(), Some(n));
    }
    drop(numbers);
    timeout(SOON, drops.recv())
        .await
        .expect("the stream goes on")
        .unwrap();
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_stops_under_load_loses_nothing() {
    let url = nats!();
    let (one, service) = (pattern("one"), unique("drained"));
    let slow = |Payload(n): Payload<u64>| async move {
        sleep(Duration::from_millis(n % 3)).await;
        Ok::<_, RpcError>(n)
    };
    let router = Router::new().message_at(one, slow);
    let stays = start(&url, &service, router.clone()).await;
    let client = Client::connect(&url).await.unwrap();
    let done = AtomicBool::new(false);
    let load = join_all((0..64_u64).map(|n| {
        let (client, done) = (&client, &done);
        async move {
            let mut calls = 0_u32;
            while !done.load(Ordering::Relaxed) {
                assert_eq!(
                    client.send_at::<u64>(one, &n).timeout(SOON).await.unwrap(),
                    n
                );
                calls += 1;
            }
            calls
        }
    }));
    let rolling = async {
        for _ in 0..20 {
            let goes = start(&url, &service, router.clone()).await;
            sleep(Duration::from_millis(20)).await;
            timeout(SOON, goes.shutdown()).await.unwrap();
        }
        done.store(true, Ordering::Relaxed);
    };
    let (calls, ()) = tokio::join!(load, rolling);
    assert!(calls.iter().all(|calls| *calls > 0));
    stays.shutdown().await;
}

#[tokio::test]
async fn a_broker_that_comes_back_is_used_again() {
    let mut broker = match Broker::start(Kind::Nats, Options::default()) {
        Ok(broker) => broker,
        Err(unavailable) => {
            assert_ne!(
                std::env::var("REQUIRE_BROKERS").as_deref(),
                Ok("1"),
                "{unavailable}"
            );
            eprintln!("skipped: {unavailable}");
            return;
        }
    };
    let one = pattern("one");
    let server = start(
        &broker.url(),
        "again",
        Router::new().message_at(one, double),
    )
    .await;
    let client = Client::connect(broker.url()).await.unwrap();
    assert_eq!(client.send_at::<u64>(one, &1).await.unwrap(), 2);
    broker.kill();
    let short = Duration::from_millis(200);
    let error = client
        .send_at::<u64>(one, &1)
        .timeout(short)
        .await
        .unwrap_err();
    assert!(
        matches!(error.code, Code::DeadlineExceeded | Code::Unavailable),
        "{error}"
    );
    broker.restart().unwrap();
    let back = async {
        // The client may be back before the server is.
        while client.send_at::<u64>(one, &2).await.is_err() {}
    };
    timeout(SOON, back).await.expect("not connected again");
    assert_eq!(client.send_at::<u64>(one, &21).await.unwrap(), 42);
    server.shutdown().await;
}

#[tokio::test]
async fn a_closed_client_fails_its_calls() {
    let url = nats!();
    let client = Client::connect(&url).await.unwrap();
    let stuck = pattern("stuck");
    let handler = || pending::<Result<(), RpcError>>();
    let server = start(&url, "closed", Router::new().message_at(stuck, handler)).await;
    let call = client.send_at::<()>(stuck, &()).timeout(SOON);
    let close = async {
        sleep(Duration::from_millis(50)).await;
        client.close().await;
    };
    let (result, ()) = tokio::join!(call, close);
    assert_eq!(result.unwrap_err().code, Code::Unavailable);
    assert_eq!(
        client.send_at::<()>(stuck, &()).await.unwrap_err().code,
        Code::Unavailable
    );
    drop(server);
}

#[tokio::test]
async fn an_address_without_a_broker_is_an_error_that_names_it() {
    let error = Client::connect("nats://ada:secret@127.0.0.1:1")
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("connect to nats://ada:***@127.0.0.1:1: "),
        "{error}"
    );
    assert!(
        Client::connect("nats://127.0.0.1:1?wire=morse")
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_patient_client_waits_for_a_broker_that_is_away_and_for_nothing_else() {
    let url = nats!();
    let (_, port) = url.rsplit_once(':').unwrap();
    let link = Proxy::start().await.unwrap();
    let away = format!("nats://127.0.0.1:{}", link.port());
    // Nobody is at the link's other end.
    link.forward_to(1);
    assert!(Client::connect(&*away).await.is_err());
    // So often the library looks by itself.
    let tries = link.made();
    let come = async {
        link.has_made(2 * tries + 1).await;
        link.forward_to(port.parse().unwrap());
        pending::<()>().await;
    };
    let client = tokio::select! {
        client = Client::builder(&*away).patience(6 * SOON).build() => client.unwrap(),
        () = come => unreachable!("it is pending"),
    };
    assert_eq!(client.transport(), "nats");

    let nonsense = Client::builder("nats://127.0.0.1?wire=morse").patience(6 * SOON);
    let began = Instant::now();
    assert!(nonsense.build().await.is_err());
    assert!(began.elapsed() < SOON);
}
