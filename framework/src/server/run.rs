//! The run loop: the only place that polls handlers and their streams, applies deadlines, catches
//! panics and settles.
//!
//! One task per source takes the deliveries that are ready and polls each handler once, in place.
//! Most handlers that only compute, or find their lock free, are done by then, and their replies
//! leave together when the source is polled again. A handler that waits moves to a task of its own,
//! with its permit.
//!
//! A permit is for what runs. An event that waits for its next try, for its turn or for a place at its
//! handler has none, nor has a message without a place; so that they are bounded all the same, a source
//! with too many unsettled events is not asked for more, and a handler has a queue of its own for
//! messages.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    slice,
    sync::Arc,
    task::{self, Poll},
    time::{Duration, SystemTime},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Limits, Origin,
    events::{Event, Lanes},
    message::{self, Running, Waiting},
    permits::Turnstile,
    stop::{self, Stop},
};
use crate::{
    context::Context,
    contract::Guarantee,
    error::RpcError,
    router::{Router, Routes, no_handler},
    transport::{Delivery, Kind, Outcome, Rejection, Source, Unsettled},
};

/// How many deliveries one round takes at most, and how many values a stream gives without a pause.
pub(super) const BATCH: usize = 64;
/// How many events of one source may be unsettled at least, however few may be in work at once.
const LEAST_UNSETTLED: usize = 1024;

/// What all sources of a server share.
pub(super) struct Loop {
    service: String,
    router: Router,
    pub(super) limits: Limits,
    permits: Arc<Semaphore>,
    stop: Stop,
    abort: CancellationToken,
}

impl Loop {
    pub(super) fn new(service: String, router: Router, limits: Limits, permits: Semaphore) -> Self {
        let (stop, abort) = (Stop::default(), CancellationToken::new());
        Self {
            service,
            router,
            limits,
            permits: Arc::new(permits),
            stop,
            abort,
        }
    }

    pub(super) fn service(&self) -> &str {
        &self.service
    }

    /// How often an event may be tried.
    pub(super) fn attempts(&self, origin: Origin) -> u32 {
        match origin.guarantee {
            Guarantee::AtLeastOnce => self.limits.attempts,
            Guarantee::BestEffort => 1,
        }
    }

    pub(super) fn router(&self) -> &Router {
        &self.router
    }

    /// Said when the server begins to drain.
    pub(super) fn stop(&self) -> &Stop {
        &self.stop
    }

    /// Cancelled when what is still in work has to be given back.
    pub(super) fn abort(&self) -> &CancellationToken {
        &self.abort
    }

    pub(super) fn drain_timeout(&self) -> Duration {
        self.limits.drain_timeout
    }

    /// Runs one source until it ends or the server has drained.
    pub(super) async fn drive(self: Arc<Self>, source: Box<dyn Source>, origin: Origin) {
        let unsettled = self.limits.max_in_flight.max(LEAST_UNSETTLED);
        let mut driver = Driver {
            for_events: Turnstile::new(Arc::clone(&self.permits)),
            for_messages: Turnstile::new(Arc::clone(&self.permits)),
            unsettled: Arc::new(Semaphore::new(unsettled)),
            stop: Some(self.stop.listen()),
            shared: self,
            source,
            origin,
            batch: Vec::new(),
            received_at: SystemTime::now(),
            in_work: TaskTracker::new(),
            lanes: Lanes::default(),
        };
        driver.run().await;
    }
}

struct Driver {
    shared: Arc<Loop>,
    source: Box<dyn Source>,
    origin: Origin,
    /// Gone once the source has been told.
    stop: Option<stop::Listener>,
    batch: Vec<Delivery>,
    /// When the source last gave something.
    received_at: SystemTime,
    in_work: TaskTracker,
    lanes: Lanes,
    /// Two, because there may be many events, and messages have a deadline.
    for_events: Turnstile,
    for_messages: Turnstile,
    /// Room for events that are not settled; only this driver takes of it.
    unsettled: Arc<Semaphore>,
}

