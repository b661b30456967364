//! What a caller can say about its call, and what it learns when nothing comes of it.

use bytes::Bytes;
use nestling::transport::{Error, ErrorKind};

use super::*;

async fn raw(payload: Bytes) -> Result<String, RpcError> {
    String::from_utf8(payload.to_vec()).map_err(|_| RpcError::invalid_argument("no text"))
}

async fn client(memory: &Memory) -> Client {
    Client::connect(memory).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_payload_that_is_encoded_already_is_sent_as_it_is() {
    let memory = Memory::new();
    let router = Router::new()
        .message_at("raw", raw)
        .message_at("echo", echo);
    let server = Server::new("x", router)
        .listen(&memory)
        .start()
        .await
        .unwrap();
    let client = client(&memory).await;
    for payload in ["", "1.50", "{ }"] {
        let sent = client.send_at::<String>("raw", &()).payload(payload);
        assert_eq!(sent.await.unwrap(), payload);
    }
    let mut values = client
        .stream_at::<u64>("echo", &())
        .payload("7")
        .await
        .unwrap();
    assert_eq!(values.try_next().await, Ok(Some(7)));
    assert_eq!(values.try_next().await, Ok(None));
    server.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn the_time_that_ran_out_here_is_told_from_that_which_ran_out_there() {
    let memory = Memory::new();
    let late = || async { Err::<(), _>(RpcError::deadline_exceeded("the bank is slow")) };
    let router = Router::new()
        .message_at("hang", pending::<Result<(), RpcError>>)
        .message_at("late", late);
    let _server = Server::new("x", router)
        .listen(&memory)
        .start()
        .await
        .unwrap();
    let client = client(&memory).await;
    let check = |error: RpcError, kind: Option<ErrorKind>| {
        assert_eq!(error.code, Code::DeadlineExceeded, "{error}");
        assert_eq!(Error::behind(&error).map(Error::kind), kind, "{error}");
    };
    let sent = client.send_at::<()>("late", &()).await;
    check(sent.unwrap_err(), None);
    let sent = client.send_at::<()>("hang", &()).await;
    check(sent.unwrap_err(), Some(ErrorKind::Timeout));
    let mut values = client.stream_at::<()>("hang", &()).await.unwrap();
    check(
        values.try_next().await.unwrap_err(),
        Some(ErrorKind::Timeout),
    );
    let error = client.send_at::<()>("nobody", &()).await.unwrap_err();
    let kind = Error::behind(&error).map(Error::kind);
    assert_eq!(kind, Some(ErrorKind::NoResponders), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_over_when_its_caller_said_it_would_be() {
    let memory = Memory::new();
    let endless = || async {
        let ticks = stream::unfold((), |()| async {
            sleep(SECOND).await;
            Some(((), ()))
        });
        Streaming::new(ticks.map_ok())
    };
    let router = Router::new().message_at("endless", endless);
    let server = Server::new("x", router)
        .listen(&memory)
        .start()
        .await
        .unwrap();
    let client = client(&memory).await;
    let call = client.stream_at::<()>("endless", &()).within(SECOND * 10);
    let mut values = call.await.unwrap();
    let mut count = 0;
    let error = loop {
        match values.try_next().await {
            Ok(value) => count += usize::from(value.is_some()),
            Err(error) => break error,
        }
    };
    assert!((9..=10).contains(&count), "{count}");
    assert_eq!(error.code, Code::DeadlineExceeded);
    server.shutdown().await;
}
