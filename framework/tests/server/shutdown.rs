//! What becomes of work that does not end in time.

use super::*;

/// Two replicas; the one that is drained never finishes.
async fn drain_with(idempotent: bool) -> (Result<u64, RpcError>, usize) {
    let memory = Memory::new();
    let runs = Arc::new(AtomicUsize::new(0));
    let handler = {
        let runs = Arc::clone(&runs);
        move |Payload(n): Payload<u64>| {
            let first = runs.fetch_add(1, Ordering::Relaxed) == 0;
            async move {
                if first {
                    pending::<()>().await;
                }
                Ok::<_, RpcError>(n)
            }
        }
    };
    let router = Router::new().message_with("hang", idempotent, handler);
    let server = || {
        Server::new("x", router.clone())
            .listen(&memory)
            .drain_timeout(SECOND * 3)
    };
    let draining = server().start().await.unwrap();
    let client = Client::builder(&memory)
        .timeout(SECOND * 600)
        .build()
        .await
        .unwrap();
    let stop = async {
        sleep(SECOND).await;
        let other = server().start().await.unwrap();
        let began = Instant::now();
        draining.shutdown().await;
        let took = began.elapsed();
        assert!(took >= SECOND * 3 && took < SECOND * 4, "{took:?}");
        other
    };
    let (reply, other) = tokio::join!(client.send_at::<u64>("hang", &7), stop);
    other.shutdown().await;
    (reply, runs.load(Ordering::Relaxed))
}

#[tokio::test(start_paused = true)]
async fn what_exceeds_the_drain_timeout_goes_to_another() {
    assert_eq!(drain_with(true).await, (Ok(7), 2));
}

#[tokio::test(start_paused = true)]
async fn what_may_not_run_twice_ends_with_an_error_instead() {
    let (reply, runs) = drain_with(false).await;
    assert_eq!(reply.unwrap_err().code, Code::Unavailable);
    assert_eq!(runs, 1);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_exceeds_the_drain_timeout_ends_with_an_error() {
    let memory = Memory::new();
    let endless = || async { Streaming::new(stream::iter(0_u64..).map_ok()) };
    let router = Router::new().message_at("endless", endless);
    let server = Server::new("x", router)
        .listen(&memory)
        .drain_timeout(SECOND)
        .start()
        .await
        .unwrap();
    let client = Client::connect(&memory).await.unwrap();
    let mut values = client.stream_at::<u64>("endless", &()).await.unwrap();
    assert_eq!(values.try_next().await, Ok(Some(0)));
    server.shutdown().await;
    let end = loop {
        match values.try_next().await {
            Ok(Some(_)) => {}
            other => break other,
        }
    };
    assert_eq!(end.unwrap_err().code, Code::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn an_idle_server_stops_at_once() {
    let memory = Memory::new();
    let server = Server::new("x", Router::new().message_at("echo", echo)).listen(&memory);
    let server = server.start().await.unwrap();
    let client = Client::connect(&memory).await.unwrap();
    assert_eq!(client.send_at::<u64>("echo", &1).await, Ok(1));
    let began = Instant::now();
    server.shutdown().await;
    assert!(began.elapsed() < Duration::from_millis(100));
    assert_eq!(
        client.send_at::<u64>("echo", &1).await.unwrap_err().code,
        Code::Unavailable
    );
}
