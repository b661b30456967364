//! [`Memory`]: the reference transport, inside one process.

mod client;
mod dead_letters;

use std::{
    collections::{BTreeMap, VecDeque, hash_map::DefaultHasher},
    fmt,
    hash::{Hash, Hasher},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{self, Poll, Waker},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::{sync::Notify, time::Instant};

use self::client::MemoryClient;
use super::{
    Capabilities, ClientTransport, DeadLetter, Delivery, Error, ErrorKind, Gone, Item, Kind, Order,
    Outcome, Responder, ServerTransport, Source, Sources, Subscription,
    pending::{Local, lock},
};
use crate::{
    contract::Guarantee,
    envelope::{Envelope, header},
    error::RpcError,
};

/// The most deliveries that wait for one server; senders wait beyond it.
const QUEUE: usize = 1024;
/// As generous as the brokers: what is too large here is too large anywhere.
const MAX_PAYLOAD: usize = 16 << 20;
/// How long an event may wait for room in a queue.
const PATIENCE: Duration = Duration::from_secs(5);

const CAPABILITIES: Capabilities = Capabilities {
    events: Guarantee::AtLeastOnce,
    replicas_share: true,
    fan_out: true,
    durable: false,
    order: Order::KeyInReplica,
    redelivers: true,
    dead_letters: true,
    cancels: true,
    stream_credit: true,
    detects_absence: true,
    max_payload: MAX_PAYLOAD,
};

/// A broker that lives in this process: the transport of tests and of whole systems in one binary.
///
/// Clones share it. What one hands to [`Server::listen`](crate::Server::listen) and
/// [`Client::connect`](crate::Client::connect) finds each other:
///
/// ```
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use nestling::{Client, Router, Server, transport::Memory};
///
/// let memory = Memory::new();
/// let server = Server::new("math", Router::new()).listen(&memory).start().await?;
/// let client = Client::connect(&memory).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct Memory {
    hub: Arc<Hub>,
}

#[derive(Default)]
struct Hub {
    /// The replicas of each service.
    services: Mutex<BTreeMap<Arc<str>, Vec<Arc<Member>>>>,
    turn: AtomicUsize,
    /// Those of all services, oldest first.
    dead_letters: Mutex<VecDeque<(u64, DeadLetter)>>,
    next_dead: AtomicU64,
}

/// One subscription of one replica.
struct Member {
    subscription: Subscription,
    queue: Mutex<Queue>,
    room: Notify,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Delivery>,
    stopped: bool,
    waker: Option<Waker>,
}

impl Memory {
    /// A broker that nobody is connected to.
    pub fn new() -> Self {
        Self::default()
    }

    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.hub, &other.hub)
    }

    /// The sending side alone, for a transport that wraps it: one that loses messages, in a test.
    pub fn client(&self) -> Arc<dyn ClientTransport> {
        Arc::new(MemoryClient::new(Arc::clone(&self.hub)))
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory")
            .field("services", &lock(&self.hub.services).keys())
            .finish()
    }
}

#[async_trait]
impl ServerTransport for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    async fn subscribe(&self, subscription: Subscription) -> Result<Sources, Error> {
        let service = subscription.service.as_str().into();
        let member = Arc::new(Member {
            subscription,
            queue: Mutex::default(),
            room: Notify::new(),
        });
        lock(&self.hub.services)
            .entry(service)
            .or_default()
            .push(Arc::clone(&member));
        let source: Box<dyn Source> = Box::new(MemorySource {
            hub: Arc::clone(&self.hub),
            member,
        });
        Ok(Box::pin(futures_util::stream::iter([source])))
    }
}

struct MemorySource {
    hub: Arc<Hub>,
    member: Arc<Member>,
}

