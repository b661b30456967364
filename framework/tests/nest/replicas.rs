//! A service with two replicas, and one that is started again.

use std::collections::HashSet;

use nestling::{Router, RpcError, Server};
use serde_json::json;

use crate::{
    names::Names,
    stage::{Stage, Transport, connect, eventually, serve, within},
};

/// Each request has one answer, and both replicas have some.
pub(crate) async fn a_request_is_answered_by_one_of_two(stage: Stage) {
    let names = Names::new();
    let replica = |which: &'static str| {
        let handler = move || async move { Ok::<_, RpcError>(which) };
        let router = Router::new().message_at(names.at("echo").text, handler);
        Server::new(names.run(), router).listen(&*stage.url).start()
    };
    let one = within("a server to start", replica("one")).await.unwrap();
    let two = within("a server to start", replica("two")).await.unwrap();
    let caller = connect(stage.half.caller, &stage.url, &names).await;
    let mut answered = HashSet::new();
    let wanted = match stage.transport {
        // A topic of one partition has one reader.
        Transport::Kafka => 1,
        _ => 2,
    };
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
    while answered.len() < wanted {
        assert!(tokio::time::Instant::now() < deadline, "only {answered:?}");
        let outcome = caller.stream(&names.at("echo"), &json!(1), None).await;
        assert_eq!(outcome.values.len(), 1, "{outcome:?}");
        answered.insert(outcome.values[0].to_string());
    }
    one.shutdown().await;
    two.shutdown().await;
}

pub(crate) async fn a_caller_survives_a_restarted_server(stage: Stage) {
    let names = Names::new();
    let url = match stage.transport {
        Transport::Tcp => "tcp://127.0.0.1:0",
        _ => &*stage.url,
    };
    let server = serve(url, &names).await;
    let url = match stage.transport {
        Transport::Tcp => server.address().to_owned(),
        _ => url.to_owned(),
    };
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
