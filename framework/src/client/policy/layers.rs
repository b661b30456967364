//! The layers of a [`Policy`](super::Policy): `tower`'s, around the service that sends.
//!
//! All are ready at any time: what there is to wait for, a call waits for itself, because it is the call
//! that knows its deadline. Their futures are named types where `tower`'s usual box can be spared. A
//! client without a policy does not come here: an [`Exchange`] is all it needs, and needs no box.

use std::{
    future::{Future, Ready, poll_fn, ready},
    pin::Pin,
    sync::Arc,
    task::{self, Poll},
    time::Duration,
};

use futures_util::future::Either;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, timeout_at},
};
use tower::{Layer, Service, ServiceExt};

use super::{
    Retry,
    breaker::{Circuit, Ticket, Verdict},
    budget::Budget,
};
use crate::{
    client::{call::no_reply, exchange::Exchange},
    envelope::Envelope,
    error::{Code, RpcError},
    handler::BoxFuture,
    transport::{ClientTransport, Error, ErrorKind, Expect, Item, Replies},
};

/// The layers of one pattern, from the outside in.
pub(super) type Stack = Trying<Breaking<Limiting<Sending>>>;
type Answer = Result<Received, RpcError>;

/// A message on its way out.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing {
    pub(crate) envelope: Envelope,
    pub(crate) expect: Expect,
    pub(crate) idempotent: bool,
    /// When there must be a reply, or the first value of a stream.
    pub(crate) deadline: Instant,
    /// How long this try may take.
    per_try: Option<Duration>,
    /// Whether a stream is handed on only with its first value.
    waits: bool,
}

impl Outgoing {
    pub(crate) fn new(
        envelope: Envelope,
        expect: Expect,
        deadline: Instant,
        idempotent: bool,
    ) -> Self {
        Self {
            envelope,
            expect,
            idempotent,
            deadline,
            per_try: None,
            waits: expect == Expect::Single,
        }
    }
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Received {
    /// The reply, or the first value if the stream was waited for.
    pub(crate) first: Option<Item>,
    /// The stream.
    pub(crate) rest: Option<Replies>,
    pub(crate) held: Held,
}

/// What a call holds until it is over: its place among those in flight, and, until the first value of a
/// stream, the breaker's attention.
#[derive(Debug, Default)]
pub(crate) struct Held {
    permit: Option<OwnedSemaphorePermit>,
    ticket: Option<Ticket>,
}

impl Held {
    /// The first item of a stream says whether the service is well.
    pub(crate) fn first(&mut self, item: Result<&Item, &RpcError>) {
        if let Some(ticket) = self.ticket.take() {
            ticket.settle(match item {
                Ok(Item::Fail(error)) | Err(error) => Verdict::of(error),
                Ok(_) => Verdict::Well,
            });
        }
    }
}

/// Sends a message for a stream, and waits for its first value if `waits`.
async fn open(
    transport: &dyn ClientTransport,
    envelope: Envelope,
    deadline: Instant,
    waits: bool,
) -> Answer {
    let pattern = envelope.pattern.clone();
    let opened = timeout_at(deadline, async {
        let mut replies = transport.request(envelope, Expect::Many).await?;
        let first = match waits.then(|| replies.item()) {
            Some(item) => match item.await {
                Item::Fail(error) => return Err(error),
                item => Some(item),
            },
            None => None,
        };
        Ok(Received {
            first,
            rest: Some(replies),
            held: Held::default(),
        })
    });
    opened.await.unwrap_or_else(|_| Err(no_reply(&pattern)))
}

/// The innermost service: one try.
#[derive(Clone)]
pub(super) struct Sending {
    transport: Arc<dyn ClientTransport>,
}

impl Sending {
    pub(super) fn new(transport: Arc<dyn ClientTransport>) -> Self {
        Self { transport }
    }
}

impl Service<Outgoing> for Sending {
    type Response = Received;
    type Error = RpcError;
    type Future = BoxFuture<'static, Answer>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> Poll<Result<(), RpcError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, outgoing: Outgoing) -> Self::Future {
        let transport = Arc::clone(&self.transport);
        Box::pin(async move {
            let Outgoing {
                mut envelope,
                expect,
                deadline,
                per_try,
                waits,
                ..
            } = outgoing;
            let end = per_try.map_or(deadline, |limit| deadline.min(Instant::now() + limit));
            if expect == Expect::Many {
                return open(&*transport, envelope, end, waits).await;
            }
            // The handler of a try that is given up need not go on.
            envelope.deadline = Some(end);
            let pattern = envelope.pattern.clone();
            let mut exchange = Exchange::new(&*transport, envelope, end);
            let item = poll_fn(|cx| exchange.poll(cx, &pattern)).await?;
            Ok(Received {
                first: Some(item),
                rest: None,
                held: Held::default(),
            })
        })
    }
}

