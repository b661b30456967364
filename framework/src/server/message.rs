//! Messages whose handler is not done at its first poll: those that wait for a place at it, those in
//! work, and streams.

use std::{
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    task::{self, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, sleep, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    permits::Turnstile,
    run::{BATCH, Started, settle_or_give_back},
    work::{Work, panicked, report},
};
use crate::{
    context::Context,
    error::RpcError,
    handler::{BoxFuture, ByteStream, Reply},
    router::{MessageRoute, Place},
    transport::{Gone, Kind, Outcome, Unsettled},
};

/// How long a stream waits for a reader who takes nothing.
const READER_PATIENCE: Duration = Duration::from_secs(300);

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
    /// The last field, so that it is given up after what the handler holds.
    _place: Place,
}

/// Begins to answer a message, or lets it wait for a place at its handler. `patience` is how long a
/// handler may take.
pub(super) fn start(
    message: &MessageRoute,
    cx: Context,
    kind: Kind,
    patience: Duration,
    task: &mut task::Context<'_>,
) -> Started {
    let is_past = |deadline| deadline <= Instant::now();
    if cx.deadline().is_some_and(is_past) {
        return Started::Settle(Outcome::Fail(too_late()));
    }
    let Some(place) = message.limit.try_take() else {
        return Waiting::start(message, cx, kind, patience);
    };
    let mut work = Work::new(&message.route, cx);
    let stream = match work.poll(task) {
        Poll::Ready(result) => match work.outcome(result) {
            Ok(outcome) => return Started::Settle(outcome),
            Err(stream) => Some(stream),
        },
        Poll::Pending => None,
    };
    // The first poll does not count: nothing could have cut it short.
    let limit = Instant::now().checked_add(patience);
    Started::Message(Running::new(message, work, place, stream, limit))
}

/// A message for which there was no place at its handler.
pub(super) struct Waiting {
    message: MessageRoute,
    cx: Context,
    patience: Duration,
    /// Its part of the room for those that wait; an event has one of its source's.
    queued: Option<OwnedSemaphorePermit>,
}

impl Waiting {
    fn start(message: &MessageRoute, cx: Context, kind: Kind, patience: Duration) -> Started {
        let queued = match kind {
            Kind::Event => None,
            Kind::Message => match message.limit.queue() {
                None => {
                    let error = message.limit.exhausted(cx.pattern());
                    return Started::Settle(Outcome::Fail(report(&cx, error)));
                }
                queued => queued,
            },
        };
        Started::Waiting(Self {
            message: message.clone(),
            cx,
            patience,
            queued,
        })
    }

    /// Waits for a place and a permit, then answers; the permit is held until that is done.
    pub(super) async fn run(
        self,
        mut left: Unsettled,
        turnstile: &Turnstile,
        abort: &CancellationToken,
    ) {
        let (place, permit) = match self.admitted(&mut left, turnstile, abort).await {
            Ok(admitted) => admitted,
            Err(interrupted) => {
                let outcome = match interrupted {
                    Interrupted::Deadline => {
                        let error = self.message.limit.exhausted(self.cx.pattern());
                        Some(Outcome::Fail(report(&self.cx, error)))
                    }
                    other => other.outcome(),
                };
                return settle_or_give_back(left, outcome);
            }
        };
        let Self {
            message,
            cx,
            patience,
            queued,
        } = self;
        drop(queued);
        let limit = Instant::now().checked_add(patience);
        let work = Work::new(&message.route, cx);
        let mut running = Running::new(&message, work, place, None, limit);
        let outcome = running.finish(&mut left, abort).await;
        drop(running);
        settle_or_give_back(left, outcome);
        drop(permit);
    }

    /// A place and a permit, unless something comes in between. The place is first: a permit is not
    /// held by what cannot run.
    async fn admitted(
        &self,
        left: &mut Unsettled,
        turnstile: &Turnstile,
        abort: &CancellationToken,
    ) -> Result<(Place, Option<OwnedSemaphorePermit>), Interrupted> {
        let end = match left.kind {
            Kind::Event => None,
            Kind::Message => self
                .cx
                .deadline()
                .or_else(|| Instant::now().checked_add(self.patience)),
        };
        let mut interrupt = interrupt(abort, end);
        let mut admission = pin!(async {
            let place = self.message.limit.take().await;
            (place, turnstile.permit().await)
        });
        poll_fn(|task| {
            if let Poll::Ready(interrupted) = interrupt.as_mut().poll(task) {
                return Poll::Ready(Err(interrupted));
            }
            // It has not run, so it may be dropped whatever its contract says.
            if left.responder().poll_cancelled(task).is_ready() {
                return Poll::Ready(Err(Interrupted::Cancelled));
            }
            admission.as_mut().poll(task).map(Ok)
        })
        .await
    }
}

/// Why work ended before its handler did.
enum Interrupted {
    Cancelled,
    Deadline,
    Aborted,
}

