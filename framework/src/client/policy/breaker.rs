//! The circuit breaker of one pattern: [`Circuit`], and the [`Ticket`] of each call it lets pass.

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytestring::ByteString;
use tokio::time::Instant;

use super::{Breaker, lock};
use crate::{
    error::{Code, RpcError},
    transport::{Error, ErrorKind},
};

/// The longest cool-down, in first ones.
const LONGEST_COOL_DOWN: u32 = 16;

/// What the end of a call says about the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It answered, be it with an error of its own.
    Well,
    /// Nobody was reached, or nobody answered in time.
    Failed,
    /// Nothing: the call ended for reasons of this side.
    Nothing,
}

impl Verdict {
    pub(super) fn of(error: &RpcError) -> Self {
        use ErrorKind::{CircuitOpen, Config, Full, Protocol, TooLarge};
        match Error::behind(error).map(Error::kind) {
            Some(CircuitOpen | Config | Full | TooLarge) => Self::Nothing,
            Some(Protocol) => Self::Failed,
            _ if matches!(error.code, Code::Unavailable | Code::DeadlineExceeded) => Self::Failed,
            _ => Self::Well,
        }
    }
}

/// Closed, open, or half-open; shared by the calls of one pattern.
pub(super) struct Circuit {
    pattern: ByteString,
    settings: Breaker,
    state: Mutex<State>,
}

struct State {
    phase: Phase,
    /// Counts the phases, so that what a call says of an earlier one is not heard in the next.
    generation: u64,
    window: Window,
    /// How often it has opened since it was last closed.
    openings: u32,
}

enum Phase {
    Closed,
    Open {
        until: Instant,
    },
    HalfOpen {
        /// Probes that are out.
        out: u32,
        /// Probes that came back well.
        passed: u32,
        /// When all that are out are over for certain: a stream that nobody reads does not say.
        latest: Instant,
    },
}

impl Circuit {
    pub(super) fn new(pattern: ByteString, settings: Breaker) -> Arc<Self> {
        Arc::new(Self {
            pattern,
            state: Mutex::new(State {
                phase: Phase::Closed,
                generation: 0,
                window: Window::new(settings.window),
                openings: 0,
            }),
            settings,
        })
    }

    /// Lets a call pass that ends by `deadline`, or refuses it.
    pub(super) fn admit(
        self: &Arc<Self>,
        now: Instant,
        deadline: Instant,
    ) -> Result<Ticket, RpcError> {
        let generation = lock(&self.state).admit(now, deadline, self.settings.probes);
        match generation {
            Some(generation) => Ok(Ticket {
                circuit: Arc::clone(self),
                generation: Some(generation),
            }),
            None => {
                let message = format!("the circuit breaker of {} is open", self.pattern);
                Err(Error::new(ErrorKind::CircuitOpen, message).into())
            }
        }
    }

    fn settle(&self, generation: u64, verdict: Verdict, now: Instant) {
        let change = {
            let mut state = lock(&self.state);
            if state.generation != generation {
                return;
            }
            state.settle(verdict, now, &self.settings)
        };
        let pattern = &*self.pattern;
        match change {
            None => {}
            Some(Change::Opened(pause)) => {
                let millis = pause.as_millis();
                tracing::warn!(target: "nestling::calls", pattern, millis, "circuit breaker opened");
            }
            Some(Change::Closed) => {
                tracing::info!(target: "nestling::calls", pattern, "circuit breaker closed");
            }
        }
    }
}

impl fmt::Debug for Circuit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Circuit")
            .field("pattern", &self.pattern)
            .finish_non_exhaustive()
    }
}

enum Change {
    Opened(Duration),
    Closed,
}

impl State {
    /// The generation of a call that may pass.
    fn admit(&mut self, now: Instant, deadline: Instant, probes: u32) -> Option<u64> {
        match &mut self.phase {
            Phase::Closed => Some(self.generation),
            Phase::HalfOpen {
                out,
                passed,
                latest,
            } if *out + *passed < probes => {
                *out += 1;
                *latest = deadline.max(*latest);
                Some(self.generation)
            }
            Phase::Open { until: over } | Phase::HalfOpen { latest: over, .. } if *over <= now => {
                let first = Phase::HalfOpen {
                    out: 1,
                    passed: 0,
                    latest: deadline,
                };
                Some(self.enter(first))
            }
            Phase::Open { .. } | Phase::HalfOpen { .. } => None,
        }
    }

