//! Size and number: what fits travels, what does not is refused by whoever knows first.

use std::future::IntoFuture;

use futures_util::{StreamExt, stream, stream::FuturesUnordered};
use nestling::{
    Code, Context, MAX_HEADER_BYTES, MAX_HEADERS, MAX_PATTERN, Payload, Router, RpcError, Streaming,
};
use tokio::sync::Semaphore;

use super::{
    fixture::{Stage, echo},
    witness::{Crowd, Record, within},
};

/// A payload near the brokers' usual limit of a mebibyte passes in both directions, and not only once.
pub async fn nine_hundred_kilobytes_travel_both_ways(stage: Stage) {
    let pattern = stage.pattern("echo");
    let server = stage
        .start(Router::new().message_at(pattern, echo::<String>))
        .await;
    let client = stage.client(&[&server]).await;

    for letter in ["a", "b", "c"] {
        let text = letter.repeat(900_000);
        let reply = client.send_at::<String>(pattern, &text).await.unwrap();
        assert!(reply == text, "{} bytes came back", reply.len());
    }
}

/// A message above the limit fails with its sender: the handler never sees it, and the connection stays.
pub async fn an_oversize_message_is_refused_and_the_next_one_passes(stage: Stage) {
    let pattern = stage.pattern("length");
    let lengths = Record::new();
    let length = move |Payload(text): Payload<String>| async move {
        lengths.push(text.len());
        Ok::<_, RpcError>(text.len())
    };
    let server = stage.start(Router::new().message_at(pattern, length)).await;
    let client = stage.client(&[&server]).await;

    let limit = stage.capabilities().max_payload;
    let error = client
        .send_at::<usize>(pattern, &"x".repeat(limit))
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::ResourceExhausted);
    assert_eq!(client.send_at::<usize>(pattern, "small").await, Ok(5));
    // Two of its bytes are quotation marks.
    let largest = client
        .send_at::<usize>(pattern, &"x".repeat(limit - 2))
        .await;
    assert_eq!(largest, Ok(limit - 2));
    assert_eq!(lengths.all(), [5, limit - 2]);
}

/// A reply above the limit becomes an error for its caller, who would otherwise wait in vain.
pub async fn an_oversize_reply_is_an_error_and_the_next_one_passes(stage: Stage) {
    let pattern = stage.pattern("repeat");
    let repeat =
        |Payload(length): Payload<usize>| async move { Ok::<_, RpcError>("x".repeat(length)) };
    let server = stage.start(Router::new().message_at(pattern, repeat)).await;
    let client = stage.client(&[&server]).await;

    let limit = stage.capabilities().max_payload;
    let reply = client.send_at::<String>(pattern, &limit).await;
    assert_eq!(
        reply.map(|text| text.len()).unwrap_err().code,
        Code::ResourceExhausted
    );
    assert_eq!(
        client.send_at::<String>(pattern, &5).await.as_deref(),
        Ok("xxxxx")
    );
}

/// The same for one value of a stream.
pub async fn an_oversize_value_ends_its_stream(stage: Stage) {
    let (values, ping) = (stage.pattern("values"), stage.pattern("ping"));
    let produce = |Payload(length): Payload<usize>| async move {
        let texts = [1, length, 1].map(|length| Ok("x".repeat(length)));
        Streaming::new(stream::iter(texts))
    };
    let router = Router::new()
        .message_at(values, produce)
        .message_at(ping, echo::<u64>);
    let server = stage.start(router).await;
    let client = stage.client(&[&server]).await;

    let limit = stage.capabilities().max_payload;
    let mut read = client.stream_at::<String>(values, &limit).await.unwrap();
    assert_eq!(
        within("the first value", read.try_next()).await,
        Ok(Some("x".to_owned()))
    );
    let end = within("the end", read.try_next())
        .await
        .map(|text| text.map(|text| text.len()));
    assert_eq!(end.unwrap_err().code, Code::ResourceExhausted);
    assert_eq!(client.send_at::<u64>(ping, &7).await, Ok(7));
}

