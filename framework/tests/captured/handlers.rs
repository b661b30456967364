//! The handlers of the captured server, and what they were called with.

use std::{sync::Mutex, time::Duration};

use futures_util::{StreamExt, stream};
use nestling::{Payload, Router, RpcError, Streaming};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::SOON;

/// What the handlers were called with: one log for each test's own server.
pub(crate) type Calls = &'static Mutex<Vec<Value>>;

pub(crate) fn calls() -> Calls {
    Box::leak(Box::default())
}

/// An event handler that writes down what it gets.
pub(crate) fn note(
    calls: Calls,
    name: &'static str,
) -> impl Fn(Payload<Value>) -> std::future::Ready<Result<(), RpcError>> + Clone {
    move |Payload(data)| {
        calls.lock().unwrap().push(json!([name, data]));
        std::future::ready(Ok(()))
    }
}

/// Waits until exactly these calls were made since the last time.
pub(crate) async fn wait_for(calls: Calls, expected: Vec<Value>, case: &str) {
    let done = async {
        while calls.lock().unwrap().len() < expected.len() {
            pause().await;
        }
    };
    timeout(SOON, done).await.expect(case);
    let calls = std::mem::take(&mut *calls.lock().unwrap());
    assert_eq!(calls, expected, "{case}");
}

pub(crate) async fn echo(Payload(data): Payload<Value>) -> Result<Value, RpcError> {
    Ok(data)
}

async fn pause() {
    sleep(Duration::from_millis(2)).await;
}

/// The values with time between them; the end is known with the last one.
fn slowly<T: Send + 'static>(items: Vec<Result<T, RpcError>>) -> Streaming<T> {
    Streaming::new(stream::iter(items).then(|item| async {
        pause().await;
        item
    }))
}

/// One value, and later the end.
fn late() -> Streaming<&'static str> {
    Streaming::new(stream::unfold(Some("a"), |value| async move {
        if value.is_none() {
            pause().await;
        }
        value.map(|value| (Ok(value), None))
    }))
}

pub(crate) fn router(calls: Calls) -> Router {
    let fail = |text: &'static str| move || async move { Err::<(), _>(RpcError::unknown(text)) };
    let none = || async { Streaming::of([0_u8; 0]) };
    let odd = || async {
        let details = json!({ "code": 42, "message": "bad", "extra": [1, "x"] });
        Err::<(), _>(RpcError::unknown("bad").with_details(details))
    };
    let end = |text: &'static str| vec![Ok(1), Ok(2), Err(RpcError::unknown(text))];
    let sum = |Payload(numbers): Payload<Vec<i64>>| async move {
        Ok::<i64, RpcError>(numbers.iter().sum())
    };
    let got =
        |Payload(data): Payload<Value>| async move { Ok::<_, RpcError>(json!({ "got": data })) };
    let number = |Payload(data): Payload<Value>| async move {
        Ok::<_, RpcError>(format!("number pattern {data}"))
    };
    Router::new()
        .message_at("echo", echo)
        .message_at(r#"{"cmd":"sum"}"#, sum)
        .message_at(
            r#"{"z":1,"a":{"y":"q\"uote\\","b":true,"n":null},"B":[2,"x"]}"#,
            got,
        )
        .message_at("stream3", || async { Streaming::of([1, 2, 3]) })
        .message_at("stream.async", || async {
            slowly(vec![Ok(1), Ok(2), Ok(3)])
        })
        .message_at("stream.late", || async { late() })
        .message_at("empty", none)
        .message_at("undef", none)
        .message_at("nul", || async { Ok::<_, RpcError>(Value::Null) })
        .message_at("promise.obs", || async { Streaming::of(["p", "q"]) })
        .message_at("err.string", fail("boom"))
        .message_at("err.object", odd)
        .message_at("err.noarg", fail(""))
        .message_at("err.number", fail("5"))
        .message_at("err.unknown", fail("Internal server error"))
        .message_at("err.http", fail("Internal server error"))
        .message_at("err.raw", fail("Internal server error"))
        .message_at("err.after", move || async move {
            Streaming::new(stream::iter(end("mid")))
        })
        .message_at(
            "err.after.async",
            move || async move { slowly(end("late")) },
        )
        .message_at("guarded", fail("Forbidden resource"))
        .message_at("123", number)
        .event_at("evt", note(calls, "evt"))
        .event_at("dup", note(calls, "dup1"))
        .event_at("dup", note(calls, "dup2"))
        .event_at(r#"{"type":"created","kind":"user"}"#, note(calls, "evtObj"))
}
