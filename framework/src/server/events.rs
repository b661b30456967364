//! Events in the run loop: order by key, retries, and several handlers of one event.

use std::{
    collections::HashMap,
    future::{Future, poll_fn},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{self, Poll},
    time::Duration,
};

use bytestring::ByteString;
use futures_util::future::join_all;
use tokio::{
    sync::{Mutex as AsyncMutex, OwnedMutexGuard, OwnedSemaphorePermit},
    time::{sleep, timeout},
};

use super::{
    Origin,
    permits::Turnstile,
    run::{Loop, Started},
    work::{Work, report},
};
use crate::{
    context::Context,
    envelope::header,
    error::RpcError,
    router::{EventRoute, Place},
    transport::{Kind, Only, Outcome, Rejection, Responder, Unsettled},
};

/// How many keys are remembered before those that are free are forgotten.
const MOST_FREE: usize = 1024;

/// The longest pause between two tries of an event.
const MOST_DELAY: Duration = Duration::from_secs(30);

type Waiting = Pin<Box<dyn Future<Output = OwnedMutexGuard<()>> + Send>>;

/// The keys of one source that have an event in work: events with one key run one after the other.
///
/// The lock is fair, and asked for in the order of arrival, so it is the queue as well.
#[derive(Default)]
pub(super) struct Lanes {
    locks: HashMap<ByteString, Arc<AsyncMutex<()>>>,
}

/// An event's turn among those with its key.
enum Turn {
    /// It has no key.
    Free,
    Taken(OwnedMutexGuard<()>),
    Waiting(Waiting),
}

impl Lanes {
    fn turn(&mut self, lane: Option<&ByteString>, task: &mut task::Context<'_>) -> Turn {
        let Some(lane) = lane else { return Turn::Free };
        if self.locks.len() >= MOST_FREE {
            self.locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        }
        let lock = Arc::clone(self.locks.entry(lane.clone()).or_default());
        let mut waiting: Waiting = Box::pin(lock.lock_owned());
        match waiting.as_mut().poll(task) {
            Poll::Ready(guard) => Turn::Taken(guard),
            Poll::Pending => Turn::Waiting(waiting),
        }
    }

    /// Starts the handlers of an event, or queues it behind others with its key.
    pub(super) fn start(
        &mut self,
        shared: &Loop,
        origin: Origin,
        routes: &[EventRoute],
        lane: Option<&ByteString>,
        mut cx: Context,
        task: &mut task::Context<'_>,
    ) -> Started {
        let only = Only::of(cx.headers(), shared.service());
        let turn = self.turn(lane, task);
        let is_worn_out = cx.attempt() > shared.attempts(origin);
        let is_meant = |(place, _): &(usize, &EventRoute)| only.means(*place);
        let meant = || routes.iter().enumerate().filter(is_meant);
        let mut first = None;
        if !is_worn_out
            && !matches!(turn, Turn::Waiting(_))
            && let Some(event) = alone(meant())
            && let Some(place) = event.limit.try_take()
        {
            match First::attempt(event, place, cx, task) {
                Ok(()) => return Started::Settle(Outcome::Ack),
                Err(left) => (cx, first) = (left.0, Some(left.1)),
            }
        }
        let mut handlers: Vec<_> = meant()
            .map(|(place, event)| Handling::new(place, event.clone(), &cx))
            .collect();
        let mut worn_out = None;
        if is_worn_out {
            worn_out = Some(Box::new(self::worn_out(&cx, &handlers)));
            handlers.clear();
        } else if let [only] = &mut handlers[..] {
            only.first = first;
        }
        Started::Event(Event {
            turn,
            origin,
            handlers,
            worn_out,
        })
    }
}

/// The only one, as is usual.
fn alone<'a>(mut meant: impl Iterator<Item = (usize, &'a EventRoute)>) -> Option<&'a EventRoute> {
    let (_, event) = meant.next()?;
    meant.next().is_none().then_some(event)
}

/// An event in work.
pub(super) struct Event {
    turn: Turn,
    origin: Origin,
    handlers: Vec<Handling>,
    /// It has had all its tries before, and gets no more.
    worn_out: Option<Box<Rejection>>,
}

/// One handler of an event: each succeeds, is retried and fails apart from the others.
struct Handling {
    /// Among the service's handlers of this event.
    place: usize,
    event: EventRoute,
    cx: Context,
    first: Option<First>,
}

/// What is known of the first attempt, which was made in place.
enum First {
    Runs(Work, Held),
    Failed(RpcError),
}

impl First {
    /// Makes it. What comes back is not handled yet.
    fn attempt(
        event: &EventRoute,
        place: Place,
        cx: Context,
        task: &mut task::Context<'_>,
    ) -> Result<(), (Context, Self)> {
        let mut work = Work::new(&event.route, cx);
        match work.poll(task) {
            Poll::Ready(Ok(_)) => {
                log_handled(work.context());
                Ok(())
            }
            Poll::Ready(Err(error)) => Err((work.context().clone(), Self::Failed(error))),
            Poll::Pending => {
                let held = Held {
                    _place: place,
                    permit: None,
                };
                Err((work.context().clone(), Self::Runs(work, held)))
            }
        }
    }
}

/// What a try of an event holds.
struct Held {
    _place: Place,
    permit: Option<OwnedSemaphorePermit>,
}

impl Event {
    /// One that no handler gets.
    pub(super) fn given_up(origin: Origin, rejection: Rejection) -> Self {
        Self {
            turn: Turn::Free,
            origin,
            handlers: Vec::new(),
            worn_out: Some(Box::new(rejection)),
        }
    }