/// Lets so many calls be in flight at once.
pub(super) struct Limit {
    places: Option<(Arc<Semaphore>, usize)>,
}

impl Limit {
    pub(super) fn new(most: Option<usize>) -> Self {
        let places = most.map(|most| (Arc::new(Semaphore::new(most)), most));
        Self { places }
    }
}

impl<S> Layer<S> for Limit {
    type Service = Limiting<S>;

    fn layer(&self, inner: S) -> Limiting<S> {
        Limiting {
            inner,
            places: self.places.clone(),
        }
    }
}

/// The service of [`Limit`].
#[derive(Clone)]
pub(super) struct Limiting<S> {
    inner: S,
    places: Option<(Arc<Semaphore>, usize)>,
}

impl<S> Service<Outgoing> for Limiting<S>
where
    S: Service<Outgoing, Response = Received, Error = RpcError> + Clone + Send + 'static,
    S::Future: Unpin + Send,
{
    type Response = Received;
    type Error = RpcError;
    type Future = Either<Placed<S::Future>, BoxFuture<'static, Answer>>;

    fn poll_ready(&mut self, cx: &mut task::Context<'_>) -> Poll<Result<(), RpcError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, outgoing: Outgoing) -> Self::Future {
        let permit = match &self.places {
            None => None,
            Some((places, most)) => match Arc::clone(places).try_acquire_owned() {
                Ok(permit) => Some(permit),
                Err(_) => {
                    let (places, most) = (Arc::clone(places), *most);
                    let waiting = wait_for_place(self.inner.clone(), outgoing, places, most);
                    return Either::Right(Box::pin(waiting));
                }
            },
        };
        let inner = self.inner.call(outgoing);
        Either::Left(Placed { inner, permit })
    }
}

async fn wait_for_place<S>(
    mut inner: S,
    outgoing: Outgoing,
    places: Arc<Semaphore>,
    most: usize,
) -> Answer
where
    S: Service<Outgoing, Response = Received, Error = RpcError>,
    S::Future: Unpin,
{
    let place = timeout_at(outgoing.deadline, places.acquire_owned()).await;
    // A semaphore that nobody closes has a place or has none in time.
    let Ok(Ok(permit)) = place else {
        let pattern = &outgoing.envelope.pattern;
        let message = format!("{most} calls of {pattern} were in flight until the deadline");
        return Err(Error::new(ErrorKind::Full, message).into());
    };
    let inner = inner.ready().await?.call(outgoing);
    let permit = Some(permit);
    Placed { inner, permit }.await
}

/// A call that has its place, if it needs one.
pub(super) struct Placed<F> {
    inner: F,
    permit: Option<OwnedSemaphorePermit>,
}

impl<F: Future<Output = Answer> + Unpin> Future for Placed<F> {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Answer> {
        let mut answer = task::ready!(Pin::new(&mut self.inner).poll(cx));
        match &mut answer {
            Ok(received) => received.held.permit = self.permit.take(),
            Err(_) => self.permit = None,
        }
        Poll::Ready(answer)
    }
}

/// Refuses calls while the circuit is open.
pub(super) struct Break(pub(super) Option<Arc<Circuit>>);

impl<S> Layer<S> for Break {
    type Service = Breaking<S>;

    fn layer(&self, inner: S) -> Breaking<S> {
        Breaking {
            inner,
            circuit: self.0.clone(),
        }
    }
}

/// The service of [`Break`].
#[derive(Clone)]
pub(super) struct Breaking<S> {
    inner: S,
    circuit: Option<Arc<Circuit>>,
}

impl<S> Service<Outgoing> for Breaking<S>
where
    S: Service<Outgoing, Response = Received, Error = RpcError>,
    S::Future: Unpin,
{
    type Response = Received;
    type Error = RpcError;
    type Future = Either<Watched<S::Future>, Ready<Answer>>;

    fn poll_ready(&mut self, cx: &mut task::Context<'_>) -> Poll<Result<(), RpcError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, outgoing: Outgoing) -> Self::Future {
        let admit = |circuit| Circuit::admit(circuit, Instant::now(), outgoing.deadline);
        match self.circuit.as_ref().map(admit).transpose() {
            Ok(ticket) => Either::Left(Watched {
                inner: self.inner.call(outgoing),
                ticket,
            }),
            Err(refusal) => Either::Right(ready(Err(refusal))),
        }
    }
}