impl Running {
    fn new(
        message: &MessageRoute,
        work: Work,
        place: Place,
        stream: Option<ByteStream>,
        limit: Option<Instant>,
    ) -> Self {
        // A stream without a deadline of its caller's lasts as long as somebody reads it.
        let is_stream = message.many == Some(true) || stream.is_some();
        Self {
            deadline: work.context().deadline(),
            limit: limit.filter(|_| !is_stream),
            cancellable: message.cancellable() || stream.is_some(),
            work,
            _place: place,
            stream,
        }
    }

    /// Runs to the end; `None` when the delivery has to be given back.
    pub(super) async fn finish(
        &mut self,
        left: &mut Unsettled,
        abort: &CancellationToken,
    ) -> Option<Outcome> {
        let stream = match self.stream.take() {
            Some(stream) => stream,
            None => match self.result(left, abort).await {
                Ok(result) => match self.work.outcome(result) {
                    Ok(outcome) => return Some(outcome),
                    Err(stream) => stream,
                },
                Err(interrupted) => return interrupted.outcome(),
            },
        };
        let values = Values {
            cx: self.work.context(),
            stream,
            has_room: false,
            ahead: None,
        };
        // In a box, so that the many handlers without a stream have a small task.
        Box::pin(values.send(left, interrupt(abort, self.deadline))).await
    }

    /// What the handler returns.
    async fn result(
        &mut self,
        left: &mut Unsettled,
        abort: &CancellationToken,
    ) -> Result<Result<Reply, RpcError>, Interrupted> {
        // Not made for a handler that is done when it is polled next, as most are that wait for a lock.
        let mut interrupted = None;
        poll_fn(|task| {
            if let Poll::Ready(result) = self.work.poll(task) {
                return Poll::Ready(Ok(result));
            }
            if self.cancellable && left.responder().poll_cancelled(task).is_ready() {
                return Poll::Ready(Err(Interrupted::Cancelled));
            }
            let end = self.deadline.or(self.limit);
            let interrupted = interrupted.get_or_insert_with(|| interrupt(abort, end));
            interrupted.as_mut().poll(task).map(Err)
        })
        .await
    }
}

/// A streamed reply in work.
struct Values<'a> {
    cx: &'a Context,
    stream: ByteStream,
    /// The responder has said that it takes one more value.
    has_room: bool,
    /// What the stream gave when it was asked whether it ends.
    ahead: Option<Result<Bytes, RpcError>>,
}

impl Values<'_> {
    /// Sends them to the end; `None` when the delivery has to be given back.
    async fn send(
        mut self,
        left: &mut Unsettled,
        mut interrupt: BoxFuture<'_, Interrupted>,
    ) -> Option<Outcome> {
        let mut unread = None;
        let mut burst = 0;
        loop {
            let step = poll_fn(|task| {
                // A stream that always has a value, on a wire that always has room, pauses now and
                // then: others want to run, and it may have to end.
                let pause = burst == BATCH;
                if !pause {
                    burst += 1;
                    let step = self.poll_value(left, task);
                    if step.is_ready() {
                        return step.map(Ok);
                    }
                }
                burst = 0;
                if left.responder().poll_cancelled(task).is_ready() {
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
                let interrupted = interrupt.as_mut().poll(task).map(Err);
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
    fn poll_value(&mut self, left: &mut Unsettled, task: &mut task::Context<'_>) -> Poll<Step> {
        let end = |outcome| Poll::Ready(Step::End(outcome));
        if !self.has_room {
            match ready!(left.responder().poll_ready(task)) {
                Ok(()) => self.has_room = true,
                Err(Gone) => return end(Outcome::Done),
            }
        }
        match ready!(self.poll_item(task)) {
            // An end that is known already travels with the last value.
            Some(Ok(payload)) => match self.poll_item(task) {
                Poll::Ready(None) => end(Outcome::Reply(payload)),
                next => {
                    if let Poll::Ready(Some(item)) = next {
                        self.ahead = Some(item);
                    }
                    left.responder().value(payload);
                    self.has_room = false;
                    Poll::Ready(Step::Value)
                }
            },
            Some(Err(error)) => end(Outcome::Fail(report(self.cx, error))),
            None => end(Outcome::Done),
        }
    }

    fn poll_item(&mut self, task: &mut task::Context<'_>) -> Poll<Option<Result<Bytes, RpcError>>> {
        if let Some(item) = self.ahead.take() {
            return Poll::Ready(Some(item));
        }
        let Self { cx, stream, .. } = self;
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

/// What ends work before its handler does: the end of its time, or of the server's patience.
fn interrupt(abort: &CancellationToken, end: Option<Instant>) -> BoxFuture<'_, Interrupted> {
    Box::pin(async move {
        let aborted = abort.cancelled();
        match end {
            None => aborted.await,
            Some(end) => match timeout_at(end, aborted).await {
                Ok(()) => {}
                Err(_) => return Interrupted::Deadline,
            },
        }
        Interrupted::Aborted
    })
}
