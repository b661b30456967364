//! One simulated world: two services of two replicas each, clients, faults, and what has to hold in the end.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use nestling::{
    Breaker, Client, Code, Policy, Retry, RpcError, Running, Server,
    transport::{ClientTransport, DeadLetters, Memory, ServerTransport},
};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    faults::{Faulty, Odds},
    handlers::{Handlers, Runs, SERVICES},
    lossy::{Losses, Lossy, Most},
    shared::Shared,
};

const EVENTS: u64 = 12;
const CALLS: u64 = 12;
const STREAMS: u64 = 3;
const VALUES: u64 = 6;
const TRIES: u32 = 3;
const CALL_LIMIT: Duration = Duration::from_secs(2);
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// Longer than everything that may still happen.
const REST: Duration = Duration::from_secs(120);

/// How a world's client calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manners {
    Plain,
    Retrying,
    /// With a breaker as well.
    Guarded,
}

/// What a client with manners may have on its way of one pattern.
pub(crate) const IN_FLIGHT: usize = 4;
pub(crate) const CALL_TRIES: u32 = 3;
pub(crate) const PROBES: u32 = 2;
pub(crate) const COOL_DOWN: Duration = Duration::from_millis(200);
const PER_TRY: Duration = Duration::from_millis(400);

impl Manners {
    fn policy(self) -> Option<Policy> {
        let retry = Retry::new().tries(CALL_TRIES).per_try(PER_TRY);
        let policy = Policy::new().retry(retry).max_in_flight(IN_FLIGHT);
        let breaker = Breaker::new()
            .window(6)
            .at_least(4)
            .probes(PROBES)
            .cool_down(COOL_DOWN);
        match self {
            Self::Plain => None,
            Self::Retrying => Some(policy),
            Self::Guarded => Some(policy.breaker(breaker)),
        }
    }

    fn most(self) -> Most {
        match self {
            Self::Plain => Most {
                in_flight: usize::MAX,
                per_try: CALL_LIMIT,
            },
            Self::Retrying | Self::Guarded => Most {
                in_flight: IN_FLIGHT,
                per_try: PER_TRY,
            },
        }
    }
}

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
        let world = async { World::new(seed).await.run().await };
        match timeout(limit, world).await {
            Ok(story) => story,
            Err(_) => panic!("the world of seed {seed} hangs"),
        }
    })
}

pub(crate) struct World {
    pub(crate) memory: Memory,
    pub(crate) manners: Manners,
    pub(crate) lossy: Arc<Lossy>,
    pub(crate) client: Client,
    /// What a replica may have in work at once.
    pub(crate) permits: usize,
    pub(crate) shared: Shared,
    odds: Odds,
    runs: Runs,
}

