//! Several replicas of one service, and what happens when one of them stops.

use std::{collections::HashSet, future::IntoFuture, pin::pin, time::Duration};

use futures_util::future::{join_all, try_join_all};
use nestling::{Client, Code, Guarantee, Payload, Router, RpcError, Running, transport::Order};
use tokio::task::yield_now;

use super::{
    fixture::{Stage, echo},
    load::{Calls, Events, ask},
    witness::{Gate, Record, eventually, within},
};

/// Each request is handled by one replica, and every replica gets some.
pub async fn two_replicas_share(stage: Stage) {
    const CALLS: u64 = 200;
    const LATE: Duration = Duration::from_millis(200);

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
        let works = |name| handled.all().iter().any(|(replica, _)| *replica == name);
        while !(works("a") && works("b")) {
            // A connection that was made late gets only what is asked from then on.
            let late = client.send_at::<u64>(pattern, &CALLS).timeout(LATE).await;
            assert!(late.is_err(), "nobody answers yet");
        }
        both_work.open();
    };
    let (replies, ()) = tokio::join!(calls, within("both replicas to work", open));
    assert_eq!(replies, (0..CALLS).map(Ok).collect::<Vec<_>>());
    let handled = handled.all().into_iter().map(|(_, n)| n);
    let mut handled: Vec<_> = handled.filter(|n| *n < CALLS).collect();
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
    const HELD: Duration = Duration::from_secs(100);

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
    // What it has begun lasts until the other has everything, which takes a broker its time.
    let server = |name| stage.server("service", router(name)).drain_timeout(HELD);
    let a = stage.start_server(server("a")).await;
    let b = stage.start_server(server("b")).await;
    let client = stage.client(&[&a, &b]).await;

    let held = client
        .send_at::<String>(hold, &())
        .timeout(HELD)
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

/// While events and requests flow, a second replica joins, the first drains, and a third joins: whoever asks again is
/// answered, and no event is lost or, as nobody crashed, handled twice. Where the transport orders by key, it does so
/// across all of them.
pub async fn replicas_come_and_go_and_no_event_is_lost_or_repeated(stage: Stage) {
    const KEYS: u64 = 8;
    const CALLERS: u64 = 8;

    let (asked, happened) = (stage.pattern("ask"), stage.pattern("happened"));
    let (worked, handled, enough) = (Record::new(), Record::new(), Gate::new());
    let router = |replica: &'static str| {
        let answer = move |Payload(n): Payload<u64>| async move {
            worked.push(replica);
            Ok::<_, RpcError>(n)
        };
        let handle = move |Payload((key, n)): Payload<(u64, u64)>| async move {
            for _ in 0..n % 4 {
                yield_now().await;
            }
            worked.push(replica);
            handled.push((key, n));
            Ok::<_, RpcError>(())
        };
        Router::new().message_with(asked, true, answer).event_with(
            happened,
            stage.guarantee(),
            handle,
        )
    };
    let (first, client, [here, there]) = first_of_two(&stage, &router).await;

    let callers = join_all((0..CALLERS).map(|caller| {
        let client = &client;
        async move {
            while !enough.is_open() {
                ask(client, asked, caller).await;
            }
        }
    }));
    let changes = async {
        works(worked, "first").await;
        let b = start_at(&stage, &there, router("second")).await;
        works(worked, "second").await;
        within("the first replica to stop", first.shutdown()).await;
        works(worked, "second").await;
        let c = start_at(&stage, &here, router("third")).await;
        works(worked, "third").await;
        enough.open();
        (b, c)
    };
    let events = Events::new(enough);
    let (again, _, _servers) = tokio::join!(events.run(&client, happened, KEYS), callers, changes);
    if stage.guarantee() == Guarantee::BestEffort {
        return;
    }
    assert_eq!(again, 0, "the bus was there all the time");
    let mut emitted = events.emitted.all();
    eventually("the last events", async || {
        (handled.count() >= emitted.len()).then_some(())
    })
    .await;
    let mut handled = handled.all();
    if stage.capabilities().order == Order::Key {
        for key in 0..KEYS {
            let of_key = handled.iter().filter(|(of, _)| *of == key);
            assert!(of_key.is_sorted(), "key {key} is out of order");
        }
    }
    handled.sort_unstable();
    emitted.sort_unstable();
    assert_eq!(handled.len(), emitted.len(), "handled and emitted");
    assert_eq!(handled, emitted);
}

