//! Single replies: what travels, who gets what, and what a dropped call means.

use std::{
    future::{IntoFuture, pending},
    sync::OnceLock,
    time::Duration,
};

use futures_util::future::join_all;
use nestling::{
    Client, Codec, Context, Payload, Router, RpcError, header,
    transport::{ErrorKind, Wire},
};

use super::{
    fixture::{Stage, echo},
    witness::{Gate, Record, within},
};

/// Longer than any case: a deadline that must not be what ends something.
const FOR_EVER: Duration = Duration::from_secs(600);

/// A message gets its reply, and its handler learns how it came.
pub async fn a_message_gets_its_reply(stage: Stage) {
    let pattern = stage.pattern("double");
    let contexts = Record::new();
    let double = move |Payload(n): Payload<u64>, cx: Context| async move {
        contexts.push((cx.pattern().to_owned(), cx.transport(), cx.attempt()));
        Ok::<_, RpcError>(n * 2)
    };
    let server = stage.start(Router::new().message_at(pattern, double)).await;
    let client = stage.client(&[&server]).await;

    assert_eq!(client.send_at::<u64>(pattern, &21).await, Ok(42));
    assert_eq!(
        contexts.all(),
        [(pattern.to_owned(), client.transport(), 1)]
    );
}

/// Headers arrive as they were sent, also with text that a wire may have to escape.
pub async fn headers_travel(stage: Stage) {
    let pattern = stage.pattern("headers");
    let read = |cx: Context| async move {
        let names = ["x-one", "x-two", header::ACTOR, "x-none"];
        Ok::<_, RpcError>(names.map(|name| cx.header(name).map(str::to_owned)))
    };
    let server = stage.start(Router::new().message_at(pattern, read)).await;
    let client = stage.client(&[&server]).await;

    let awkward = r#"{"a": "b=c; d, é%20"}"#;
    let call = client.send_at::<[Option<String>; 4]>(pattern, &());
    let call = call.header("x-one", "plain").header("X-Two", awkward);
    let seen = call.header(header::ACTOR, "ada").await.unwrap();
    assert_eq!(
        seen.each_ref().map(Option::as_deref),
        [Some("plain"), Some(awkward), Some("ada"), None]
    );
}

/// A handler knows how long its caller waits.
pub async fn the_deadline_travels(stage: Stage) {
    let pattern = stage.pattern("remaining");
    let server = stage
        .start(Router::new().message_at(pattern, remaining))
        .await;
    let client = stage.client(&[&server]).await;

    let given = Duration::from_secs(60);
    let left = client
        .send_at::<Duration>(pattern, &())
        .timeout(given)
        .await
        .unwrap();
    assert!(left <= given && left > given / 2, "{left:?} of {given:?}");
}

async fn remaining(cx: Context) -> Result<Duration, RpcError> {
    cx.remaining()
        .ok_or_else(|| RpcError::failed_precondition("no deadline"))
}

/// A call made by a handler waits no longer than the handler's own caller, and is made in that one's name.
pub async fn a_nested_call_inherits_deadline_and_actor(stage: Stage) {
    let (outer, inner) = (stage.pattern("outer"), stage.pattern("inner"));
    let for_handler: &'static OnceLock<Client> = Box::leak(Box::default());
    let ask = move || async move {
        let client = for_handler
            .get()
            .ok_or_else(|| RpcError::unavailable("no client yet"))?;
        client
            .send_at::<(Duration, Option<String>)>(inner, &())
            .timeout(FOR_EVER)
            .await
    };
    let answer = |cx: Context| async move {
        let actor = cx.header(header::ACTOR).map(str::to_owned);
        Ok::<_, RpcError>((remaining(cx).await?, actor))
    };
    let server = stage
        .start(
            Router::new()
                .message_at(outer, ask)
                .message_at(inner, answer),
        )
        .await;
    let client = stage.client(&[&server]).await;
    for_handler.set(client.clone()).expect("set once");

    let given = Duration::from_secs(60);
    let call = client
        .send_at::<(Duration, Option<String>)>(outer, &())
        .timeout(given);
    let (left, actor) = call.header(header::ACTOR, "ada").await.unwrap();
    assert!(left <= given, "{left:?} of {given:?}");
    assert_eq!(actor.as_deref(), Some("ada"));
}

/// Many callers at once: nobody gets another's reply.
pub async fn two_hundred_callers_each_get_their_own_reply(stage: Stage) {
    let pattern = stage.pattern("echo");
    let server = stage
        .start(Router::new().message_at(pattern, echo::<u64>))
        .await;
    let client = stage.client(&[&server]).await;

    let calls = (0..200).map(|n| client.send_at::<u64>(pattern, &n).into_future());
    let replies = within("all replies", join_all(calls)).await;
    let expected: Vec<_> = (0..200).map(Ok).collect();
    assert_eq!(replies, expected);
}

