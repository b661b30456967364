//! Connections that are lost, and made again.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use nestling::{Client, Code, Context, Payload, Router, RpcError, Streaming};
use serde_json::Value;
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, timeout},
};

use crate::{
    broker,
    captured::handlers::echo,
    nest_client,
    peer::{Answer, Peer, SOON},
    start,
};

/// Cuts off everybody who is subscribed to something.
async fn cut_off(url: &str) {
    let mut peer = Peer::connect(url).await;
    let killed = peer.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    assert!(matches!(killed, Answer::Number(1..)), "{killed:?}");
}

/// Calls until it is answered: what is published while nobody listens is lost.
async fn until_answered(client: &Client, pattern: &'static str) {
    let begun = Instant::now();
    loop {
        let call = client.send_at::<Value>(pattern, &1);
        match call.timeout(Duration::from_millis(500)).await {
            Ok(_) => return,
            Err(error) => assert!(begun.elapsed() < SOON, "{error}"),
        }
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_server_listens_again_to_channels_and_globs() {
    let Some(broker) = broker() else { return };
    let url = broker.url();
    let name = |cx: Context| async move { Ok::<_, RpcError>(cx.pattern().to_owned()) };
    let router = Router::new()
        .message_at("echo", echo)
        .message_at("users.*", name);
    let server = start(&url, "again", router).await;
    let client = nest_client(&url).await;
    let begun = Instant::now();
    for _ in 0..3 {
        cut_off(&url).await;
        until_answered(&client, "echo").await;
        until_answered(&client, "users.1").await;
    }
    // Not only when the connection is tested, which is every five seconds.
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    server.shutdown().await;
}

#[tokio::test]
async fn a_call_fails_when_its_clients_connection_is_lost() {
    let Some(broker) = broker() else { return };
    let url = broker.url();
    let mut service = Peer::connect(&url).await;
    service.command(&["SUBSCRIBE", "never"]).await;
    let client = nest_client(&url).await;
    let calling = client.clone();
    let call = async move {
        let call = calling.send_at::<()>("never", &()).timeout(4 * SOON);
        call.await
    };
    let cut = async {
        service.heard().await;
        cut_off(&url).await;
    };
    let (result, ()) = timeout(SOON, async { tokio::join!(call, cut) })
        .await
        .expect("the call waits for its deadline");
    assert_eq!(result.unwrap_err().code, Code::Unavailable);

    let server = start(&url, "afterwards", Router::new().message_at("echo", echo)).await;
    assert_eq!(client.send_at::<u64>("echo", &1).await, Ok(1));
    server.shutdown().await;
}

#[tokio::test]
async fn a_reply_waits_for_the_servers_connection() {
    let Some(broker) = broker() else { return };
    let url = broker.url();
    let (started, release) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (begins, ends) = (Arc::clone(&started), Arc::clone(&release));
    let wait = move |Payload(n): Payload<u64>| {
        let (begins, ends) = (Arc::clone(&begins), Arc::clone(&ends));
        async move {
            begins.add_permits(1);
            ends.acquire().await.map_err(RpcError::internal)?.forget();
            Ok::<_, RpcError>(n)
        }
    };
    let server = start(&url, "patient", Router::new().message_at("wait", wait)).await;
    let mut peer = Peer::connect(&url).await;
    peer.publish("wait", r#"{"data":5,"id":1}"#).await;
    started.acquire().await.unwrap().forget();
    cut_off(&url).await;
    let mut caller = Peer::of_all_replies(&url).await;
    release.add_permits(1);
    let reply = caller.heard().await;
    assert_eq!(reply.payload, r#"{"response":5,"isDisposed":true,"id":1}"#);
    server.shutdown().await;
}

/// Values without an end, until nobody takes them.
async fn endless() -> Streaming<u32> {
    Streaming::new(stream::iter(0..).map(Ok))
}

#[tokio::test]
async fn a_stream_whose_values_may_be_lost_ends_with_an_error() {
    let Some(broker) = broker() else { return };
    let url = broker.url();
    let server = start(&url, "torn", Router::new().message_at("endless", endless)).await;
    let mut peer = Peer::connect(&url).await;
    peer.publish_and_pause("endless", r#"{"data":0,"id":1}"#)
        .await;
    cut_off(&url).await;
    // Whoever still listens gets the end, and no value twice.
    let mut caller = Peer::of_all_replies(&url).await;
    peer.command(&["CLIENT", "UNPAUSE"]).await;
    let end = async {
        loop {
            let reply: Value = serde_json::from_str(&caller.heard().await.payload).unwrap();
            if reply.get("isDisposed").is_some() {
                return reply;
            }
        }
    };
    let end = timeout(SOON, end).await.expect("the stream goes on");
    assert_eq!(end["err"]["code"], "UNAVAILABLE", "{end}");
    assert_eq!(caller.all_heard().await, []);
    server.shutdown().await;
}

#[tokio::test]
async fn an_event_that_may_be_lost_is_not_acknowledged() {
    let Some(mut broker) = broker() else { return };
    let client = nest_client(&broker.url()).await;
    client.emit_at("happened", &1).await.unwrap();
    broker.kill();
    let event = client
        .emit_at("happened", &2)
        .timeout(Duration::from_secs(1));
    let code = event.await.unwrap_err().code;
    assert!(
        matches!(code, Code::Unavailable | Code::DeadlineExceeded),
        "{code}"
    );
    let call = client.send_at::<()>("ask", &()).timeout(4 * SOON);
    let begun = Instant::now();
    assert_eq!(call.await.unwrap_err().code, Code::Unavailable);
    assert!(begun.elapsed() < SOON);
}
