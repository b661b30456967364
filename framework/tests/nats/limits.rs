//! What is too much, or cannot be read: it is refused, and nobody else is hurt.

use super::*;

#[tokio::test]
async fn what_is_too_large_is_refused_and_the_connection_lives() {
    let url = nats!();
    let (echo, blow, blow_many) = (pattern("echo"), pattern("blow"), pattern("blow-many"));
    let big = |length: usize| "x".repeat(length);
    let blow_up =
        |Payload(length): Payload<usize>| async move { Ok::<_, RpcError>("x".repeat(length)) };
    let many = |Payload(length): Payload<usize>| async move {
        Streaming::of(["x".repeat(length), String::new(), String::new()])
    };
    let router = Router::new()
        .message_at(echo, |Payload(text): Payload<String>| async move {
            Ok::<_, RpcError>(text)
        })
        .message_at(blow, blow_up)
        .message_at(blow_many, many);
    let server = start(&url, "large", router).await;
    let client = Client::connect(&url).await.unwrap();
    let most = client.capabilities().max_payload;

    let text = big(900 << 10);
    assert_eq!(client.send_at::<String>(echo, &text).await.unwrap(), text);
    let text = big(most - 2);
    assert_eq!(client.send_at::<String>(echo, &text).await.unwrap(), text);
    let error = client
        .send_at::<String>(echo, &big(most))
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::ResourceExhausted);
    let error = client
        .send_at::<String>(echo, "")
        .header("x", big(2 << 20))
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::ResourceExhausted);
    let error = client.send_at::<String>(blow, &most).await.unwrap_err();
    assert_eq!(error.code, Code::ResourceExhausted);
    let mut stream = client.stream_at::<String>(blow_many, &most).await.unwrap();
    assert_eq!(
        stream.try_next().await.unwrap_err().code,
        Code::ResourceExhausted
    );
    assert_eq!(
        client.send_at::<String>(echo, "still here").await.unwrap(),
        "still here"
    );
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_a_service_can_hold_is_refused_not_lost() {
    const SENT: u32 = 20_000;
    const WAITING: u32 = 16 * 1024;
    /// The server takes so many at once, and one of them at a time.
    const BATCH: u32 = 64;
    let url = nats!();
    let busy = pattern("busy");
    let gate = Arc::new(Semaphore::new(0));
    let waited = Arc::clone(&gate);
    let handler = move || {
        let gate = Arc::clone(&waited);
        async move { gate.acquire().await.map(drop).map_err(RpcError::internal) }
    };
    let router = Router::new().message_at(busy, handler);
    let server = Server::new("full", router)
        .max_in_flight(1)
        .listen(&url)
        .start()
        .await
        .unwrap();
    let client = Client::connect(&url).await.unwrap();
    let limit = Duration::from_secs(60);
    let refused = AtomicU32::new(0);
    let call = |_| async {
        let result = client.send_at::<()>(busy, &()).timeout(limit).await;
        let Err(error) = result else { return };
        assert_eq!(error.code, Code::ResourceExhausted, "{error}");
        if refused.fetch_add(1, Ordering::SeqCst) + 1 == SENT - WAITING - BATCH {
            gate.add_permits(1);
        }
    };
    join_all((0..SENT).map(call)).await;
    assert!(refused.into_inner() < SENT - WAITING);
    server.shutdown().await;
}

/// Somebody else's: our own clients refuse to send it.
#[tokio::test]
async fn headers_without_number_are_refused_and_hurt_nobody() {
    let url = nats!();
    let (one, heard) = (pattern("one"), pattern("heard"));
    let (events, mut seen) = mpsc::unbounded_channel();
    let react = move |Payload(n): Payload<u64>| {
        let events = events.clone();
        async move {
            events.send(n).ok();
            Ok::<_, RpcError>(())
        }
    };
    let router = Router::new().message_at(one, double);
    let router = router.event_with(heard, Guarantee::BestEffort, react);
    let server = start(&url, "headers", router).await;
    let nats = async_nats::connect(&url).await.unwrap();
    let mut headers = native();
    for n in 0..5_000 {
        headers.insert(format!("h{n}"), "x");
    }
    let refused = nats.request_with_headers(one, headers.clone(), "21".into());
    let reply = timeout(SOON, refused).await.unwrap().unwrap();
    let text = String::from_utf8(reply.payload.to_vec()).unwrap();
    assert!(text.contains("RESOURCE_EXHAUSTED"), "{text}");
    for (headers, n) in [(headers, "1"), (native(), "2")] {
        nats.publish_with_headers(heard, headers, n.into())
            .await
            .unwrap();
    }
    assert_eq!(timeout(SOON, seen.recv()).await.unwrap(), Some(2));
    let client = Client::connect(&url).await.unwrap();
    assert_eq!(client.send_at::<u64>(one, &21).await, Ok(42));
    server.shutdown().await;
}

#[tokio::test]
async fn a_header_that_breaks_the_client_library_does_not_end_the_service() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let url = nats!();
    let one = pattern("one");
    let server = start(&url, "poisoned", Router::new().message_at(one, double)).await;
    let host = url.strip_prefix("nats://").unwrap();
    let mut raw = tokio::net::TcpStream::connect(host).await.unwrap();
    let hello = "CONNECT {\"verbose\":false,\"headers\":true}\r\n";
    let poison = format!("HPUB {one} 20 22\r\nNATS/1.0\r\nx: a\rb\r\n\r\n21\r\nPING\r\n");
    raw.write_all(format!("{hello}{poison}").as_bytes())
        .await
        .unwrap();
    let mut seen = String::new();
    while !seen.contains("PONG") {
        let mut buffer = [0; 4096];
        let read = timeout(SOON, raw.read(&mut buffer)).await.unwrap().unwrap();
        seen.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
        assert!(!seen.contains("-ERR"), "{seen}");
    }
    let client = Client::connect(&url).await.unwrap();
    let back = async { while client.send_at::<u64>(one, &21).await.is_err() {} };
    timeout(SOON, back).await.expect("the service is gone");
    server.shutdown().await;
}
