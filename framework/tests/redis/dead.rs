//! Events that were given up, and how often those that come back have been tried.

use std::{collections::HashMap, sync::Mutex};

use futures_util::future::try_join_all;
use nestling::{
    Endpoint,
    transport::{DeadLetter, DeadLetters},
};
use redis::streams::{StreamPendingCountReply, StreamRangeReply};
use tokio::sync::Semaphore;

use super::*;

/// Longer than any test.
const FOR_EVER: Duration = Duration::from_secs(600);

async fn refuse(_: Happened) -> Result<(), RpcError> {
    Err(RpcError::invalid_argument("never"))
}

async fn dead_letters(url: &str) -> Arc<dyn DeadLetters> {
    Endpoint::from(url).dead_letters().await.unwrap()
}

/// All dead letters, a page after the other, when there are so many.
async fn all(
    dead: &dyn DeadLetters,
    service: &str,
    count: usize,
    page: usize,
) -> Vec<(String, DeadLetter)> {
    let found = Mutex::new(Vec::new());
    until("there are as many dead letters", async || {
        let mut letters: Vec<(String, DeadLetter)> = Vec::new();
        loop {
            let after = letters.last().map(|(id, _)| id.clone());
            let more = dead.list(service, after.as_deref(), page).await.unwrap();
            assert!(more.len() <= page);
            if more.is_empty() {
                break;
            }
            letters.extend(more);
        }
        *found.lock().unwrap() = letters;
        found.lock().unwrap().len() >= count
    })
    .await;
    let found = found.into_inner().unwrap();
    assert_eq!(found.len(), count);
    found
}

/// The numbers that they carry, in order.
fn payloads(letters: &[(String, DeadLetter)]) -> Vec<u32> {
    let payload = |(_, letter): &(String, DeadLetter)| {
        serde_json::from_slice(&letter.rejection.envelope.payload).unwrap()
    };
    let mut all: Vec<_> = letters.iter().map(payload).collect();
    all.sort_unstable();
    all
}

/// What Redis counts for the one event that is pending.
async fn counted(plain: &MultiplexedConnection, stream: &str, group: &str) -> Option<usize> {
    let mut plain = plain.clone();
    let pending: StreamPendingCountReply = plain
        .xpending_count(stream, group, "-", "+", 10)
        .await
        .unwrap();
    assert!(pending.ids.len() <= 1, "{pending:?}");
    pending.ids.first().map(|pending| pending.times_delivered)
}

#[tokio::test]
async fn a_dead_letter_is_seen_with_redis_own_tools_and_has_its_bytes() {
    let (url, prefix, mut plain) = broker!("");
    let service = "Zahlung: \u{fc}ber/100 {%} *";
    let server = start(&url, service, Router::new().event(refuse)).await;
    let client = Client::connect(&*url).await.unwrap();
    let bytes: Vec<u8> = (0..=255).collect();
    client
        .emit(Happened(1))
        .payload(bytes.clone())
        .header("content-type", "application/x-own")
        .await
        .unwrap();
    let dead = dead_letters(&url).await;
    let (id, letter) = all(&*dead, service, 1, 10).await.remove(0);
    assert_eq!(letter.service, service);
    let envelope = letter.rejection.envelope;
    assert_eq!(envelope.payload, bytes);
    assert_eq!(
        envelope.headers.get("content-type"),
        Some("application/x-own")
    );
    assert_eq!(
        pending_in(&plain, &format!("{prefix}:events:thing"), service).await,
        0
    );

    let stream = format!("{prefix}:dead:{service}");
    let entries: StreamRangeReply = plain.xrange_all(&stream).await.unwrap();
    let [entry] = &entries.ids[..] else {
        panic!("{entries:?}")
    };
    assert_eq!(entry.id, id);
    assert_eq!(
        entry.get::<String>("pattern").as_deref(),
        Some("thing.happened")
    );
    assert_eq!(entry.get::<u32>("attempts"), Some(1));
    assert!(
        entry
            .get::<String>("reason")
            .unwrap()
            .contains("application/x-own")
    );
    assert_eq!(entry.get::<Vec<u8>>("p"), Some(bytes));

    // What somebody else puts there is in nobody's way.
    let _: String = plain.xadd(&stream, "*", &[("a", "b")]).await.unwrap();
    assert_eq!(all(&*dead, service, 1, 1).await.len(), 1);
    assert!(dead.find(service, "no id").await.unwrap().is_none());
    assert!(!dead.discard(service, "0-1").await.unwrap());
    assert!(dead.list(service, Some("no id"), 1).await.is_err());
    server.shutdown().await;
}

