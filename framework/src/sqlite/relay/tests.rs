use serde::{Deserialize, Serialize};
use sqlx::SqlitePool;
use tokio::sync::mpsc;

use super::*;
use crate::{
    contract::Event,
    introspect::Gauge,
    router::Router,
    server::{Running, Server},
    sqlite::{open, open_in_memory},
    transport::Memory,
};

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Counted {
    key: String,
    number: u32,
}

impl Event for Counted {
    const PATTERN: &'static str = "test.counted";

    fn key(&self) -> Option<String> {
        Some(self.key.clone())
    }
}

async fn outbox() -> (SqlitePool, Outbox) {
    let pool = open_in_memory().await.unwrap();
    (pool.clone(), Outbox::open(pool).await.unwrap())
}

async fn add(pool: &SqlitePool, outbox: &Outbox, key: impl Into<String>, number: u32) {
    let key = key.into();
    let mut tx = pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
    outbox.add(&mut tx, &Counted { key, number }).await.unwrap();
    outbox.commit(tx).await.unwrap();
}

/// A bus on which every event can be seen.
async fn listening() -> (Client, mpsc::Receiver<Counted>, Running) {
    let memory = Memory::new();
    let (sender, seen) = mpsc::channel(4096);
    let router = Router::new().event(move |event: Counted| {
        let sender = sender.clone();
        async move {
            let sent = sender.send(event).await;
            sent.map_err(|_| RpcError::unavailable("test over"))
        }
    });
    let server = Server::new("test", router).listen(&memory);
    let server = server.start().await.unwrap();
    (Client::connect(&memory).await.unwrap(), seen, server)
}

async fn until_empty(outbox: &Outbox) {
    let empty = async {
        while outbox.lag().await.unwrap().waiting > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, empty).await.unwrap();
}

#[tokio::test]
async fn events_go_out_in_order_for_each_key_and_leave_the_table() {
    let (pool, outbox) = outbox().await;
    for number in 0..20 {
        let key = if number % 2 == 0 { "even" } else { "odd" };
        add(&pool, &outbox, key, number).await;
    }
    assert_eq!(outbox.lag().await.unwrap().waiting, 20);
    let (bus, mut seen, _server) = listening().await;
    let _relay = outbox.relay(bus);
    let mut last: HashMap<String, u32> = HashMap::new();
    for _ in 0..20 {
        let event = seen.recv().await.unwrap();
        let before = last.insert(event.key, event.number);
        assert!(before < Some(event.number));
    }
    until_empty(&outbox).await;
    assert_eq!(outbox.lag().await.unwrap(), Lag::default());
}

/// Two in one process, each with connections of its own, as two replicas have.
#[tokio::test]
async fn several_relays_publish_each_event_once_and_in_order() {
    const KEYS: u32 = 5;
    const EVENTS: u32 = 600;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("test.db");
    let (bus, mut seen, _server) = listening().await;
    let mut replicas = Vec::new();
    for _ in 0..2 {
        let pool = open(&path).await.unwrap();
        let outbox = Outbox::open(pool.clone()).await.unwrap();
        let relay = outbox.relay(bus.clone());
        replicas.push((pool, outbox, relay));
    }
    let adding = async {
        for number in 0..EVENTS {
            let (pool, outbox, _) = &replicas[number as usize % 2];
            add(pool, outbox, (number % KEYS).to_string(), number).await;
        }
    };
    let seeing = async {
        let mut last: HashMap<String, u32> = HashMap::new();
        for _ in 0..EVENTS {
            let event = timeout(PATIENCE, seen.recv()).await.unwrap().unwrap();
            let before = last.insert(event.key, event.number);
            assert!(before < Some(event.number), "{before:?} {}", event.number);
        }
    };
    tokio::join!(adding, seeing);
    until_empty(&replicas[0].1).await;
    assert!(seen.try_recv().is_err(), "one was published twice");
}

fn publisher(outbox: &Outbox, bus: &Client) -> Publisher {
    Publisher::new(outbox.clone(), bus.clone())
}

#[tokio::test]
async fn an_event_that_cannot_be_published_keeps_only_those_of_its_key() {
    let (pool, outbox) = outbox().await;
    add(&pool, &outbox, "stuck", 1).await;
    add(&pool, &outbox, "free", 2).await;
    add(&pool, &outbox, "stuck", 3).await;
    // More than the bus takes.
    sqlx::query("UPDATE outbox SET payload = zeroblob(17 << 20) WHERE position = 1")
        .execute(&pool)
        .await
        .unwrap();
    let bus = Client::connect(&Memory::new()).await.unwrap();
    let mut publisher = publisher(&outbox, &bus);
    assert_eq!(publisher.round().await.unwrap(), 3);
    assert_eq!(publisher.stuck, HashSet::from(["stuck".to_owned()]));
    publisher.retry_at = Instant::now() + PATIENCE;
    add(&pool, &outbox, "free", 4).await;
    assert_eq!(publisher.round().await.unwrap(), 1);
    assert_eq!(publisher.round().await.unwrap(), 0);
    assert_eq!(outbox.lag().await.unwrap().waiting, 2);
    publisher.retry_at = Instant::now();
    assert_eq!(publisher.round().await.unwrap(), 2, "it is tried again");
}

