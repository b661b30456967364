//! What the captures do not show: both wires on one listener, and peers that come and go.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::stream;
use nestling::{Client, Code, Context, Payload, Router, RpcError, Server, Streaming};
use tokio::{
    io::AsyncWriteExt,
    sync::{Notify, mpsc},
};

use super::{ANY_PORT, Raw, framed, handlers::echo, serve, within};

const ECHO: &str = r#"{"pattern":"echo","data":1,"id":"x"}"#;
const ECHOED: &str = r#"{"response":1,"isDisposed":true,"id":"x"}"#;

fn router() -> Router {
    Router::new().message_at("echo", echo)
}

#[tokio::test]
async fn one_listener_answers_both_wires_and_one_client_speaks_one() {
    let (sender, mut seen) = mpsc::unbounded_channel();
    let noted = move |Payload(number): Payload<u32>, cx: Context| {
        let sent = sender.send((number, cx.header("x-own").map(str::to_owned)));
        async move { sent.map_err(RpcError::internal) }
    };
    let router = router().event_at(r#"{"noted":{"b":1,"a":2}}"#, noted);
    let server = serve(router).await;
    let address = server.address();
    let native = Client::connect(address).await.unwrap();
    let nest = Client::connect(format!("{address}?wire=nest"))
        .await
        .unwrap();
    let mut raw = Raw::connect(&server).await;
    for number in 0..50_u32 {
        assert_eq!(native.send_at::<u32>("echo", &number).await, Ok(number));
        assert_eq!(nest.send_at::<u32>("echo", &number).await, Ok(number));
        assert_eq!(raw.ask(ECHO).await, ECHOED);
        for client in [&native, &nest] {
            let event = client.emit_at(r#"{ "noted": {"a":2, "b":1} }"#, &number);
            event.header("x-own", "ü").await.unwrap();
            let expected = (number, Some("ü".to_owned()));
            assert_eq!(within(seen.recv()).await, Some(expected));
        }
    }
    let unknown = nest.send_at::<u32>("nobody", &1).await.unwrap_err();
    assert_eq!(unknown.code, Code::Unimplemented);
}

#[tokio::test]
async fn a_server_of_the_native_wire_only_refuses_the_other() {
    let server = Server::new("test", router()).listen(format!("{ANY_PORT}?wire=native"));
    let server = server.start().await.unwrap();
    let mut raw = Raw::connect(&server).await;
    raw.write(framed(ECHO)).await;
    assert_eq!(raw.rest().await, "");
    let native = Client::connect(server.address()).await.unwrap();
    assert_eq!(native.send_at::<u32>("echo", &1).await, Ok(1));
    let asked = Server::new("test", router()).listen(format!("{ANY_PORT}?wire=nest"));
    let refused = asked.start().await.unwrap_err().to_string();
    assert!(refused.contains("wire=native"), "{refused}");
}

#[tokio::test]
async fn whoever_sends_nonsense_is_cut_off_and_others_are_not() {
    let server = serve(router()).await;
    let mut good = Raw::connect(&server).await;
    let native = Client::connect(server.address()).await.unwrap();
    let long_id = format!(r#"{{"pattern":"echo","id":"{}"}}"#, "x".repeat(2000));
    let many: Vec<_> = (0..200)
        .map(|number| format!("\"{number}\":\"\""))
        .collect();
    let much = format!(r#"{{"pattern":"echo","metadata":{{{}}}}}"#, many.join(","));
    for nonsense in [
        "#",
        "GET / HTTP/1.1",
        "1",
        "99999999999999999999999999#",
        "16777217#",
        "3#abc",
        "1#{",
        "2#{}x",
        "1#😀",
        "\u{feff}\u{feff}#",
        &framed("{\"pattern\":\"echo\""),
        &framed(r#"{"\ud800":1,"pattern":"echo"}"#),
        &framed(&long_id),
        &framed(&much),
        &"[".repeat(5000),
    ] {
        let mut raw = Raw::connect(&server).await;
        drop(raw.socket.write_all(nonsense.as_bytes()).await);
        if nonsense == "1" {
            raw.socket.shutdown().await.unwrap();
        }
        assert_eq!(raw.rest().await, "", "{nonsense:.80}");
        assert_eq!(good.ask(ECHO).await, ECHOED);
    }
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..100 {
        let mut raw = Raw::connect(&server).await;
        let mut bytes: Vec<u8> = (0..random.usize(1..2000)).map(|_| random.u8(..)).collect();
        bytes.splice(0..0, format!("{}#", random.usize(..300)).bytes());
        if raw.socket.write_all(&bytes).await.is_ok() {
            drop(raw);
        }
    }
    assert_eq!(good.ask(ECHO).await, ECHOED);
    assert_eq!(native.send_at::<u32>("echo", &1).await, Ok(1));
}

/// Sends what it is told when it is dropped.
struct Told(mpsc::UnboundedSender<&'static str>, &'static str);

impl Drop for Told {
    fn drop(&mut self) {
        self.0.send(self.1).unwrap();
    }
}

#[tokio::test]
async fn a_lost_connection_ends_what_may_be_ended() {
    let (sender, mut told) = mpsc::unbounded_channel();
    let release = Arc::new(Notify::new());
    let (ends, others) = (sender.clone(), sender);
    let idempotent = move || {
        let guard = Told(ends.clone(), "ended");
        async move {
            guard.0.send("started").map_err(RpcError::internal)?;
            pending::<Result<(), RpcError>>().await
        }
    };
    let opened = Arc::clone(&release);
    let careful = move || {
        let (sender, release) = (others.clone(), Arc::clone(&opened));
        async move {
            sender.send("started").map_err(RpcError::internal)?;
            release.notified().await;
            sender.send("finished").map_err(RpcError::internal)
        }
    };
    let router = router()
        .message_with("idempotent", true, idempotent)
        .message_at("careful", careful);
    let server = serve(router).await;
    for reset in [true, false] {
        let mut raw = Raw::connect(&server).await;
        raw.write(framed(r#"{"pattern":"idempotent","id":1}"#))
            .await;
        raw.write(framed(r#"{"pattern":"careful","id":1}"#)).await;
        for _ in 0..2 {
            assert_eq!(within(told.recv()).await, Some("started"));
        }
        if reset {
            raw.socket.set_zero_linger().unwrap();
        }
        drop(raw);
        assert_eq!(within(told.recv()).await, Some("ended"));
        release.notify_one();
        assert_eq!(within(told.recv()).await, Some("finished"));
    }
}

#[tokio::test]
async fn who_closes_one_half_still_gets_what_is_made_soon() {
    let soon = async || {
        tokio::time::sleep(Duration::from_millis(20)).await;
        Ok::<_, RpcError>(7)
    };
    let server = serve(router().message_at("soon", soon)).await;
    let mut raw = Raw::connect(&server).await;
    raw.write(framed(ECHO)).await;
    raw.write(framed(r#"{"pattern":"soon","id":1}"#)).await;
    raw.socket.shutdown().await.unwrap();
    let soon = r#"{"response":7,"isDisposed":true,"id":1}"#;
    assert_eq!(raw.rest().await, framed(ECHOED) + &framed(soon));
}

#[tokio::test]
async fn a_draining_server_finishes_what_it_has_and_then_takes_nothing_new() {
    let (started, mut starts) = mpsc::unbounded_channel();
    let release = Arc::new(Notify::new());
    let opened = Arc::clone(&release);
    let slow = move || {
        started.send(()).unwrap();
        let release = Arc::clone(&opened);
        async move {
            release.notified().await;
            Ok::<_, RpcError>(1)
        }
    };
    let server = serve(router().message_at("slow", slow)).await;
    let mut raw = Raw::connect(&server).await;
    let mut silent = Raw::connect(&server).await;
    raw.write(framed(r#"{"pattern":"slow","id":1}"#)).await;
    within(starts.recv()).await.unwrap();
    let shutdown = tokio::task::JoinSet::from_iter([server.shutdown()]);
    // Was perhaps on its way when the server began to drain.
    assert_eq!(raw.ask(ECHO).await, ECHOED);
    assert_eq!(silent.rest().await, "");
    let refused = loop {
        let reply = raw.ask(ECHO).await;
        if reply != ECHOED {
            break reply;
        }
    };
    let expected = r#"{"err":{"status":"error","message":"the service is shutting down","code":"UNAVAILABLE"},"isDisposed":true,"id":"x"}"#;
    assert_eq!(refused, expected);
    release.notify_one();
    assert_eq!(
        raw.rest().await,
        framed(r#"{"response":1,"isDisposed":true,"id":1}"#)
    );
    within(shutdown.join_all()).await;
}

#[tokio::test]
async fn a_stream_that_nobody_reads_waits() {
    let made = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&made);
    let endless = move || {
        let counted = Arc::clone(&counted);
        let values = stream::repeat_with(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            Ok("x".repeat(100_000))
        });
        async { Streaming::new(values) }
    };
    let server = serve(router().message_at("endless", endless)).await;
    let mut raw = Raw::connect(&server).await;
    let first = raw.ask(r#"{"pattern":"endless","id":1}"#).await;
    assert!(first.ends_with(r#"xxx","id":1}"#));
    // Another connection shows that the server has had its turn, and is not held up.
    let mut other = Raw::connect(&server).await;
    let mut before = usize::MAX;
    while before != made.load(Ordering::Relaxed) {
        before = made.load(Ordering::Relaxed);
        for _ in 0..200 {
            assert_eq!(other.ask(ECHO).await, ECHOED);
        }
    }
    // What the kernel buffers on both sides, and the high-water mark.
    assert!(before < 400, "{before}");
    for _ in 0..100 {
        assert_eq!(
            raw.read().await.len(),
            100_000 + r#"{"response":"","id":1}"#.len()
        );
    }
}

#[tokio::test]
async fn events_sent_just_before_the_client_closes_arrive() {
    let (sender, mut seen) = mpsc::unbounded_channel();
    let noted = move |Payload(number): Payload<u32>| {
        let sent = sender.send(number);
        async move { sent.map_err(RpcError::internal) }
    };
    let server = serve(Router::new().event_at("noted", noted)).await;
    let client = Client::connect(format!("{}?wire=nest", server.address()))
        .await
        .unwrap();
    for number in 0..2000 {
        client.emit_at("noted", &number).await.unwrap();
    }
    within(client.close()).await;
    for number in 0..2000 {
        assert_eq!(within(seen.recv()).await, Some(number));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_callers_and_large_payloads_share_one_connection() {
    let server = serve(router()).await;
    let client = Client::connect(format!("{}?wire=nest", server.address()))
        .await
        .unwrap();
    let large = "ż😀".repeat(150_000);
    let calls = (0..300).map(async |number: usize| {
        let text = if number.is_multiple_of(50) {
            large.clone()
        } else {
            format!("call {number}")
        };
        assert_eq!(client.send_at::<String>("echo", &text).await.unwrap(), text);
    });
    within(futures_util::future::join_all(calls)).await;
}

#[tokio::test]
async fn a_payload_that_is_no_json_is_refused_before_it_breaks_the_connection() {
    let server = serve(router()).await;
    let client = Client::connect(format!("{}?wire=nest", server.address()))
        .await
        .unwrap();
    let send = |payload: &'static str| client.send_at::<u32>("echo", &()).payload(payload);
    let refused = send("{oops").await.unwrap_err();
    assert_eq!(refused.code, Code::InvalidArgument);
    assert_eq!(send("7").await, Ok(7));
}