impl Driver {
    async fn run(&mut self) {
        let mut permit = None;
        'source: loop {
            if permit.is_none() {
                permit = self.permit().await;
                if permit.is_none() {
                    break;
                }
            }
            match poll_fn(|cx| self.poll_round(cx, &mut permit)).await {
                Round::Taken => {}
                Round::NoPermit => continue,
                Round::End => break,
            }
            let mut batch = std::mem::take(&mut self.batch);
            let mut rest = batch.iter_mut();
            while let Some((delivery, started)) =
                poll_fn(|task| Poll::Ready(self.start_all(&mut rest, task))).await
            {
                if let Some(held) = permit.take() {
                    permit = self.carry_on(delivery.take(), started, held).await;
                }
                // Without a permit the server is being torn down, and what is dropped is given back.
                if permit.is_none() {
                    break 'source;
                }
            }
            batch.clear();
            self.batch = batch;
        }
        drop(permit);
        self.close().await;
    }

    /// Polls for deliveries with a permit, and gives the permit back while there are none: a source
    /// that is idle keeps nobody else from working.
    fn poll_round(
        &mut self,
        cx: &mut task::Context<'_>,
        permit: &mut Option<OwnedSemaphorePermit>,
    ) -> Poll<Round> {
        if permit.is_none() {
            *permit = Arc::clone(&self.shared.permits).try_acquire_owned().ok();
            if permit.is_none() {
                return Poll::Ready(Round::NoPermit);
            }
        }
        match self.poll_source(cx, BATCH) {
            Poll::Ready(Some(_)) => {
                self.received_at = SystemTime::now();
                Poll::Ready(Round::Taken)
            }
            Poll::Ready(None) => Poll::Ready(Round::End),
            Poll::Pending => {
                *permit = None;
                Poll::Pending
            }
        }
    }

    /// Waits for a permit while the source goes on writing; `None` when the server is torn down.
    async fn permit(&mut self) -> Option<OwnedSemaphorePermit> {
        self.acquire(Arc::clone(&self.shared.permits)).await
    }

    /// The permit for the next delivery, once there is room for it should it be an event.
    async fn next_permit(
        &mut self,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Option<OwnedSemaphorePermit> {
        if self.unsettled.available_permits() == 0 {
            drop(permit);
            drop(self.acquire(Arc::clone(&self.unsettled)).await?);
            return self.permit().await;
        }
        match permit {
            Some(permit) => Some(permit),
            None => self.permit().await,
        }
    }

    async fn acquire(&mut self, permits: Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = Arc::clone(&permits).try_acquire_owned() {
            return Some(permit);
        }
        let mut acquire = pin!(permits.acquire_owned());
        let abort = self.shared.abort.clone();
        let mut abort = pin!(abort.cancelled());
        poll_fn(|cx| {
            if let Poll::Ready(permit) = acquire.as_mut().poll(cx) {
                return Poll::Ready(permit.ok());
            }
            ready_or_pending(self.poll_source(cx, 0));
            abort.as_mut().poll(cx).map(|()| None)
        })
        .await
    }

    fn poll_source(&mut self, cx: &mut task::Context<'_>, room: usize) -> Poll<Option<usize>> {
        if let Some(stop) = &mut self.stop
            && stop.poll(cx).is_ready()
        {
            self.stop = None;
            self.source.stop();
        }
        self.source.poll_deliveries(cx, room, &mut self.batch)
    }

    /// Starts the work on those that are left of a round and settles what is done by that, where it
    /// lies. Stops at the first that is not done.
    fn start_all<'a>(
        &mut self,
        rest: &mut slice::IterMut<'a, Delivery>,
        task: &mut task::Context<'_>,
    ) -> Option<(&'a mut Delivery, Started)> {
        for delivery in rest {
            match self.start(delivery, task) {
                Started::Settle(outcome) => settle(delivery.take(), outcome),
                started => return Some((delivery, started)),
            }
        }
        None
    }

    /// Goes on with a delivery whose work has been started, in a task of its own that has the permit, and
    /// returns one for the next.
    async fn carry_on(
        &mut self,
        mut left: Unsettled,
        started: Started,
        permit: OwnedSemaphorePermit,
    ) -> Option<OwnedSemaphorePermit> {
        match started {
            Started::Settle(outcome) => {
                settle(left, outcome);
                Some(permit)
            }
            Started::Message(mut running) => {
                let shared = Arc::clone(&self.shared);
                self.in_work.spawn(async move {
                    let outcome = running.finish(&mut left, &shared.abort).await;
                    drop(running);
                    settle_or_give_back(left, outcome);
                    drop(permit);
                });
                self.permit().await
            }
            Started::Waiting(waiting) => {
                let (turnstile, shared) = (self.for_messages.clone(), Arc::clone(&self.shared));
                // A message has its room in the handler's queue.
                let is_event = left.kind == Kind::Event;
                let room = is_event.then(|| self.room());
                self.in_work.spawn(async move {
                    waiting.run(left, &turnstile, &shared.abort).await;
                    drop(room);
                });
                self.next_permit(Some(permit)).await
            }
            Started::Event(mut event) => {
                let (shared, turnstile) = (Arc::clone(&self.shared), self.for_events.clone());
                let room = self.room();
                let permit = event.hand_over(permit);
                self.in_work.spawn(async move {
                    let outcome = event.finish(&shared, &turnstile, &mut left).await;
                    settle_or_give_back(left, outcome);
                    drop(room);
                });
                self.next_permit(permit).await
            }
        }
    }

    /// An event's part of the room for unsettled ones: there is some, `next_permit` saw to that.
    fn room(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.unsettled).try_acquire_owned().ok()
    }

    /// What becomes of a delivery that is too much to look at.
    fn refuse(&self, delivery: &mut Delivery, what: &str) -> Started {
        tracing::warn!(kind = ?delivery.kind, "refused: {what}");
        if delivery.kind == Kind::Message {
            return Started::Settle(Outcome::Fail(RpcError::resource_exhausted(what)));
        }
        let handlers = self.shared.router.find_events(delivery.route()).len();
        let rejection = Rejection {
            reason: what.to_owned(),
            attempts: delivery.attempt,
            handlers: (0..handlers).collect(),
            envelope: std::mem::take(&mut delivery.envelope),
        };
        Started::Event(Event::given_up(self.origin, rejection))
    }

    /// Whether it is answered is the sender's choice and not the handler's, as in NestJS: a message
    /// to a pattern that only has event handlers runs them, and an event without a handler of its own
    /// runs the message's.
    fn start(&mut self, delivery: &mut Delivery, task: &mut task::Context<'_>) -> Started {
        if let Err(what) = delivery.envelope.check_received() {
            return self.refuse(delivery, what);
        }
        let (route, is_message) = (delivery.route(), delivery.kind == Kind::Message);
        let (message, events) = match self.shared.router.find(route) {
            Some(Routes { message, events }) => (message.as_ref(), events.as_slice()),
            None if is_message => return Started::Settle(Outcome::Fail(no_handler(route))),
            None => (None, &[][..]),
        };
        if let Some(message) = message
            && (is_message || events.is_empty())
        {
            let patience = self.shared.limits.handler_timeout;
            let cx = self.context(delivery);
            return message::start(message, cx, delivery.kind, patience, task);
        }
        let cx = self.context(delivery);
        let lane = delivery.lane.as_ref();
        self.lanes
            .start(&self.shared, self.origin, events, lane, cx, task)
    }

    fn context(&self, delivery: &mut Delivery) -> Context {
        let envelope = std::mem::take(&mut delivery.envelope);
        let (name, at) = (self.origin.name, self.received_at);
        Context::received(envelope, name, at, delivery.attempt)
    }

    /// Waits for what is in work while the source writes its outcomes, then closes the source.
    async fn close(&mut self) {
        self.in_work.close();
        let in_work = self.in_work.clone();
        let mut done = pin!(in_work.wait());
        poll_fn(|cx| {
            ready_or_pending(self.poll_source(cx, 0));
            done.as_mut().poll(cx)
        })
        .await;
        poll_fn(|cx| self.source.poll_close(cx)).await;
    }
}

