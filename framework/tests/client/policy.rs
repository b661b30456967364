//! What holds for which pattern.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_call_a_pattern_and_a_client_have_their_timeouts_in_this_order() {
    let service = Service::start(|_| pending()).await;
    let client = Client::builder(&service.memory)
        .timeout(SECOND * 8)
        .policy(Policy::new().timeout(SECOND * 4))
        .policy_for("user.get", Policy::new().timeout(SECOND * 2))
        .build()
        .await
        .unwrap();
    let started = Instant::now();
    let error = client.send(Charge).await.unwrap_err();
    assert_eq!(error.code, Code::DeadlineExceeded);
    assert_eq!(started.elapsed().as_secs(), 4);
    client.send(GetUser).await.unwrap_err();
    assert_eq!(started.elapsed().as_secs(), 4 + 2);
    client.send(GetUser).timeout(SECOND).await.unwrap_err();
    assert_eq!(started.elapsed().as_secs(), 4 + 2 + 1);
}

#[tokio::test(start_paused = true)]
async fn a_pattern_takes_from_its_client_what_it_leaves_unset() {
    let service = Service::start(|_| async { Err(away()) }).await;
    let breaker = Breaker::new().window(6).at_least(6);
    let client = Client::builder(&service.memory)
        .policy(Policy::new().retry(Retry::new()).breaker(breaker))
        .policy_for("user.get", Policy::new().retry(Retry::off()))
        .policy_for("free", Policy::new().breaker(Breaker::off()))
        .build()
        .await
        .unwrap();
    client.send(GetUser).await.unwrap_err();
    assert_eq!(service.calls(), 1, "it is tried again");
    for _ in 0..5 {
        client.send(GetUser).await.unwrap_err();
    }
    let error = client.send(GetUser).await.unwrap_err();
    assert_eq!(kind(&error), Some(ErrorKind::CircuitOpen));
    for _ in 0..20 {
        let error = client.send_at::<()>("free", &()).await.unwrap_err();
        assert_eq!(kind(&error), Some(ErrorKind::NoResponders));
    }
}

#[tokio::test(start_paused = true)]
async fn a_pattern_that_is_an_object_has_one_policy_however_it_is_written() {
    let service = Service::with(Router::new(), Arc::default()).await;
    let client = Client::builder(&service.memory)
        .policy_for(
            r#"{"service": "user", "cmd": "get"}"#,
            Policy::new().breaker(Breaker::new().at_least(1)),
        )
        .build()
        .await
        .unwrap();
    let mut kinds = Vec::new();
    for _ in 0..2 {
        let call = client.send_at::<()>(r#"{"cmd":"get","service":"user"}"#, &());
        kinds.extend(kind(&call.await.unwrap_err()));
    }
    assert_eq!(kinds, [ErrorKind::NoResponders, ErrorKind::CircuitOpen]);
}

#[tokio::test(start_paused = true)]
async fn patterns_without_end_share_what_is_kept_of_them() {
    let service = Service::with(Router::new(), Arc::default()).await;
    let breaker = Breaker::new().at_least(10);
    let client = service.client(Policy::new().breaker(breaker)).await;
    for n in 0..1024 + 10 {
        let error = client.send_at::<()>(format!("user.{n}"), &()).await;
        let kind = kind(&error.unwrap_err());
        assert_eq!(kind, Some(ErrorKind::NoResponders), "{n}");
    }
    let error = client.send_at::<()>("user.2000", &()).await.unwrap_err();
    assert_eq!(
        error.message,
        "the circuit breaker of other patterns is open"
    );
    let error = client.send_at::<()>("user.7", &()).await.unwrap_err();
    assert_eq!(kind(&error), Some(ErrorKind::NoResponders));
}

#[tokio::test(start_paused = true)]
async fn times_without_end_are_taken_as_very_long() {
    let service = Service::start(async |_| Err(away())).await;
    let retry = Retry::new()
        .per_try(Duration::MAX)
        .backoff(Duration::MAX, Duration::MAX);
    let breaker = Breaker::new().at_least(1).cool_down(Duration::MAX);
    let policy = Policy::new().retry(retry).breaker(breaker);
    let client = service.client(policy.timeout(Duration::MAX)).await;
    client.send(GetUser).await.unwrap_err();
    let error = client.send(GetUser).await.unwrap_err();
    assert_eq!(kind(&error), Some(ErrorKind::CircuitOpen));
}