/// A handler that waits holds up nobody else, whatever order the transport has.
pub async fn a_slow_handler_does_not_delay_others(stage: Stage) {
    let pattern = stage.pattern("maybe");
    let (started, release) = (Gate::new(), Gate::new());
    let handler = move |Payload(n): Payload<u64>| async move {
        if n == 0 {
            started.open();
            release.pass().await;
        }
        Ok::<_, RpcError>(n)
    };
    let server = stage
        .start(Router::new().message_at(pattern, handler))
        .await;
    let client = stage.client(&[&server]).await;

    let slow = client
        .send_at::<u64>(pattern, &0)
        .timeout(FOR_EVER)
        .into_future();
    let others = async {
        started.opened("the slow handler to start").await;
        let calls = (1..=50).map(|n| client.send_at::<u64>(pattern, &n).into_future());
        let replies = within("the fast replies", join_all(calls)).await;
        release.open();
        replies
    };
    let (slow, others) = tokio::join!(slow, others);
    assert_eq!(others, (1..=50).map(Ok).collect::<Vec<_>>());
    assert_eq!(slow, Ok(0));
}

/// The codec is the client's choice: the server answers in the one it was asked in. A wire that carries
/// JSON only refuses another when its client is made.
pub async fn bincode_travels(stage: Stage) {
    let pattern = stage.pattern("pair");
    let swap = |Payload((n, text)): Payload<(u64, String)>, cx: Context| async move {
        match cx.header(header::CONTENT_TYPE) {
            Some("application/x-bincode") => Ok((text, n)),
            other => Err(RpcError::failed_precondition(format!(
                "content-type {other:?}"
            ))),
        }
    };
    let server = stage.start(Router::new().message_at(pattern, swap)).await;
    let builder = stage.client_builder(&[&server]).codec(Codec::Bincode);
    if stage.client(&[&server]).await.wire() != Wire::Native {
        assert_eq!(builder.build().await.unwrap_err().kind(), ErrorKind::Config);
        return;
    }
    let client = stage.connect(builder).await;

    let reply = client
        .send_at::<(String, u64)>(pattern, &(7_u64, "seven\0"))
        .await;
    assert_eq!(reply, Ok(("seven\0".to_owned(), 7)));
}

/// Nobody waits for the reply, and running it another time does no harm: the handler stops.
pub async fn a_dropped_call_stops_an_idempotent_handler(stage: Stage) {
    let pattern = stage.pattern("wait");
    let (started, ended) = (Gate::new(), Gate::new());
    let router = Router::new().message_with(pattern, true, waiting(started, ended));
    let server = stage.start(router).await;
    let client = stage.client(&[&server]).await;

    drop_once_started(&client, pattern, started).await;
    ended.opened("the handler to be dropped").await;
}

/// What is not idempotent may be half done, so it is finished.
pub async fn a_dropped_call_does_not_stop_a_handler_that_is_not_idempotent(stage: Stage) {
    let (careful, careless) = (stage.pattern("careful"), stage.pattern("careless"));
    let (started, release, finished) = (Gate::new(), Gate::new(), Gate::new());
    let finish = move || async move {
        started.open();
        release.pass().await;
        finished.open();
        Ok::<_, RpcError>(())
    };
    let (other_started, other_ended) = (Gate::new(), Gate::new());
    let router = Router::new().message_at(careful, finish).message_with(
        careless,
        true,
        waiting(other_started, other_ended),
    );
    let server = stage.start(router).await;
    let client = stage.client(&[&server]).await;

    drop_once_started(&client, careful, started).await;
    if stage.capabilities().cancels {
        // When a later cancel has had its effect, so has the first one.
        drop_once_started(&client, careless, other_started).await;
        other_ended
            .opened("the idempotent handler to be dropped")
            .await;
    }
    release.open();
    finished.opened("the handler to finish").await;
}

/// A handler that never replies, and shows when it is dropped.
fn waiting(
    started: &'static Gate,
    ended: &'static Gate,
) -> impl Fn() -> futures_util::future::BoxFuture<'static, Result<(), RpcError>> + Clone + Send + Sync
{
    move || {
        Box::pin(async move {
            let _ended = ended.on_drop();
            started.open();
            pending().await
        })
    }
}

async fn drop_once_started(client: &Client, pattern: &'static str, started: &'static Gate) {
    let call = client
        .send_at::<()>(pattern, &())
        .timeout(FOR_EVER)
        .into_future();
    tokio::select! {
        reply = call => panic!("a reply although the handler waits: {reply:?}"),
        () = started.opened("the handler to start") => {}
    }
}