    fn settle(&mut self, verdict: Verdict, now: Instant, settings: &Breaker) -> Option<Change> {
        match (&mut self.phase, verdict) {
            (Phase::Closed, Verdict::Well | Verdict::Failed) => {
                let failed = verdict == Verdict::Failed;
                self.window.push(failed);
                let is_above = self
                    .window
                    .is_above(settings.failures, settings.at_least.min(settings.window));
                // Who answers is not refused the next call, whatever was before.
                (failed && is_above).then(|| self.open(now, settings))
            }
            (Phase::HalfOpen { .. }, Verdict::Failed) => Some(self.open(now, settings)),
            (Phase::HalfOpen { out, passed, .. }, Verdict::Well) => {
                *out -= 1;
                *passed += 1;
                if *passed < settings.probes {
                    return None;
                }
                self.openings = 0;
                self.window.clear();
                self.enter(Phase::Closed);
                Some(Change::Closed)
            }
            (Phase::HalfOpen { out, .. }, Verdict::Nothing) => {
                *out -= 1;
                None
            }
            (Phase::Closed, Verdict::Nothing) | (Phase::Open { .. }, _) => None,
        }
    }

    fn open(&mut self, now: Instant, settings: &Breaker) -> Change {
        let factor = 2_u32.saturating_pow(self.openings).min(LONGEST_COOL_DOWN);
        self.openings += 1;
        let longest = settings.cool_down.saturating_mul(factor);
        let pause = longest.mul_f64(0.5 + fastrand::f64() / 2.0);
        self.enter(Phase::Open { until: now + pause });
        Change::Opened(pause)
    }

    fn enter(&mut self, phase: Phase) -> u64 {
        self.phase = phase;
        self.generation += 1;
        self.generation
    }
}

/// The last calls, as a ring: which of them failed.
struct Window {
    failed: Box<[bool]>,
    next: usize,
    filled: usize,
    failures: usize,
}

impl Window {
    fn new(size: usize) -> Self {
        Self {
            failed: vec![false; size].into(),
            next: 0,
            filled: 0,
            failures: 0,
        }
    }

    fn push(&mut self, failed: bool) {
        let oldest = std::mem::replace(&mut self.failed[self.next], failed);
        self.failures = self.failures - usize::from(oldest) + usize::from(failed);
        self.next = (self.next + 1) % self.failed.len();
        self.filled = self.failed.len().min(self.filled + 1);
    }

    fn clear(&mut self) {
        *self = Self::new(self.failed.len());
    }

    fn is_above(&self, share: f64, at_least: usize) -> bool {
        let enough = self.filled >= at_least && self.failures > 0;
        enough && self.failures as f64 >= share * self.filled as f64
    }
}

/// A call that was let pass. It says how the call ended, or, dropped, that nothing is known of it.
#[derive(Debug)]
pub(super) struct Ticket {
    circuit: Arc<Circuit>,
    generation: Option<u64>,
}

impl Ticket {
    pub(super) fn settle(mut self, verdict: Verdict) {
        self.tell(verdict, Instant::now());
    }