#[tokio::test]
async fn what_cannot_be_stored_waits_with_its_event_and_holds_up_no_other() {
    let (url, prefix, mut plain) = broker!("&claim_idle=300");
    let (stream, grave) = (
        format!("{prefix}:events:thing"),
        format!("{prefix}:dead:grave"),
    );
    // As good as a full memory: Redis does not take it.
    let () = plain.set(&grave, "in the way").await.unwrap();
    let (passed, mut passing) = mpsc::unbounded_channel();
    let router =
        Router::new()
            .event(refuse)
            .event_with("thing.other", Guarantee::AtLeastOnce, move || {
                let told = passed.send(());
                async move { told.map_err(RpcError::internal) }
            });
    let server = start(&url, "grave", router.clone()).await;
    let client = Client::connect(&*url).await.unwrap();
    for n in 0..3 {
        client.emit(Happened(n)).await.unwrap();
        client.emit_at("thing.other", &()).await.unwrap();
        timeout(SOON, passing.recv()).await.unwrap().unwrap();
    }
    assert_eq!(pending_in(&plain, &stream, "grave").await, 3);
    let () = plain.del(&grave).await.unwrap();
    let dead = dead_letters(&url).await;
    let letters = all(&*dead, "grave", 3, 10).await;
    assert!(
        letters
            .iter()
            .all(|(_, letter)| letter.rejection.attempts == 1)
    );
    assert_eq!(pending_in(&plain, &stream, "grave").await, 0);

    // Whoever stops meanwhile leaves it to the next.
    let () = plain.del(&grave).await.unwrap();
    let () = plain.set(&grave, "in the way").await.unwrap();
    client.emit(Happened(4)).await.unwrap();
    client.emit_at("thing.other", &()).await.unwrap();
    timeout(SOON, passing.recv()).await.unwrap().unwrap();
    server.shutdown().await;
    assert_eq!(counted(&plain, &stream, "grave").await, Some(3));
    let () = plain.del(&grave).await.unwrap();
    let server = start(&url, "grave", router).await;
    let letters = all(&*dead, "grave", 1, 10).await;
    assert_eq!(letters[0].1.rejection.attempts, 2);
    assert_eq!(letters[0].1.rejection.envelope.payload, "4");
    server.shutdown().await;
}

#[tokio::test]
async fn thousands_of_dead_letters_wait_in_bounds_and_are_listed_in_pages() {
    const EVENTS: u32 = 3000;
    /// What may wait, and what had been read by then.
    const MOST: usize = 1024 + 100;
    let (url, prefix, mut plain) = broker!("&claim_idle=300");
    let (stream, grave) = (
        format!("{prefix}:events:thing"),
        format!("{prefix}:dead:many"),
    );
    let () = plain.set(&grave, "in the way").await.unwrap();
    let server = Server::new("many", Router::new().event(refuse)).max_in_flight(50);
    let server = server.listen(&*url).start().await.unwrap();
    let (seen, mut seeing) = mpsc::unbounded_channel();
    let witness = Router::new().event(move |Happened(n): Happened| {
        let told = seen.send(n);
        async move { told.map_err(RpcError::internal) }
    });
    let witness = start(&url, "witness", witness).await;
    let client = Client::connect(&*url).await.unwrap();
    let emitted = (0..EVENTS).map(|n| client.emit(Happened(n)).into_future());
    try_join_all(emitted).await.unwrap();
    for _ in 0..EVENTS {
        timeout(SOON, seeing.recv()).await.unwrap().unwrap();
    }
    until("the bound is reached", async || {
        pending_in(&plain, &stream, "many").await >= 1024
    })
    .await;
    assert!(pending_in(&plain, &stream, "many").await <= MOST);

    let () = plain.del(&grave).await.unwrap();
    let dead = dead_letters(&url).await;
    let letters = all(&*dead, "many", EVENTS as usize, 700).await;
    assert_eq!(payloads(&letters), (0..EVENTS).collect::<Vec<_>>());
    assert_eq!(
        dead.list("many", None, 1000).await.unwrap().len(),
        1000,
        "more than one answer of Redis brings"
    );
    server.shutdown().await;
    witness.shutdown().await;
}

