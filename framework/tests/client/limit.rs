//! Calls that wait for others to end.

use super::*;

/// A service that answers when it is let, and the places in which it is let.
async fn held() -> (Service, Arc<Semaphore>) {
    let gate = Arc::new(Semaphore::new(0));
    let answer = {
        let gate = Arc::clone(&gate);
        move |n| {
            let gate = Arc::clone(&gate);
            async move {
                gate.acquire().await.unwrap().forget();
                Ok(n)
            }
        }
    };
    (Service::start(answer).await, gate)
}

#[tokio::test(start_paused = true)]
async fn calls_beyond_the_limit_wait_for_their_turn() {
    let (service, gate) = held().await;
    let client = service.client(Policy::new().max_in_flight(2)).await;
    let calls = join_all((0..6).map(|_| client.send(GetUser).into_future()));
    let watch = async {
        for done in 0..=4 {
            settle().await;
            assert_eq!(service.calls(), 2 + done);
            gate.add_permits(1);
        }
        gate.add_permits(1);
    };
    let (replies, ()) = tokio::join!(calls, watch);
    let replies: Vec<_> = replies.into_iter().map(Result::unwrap).collect();
    assert_eq!(replies, [1, 2, 3, 4, 5, 6], "in their order");
}

#[tokio::test(start_paused = true)]
async fn one_that_waits_in_vain_ends_at_its_deadline() {
    let (service, _gate) = held().await;
    let policy = Policy::new()
        .max_in_flight(1)
        .breaker(Breaker::new().at_least(1));
    let client = service.client(policy).await;
    let first = client.send(GetUser).timeout(SECOND * 60).into_future();
    let others = async {
        settle().await;
        for _ in 0..20 {
            let started = Instant::now();
            let error = client.send(GetUser).timeout(SECOND).await.unwrap_err();
            assert_eq!(started.elapsed(), SECOND);
            assert_eq!(error.code, Code::ResourceExhausted);
            assert_eq!(kind(&error), Some(ErrorKind::Full));
            let message = "1 calls of user.get were in flight until the deadline";
            assert_eq!(error.message, message);
        }
        assert_eq!(service.calls(), 1);
    };
    let (first, ()) = tokio::join!(first, others);
    assert_eq!(first.unwrap_err().code, Code::DeadlineExceeded);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_call_gives_its_place_back() {
    let (service, gate) = held().await;
    let client = service.client(Policy::new().max_in_flight(1)).await;
    let mut first = client.send(GetUser).into_future();
    let mut waits = client.send(GetUser).into_future();
    let mut last = client.send(GetUser).into_future();
    for call in [&mut first, &mut waits, &mut last] {
        assert_eq!(call.now_or_never(), None);
    }
    settle().await;
    assert_eq!(service.calls(), 1);
    drop(waits);
    drop(first);
    settle().await;
    gate.add_permits(2);
    assert_eq!(last.await, Ok(2));
}

#[tokio::test(start_paused = true)]
async fn a_stream_has_its_place_until_it_ends() {
    let next = Arc::new(Notify::new());
    let watch = {
        let next = Arc::clone(&next);
        move || {
            let next = Arc::clone(&next);
            let one = stream::once(async { Ok(1) });
            let two = stream::once(async move {
                next.notified().await;
                Ok(2)
            });
            async { Streaming::new(one.chain(two)) }
        }
    };
    let router = Router::new().message_at(WatchStock::PATTERN, watch);
    let service = Service::with(router, Arc::default()).await;
    let client = service.client(Policy::new().max_in_flight(1)).await;
    let mut values = client.stream(WatchStock).await.unwrap();
    assert_eq!(values.try_next().await, Ok(Some(1)));
    let second = client.stream(WatchStock).timeout(SECOND).await;
    assert_eq!(kind(&second.unwrap_err()), Some(ErrorKind::Full));
    next.notify_one();
    assert_eq!(values.try_next().await, Ok(Some(2)));
    assert_eq!(values.try_next().await, Ok(None));
    client.stream(WatchStock).timeout(SECOND).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn each_pattern_has_its_own_places() {
    let (service, gate) = held().await;
    let client = service.client(Policy::new().max_in_flight(1)).await;
    let mut first = client.send(GetUser).into_future();
    assert_eq!((&mut first).now_or_never(), None);
    let mut other = client.send(Charge).into_future();
    assert_eq!((&mut other).now_or_never(), None);
    settle().await;
    assert_eq!(service.calls(), 2);
    gate.add_permits(2);
    first.await.unwrap();
    other.await.unwrap();
}
