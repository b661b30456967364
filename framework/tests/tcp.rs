//! The TCP transport from outside: its bytes, and what is left of it when peers misbehave.
#![cfg(feature = "tcp")]
#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

use std::{
    collections::HashSet,
    future::IntoFuture,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use nestling::{Client, Code, Payload, Router, RpcError, Running, Server, Streaming};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc},
    time::timeout,
};

const LIMIT: Duration = Duration::from_secs(30);
const PREFACE: &[u8; 9] = b"\0NST\x01\0\0\0\x01";
const ANY_PORT: &str = "tcp://127.0.0.1:0";

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(LIMIT, future).await.expect("in time")
}

async fn serve(router: Router) -> Running {
    Server::new("test", router)
        .listen(ANY_PORT)
        .start()
        .await
        .expect("a free port")
}

fn echo() -> Router {
    Router::new().message_at("echo", async |Payload(text): Payload<String>| {
        Ok::<_, RpcError>(text)
    })
}

fn count() -> Router {
    let count = async |Payload(to): Payload<u32>| Streaming::of(0..to);
    Router::new().message_at("count", count)
}

/// A client that is written by hand from `docs/wire/tcp.md`.
struct Raw {
    socket: TcpStream,
}

impl Raw {
    async fn connect(server: &Running) -> Self {
        let mut raw = Self::silent(server).await;
        raw.write(PREFACE).await;
        let mut preface = [0; 9];
        within(raw.socket.read_exact(&mut preface)).await.unwrap();
        assert_eq!(&preface, PREFACE);
        raw
    }

    async fn silent(server: &Running) -> Self {
        let address = server.address().strip_prefix("tcp://").unwrap();
        let address = address.split('?').next().unwrap();
        Self {
            socket: TcpStream::connect(address).await.unwrap(),
        }
    }

    async fn write(&mut self, bytes: &[u8]) {
        within(self.socket.write_all(bytes)).await.unwrap();
    }

    async fn frame(&mut self, body: &[u8]) {
        let length = u32::try_from(body.len()).unwrap().to_le_bytes();
        self.write(&[&length, body].concat()).await;
    }

    async fn request(&mut self, call: u8, pattern: &str, payload: &str) {
        let length = u8::try_from(pattern.len()).unwrap();
        let fields = [
            &[1, call, 0, 0, length],
            pattern.as_bytes(),
            &[0],
            payload.as_bytes(),
        ];
        self.frame(&fields.concat()).await;
    }

    async fn read(&mut self) -> Vec<u8> {
        let length = within(self.socket.read_u32_le()).await.unwrap();
        let mut body = vec![0; length as usize];
        within(self.socket.read_exact(&mut body)).await.unwrap();
        body
    }

    async fn is_closed(&mut self) {
        let mut rest = Vec::new();
        // A reset is as good as an end.
        let read = within(self.socket.read_to_end(&mut rest)).await;
        assert!(read.is_err() || rest.is_empty(), "{rest:?}");
    }
}

