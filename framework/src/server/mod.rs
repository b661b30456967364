//! [`Server`]: receives what a [`Router`] handles, on any number of transports at once.

mod events;
mod kept;
mod message;
mod permits;
mod run;
mod signals;
mod stop;
mod work;

use std::{fmt, sync::Arc, time::Duration};

use bytestring::ByteString;
use futures_util::{StreamExt, stream::SelectAll};
use tokio::{sync::Semaphore, task::JoinSet};
use tokio_util::sync::DropGuard;
use uuid::Uuid;

pub use self::signals::Signals;
use self::{kept::Kept, run::Loop, stop::Stop};
use crate::{
    contract::Guarantee,
    endpoint::{Endpoint, Endpoints, patiently},
    router::Router,
    transport::{
        DeadLetterStore, Error, EventPattern, MessagePattern, ServerTransport, Source, Sources,
        Subscription,
    },
};

/// How long [`Server::run`] waits for a broker that is away.
pub(crate) const START_PATIENCE: Duration = Duration::from_secs(60);

/// A service about to run: its name, its handlers and where it listens.
///
/// ```no_run
/// use nestling::{Router, Server};
///
/// # async fn example(router: Router) -> Result<(), nestling::StartError> {
/// Server::new("user", router).listen("nats://localhost").events("kafka://localhost").run().await
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Server {
    name: String,
    instance: String,
    router: Router,
    listen: Vec<Endpoint>,
    events: Vec<Endpoint>,
    temporary: bool,
    limits: Limits,
}

#[derive(Clone, Debug)]
struct Limits {
    max_in_flight: usize,
    handler_timeout: Duration,
    drain_timeout: Duration,
    attempts: u32,
    first_delay: Duration,
    kept: Kept,
}

/// Why a server did not start, or what made it stop.
#[derive(Debug)]
#[non_exhaustive]
pub enum StartError {
    /// There is no URL to listen on.
    NoEndpoint,
    /// A transport could not be opened or subscribed to.
    Transport {
        /// The URL, without its password.
        endpoint: String,
        /// What went wrong.
        source: Error,
    },
    /// An event needs more than any of the transports gives it.
    Unfit {
        /// The event.
        pattern: String,
        /// Where its handler was added.
        handler: String,
        /// What it could arrive by.
        transports: Vec<String>,
    },
    /// The signal that should end the server cannot be waited for.
    Signal(std::io::Error),
    /// A second signal ended the server before it had drained.
    CutOff,
}

impl StartError {
    /// Whether it is a broker that is away.
    fn may_pass(&self) -> bool {
        matches!(self, Self::Transport { source, .. } if source.may_pass())
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoEndpoint => f.write_str("the server has no URL to listen on"),
            Self::Transport { endpoint, source } => write!(f, "listen on {endpoint}: {source}"),
            Self::Unfit {
                pattern,
                handler,
                transports,
            } => write!(
                f,
                "event {pattern} (handled at {handler}) needs at-least-once delivery, and {} gives \
                 best effort: add an events URL that gives it, such as kafka:// or redis://, or \
                 declare the event `best_effort`",
                transports.join(", ")
            ),
            Self::Signal(_) => f.write_str("wait for a termination signal"),
            Self::CutOff => f.write_str("ended by a second signal before everything was done"),
        }
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Transport { source, .. } => Some(source),
            Self::Signal(source) => Some(source),
            Self::NoEndpoint | Self::Unfit { .. } | Self::CutOff => None,
        }
    }
}

impl Server {
    /// A service with these handlers. Replicas with one name share the work.
    pub fn new(name: impl Into<String>, router: Router) -> Self {
        Self {
            name: name.into(),
            instance: Uuid::new_v4().simple().to_string(),
            router,
            listen: Vec::new(),
            events: Vec::new(),
            temporary: false,
            limits: Limits {
                max_in_flight: 4096,
                handler_timeout: Duration::from_secs(60),
                drain_timeout: Duration::from_secs(10),
                attempts: 6,
                first_delay: Duration::from_millis(100),
                kept: Kept::default(),
            },
        }
    }

