//! Events: who sees them, in which order, and what becomes of those that fail.

use std::time::Duration;

use nestling::{Client, Code, Context, Payload, Router, RpcError};
use tokio::task::yield_now;

use super::{
    fixture::{Stage, echo},
    witness::{Record, eventually},
};

/// Short, so that a case with retries is quick.
const FIRST_DELAY: Duration = Duration::from_millis(10);
const TRIES: u32 = 3;

type Tried = Record<(u64, u32)>;

/// An event arrives with its payload, its headers and its key.
pub async fn an_event_reaches_its_handler(stage: Stage) {
    let pattern = stage.pattern("happened");
    let seen = Record::new();
    let handler = move |Payload(text): Payload<String>, cx: Context| async move {
        let value = |name| cx.header(name).map(str::to_owned);
        seen.push((text, cx.pattern().to_owned(), value("x-one"), value("key")));
        Ok::<_, RpcError>(())
    };
    let server = stage
        .start(Router::new().event_with(pattern, stage.guarantee(), handler))
        .await;
    let client = stage.client(&[&server]).await;

    let event = client
        .emit_at(pattern, "it happened")
        .header("x-one", "1")
        .header("key", "k");
    event.await.unwrap();
    let text = |text: &str| Some(text.to_owned());
    let expected = (
        "it happened".to_owned(),
        pattern.to_owned(),
        text("1"),
        text("k"),
    );
    assert_eq!(seen.first().await, expected);
}

/// Of one pattern's messages and events each goes to the right handler.
pub async fn one_pattern_may_name_a_message_and_an_event(stage: Stage) {
    const EACH: u64 = 20;

    let pattern = stage.pattern("both");
    let seen = Record::new();
    let react = move |Payload(n): Payload<u64>| async move {
        seen.push(n);
        Ok::<_, RpcError>(())
    };
    let router = Router::new().message_at(pattern, echo::<u64>).event_with(
        pattern,
        stage.guarantee(),
        react,
    );
    let server = stage.start(router).await;
    let client = stage.client(&[&server]).await;
    for n in 0..EACH {
        assert_eq!(client.send_at::<u64>(pattern, &n).await, Ok(n));
        client.emit_at(pattern, &(EACH + n)).await.unwrap();
    }
    let mut seen = seen.at_least(EACH as usize).await;
    seen.sort_unstable();
    assert_eq!(seen, (EACH..2 * EACH).collect::<Vec<_>>());
}

/// Every service gets every event; its replicas share them.
pub async fn two_services_each_see_every_event_once(stage: Stage) {
    const EVENTS: u64 = 40;

    let pattern = stage.pattern("happened");
    let replicas = if stage.capabilities().replicas_share {
        2
    } else {
        1
    };
    let mut servers = Vec::new();
    let mut records = Vec::new();
    for service in ["one", "two"] {
        let seen = Record::new();
        let handler = move |Payload(n): Payload<u64>| async move {
            yield_now().await;
            seen.push(n);
            Ok::<_, RpcError>(())
        };
        let router = Router::new().event_with(pattern, stage.guarantee(), handler);
        for _ in 0..replicas {
            servers.push(
                stage
                    .start_server(stage.server(service, router.clone()))
                    .await,
            );
        }
        records.push(seen);
    }
    let all: Vec<_> = servers.iter().collect();
    let client = stage.client(&all).await;

    for n in 0..EVENTS {
        client.emit_at(pattern, &n).await.unwrap();
    }
    for seen in records {
        let mut events = seen.at_least(EVENTS as usize).await;
        events.sort_unstable();
        assert_eq!(events, (0..EVENTS).collect::<Vec<_>>());
    }
}

/// Events about one thing are handled one after the other, in the order they were emitted, whichever replica does it and
/// however long each takes.
pub async fn events_with_one_key_keep_their_order(stage: Stage) {
    in_order_of_their_key(stage, 2).await;
}

/// So they are where one replica gets them all.
pub async fn events_with_one_key_keep_their_order_in_a_replica(stage: Stage) {
    in_order_of_their_key(stage, 1).await;
}