/// One server after the other starts and drains while callers and emitters are at full speed: every request that was
/// taken is answered, the others can be sent again, no event is lost, and each drain comes to its end.
pub async fn a_server_drains_under_load_and_another_takes_over(stage: Stage) {
    const KEYS: u64 = 8;
    const CALLERS: usize = 32;
    const ROUNDS: usize = 3;

    let (work, happened) = (stage.pattern("work"), stage.pattern("happened"));
    let (worked, taken, handled) = (Record::new(), Record::new(), Record::new());
    let enough = Gate::new();
    let router = |replica: &'static str| {
        let run = move |Payload(n): Payload<u64>| async move {
            worked.push(replica);
            taken.push(n);
            // So that some are in work when the server is told to stop.
            tokio::time::sleep(Duration::from_millis(n % 8)).await;
            Ok::<_, RpcError>(n)
        };
        let handle = move |Payload(event): Payload<(u64, u64)>| async move {
            handled.push(event);
            Ok::<_, RpcError>(())
        };
        Router::new()
            .message_at(work, run)
            .event_with(happened, stage.guarantee(), handle)
    };
    let (first, client, places) = first_of_two(&stage, &router).await;

    let (calls, events) = (Calls::new(enough), Events::new(enough));
    let changes = async {
        let mut running = first;
        works(worked, "first").await;
        for round in 0..ROUNDS {
            let next = ["second", "third", "fourth"][round];
            let start = start_at(&stage, &places[(round + 1) % 2], router(next));
            let drain = within("the drain", running.shutdown());
            running = if stage.capabilities().replicas_share {
                let started = start.await;
                drain.await;
                started
            } else {
                // Two at once would both answer.
                drain.await;
                start.await
            };
            works(worked, next).await;
        }
        enough.open();
        running
    };
    let (_, _, _running) = tokio::join!(
        calls.run(&client, work, CALLERS),
        events.run(&client, happened, KEYS),
        changes
    );
    let (mut taken, mut answered) = (taken.all(), calls.answered.all());
    taken.sort_unstable();
    answered.sort_unstable();
    let refused = calls.refused.all();
    assert_eq!(taken, answered, "taken and answered; refused: {refused:?}");
    if stage.capabilities().replicas_share {
        let lost = refused
            .iter()
            .find(|(_, error)| error.code == Code::DeadlineExceeded);
        assert_eq!(lost, None, "nobody has said that it can be sent again");
    }
    if stage.guarantee() == Guarantee::AtLeastOnce {
        let emitted = events.emitted.all();
        eventually("the last events", async || {
            let handled: HashSet<_> = handled.all().into_iter().collect();
            emitted
                .iter()
                .all(|event| handled.contains(event))
                .then_some(())
        })
        .await;
    }
}

/// A first replica, a client that will find a second one, and where the two are: a client without a broker has to know.
async fn first_of_two(
    stage: &Stage,
    router: &dyn Fn(&'static str) -> Router,
) -> (Running, Client, [String; 2]) {
    let first = stage
        .start_server(stage.server("service", router("first")))
        .await;
    let second = stage
        .start_server(stage.server("service", router("second")))
        .await;
    let client = stage.client(&[&first, &second]).await;
    let places = [&first, &second].map(|running| running.address().to_owned());
    within("the second replica to stop", second.shutdown()).await;
    (first, client, places)
}

async fn start_at(stage: &Stage, address: &str, router: Router) -> Running {
    let server = stage.server_again("service", router, address);
    stage.start_server(server).await
}

/// Waits until this replica has got some more to do.
async fn works(worked: &'static Record<&'static str>, replica: &'static str) {
    const SOME: usize = 100;

    let count = || worked.count_of(|who| **who == replica);
    let before = count();
    eventually("a replica to get work", async || {
        (count() >= before + SOME).then_some(())
    })
    .await;
}