impl Source for MemorySource {
    fn poll_deliveries(
        &mut self,
        cx: &mut task::Context<'_>,
        room: usize,
        batch: &mut Vec<Delivery>,
    ) -> Poll<Option<usize>> {
        let mut queue = lock(&self.member.queue);
        if queue.stopped && queue.waiting.is_empty() {
            return Poll::Ready(None);
        }
        let count = room.min(queue.waiting.len());
        if count == 0 {
            queue.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        // Who waits for room has found it full, and has not asked since.
        let was_full = queue.waiting.len() >= QUEUE;
        batch.extend(queue.waiting.drain(..count));
        drop(queue);
        if was_full {
            self.member.room.notify_waiters();
        }
        Poll::Ready(Some(count))
    }

    fn stop(&mut self) {
        let service = self.member.subscription.service.as_str();
        if let Some(members) = lock(&self.hub.services).get_mut(service) {
            members.retain(|member| !Arc::ptr_eq(member, &self.member));
        }
        lock(&self.member.queue).stopped = true;
        self.member.room.notify_waiters();
    }

    fn poll_close(&mut self, _: &mut task::Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }
}

impl Drop for MemorySource {
    /// A server that is torn down rather than drained gives back what it had not started.
    fn drop(&mut self) {
        self.stop();
        let waiting = std::mem::take(&mut lock(&self.member.queue).waiting);
        drop(waiting);
    }
}

impl Member {
    fn handles(&self, kind: Kind, pattern: &str) -> bool {
        match kind {
            Kind::Message => self
                .subscription
                .messages
                .iter()
                .any(|m| m.pattern == pattern),
            Kind::Event => self
                .subscription
                .events
                .iter()
                .any(|e| e.pattern == pattern),
        }
    }

    /// Queues a delivery, which is made of `attempt` only when there is room; else that comes back.
    fn try_push(
        &self,
        limit: usize,
        attempt: Attempt,
        make: impl FnOnce(Attempt) -> Delivery,
    ) -> Option<Attempt> {
        let mut queue = lock(&self.queue);
        if queue.stopped || queue.waiting.len() >= limit {
            return Some(attempt);
        }
        queue.waiting.push_back(make(attempt));
        let waker = queue.waker.take();
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
        None
    }
}

impl Hub {
    /// The replica of `service` that gets the next delivery: by key where there is one, so that
    /// its order is kept, else in turn.
    fn pick(
        &self,
        service: &str,
        kind: Kind,
        pattern: &str,
        key: Option<&str>,
    ) -> Option<Arc<Member>> {
        let services = lock(&self.services);
        let members = services.get(service)?;
        let count = members
            .iter()
            .filter(|member| member.handles(kind, pattern))
            .count();
        let turn = match key {
            _ if count == 0 => return None,
            Some(key) => {
                let mut hasher = DefaultHasher::new();
                key.hash(&mut hasher);
                usize::try_from(hasher.finish() % count as u64).unwrap_or_default()
            }
            None => self.turn.fetch_add(1, Ordering::Relaxed) % count,
        };
        members
            .iter()
            .filter(|member| member.handles(kind, pattern))
            .nth(turn)
            .cloned()
    }

    fn services_for(&self, kind: Kind, pattern: &str) -> Vec<Arc<str>> {
        let services = lock(&self.services);
        let handles = |members: &Vec<Arc<Member>>| members.iter().any(|m| m.handles(kind, pattern));
        services
            .iter()
            .filter(|(_, m)| handles(m))
            .map(|(name, _)| Arc::clone(name))
            .collect()
    }

    /// Queues `first` for one replica of `service`, waiting for room until its deadline.
    async fn deliver(self: &Arc<Self>, service: &Arc<str>, first: Attempt) -> Result<(), Error> {
        let deadline = first.envelope.deadline;
        let deadline = deadline.unwrap_or_else(|| Instant::now() + PATIENCE);
        let mut left = first;
        loop {
            let member = self.pick_for(service, &left)?;
            // Before it is asked, so that no room becomes free unheard.
            let room = member.room.notified();
            match self.push(&member, QUEUE, service, left) {
                None => return Ok(()),
                Some(back) => left = back,
            }
            // One that has just stopped is no longer in the table: another may have room.
            if lock(&member.queue).stopped {
                continue;
            }
            let full = |_| Error::new(ErrorKind::Full, format!("the queue of {service} is full"));
            tokio::time::timeout_at(deadline, room)
                .await
                .map_err(full)?;
        }
    }

    /// The same without waiting: what there is no room for comes back.
    fn try_deliver(
        self: &Arc<Self>,
        service: &Arc<str>,
        first: Attempt,
    ) -> Result<Option<Attempt>, Error> {
        let member = self.pick_for(service, &first)?;
        Ok(self.push(&member, QUEUE, service, first))
    }

    fn pick_for(&self, service: &str, attempt: &Attempt) -> Result<Arc<Member>, Error> {
        let Envelope {
            pattern, headers, ..
        } = &attempt.envelope;
        self.pick(service, attempt.kind(), pattern, headers.get(header::KEY))
            .ok_or_else(|| absent(pattern))
    }

    fn push(
        self: &Arc<Self>,
        member: &Member,
        limit: usize,
        service: &Arc<str>,
        attempt: Attempt,
    ) -> Option<Attempt> {
        let make = |attempt: Attempt| attempt.into_delivery(Arc::clone(self), Arc::clone(service));
        member.try_push(limit, attempt, make)
    }