    /// Where messages arrive; call it once or several times, with one URL or many.
    ///
    /// Events arrive here too: all of them when there is no [`events`](Self::events) URL, else
    /// those that some client publishes here as best effort.
    #[must_use]
    pub fn listen(mut self, endpoints: impl Into<Endpoints>) -> Self {
        self.listen.extend(endpoints.into().0);
        self
    }

    /// The bus events arrive by, where it is not what messages arrive by.
    #[must_use]
    pub fn events(mut self, endpoints: impl Into<Endpoints>) -> Self {
        self.events.extend(endpoints.into().0);
        self
    }

    /// Which replica this is. Brokers give a replica that comes back under its old name its old
    /// work at once; two that run at the same time must differ. Random by default.
    #[must_use]
    pub fn instance(mut self, instance: impl Into<String>) -> Self {
        self.instance = instance.into();
        self
    }

    /// This process is all of the service, and nobody starts it again under its name. Once it has
    /// drained, Redis keeps no events for it, as it would for ever for a service that is away; Kafka
    /// forgets a group by itself, after a week by default.
    #[must_use]
    pub fn temporary(mut self) -> Self {
        self.temporary = true;
        self
    }

    /// How many messages and events may be in work at once, over all transports (4096); an event counts
    /// for each of its handlers that runs, and not while it waits for its next try or for its turn.
    /// [`Router::max_in_flight`] limits single handlers.
    #[must_use]
    pub fn max_in_flight(mut self, limit: usize) -> Self {
        self.limits.max_in_flight = limit.clamp(1, Semaphore::MAX_PERMITS);
        self
    }

    /// How long a handler may take when its caller set no deadline, and one try of an event (60 s).
    /// A streamed reply lasts as long as it is read.
    #[must_use]
    pub fn handler_timeout(mut self, limit: Duration) -> Self {
        self.limits.handler_timeout = limit;
        self
    }

    /// How long work that has begun may take to finish when the server shuts down (10 s); what is
    /// left is given back to its transport.
    #[must_use]
    pub fn drain_timeout(mut self, limit: Duration) -> Self {
        self.limits.drain_timeout = limit;
        self
    }

    /// How often an event is tried before the service gives it up (6), and the delay before the second
    /// try (0.1 s), which grows fourfold with each, to half a minute at most. What is given up goes to
    /// the dead letters, where the transport keeps them, and is acknowledged.
    #[must_use]
    pub fn retry(mut self, attempts: u32, first_delay: Duration) -> Self {
        self.limits.attempts = attempts.max(1);
        self.limits.first_delay = first_delay;
        self
    }

    /// Where the service keeps the events it gives up that arrived by a transport which keeps none (TCP,
    /// NATS without JetStream, NestJS's Redis channels): in a
    /// [`DeadLetterTable`](crate::sqlite::DeadLetterTable), for one. Without this they are only logged.
    #[must_use]
    pub fn dead_letters(mut self, store: impl DeadLetterStore) -> Self {
        self.limits.kept = Kept(Some(Arc::new(store)));
        self
    }

    /// Runs until SIGINT or SIGTERM, then drains; a second signal ends it at once, as a crash would.
    /// A broker that is away when it starts is waited for, for a minute.
    ///
    /// # Errors
    /// [`StartError`] when it cannot start, or was not let finish.
    pub async fn run(self) -> Result<(), StartError> {
        let mut signals = Signals::listen().map_err(StartError::Signal)?;
        let start = || self.clone().start();
        let running = tokio::select! {
            started = patiently(START_PATIENCE, StartError::may_pass, start) => started?,
            () = signals.next() => return Ok(()),
        };
        signals.next().await;
        tracing::info!("draining");
        tokio::select! {
            () = running.shutdown() => Ok(()),
            () = signals.next() => Err(StartError::CutOff),
        }
    }

