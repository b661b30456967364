//! Streamed replies: order, end, errors, and readers who stop or lag.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use nestling::{Client, Code, Payload, Router, RpcError, Streaming};

use super::{
    fixture::{Stage, echo},
    witness::{Gate, within},
};

/// No value, one, and more than any window: all arrive, in order, and then the end.
pub async fn a_stream_has_all_its_values_in_order(stage: Stage) {
    let pattern = stage.pattern("count");
    let count = |Payload(n): Payload<u64>| async move { Streaming::of(0..n) };
    let server = stage.start(Router::new().message_at(pattern, count)).await;
    let client = stage.client(&[&server]).await;

    for length in [0, 1, 1000] {
        let (values, end) = read_all(&client, pattern, length).await;
        assert_eq!(values, (0..length).collect::<Vec<_>>());
        assert_eq!(end, Ok(()), "after {length} values");
    }
}

/// An error arrives behind the values that came before it.
pub async fn an_error_ends_a_stream_after_its_values(stage: Stage) {
    let pattern = stage.pattern("count");
    let count = |Payload(n): Payload<u64>| async move {
        let error = RpcError::not_found("no more").with_details(serde_json::json!({ "after": n }));
        Streaming::new(stream::iter((0..n).map(Ok)).chain(stream::iter([Err(error), Ok(u64::MAX)])))
    };
    let server = stage.start(Router::new().message_at(pattern, count)).await;
    let client = stage.client(&[&server]).await;

    for length in [0, 3, 300] {
        let (values, end) = read_all(&client, pattern, length).await;
        assert_eq!(values, (0..length).collect::<Vec<_>>());
        let expected =
            RpcError::not_found("no more").with_details(serde_json::json!({ "after": length }));
        assert_eq!(end, Err(expected));
    }
}

/// A handler may answer with an error where a stream is expected.
pub async fn a_stream_may_be_refused_before_its_first_value(stage: Stage) {
    let pattern = stage.pattern("refuse");
    let refuse = || async { Err::<u64, _>(RpcError::permission_denied("not you")) };
    let server = stage.start(Router::new().message_at(pattern, refuse)).await;
    let client = stage.client(&[&server]).await;

    let (values, end) = read_all(&client, pattern, 0).await;
    assert!(values.is_empty());
    assert_eq!(end, Err(RpcError::permission_denied("not you")));
}

/// A stream that panics ends with `Internal`, and the server goes on.
pub async fn a_panic_ends_a_stream_after_its_values(stage: Stage) {
    let pattern = stage.pattern("panic");
    let count = |Payload(n): Payload<u64>| async move {
        Streaming::new(stream::iter(0..).map(move |at| {
            assert!(at < n, "on purpose");
            Ok(at)
        }))
    };
    let server = stage.start(Router::new().message_at(pattern, count)).await;
    let client = stage.client(&[&server]).await;

    for length in [3, 5] {
        let (values, end) = read_all(&client, pattern, length).await;
        assert_eq!(values, (0..length).collect::<Vec<_>>());
        assert_eq!(end.unwrap_err().code, Code::Internal);
    }
}

/// A caller who drops the stream stops the one who makes its values.
pub async fn a_dropped_stream_stops_its_producer(stage: Stage) {
    let pattern = stage.pattern("endless");
    let ended = Gate::new();
    let endless = move || async move {
        let held = ended.on_drop();
        Streaming::new(stream::iter(0_u64..).map(move |n| {
            // The closure owns it, and so it lives as long as the stream.
            let _held = &held;
            Ok(n)
        }))
    };
    let server = stage
        .start(Router::new().message_at(pattern, endless))
        .await;
    let client = stage.client(&[&server]).await;

    let mut values = client.stream_at::<u64>(pattern, &()).await.unwrap();
    for expected in 0..3 {
        assert_eq!(
            within("a value", values.try_next()).await,
            Ok(Some(expected))
        );
    }
    assert!(!ended.is_open());
    drop(values);
    ended.opened("the producer to be dropped").await;
}

/// Values that nobody reads are not made: there is a window, and then the producer waits.
pub async fn a_slow_reader_slows_the_producer(stage: Stage) {
    const WINDOW: u64 = nestling::transport::WINDOW as u64;

    let (endless, ping) = (stage.pattern("endless"), stage.pattern("ping"));
    let made: &'static AtomicU64 = Box::leak(Box::default());
    let produce = move || async move {
        Streaming::new(stream::iter(0_u64..).map(move |n| {
            made.fetch_add(1, Ordering::Relaxed);
            Ok((n, "x".repeat(1000)))
        }))
    };
    let router = Router::new()
        .message_at(endless, produce)
        .message_at(ping, echo::<u64>);
    let server = stage.start(router).await;
    let client = stage.client(&[&server]).await;

    let mut values = client
        .stream_at::<(u64, String)>(endless, &())
        .await
        .unwrap();
    for expected in 0..10 * WINDOW {
        let value = within("a value", values.try_next()).await.unwrap();
        assert_eq!(value.map(|(n, _)| n), Some(expected));
        if expected % WINDOW == 0 {
            // Time enough for a producer that nothing holds back.
            for n in 0..20 {
                assert_eq!(client.send_at::<u64>(ping, &n).await, Ok(n));
            }
        }
        let ahead = made.load(Ordering::Relaxed).saturating_sub(expected);
        assert!(
            ahead <= 2 * WINDOW + 1,
            "{ahead} values ahead of their reader"
        );
    }
}

/// The values of a stream, and how it ended.
pub(super) async fn read_all(
    client: &Client,
    pattern: &'static str,
    payload: u64,
) -> (Vec<u64>, Result<(), RpcError>) {
    let mut stream = match client
        .stream_at::<u64>(pattern, &payload)
        .timeout(Duration::from_secs(20))
        .await
    {
        Ok(stream) => stream,
        Err(error) => return (Vec::new(), Err(error)),
    };
    let mut values = Vec::new();
    loop {
        match within("the next value", stream.try_next()).await {
            Ok(Some(value)) => values.push(value),
            Ok(None) => return (values, Ok(())),
            Err(error) => return (values, Err(error)),
        }
    }
}
