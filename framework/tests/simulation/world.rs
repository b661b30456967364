//! One simulated world: two services of two replicas each, clients, faults, and what has to hold in the end.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{StreamExt, future::join_all, stream};
use nestling::{
    Client, Code, Guarantee, Payload, Router, RpcError, Running, Server, Streaming,
    transport::{DeadLetters, Memory, ServerTransport},
};
use tokio::time::{Instant, sleep, timeout};

use crate::faults::{Faulty, Odds};

const SERVICES: [&str; 2] = ["one", "two"];
const EVENTS: u64 = 12;
const CALLS: u64 = 12;
const STREAMS: u64 = 3;
const VALUES: u64 = 6;
const TRIES: u32 = 3;
const CALL_LIMIT: Duration = Duration::from_secs(2);
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// Longer than everything that may still happen.
const REST: Duration = Duration::from_secs(120);

/// What was seen to happen, in its order.
type Story = Arc<Mutex<Vec<String>>>;

/// Runs the world of a seed, checks it, and returns what happened in it.
pub(crate) fn simulate(seed: u64) -> Vec<String> {
    // The framework's own jitter comes from this generator.
    fastrand::seed(seed);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    runtime.unwrap().block_on(async {
        let limit = Duration::from_secs(3600);
        let world = World::new(seed);
        match timeout(limit, world.run()).await {
            Ok(story) => story,
            Err(_) => panic!("the world of seed {seed} hangs"),
        }
    })
}

struct World {
    memory: Memory,
    odds: Odds,
    random: Arc<Mutex<fastrand::Rng>>,
    story: Story,
    began: Instant,
    runs: Arc<Mutex<BTreeMap<(&'static str, u64), u32>>>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut odds = |most| random.u32(0..=most);
        Self {
            memory: Memory::new(),
            odds: Odds {
                given_back: odds(150),
                repeated: odds(200),
                delayed: odds(500),
                unsettled: odds(100),
            },
            random: Arc::new(Mutex::new(random)),
            story: Arc::default(),
            began: Instant::now(),
            runs: Arc::default(),
        }
    }

    fn pick(&self, range: std::ops::Range<u64>) -> u64 {
        self.random.lock().unwrap().u64(range)
    }

    async fn run(self) -> Vec<String> {
        let mut servers = BTreeMap::new();
        for service in SERVICES {
            for replica in 0..2 {
                servers.insert((service, replica), self.start(service, replica).await);
            }
        }
        let client = Client::builder(&self.memory).timeout(CALL_LIMIT);
        let client = client.build().await.unwrap();
        tokio::join!(
            self.emit_all(&client),
            self.call_all(&client),
            self.read_all(&client),
            self.crash_some(&mut servers),
        );
        sleep(REST).await;
        self.check_events().await;
        for ((service, replica), server) in servers {
            let began = Instant::now();
            server.shutdown().await;
            let took = began.elapsed();
            assert!(
                took <= DRAIN_LIMIT + Duration::from_secs(3),
                "drained for {took:?}"
            );
            self.tell(format_args!("{service}/{replica} drained"));
        }
        client.close().await;
        std::mem::take(&mut self.story.lock().unwrap())
    }

    fn tell(&self, what: fmt::Arguments<'_>) {
        tell(&self.story, self.began, what);
    }

    async fn start(&self, service: &'static str, replica: u32) -> Running {
        let faulty: Arc<dyn ServerTransport> = Arc::new(Faulty {
            memory: self.memory.clone(),
            odds: self.odds,
            random: Arc::clone(&self.random),
        });
        let server = Server::new(service, self.router(service))
            .instance(format!("{service}-{replica}"))
            .listen(faulty)
            .retry(TRIES, Duration::from_millis(50))
            .handler_timeout(Duration::from_secs(1))
            .drain_timeout(DRAIN_LIMIT);
        server.start().await.unwrap()
    }