/// How one round of taking deliveries went.
enum Round {
    /// There are some.
    Taken,
    /// Everything that may be in work is.
    NoPermit,
    /// There will be no more.
    End,
}

/// A poll made for its side effects: nothing can arrive with room 0, and the end is seen later.
fn ready_or_pending(_: Poll<Option<usize>>) {}

/// What became of a delivery at its first poll.
pub(super) enum Started {
    Settle(Outcome),
    Message(Running),
    Waiting(Waiting),
    Event(Event),
}

/// A delivery whose work was torn down is dropped, which gives it back.
pub(super) fn settle_or_give_back(left: Unsettled, outcome: Option<Outcome>) {
    match outcome {
        Some(outcome) => settle(left, outcome),
        None => drop(left),
    }
}

/// Says what became of a delivery in the terms of its kind, whatever handled it.
fn settle(left: Unsettled, outcome: Outcome) {
    let outcome = match (left.kind, outcome) {
        (Kind::Message, Outcome::Ack) => Outcome::Done,
        (Kind::Message, Outcome::Reject(rejection)) => {
            Outcome::Fail(RpcError::failed_precondition(rejection.reason))
        }
        (Kind::Event, Outcome::Reply(_) | Outcome::Done | Outcome::Fail(_)) => Outcome::Ack,
        (_, outcome) => outcome,
    };
    left.settle(outcome);
}
