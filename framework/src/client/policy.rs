//! What a client does when calls fail: [`Policy`], [`Retry`], [`Breaker`].

mod breaker;
mod budget;
mod layers;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};

use bytestring::ByteString;
use tokio::sync::Semaphore;
use tower::{Layer, ServiceExt};

pub(super) use self::layers::{Held, Outgoing, Received};
use self::{
    breaker::Circuit,
    budget::Budget,
    layers::{Break, Limit, Sending, Stack, Try},
};
use super::call::LONGEST;
use crate::{error::RpcError, handler::BoxFuture, transport::ClientTransport};

/// The most patterns that have a state of their own; those beyond share one.
const MOST_PATTERNS: usize = 1024;

/// How a client calls: for how long, how often, how many at once, and when not at all.
///
/// One is set for all messages of a client ([`Builder::policy`](crate::Builder::policy)) or for those
/// of one pattern ([`Builder::policy_for`](crate::Builder::policy_for)); what the second leaves unset
/// is as the first says. Clones of a client share its state. Events are not subject to it: they are
/// acknowledged, and `Outbox` repeats them.
///
/// ```
/// use std::time::Duration;
/// use nestling::{Breaker, Client, Policy, Retry, transport::Memory};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let client = Client::builder(&Memory::new())
///     .policy(Policy::new().retry(Retry::new()).breaker(Breaker::new()))
///     .policy_for("user.get", Policy::new().timeout(Duration::from_millis(300)))
///     .policy_for("report.make", Policy::new().retry(Retry::off()).max_in_flight(4))
///     .build()
///     .await?;
/// # Ok(())
/// # }
/// ```
///
/// Each try of a call first asks the breaker, then waits for a place among those in flight, and is
/// then sent.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    timeout: Option<Duration>,
    retry: Option<Retry>,
    breaker: Option<Breaker>,
    max_in_flight: Option<usize>,
}

impl Policy {
    /// One that says nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How long a call may take, all its tries and pauses included, and a stream for each value,
    /// unless the call says otherwise.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Tries idempotent calls again.
    #[must_use]
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = Some(retry);
        self
    }

    /// Refuses calls at once while the service does not answer.
    #[must_use]
    pub fn breaker(mut self, breaker: Breaker) -> Self {
        self.breaker = Some(breaker);
        self
    }

    /// How many calls of one pattern may be on their way at once, at least 1. Further ones wait, in
    /// their order and until their deadline, and then end with `ResourceExhausted`. A stream counts
    /// until it ends or is dropped.
    #[must_use]
    pub fn max_in_flight(mut self, calls: usize) -> Self {
        self.max_in_flight = Some(calls.clamp(1, Semaphore::MAX_PERMITS));
        self
    }

    /// The same, with what it leaves unset taken from `base`.
    fn or(self, base: &Self) -> Self {
        Self {
            timeout: self.timeout.or(base.timeout),
            retry: self.retry.or_else(|| base.retry.clone()),
            breaker: self.breaker.or_else(|| base.breaker.clone()),
            max_in_flight: self.max_in_flight.or(base.max_in_flight),
        }
    }
}

/// How calls are tried again.
///
/// Only those of a contract that is [`IDEMPOTENT`](crate::Message::IDEMPOTENT), or that say so
/// ([`SendCall::idempotent`](crate::SendCall::idempotent)), and only after failures that may pass:
/// `Unavailable`, `ResourceExhausted`, `Aborted`, and `DeadlineExceeded` of a single try. Pauses grow
/// exponentially, with [full jitter][jitter], and never beyond the call's deadline.
///
/// A **budget** keeps retries from making an outage worse: each call that may be tried again earns a
/// share of a retry, and all retries of a client are paid from that, or from a reserve of ten that it
/// starts with ([gRPC's][grpc] and [Finagle's][finagle] way). With the default of a tenth, a service
/// that fails every call gets a tenth more of them, and not three times as many.
///
/// A stream is tried again only before its first value: where one may be, its call returns with that
/// value in hand, and what fails before it is the call's own error.
///
/// [jitter]: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
/// [grpc]: https://github.com/grpc/proposal/blob/master/A6-client-retries.md#throttling-retry-attempts-and-hedged-rpcs
/// [finagle]: https://twitter.github.io/finagle/guide/Clients.html#retries
#[derive(Clone, Debug)]
pub struct Retry {
    tries: u32,
    backoff: Duration,
    longest: Duration,
    per_try: Option<Duration>,
    budget: f64,
}

