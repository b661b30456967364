//! A service with two replicas, and one that is started again.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use nestling::{Client, Router, RpcError, Running, Server};
use serde_json::json;
use tokio::sync::Notify;

use crate::{
    caller::Failure,
    names::Names,
    stage::{Stage, Transport, connect, eventually, serve, within},
};

/// Each request has one answer, and both replicas have some.
pub(crate) async fn a_request_is_answered_by_one_of_two(stage: Stage) {
    let names = Names::new();
    let replica = |which: &'static str| {
        let handler = move || async move { Ok::<_, RpcError>(which) };
        let router = Router::new().message_at(names.at("echo").text, handler);
        Server::new(names.run(), router).listen(stage.url()).start()
    };
    let one = within("a server to start", replica("one")).await.unwrap();
    let two = within("a server to start", replica("two")).await.unwrap();
    let caller = connect(stage.half.caller, stage.url(), &names).await;
    let mut answered = HashSet::new();
    let wanted = match stage.transport {
        // A topic of one partition has one reader.
        Transport::Kafka => 1,
        _ => 2,
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    while answered.len() < wanted {
        assert!(Instant::now() < deadline, "only {answered:?}");
        let outcome = caller.stream(&names.at("echo"), &json!(1), None).await;
        assert_eq!(outcome.values.len(), 1, "{outcome:?}");
        answered.insert(outcome.values[0].to_string());
    }
    one.shutdown().await;
    two.shutdown().await;
}

/// A NestJS caller is refused, and a nestling one is served. Elsewhere than on TCP the first would wait for ever.
pub(crate) async fn a_server_may_keep_to_its_own_wire(stage: Stage) {
    let names = Names::new();
    let server = serve(&format!("{}?wire=native", own_url(&stage)), &names).await;
    let url = reached(&stage, &server);
    let caller = connect(stage.half.caller, &url, &names).await;
    let (pattern, number) = (names.at("double"), json!(21));
    let refused = caller.send(&pattern, &number, &[]).await;
    assert!(
        matches!(refused, Err(Failure::Exception(..))),
        "{refused:?}"
    );
    let native = within("a client to connect", Client::connect(url)).await;
    let reply = native.unwrap().send_at::<u64>(pattern.text, &number).await;
    assert_eq!(reply, Ok(42));
    within("a server to stop", server.shutdown()).await;
}

pub(crate) async fn a_draining_server_answers_what_is_in_work(stage: Stage) {
    let names = Names::new();
    let (begun, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let handler = {
        let (begun, go_on) = (Arc::clone(&begun), Arc::clone(&go_on));
        move || {
            let (begun, go_on) = (Arc::clone(&begun), Arc::clone(&go_on));
            async move {
                begun.notify_one();
                go_on.notified().await;
                Ok::<_, RpcError>("in time")
            }
        }
    };
    let router = Router::new().message_at(names.at("echo").text, handler);
    let server = Server::new(names.run(), router).listen(own_url(&stage));
    let server = within("a server to start", server.start()).await.unwrap();
    let caller = connect(stage.half.caller, &reached(&stage, &server), &names).await;
    let (pattern, data) = (names.at("echo"), json!(1));
    let drained = async {
        within("the handler to begin", begun.notified()).await;
        let shutdown = server.shutdown();
        tokio::pin!(shutdown);
        // It waits for the handler, and the handler for this.
        assert!(futures_util::poll!(&mut shutdown).is_pending());
        go_on.notify_one();
        within("a server to stop", shutdown).await;
    };
    let (reply, ()) = tokio::join!(caller.send(&pattern, &data, &[]), drained);
    assert_eq!(reply, Ok(json!("in time")));
}

pub(crate) async fn a_caller_survives_a_restarted_server(stage: Stage) {
    let names = Names::new();
    let server = serve(own_url(&stage), &names).await;
    let url = reached(&stage, &server);
    let caller = connect(stage.half.caller, &url, &names).await;
    let (pattern, number) = (names.at("double"), json!(21));
    stage.check(
        &caller.send(&pattern, &number, &[]).await.unwrap(),
        &json!(42),
    );
    within("a server to stop", server.shutdown()).await;

    let server = serve(&url, &names).await;
    let reply = eventually("an answer of the new server", || async {
        // The first call may find the old connection's end.
        caller.send(&pattern, &number, &[]).await.ok()
    });
    stage.check(&reply.await, &json!(42));
    within("a server to stop", server.shutdown()).await;
}

/// Where a server of the case's own may listen.
fn own_url(stage: &Stage) -> &str {
    match stage.transport {
        Transport::Tcp => "tcp://127.0.0.1:0",
        _ => stage.url(),
    }
}

/// Where that server is reached.
fn reached(stage: &Stage, server: &Running) -> String {
    match stage.transport {
        Transport::Tcp => server.address().to_owned(),
        _ => stage.url().to_owned(),
    }
}
