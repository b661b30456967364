//! Entries that wait, are in work, or whose consumer has died.

use std::{collections::HashSet, sync::Mutex};

use futures_util::future::join_all;
use tokio::sync::Semaphore;

use super::*;

#[tokio::test]
async fn a_request_of_a_caller_that_has_gone_is_not_run_after_an_outage() {
    let (url, prefix, plain) = broker!("");
    let seen = Arc::new(Mutex::new(Vec::new()));
    let router = || {
        let seen = Arc::clone(&seen);
        Router::new().message(move |Work(n): Work| {
            seen.lock().unwrap().push(n);
            async { Ok::<_, RpcError>(0) }
        })
    };
    start(&url, "late", router()).await.shutdown().await;
    let client = Client::connect(&*url).await.unwrap();
    let error = client
        .send(Work(1))
        .timeout(Duration::from_millis(300))
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::DeadlineExceeded);
    let waits = client.clone();
    let waiting = tokio::spawn(async move { waits.send(Work(2)).timeout(SOON).await });
    let stream = format!("{prefix}:message:work.do");
    until("both wait", async || {
        plain.clone().xlen::<_, usize>(&stream).await.unwrap() == 2
    })
    .await;
    let server = start(&url, "late", router()).await;
    assert_eq!(waiting.await.unwrap().unwrap(), 0);
    assert_eq!(*seen.lock().unwrap(), [2]);
    server.shutdown().await;
}

/// Reads one entry as a consumer that then dies.
async fn read_and_die(plain: &MultiplexedConnection, stream: &str, group: &str, name: &str) {
    let mut plain = plain.clone();
    let options = redis::streams::StreamReadOptions::default()
        .group(group, name)
        .count(1)
        .block(5000);
    let read: Value = plain
        .xread_options(&[stream], &[">"], &options)
        .await
        .unwrap();
    assert_ne!(read, Value::Nil);
}

#[tokio::test]
async fn entries_of_the_dead_are_handled_by_the_living_and_counted() {
    let (url, prefix, plain) = broker!("&claim_idle=300");
    let router = || {
        Router::new().message(|_: Work, cx: Context| async move { Ok::<_, RpcError>(cx.attempt()) })
    };
    start(&url, "dead", router()).await.shutdown().await;
    let client = Client::connect(&*url).await.unwrap();
    let stream = format!("{prefix}:message:work.do");
    let (one, _) = tokio::join!(client.send(Work(1)).timeout(SOON), async {
        read_and_die(&plain, &stream, "dead", "ghost").await;
        let server = start(&url, "dead", router()).await;
        until("it is settled", async || {
            pending_in(&plain, &stream, "dead").await == 0
        })
        .await;
        server.shutdown().await;
    });
    assert_eq!(one.unwrap(), 2);
}

#[tokio::test]
async fn a_replica_that_comes_back_under_its_name_gets_its_work_at_once() {
    let (url, prefix, plain) = broker!("&claim_idle=60000");
    let server = || {
        let router = Router::new()
            .message(|_: Work, cx: Context| async move { Ok::<_, RpcError>(cx.attempt()) });
        Server::new("back", router)
            .instance("one")
            .listen(&*url)
            .start()
    };
    server().await.unwrap().shutdown().await;
    let client = Client::connect(&*url).await.unwrap();
    let stream = format!("{prefix}:message:work.do");
    let (one, running) = tokio::join!(client.send(Work(1)).timeout(SOON), async {
        read_and_die(&plain, &stream, "back", "one").await;
        server().await.unwrap()
    });
    assert_eq!(one.unwrap(), 2);
    running.shutdown().await;
    let consumers: redis::streams::StreamInfoConsumersReply = plain
        .clone()
        .xinfo_consumers(&stream, "back")
        .await
        .unwrap();
    assert!(consumers.consumers.is_empty(), "{consumers:?}");
}

#[tokio::test]
async fn a_message_that_must_not_run_twice_is_never_pending() {
    let (url, prefix, plain) = broker!("");
    let gate = Arc::new(Semaphore::new(0));
    let (started, mut starts) = mpsc::unbounded_channel();
    let (inside, starting) = (Arc::clone(&gate), started.clone());
    let router = Router::new().message_at("card.charge", move || {
        let (gate, started) = (Arc::clone(&inside), starting.clone());
        async move {
            started.send(()).unwrap();
            gate.acquire().await.unwrap().forget();
            Ok::<_, RpcError>(1)
        }
    });
    let server = start(&url, "once", router).await;
    let client = Client::connect(&*url).await.unwrap();
    let (reply, ()) = tokio::join!(client.send_at::<u32>("card.charge", &()), async {
        timeout(SOON, starts.recv()).await.unwrap().unwrap();
        assert_eq!(
            pending_in(&plain, &format!("{prefix}:message:card.charge"), "once").await,
            0
        );
        gate.add_permits(1);
    });
    assert_eq!(reply.unwrap(), 1);
    server.shutdown().await;
}

