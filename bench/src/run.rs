//! Runs rows: contestants take turns, so that what disturbs the machine disturbs all of them.

use std::{
    collections::HashMap,
    process,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use bench::load::{self, Measured};
use futures_util::future::BoxFuture;
use nestling_testkit::{Broker, Kind, Options as BrokerOptions, nestjs::App, unique};

use crate::{
    caller::Caller,
    floor,
    matrix::Options,
    ours,
    payload::{self, Payload},
    peers,
    report::{Latency, OpenLoop, Row, Usage},
    serve::Server,
    spec::{Spec, Transport, Who, Wire, Workload},
    usage,
};

/// How often each contestant has its turn.
const TURNS: u32 = 3;
/// Loads of the open loops, as shares of the throughput that was found.
const SHARES: [f64; 3] = [0.1, 0.5, 0.8];
/// How long events that are on their way may take once nothing is published any more.
const LAST_EVENTS: Duration = Duration::from_secs(15);

/// The brokers, started when a row first needs them.
#[derive(Default)]
pub(crate) struct Brokers(HashMap<Kind, Broker>);

impl Brokers {
    fn of(&mut self, transport: Transport) -> Result<Option<(String, Option<u32>)>> {
        let Some(kind) = transport.broker() else {
            return Ok(None);
        };
        let broker = match self.0.remove(&kind) {
            Some(broker) => broker,
            None => Broker::start(kind, BrokerOptions::default())?,
        };
        let found = (broker.url(), broker.pid());
        self.0.insert(kind, broker);
        Ok(Some(found))
    }
}

/// Both sides of one contestant.
struct Contestant {
    who: Who,
    answering: Answering,
    calling: Calling,
    broker: Option<u32>,
}

enum Answering {
    /// In this process, for as long as it is kept.
    Here(#[expect(dead_code, reason = "it is only kept")] Box<dyn Send>),
    Ours(Vec<Server>),
    NestJs(App),
}

impl Answering {
    fn pids(&self) -> Vec<u32> {
        match self {
            Self::Here(_) => Vec::new(),
            Self::Ours(replicas) => replicas.iter().map(Server::pid).collect(),
            Self::NestJs(app) => vec![app.pid()],
        }
    }
}

enum Calling {
    /// In this process, a caller for each connection.
    Here(Vec<Arc<dyn Caller>>),
    Peer(peers::Caller),
}

/// What a turn has shown.
struct Turn {
    measured: Measured,
    usage: Usage,
}

/// Measures all rows of a spec, and hands on what its contestants come to, row by row.
pub(crate) async fn measure(
    spec: Spec,
    options: &Options,
    brokers: &mut Brokers,
    mut done: impl FnMut(Vec<Row>),
) -> Result<()> {
    let mut contestants = Vec::new();
    for who in options.contestants(&spec) {
        let contestant = Contestant::start(spec, who, options, brokers).await;
        contestants.push(contestant.with_context(|| format!("{spec}: start {who:?}"))?);
    }
    for size in options.payloads() {
        for &concurrency in &options.concurrencies() {
            done(compare(&mut contestants, spec, size, concurrency, options).await?);
        }
    }
    Ok(())
}

async fn compare(
    contestants: &mut [Contestant],
    spec: Spec,
    size: usize,
    concurrency: usize,
    options: &Options,
) -> Result<Vec<Row>> {
    let payload = Payload::of(size)?;
    let turn = options.duration() / TURNS;
    let mut turns: Vec<Vec<Turn>> = contestants.iter().map(|_| Vec::new()).collect();
    for contestant in contestants.iter_mut() {
        // What is not warm yet, and thrown away.
        contestant
            .turn(spec, &payload, concurrency, turn / 2)
            .await?;
    }
    for _ in 0..TURNS {
        for (contestant, turns) in contestants.iter_mut().zip(&mut turns) {
            turns.push(contestant.turn(spec, &payload, concurrency, turn).await?);
        }
    }
    let mut rows = Vec::new();
    for (contestant, turns) in contestants.iter_mut().zip(turns) {
        let mut row = Row::new(spec, contestant.who, size, concurrency, options);
        contestant.fill(&mut row, turns)?;
        let is_asked = !options.quick && spec.workload == Workload::Request;
        if let (true, Calling::Here(callers)) = (is_asked, &contestant.calling) {
            for share in SHARES {
                let rate = (row.throughput * share).max(1.0);
                let measured = load::open(rate, options.duration(), act(callers, &payload)).await;
                row.open.push(OpenLoop::new(share, rate, &measured));
            }
        }
        rows.push(row);
    }
    Ok(rows)
}

impl Contestant {
    async fn start(spec: Spec, who: Who, options: &Options, brokers: &mut Brokers) -> Result<Self> {
        let (connections, replicas) = (options.connections, options.replicas);
        ensure!(
            connections > 0 && replicas > 0,
            "there is at least one connection, and one replica"
        );
        let pattern = format!("{}.echo", unique("bench"));
        let broker = brokers.of(spec.transport)?;
        let (url, broker) = broker.unwrap_or(("tcp://127.0.0.1:0".to_owned(), None));
        let (answering, calling) = match (spec.transport, who) {
            (Transport::Memory, _) => {
                let (caller, here) = match who {
                    Who::Floor => floor::in_memory(&spec),
                    _ => ours::in_memory(&spec, &pattern).await?,
                };
                (
                    Answering::Here(here),
                    Calling::Here(vec![Arc::from(caller)]),
                )
            }
            (_, Who::Tarpc | Who::Tonic) => {
                let server = peers::serve(who)?;
                let caller = peers::Caller::connect(who, &server.url, connections)?;
                (Answering::Ours(vec![server]), Calling::Peer(caller))
            }
            (_, Who::Nestjs) => {
                let (app, url) = peers::nestjs(&url, &pattern)?;
                let callers = connect_all(spec, who, &url, &pattern, connections).await?;
                (Answering::NestJs(app), callers)
            }
            (_, Who::Nestling | Who::Floor) => {
                let start = |_| Server::start(spec, who, &url, &pattern);
                let replicas: Vec<_> = (0..replicas).map(start).collect::<Result<_>>()?;
                let at = replicas[0].url.clone();
                let callers = connect_all(spec, who, &at, &pattern, connections).await?;
                (Answering::Ours(replicas), callers)
            }
        };
        Ok(Self {
            who,
            answering,
            calling,
            broker,
        })
    }

    /// What client, server and broker have used so far.
    fn used(&self) -> Result<Usage> {
        let cpu = |pids: Vec<u32>| {
            pids.into_iter()
                .map(usage::cpu_seconds)
                .sum::<Result<f64>>()
        };
        let client = match &self.calling {
            Calling::Here(_) => process::id(),
            Calling::Peer(caller) => caller.pid(),
        };
        Ok(Usage {
            client: usage::cpu_seconds(client)?,
            server: cpu(self.answering.pids())?,
            broker: cpu(self.broker.into_iter().collect())?,
        })
    }

    async fn turn(
        &mut self,
        spec: Spec,
        payload: &Payload,
        concurrency: usize,
        duration: Duration,
    ) -> Result<Turn> {
        let before = self.used()?;
        let began = payload::now()?;
        let mut measured = match &mut self.calling {
            Calling::Here(callers) => {
                load::closed(concurrency, duration, act(callers, payload)).await
            }
            Calling::Peer(caller) => caller.closed(concurrency, duration, payload)?,
        };
        if spec.workload == Workload::Event {
            self.await_events(&mut measured, began).await?;
        }
        let usage = self.used()?.since(&before);
        Ok(Turn { measured, usage })
    }

    /// Waits until what was published is handled: that is what counts.
    async fn await_events(&mut self, measured: &mut Measured, began: u64) -> Result<()> {
        let Answering::Ours(replicas) = &mut self.answering else {
            bail!("events have a server");
        };
        let published = measured.messages;
        let deadline = Instant::now() + LAST_EVENTS;
        measured.latency.reset();
        measured.messages = 0;
        let mut last = began;
        while measured.messages < published && Instant::now() < deadline {
            for replica in replicas.iter_mut() {
                let handled = replica.handled()?;
                measured.messages += handled.count;
                last = last.max(handled.last);
                for (value, count) in handled.latency {
                    measured.latency.saturating_record_n(value, count);
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if measured.messages < published {
            measured.errors += published - measured.messages;
            measured
                .first_error
                .get_or_insert_with(|| "published and not handled".to_owned());
        }
        measured.elapsed = Duration::from_nanos(last - began);
        Ok(())
    }

    fn fill(&self, row: &mut Row, turns: Vec<Turn>) -> Result<()> {
        let mut latency = load::latencies();
        for Turn { measured, usage } in turns {
            row.turns.push(measured.throughput());
            row.messages += measured.messages;
            row.errors += measured.errors;
            row.first_error = row.first_error.take().or(measured.first_error);
            row.usage.add(&usage);
            latency += &measured.latency;
        }
        row.throughput = median(&row.turns);
        row.usage = row.usage.per_message(row.messages);
        row.latency = Latency::of(&latency);
        let pids = match self.answering.pids() {
            none if none.is_empty() => vec![process::id()],
            pids => pids,
        };
        let peaks = pids.into_iter().map(usage::peak_memory);
        row.peak_memory = peaks.sum::<Result<u64>>()?;
        Ok(())
    }
}

async fn connect_all(
    spec: Spec,
    who: Who,
    url: &str,
    pattern: &str,
    connections: usize,
) -> Result<Calling> {
    let mut callers = Vec::new();
    for _ in 0..connections {
        callers.push(connect(spec, who, url, pattern).await?);
    }
    Ok(Calling::Here(callers))
}

/// A client of a contestant's server.
pub(crate) async fn connect(
    spec: Spec,
    who: Who,
    url: &str,
    pattern: &str,
) -> Result<Arc<dyn Caller>> {
    let caller = match (who, spec.wire) {
        // On NestJS's wire the servers are compared, all with one client.
        (Who::Floor, Wire::Native) => floor::connect(&spec, url, pattern).await?,
        _ => ours::connect(&spec, url, pattern).await?,
    };
    Ok(Arc::from(caller))
}

/// One operation of the n-th worker.
fn act(
    callers: &[Arc<dyn Caller>],
    payload: &Payload,
) -> impl Fn(usize) -> BoxFuture<'static, Result<u32, String>> + Clone + Send + Sync + 'static {
    let callers = callers.to_vec();
    let payload = Arc::new(payload.clone());
    move |number| {
        let caller = Arc::clone(&callers[number % callers.len()]);
        let payload = Arc::clone(&payload);
        Box::pin(async move {
            let acted = caller.act(&payload).await;
            acted.map_err(|error| format!("{error:#}"))
        })
    }
}

/// The middle one.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}
