//! Retries and keys.

use super::*;

#[tokio::test(start_paused = true)]
async fn the_pause_between_two_tries_grows() {
    let (memory, log) = (Memory::new(), Log::new());
    let handler = {
        let log = log.clone();
        move |_: OrderPlaced| {
            log.push(Instant::now());
            async { Err::<(), _>(RpcError::unavailable("not now")) }
        }
    };
    let server = Server::new("x", Router::new().event(handler))
        .listen(&memory)
        .retry(4, SECOND);
    let server = server.start().await.unwrap();
    Client::connect(&memory)
        .await
        .unwrap()
        .emit(OrderPlaced { order: 1 })
        .await
        .unwrap();
    sleep(SECOND * 1000).await;
    let tries = log.all();
    assert_eq!(tries.len(), 4);
    for (pair, longest) in tries.windows(2).zip([1, 4, 16]) {
        let pause = pair[1] - pair[0];
        let longest = SECOND * longest;
        let rounding = Duration::from_millis(2);
        assert!(
            pause >= longest / 2 && pause <= longest + rounding,
            "{pause:?} of {longest:?}"
        );
    }
    server.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_failing_event_holds_up_its_own_key_only() {
    let (memory, log) = (Memory::new(), Log::new());
    let handler = {
        let log = log.clone();
        move |Payload(n): Payload<u64>| {
            log.push(n);
            async move {
                if n == 1 {
                    Err(RpcError::unavailable("not now"))
                } else {
                    Ok(())
                }
            }
        }
    };
    let router = Router::new().event_with("e", Guarantee::AtLeastOnce, handler);
    let server = Server::new("x", router)
        .listen(&memory)
        .retry(2, SECOND * 10)
        .start()
        .await
        .unwrap();
    let client = Client::connect(&memory).await.unwrap();
    for (n, key) in [(1, "a"), (2, "a"), (3, "b")] {
        client.emit_at("e", &n).header("key", key).await.unwrap();
    }
    sleep(SECOND).await;
    assert_eq!(log.all(), [1, 3]);
    sleep(SECOND * 30).await;
    assert_eq!(log.all(), [1, 3, 1, 2]);
    server.shutdown().await;
}