impl Retry {
    /// Three tries, pauses of at most 50 and 100 milliseconds, a tenth of the calls.
    #[must_use]
    pub fn new() -> Self {
        Self {
            tries: 3,
            backoff: Duration::from_millis(50),
            longest: Duration::from_secs(2),
            per_try: None,
            budget: 0.1,
        }
    }

    /// None: for a pattern, where the client's policy has some.
    #[must_use]
    pub fn off() -> Self {
        Self::new().tries(1)
    }

    /// How often a call is made at most, the first time included.
    #[must_use]
    pub fn tries(mut self, tries: u32) -> Self {
        self.tries = tries;
        self
    }

    /// The longest first pause, and the longest of all; each pause is a random part of a limit that
    /// doubles from the one to the other.
    #[must_use]
    pub fn backoff(mut self, first: Duration, longest: Duration) -> Self {
        self.backoff = first.min(LONGEST);
        self.longest = longest.min(LONGEST);
        self
    }

    /// How long one try may take. Without this each has all the time that is left, so that a call
    /// nobody answers is not made again.
    #[must_use]
    pub fn per_try(mut self, timeout: Duration) -> Self {
        self.per_try = Some(timeout.min(LONGEST));
        self
    }

    /// Which share of a retry a call earns, from 0 to 1.
    #[must_use]
    pub fn budget(mut self, share: f64) -> Self {
        self.budget = share;
        self
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self::new()
    }
}

/// When calls of a pattern are refused at once, because those before were in vain.
///
/// It opens with a failure, when among the last calls the share of failures is too large. Failures are
/// `Unavailable` and `DeadlineExceeded`, whoever says so, and a peer that breaks the protocol; an
/// error with any other code is an answer. While it is open, calls end at once with `Unavailable`,
/// and [`ErrorKind::CircuitOpen`](crate::transport::ErrorKind::CircuitOpen) behind it. After a cool-down
/// a few calls are let through as probes: if all are answered it closes, if one fails it opens again,
/// for twice as long, up to sixteen times the first cool-down.
#[derive(Clone, Debug)]
pub struct Breaker {
    window: usize,
    at_least: usize,
    failures: f64,
    cool_down: Duration,
    probes: u32,
}

impl Breaker {
    /// Opens when half of the last twenty calls, or of at least ten, have failed; probes with one
    /// call after a second.
    #[must_use]
    pub fn new() -> Self {
        Self {
            window: 20,
            at_least: 10,
            failures: 0.5,
            cool_down: Duration::from_secs(1),
            probes: 1,
        }
    }

    /// None: for a pattern, where the client's policy has one.
    #[must_use]
    pub fn off() -> Self {
        Self::new().window(0)
    }

    /// How many calls it looks back on; 0 is [`off`](Self::off).
    #[must_use]
    pub fn window(mut self, calls: usize) -> Self {
        self.window = calls;
        self
    }

    /// How many of them there must have been before it opens.
    #[must_use]
    pub fn at_least(mut self, calls: usize) -> Self {
        self.at_least = calls;
        self
    }

    /// The share of failures, from 0 to 1, from which on it opens.
    #[must_use]
    pub fn failures(mut self, share: f64) -> Self {
        self.failures = share;
        self
    }