    /// Gives the permit to the handler that runs, or back if none does.
    pub(super) fn hand_over(
        &mut self,
        permit: OwnedSemaphorePermit,
    ) -> Option<OwnedSemaphorePermit> {
        match &mut self.handlers[..] {
            [
                Handling {
                    first: Some(First::Runs(_, held)),
                    ..
                },
            ] => held.permit.replace(permit),
            _ => Some(permit),
        }
    }

    /// Runs every handler to its end; `None` when the event has to be given back.
    pub(super) async fn finish(
        self,
        shared: &Loop,
        turnstile: &Turnstile,
        left: &mut Unsettled,
    ) -> Option<Outcome> {
        let Self {
            turn,
            origin,
            handlers,
            worn_out,
        } = self;
        let attempts = shared.attempts(origin);
        let is_event = left.kind == Kind::Event;
        let responder = Mutex::new(left.responder());
        let work = async {
            let guard = match turn {
                Turn::Free => None,
                Turn::Taken(guard) => Some(guard),
                Turn::Waiting(waiting) => Some(waiting.await),
            };
            let ends = handlers
                .into_iter()
                .map(|handling| handling.run(shared, turnstile, attempts, &responder));
            let failures: Vec<_> = join_all(ends).await.into_iter().flatten().collect();
            drop(guard);
            match worn_out.or_else(|| Failure::join(failures).map(Box::new)) {
                None => Outcome::Ack,
                Some(rejection) => {
                    if is_event {
                        let (kept, service) = (&shared.limits.kept, shared.service());
                        kept.keep(service, origin, &rejection).await;
                    }
                    Outcome::Reject(rejection)
                }
            }
        };
        // What is given back must not be overtaken by what waits behind it.
        tokio::select! {
            biased;
            () = shared.abort().cancelled() => None,
            outcome = work => Some(outcome),
        }
    }
}

/// A handler that has given its event up.
struct Failure {
    place: usize,
    cx: Context,
    reason: String,
}

impl Failure {
    fn join(failures: Vec<Self>) -> Option<Rejection> {
        let envelope = failures.first()?.cx.envelope().clone();
        let attempts = failures.iter().map(|failure| failure.cx.attempt()).max();
        let handlers = failures.iter().map(|failure| failure.place).collect();
        let reasons: Vec<_> = failures.into_iter().map(|failure| failure.reason).collect();
        Some(Rejection {
            reason: reasons.join("; "),
            attempts: attempts.unwrap_or(1),
            handlers,
            envelope,
        })
    }
}

/// An event that has been tried as often as it may, without anybody having been left to say so: its
/// handler ends the process, perhaps.
fn worn_out(cx: &Context, handlers: &[Handling]) -> Rejection {
    let attempts = cx.attempt() - 1;
    let pattern = cx.pattern();
    tracing::error!(pattern, attempts, "event rejected: it was never settled");
    Rejection {
        reason: "no try of it came to an end".to_owned(),
        attempts,
        handlers: handlers.iter().map(|handling| handling.place).collect(),
        envelope: cx.envelope().clone(),
    }
}

impl Handling {
    fn new(place: usize, event: EventRoute, cx: &Context) -> Self {
        Self {
            place,
            event,
            cx: cx.clone(),
            first: None,
        }
    }

    /// Tries until the event has been tried `attempts` times; says so if it was in vain.
    async fn run(
        mut self,
        shared: &Loop,
        turnstile: &Turnstile,
        attempts: u32,
        responder: &Mutex<&mut dyn Responder>,
    ) -> Option<Failure> {
        let mut delay = shared.limits.first_delay;
        loop {
            let error = match self.attempt(turnstile, shared.limits.handler_timeout).await {
                Ok(()) => {
                    log_handled(&self.cx);
                    return None;
                }
                Err(error) => error,
            };
            let (pattern, tries) = (self.cx.pattern(), self.cx.attempt());
            if !error.code.may_pass() || tries >= attempts {
                let error = report(&self.cx, error);
                tracing::error!(pattern, tries, %error, "event rejected");
                return Some(Failure {
                    place: self.place,
                    reason: error.to_string(),
                    cx: self.cx,
                });
            }
            tracing::warn!(pattern, tries, ?error, "event failed, trying again");
            responder
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .tried(tries);
            sleep(jittered(delay)).await;
            delay = delay.saturating_mul(4).min(MOST_DELAY);
            self.cx = self.cx.next_attempt();
        }
    }

    async fn attempt(&mut self, turnstile: &Turnstile, limit: Duration) -> Result<(), RpcError> {
        let (mut work, held) = match self.first.take() {
            Some(First::Failed(error)) => return Err(error),
            Some(First::Runs(work, held)) => (work, held),
            None => {
                // The place is first: a permit is not held by what cannot run.
                let held = Held {
                    _place: self.event.limit.take().await,
                    permit: turnstile.permit().await,
                };
                (Work::new(&self.event.route, self.cx.clone()), held)
            }
        };
        let result = timeout(limit, poll_fn(|task| work.poll(task))).await;
        // What the handler holds goes before others take its place.
        drop(work);
        drop(held);
        match result {
            Ok(result) => result.map(drop),
            Err(_) => Err(RpcError::deadline_exceeded(format!(
                "the handler took over {limit:?}"
            ))),
        }
    }
}

/// The counterpart of the line a client logs for a call.
fn log_handled(cx: &Context) {
    let (pattern, transport) = (cx.pattern(), cx.transport());
    let trace = cx.header(header::TRACEPARENT).unwrap_or_default();
    tracing::debug!(target: "nestling::calls", kind = "handled", pattern, transport, trace);
}

/// Between half and all of `delay`, so that many that failed together do not come back together.
fn jittered(delay: Duration) -> Duration {
    delay.mul_f64(0.5 + fastrand::f64() / 2.0)
}
