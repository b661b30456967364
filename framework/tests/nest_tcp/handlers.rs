//! The handlers of the application that was captured, as far as they can be written in Rust.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use nestling::{Codec, Context, IntoAnyReply, Payload, Reply, Router, RpcError, Streaming};
use serde_json::{Value, json};

/// Which event handlers ran, with what.
pub(crate) type Events = Arc<Mutex<Vec<Value>>>;

/// A reply that is encoded already; an empty one is JavaScript's `undefined`.
pub(crate) struct Encoded(pub(crate) Bytes);

impl IntoAnyReply for Encoded {
    fn into_reply(self, _: Codec) -> Result<Reply, RpcError> {
        Ok(match self.0.is_empty() {
            true => Reply::None,
            false => Reply::Value(self.0),
        })
    }
}

pub(crate) async fn echo(cx: Context) -> Encoded {
    Encoded(cx.envelope().payload.clone())
}

async fn pause() {
    tokio::time::sleep(Duration::from_millis(5)).await;
}

/// Values over time; the end is known with the last one.
fn one_by_one(values: u32) -> impl futures_util::Stream<Item = u32> {
    stream::iter(1..=values).then(async |value| {
        pause().await;
        value
    })
}

/// Values, and then an error whose kind nobody knows.
fn failing(
    values: impl futures_util::Stream<Item = u32> + Send + 'static,
    message: &'static str,
) -> Streaming<u32> {
    let error = stream::iter([Err(RpcError::unknown(message))]);
    Streaming::new(values.map(Ok).chain(error))
}

/// A handler that fails like this.
fn fail(router: Router, pattern: &'static str, error: RpcError) -> Router {
    router.message_at(pattern, move || {
        let error = error.clone();
        async move { Err::<(), _>(error) }
    })
}

pub(crate) fn router(events: &Events) -> Router {
    let seen = |name: &'static str| {
        let events = Arc::clone(events);
        move |Payload(data): Payload<Value>| {
            events.lock().unwrap().push(json!([name, data]));
            async { Ok::<_, RpcError>(()) }
        }
    };
    let late = || async {
        let end = stream::once(pause()).filter_map(async |()| None);
        Streaming::new(stream::iter([Ok("a")]).chain(end))
    };
    let promise = || async {
        pause().await;
        Streaming::of(["p", "q"])
    };
    let sum =
        async |Payload(numbers): Payload<Vec<i64>>| Ok::<_, RpcError>(numbers.iter().sum::<i64>());
    let got = async |Payload(data): Payload<Value>| Ok::<_, RpcError>(json!({ "got": data }));
    let number =
        async |Payload(data): Payload<Value>| Ok::<_, RpcError>(format!("number pattern {data}"));
    let router = Router::new()
        .message_at("echo", echo)
        .message_at("stream3", async || Streaming::of(1..=3))
        .message_at("stream.async", async || {
            Streaming::new(one_by_one(3).map(Ok))
        })
        .message_at("stream.late", late)
        .message_at("empty", async || Streaming::<u32>::of([]))
        .message_at("undef", async || Encoded(Bytes::new()))
        .message_at("nul", async || Ok::<_, RpcError>(()))
        .message_at("promise.obs", promise)
        .message_at("err.after", async || failing(stream::iter(1..=2), "mid"))
        .message_at("err.after.async", async || failing(one_by_one(2), "late"))
        .message_at(r#"{"cmd":"sum"}"#, sum)
        .message_at(
            r#"{"z":1,"a":{"y":"q\"uote\\","b":true,"n":null},"B":[2,"x"]}"#,
            got,
        )
        .message_at("123", number)
        .event_at("evt", seen("evt"))
        .event_at("dup", seen("dup1"))
        .event_at("dup", seen("dup2"))
        .event_at(r#"{"type":"created","kind":"user"}"#, seen("evtObj"));
    let object = json!({ "code": 42, "message": "bad", "extra": [1, "x"] });
    [
        ("err.string", RpcError::unknown("boom")),
        ("err.object", RpcError::unknown("bad").with_details(object)),
        ("err.noarg", RpcError::unknown("")),
        ("err.number", RpcError::unknown("5")),
        ("err.unknown", RpcError::internal("secret")),
        ("err.http", RpcError::invalid_argument("bad request")),
        ("err.raw", RpcError::internal("raw")),
        ("guarded", RpcError::permission_denied("Forbidden resource")),
    ]
    .into_iter()
    .fold(router, |router, (pattern, error)| {
        fail(router, pattern, error)
    })
}

/// The strings that a handler of its own was registered for in `tcp_server_edge.json`.
pub(crate) fn router_of_strings(router: Router) -> Router {
    let strings = [
        "true",
        "null",
        "1.0",
        "1",
        "\"q\"",
        "sp ace",
        "[1,2]",
        r#"{"b":1,"a":2}"#,
        "a\nb",
        "1e3",
        "0x10",
    ];
    let hit = async |Payload(data): Payload<Value>| Ok::<_, RpcError>(format!("hit:{data}"));
    strings
        .into_iter()
        .fold(router, |router, pattern| router.message_at(pattern, hit))
}