    fn tell(&mut self, verdict: Verdict, now: Instant) {
        if let Some(generation) = self.generation.take() {
            self.circuit.settle(generation, verdict, now);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.tell(Verdict::Nothing, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL: Duration = Duration::from_millis(200);

    fn settings() -> Breaker {
        Breaker::new()
            .window(10)
            .at_least(5)
            .failures(0.5)
            .probes(2)
            .cool_down(Duration::from_millis(100))
    }

    #[test]
    fn what_the_service_decided_is_an_answer() {
        let check = |error: RpcError, verdict| {
            assert_eq!(Verdict::of(&error), verdict, "{error}");
        };
        check(RpcError::not_found("no such user"), Verdict::Well);
        check(RpcError::resource_exhausted("quota"), Verdict::Well);
        check(RpcError::internal("bug"), Verdict::Well);
        check(RpcError::unavailable("stopping"), Verdict::Failed);
        check(RpcError::deadline_exceeded("slow"), Verdict::Failed);
        let own = |kind| RpcError::from(Error::new(kind, "x"));
        check(own(ErrorKind::Connect), Verdict::Failed);
        check(own(ErrorKind::Timeout), Verdict::Failed);
        check(own(ErrorKind::Protocol), Verdict::Failed);
        check(own(ErrorKind::Full), Verdict::Nothing);
        check(own(ErrorKind::TooLarge), Verdict::Nothing);
    }

    #[test]
    fn only_the_last_calls_count() {
        let mut window = Window::new(4);
        for failed in [true, true, false, false] {
            window.push(failed);
        }
        assert!(window.is_above(0.5, 4));
        window.push(false);
        assert!(!window.is_above(0.5, 4));
        assert!(window.is_above(0.25, 4));
        window.push(false);
        assert!(!window.is_above(0.0, 4), "no failure is no reason to open");
    }

    /// Who is out on a walk of ten thousand steps, and in which phase it left.
    struct Walk {
        circuit: Arc<Circuit>,
        now: Instant,
        out: Vec<(Ticket, Instant)>,
        opened: usize,
        closed: usize,
    }

    impl Walk {
        fn phase(&self) -> u8 {
            match lock(&self.circuit.state).phase {
                Phase::Closed => 0,
                Phase::Open { .. } => 1,
                Phase::HalfOpen { .. } => 2,
            }
        }

        /// Calls of the present half-open phase that have not come back.
        fn probes_out(&self) -> usize {
            let generation = lock(&self.circuit.state).generation;
            let mine = |(ticket, _): &&(Ticket, _)| ticket.generation == Some(generation);
            self.out.iter().filter(mine).count()
        }

        fn step(&mut self, random: &mut fastrand::Rng, healthy: bool) {
            let before = self.phase();
            match random.u8(..10) {
                0..4 => match self.circuit.admit(self.now, self.now + CALL) {
                    Ok(ticket) => self.out.push((ticket, self.now + CALL)),
                    Err(error) => {
                        assert_ne!(before, 0, "a closed one refuses nobody");
                        assert_eq!(error.code, Code::Unavailable);
                    }
                },
                4..8 if !self.out.is_empty() => {
                    let (mut ticket, _) = self.out.swap_remove(random.usize(..self.out.len()));
                    let verdict = match random.u8(..10) {
                        0 => Verdict::Nothing,
                        1..9 if healthy => Verdict::Well,
                        _ => Verdict::Failed,
                    };
                    ticket.tell(verdict, self.now);
                }
                _ => self.now += Duration::from_millis(random.u64(..50)),
            }
            // Calls end by their deadline, as those of a client do.
            let now = self.now;
            for (mut late, _) in self.out.extract_if(.., |(_, deadline)| *deadline <= now) {
                late.tell(Verdict::Failed, now);
            }
            if self.phase() == 2 {
                assert!(
                    self.probes_out() <= 2,
                    "{} probes are out",
                    self.probes_out()
                );
            }
            self.opened += usize::from(before != 1 && self.phase() == 1);
            self.closed += usize::from(before != 0 && self.phase() == 0);
        }
    }

    #[test]
    fn it_never_lets_more_probes_out_than_it_may_and_always_recovers() {
        for seed in 0..20 {
            fastrand::seed(seed);
            let mut random = fastrand::Rng::with_seed(seed);
            let mut walk = Walk {
                circuit: Circuit::new("user.get".into(), settings()),
                now: Instant::now(),
                out: Vec::new(),
                opened: 0,
                closed: 0,
            };
            for step in 0..10_000 {
                walk.step(&mut random, (step / 500) % 2 == 0);
            }
            assert!(walk.opened > 5 && walk.closed > 5, "seed {seed}");
            for _ in 0..20 {
                for (mut ticket, _) in walk.out.drain(..) {
                    ticket.tell(Verdict::Well, walk.now);
                }
                walk.now += settings().cool_down * LONGEST_COOL_DOWN;
                walk.out.extend(
                    walk.circuit
                        .admit(walk.now, walk.now + CALL)
                        .map(|t| (t, walk.now)),
                );
            }
            assert_eq!(
                walk.phase(),
                0,
                "seed {seed}: it stays open for a healthy service"
            );
        }
    }

    #[test]
    fn an_answer_does_not_open_it() {
        let now = Instant::now();
        let circuit = Circuit::new("user.get".into(), settings());
        let call = |verdict| circuit.admit(now, now + CALL).unwrap().tell(verdict, now);
        for _ in 0..4 {
            call(Verdict::Failed);
        }
        // Enough have been seen now, and most of them have failed.
        call(Verdict::Well);
        call(Verdict::Failed);
        assert!(circuit.admit(now, now + CALL).is_err());
    }

    #[test]
    fn a_probe_that_is_never_heard_of_again_holds_nobody_up() {
        let now = Instant::now();
        let circuit = Circuit::new("user.watch".into(), settings().probes(1));
        for _ in 0..5 {
            let mut ticket = circuit.admit(now, now + CALL).unwrap();
            ticket.tell(Verdict::Failed, now);
        }
        assert!(circuit.admit(now, now + CALL).is_err());
        let later = now + settings().cool_down;
        let lost = circuit.admit(later, later + CALL).unwrap();
        assert!(circuit.admit(later, later + CALL).is_err());
        let next = circuit.admit(later + CALL, later + CALL * 2).unwrap();
        drop(lost);
        assert!(circuit.admit(later + CALL, later + CALL * 2).is_err());
        next.settle(Verdict::Well);
        assert!(circuit.admit(later + CALL, later + CALL * 2).is_ok());
    }
}