async fn in_order_of_their_key(stage: Stage, replicas: usize) {
    const KEYS: usize = 5;
    const EVENTS: usize = 100;

    let pattern = stage.pattern("happened");
    let seen = Record::new();
    let handler = move |Payload(n): Payload<usize>| async move {
        for _ in 0..(EVENTS - n) % 4 {
            yield_now().await;
        }
        seen.push(n);
        Ok::<_, RpcError>(())
    };
    let router = Router::new().event_with(pattern, stage.guarantee(), handler);
    let mut servers = Vec::new();
    for _ in 0..replicas {
        let server = stage.server("service", router.clone());
        servers.push(stage.start_server(server).await);
    }
    let client = stage.client(&servers.iter().collect::<Vec<_>>()).await;

    for n in 0..EVENTS {
        client
            .emit_at(pattern, &n)
            .header("key", format!("key {}", n % KEYS))
            .await
            .unwrap();
    }
    let seen = seen.at_least(EVENTS).await;
    for key in 0..KEYS {
        let of_key: Vec<_> = seen.iter().copied().filter(|n| n % KEYS == key).collect();
        assert_eq!(of_key, (key..EVENTS).step_by(KEYS).collect::<Vec<_>>());
    }
}

/// What may pass later is tried again, with growing attempt numbers, and given up at the limit.
pub async fn a_failing_event_is_tried_up_to_the_limit_and_lets_the_next_through(stage: Stage) {
    let tried = failing(&stage, || RpcError::unavailable("not now")).await;
    let tries = stage.tries(TRIES);
    let expected: Vec<_> = (1..=tries)
        .map(|attempt| (0, attempt))
        .chain([(1, 1), (2, 1)])
        .collect();
    assert_eq!(tried, expected);
}

/// What cannot pass is not tried again.
pub async fn an_event_that_cannot_pass_is_tried_once(stage: Stage) {
    let tried = failing(&stage, || RpcError::invalid_argument("never")).await;
    assert_eq!(tried, [(0, 1), (1, 1), (2, 1)]);
}

/// A panic counts as `Internal`, which may pass.
pub async fn a_panic_is_a_failure_like_any_other(stage: Stage) {
    let tried = failing(&stage, || panic!("on purpose")).await;
    assert_eq!(tried.len(), stage.tries(TRIES) as usize + 2);
}

/// Emits 0, which fails, then 1, then 2, and returns all that was tried, by event and attempt.
async fn failing(stage: &Stage, error: fn() -> RpcError) -> Vec<(u64, u32)> {
    let pattern = stage.pattern("happened");
    let tried: &Tried = Record::new();
    let handler = move |Payload(n): Payload<u64>, cx: Context| async move {
        tried.push((n, cx.attempt()));
        if n == 0 { Err(error()) } else { Ok(()) }
    };
    let router = Router::new().event_with(pattern, stage.guarantee(), handler);
    let server = stage.server("service", router).retry(TRIES, FIRST_DELAY);
    let server = stage.start_server(server).await;
    let client = stage.client(&[&server]).await;

    for n in [0, 1] {
        client
            .emit_at(pattern, &n)
            .header("key", "k")
            .await
            .unwrap();
    }
    seen(tried, 1).await;
    tried.at_least(stage.tries(1) as usize + 1).await;
    // What came twice by mistake would have come before this one.
    client
        .emit_at(pattern, &2)
        .header("key", "k")
        .await
        .unwrap();
    seen(tried, 2).await;
    let mut all = tried.all();
    all.sort_unstable();
    all
}

async fn seen(tried: &Tried, event: u64) {
    eventually("an event", async || {
        tried.all().iter().find(|(n, _)| *n == event).copied()
    })
    .await;
}