type Servers = BTreeMap<(&'static str, u32), Running>;

impl World {
    async fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut odds = |most| random.u32(0..=most);
        let faults = Odds {
            given_back: odds(150),
            repeated: odds(200),
            delayed: odds(500),
            unsettled: odds(100),
        };
        let losses = Losses {
            refused: odds(200),
            late: odds(300),
            lost: odds(100),
            repeated: odds(200),
        };
        let manners = match seed % 4 {
            0 => Manners::Plain,
            1 => Manners::Retrying,
            _ => Manners::Guarded,
        };
        let permits = random.usize(3..=6);
        let (memory, shared) = (Memory::new(), Shared::new(random));
        let lossy = Lossy::new(&memory, &shared, losses, manners.most());
        let transport: Arc<dyn ClientTransport> = Arc::clone(&lossy) as _;
        let mut client = Client::builder(transport).timeout(CALL_LIMIT);
        if let Some(policy) = manners.policy() {
            client = client.policy(policy);
        }
        Self {
            client: client.build().await.unwrap(),
            memory,
            manners,
            lossy,
            permits,
            shared,
            odds: faults,
            runs: Runs::default(),
        }
    }

    async fn run(self) -> Vec<String> {
        let mut servers = Servers::new();
        for service in SERVICES {
            for replica in 0..2 {
                servers.insert((service, replica), self.start(service, replica).await);
            }
        }
        tokio::join!(
            self.emit_all(),
            self.call_all(),
            self.read_all(),
            self.crash_some(&mut servers),
        );
        self.shared.calm_down();
        sleep(REST).await;
        self.check_events().await;
        self.check_calm().await;
        self.check_runs();
        self.drain(servers).await;
        self.client.close().await;
        self.shared.check_violations();
        self.shared.take_story()
    }

    async fn drain(&self, servers: Servers) {
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
    }

    fn pick(&self, range: std::ops::Range<u64>) -> u64 {
        self.shared.pick(range)
    }

    pub(crate) fn tell(&self, what: std::fmt::Arguments<'_>) {
        self.shared.tell(what);
    }

    async fn start(&self, service: &'static str, replica: u32) -> Running {
        let faulty: Arc<dyn ServerTransport> = Arc::new(Faulty {
            memory: self.memory.clone(),
            odds: self.odds,
            shared: self.shared.clone(),
        });
        let handlers = Handlers {
            service,
            replica,
            permits: self.permits,
            shared: self.shared.clone(),
            runs: Arc::clone(&self.runs),
        };
        let server = Server::new(service, handlers.router())
            .instance(format!("{service}-{replica}"))
            .listen(faulty)
            .max_in_flight(self.permits)
            .retry(TRIES, Duration::from_millis(50))
            .handler_timeout(Duration::from_secs(1))
            .drain_timeout(DRAIN_LIMIT);
        server.start().await.unwrap()
    }

    async fn emit_all(&self) {
        for n in 0..EVENTS {
            let event = self.client.emit_at("happened", &n);
            event.header("key", format!("k{}", n % 3)).await.unwrap();
            sleep(Duration::from_millis(self.pick(0..120))).await;
        }
    }

    async fn call_all(&self) {
        let calls = (0..CALLS).map(async |n| {
            sleep(Duration::from_millis(self.pick(0..1500))).await;
            let kind = if n % 2 == 0 { "safe" } else { "once" };
            // Some callers do not wait for the end.
            let patience = match self.pick(0..6) {
                0 => Duration::from_millis(self.pick(1..800)),
                _ => CALL_LIMIT * 2,
            };
            let began = Instant::now();
            let Ok(result) = timeout(patience, self.call(kind, n)).await else {
                return self.tell(format_args!("{kind} {n} is given up"));
            };
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
                    matches!(
                        error.code,
                        Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted
                    ),
                    "{kind} {n}: {error:?}"
                ),
            }
        });
        join_all(calls).await;
    }

    /// Calls "safe", which may be made twice, or "once", which may not.
    pub(crate) async fn call(&self, kind: &'static str, n: u64) -> Result<u64, RpcError> {
        let call = self.client.send_at::<u64>(kind, &n);
        match kind {
            "safe" => call.idempotent().await,
            _ => call.await,
        }
    }

    async fn read_all(&self) {
        let streams = (0..STREAMS).map(async |n| {
            sleep(Duration::from_millis(self.pick(0..1500))).await;
            let mut next = 0;
            let mut call = self.client.stream_at::<u64>("count", &VALUES);
            if n % 2 == 1 {
                call = call.idempotent();
            }
            let Ok(mut values) = call.await else {
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
    async fn crash_some(&self, servers: &mut Servers) {
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
            for n in 0..EVENTS {
                let handled = self
                    .shared
                    .tells_of(&format!("{service} handled event {n}"));
                assert!(
                    handled || given_up.contains(&n),
                    "{service} has lost event {n}; it gave up {given_up:?}\n{}",
                    self.shared.so_far()
                );
                assert!(!(handled && n % 5 == 4), "event {n} cannot be handled");
            }
        }
    }

    fn check_runs(&self) {
        for ((kind, n), runs) in &*self.runs.lock().unwrap() {
            assert!(*runs == 1 || *kind == "safe", "{kind} {n} ran {runs} times");
        }
    }
}
