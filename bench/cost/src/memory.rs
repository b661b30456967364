//! Both sides of a message over the in-memory transport.

use bytestring::ByteString;
use nestling::{Client, Codec, Context, RpcError, Running, SendCall, Streaming, transport::Memory};

use crate::{
    Answer, Ask, AskWithContext, Bench, CENTS, List, ORDER, Placed, USER, Work, answer, ask,
    events, messages,
};

const HEADERS: [(&str, &str); 5] = [
    ("actor", "user:98765"),
    ("x-tenant", "north"),
    ("x-request", "0123456789abcdef"),
    ("idempotency-key", "order-1234567890"),
    (
        "traceparent",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ),
];

pub(crate) async fn with_context(ask: AskWithContext, cx: Context) -> Result<Answer, RpcError> {
    assert_eq!(cx.transport(), "memory");
    Ok(answer(ask.order, ask.cents))
}

pub(crate) async fn list(list: List) -> Result<Streaming<Answer>, RpcError> {
    let values = (0..list.count).map(|order| answer(order, CENTS));
    Ok(Streaming::of(values))
}

fn connect(bench: &Bench, codec: Codec) -> (Running, Client) {
    let memory = Memory::new();
    let server = bench.serve(messages().event(events::placed), &memory);
    let client = Client::builder(&memory).codec(codec).build();
    let client = bench.wait(client).expect("memory is always there");
    (server, client)
}

/// One request after the other.
pub(crate) fn requests<C>(bench: Bench, server: Running, client: Client, call: C) -> Work
where
    C: Fn(&Client) -> SendCall<'_, Answer> + Copy + Send + Sync + 'static,
{
    Box::new(move |messages| {
        let _running = &server;
        let client = client.clone();
        bench.run(async move {
            for _ in 0..messages {
                let reply = call(&client).await.expect("it is answered");
                assert_eq!(reply, answer(ORDER, CENTS));
            }
        });
    })
}

pub(crate) fn request(bench: Bench) -> Work {
    let (server, client) = connect(&bench, Codec::Json);
    requests(bench, server, client, |client| client.send(ask()))
}

pub(crate) fn request_bincode(bench: Bench) -> Work {
    let (server, client) = connect(&bench, Codec::Bincode);
    requests(bench, server, client, |client| client.send(ask()))
}

pub(crate) fn request_with_context(bench: Bench) -> Work {
    let (server, client) = connect(&bench, Codec::Json);
    requests(bench, server, client, |client| {
        let Ask { order, user, cents } = ask();
        client.send(AskWithContext { order, user, cents })
    })
}

pub(crate) fn request_with_headers(bench: Bench) -> Work {
    let (server, client) = connect(&bench, Codec::Json);
    requests(bench, server, client, |client| {
        HEADERS
            .iter()
            .fold(client.send(ask()), |call, (name, value)| {
                call.header(
                    ByteString::from_static(name),
                    ByteString::from_static(value),
                )
            })
    })
}

/// One stream with all the values.
pub(crate) fn stream(bench: Bench) -> Work {
    let (server, client) = connect(&bench, Codec::Json);
    Box::new(move |messages| {
        let _running = &server;
        let client = client.clone();
        bench.run(async move {
            let call = client.stream(List { count: messages });
            let mut values = call.await.expect("it is answered");
            for order in 0..messages {
                let value = values.try_next().await.expect("it does not fail");
                assert_eq!(value, Some(answer(order, CENTS)));
            }
            assert_eq!(values.try_next().await, Ok(None));
        });
    })
}

/// One event after the other, each emitted and handled.
pub(crate) fn event(bench: Bench) -> Work {
    let (server, client) = connect(&bench, Codec::Json);
    Box::new(move |messages| {
        let _running = &server;
        let client = client.clone();
        let before = events::count();
        bench.run(async move {
            for sent in 1..=messages {
                let event = Placed {
                    order: ORDER,
                    user: USER,
                    cents: CENTS,
                };
                client.emit(event).await.expect("it is taken");
                while events::count() < before + sent {
                    tokio::task::yield_now().await;
                }
            }
        });
    })
}