/// Nobody can handle it, so it is put aside.
pub async fn an_undecodable_event_lets_the_next_through(stage: Stage) {
    let pattern = stage.pattern("happened");
    let tried: &Tried = Record::new();
    let handler = move |Payload(n): Payload<u64>, cx: Context| async move {
        tried.push((n, cx.attempt()));
        Ok::<_, RpcError>(())
    };
    let router = Router::new().event_with(pattern, stage.guarantee(), handler);
    let server = stage.server("service", router).retry(TRIES, FIRST_DELAY);
    let server = stage.start_server(server).await;
    let client = stage.client(&[&server]).await;

    client
        .emit_at(pattern, "seven")
        .header("key", "k")
        .await
        .unwrap();
    client
        .emit_at(pattern, &7)
        .header("key", "k")
        .await
        .unwrap();
    assert_eq!(tried.first().await, (7, 1));
}

/// Handlers of one event succeed and fail apart.
pub async fn the_failure_of_one_handler_does_not_repeat_the_other(stage: Stage) {
    let pattern = stage.pattern("happened");
    let (failed, fine): (&Tried, &Tried) = (Record::new(), Record::new());
    let fail = move |Payload(n): Payload<u64>, cx: Context| async move {
        failed.push((n, cx.attempt()));
        if n == 0 {
            Err(RpcError::unavailable("not now"))
        } else {
            Ok(())
        }
    };
    let succeed = move |Payload(n): Payload<u64>, cx: Context| async move {
        fine.push((n, cx.attempt()));
        Ok::<_, RpcError>(())
    };
    let router = Router::new()
        .event_with(pattern, stage.guarantee(), fail)
        .event_with(pattern, stage.guarantee(), succeed);
    let server = stage.server("service", router).retry(TRIES, FIRST_DELAY);
    let server = stage.start_server(server).await;
    let client = stage.client(&[&server]).await;

    client
        .emit_at(pattern, &0)
        .header("key", "k")
        .await
        .unwrap();
    failed.at_least(stage.tries(TRIES) as usize).await;
    client
        .emit_at(pattern, &1)
        .header("key", "k")
        .await
        .unwrap();
    seen(failed, 1).await;
    seen(fine, 1).await;
    assert_eq!(fine.all(), [(0, 1), (1, 1)]);
    assert_eq!(failed.count(), stage.tries(TRIES) as usize + 1);
}

/// An event above the limit is refused, and the connection stays.
pub async fn an_oversize_event_is_refused(stage: Stage) {
    let pattern = stage.pattern("happened");
    let lengths = Record::new();
    let handler = move |Payload(text): Payload<String>| async move {
        lengths.push(text.len());
        Ok::<_, RpcError>(())
    };
    let server = stage
        .start(Router::new().event_with(pattern, stage.guarantee(), handler))
        .await;
    let client = stage.client(&[&server]).await;

    let oversize = "x".repeat(stage.capabilities().max_payload);
    let error = client.emit_at(pattern, &oversize).await.unwrap_err();
    assert_eq!(error.code, Code::ResourceExhausted);
    client.emit_at(pattern, "small").await.unwrap();
    assert_eq!(lengths.first().await, 5);
}

/// A service that comes back finds what happened meanwhile, and nothing it had handled before.
pub async fn events_wait_for_a_stopped_service(stage: Stage) {
    let pattern = stage.pattern("happened");
    let seen = Record::new();
    let handler = move |Payload(n): Payload<u64>| async move {
        seen.push(n);
        Ok::<_, RpcError>(())
    };
    let router = Router::new().event_with(pattern, stage.guarantee(), handler);
    let server = || {
        stage
            .server("service", router.clone())
            .instance(stage.service("a"))
    };
    let running = stage.start_server(server()).await;
    let client = stage.client(&[&running]).await;
    emit_in_order(&client, pattern, 0..3).await;
    seen.at_least(3).await;

    running.shutdown().await;
    emit_in_order(&client, pattern, 3..6).await;
    let _running = stage.start_server(server()).await;
    assert_eq!(seen.at_least(6).await, [0, 1, 2, 3, 4, 5]);
    emit_in_order(&client, pattern, 6..7).await;
    assert_eq!(seen.at_least(7).await, [0, 1, 2, 3, 4, 5, 6]);
}

async fn emit_in_order(client: &Client, pattern: &'static str, events: std::ops::Range<u64>) {
    for n in events {
        client
            .emit_at(pattern, &n)
            .header("key", "k")
            .await
            .unwrap();
    }
}
