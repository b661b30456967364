//! Calls that are made again, and those that are not.

use super::*;

fn retrying(retry: Retry) -> Policy {
    Policy::new().retry(retry)
}

#[tokio::test(start_paused = true)]
async fn a_call_is_made_again_until_it_is_answered() {
    let service =
        Service::start(async |n| if n < 3 { Err(away()) } else { Ok(n) }.map(|n| n * 10)).await;
    let client = service.client(retrying(Retry::new())).await;
    assert_eq!(client.send(GetUser).await, Ok(30));
    assert_eq!(service.calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn the_last_failure_is_told_when_it_was_tried_often_enough() {
    let service =
        Service::start(async |n| Err(RpcError::aborted(format!("race {n} is lost")))).await;
    let client = service.client(retrying(Retry::new().tries(4))).await;
    let error = client.send(GetUser).await.unwrap_err();
    assert_eq!(error, RpcError::aborted("race 4 is lost"));
    assert_eq!(service.calls(), 4);
}

#[tokio::test(start_paused = true)]
async fn only_what_is_idempotent_is_made_again() {
    let service = Service::start(async |_| Err(away())).await;
    let client = service.client(retrying(Retry::new())).await;
    client.send(Charge).await.unwrap_err();
    assert_eq!(service.calls(), 1);
    client.send_at::<usize>("user.get", &()).await.unwrap_err();
    assert_eq!(service.calls(), 2);
    let call = client.send_at::<usize>("user.get", &()).idempotent();
    call.await.unwrap_err();
    assert_eq!(service.calls(), 5);
}

#[tokio::test(start_paused = true)]
async fn what_the_service_has_decided_is_not_asked_for_again() {
    let codes = [
        Code::NotFound,
        Code::InvalidArgument,
        Code::FailedPrecondition,
        Code::PermissionDenied,
        Code::Internal,
        Code::Unknown,
    ];
    let answer = move |n: usize| async move { Err(RpcError::new(codes[n - 1], "no")) };
    let service = Service::start(answer).await;
    let client = service.client(retrying(Retry::new())).await;
    for (n, code) in codes.into_iter().enumerate() {
        assert_eq!(client.send(GetUser).await.unwrap_err().code, code);
        assert_eq!(service.calls(), n + 1, "{code}");
    }
}

#[tokio::test(start_paused = true)]
async fn no_pause_goes_beyond_the_deadline() {
    let service = Service::start(async |_| Err(away())).await;
    let retry = Retry::new()
        .tries(100)
        .backoff(MILLI * 400, SECOND * 10)
        .budget(1.0);
    let client = service.client(retrying(retry)).await;
    for seed in 0..50 {
        fastrand::seed(seed);
        let (started, before) = (Instant::now(), service.calls());
        let error = client.send(GetUser).timeout(SECOND).await.unwrap_err();
        assert!(started.elapsed() <= SECOND, "seed {seed}");
        assert_eq!(error, away(), "seed {seed}: the deadline is not the cause");
        assert!(service.calls() > before);
    }
    assert!(service.calls() > 100, "some pauses fit");
}

#[tokio::test(start_paused = true)]
async fn a_try_that_nobody_answers_is_given_up_for_another() {
    let answer = |n| async move { if n == 2 { Ok(n) } else { pending().await } };
    let service = Service::start(answer).await;
    let client = service
        .client(retrying(Retry::new().per_try(MILLI * 100)))
        .await;
    let started = Instant::now();
    assert_eq!(client.send(GetUser).await, Ok(2));
    assert!(started.elapsed() < MILLI * 200);

    let patient = service.client(retrying(Retry::new())).await;
    let error = patient.send(GetUser).await.unwrap_err();
    assert_eq!(error.code, Code::DeadlineExceeded);
    assert_eq!(service.calls(), 3, "without a limit there is no time left");
}

#[tokio::test(start_paused = true)]
async fn all_clones_of_a_client_pay_from_one_budget() {
    let service = Service::start(async |_| Err(away())).await;
    let client = service.client(retrying(Retry::new().tries(5))).await;
    for calls in 1..=500 {
        client.clone().send(GetUser).await.unwrap_err();
        let retries = service.calls() - calls;
        assert!(retries <= 10 + calls / 10, "{retries} after {calls} calls");
    }
    // What the first call earns is lost: the reserve is full.
    assert_eq!(service.calls(), 500 + 10 + 49);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_call_is_not_made_again() {
    let service = Service::start(async |_| Err(away())).await;
    let client = service
        .client(retrying(Retry::new().backoff(SECOND, SECOND)))
        .await;
    fastrand::seed(1);
    let call = timeout(MILLI, client.send(GetUser).into_future());
    assert!(call.await.is_err(), "it pauses before it is made again");
    sleep(SECOND * 10).await;
    assert_eq!(service.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_begun_again_only_before_its_first_value() {
    let calls = Arc::new(AtomicUsize::new(0));
    let watch = {
        let calls = Arc::clone(&calls);
        move || {
            let values = match calls.fetch_add(1, Ordering::Relaxed) {
                0 => vec![Err(away())],
                _ => vec![Ok(1), Ok(2), Err(away())],
            };
            async { Streaming::new(stream::iter(values)) }
        }
    };
    let router = Router::new().message_at(WatchStock::PATTERN, watch);
    let service = Service::with(router, calls).await;
    let client = service.client(retrying(Retry::new())).await;
    let mut values = client.stream(WatchStock).await.unwrap();
    assert_eq!(values.try_next().await, Ok(Some(1)));
    assert_eq!(values.try_next().await, Ok(Some(2)));
    assert_eq!(values.try_next().await, Err(away()));
    assert_eq!(service.calls(), 2);
}
