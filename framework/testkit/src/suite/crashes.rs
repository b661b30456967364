//! A server that dies with work in its hands. Dropping [`Running`] is the crash: nothing is drained.

use std::{collections::HashMap, future::IntoFuture, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use nestling::{Code, Payload, Router, RpcError, Running, Server};

use super::{
    fixture::Stage,
    witness::{Gate, Record, eventually, within},
};

/// Longer than any case: the callers wait until somebody else has the work.
const FOR_EVER: Duration = Duration::from_secs(600);
const REPLICAS: [&str; 2] = ["a", "b"];

/// The replicas of a service that crash and come back under their names.
struct Replicas<'a> {
    stage: &'a Stage,
    router: &'a dyn Fn(&'static str) -> Router,
    running: HashMap<&'static str, Running>,
}

impl<'a> Replicas<'a> {
    async fn start(
        stage: &'a Stage,
        names: &[&'static str],
        router: &'a dyn Fn(&'static str) -> Router,
    ) -> Self {
        let mut replicas = Self {
            stage,
            router,
            running: HashMap::new(),
        };
        for name in names {
            let server = replicas.server(name);
            replicas
                .running
                .insert(name, stage.start_server(server).await);
        }
        replicas
    }

    fn server(&self, name: &'static str) -> Server {
        let router = (self.router)(name);
        self.stage
            .server("service", router)
            .instance(self.stage.service(name))
    }

    fn all(&self) -> Vec<&Running> {
        self.running.values().collect()
    }

    /// Crashes one and starts it again.
    async fn crash(&mut self, name: &'static str) {
        let crashed = self.running.remove(name).expect("it runs");
        let address = crashed.address().to_owned();
        drop(crashed);
        // A peer's port is free once the tasks of the crashed server have gone, which is soon.
        let again = eventually("the replica to start again", async || {
            let router = (self.router)(name);
            let server = self.stage.server_again("service", router, &address);
            server.instance(self.stage.service(name)).start().await.ok()
        });
        let again = again.await;
        self.running.insert(name, again);
    }
}

/// Whoever dies with an idempotent request in work: somebody else answers it.
pub async fn an_idempotent_request_is_given_to_another(stage: Stage) {
    let pattern = stage.pattern("work");
    let (runs, never) = (Record::new(), Gate::new());
    let router = move |replica: &'static str| {
        let work = move |Payload(n): Payload<u64>| async move {
            runs.push(replica);
            if runs.count() == 1 {
                never.pass().await;
            }
            Ok::<_, RpcError>(n)
        };
        Router::new().message_with(pattern, true, work)
    };
    let mut replicas = Replicas::start(&stage, &REPLICAS, &router).await;
    let client = stage.client(&replicas.all()).await;

    let call = client
        .send_at::<u64>(pattern, &7)
        .timeout(FOR_EVER)
        .into_future();
    let (reply, ()) = tokio::join!(within("the reply", call), async {
        let first = runs.first().await;
        replicas.crash(first).await;
    });
    assert_eq!(reply, Ok(7));
    assert_eq!(runs.count(), 2);
}

/// The same for an event.
pub async fn an_event_is_given_to_another(stage: Stage) {
    let pattern = stage.pattern("happened");
    let (runs, never) = (Record::new(), Gate::new());
    let router = |replica: &'static str| {
        let react = move |Payload(n): Payload<u64>| async move {
            runs.push((replica, n));
            if runs.count() == 1 {
                never.pass().await;
            }
            Ok::<_, RpcError>(())
        };
        Router::new().event_with(pattern, stage.guarantee(), react)
    };
    let mut replicas = Replicas::start(&stage, &REPLICAS, &router).await;
    let client = stage.client(&replicas.all()).await;

    client
        .emit_at(pattern, &7)
        .header("key", "k")
        .await
        .unwrap();
    let (first, _) = runs.first().await;
    replicas.crash(first).await;
    runs.at_least(2).await;
    client
        .emit_at(pattern, &8)
        .header("key", "k")
        .await
        .unwrap();
    let events: Vec<_> = runs.at_least(3).await.into_iter().map(|(_, n)| n).collect();
    assert_eq!(events, [7, 7, 8]);
}

/// Whoever dies with any other request in work: its caller gets an error, and it never runs again.
pub async fn a_request_that_is_not_idempotent_never_runs_twice(stage: Stage) {
    let (careful, careless) = (stage.pattern("careful"), stage.pattern("careless"));
    let (runs, others, never) = (Record::new(), Record::new(), Gate::new());
    let router = move |replica: &'static str| {
        let once = move || async move {
            runs.push(replica);
            never.pass().await;
            Ok::<_, RpcError>(())
        };
        let any_number = move |Payload(n): Payload<usize>| async move {
            others.push((replica, n));
            never.pass().await;
            Ok::<_, RpcError>(())
        };
        Router::new()
            .message_at(careful, once)
            .message_with(careless, true, any_number)
    };
    let capabilities = stage.capabilities();
    let names = if capabilities.replicas_share {
        &REPLICAS[..]
    } else {
        &REPLICAS[..1]
    };
    let mut replicas = Replicas::start(&stage, names, &router).await;
    let client = stage.client(&replicas.all()).await;

    let call = client
        .send_at::<()>(careful, &())
        .timeout(Duration::from_secs(8))
        .into_future();
    let crash = async {
        let crashing = runs.first().await;
        // Requests that may run twice, one of them in the same hands if that can be had: when it has come back, so
        // would the other. A broker may well give all requests of one pattern to one replica, so both crash.
        let mut calls = FuturesUnordered::new();
        let mut held = 0;
        while capabilities.redelivers && held < 10 && !others.all().contains(&(crashing, held)) {
            held += 1;
            calls.push(
                client
                    .send_at::<()>(careless, &held)
                    .timeout(FOR_EVER)
                    .into_future(),
            );
            let arrived = others.at_least(held);
            tokio::select! {
                _ = arrived => {}
                Some(reply) = calls.next() => panic!("a reply although the handler waits: {reply:?}"),
            }
        }
        let crashes = async {
            replicas.crash(crashing).await;
            for name in names.iter().filter(|name| **name != crashing) {
                replicas.crash(name).await;
            }
            eventually("the other request to come back", async || {
                let times = others.all().iter().filter(|(_, n)| *n == held).count();
                (!capabilities.redelivers || times > 1).then_some(())
            })
            .await;
        };
        tokio::select! {
            () = crashes => {}
            Some(reply) = calls.next() => panic!("a reply although the handler waits: {reply:?}"),
        }
    };
    let (reply, ()) = tokio::join!(within("an error", call), crash);
    let code = reply.unwrap_err().code;
    assert!(
        matches!(code, Code::Unavailable | Code::DeadlineExceeded),
        "{code}"
    );
    assert_eq!(runs.count(), 1);
}
