//! Handlers under wildcard patterns, on brokers that have them.

#![cfg(feature = "nats")]

use std::time::Duration;

use nestling::{Client, Context, Router, RpcError, Server};
use nestling_testkit::{Kind, broker_or_skip, unique};
use tokio::{sync::mpsc, time::timeout};

const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_handler_under_a_wildcard_sees_the_concrete_pattern() {
    let Some(url) = broker_or_skip(Kind::Nats) else {
        return;
    };
    let base = unique("time");
    let tell = |cx: Context| async move { Ok::<_, RpcError>(cx.pattern().to_owned()) };
    let (heard, mut hearing) = mpsc::unbounded_channel();
    let hear = move |cx: Context| {
        let told = heard.send(cx.pattern().to_owned());
        async move { told.map_err(RpcError::internal) }
    };
    let router = Router::new()
        .message_at(format!("{base}.us.*"), tell)
        .event_at(format!("{base}.seen.>"), hear);
    let server = Server::new("wildcards", router).listen(&url);
    let server = server.start().await.unwrap();

    let client = Client::connect(&url).await.unwrap();
    let (east, seen) = (format!("{base}.us.east"), format!("{base}.seen.far.away"));
    let told: String = client.send_at(east.clone(), &()).await.unwrap();
    assert_eq!(told, east);
    client.emit_at(seen.clone(), &()).await.unwrap();
    let told = timeout(SOON, hearing.recv()).await.unwrap();
    assert_eq!(told, Some(seen));
    server.shutdown().await;
}