    /// How long it stays open the first time, at most; jitter takes up to half of it.
    #[must_use]
    pub fn cool_down(mut self, time: Duration) -> Self {
        self.cool_down = time.min(LONGEST);
        self
    }

    /// How many calls decide, after the cool-down, whether it closes; at least 1.
    #[must_use]
    pub fn probes(mut self, calls: u32) -> Self {
        self.probes = calls.max(1);
        self
    }
}

impl Default for Breaker {
    fn default() -> Self {
        Self::new()
    }
}

/// What holds for the calls of one pattern: its policy at work.
pub(super) struct Rules {
    pub(super) timeout: Option<Duration>,
    stack: Stack,
}

impl Rules {
    /// Sends a message through the layers.
    ///
    /// The box keeps the future of a call small for clients that have no policy.
    pub(super) fn send(
        &self,
        outgoing: Outgoing,
    ) -> BoxFuture<'static, Result<Received, RpcError>> {
        Box::pin(self.stack.clone().oneshot(outgoing))
    }
}

/// The policies of a client, and their state by pattern.
pub(super) struct Policies {
    transport: Arc<dyn ClientTransport>,
    budget: Arc<Budget>,
    common: Option<Common>,
    rules: RwLock<HashMap<ByteString, Arc<Rules>>>,
}

/// For patterns that have no policy of their own.
struct Common {
    policy: Policy,
    /// Shared by those for which there is no room.
    rest: Arc<Rules>,
}

impl Policies {
    /// None where there is no policy: such a client calls its transport directly.
    pub(super) fn new(
        transport: Arc<dyn ClientTransport>,
        common: Option<Policy>,
        own: Vec<(ByteString, Policy)>,
    ) -> Option<Self> {
        if common.is_none() && own.is_empty() {
            return None;
        }
        let mut policies = Self {
            transport,
            budget: Arc::new(Budget::new()),
            common: None,
            rules: RwLock::default(),
        };
        let base = common.clone().unwrap_or_default();
        let own = own.into_iter().map(|(pattern, policy)| {
            let rules = policies.rules(&pattern, policy.or(&base));
            (pattern, rules)
        });
        let own = RwLock::new(own.collect());
        policies.common = common.map(|policy| Common {
            rest: policies.rules(&ByteString::from_static("other patterns"), policy.clone()),
            policy,
        });
        policies.rules = own;
        Some(policies)
    }

    /// What holds for `pattern`, if anything does.
    pub(super) fn of(&self, pattern: &ByteString) -> Option<Arc<Rules>> {
        let is_full = {
            let rules = self.rules.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(found) = rules.get(pattern) {
                return Some(Arc::clone(found));
            }
            rules.len() >= MOST_PATTERNS
        };
        let common = self.common.as_ref()?;
        if is_full {
            return Some(Arc::clone(&common.rest));
        }
        let mut rules = self.rules.write().unwrap_or_else(PoisonError::into_inner);
        let first = || self.rules(pattern, common.policy.clone());
        Some(Arc::clone(
            rules.entry(pattern.clone()).or_insert_with(first),
        ))
    }

    fn rules(&self, pattern: &ByteString, policy: Policy) -> Arc<Rules> {
        let Policy {
            timeout,
            retry,
            breaker,
            max_in_flight,
        } = policy;
        let retry = retry.filter(|retry| retry.tries > 1);
        let breaker = breaker.filter(|breaker| breaker.window > 0);
        let circuit = breaker.map(|breaker| Circuit::new(pattern.clone(), breaker));
        let sending = Sending::new(Arc::clone(&self.transport));
        let limited = Limit::new(max_in_flight).layer(sending);
        let guarded = Break(circuit).layer(limited);
        let stack = Try::new(retry, Arc::clone(&self.budget)).layer(guarded);
        Arc::new(Rules { timeout, stack })
    }
}

/// None of these locks is held while foreign code runs, so a poisoned one is still consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
