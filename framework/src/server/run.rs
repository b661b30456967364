//! The run loop: the only place that polls handlers and their streams, applies deadlines, catches
//! panics and settles.
//!
//! One task per source takes the deliveries that are ready and polls each handler once, in place.
//! Most handlers that only compute, or find their lock free, are done by then, and their replies
//! leave together when the source is polled again. A handler that waits moves to a task of its own,
//! with its permit.

use std::{
    any::Any,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::Arc,
    task::{self, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::{
    sync::{CancellationToken, WaitForCancellationFutureOwned},
    task::TaskTracker,
};

use super::{Limits, Origin, events::Lanes};
use crate::{
    context::Context,
    contract::Guarantee,
    error::{Code, RpcError},
    handler::{BoxFuture, ByteStream, Reply},
    router::{MessageRoute, Route, Router, no_handler},
    transport::{Delivery, Gone, Kind, Outcome, Rejection, Source},
};

/// How many deliveries one round takes at most, and how many values a stream gives without a pause.
const BATCH: usize = 64;
/// How long a stream waits for a reader who takes nothing.
const READER_PATIENCE: Duration = Duration::from_secs(300);

/// What all sources of a server share.
pub(super) struct Loop {
    service: String,
    router: Router,
    pub(super) limits: Limits,
    permits: Arc<Semaphore>,
    stop: CancellationToken,
    abort: CancellationToken,
}

impl Loop {
    pub(super) fn new(service: String, router: Router, limits: Limits, permits: Semaphore) -> Self {
        let (stop, abort) = (CancellationToken::new(), CancellationToken::new());
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

    /// Cancelled when the server begins to drain.
    pub(super) fn stop(&self) -> &CancellationToken {
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
        let stop = Box::pin(self.stop.clone().cancelled_owned());
        let mut driver = Driver {
            shared: self,
            source,
            origin,
            stop: Some(stop),
            batch: Vec::new(),
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
    stop: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    batch: Vec<Delivery>,
    in_work: TaskTracker,
    lanes: Lanes,
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
            for delivery in batch.drain(..) {
                // Without a permit the server is being torn down, and what is dropped is given back.
                let Some(held) = permit.take() else {
                    break 'source;
                };
                permit = self.accept(delivery, held).await;
            }
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
            Poll::Ready(Some(_)) => Poll::Ready(Round::Taken),
            Poll::Ready(None) => Poll::Ready(Round::End),
            Poll::Pending => {
                *permit = None;
                Poll::Pending
            }
        }
    }

    /// Waits for a permit while the source goes on writing; `None` when the server is torn down.
    async fn permit(&mut self) -> Option<OwnedSemaphorePermit> {
        let permits = Arc::clone(&self.shared.permits);
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
            && stop.as_mut().poll(cx).is_ready()
        {
            self.stop = None;
            self.source.stop();
        }
        self.source.poll_deliveries(cx, room, &mut self.batch)
    }

    /// Starts the work on one delivery and returns a permit for the next: the same one when the
    /// work was done in place.
    async fn accept(
        &mut self,
        mut delivery: Delivery,
        permit: OwnedSemaphorePermit,
    ) -> Option<OwnedSemaphorePermit> {
        let started = poll_fn(|task| Poll::Ready(self.start(&mut delivery, task))).await;
        match started {
            Started::Settle(outcome) => {
                settle(delivery, outcome);
                Some(permit)
            }
            Started::Message(running) => {
                let abort = self.shared.abort.clone();
                self.in_work.spawn(async move {
                    let outcome = running.finish(&mut delivery, abort).await;
                    settle_or_give_back(delivery, outcome);
                    drop(permit);
                });
                self.permit().await
            }
            Started::Event(event) => {
                let shared = Arc::clone(&self.shared);
                self.in_work.spawn(async move {
                    let outcome = event.finish(&shared, &mut delivery).await;
                    settle_or_give_back(delivery, outcome);
                    drop(permit);
                });
                self.permit().await
            }
        }
    }

    /// Whether it is answered is the sender's choice and not the handler's, as in NestJS: a message
    /// to a pattern that only has event handlers runs them, and an event without a handler of its own
    /// runs the message's.
    fn start(&mut self, delivery: &mut Delivery, task: &mut task::Context<'_>) -> Started {
        if let Err(what) = delivery.envelope.check_received() {
            return Started::Settle(refused(delivery, what));
        }
        let router = &self.shared.router;
        let (route, kind) = (delivery.route(), delivery.kind);
        match (router.find_message(route), router.find_events(route)) {
            (Some(message), []) => self.start_message(message, delivery, task),
            (Some(message), _) if kind == Kind::Message => {
                self.start_message(message, delivery, task)
            }
            (None, []) if kind == Kind::Message => {
                Started::Settle(Outcome::Fail(no_handler(route)))
            }
            _ => self.lanes.start(&self.shared, self.origin, delivery, task),
        }
    }

    fn start_message(
        &self,
        message: &MessageRoute,
        delivery: &mut Delivery,
        task: &mut task::Context<'_>,
    ) -> Started {
        let envelope = std::mem::take(&mut delivery.envelope);
        let now = Instant::now();
        let deadline = envelope.deadline;
        if deadline.is_some_and(|deadline| deadline <= now) {
            return Started::Settle(Outcome::Fail(too_late()));
        }
        let cx = Context::with_attempt(envelope, self.origin.name, delivery.attempt);
        let mut work = Work::new(&message.route, cx);
        let reply = match work.poll(task) {
            Poll::Ready(result) => match work.outcome(result) {
                Ok(outcome) => return Started::Settle(outcome),
                Err(stream) => Some(stream),
            },
            Poll::Pending => None,
        };
        // A stream without a deadline of its caller's lasts as long as somebody reads it.
        let is_stream = message.many == Some(true) || reply.is_some();
        let limit = match is_stream {
            true => None,
            false => now.checked_add(self.shared.limits.handler_timeout),
        };
        let cancellable = message.cancellable() || reply.is_some();
        Started::Message(Running {
            work,
            stream: reply,
            deadline,
            limit,
            cancellable,
            has_room: false,
            ahead: None,
        })
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
    Event(super::events::Event),
}

/// What becomes of a delivery that is too much to look at.
fn refused(delivery: &mut Delivery, what: &str) -> Outcome {
    tracing::warn!(kind = ?delivery.kind, "refused: {what}");
    match delivery.kind {
        Kind::Message => Outcome::Fail(RpcError::resource_exhausted(what)),
        Kind::Event => Outcome::Reject(Rejection {
            reason: what.to_owned(),
            attempts: delivery.attempt,
            handlers: Vec::new(),
            envelope: std::mem::take(&mut delivery.envelope),
        }),
    }
}

/// A delivery whose work was torn down is dropped, which gives it back.
fn settle_or_give_back(delivery: Delivery, outcome: Option<Outcome>) {
    match outcome {
        Some(outcome) => settle(delivery, outcome),
        None => drop(delivery),
    }
}

/// Says what became of a delivery in the terms of its kind, whatever handled it.
fn settle(delivery: Delivery, outcome: Outcome) {
    let outcome = match (delivery.kind, outcome) {
        (Kind::Message, Outcome::Ack) => Outcome::Done,
        (Kind::Message, Outcome::Reject(rejection)) => {
            Outcome::Fail(RpcError::failed_precondition(rejection.reason))
        }
        (Kind::Event, Outcome::Reply(_) | Outcome::Done | Outcome::Fail(_)) => Outcome::Ack,
        (_, outcome) => outcome,
    };
    delivery.settle(outcome);
}

/// A handler at work, with the context it runs in.
pub(super) struct Work {
    cx: Context,
    future: BoxFuture<'static, Result<Reply, RpcError>>,
}

impl Work {
    pub(super) fn new(route: &Route, cx: Context) -> Self {
        let calling = AssertUnwindSafe(|| route.run(cx.clone()));
        let future = catch_unwind(calling)
            .unwrap_or_else(|panic| Box::pin(std::future::ready(Err(panicked(&*panic)))));
        Self { cx, future }
    }

    /// Polls the handler in its context; a panic becomes an error.
    pub(super) fn poll(&mut self, task: &mut task::Context<'_>) -> Poll<Result<Reply, RpcError>> {
        let Self { cx, future } = self;
        let polling = AssertUnwindSafe(|| cx.poll_scoped(|| future.as_mut().poll(task)));
        catch_unwind(polling).unwrap_or_else(|panic| Poll::Ready(Err(panicked(&*panic))))
    }

    pub(super) fn context(&self) -> &Context {
        &self.cx
    }

    /// What answers a message, or the stream that does.
    fn outcome(&self, result: Result<Reply, RpcError>) -> Result<Outcome, ByteStream> {
        match result {
            Ok(Reply::Value(payload)) => Ok(Outcome::Reply(payload)),
            Ok(Reply::None) => Ok(Outcome::Done),
            Ok(Reply::Stream(stream)) => Err(stream),
            Err(error) => Ok(Outcome::Fail(report(&self.cx, error))),
        }
    }
}

/// Logs what the caller is not told, and returns what it is.
pub(super) fn report(cx: &Context, error: RpcError) -> RpcError {
    let trace = cx
        .header(crate::envelope::header::TRACEPARENT)
        .unwrap_or_default();
    match error.code {
        Code::Internal | Code::Unknown => {
            tracing::error!(pattern = cx.pattern(), trace, ?error, "handler failed");
        }
        _ => tracing::debug!(pattern = cx.pattern(), trace, %error, "handler refused"),
    }
    error.without_source()
}

fn panicked(panic: &(dyn Any + Send)) -> RpcError {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a text".to_owned());
    RpcError::internal(format!("handler panicked: {text}"))
}

fn too_late() -> RpcError {
    RpcError::deadline_exceeded("the deadline passed")
}

/// A message whose handler waits, or whose reply is a stream.
pub(super) struct Running {
    work: Work,
    stream: Option<ByteStream>,
    /// The caller's.
    deadline: Option<Instant>,
    /// Ours, for a caller who set none; it does not hold for a stream.
    limit: Option<Instant>,
    cancellable: bool,
    /// The responder has said that it takes one more value.
    has_room: bool,
    /// What the stream gave when it was asked whether it ends.
    ahead: Option<Result<Bytes, RpcError>>,
}

/// Why work ended before its handler did.
enum Interrupted {
    Cancelled,
    Deadline,
    Aborted,
}

impl Running {
    /// Runs to the end; `None` when the delivery has to be given back.
    async fn finish(
        mut self,
        delivery: &mut Delivery,
        abort: CancellationToken,
    ) -> Option<Outcome> {
        let mut interrupt = pin!(Interrupt {
            abort: pin!(abort.cancelled()),
            deadline: sleeping(self.deadline.or(self.limit))
        });
        if self.stream.is_none() {
            let result = poll_fn(|task| {
                if let Poll::Ready(result) = self.work.poll(task) {
                    return Poll::Ready(Ok(result));
                }
                if self.cancellable && delivery.responder().poll_cancelled(task).is_ready() {
                    return Poll::Ready(Err(Interrupted::Cancelled));
                }
                interrupt.as_mut().get_mut().poll(task).map(Err)
            })
            .await;
            match result.map(|result| self.work.outcome(result)) {
                Ok(Ok(outcome)) => return Some(outcome),
                Ok(Err(stream)) => {
                    self.stream = Some(stream);
                    interrupt.as_mut().get_mut().deadline = sleeping(self.deadline);
                }
                Err(interrupted) => return interrupted.outcome(),
            }
        }
        let mut stream = self.stream.take()?;
        let mut unread: Sleeping = None;
        let mut burst = 0;
        loop {
            let step = poll_fn(|task| {
                // A stream that always has a value, on a wire that always has room, pauses now and
                // then: others want to run, and it may have to end.
                let pause = burst == BATCH;
                if !pause {
                    burst += 1;
                    let step = self.poll_stream(&mut stream, delivery, task);
                    if step.is_ready() {
                        return step.map(Ok);
                    }
                }
                burst = 0;
                if delivery.responder().poll_cancelled(task).is_ready() {
                    return Poll::Ready(Err(Interrupted::Cancelled));
                }
                // A caller who died without a word reads nothing and cancels nothing.
                if self.has_room {
                    unread = None;
                } else {
                    let patience = unread.get_or_insert_with(|| Box::pin(sleep(READER_PATIENCE)));
                    if patience.as_mut().poll(task).is_ready() {
                        return Poll::Ready(Err(Interrupted::Cancelled));
                    }
                }
                let interrupted = interrupt.as_mut().get_mut().poll(task).map(Err);
                if pause && interrupted.is_pending() {
                    task.waker().wake_by_ref();
                }
                interrupted
            });
            match step.await {
                Ok(Step::Value) => unread = None,
                Ok(Step::End(outcome)) => return Some(outcome),
                // What a reader has seen must not be sent again: a stream is never given back.
                Err(Interrupted::Aborted) => {
                    let error = RpcError::unavailable("the service stopped during the stream");
                    return Some(Outcome::Fail(error));
                }
                Err(interrupted) => return interrupted.outcome(),
            }
        }
    }

    /// Moves one value from the handler's stream to the reply, when there is room for it.
    fn poll_stream(
        &mut self,
        stream: &mut ByteStream,
        delivery: &mut Delivery,
        task: &mut task::Context<'_>,
    ) -> Poll<Step> {
        let end = |outcome| Poll::Ready(Step::End(outcome));
        if !self.has_room {
            match ready!(delivery.responder().poll_ready(task)) {
                Ok(()) => self.has_room = true,
                Err(Gone) => return end(Outcome::Done),
            }
        }
        match ready!(self.poll_item(stream, task)) {
            // An end that is known already travels with the last value.
            Some(Ok(payload)) => match self.poll_item(stream, task) {
                Poll::Ready(None) => end(Outcome::Reply(payload)),
                next => {
                    if let Poll::Ready(Some(item)) = next {
                        self.ahead = Some(item);
                    }
                    delivery.responder().value(payload);
                    self.has_room = false;
                    Poll::Ready(Step::Value)
                }
            },
            Some(Err(error)) => end(Outcome::Fail(report(self.work.context(), error))),
            None => end(Outcome::Done),
        }
    }

    fn poll_item(
        &mut self,
        stream: &mut ByteStream,
        task: &mut task::Context<'_>,
    ) -> Poll<Option<Result<Bytes, RpcError>>> {
        if let Some(item) = self.ahead.take() {
            return Poll::Ready(Some(item));
        }
        let cx = self.work.context();
        let polling = AssertUnwindSafe(|| cx.poll_scoped(|| stream.as_mut().poll_next(task)));
        catch_unwind(polling).unwrap_or_else(|panic| Poll::Ready(Some(Err(panicked(&*panic)))))
    }
}

enum Step {
    Value,
    End(Outcome),
}

impl Interrupted {
    fn outcome(self) -> Option<Outcome> {
        match self {
            Self::Cancelled => Some(Outcome::Fail(RpcError::aborted("the caller has gone"))),
            Self::Deadline => Some(Outcome::Fail(too_late())),
            Self::Aborted => None,
        }
    }
}

type Sleeping = Option<Pin<Box<tokio::time::Sleep>>>;

fn sleeping(deadline: Option<Instant>) -> Sleeping {
    deadline.map(|deadline| Box::pin(sleep_until(deadline)))
}

struct Interrupt<A> {
    abort: A,
    deadline: Sleeping,
}

impl<A: Future<Output = ()> + Unpin> Interrupt<A> {
    fn poll(&mut self, task: &mut task::Context<'_>) -> Poll<Interrupted> {
        if Pin::new(&mut self.abort).poll(task).is_ready() {
            return Poll::Ready(Interrupted::Aborted);
        }
        match &mut self.deadline {
            Some(deadline) => deadline.as_mut().poll(task).map(|()| Interrupted::Deadline),
            None => Poll::Pending,
        }
    }
}