    /// Gives a delivery to another replica, or to the same one again.
    fn redeliver(self: &Arc<Self>, service: &Arc<str>, again: Attempt) {
        let mut left = again;
        while let Ok(member) = self.pick_for(service, &left) {
            // It was within the bound once, so it is taken back even when newer ones fill the queue.
            match self.push(&member, usize::MAX, service, left) {
                None => return,
                Some(back) => left = back,
            }
        }
        let pattern = &left.envelope.pattern;
        match left.call {
            Some(call) => call.complete(Item::Fail(absent(pattern).into())),
            None => {
                tracing::warn!(%pattern, %service, "event lost: nobody is left to handle it")
            }
        }
    }
}

fn absent(pattern: &str) -> Error {
    Error::new(
        ErrorKind::NoResponders,
        format!("nobody handles {pattern:?}"),
    )
}

/// A delivery about to be made, for the first time or again.
struct Attempt {
    envelope: Envelope,
    /// The waiting caller of a message.
    call: Option<Local>,
    /// Whether it may be made again when its consumer dies.
    repeatable: bool,
    number: u32,
}

impl Attempt {
    fn kind(&self) -> Kind {
        if self.call.is_some() {
            Kind::Message
        } else {
            Kind::Event
        }
    }

    fn into_delivery(self, hub: Arc<Hub>, service: Arc<str>) -> Delivery {
        let Self {
            envelope,
            call,
            repeatable,
            number,
        } = self;
        let kind = if call.is_some() {
            Kind::Message
        } else {
            Kind::Event
        };
        let kept = repeatable.then(|| envelope.clone());
        let lane = envelope.headers.get_shared(header::KEY).cloned();
        let responder = MemoryResponder {
            hub,
            service,
            call,
            kept,
            tried: number - 1,
        };
        let mut delivery = Delivery::new(kind, envelope, Box::new(responder));
        delivery.attempt = number;
        delivery.lane = lane;
        delivery
    }
}

struct MemoryResponder {
    hub: Arc<Hub>,
    service: Arc<str>,
    call: Option<Local>,
    /// The envelope, while the delivery may be made again.
    kept: Option<Envelope>,
    /// How many tries have failed.
    tried: u32,
}

impl Responder for MemoryResponder {
    fn poll_ready(&mut self, cx: &mut task::Context<'_>) -> Poll<Result<(), Gone>> {
        match &self.call {
            Some(call) => call.poll_credit(cx),
            None => Poll::Ready(Err(Gone)),
        }
    }

    fn value(&mut self, payload: Bytes) {
        // A stream that has begun is not begun again.
        self.kept = None;
        let Some(call) = &self.call else {
            return;
        };
        match fits(payload.len()) {
            Ok(()) => call.complete(Item::Value(payload)),
            // The end of the call: the next question for room is answered with `Gone`.
            Err(error) => {
                call.complete(Item::Fail(error.into()));
                self.call = None;
            }
        }
    }

    fn poll_cancelled(&mut self, cx: &mut task::Context<'_>) -> Poll<()> {
        match &self.call {
            Some(call) => call.poll_cancelled(cx),
            None => Poll::Pending,
        }
    }

    fn tried(&mut self, attempts: u32) {
        self.tried = self.tried.max(attempts);
    }

    fn settle(self: Box<Self>, outcome: Outcome) {
        let Self {
            hub,
            service,
            call,
            kept,
            tried,
        } = *self;
        let item = match outcome {
            Outcome::Reply(payload) => match fits(payload.len()) {
                Ok(()) => Item::Last(payload),
                Err(error) => Item::Fail(error.into()),
            },
            Outcome::Done => Item::End,
            Outcome::Fail(error) => Item::Fail(error),
            Outcome::Ack => return,
            Outcome::Reject(rejection) => return hub.bury(DeadLetter::new(&*service, *rejection)),
            Outcome::Retry { .. } => match kept {
                Some(envelope) => {
                    let again = Attempt {
                        envelope,
                        call,
                        repeatable: true,
                        number: tried + 1,
                    };
                    return hub.redeliver(&service, again);
                }
                None => Item::Fail(RpcError::unavailable(
                    "the service stopped before it replied",
                )),
            },
        };
        if let Some(call) = call {
            call.complete(item);
        }
    }
}

fn fits(length: usize) -> Result<(), Error> {
    if length > MAX_PAYLOAD {
        Err(Error::too_large(length, MAX_PAYLOAD))
    } else {
        Ok(())
    }
}