#[tokio::test]
async fn an_event_is_stored_once_however_it_was_settled_meanwhile() {
    let (url, prefix, mut plain) = broker!("");
    let (started, mut starts) = mpsc::unbounded_channel();
    let gate = Arc::new(Semaphore::new(0));
    let inside = Arc::clone(&gate);
    let router = Router::new().event_with(
        "thing.failing",
        Guarantee::AtLeastOnce,
        move |Payload(n): Payload<u32>| {
            let (gate, started) = (Arc::clone(&inside), started.clone());
            async move {
                started.send(n).map_err(RpcError::internal)?;
                gate.acquire().await.unwrap().forget();
                Err::<(), _>(RpcError::invalid_argument("never"))
            }
        },
    );
    let server = start(&url, "once", router).await;
    let client = Client::connect(&*url).await.unwrap();
    let dead = dead_letters(&url).await;
    let stream = format!("{prefix}:events:thing");
    let mut begin = async |n: u32| {
        client.emit_at("thing.failing", &n).await.unwrap();
        assert_eq!(timeout(SOON, starts.recv()).await.unwrap(), Some(n));
    };
    begin(1).await;
    let entries: StreamRangeReply = plain.xrange_all(&stream).await.unwrap();
    let settled: usize = plain
        .xack(&stream, "once", &[&entries.ids[0].id])
        .await
        .unwrap();
    assert_eq!(settled, 1);
    begin(2).await;
    gate.add_permits(2);
    let letters = all(&*dead, "once", 1, 10).await;
    assert_eq!(letters[0].1.rejection.envelope.payload, "2");

    // Redis loses the group, which is made again and sees everything once more.
    begin(3).await;
    let () = plain.xgroup_destroy(&stream, "once").await.unwrap();
    gate.add_permits(100);
    until("nothing is lost with a group", async || {
        let letters = dead.list("once", None, 100).await.unwrap();
        letters
            .iter()
            .any(|(_, letter)| letter.rejection.envelope.payload == "3")
    })
    .await;
    server.shutdown().await;
}

#[tokio::test]
async fn lost_connections_neither_lose_dead_letters_nor_store_them_twice() {
    const EVENTS: u32 = 3000;
    // Of its own: no other test's connections are cut.
    if broker_or_skip(Kind::Redis).is_none() {
        return;
    }
    let broker = Broker::start(Kind::Redis, Options::default()).unwrap();
    let url = format!("{}?claim_idle=300", broker.url());
    let plain = plain(&broker.url()).await;
    let server = || {
        let server = Server::new("cut", Router::new().event(refuse)).max_in_flight(10);
        server.listen(&*url).start()
    };
    server().await.unwrap().shutdown().await;
    let client = Client::connect(&*url).await.unwrap();
    let emitted = (0..EVENTS).map(|n| client.emit(Happened(n)).into_future());
    try_join_all(emitted).await.unwrap();

    let server = server().await.unwrap();
    let stored = async || -> u32 { plain.clone().xlen("nestling:dead:cut").await.unwrap() };
    for _ in 0..5 {
        let before = stored().await;
        until("there are more dead letters", async || {
            stored().await > before
        })
        .await;
        let killed: u32 = redis::cmd("CLIENT")
            .arg(&["KILL", "TYPE", "normal", "SKIPME", "yes"])
            .query_async(&mut plain.clone())
            .await
            .unwrap();
        assert!(killed > 0);
    }
    assert!(stored().await < EVENTS, "cut before all were stored");
    let dead = dead_letters(&url).await;
    let letters = all(&*dead, "cut", EVENTS as usize, 1000).await;
    assert_eq!(payloads(&letters), (0..EVENTS).collect::<Vec<_>>());
    server.shutdown().await;
    assert_eq!(pending_in(&plain, "nestling:events:thing", "cut").await, 0);
}