#[tokio::test]
async fn an_entry_in_work_is_not_taken_away() {
    let (url, _, _) = broker!("&claim_idle=300");
    let runs = Arc::new(AtomicU32::new(0));
    let router = || {
        let runs = Arc::clone(&runs);
        Router::new().message(move |_: Work| {
            let run = runs.fetch_add(1, Ordering::SeqCst) + 1;
            async move {
                // Several times as long as an entry may be idle.
                tokio::time::sleep(Duration::from_millis(1500)).await;
                Ok::<_, RpcError>(run)
            }
        })
    };
    let (one, two) = (
        start(&url, "slow", router()).await,
        start(&url, "slow", router()).await,
    );
    let client = Client::connect(&*url).await.unwrap();
    assert_eq!(client.send(Work(1)).await.unwrap(), 1);
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    one.shutdown().await;
    two.shutdown().await;
}

#[tokio::test]
async fn events_wait_for_a_stopped_service_keep_their_order_and_go() {
    let (url, prefix, mut plain) = broker!("");
    let (seen, mut arrived) = mpsc::unbounded_channel();
    let router = || {
        let seen = seen.clone();
        Router::new().event(move |Happened(n): Happened| {
            let seen = seen.clone();
            async move {
                tokio::task::yield_now().await;
                seen.send(n).map_err(RpcError::internal)
            }
        })
    };
    start(&url, "audit", router()).await.shutdown().await;
    let client = Client::connect(&*url).await.unwrap();
    for n in 0..300 {
        client.emit(Happened(n)).await.unwrap();
    }
    let server = start(&url, "audit", router()).await;
    for n in 0..300 {
        assert_eq!(timeout(SOON, arrived.recv()).await.unwrap(), Some(n));
    }
    server.shutdown().await;
    // Redis removes whole nodes of up to a hundred entries.
    let left: usize = plain.xlen(format!("{prefix}:events:thing")).await.unwrap();
    assert!(left < 100, "{left} entries are left");
}

/// What one service has settled stays for another: for one that is away, and for a consumer that died with it in its
/// hands. Then it goes.
#[tokio::test]
async fn what_somebody_has_not_settled_is_never_trimmed() {
    const EVENTS: u32 = 300;

    let (url, prefix, plain) = broker!("&claim_idle=300");
    let (seen, mut arrived) = mpsc::unbounded_channel();
    let router = || {
        let seen = seen.clone();
        Router::new().event(move |Happened(n): Happened| {
            let seen = seen.clone();
            async move { seen.send(n).map_err(RpcError::internal) }
        })
    };
    let mut handled = async || {
        let mut handled = HashSet::new();
        while handled.len() < EVENTS as usize {
            handled.extend(timeout(3 * SOON, arrived.recv()).await.unwrap());
        }
    };
    let stream = format!("{prefix}:events:thing");
    let kept = async || plain.clone().xlen::<_, usize>(&stream).await.unwrap();
    // A service that stops has trimmed the stream when it has stopped.
    let trim = async |service| start(&url, service, router()).await.shutdown().await;
    for service in ["one", "other"] {
        trim(service).await;
    }
    let client = Client::connect(&*url).await.unwrap();
    for n in 0..EVENTS {
        client.emit(Happened(n)).await.unwrap();
    }
    let one = start(&url, "one", router()).await;
    handled().await;
    one.shutdown().await;
    assert_eq!(kept().await, EVENTS as usize, "the other is away");

    for _ in 0..EVENTS {
        read_and_die(&plain, &stream, "other", "dead").await;
    }
    trim("one").await;
    assert_eq!(kept().await, EVENTS as usize, "the other has died");

    let other = start(&url, "other", router()).await;
    handled().await;
    other.shutdown().await;
    // Redis removes whole nodes of up to a hundred entries.
    let left = kept().await;
    assert!(left < 100, "{left} entries are left");
}