    /// Starts; returns when every transport receives.
    ///
    /// # Errors
    /// [`StartError`] when a transport cannot be opened, or gives less than a handler needs.
    pub async fn start(self) -> Result<Running, StartError> {
        let Self {
            name,
            instance,
            router,
            listen,
            events,
            temporary,
            limits,
        } = self;
        let inputs = open_all(&listen, &events).await?;
        check_guarantees(&router, &inputs)?;

        let max_in_flight = limits.max_in_flight;
        let work = Arc::new(Loop::new(
            name.clone(),
            router,
            limits,
            Semaphore::new(max_in_flight),
        ));
        let mut transports = Vec::new();
        let mut all = SelectAll::new();
        for input in inputs {
            let (messages, events) = input.patterns(work.router());
            let subscription = Subscription {
                service: name.clone(),
                instance: instance.clone(),
                messages,
                events,
                heard: input.heard(work.router()),
                temporary,
                max_in_flight,
            };
            let endpoint = input.endpoint.to_string();
            let sources = input
                .transport
                .subscribe(subscription)
                .await
                .map_err(|source| failed(&input.endpoint, source))?;
            let url = input.transport.local_url().unwrap_or(endpoint);
            tracing::info!(service = name, instance, url, "listening");
            let origin = Origin {
                name: input.transport.name(),
                guarantee: input.transport.capabilities().events,
                dead_letters: input.transport.capabilities().dead_letters,
            };
            all.push(tagged(sources, origin));
            transports.push((input.transport, url));
        }
        let (abort, stop) = (work.abort().clone(), work.stop().clone());
        let addresses = transports.iter().map(|(_, url)| url.clone()).collect();
        let mut supervisor = JoinSet::new();
        let transports = transports
            .into_iter()
            .map(|(transport, _)| transport)
            .collect();
        supervisor.spawn(supervise(work, transports, all));
        Ok(Running {
            addresses,
            stop,
            supervisor,
            _abort: abort.drop_guard(),
        })
    }
}

/// What a delivery's transport is called and promises.
#[derive(Clone, Copy, Debug)]
struct Origin {
    name: &'static str,
    guarantee: Guarantee,
    /// It keeps what is given up.
    dead_letters: bool,
}

type Tagged = futures_util::stream::BoxStream<'static, (Origin, Box<dyn Source>)>;

fn tagged(sources: Sources, origin: Origin) -> Tagged {
    sources.map(move |source| (origin, source)).boxed()
}

/// A transport and what arrives by it.
struct Input {
    endpoint: Endpoint,
    transport: Arc<dyn ServerTransport>,
    messages: bool,
    events: Arrives,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Arrives {
    /// It is the bus.
    All,
    /// The bus is another, but whoever publishes here is heard, as far as that promises nothing.
    IfBestEffort,
}

impl Input {
    fn takes_events(&self) -> bool {
        match self.events {
            Arrives::All => true,
            Arrives::IfBestEffort => self.transport.capabilities().events == Guarantee::BestEffort,
        }
    }

    /// What is to arrive by it.
    fn patterns(&self, router: &Router) -> (Vec<MessagePattern>, Vec<EventPattern>) {
        let mut messages = Vec::new();
        if self.messages {
            messages.extend(router.messages().map(|(pattern, route)| MessagePattern {
                pattern: pattern.clone(),
                idempotent: route.idempotent,
            }));
        }
        let mut events = Vec::new();
        if self.takes_events() {
            events.extend(router.events().map(|(pattern, routes)| EventPattern {
                pattern: pattern.clone(),
                needs: needs(routes),
            }));
        }
        messages.sort_by(|one, other| one.pattern.cmp(&other.pattern));
        events.sort_by(|one, other| one.pattern.cmp(&other.pattern));
        (messages, events)
    }

