//! Several replicas of one service, and what happens when one of them stops.

use std::{future::IntoFuture, pin::pin, time::Duration};

use futures_util::future::{join_all, try_join_all};
use nestling::{Payload, Router, RpcError, Running};

use super::{
    fixture::{Stage, echo},
    witness::{Gate, Record, eventually, within},
};

/// Each request is handled by one replica, and every replica gets some.
pub async fn two_replicas_share(stage: Stage) {
    const CALLS: u64 = 200;

    let pattern = stage.pattern("work");
    let handled = Record::new();
    let both_work = Gate::new();
    let router = |replica: &'static str| {
        let work = move |Payload(n): Payload<u64>| async move {
            handled.push((replica, n));
            both_work.pass().await;
            Ok::<_, RpcError>(n)
        };
        Router::new().message_at(pattern, work)
    };
    let mut servers = Vec::new();
    for replica in ["a", "b"] {
        // Neither can take everything before the other has had a chance.
        let server = stage.server("service", router(replica)).max_in_flight(16);
        servers.push(stage.start_server(server).await);
    }
    let client = stage.client(&servers.iter().collect::<Vec<_>>()).await;

    let calls = join_all((0..CALLS).map(|n| client.send_at::<u64>(pattern, &n).into_future()));
    let open = async {
        eventually("both replicas to work", async || {
            let all = handled.all();
            let works = |name| all.iter().any(|(replica, _)| *replica == name);
            (works("a") && works("b")).then_some(())
        })
        .await;
        both_work.open();
    };
    let (replies, ()) = tokio::join!(calls, open);
    assert_eq!(replies, (0..CALLS).map(Ok).collect::<Vec<_>>());
    let mut handled: Vec<_> = handled.all().into_iter().map(|(_, n)| n).collect();
    handled.sort_unstable();
    assert_eq!(
        handled,
        (0..CALLS).collect::<Vec<_>>(),
        "each is handled once"
    );
}

/// What has begun when the server is told to stop is finished, and its caller gets the reply.
pub async fn a_draining_server_answers_what_is_in_work(stage: Stage) {
    let (pattern, ping) = (stage.pattern("work"), stage.pattern("ping"));
    let (started, release) = (Record::new(), Gate::new());
    let work = move |Payload(n): Payload<u64>| async move {
        started.push(n);
        release.pass().await;
        Ok::<_, RpcError>(n)
    };
    let router = Router::new()
        .message_at(pattern, work)
        .message_at(ping, echo::<u64>);
    let server = stage.start(router).await;
    let client = stage.client(&[&server]).await;

    let calls = try_join_all((0..5).map(|n| client.send_at::<u64>(pattern, &n).into_future()));
    let stop = async {
        started.at_least(5).await;
        let closed = async {
            eventually("the server to take nothing new", async || {
                let call = client
                    .send_at::<u64>(ping, &1)
                    .timeout(Duration::from_secs(1));
                call.await.err()
            })
            .await;
            release.open();
        };
        tokio::join!(within("the server to stop", server.shutdown()), closed);
    };
    let (replies, ()) = tokio::join!(calls, stop);
    assert_eq!(replies, Ok(vec![0, 1, 2, 3, 4]));
}

/// While one replica finishes, the other gets what is new; no call fails in between.
pub async fn a_draining_replica_leaves_new_work_to_the_others(stage: Stage) {
    let (hold, who) = (stage.pattern("hold"), stage.pattern("who"));
    let (holding, release) = (Record::new(), Gate::new());
    let router = |replica: &'static str| {
        let held = move || async move {
            holding.push(replica);
            release.pass().await;
            Ok::<_, RpcError>(replica.to_owned())
        };
        let asked = move || async move { Ok::<_, RpcError>(replica.to_owned()) };
        Router::new().message_at(hold, held).message_at(who, asked)
    };
    let a = stage
        .start_server(stage.server("service", router("a")))
        .await;
    let b = stage
        .start_server(stage.server("service", router("b")))
        .await;
    let client = stage.client(&[&a, &b]).await;

    let held = client
        .send_at::<String>(hold, &())
        .timeout(Duration::from_secs(100))
        .into_future();
    let (held, ()) = tokio::join!(held, async {
        let holder = holding.first().await;
        let (draining, _other) = if holder == "a" { (a, b) } else { (b, a) };
        let others_only = async {
            let mut in_a_row = 0;
            while in_a_row < 20 {
                let replica = client
                    .send_at::<String>(who, &())
                    .await
                    .expect("no call fails");
                in_a_row = if replica == holder { 0 } else { in_a_row + 1 };
            }
            release.open();
        };
        tokio::join!(
            within("the replica to stop", draining.shutdown()),
            within("the other to get everything", others_only),
        );
    });
    assert_eq!(held, Ok(holding.all()[0].to_owned()));
}

/// A client finds a service again that was away for a while.
pub async fn a_client_survives_a_restarted_service(stage: Stage) {
    let pattern = stage.pattern("echo");
    let router = || Router::new().message_at(pattern, echo::<u64>);
    let instance = stage.service("a");
    let first = stage
        .start_server(stage.server("service", router()).instance(&instance))
        .await;
    let client = stage.client(&[&first]).await;
    assert_eq!(client.send_at::<u64>(pattern, &1).await, Ok(1));

    let address = first.address().to_owned();
    first.shutdown().await;
    let again = stage
        .server_again("service", router(), &address)
        .instance(&instance);
    let again: Running = stage.start_server(again).await;
    let mut again_and_again = pin!(eventually("the service to be found", async || {
        let reply = client
            .send_at::<u64>(pattern, &2)
            .timeout(Duration::from_secs(2))
            .await;
        reply.ok()
    }));
    assert_eq!(again_and_again.as_mut().await, 2);
    again.shutdown().await;
}
