//! Relays of several processes on one database, which are killed and paused: `Relay` with real brokers.

#![cfg(all(feature = "redis", feature = "sqlx"))]
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers too"
)]

use std::{
    collections::HashMap,
    env,
    fs::File,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use nestling::{
    Client, Event, Router, RpcError, Server,
    sqlite::{self, Outbox},
};
use nestling_testkit::{Kind, Process, broker_or_skip, unique};
use serde::{Deserialize, Serialize};
use tokio::{sync::mpsc, time::timeout};

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(240);
const KEYS: u32 = 4;
const EVENTS: u32 = 3000;

#[derive(Debug, Serialize, Deserialize)]
struct Counted {
    key: u32,
    number: u32,
}

impl Event for Counted {
    const PATTERN: &'static str = "test.counted";

    fn key(&self) -> Option<String> {
        Some(self.key.to_string())
    }
}

/// Not a test: the relay that others of these tests start as a process of its own.
#[test]
fn a_relay_in_a_process() {
    let (Ok(path), Ok(url)) = (env::var("RELAY_DATABASE"), env::var("RELAY_BUS")) else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let pool = sqlite::open(path).await.unwrap();
        let outbox = Outbox::open(pool).await.unwrap();
        let _relay = outbox.relay(Client::connect(url).await.unwrap());
        std::future::pending::<()>().await;
    });
}

/// Where relays find events and take them to.
struct World<'a> {
    folder: &'a Path,
    url: String,
}

impl World<'_> {
    fn database(&self) -> std::path::PathBuf {
        self.folder.join("test.db")
    }

    fn relay(&self, name: &str) -> Process {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", "a_relay_in_a_process", "--nocapture"]);
        command.env("RELAY_DATABASE", self.database());
        command.env("RELAY_BUS", &self.url);
        let log = File::create(self.folder.join(name)).unwrap();
        Process::spawn(&command, log).unwrap()
    }

    async fn fill(&self, events: impl Iterator<Item = Counted>) {
        let pool = sqlite::open(self.database()).await.unwrap();
        let outbox = Outbox::open(pool.clone()).await.unwrap();
        let mut tx = pool.begin().await.unwrap();
        for event in events {
            outbox.add(&mut tx, &event).await.unwrap();
        }
        outbox.commit(tx).await.unwrap();
    }

    /// Stops a relay where it is, but for the middle of a transaction: nobody could write then.
    async fn pause(&self, relay: &Process) {
        let pool = sqlite::open(self.database()).await.unwrap();
        let paused = async {
            loop {
                signal(relay, "-STOP");
                let Err(error) = pool.begin_with("BEGIN IMMEDIATE").await else {
                    break;
                };
                println!("paused too early: {error}");
                signal(relay, "-CONT");
            }
        };
        timeout(PATIENCE, paused).await.unwrap();
    }

    /// Waits until everything is published and no relay has anything left to do.
    async fn until_empty(&self) {
        let pool = sqlite::open(self.database()).await.unwrap();
        let rows = "SELECT (SELECT COUNT(*) FROM outbox) + (SELECT COUNT(*) FROM outbox_leases)";
        let empty = async {
            while sqlx::query_scalar::<_, i64>(rows)
                .fetch_one(&pool)
                .await
                .unwrap()
                > 0
            {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, empty).await.unwrap();
    }
}

fn signal(process: &Process, signal: &str) {
    let mut kill = Command::new("kill");
    let status = kill.args([signal, &process.pid().to_string()]).status();
    assert!(status.unwrap().success());
}

/// What has arrived: what is new for its key, and how often something came again.
#[derive(Default)]
struct Arrived {
    last: HashMap<u32, u32>,
    first: u32,
    again: u32,
}

impl Arrived {
    /// Waits for so many events to have arrived for the first time: of each key in order, without a
    /// gap.
    async fn until(&mut self, count: u32, seen: &mut mpsc::Receiver<Counted>) {
        let started = Instant::now();
        while self.first < count {
            let left = PATIENCE.saturating_sub(started.elapsed());
            let event = timeout(left, seen.recv()).await.unwrap().unwrap();
            let next = self.last.get(&event.key).map_or(event.key, |n| n + KEYS);
            if event.number == next {
                self.last.insert(event.key, event.number);
                self.first += 1;
            } else {
                assert!(event.number < next, "{} before {next}", event.number);
                self.again += 1;
            }
        }
    }
}

async fn listening(url: &str) -> (mpsc::Receiver<Counted>, nestling::Running) {
    let (sender, seen) = mpsc::channel(64);
    let router = Router::new().event(move |event: Counted| {
        let sender = sender.clone();
        async move {
            let sent = sender.send(event).await;
            sent.map_err(|_| RpcError::unavailable("test over"))
        }
    });
    let server = Server::new("test", router).temporary().listen(url);
    (seen, server.start().await.unwrap())
}

#[tokio::test]
async fn killed_and_paused_relays_lose_nothing_and_keep_the_order() {
    let Some(broker) = broker_or_skip(Kind::Redis) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let world = World {
        folder: folder.path(),
        url: format!("{broker}?prefix={}", unique("outbox")),
    };
    let (mut seen, server) = listening(&world.url).await;
    let event = |number| Counted {
        key: number % KEYS,
        number,
    };
    world.fill((0..EVENTS).map(event)).await;

    let mut arrived = Arrived::default();
    let mut first = world.relay("first.log");
    arrived.until(EVENTS / 6, &mut seen).await;
    let second = world.relay("second.log");
    first.kill();
    arrived.until(EVENTS / 3, &mut seen).await;
    let crashed = arrived.again;

    // With lanes that are its own until their lease has run out.
    world.pause(&second).await;
    let mut third = world.relay("third.log");
    arrived.until(EVENTS, &mut seen).await;
    world.until_empty().await;
    third.kill();

    // What it does with the lanes it had comes before what it does with another.
    let before = arrived.again;
    signal(&second, "-CONT");
    let (key, number) = (KEYS, KEYS);
    world.fill([Counted { key, number }].into_iter()).await;
    arrived.until(EVENTS + 1, &mut seen).await;
    let resumed = arrived.again - before;
    println!("{crashed} came again after a crash, {before} in all, {resumed} after a pause");
    assert!(crashed <= 256, "{crashed} is more than one round");
    assert!(resumed <= KEYS, "{resumed} is more than was on its way");
    drop(second);
    server.shutdown().await;
}