#[tokio::test]
async fn leased_lanes_are_left_alone_until_their_lease_runs_out() {
    let (pool, outbox) = outbox().await;
    let bus = Client::connect(&Memory::new()).await.unwrap();
    add(&pool, &outbox, "one", 1).await;
    let (mut first, mut second) = (publisher(&outbox, &bus), publisher(&outbox, &bus));
    let dead = first.claim().await.unwrap().unwrap();
    assert!(dead.lease.lasts());
    add(&pool, &outbox, "one", 2).await;
    add(&pool, &outbox, "other", 3).await;
    let lanes = second.claim().await.unwrap().unwrap().lanes;
    assert_eq!(lanes.keys().collect::<Vec<_>>(), ["other"]);
    second.published = vec![3];
    assert!(second.claim().await.unwrap().is_none());
    assert_eq!(outbox.lag().await.unwrap().waiting, 2);

    let expire = "UPDATE outbox_leases SET until = ? WHERE lane = 'one'";
    let expire = sqlx::query(expire).bind(millis_since_epoch());
    expire.execute(&pool).await.unwrap();
    let lanes = second.claim().await.unwrap().unwrap().lanes;
    assert_eq!(lanes["one"].len(), 2);
    // The first comes back, and has published one meanwhile.
    first.published = vec![1];
    assert!(first.claim().await.unwrap().is_none());
    assert_eq!(outbox.lag().await.unwrap().waiting, 1);
    let leases = sqlx::query_scalar::<_, i64>("SELECT COUNT(*) FROM outbox_leases");
    assert_eq!(leases.fetch_one(&pool).await.unwrap(), 1);
}

/// The clock was set back.
#[tokio::test]
async fn a_lease_that_lasts_too_long_is_none() {
    let (pool, outbox) = outbox().await;
    let bus = Client::connect(&Memory::new()).await.unwrap();
    add(&pool, &outbox, "one", 1).await;
    assert!(publisher(&outbox, &bus).claim().await.unwrap().is_some());
    assert!(publisher(&outbox, &bus).claim().await.unwrap().is_none());
    let prolong = "UPDATE outbox_leases SET until = until + 3600000";
    sqlx::query(prolong).execute(&pool).await.unwrap();
    assert!(publisher(&outbox, &bus).claim().await.unwrap().is_some());
}

#[tokio::test]
async fn nothing_is_begun_without_a_lease() {
    let (pool, outbox) = outbox().await;
    let (bus, mut seen, _server) = listening().await;
    add(&pool, &outbox, "one", 1).await;
    let mut publisher = publisher(&outbox, &bus);
    let Claim { lanes, lease } = publisher.claim().await.unwrap().unwrap();
    lease.end_at(Instant::now());
    for events in lanes.into_values() {
        let (published, error) = publish_lane(&bus, events, &lease).await;
        assert!(published.is_empty() && error.is_none());
    }
    assert!(seen.try_recv().is_err());
}

#[tokio::test]
async fn a_renewal_finds_out_that_others_took_over() {
    let (pool, outbox) = outbox().await;
    let bus = Client::connect(&Memory::new()).await.unwrap();
    add(&pool, &outbox, "one", 1).await;
    add(&pool, &outbox, "two", 2).await;
    let mut publisher = publisher(&outbox, &bus);
    let lease = publisher.claim().await.unwrap().unwrap().lease;
    let ends = *lease.ends.lock().unwrap();
    publisher.renew_once(&lease).await.unwrap();
    assert!(*lease.ends.lock().unwrap() > ends);
    let steal = "UPDATE outbox_leases SET holder = 'other' WHERE lane = 'two'";
    sqlx::query(steal).execute(&pool).await.unwrap();
    publisher.renew_once(&lease).await.unwrap();
    assert!(!lease.lasts());
}

#[test]
fn being_late_is_told_once_and_so_is_having_caught_up() {
    let mut watch = Watch::default();
    let mut at = |oldest: Duration| watch.turns(Lag { waiting: 1, oldest });
    assert_eq!(at(LATE), None);
    assert_eq!(at(LATE + LOOK), Some(true));
    assert_eq!(at(LATE * 2), None);
    assert_eq!(at(LATE * 2 / 3), None);
    assert_eq!(at(Duration::ZERO), Some(false));
    assert_eq!(at(Duration::ZERO), None);
}

#[tokio::test]
async fn the_age_of_the_oldest_event_is_measured() {
    let (pool, outbox) = outbox().await;
    add(&pool, &outbox, "one", 1).await;
    add(&pool, &outbox, "one", 2).await;
    let aged = "UPDATE outbox SET added_at = added_at - 90000 WHERE position = 1";
    sqlx::query(aged).execute(&pool).await.unwrap();
    let lag = outbox.lag().await.unwrap();
    assert_eq!(lag.waiting, 2);
    assert!(lag.oldest >= Duration::from_secs(90), "{lag:?}");
    let gauges = outbox.gauges()().await.unwrap();
    assert_eq!(gauges[0], Gauge::new("outbox.waiting", 2.0));
    assert!(gauges[1].name == "outbox.oldest" && gauges[1].value >= 90.0);
}
