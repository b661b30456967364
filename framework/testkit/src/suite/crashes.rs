//! A server that dies with work in its hands. Dropping [`Running`] is the crash: nothing is drained. Where processes can
//! meet, one is killed as well.

use std::{
    collections::{HashMap, HashSet},
    future::IntoFuture,
    time::Duration,
};

use futures_util::{StreamExt, future::join_all, stream::FuturesUnordered};
use nestling::{
    Client, Code, Guarantee, Payload, Router, RpcError, Running, Server, transport::Order,
};

use super::{
    child::{Child, HELD, Job, Patterns},
    fixture::Stage,
    load::{ask, emit, must_pass},
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

/// How many of each job there are; half of them before the process is killed.
const JOBS: u64 = 60;
const KEYS: u64 = 4;
/// None of them, and nobody holds on to it.
const FIRST: u64 = 3 * JOBS + 1;
const WARM: Duration = Duration::from_secs(5);

/// A process is killed with requests and events in its hands, and another takes over: every event that was acknowledged
/// is handled, in the order of its key where that is promised, requests that may run twice are answered, and those that
/// must not do not.
pub async fn a_killed_process_is_taken_over(stage: Stage) {
    let patterns = Patterns::of(&stage);
    let Some(mut child) = Child::start(&stage, patterns).await else {
        eprintln!("off: there is nothing by which processes meet");
        return;
    };
    let (mine, theirs) = (Record::new(), child.begun);
    let survive = async || {
        let router = patterns.router(move |job, n| mine.push((job, n)), false);
        stage.start_server(stage.server("service", router)).await
    };
    // Without a broker a client has to know beforehand where it is.
    let early = match stage.broker() {
        Some(_) => None,
        None => Some(survive().await),
    };
    let address = early.as_ref().map_or("", Running::address);
    let client = stage.client_builder_of(&[&child.address, address]);
    let client = stage.connect(client).await;
    // Who is connected already is asked first, and both have to be.
    eventually("the process to be reached", async || {
        let call = client.send_at::<u64>(patterns.careless, &FIRST);
        call.timeout(WARM).await.ok();
        (theirs.count() > 0).then_some(())
    })
    .await;

    let repeats = stage.capabilities().redelivers;
    let first = jobs(&client, patterns, repeats, 0..JOBS / 2);
    let (second, killed) = (Gate::new(), async {
        held(theirs, Job::Careless).await;
        held(theirs, Job::Careful).await;
        if patterns.guarantee == Guarantee::AtLeastOnce {
            held(theirs, Job::Event).await;
        }
        child.kill();
    });
    let then = async {
        killed.await;
        second.open();
        match early {
            Some(running) => running,
            None => survive().await,
        }
    };
    let rest = async {
        second.pass().await;
        jobs(&client, patterns, repeats, JOBS / 2..JOBS).await
    };
    let events = async {
        for n in 0..JOBS {
            if n == JOBS / 2 {
                second.pass().await;
            }
            emit(&client, patterns.event, n % KEYS, n).await;
        }
    };
    let (first, rest, (), _survivor) = tokio::join!(first, rest, events, then);

    let begun = || [theirs.all(), mine.all()].concat();
    let runs = |n: u64| {
        begun()
            .iter()
            .filter(|it| **it == (Job::Careful, n))
            .count()
    };
    for n in 0..JOBS {
        assert!(runs(n) <= 1, "request {n} ran twice");
    }
    for n in [first, rest].concat() {
        assert_eq!(runs(n), 1, "request {n} was answered");
    }
    if patterns.guarantee == Guarantee::BestEffort {
        return;
    }
    let is_held = |n: u64| n.is_multiple_of(HELD);
    eventually("all events to be handled", async || {
        let handled = |n| {
            let done = !is_held(n) && theirs.all().contains(&(Job::Event, n));
            done || mine.all().contains(&(Job::Event, n))
        };
        (0..JOBS).all(handled).then_some(())
    })
    .await;
    if stage.capabilities().order == Order::Key {
        for key in 0..KEYS {
            let of_key =
                |(job, n): &(Job, u64)| (*job == Job::Event && n % KEYS == key).then_some(*n);
            let mut known = HashSet::new();
            let mut first_times = begun();
            first_times.retain(|begun| known.insert(*begun));
            let order: Vec<_> = first_times.iter().filter_map(of_key).collect();
            assert!(order.is_sorted(), "key {key} came as {order:?}");
        }
    }
}

/// Waits until the process has something of this kind in its hands.
async fn held(begun: &Record<(Job, u64)>, what: Job) {
    eventually("work to be in its hands", async || {
        let held = begun.count_of(|(job, n)| *job == what && n.is_multiple_of(HELD));
        (held > 0).then_some(())
    })
    .await;
}

/// Sends these requests, and returns those that must not run twice and were answered. Where a request is given to another
/// replica by itself, those that may are not sent again.
async fn jobs(
    client: &Client,
    patterns: Patterns,
    repeats: bool,
    which: std::ops::Range<u64>,
) -> Vec<u64> {
    let careless = join_all(which.clone().map(async |n| match repeats {
        false => ask(client, patterns.careless, n).await,
        true => {
            let call = client
                .send_at::<u64>(patterns.careless, &n)
                .timeout(FOR_EVER);
            assert_eq!(call.await, Ok(n));
        }
    }));
    let careful = join_all(which.map(async |n| {
        let call = client.send_at::<u64>(patterns.careful, &n);
        match call.timeout(Duration::from_secs(8)).await {
            Ok(reply) => {
                assert_eq!(reply, n, "somebody else's reply");
                Some(n)
            }
            Err(error) => {
                must_pass(&error);
                None
            }
        }
    }));
    let (_, careful) = tokio::join!(careless, careful);
    careful.into_iter().flatten().collect()
}
