//! Calls that are not made, because those before were in vain.

use std::sync::atomic::AtomicBool;

use super::*;

/// A service that can be broken and mended.
async fn fragile() -> (Service, Arc<AtomicBool>) {
    let broken = Arc::new(AtomicBool::new(true));
    let answer = {
        let broken = Arc::clone(&broken);
        move |n| {
            let broken = broken.load(Ordering::Relaxed);
            async move { if broken { Err(away()) } else { Ok(n) } }
        }
    };
    (Service::start(answer).await, broken)
}

fn guarded() -> Policy {
    Policy::new().breaker(Breaker::new())
}

async fn is_open(client: &Client) -> bool {
    match client.send(GetUser).await {
        Ok(_) => false,
        Err(error) => kind(&error) == Some(ErrorKind::CircuitOpen),
    }
}

#[tokio::test(start_paused = true)]
async fn it_opens_and_refuses_calls_at_once() {
    let (service, _) = fragile().await;
    let client = service.client(guarded()).await;
    for _ in 0..10 {
        assert_eq!(client.send(GetUser).await, Err(away()));
    }
    let error = client.clone().send(GetUser).await.unwrap_err();
    assert_eq!(error.code, Code::Unavailable);
    assert_eq!(kind(&error), Some(ErrorKind::CircuitOpen));
    assert_eq!(error.message, "the circuit breaker of user.get is open");
    assert_eq!(service.calls(), 10);

    assert_eq!(client.send(Charge).await, Err(away()), "one of its own");
    assert_eq!(service.calls(), 11);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_answered_closes_it() {
    let (service, broken) = fragile().await;
    let client = service.client(guarded()).await;
    while !is_open(&client).await {}
    broken.store(false, Ordering::Relaxed);
    assert!(is_open(&client).await, "it has not cooled down");
    advance(SECOND).await;
    let before = service.calls();
    for n in 1..=10 {
        assert_eq!(client.send(GetUser).await, Ok(before + n));
    }
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_fails_opens_it_for_longer() {
    let (service, _) = fragile().await;
    let client = service.client(guarded()).await;
    while !is_open(&client).await {}
    let mut pauses = Vec::new();
    for _ in 0..8 {
        let (started, before) = (Instant::now(), service.calls());
        while service.calls() == before {
            assert!(client.send(GetUser).await.is_err());
            advance(MILLI * 10).await;
        }
        assert_eq!(service.calls(), before + 1, "one probe is enough");
        pauses.push(started.elapsed());
    }
    for (n, pause) in pauses.iter().enumerate() {
        let longest = SECOND * 2_u32.pow(u32::try_from(n).unwrap()).min(16);
        let fits = longest / 2 <= *pause + MILLI * 20 && *pause <= longest + MILLI * 20;
        assert!(fits, "pause {n} was {pause:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn there_is_one_probe_at_a_time_and_a_dropped_one_gives_its_place_back() {
    let answer = |n| async move { if n > 10 { pending().await } else { Err(away()) } };
    let service = Service::start(answer).await;
    let client = service.client(guarded()).await;
    while !is_open(&client).await {}
    advance(SECOND).await;
    for probe in 1..=3 {
        let mut held = client.send(GetUser).into_future();
        assert_eq!((&mut held).now_or_never(), None);
        settle().await;
        assert_eq!(service.calls(), 10 + probe);
        let others = (0..20).map(|_| is_open(&client));
        assert!(join_all(others).await.into_iter().all(|open| open));
        assert_eq!(service.calls(), 10 + probe);
        drop(held);
    }
}

#[tokio::test(start_paused = true)]
async fn calls_that_nobody_answers_in_time_open_it() {
    let service = Service::start(|_| pending()).await;
    let client = service.client(guarded().timeout(MILLI * 100)).await;
    join_all((0..10).map(|_| client.send(GetUser).into_future())).await;
    let started = Instant::now();
    assert!(is_open(&client).await);
    assert_eq!(started.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn what_the_service_has_decided_does_not_open_it() {
    let service = Service::start(async |_| Err(RpcError::not_found("no such user"))).await;
    let client = service.client(guarded()).await;
    for _ in 0..100 {
        let error = client.send(GetUser).await.unwrap_err();
        assert_eq!(error.code, Code::NotFound);
    }
}

#[tokio::test(start_paused = true)]
async fn each_try_counts_and_none_is_made_when_it_is_open() {
    let (service, _) = fragile().await;
    let retry = Retry::new().tries(100).backoff(MILLI, MILLI);
    let client = Client::builder(&service.memory)
        .policy(Policy::new().retry(retry))
        .policy_for(
            "user.get",
            Policy::new().breaker(Breaker::new().at_least(2)),
        )
        .build()
        .await
        .unwrap();
    let error = client.send(GetUser).await.unwrap_err();
    assert_eq!(kind(&error), Some(ErrorKind::CircuitOpen));
    assert_eq!(service.calls(), 2);
    // Two retries are paid for, the second of which was refused; eight are left for others.
    client.send(Charge).idempotent().await.unwrap_err();
    assert_eq!(service.calls(), 2 + 1 + 8);
}

#[tokio::test(start_paused = true)]
async fn the_first_value_of_a_stream_says_whether_the_service_is_well() {
    let silent = || async { Streaming::<usize>::new(stream::pending()) };
    let router = Router::new().message_at(WatchStock::PATTERN, silent);
    let service = Service::with(router, Arc::default()).await;
    let client = service.client(guarded()).await;
    for _ in 0..10 {
        let mut values = client.stream(WatchStock).await.unwrap();
        let error = values.try_next().await.unwrap_err();
        assert_eq!(error.code, Code::DeadlineExceeded);
    }
    let error = client.stream(WatchStock).await.unwrap_err();
    assert_eq!(kind(&error), Some(ErrorKind::CircuitOpen));
}