    /// The events that it brings none of by itself.
    fn heard(&self, router: &Router) -> Vec<ByteString> {
        match self.takes_events() {
            true => Vec::new(),
            false => router
                .events()
                .map(|(pattern, _)| pattern.clone())
                .collect(),
        }
    }
}

fn needs(routes: &[crate::router::EventRoute]) -> Guarantee {
    routes
        .iter()
        .map(|route| route.needs)
        .max()
        .unwrap_or(Guarantee::BestEffort)
}

async fn open_all(listen: &[Endpoint], events: &[Endpoint]) -> Result<Vec<Input>, StartError> {
    let mut inputs: Vec<Input> = Vec::new();
    for place in gather(listen, events)? {
        let opening = place.endpoint.open_server().await;
        let transport = opening.map_err(|source| failed(&place.endpoint, source))?;
        let events = match place.is_bus {
            true => Arrives::All,
            false => Arrives::IfBestEffort,
        };
        inputs.push(Input {
            endpoint: place.endpoint,
            transport,
            messages: place.is_listen,
            events,
        });
    }
    if inputs.is_empty() {
        Err(StartError::NoEndpoint)
    } else {
        Ok(inputs)
    }
}

/// Where to listen, and for what.
struct Place {
    endpoint: Endpoint,
    is_listen: bool,
    is_bus: bool,
}

/// Each place once, even if it is named as both.
fn gather(listen: &[Endpoint], events: &[Endpoint]) -> Result<Vec<Place>, StartError> {
    let mut places: Vec<Place> = Vec::new();
    let listen = listen.iter().map(|endpoint| (endpoint, true));
    'named: for (endpoint, is_listen) in listen.chain(events.iter().map(|e| (e, false))) {
        let is_bus = !is_listen || events.is_empty();
        for known in &mut places {
            let joined = known.endpoint.joined(endpoint);
            if let Some(joined) = joined.map_err(|source| failed(endpoint, source))? {
                known.endpoint = joined;
                known.is_listen |= is_listen;
                known.is_bus |= is_bus;
                continue 'named;
            }
        }
        places.push(Place {
            endpoint: endpoint.clone(),
            is_listen,
            is_bus,
        });
    }
    Ok(places)
}

fn failed(endpoint: &Endpoint, source: Error) -> StartError {
    StartError::Transport {
        endpoint: endpoint.to_string(),
        source,
    }
}

fn check_guarantees(router: &Router, inputs: &[Input]) -> Result<(), StartError> {
    let buses = || inputs.iter().filter(|input| input.events == Arrives::All);
    let best = buses()
        .map(|input| input.transport.capabilities().events)
        .max();
    for (pattern, routes) in router.events() {
        let Some(route) = routes.iter().find(|route| Some(route.needs) > best) else {
            continue;
        };
        return Err(StartError::Unfit {
            pattern: pattern.to_string(),
            handler: route.caller.to_string(),
            transports: buses().map(|input| input.endpoint.to_string()).collect(),
        });
    }
    Ok(())
}

/// Owns the task of every source until all have drained.
async fn supervise(
    work: Arc<Loop>,
    transports: Vec<Arc<dyn ServerTransport>>,
    mut sources: SelectAll<Tagged>,
) {
    let mut drivers = JoinSet::new();
    loop {
        tokio::select! {
            // Not in random order, so that a simulation replays.
            biased;
            () = work.stop().said() => break,
            Some(ended) = drivers.join_next() => log_panic(ended),
            Some((origin, source)) = sources.next() => {
                drivers.spawn(Arc::clone(&work).drive(source, origin));
            }
            else => {
                // Every transport has ended and every source is done: nothing will come any more.
                work.stop().said().await;
                break;
            }
        }
    }
    for transport in &transports {
        transport.close().await;
    }
    let drain_timeout = work.drain_timeout();
    let drained = async {
        while let Some(ended) = drivers.join_next().await {
            log_panic(ended);
        }
    };
    if tokio::time::timeout(drain_timeout, drained).await.is_err() {
        tracing::warn!("work is left after {drain_timeout:?}, giving it back");
        work.abort().cancel();
        // What was in work is dropped and so given back; the sources still write that out.
        let given_back = async {
            while let Some(ended) = drivers.join_next().await {
                log_panic(ended);
            }
        };
        if tokio::time::timeout(Duration::from_secs(2), given_back)
            .await
            .is_err()
        {
            tracing::warn!("a source did not close in time");
        }
    }
    drop(sources);
}

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a transport panicked; its source is lost");
    }
}

/// A server that receives. Dropping it stops everything at once, as a crash would.
#[derive(Debug)]
pub struct Running {
    addresses: Vec<String>,
    stop: Stop,
    supervisor: JoinSet<()>,
    _abort: DropGuard,
}

impl Running {
    /// Where it can be reached: the URLs it listens on, with the ports that were free.
    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// The first of [`addresses`](Self::addresses).
    pub fn address(&self) -> &str {
        self.addresses.first().map_or("", String::as_str)
    }

    /// Takes no new work, finishes what has begun within the drain timeout, gives the rest back,
    /// and lets go of the transports.
    pub async fn shutdown(mut self) {
        self.stop.say();
        while let Some(ended) = self.supervisor.join_next().await {
            log_panic(ended);
        }
    }
}
