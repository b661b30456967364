//! What a server or client refuses before it takes any work.

use super::*;

#[tokio::test]
async fn an_event_that_needs_more_than_its_transport_gives_is_refused_with_the_way_out() {
    let router = Router::new().event(on_order);
    let server = Server::new("order", router).listen("tcp://127.0.0.1:0");
    let error = server.start().await.unwrap_err();
    assert!(matches!(error, StartError::Unfit { .. }), "{error:?}");
    let text = error.to_string();
    for part in [
        "order.placed",
        file!(),
        "tcp://127.0.0.1:0",
        "kafka://",
        "redis://",
        "best_effort",
    ] {
        assert!(text.contains(part), "no {part} in: {text}");
    }
}

#[tokio::test]
async fn a_best_effort_event_is_welcome_on_tcp() {
    let router = Router::new().event(on_page);
    let server = Server::new("page", router)
        .listen("tcp://127.0.0.1:0")
        .start()
        .await
        .unwrap();
    let client = Client::builder(server.address())
        .emits::<PageSeen>()
        .build()
        .await
        .unwrap();
    client.emit(PageSeen { page: 1 }).await.unwrap();
    server.shutdown().await;
}

#[tokio::test]
async fn a_client_that_promises_an_event_its_transport_cannot_carry_is_refused() {
    let server = Server::new("order", Router::new())
        .listen("tcp://127.0.0.1:0")
        .start()
        .await
        .unwrap();
    let promise = Client::builder(server.address())
        .emits::<OrderPlaced>()
        .build()
        .await;
    let text = promise.unwrap_err().to_string();
    for part in ["order.placed", "tcp", "kafka://", "best_effort"] {
        assert!(text.contains(part), "no {part} in: {text}");
    }
    let client = Client::connect(server.address()).await.unwrap();
    let error = client.emit(OrderPlaced { order: 1 }).await.unwrap_err();
    assert_eq!(error.code, Code::FailedPrecondition);
    assert!(error.message.contains("order.placed"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn an_events_url_gives_what_the_listen_url_does_not() {
    let memory = Memory::new();
    let log = Log::new();
    let handler = {
        let log = log.clone();
        move |event: OrderPlaced, cx: Context| {
            log.push((event.order, cx.transport()));
            async { Ok::<_, RpcError>(()) }
        }
    };
    let router = Router::new().event(handler).message_at("echo", echo);
    let server = Server::new("order", router)
        .listen("tcp://127.0.0.1:0")
        .events(&memory);
    let server = server.start().await.unwrap();
    let bus = Client::builder(&memory)
        .emits::<OrderPlaced>()
        .build()
        .await
        .unwrap();
    bus.emit(OrderPlaced { order: 7 }).await.unwrap();
    sleep(SECOND).await;
    assert_eq!(log.all(), [(7, "memory")]);
    // Messages come by the listen URL alone.
    assert_eq!(
        bus.send_at::<u64>("echo", &1).await.unwrap_err().code,
        Code::Unavailable
    );
    server.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn one_endpoint_for_messages_and_events_is_subscribed_to_once() {
    let memory = Memory::new();
    let log = Log::new();
    let handler = {
        let log = log.clone();
        move |event: OrderPlaced| {
            log.push(event.order);
            async { Ok::<_, RpcError>(()) }
        }
    };
    let router = Router::new().event(handler);
    let server = Server::new("order", router)
        .listen(&memory)
        .events(&memory)
        .start()
        .await
        .unwrap();
    let client = Client::connect(&memory).await.unwrap();
    client.emit(OrderPlaced { order: 7 }).await.unwrap();
    sleep(SECOND).await;
    assert_eq!(log.all(), [7]);
    server.shutdown().await;
}

#[tokio::test]
async fn a_url_that_makes_no_sense_is_explained() {
    let without = Server::new("x", Router::new()).start().await.unwrap_err();
    assert!(matches!(without, StartError::NoEndpoint));
    for (url, part) in [
        ("carrier-pigeon://coop", "tcp"),
        ("memory:", "hand it to both sides"),
        ("tcp://127.0.0.1:0?colour=red", "colour"),
        ("tcp://ada:secret@127.0.0.1:0?colour=red", "***"),
    ] {
        let text = Server::new("x", Router::new())
            .listen(url)
            .start()
            .await
            .unwrap_err()
            .to_string();
        assert!(text.contains(part), "no {part} in: {text}");
        assert!(!text.contains("secret"), "{text}");
    }
}

#[test]
fn two_handlers_of_one_message_are_refused_naming_both_places() {
    let first_line = line!() + 1;
    let one = Router::new().message_at("a", echo);
    let other = Router::new().message_at("a", echo);
    let merging = AssertUnwindSafe(|| drop(one.merge(other)));
    let panic = catch_unwind(merging).unwrap_err();
    let text = panic.downcast_ref::<String>().unwrap();
    for line in [first_line, first_line + 1] {
        let place = format!("{}:{line}", file!());
        assert!(text.contains(&place), "no {place} in: {text}");
    }
}

/// Refuses to be subscribed to, some times.
struct Away {
    times: AtomicU32,
    memory: Memory,
    error: fn() -> transport::Error,
}

#[async_trait::async_trait]
impl ServerTransport for Away {
    fn name(&self) -> &'static str {
        "away"
    }

    fn capabilities(&self) -> Capabilities {
        self.memory.capabilities()
    }

    async fn subscribe(&self, subscription: Subscription) -> Result<Sources, transport::Error> {
        let left = self
            .times
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |times| {
                times.checked_sub(1)
            });
        match left {
            Ok(_) => Err((self.error)()),
            Err(_) => self.memory.subscribe(subscription).await,
        }
    }
}

fn away(times: u32, error: fn() -> transport::Error) -> (Memory, Server) {
    let memory = Memory::new();
    let transport: Arc<dyn ServerTransport> = Arc::new(Away {
        times: AtomicU32::new(times),
        memory: memory.clone(),
        error,
    });
    let router = Router::new().message_at("echo", echo);
    (memory, Server::new("early", router).listen(transport))
}

#[tokio::test(start_paused = true)]
async fn a_service_that_runs_waits_for_a_broker_that_is_away() {
    let (memory, server) = away(20, || {
        transport::Error::new(transport::ErrorKind::Connect, "nobody there")
    });
    let running = transport::Task::spawn(async move { server.run().await.unwrap() });
    let client = Client::connect(&memory).await.unwrap();
    let reply: u64 = loop {
        match client.send_at("echo", &7).await {
            Ok(reply) => break reply,
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    };
    assert_eq!(reply, 7);
    drop(running);
}

#[tokio::test(start_paused = true)]
async fn it_does_not_wait_for_ever_nor_for_what_does_not_pass() {
    let (_, server) = away(u32::MAX, || {
        transport::Error::new(transport::ErrorKind::Connect, "nobody there")
    });
    let began = tokio::time::Instant::now();
    assert!(server.run().await.is_err());
    assert!(began.elapsed() >= Duration::from_secs(60));

    for error in [
        || transport::Error::new(transport::ErrorKind::Config, "nonsense"),
        || {
            let taken = std::io::Error::from(std::io::ErrorKind::AddrInUse);
            transport::Error::new(transport::ErrorKind::Connect, "listen").with_source(taken)
        },
    ] {
        let (_, server) = away(u32::MAX, error);
        let began = tokio::time::Instant::now();
        assert!(server.run().await.is_err());
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}