#[tokio::test]
async fn a_failing_event_comes_back_and_an_unknown_one_is_acknowledged() {
    let (url, prefix, plain) = broker!("&claim_idle=300");
    let attempts = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&attempts);
    let router = Router::new().event(move |_: Happened, cx: Context| {
        seen.lock().unwrap().push(cx.attempt());
        async { Ok::<_, RpcError>(()) }
    });
    start(&url, "retry", router.clone()).await.shutdown().await;
    let client = Client::connect(&*url).await.unwrap();
    client.emit(Happened(1)).await.unwrap();
    let stream = format!("{prefix}:events:thing");
    read_and_die(&plain, &stream, "retry", "ghost").await;
    let server = start(&url, "retry", router).await;
    client.emit_at("thing.unknown", &()).await.unwrap();
    until("both are settled", async || {
        attempts.lock().unwrap().len() == 1 && pending_in(&plain, &stream, "retry").await == 0
    })
    .await;
    // Nobody knows what its first reader died of.
    assert_eq!(*attempts.lock().unwrap(), [1]);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_share_and_every_call_is_answered_once() {
    let (url, _, _) = broker!("");
    let runs = Arc::new(Mutex::new(Vec::new()));
    let replica = |name: u32| {
        let runs = Arc::clone(&runs);
        let router = Router::new().message(move |Work(n): Work| {
            runs.lock().unwrap().push((n, name));
            async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok::<_, RpcError>(u32::try_from(n).unwrap())
            }
        });
        Server::new("shared", router)
            .max_in_flight(8)
            .listen(&*url)
            .start()
    };
    let (one, two) = (replica(1).await.unwrap(), replica(2).await.unwrap());
    let client = Client::connect(&*url).await.unwrap();
    let replies = join_all((0..400).map(|n| {
        let client = client.clone();
        async move { client.send(Work(n)).timeout(SOON).await.unwrap() }
    }));
    assert!(replies.await.into_iter().eq(0..400));
    let runs = std::mem::take(&mut *runs.lock().unwrap());
    assert_eq!(runs.len(), 400);
    assert_eq!(
        runs.iter().map(|(n, _)| n).collect::<HashSet<_>>().len(),
        400
    );
    assert_eq!(
        runs.iter()
            .map(|(_, name)| name)
            .collect::<HashSet<_>>()
            .len(),
        2
    );
    one.shutdown().await;
    two.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_find_a_broker_that_comes_back() {
    if broker_or_skip(Kind::Redis).is_none() {
        return;
    }
    let folder = std::env::temp_dir().join(unique("nestling-redis-restart"));
    let broker = Broker::start(
        Kind::Redis,
        Options {
            data_dir: Some(folder.clone()),
            ..Options::default()
        },
    )
    .unwrap();
    let (url, port) = (broker.url(), broker.port());
    let (seen, mut arrived) = mpsc::unbounded_channel();
    let router = Router::new()
        .message(|_: Work| async { Ok::<_, RpcError>(1) })
        .message_at("math.double", double)
        .event(move |Happened(n): Happened| {
            let seen = seen.clone();
            async move { seen.send(n).map_err(RpcError::internal) }
        });
    let server = start(&url, "restart", router).await;
    let client = Client::connect(&*url).await.unwrap();
    assert_eq!(client.send(Work(1)).await.unwrap(), 1);
    drop(broker);
    let emitting = client.clone();
    let emitted = tokio::spawn(async move {
        emitting
            .emit(Happened(7))
            .timeout(Duration::from_secs(20))
            .await
    });
    let error = client
        .send(Work(1))
        .timeout(Duration::from_secs(8))
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::Unavailable);
    let options = Options {
        data_dir: Some(folder.clone()),
        port: Some(port),
        ..Options::default()
    };
    let broker = Broker::start(Kind::Redis, options).unwrap();
    until("requests are answered again", async || {
        client.send(Work(1)).await.is_ok()
    })
    .await;
    until("all of them", async || {
        client.send_at::<u64>("math.double", &2).await.is_ok()
    })
    .await;
    emitted.await.unwrap().unwrap();
    assert_eq!(timeout(SOON, arrived.recv()).await.unwrap(), Some(7));
    server.shutdown().await;
    drop(broker);
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn what_had_not_begun_at_shutdown_is_done_by_another() {
    let (url, prefix, plain) = broker!("");
    let (started, mut starts) = mpsc::unbounded_channel();
    let gate = Arc::new(Semaphore::new(0));
    let inside = Arc::clone(&gate);
    let slow = Router::new().message(move |_: Work| {
        started.send(()).unwrap();
        let gate = Arc::clone(&inside);
        async move {
            gate.acquire().await.unwrap().forget();
            Ok::<_, RpcError>(1)
        }
    });
    let one = Server::new("drain", slow)
        .max_in_flight(1)
        .listen(&*url)
        .start()
        .await
        .unwrap();
    let client = Client::connect(&*url).await.unwrap();
    let calls: Vec<_> = (0..20)
        .map(|n| {
            let client = client.clone();
            tokio::spawn(async move { client.send(Work(n)).timeout(SOON).await })
        })
        .collect();
    timeout(SOON, starts.recv()).await.unwrap().unwrap();
    let stream = format!("{prefix}:message:work.do");
    until("all wait", async || {
        plain.clone().xlen::<_, usize>(&stream).await.unwrap() == 20
    })
    .await;
    let begun = Instant::now();
    let stopping = tokio::spawn(one.shutdown());
    let router = Router::new().message(|_: Work| async { Ok::<_, RpcError>(2) });
    let two = start(&url, "drain", router).await;
    until("the other does the rest", async || {
        plain.clone().xlen::<_, usize>(&stream).await.unwrap() == 1
    })
    .await;
    assert!(
        begun.elapsed() < Duration::from_secs(4),
        "{:?}",
        begun.elapsed()
    );
    gate.add_permits(1);
    stopping.await.unwrap();
    let mut replies = Vec::new();
    for call in calls {
        replies.push(call.await.unwrap().unwrap());
    }
    replies.sort_unstable();
    assert_eq!((replies[0], replies[1], replies[19]), (1, 2, 2));
    two.shutdown().await;
}
