//! The nestling server: the handlers of `testkit/nestjs/handlers.mjs`, as far as nestling has their behaviour.

use std::{
    future::pending,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use nestling::{Context, Guarantee, Payload, Router, RpcError, Streaming};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::sleep;

use crate::{
    names::{Names, Pattern},
    stage::Transport,
};

/// What NestJS needs to be asked for by name.
const HEADERS: [&str; 2] = ["x-trace", "x-other"];

type Seen = Arc<Mutex<Vec<Value>>>;

#[derive(Deserialize)]
struct Greet {
    name: String,
}

/// All of them that the transport can have.
pub(crate) fn router(names: &Names, transport: Transport) -> Router {
    let at = |name| names.at(name).text;
    let seen = Seen::default();
    let router = Router::new()
        .message_at(at("echo"), echo)
        .message_at(at("double"), async |Payload(n): Payload<u64>| ok(n * 2))
        .message_at(at("is_even"), async |Payload(n): Payload<u64>| {
            ok(n % 2 == 0)
        })
        .message_at(at("greet"), async |Payload(greet): Payload<Greet>| {
            ok(format!("Hello, {}!", greet.name))
        })
        .message_at(at("null"), async || ok(()))
        .message_at(at("silent"), pending::<Result<(), RpcError>>)
        .message_at(at("headers"), async |cx: Context| ok(headers(&cx)))
        .message_at(at("remaining"), async |cx: Context| {
            ok(cx.remaining().map(|time| time.as_millis() as u64))
        })
        .message_at(at("stream.none"), async || Streaming::<u32>::of([]))
        .message_at(at("stream.tick"), async |Payload(count): Payload<u32>| {
            Streaming::of(1..=count)
        })
        .message_at(at("stream.time"), async |Payload(count): Payload<u32>| {
            Streaming::new(stream::iter(1..=count).then(async |value| {
                sleep(Duration::from_millis(10)).await;
                Ok(value)
            }))
        })
        .message_at(at("stream.late"), async |Payload(count): Payload<u32>| {
            let end = stream::once(sleep(Duration::from_millis(30)));
            let end = end.filter_map(async |()| None);
            Streaming::new(stream::iter(1..=count).map(Ok).chain(end))
        })
        .message_at(at("stream.fails"), async |Payload(count): Payload<u32>| {
            Streaming::new(stream::iter((1..=count).map(Ok).chain([Err(coded())])))
        })
        .message_at(at("stream.open"), async |Payload(count): Payload<u32>| {
            Streaming::new(stream::iter((1..=count).map(Ok)).chain(stream::pending()))
        })
        .message_at(at("error.coded"), async || Err::<(), _>(coded()))
        .message_at(at("error.bare"), async || {
            Err::<(), _>(RpcError::aborted("version conflict"))
        })
        .message_at(at("error.plain"), async || {
            Err::<(), _>(RpcError::internal("a secret"))
        })
        .message_at(at("note"), {
            let seen = Arc::clone(&seen);
            move |Payload(data): Payload<Value>, cx: Context| {
                note(&seen, "note", &data, &cx);
                async { ok(data) }
            }
        })
        .message_at(at("seen"), {
            let seen = Arc::clone(&seen);
            move |Payload(event): Payload<String>| {
                let all = seen.lock().unwrap().clone();
                async move {
                    let wanted = all.into_iter().filter(|entry| entry["event"] == event);
                    ok(wanted.collect::<Vec<_>>())
                }
            }
        })
        .message_at(names.number().text, echo);
    let happened = names.at("event.happened");
    let router = record(
        router,
        &seen,
        &happened,
        "event.happened",
        Guarantee::BestEffort,
    );
    let needs = match transport {
        Transport::Tcp | Transport::Nats => Guarantee::BestEffort,
        Transport::Redis | Transport::Kafka => Guarantee::AtLeastOnce,
    };
    let router = record(router, &seen, &names.at("event.kept"), "event.kept", needs);
    if transport == Transport::Kafka {
        return router;
    }
    let mut router = router
        .message_at(names.sum().text, async |Payload(n): Payload<Vec<i64>>| {
            ok(n.iter().sum::<i64>())
        })
        .message_at(names.nested().text, echo)
        .message_at(at("zażółć.😀"), echo);
    if matches!(transport, Transport::Nats | Transport::Redis) {
        router = router.message_at(at("time.us.*"), async |cx: Context| {
            ok(json!({ "destination": cx.pattern() }))
        });
    }
    if transport == Transport::Nats {
        router = record(
            router,
            &seen,
            &names.at("audit.>"),
            "audit",
            Guarantee::BestEffort,
        );
    }
    record(
        router,
        &seen,
        &names.user_created(),
        "user.created",
        Guarantee::BestEffort,
    )
}

/// What was sent, whatever it is.
async fn echo(Payload(value): Payload<Value>) -> Result<Value, RpcError> {
    Ok(value)
}

fn record(
    router: Router,
    seen: &Seen,
    pattern: &Pattern,
    event: &'static str,
    needs: Guarantee,
) -> Router {
    let seen = Arc::clone(seen);
    let handler = move |Payload(data): Payload<Value>, cx: Context| {
        note(&seen, event, &data, &cx);
        async { ok(()) }
    };
    router.event_with(pattern.text.clone(), needs, handler)
}

fn note(seen: &Seen, event: &str, data: &Value, cx: &Context) {
    seen.lock().unwrap().push(json!({
        "event": event,
        "data": data,
        "metadata": headers(cx),
        "destination": cx.pattern(),
    }));
}

fn headers(cx: &Context) -> Value {
    let found = HEADERS.iter().filter_map(|name| {
        let value = cx.header(name)?;
        Some(((*name).to_owned(), Value::from(value)))
    });
    Value::Object(found.collect::<Map<_, _>>())
}

/// The error that the NestJS server has under the same name.
pub(crate) fn coded() -> RpcError {
    RpcError::not_found("no such user").with_details(json!({ "id": 7, "tags": ["a", "ż"] }))
}

fn ok<T>(value: T) -> Result<T, RpcError> {
    Ok(value)
}