/// Records its tries; those up to `fails` fail, and the next never ends.
fn hanging(tries: &Arc<Mutex<Vec<(u32, u32)>>>, fails: u32) -> Router {
    let tries = Arc::clone(tries);
    Router::new().event(move |Happened(n): Happened, cx: Context| {
        tries.lock().unwrap().push((n, cx.attempt()));
        async move {
            if cx.attempt() <= fails {
                return Err(RpcError::unavailable("not now"));
            }
            std::future::pending().await
        }
    })
}

#[tokio::test]
async fn what_is_given_back_has_been_tried_as_often_as_it_failed() {
    let (url, prefix, plain) = broker!("&claim_idle=300");
    let stream = format!("{prefix}:events:thing");
    let tries = Arc::new(Mutex::new(Vec::new()));
    let server = |fails| {
        Server::new("back", hanging(&tries, fails))
            .retry(10, Duration::from_millis(10))
            .drain_timeout(Duration::from_millis(50))
            .max_in_flight(2)
            .listen(&*url)
            .start()
    };
    let one = server(0).await.unwrap();
    let client = Client::connect(&*url).await.unwrap();
    client.emit(Happened(1)).await.unwrap();
    until("it is in work", async || !tries.lock().unwrap().is_empty()).await;
    one.shutdown().await;
    assert_eq!(counted(&plain, &stream, "back").await, Some(0));

    let two = server(3).await.unwrap();
    until("it has failed", async || tries.lock().unwrap().len() == 5).await;
    until("Redis knows", async || {
        counted(&plain, &stream, "back").await == Some(5)
    })
    .await;
    two.shutdown().await;
    assert_eq!(counted(&plain, &stream, "back").await, Some(5));

    let three = server(3).await.unwrap();
    until("it is in work again", async || {
        tries.lock().unwrap().len() == 6
    })
    .await;
    three.shutdown().await;
    let attempts: Vec<_> = tries.lock().unwrap().iter().map(|(_, n)| *n).collect();
    assert_eq!(attempts, [1, 1, 2, 3, 4, 4]);
}

#[tokio::test]
async fn a_crash_after_a_failure_counts_on_and_one_in_a_try_counts_itself() {
    let (url, _, _) = broker!("&claim_idle=60000");
    let tries = Arc::new(Mutex::new(Vec::new()));
    let server = |fails, pause| {
        Server::new("crash", hanging(&tries, fails))
            .instance("one")
            .retry(4, pause)
            .listen(&*url)
            .start()
    };
    let mut running = server(1, FOR_EVER).await.unwrap();
    let client = Client::connect(&*url).await.unwrap();
    client.emit(Happened(1)).await.unwrap();
    // A failed try, then three that end with their process.
    for count in 1..=4 {
        until("it is tried", async || tries.lock().unwrap().len() == count).await;
        drop(running);
        running = server(1, FOR_EVER).await.unwrap();
    }
    let dead = dead_letters(&url).await;
    let (_, letter) = all(&*dead, "crash", 1, 10).await.remove(0);
    assert_eq!(letter.rejection.attempts, 4);
    let tried: HashMap<_, _> = tries.lock().unwrap().iter().copied().collect();
    assert_eq!(tried, HashMap::from([(1, 4)]));
    assert_eq!(tries.lock().unwrap().len(), 4);
    running.shutdown().await;
}