#[tokio::test]
async fn a_request_by_hand_is_answered() {
    let server = serve(echo()).await;
    let mut raw = Raw::connect(&server).await;
    raw.request(7, "echo", r#""hi""#).await;
    assert_eq!(raw.read().await, b"\x03\x07\x01\"hi\"");
    raw.request(8, "nobody", "").await;
    let reply = raw.read().await;
    assert_eq!(reply[..3], [3, 8, 3]);
    assert_eq!(RpcError::from_bytes(&reply[3..]).code, Code::Unimplemented);
    raw.frame(&[6]).await;
    assert_eq!(raw.read().await, [7]);
}

#[tokio::test]
async fn a_request_may_follow_the_preface_at_once() {
    let server = serve(echo()).await;
    let mut raw = Raw::silent(&server).await;
    let request = b"\x0d\0\0\0\x01\x01\0\0\x04echo\0\"x\"";
    for byte in [PREFACE.as_slice(), request].concat() {
        raw.write(&[byte]).await;
    }
    let mut answer = vec![0; 9 + 4 + 6];
    within(raw.socket.read_exact(&mut answer)).await.unwrap();
    assert_eq!(answer[9..], *b"\x06\0\0\0\x03\x01\x01\"x\"");
}

#[tokio::test]
async fn whoever_breaks_the_protocol_is_cut_off_and_others_are_not() {
    let server = serve(echo()).await;
    let mut good = Raw::connect(&server).await;
    for greeting in [&b"GET / HTTP/1.1\r\n"[..], b"\0NOPE\0\0\0\0"] {
        let mut raw = Raw::silent(&server).await;
        raw.write(greeting).await;
        raw.is_closed().await;
    }
    let too_large = (16_u32 << 20) + 1;
    let reply = b"\x03\0\0\0\x03\x01\x02";
    let cut_off = b"\x05\0\0\0\x01\x01\0\0\x09";
    for frame in [
        &too_large.to_le_bytes()[..],
        &[0; 4],
        reply,
        cut_off,
        &[1, 0, 0, 0, 99],
    ] {
        let mut raw = Raw::connect(&server).await;
        raw.write(frame).await;
        raw.is_closed().await;
    }
    good.request(1, "echo", "\"x\"").await;
    assert_eq!(good.read().await, b"\x03\x01\x01\"x\"");
}

#[tokio::test]
async fn random_bytes_do_not_stop_a_server() {
    let server = serve(echo()).await;
    let mut random = fastrand::Rng::with_seed(3);
    for _ in 0..50 {
        let mut raw = Raw::connect(&server).await;
        let mut bytes: Vec<u8> = (0..random.usize(1..2000)).map(|_| random.u8(..)).collect();
        let length = u32::try_from(random.usize(1..200)).unwrap();
        bytes.splice(0..0, length.to_le_bytes());
        bytes[4] %= 9;
        // The server may have closed before it was all written.
        if raw.socket.write_all(&bytes).await.is_ok() {
            drop(raw);
        }
    }
    let client = Client::connect(server.address()).await.unwrap();
    assert_eq!(client.send_at::<String>("echo", "x").await.unwrap(), "x");
}

#[tokio::test]
async fn replies_come_in_completion_order() {
    let gate = Arc::new(Notify::new());
    let opened = Arc::clone(&gate);
    let slow = move || {
        let gate = Arc::clone(&opened);
        async move {
            gate.notified().await;
            Ok::<_, RpcError>(1)
        }
    };
    let server = serve(echo().message_at("slow", slow)).await;
    let mut raw = Raw::connect(&server).await;
    raw.request(1, "slow", "").await;
    raw.request(2, "echo", "\"x\"").await;
    assert_eq!(raw.read().await, b"\x03\x02\x01\"x\"");
    gate.notify_one();
    assert_eq!(raw.read().await, b"\x03\x01\x011");
}

#[tokio::test]
async fn a_stream_stops_without_credit_and_ends_with_a_cancel() {
    let server = serve(count().merge(echo())).await;
    let mut raw = Raw::connect(&server).await;
    raw.request(1, "count", "1000").await;
    for value in 0..64 {
        assert_eq!(
            raw.read().await,
            [&[3, 1, 0], value.to_string().as_bytes()].concat()
        );
    }
    raw.request(2, "echo", "\"x\"").await;
    assert_eq!(raw.read().await[..2], [3, 2], "the stream has no credit");
    raw.frame(&[5, 1, 2]).await;
    assert_eq!(raw.read().await, b"\x03\x01\x0064");
    assert_eq!(raw.read().await, b"\x03\x01\x0065");
    raw.frame(&[4, 1]).await;
    raw.frame(&[5, 1, 100]).await;
    raw.request(3, "echo", "\"y\"").await;
    assert_eq!(
        raw.read().await[..2],
        [3, 3],
        "the stream has been cancelled"
    );
}

#[tokio::test]
async fn a_draining_server_says_goodbye_and_finishes_what_it_has() {
    let (started, mut starts) = mpsc::unbounded_channel();
    let gate = Arc::new(Notify::new());
    let opened = Arc::clone(&gate);
    let slow = move || {
        started.send(()).unwrap();
        let gate = Arc::clone(&opened);
        async move {
            gate.notified().await;
            Ok::<_, RpcError>(1)
        }
    };
    let server = serve(echo().message_at("slow", slow)).await;
    let address = server.address().strip_prefix("tcp://").unwrap().to_owned();
    let mut raw = Raw::connect(&server).await;
    raw.request(1, "slow", "").await;
    within(starts.recv()).await.unwrap();
    let shutdown = tokio::task::JoinSet::from_iter([server.shutdown()]);
    assert_eq!(raw.read().await, [8]);
    // Was on its way when the server said goodbye.
    raw.request(2, "echo", "\"x\"").await;
    assert_eq!(raw.read().await, b"\x03\x02\x01\"x\"");
    raw.frame(&[8]).await;
    gate.notify_one();
    assert_eq!(raw.read().await, b"\x03\x01\x011");
    raw.is_closed().await;
    drop(raw);
    within(shutdown.join_all()).await;
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_lost_connection_ends_its_calls_and_later_ones_connect_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("tcp://{}", listener.local_addr().unwrap());
    let client = Client::connect(&*url).await.unwrap();
    let greet = async || {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut preface = [0; 9];
        socket.read_exact(&mut preface).await.unwrap();
        socket.write_all(PREFACE).await.unwrap();
        let length = socket.read_u32_le().await.unwrap();
        let mut request = vec![0; length as usize];
        socket.read_exact(&mut request).await.unwrap();
        (socket, request)
    };
    let lose = async { drop(greet().await) };
    let call = async { client.send_at::<String>("echo", "x").await };
    let (_, lost) = within(async { tokio::join!(lose, call) }).await;
    let lost = lost.unwrap_err();
    assert_eq!(lost.code, Code::Unavailable);
    assert!(lost.message.contains("was lost"), "{lost}");
    let answer = async {
        let (mut socket, request) = greet().await;
        let id_ends = 2 + request[1..]
            .iter()
            .position(|byte| byte & 0x80 == 0)
            .unwrap();
        let reply = [&[3], &request[1..id_ends], b"\x01\"y\""].concat();
        socket
            .write_u32_le(u32::try_from(reply.len()).unwrap())
            .await
            .unwrap();
        socket.write_all(&reply).await.unwrap();
        socket
    };
    let call = async { client.send_at::<String>("echo", "x").await };
    let (_socket, reply) = within(async { tokio::join!(answer, call) }).await;
    assert_eq!(reply.unwrap(), "y");
}

#[tokio::test]
async fn a_refused_connection_is_an_error_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let client = Client::connect(&*format!("tcp://{address}")).await.unwrap();
    for _ in 0..3 {
        let refused = client
            .send_at::<String>("echo", "x")
            .timeout(LIMIT)
            .await
            .unwrap_err();
        assert_eq!(refused.code, Code::Unavailable);
        assert!(refused.message.contains(&address.to_string()), "{refused}");
    }
}

