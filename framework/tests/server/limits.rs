//! Permits and time: what is held back, and what ends by itself.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_permit_is_held_while_work_is_pending() {
    let (memory, log, turn) = (Memory::new(), Log::new(), Arc::new(Notify::new()));
    let router = Router::new().message_at("held", held(&log, &turn));
    let server = Server::new("x", router)
        .listen(&memory)
        .max_in_flight(1)
        .start()
        .await
        .unwrap();
    let client = Client::builder(&memory)
        .timeout(SECOND * 600)
        .build()
        .await
        .unwrap();

    let calls = async {
        tokio::join!(
            client.send_at::<u64>("held", &1),
            client.send_at::<u64>("held", &2).into_future()
        )
    };
    let watch = async {
        sleep(SECOND).await;
        assert_eq!(
            log.all(),
            [1],
            "the second waits for the permit of the first"
        );
        turn.notify_one();
        sleep(SECOND).await;
        assert_eq!(log.all(), [1, 2]);
        turn.notify_one();
    };
    let (replies, ()) = tokio::join!(calls, watch);
    assert_eq!(replies, (Ok(1), Ok(2)));
    server.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_holds_its_permit_until_it_ends() {
    let memory = Memory::new();
    let endless = || async { Streaming::new(stream::iter(0_u64..).map_ok()) };
    let router = Router::new()
        .message_at("endless", endless)
        .message_at("echo", echo);
    let server = Server::new("x", router)
        .listen(&memory)
        .max_in_flight(1)
        .start()
        .await
        .unwrap();
    let client = Client::connect(&memory).await.unwrap();

    let mut values = client.stream_at::<u64>("endless", &()).await.unwrap();
    assert_eq!(values.try_next().await, Ok(Some(0)));
    let error = client
        .send_at::<u64>("echo", &1)
        .timeout(SECOND)
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::DeadlineExceeded);
    drop(values);
    assert_eq!(client.send_at::<u64>("echo", &1).await, Ok(1));
    server.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_caller_has_given_up_in_the_queue_is_not_begun() {
    let (memory, log, turn) = (Memory::new(), Log::new(), Arc::new(Notify::new()));
    let router = Router::new().message_at("held", held(&log, &turn));
    let server = Server::new("x", router)
        .listen(&memory)
        .max_in_flight(1)
        .start()
        .await
        .unwrap();
    let client = Client::builder(&memory)
        .timeout(SECOND * 600)
        .build()
        .await
        .unwrap();

    let first = client.send_at::<u64>("held", &1).into_future();
    let impatient = async {
        sleep(SECOND).await;
        let late = client.send_at::<u64>("held", &2).timeout(SECOND).await;
        assert_eq!(late.unwrap_err().code, Code::DeadlineExceeded);
        turn.notify_one();
    };
    let (first, ()) = tokio::join!(first, impatient);
    assert_eq!(first, Ok(1));
    sleep(SECOND).await;
    assert_eq!(log.all(), [1]);
    server.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn an_event_handler_that_hangs_is_tried_again() {
    let (memory, log) = (Memory::new(), Log::new());
    let started = Instant::now();
    let handler = {
        let log = log.clone();
        move |_: OrderPlaced, cx: Context| {
            log.push((cx.attempt(), started.elapsed().as_secs()));
            async move {
                if cx.attempt() == 1 {
                    pending::<()>().await;
                }
                Ok::<_, RpcError>(())
            }
        }
    };
    let router = Router::new().event(handler);
    let server = Server::new("x", router)
        .listen(&memory)
        .handler_timeout(SECOND * 7);
    let server = server.start().await.unwrap();
    Client::connect(&memory)
        .await
        .unwrap()
        .emit(OrderPlaced { order: 1 })
        .await
        .unwrap();
    sleep(SECOND * 60).await;
    assert_eq!(log.all(), [(1, 0), (2, 7)]);
    server.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_source_keeps_nobody_from_working() {
    let (one, other) = (Memory::new(), Memory::new());
    let server = Server::new("x", Router::new().message_at("echo", echo))
        .listen(&one)
        .listen(&other)
        .max_in_flight(1)
        .start()
        .await
        .unwrap();
    for memory in [&one, &other, &one] {
        let client = Client::connect(memory).await.unwrap();
        assert_eq!(client.send_at::<u64>("echo", &1).await, Ok(1));
    }
    server.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_a_literal_pattern_lasts_longer_than_a_handler_may() {
    let memory = Memory::new();
    let slow = || async {
        Streaming::new(futures_util::StreamExt::then(
            stream::iter(0_u64..3),
            |value| async move {
                sleep(SECOND * 4).await;
                Ok(value)
            },
        ))
    };
    let server = Server::new("x", Router::new().message_at("slow", slow))
        .listen(&memory)
        .handler_timeout(SECOND * 5)
        .start()
        .await
        .unwrap();
    let client = Client::connect(&memory).await.unwrap();
    let mut values = client.stream_at::<u64>("slow", &()).await.unwrap();
    for value in 0..3 {
        assert_eq!(values.try_next().await, Ok(Some(value)));
    }
    assert_eq!(values.try_next().await, Ok(None));
    server.shutdown().await;
}