/// A call whose end the breaker wants to know.
pub(super) struct Watched<F> {
    inner: F,
    ticket: Option<Ticket>,
}

impl<F: Future<Output = Answer> + Unpin> Future for Watched<F> {
    type Output = Answer;

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Answer> {
        let mut answer = task::ready!(Pin::new(&mut self.inner).poll(cx));
        let mut held = Held {
            permit: None,
            ticket: self.ticket.take(),
        };
        match &mut answer {
            Err(error) => held.first(Err(error)),
            Ok(Received {
                first: Some(item), ..
            }) => held.first(Ok(item)),
            Ok(received) => received.held.ticket = held.ticket,
        }
        Poll::Ready(answer)
    }
}

/// Makes calls again that may be made again.
pub(super) struct Try {
    retry: Option<Arc<Retry>>,
    budget: Arc<Budget>,
}

impl Try {
    pub(super) fn new(retry: Option<Retry>, budget: Arc<Budget>) -> Self {
        let retry = retry.map(Arc::new);
        Self { retry, budget }
    }
}

impl<S> Layer<S> for Try {
    type Service = Trying<S>;

    fn layer(&self, inner: S) -> Trying<S> {
        Trying {
            inner,
            retry: self.retry.clone(),
            budget: Arc::clone(&self.budget),
        }
    }
}

/// The service of [`Try`].
#[derive(Clone)]
pub(super) struct Trying<S> {
    inner: S,
    retry: Option<Arc<Retry>>,
    budget: Arc<Budget>,
}

impl<S> Service<Outgoing> for Trying<S>
where
    S: Service<Outgoing, Response = Received, Error = RpcError> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Received;
    type Error = RpcError;
    type Future = Either<S::Future, BoxFuture<'static, Answer>>;

    fn poll_ready(&mut self, cx: &mut task::Context<'_>) -> Poll<Result<(), RpcError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, outgoing: Outgoing) -> Self::Future {
        match &self.retry {
            Some(retry) if outgoing.idempotent => {
                let (retry, budget) = (Arc::clone(retry), Arc::clone(&self.budget));
                Either::Right(Box::pin(tries(self.inner.clone(), outgoing, retry, budget)))
            }
            _ => Either::Left(self.inner.call(outgoing)),
        }
    }
}

async fn tries<S>(
    mut inner: S,
    mut outgoing: Outgoing,
    retry: Arc<Retry>,
    budget: Arc<Budget>,
) -> Answer
where
    S: Service<Outgoing, Response = Received, Error = RpcError>,
{
    budget.earn(retry.budget);
    outgoing.per_try = retry.per_try;
    outgoing.waits = true;
    let mut tries = 1;
    loop {
        let answer = inner.ready().await?.call(outgoing.clone()).await;
        let Err(error) = &answer else {
            if tries > 1 {
                record(&outgoing.envelope.pattern, tries, "answered");
            }
            return answer;
        };
        let pause = retry.pause(tries);
        let why = if !may_be_repeated(error) {
            "not to be tried again"
        } else if tries >= retry.tries {
            "tried often enough"
        } else if Instant::now() + pause >= outgoing.deadline {
            "no time left"
        } else if !budget.spend() {
            "no budget left"
        } else {
            sleep(pause).await;
            tries += 1;
            continue;
        };
        record(&outgoing.envelope.pattern, tries, why);
        return answer;
    }
}

impl Retry {
    /// The pause after the `tries`-th try: any part of a limit that doubles each time.
    fn pause(&self, tries: u32) -> Duration {
        let factor = 2_u32.saturating_pow(tries - 1);
        let limit = self.backoff.saturating_mul(factor).min(self.longest);
        limit.mul_f64(fastrand::f64())
    }
}

/// Whether the failure may pass, and repeating an idempotent call is worth it.
fn may_be_repeated(error: &RpcError) -> bool {
    match Error::behind(error).map(Error::kind) {
        Some(ErrorKind::CircuitOpen | ErrorKind::TooLarge) => false,
        _ => matches!(
            error.code,
            Code::Unavailable | Code::ResourceExhausted | Code::Aborted | Code::DeadlineExceeded
        ),
    }
}

/// One line for all tries of a call.
fn record(pattern: &str, tries: u32, why: &str) {
    tracing::debug!(target: "nestling::calls", pattern, tries, why, "tried");
}