/// `max_in_flight` is a limit, and what waits behind it is not lost.
pub async fn no_more_than_the_limit_is_in_work(stage: Stage) {
    const LIMIT: usize = 3;
    const CALLS: u64 = 12;

    let pattern = stage.pattern("work");
    let crowd = Crowd::new();
    let tickets: &'static Semaphore = Box::leak(Box::new(Semaphore::new(0)));
    let work = move |Payload(n): Payload<u64>| async move {
        crowd.enter();
        tickets.acquire().await.expect("never closed").forget();
        crowd.leave();
        Ok::<_, RpcError>(n)
    };
    let router = Router::new().message_at(pattern, work);
    let server = stage
        .start_server(stage.server("service", router).max_in_flight(LIMIT))
        .await;
    let client = stage.client(&[&server]).await;

    let mut calls: FuturesUnordered<_> = (0..CALLS)
        .map(|n| client.send_at::<u64>(pattern, &n).into_future())
        .collect();
    let mut replies = Vec::new();
    // Nothing is replied to before a ticket is there: this sends the calls and waits for the first.
    let full = async {
        crowd.reaches(LIMIT).await;
        tickets.add_permits(1);
    };
    let (first, ()) = tokio::join!(within("a reply", calls.next()), full);
    replies.push(first.expect("calls are left").unwrap());
    while !calls.is_empty() {
        tickets.add_permits(1);
        let reply = within("a reply", calls.next()).await;
        replies.push(reply.expect("calls are left").unwrap());
    }
    replies.sort_unstable();
    assert_eq!(replies, (0..CALLS).collect::<Vec<_>>());
    assert_eq!(crowd.most(), LIMIT);
}

/// Headers and patterns have their limits too, and whoever sends knows them first.
pub async fn a_pattern_or_headers_without_measure_are_refused_and_the_next_passes(stage: Stage) {
    let pattern = stage.pattern("echo");
    let server = stage
        .start(Router::new().message_at(pattern, echo::<u64>))
        .await;
    let client = stage.client(&[&server]).await;

    let long = client
        .send_at::<u64>(pattern, &1)
        .header("long", "x".repeat(MAX_HEADER_BYTES));
    let mut many = client.send_at::<u64>(pattern, &1);
    for n in 0..=MAX_HEADERS {
        many = many.header(format!("header-{n}"), "x");
    }
    let distant: &str = String::leak(format!("{pattern}.{}", "x".repeat(MAX_PATTERN)));
    let distant = client.send_at::<u64>(distant, &1);
    for call in [long, many, distant] {
        let error = within("a refusal", call.into_future()).await.unwrap_err();
        assert_eq!(error.code, Code::ResourceExhausted, "{error:?}");
    }
    let event = client
        .emit_at(pattern, &1)
        .header("long", "x".repeat(MAX_HEADER_BYTES));
    let error = within("a refusal", event.into_future()).await.unwrap_err();
    assert_eq!(error.code, Code::ResourceExhausted, "{error:?}");
    assert_eq!(client.send_at::<u64>(pattern, &7).await, Ok(7));
}

/// The limits do not get into each other's way: a payload may be as large as it says beside all the headers there may be.
pub async fn headers_up_to_the_limit_travel_with_the_largest_payload(stage: Stage) {
    let pattern = stage.pattern("sizes");
    let sizes = |Payload(text): Payload<String>, cx: Context| async move {
        let header = cx.header("long").map_or(0, str::len);
        Ok::<_, RpcError>((text.len(), header))
    };
    let server = stage.start(Router::new().message_at(pattern, sizes)).await;
    let client = stage.client(&[&server]).await;

    // Room for the few headers that the framework adds, and for the names.
    let (text, header) = (
        stage.capabilities().max_payload - 2,
        MAX_HEADER_BYTES - 1024,
    );
    let reply = client
        .send_at::<(usize, usize)>(pattern, &"x".repeat(text))
        .header("long", "x".repeat(header))
        .await;
    assert_eq!(reply, Ok((text, header)));
}