#[tokio::test]
async fn a_restarted_server_is_found_again() {
    let server = serve(echo()).await;
    let address = server.address().to_owned();
    let client = Client::connect(&*address).await.unwrap();
    assert_eq!(client.send_at::<String>("echo", "x").await.unwrap(), "x");
    // As a crash would.
    drop(server);
    let restarted = async {
        loop {
            match Server::new("test", echo()).listen(&*address).start().await {
                Ok(server) => break server,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    let _server = within(restarted).await;
    let answered = async {
        while client.send_at::<String>("echo", "x").await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    within(answered).await;
}

#[tokio::test]
async fn calls_are_spread_over_replicas_and_dead_ones_passed_over() {
    let replica = async |name: &'static str| {
        serve(Router::new().message_at("who", move || async move { Ok::<_, RpcError>(name) })).await
    };
    let (one, two) = (replica("one").await, replica("two").await);
    let dead = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let host = |running: &Running| running.address().strip_prefix("tcp://").unwrap().to_owned();
    let url = format!("tcp://{dead},{},{}", host(&one), host(&two));
    let client = Client::connect(&*url).await.unwrap();
    let mut seen = HashSet::new();
    for _ in 0..100 {
        seen.insert(client.send_at::<String>("who", &()).await.unwrap());
    }
    assert_eq!(seen.len(), 2, "{seen:?}");
    // A replica that drains is left without a single failure.
    let callers = async {
        for _ in 0..300 {
            client.send_at::<String>("who", &()).await.unwrap();
            tokio::task::yield_now().await;
        }
    };
    within(async { tokio::join!(callers, one.shutdown()) }).await;
    assert_eq!(client.send_at::<String>("who", &()).await.unwrap(), "two");
}

#[tokio::test]
async fn a_replica_that_does_not_even_refuse_holds_up_no_call() {
    // Connections to it are made, and nobody ever says a word.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_at = silent.local_addr().unwrap();
    let alive = serve(echo()).await;
    let alive_at = alive.address().strip_prefix("tcp://").unwrap();
    let client = Client::connect(&*format!("tcp://{silent_at},{alive_at}"))
        .await
        .unwrap();
    // Whoever is first may have to try both.
    let calls = async {
        for n in 0..200 {
            let text = format!("{n}");
            let call = client.send_at::<String>("echo", &text);
            assert_eq!(call.timeout(Duration::from_secs(4)).await.unwrap(), text);
        }
    };
    within(calls).await;
    drop(silent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_callers_and_large_payloads_share_one_connection() {
    let server = serve(echo()).await;
    let client = Client::connect(server.address()).await.unwrap();
    let large = "x".repeat(900_000);
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
async fn what_is_too_large_is_refused_and_the_connection_lives() {
    let sized = async |Payload(size): Payload<usize>| Ok::<_, RpcError>("x".repeat(size));
    let many = async |Payload(size): Payload<usize>| {
        Streaming::of(["x".to_owned(), "y".repeat(size), "z".to_owned()])
    };
    let router = echo().message_at("sized", sized).message_at("many", many);
    let server = Server::new("test", router).listen("tcp://127.0.0.1:0?max_frame=100000");
    let server = server.start().await.unwrap();
    // Knows the server's limit from its URL, or only from its preface.
    let address = server.address();
    for url in [address, address.split('?').next().unwrap()] {
        let client = Client::connect(url).await.unwrap();
        let large = "x".repeat(100_000);
        let refused = client.send_at::<String>("echo", &large).await.unwrap_err();
        assert_eq!(refused.code, Code::ResourceExhausted);
        let refused = client
            .send_at::<String>("sized", &100_000)
            .await
            .unwrap_err();
        assert_eq!(refused.code, Code::ResourceExhausted);
        let mut stream = client.stream_at::<String>("many", &100_000).await.unwrap();
        assert_eq!(stream.try_next().await.unwrap().as_deref(), Some("x"));
        assert_eq!(
            stream.try_next().await.unwrap_err().code,
            Code::ResourceExhausted
        );
        assert_eq!(client.send_at::<String>("sized", &3).await.unwrap(), "xxx");
    }
}

#[tokio::test]
async fn a_peer_that_does_not_read_gets_no_more_replies_made() {
    let made = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&made);
    let big = move || {
        counted.fetch_add(1, Ordering::Relaxed);
        async { Ok::<_, RpcError>("x".repeat(100_000)) }
    };
    let server = serve(echo().message_at("big", big)).await;
    let mut raw = Raw::connect(&server).await;
    for _ in 0..1000 {
        raw.request(1, "big", "").await;
    }
    // Another connection shows that the server has had its turn, and is not held up.
    let client = Client::connect(server.address()).await.unwrap();
    for _ in 0..100 {
        assert_eq!(client.send_at::<String>("echo", "x").await.unwrap(), "x");
    }
    // What the kernel buffers on both sides, the high-water mark and one batch.
    assert!(made.load(Ordering::Relaxed) < 400, "{made:?}");
    for _ in 0..1000 {
        let mut reply = raw.read().await;
        // On a slow machine it is asked meanwhile whether it is still there.
        while reply == [6] {
            reply = raw.read().await;
        }
        assert_eq!(reply.len(), 100_005);
    }
}

#[tokio::test]
async fn events_sent_just_before_the_client_closes_arrive() {
    let (sender, mut seen) = mpsc::unbounded_channel();
    let server = serve(
        Router::new().event_at("noted", move |Payload(number): Payload<u32>| {
            let sent = sender.send(number);
            async move { sent.map_err(RpcError::internal) }
        }),
    )
    .await;
    let client = Client::connect(server.address()).await.unwrap();
    for number in 0..2000 {
        client.emit_at("noted", &number).await.unwrap();
    }
    within(client.close()).await;
    for number in 0..2000 {
        assert_eq!(within(seen.recv()).await, Some(number));
    }
    let closed = client.emit_at("noted", &0).await.unwrap_err();
    assert_eq!(closed.code, Code::Unavailable);
}

#[tokio::test]
async fn a_dropped_call_reaches_its_handler() {
    struct Told(mpsc::UnboundedSender<&'static str>);
    impl Drop for Told {
        fn drop(&mut self) {
            self.0.send("dropped").unwrap();
        }
    }
    let (sender, mut told) = mpsc::unbounded_channel();
    let wait = move || {
        let guard = Told(sender.clone());
        async move {
            guard.0.send("started").map_err(RpcError::internal)?;
            std::future::pending::<Result<(), RpcError>>().await
        }
    };
    let server = serve(Router::new().message_with("wait", true, wait)).await;
    let client = Client::connect(server.address()).await.unwrap();
    let call = client.send_at::<()>("wait", &()).into_future();
    tokio::select! {
        reply = call => panic!("{reply:?}"),
        first = within(told.recv()) => assert_eq!(first, Some("started")),
    }
    assert_eq!(within(told.recv()).await, Some("dropped"));
}