    fn router(&self, service: &'static str) -> Router {
        let (story, began) = (Arc::clone(&self.story), self.began);
        let (runs, random) = (Arc::clone(&self.runs), Arc::clone(&self.random));
        let happened = {
            let (story, random) = (Arc::clone(&story), Arc::clone(&random));
            move |Payload(n): Payload<u64>| {
                let (story, random) = (Arc::clone(&story), Arc::clone(&random));
                async move {
                    let (pause, fails) = {
                        let mut random = random.lock().unwrap();
                        (random.u64(0..200), random.u32(..100) < 40)
                    };
                    sleep(Duration::from_millis(pause.saturating_sub(100))).await;
                    // Every fifth event is poison.
                    if fails || n % 5 == 4 {
                        return Err(RpcError::unavailable("not now"));
                    }
                    tell(&story, began, format_args!("{service} handled event {n}"));
                    Ok(())
                }
            }
        };
        let router = Router::new().event_with("happened", Guarantee::AtLeastOnce, happened);
        if service != SERVICES[0] {
            return router;
        }
        let work = move |kind: &'static str| {
            let (runs, random, story) =
                (Arc::clone(&runs), Arc::clone(&random), Arc::clone(&story));
            move |Payload(n): Payload<u64>| {
                *runs.lock().unwrap().entry((kind, n)).or_default() += 1;
                tell(&story, began, format_args!("{kind} {n} runs"));
                let pause = random.lock().unwrap().u64(0..600);
                async move {
                    sleep(Duration::from_millis(pause)).await;
                    match n % 7 {
                        6 => Err(RpcError::not_found("none")),
                        _ => Ok(2 * n),
                    }
                }
            }
        };
        let count = |Payload(count): Payload<u64>| async move {
            let values = stream::iter(0..count).then(|value| async move {
                sleep(Duration::from_millis(20)).await;
                Ok::<_, RpcError>(value)
            });
            Streaming::new(values)
        };
        router
            .message_with("safe", true, work("safe"))
            .message_with("once", false, work("once"))
            .message_with("count", true, count)
    }

    async fn emit_all(&self, client: &Client) {
        for n in 0..EVENTS {
            let event = client.emit_at("happened", &n);
            event.header("key", format!("k{}", n % 3)).await.unwrap();
            sleep(Duration::from_millis(self.pick(0..120))).await;
        }
    }

    async fn call_all(&self, client: &Client) {
        let calls = (0..CALLS).map(async |n| {
            sleep(Duration::from_millis(self.pick(0..1500))).await;
            let kind = if n % 2 == 0 { "safe" } else { "once" };
            let began = Instant::now();
            let result = client.send_at::<u64>(kind, &n).await;
            let took = began.elapsed();
            assert!(
                took <= CALL_LIMIT + Duration::from_millis(10),
                "{kind} {n}: {took:?}"
            );
            self.tell(format_args!("{kind} {n} ends: {result:?}"));
            match result {
                Ok(value) => assert_eq!((value, n % 7 == 6), (2 * n, false), "{kind} {n}"),
                Err(error) if error.code == Code::NotFound => assert_eq!(n % 7, 6),
                Err(error) => assert!(
                    matches!(error.code, Code::Unavailable | Code::DeadlineExceeded),
                    "{kind} {n}: {error:?}"
                ),
            }
        });
        join_all(calls).await;
    }

    async fn read_all(&self, client: &Client) {
        let streams = (0..STREAMS).map(async |n| {
            sleep(Duration::from_millis(self.pick(0..1500))).await;
            let mut next = 0;
            let Ok(mut values) = client.stream_at::<u64>("count", &VALUES).await else {
                return;
            };
            loop {
                match values.try_next().await {
                    Ok(Some(value)) => assert_eq!(value, next, "stream {n} in order"),
                    Ok(None) => return assert_eq!(next, VALUES, "stream {n} is whole"),
                    Err(error) => return self.tell(format_args!("stream {n} ends: {error}")),
                }
                next += 1;
            }
        });
        join_all(streams).await;
    }

    /// One replica at a time dies without a word and comes back, so that its service never ends.
    async fn crash_some(&self, servers: &mut BTreeMap<(&'static str, u32), Running>) {
        for _ in 0..self.pick(0..4) {
            sleep(Duration::from_millis(self.pick(50..700))).await;
            let service = SERVICES[usize::try_from(self.pick(0..2)).unwrap()];
            let replica = u32::try_from(self.pick(0..2)).unwrap();
            drop(servers.remove(&(service, replica)));
            self.tell(format_args!("{service}/{replica} crashes"));
            sleep(Duration::from_millis(self.pick(0..300))).await;
            servers.insert((service, replica), self.start(service, replica).await);
        }
    }

    /// Each service has handled each event, or has given it up after as many tries as it may.
    async fn check_events(&self) {
        for service in SERVICES {
            let dead = self.memory.list(service, None, 1000).await.unwrap();
            let given_up: Vec<u64> = dead
                .iter()
                .map(|(_, letter)| {
                    assert!(letter.rejection.attempts <= TRIES, "{letter:?}");
                    serde_json::from_slice(&letter.rejection.envelope.payload).unwrap()
                })
                .collect();
            let story = self.story.lock().unwrap();
            for n in 0..EVENTS {
                let handled = story
                    .iter()
                    .any(|line| line.ends_with(&format!("{service} handled event {n}")));
                assert!(
                    handled || given_up.contains(&n),
                    "{service} has lost event {n}; it gave up {given_up:?}\n{}",
                    story.join("\n")
                );
                assert!(!(handled && n % 5 == 4), "event {n} cannot be handled");
            }
        }
        for ((kind, n), runs) in &*self.runs.lock().unwrap() {
            assert!(*runs == 1 || *kind == "safe", "{kind} {n} ran {runs} times");
        }
    }
}

fn tell(story: &Story, began: Instant, what: fmt::Arguments<'_>) {
    let millis = began.elapsed().as_millis();
    story
        .lock()
        .unwrap()
        .push(format!("{millis:>6} ms  {what}"));
}
