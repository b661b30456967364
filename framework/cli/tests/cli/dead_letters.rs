//! `nestling dead-letters`.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use nestling::{
    Guarantee, Payload,
    sqlite::{self, DeadLetterTable},
};
use nestling_testkit::{Kind, broker_or_skip, unique};

use super::*;

#[test]
fn what_has_no_dead_letters_is_a_usage_error() {
    let ended = run([
        "dead-letters",
        "list",
        "tcp://127.0.0.1:1",
        "--service",
        "s",
    ]);
    ended.check(64, "");
    run([
        "dead-letters",
        "replay",
        "redis://127.0.0.1:1",
        "--service",
        "s",
    ])
    .check(64, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn they_are_listed_shown_replayed_and_discarded() {
    for (kind, options) in [
        (Kind::Redis, ""),
        (Kind::Kafka, ""),
        (Kind::Nats, "?events=jetstream"),
    ] {
        if let Some(broker) = broker_or_skip(kind) {
            let url = broker + options;
            walk(&url, &url, None).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn those_in_a_table_are_replayed_through_a_transport() {
    let Some(bus) = broker_or_skip(Kind::Nats) else {
        return;
    };
    let path = std::env::temp_dir().join(unique("dead-letters"));
    let pool = sqlite::open(&path).await.unwrap();
    let table = DeadLetterTable::open(pool.clone()).await.unwrap();
    walk(&format!("sqlite:{}", path.display()), &bus, Some(table)).await;
    pool.close().await;
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_database_that_is_not_there_is_not_made() {
    let path = std::env::temp_dir().join(unique("no-dead-letters"));
    let url = format!("sqlite:{}", path.display());
    let ended = run(["dead-letters", "list", &url, "--service", "s"]);
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert!(!path.exists());
}

/// Lets two events die, replays one and discards the other.
async fn walk(url: &str, bus: &str, table: Option<DeadLetterTable>) {
    let (service, pattern) = (unique("cli-dead"), unique("cli-dead-event"));
    let pattern = format!("{pattern}.happened");
    let mended = Arc::new(AtomicBool::new(false));
    let (seen, mut arrivals) = tokio::sync::mpsc::unbounded_channel();
    let handler = {
        let mended = Arc::clone(&mended);
        move |Payload(n): Payload<u64>| {
            let broken = !mended.load(Ordering::SeqCst);
            let told = if broken { Ok(()) } else { seen.send(n) };
            async move {
                told.map_err(nestling::RpcError::internal)?;
                match broken {
                    true => Err(nestling::RpcError::invalid_argument("broken")),
                    false => Ok(()),
                }
            }
        }
    };
    let needs = match table {
        None => Guarantee::AtLeastOnce,
        Some(_) => Guarantee::BestEffort,
    };
    let router = Router::new().event_with(pattern.clone(), needs, handler);
    let mut server = Server::new(&*service, router).listen(bus);
    if let Some(table) = table {
        server = server.dead_letters(table);
    }
    let server = server.start().await.unwrap();
    let client = nestling::Client::connect(bus).await.unwrap();
    for n in [1, 2] {
        client
            .emit_at(pattern.clone(), &n)
            .header("key", "k")
            .await
            .unwrap();
    }
    let list = || {
        let ended = run(["dead-letters", "list", url, "--service", &service]);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let lines = ended
            .out
            .lines()
            .map(|line| serde_json::from_str(line).unwrap());
        lines.collect::<Vec<Value>>()
    };
    let deadline = Instant::now() + SOON;
    let listed = loop {
        let listed = list();
        if listed.len() == 2 {
            break listed;
        }
        assert!(Instant::now() < deadline, "{listed:?}");
        tokio::time::sleep(POLL).await;
    };
    assert_eq!(listed[0]["pattern"], *pattern);
    assert_eq!(listed[0]["attempts"], 1);
    assert!(listed[0].get("payload").is_none(), "{listed:?}");
    let id = |n: usize| listed[n]["id"].as_str().unwrap().to_owned();
    let show = |id: &str| -> Value {
        let shown = run(["dead-letters", "show", url, "--service", &service, id]);
        serde_json::from_str(&shown.out).unwrap()
    };
    // One that could not be stored at once comes behind the other.
    let (first, second) = match show(&id(0))["payload"] == 1 {
        true => (id(0), id(1)),
        false => (id(1), id(0)),
    };
    let shown = show(&first);
    assert_eq!(shown["payload"], 1);
    assert_eq!(shown["headers"]["key"], "k");

    mended.store(true, Ordering::SeqCst);
    let replay = || {
        let words = ["dead-letters", "replay", url, "--service", &service, &first];
        let [one, two, three, four, five, six] = words;
        match url == bus {
            true => run(words),
            false => run([one, two, three, four, five, six, "--through", bus]),
        }
    };
    let replayed = replay();
    replayed.check(0, &format!("\"{first}\"\n"));
    let arrived = tokio::time::timeout(SOON, arrivals.recv()).await.unwrap();
    assert_eq!(arrived, Some(1));
    let gone = replay();
    assert_eq!(
        (gone.code, &gone.error()["code"]),
        (Some(1), &"NOT_FOUND".into())
    );

    let discarded = run([
        "dead-letters",
        "discard",
        url,
        "--service",
        &service,
        "--all",
    ]);
    discarded.check(0, &format!("\"{second}\"\n"));
    assert_eq!(list(), Vec::<Value>::new());
    server.shutdown().await;
}
