//! [`Memory`]: the reference transport, inside one process.

mod dead_letters;

use std::{
    collections::{BTreeMap, VecDeque, hash_map::DefaultHasher},
    fmt,
    hash::{Hash, Hasher},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{self, Poll, Waker},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;
use tokio::{sync::Notify, time::Instant};

use super::{
    Call, Calls, Capabilities, ClientTransport, Control, DeadLetter, Delivery, Error, ErrorKind,
    Expect, Gone, Item, Kind, Order, Outcome, Pending, Replies, Responder, ServerTransport, Source,
    Sources, Subscription, pending::lock,
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
    services: Mutex<BTreeMap<String, Vec<Arc<Member>>>>,
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
        let pending = Pending::new();
        Arc::new_cyclic(|client: &Weak<MemoryClient>| {
            pending.set_control(client.clone());
            MemoryClient {
                hub: Arc::clone(&self.hub),
                pending,
                calls: Calls::new(),
            }
        })
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
        let service = subscription.service.clone();
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
        batch.extend(queue.waiting.drain(..count));
        drop(queue);
        self.member.room.notify_waiters();
        Poll::Ready(Some(count))
    }

    fn stop(&mut self) {
        let service = &self.member.subscription.service;
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

    /// Queues a delivery, which is made only when there is room; `Err` gives its maker back.
    fn try_push<F: FnOnce() -> Delivery>(&self, limit: usize, make: F) -> Result<(), F> {
        let mut queue = lock(&self.queue);
        if queue.stopped || queue.waiting.len() >= limit {
            return Err(make);
        }
        queue.waiting.push_back(make());
        let waker = queue.waker.take();
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
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

    fn services_for(&self, kind: Kind, pattern: &str) -> Vec<String> {
        let services = lock(&self.services);
        let handles = |members: &Vec<Arc<Member>>| members.iter().any(|m| m.handles(kind, pattern));
        services
            .iter()
            .filter(|(_, m)| handles(m))
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Queues `first` for one replica of `service`, waiting for room until its deadline.
    async fn deliver(self: &Arc<Self>, service: &str, first: Attempt) -> Result<(), Error> {
        let full = || Error::new(ErrorKind::Full, format!("the queue of {service} is full"));
        let deadline = first
            .envelope
            .deadline
            .unwrap_or_else(|| Instant::now() + PATIENCE);
        let envelope = first.envelope.clone();
        let key = envelope.headers.get(header::KEY);
        let kind = first.kind();
        let mut make = || first.into_delivery(Arc::clone(self), service.to_owned());
        loop {
            let member = self
                .pick(service, kind, &envelope.pattern, key)
                .ok_or_else(|| absent(&envelope))?;
            let room = member.room.notified();
            match member.try_push(QUEUE, make) {
                Ok(()) => return Ok(()),
                Err(back) => make = back,
            }
            // One that has just stopped is no longer in the table: another may have room.
            if lock(&member.queue).stopped {
                continue;
            }
            tokio::time::timeout_at(deadline, room)
                .await
                .map_err(|_| full())?;
        }
    }

    /// Gives a delivery to another replica, or to the same one again.
    fn redeliver(self: &Arc<Self>, service: &str, again: Attempt) {
        let envelope = again.envelope.clone();
        let key = envelope.headers.get(header::KEY);
        let mut make = Some(again);
        while let Some(member) = self.pick(
            service,
            make.as_ref().map_or(Kind::Event, Attempt::kind),
            &envelope.pattern,
            key,
        ) {
            // It was within the bound once, so it is taken back even when newer ones fill the queue.
            let pushed = member.try_push(usize::MAX, || {
                let attempt = make.take().expect("called once, while it is there");
                attempt.into_delivery(Arc::clone(self), service.to_owned())
            });
            if pushed.is_ok() {
                return;
            }
        }
        match make.and_then(|attempt| attempt.call) {
            Some((pending, call)) => {
                pending.complete(*call.key(), Item::Fail(absent(&envelope).into()));
            }
            None => {
                tracing::warn!(pattern = %envelope.pattern, service, "event lost: nobody is left to handle it")
            }
        }
    }
}

fn absent(envelope: &Envelope) -> Error {
    Error::new(
        ErrorKind::NoResponders,
        format!("nobody handles {:?}", envelope.pattern),
    )
}

type PendingCall = (Arc<Pending>, Call<u64>);

/// A delivery about to be made, for the first time or again.
struct Attempt {
    envelope: Envelope,
    /// The waiting caller of a message.
    call: Option<PendingCall>,
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

    fn into_delivery(self, hub: Arc<Hub>, service: String) -> Delivery {
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
    service: String,
    call: Option<PendingCall>,
    /// The envelope, while the delivery may be made again.
    kept: Option<Envelope>,
    /// How many tries have failed.
    tried: u32,
}

impl Responder for MemoryResponder {
    fn poll_ready(&mut self, cx: &mut task::Context<'_>) -> Poll<Result<(), Gone>> {
        match &self.call {
            Some((_, call)) => call.poll_credit(cx),
            None => Poll::Ready(Err(Gone)),
        }
    }

    fn value(&mut self, payload: Bytes) {
        // A stream that has begun is not begun again.
        self.kept = None;
        let Some((pending, call)) = &self.call else {
            return;
        };
        match fits(payload.len()) {
            Ok(()) => {
                pending.complete(*call.key(), Item::Value(payload));
            }
            // The end of the call: the next question for room is answered with `Gone`.
            Err(error) => {
                pending.complete(*call.key(), Item::Fail(error.into()));
                self.call = None;
            }
        }
    }

    fn poll_cancelled(&mut self, cx: &mut task::Context<'_>) -> Poll<()> {
        match &self.call {
            Some((_, call)) => call.poll_cancelled(cx),
            None => Poll::Pending,
        }
    }

    fn tried(&mut self, attempts: u32) {
        self.tried = attempts;
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
            Outcome::Reject(rejection) => return hub.bury(DeadLetter::new(service, rejection)),
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
        if let Some((pending, call)) = call {
            pending.complete(*call.key(), item);
        }
    }
}

struct MemoryClient {
    hub: Arc<Hub>,
    pending: Arc<Pending>,
    calls: Calls<u64>,
}

impl Control for MemoryClient {
    fn cancel(&self, call: u64) {
        self.calls.cancel(&call);
    }

    fn credit(&self, call: u64, values: u32) {
        self.calls.credit(&call, values);
    }
}

#[async_trait]
impl ClientTransport for MemoryClient {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    async fn request(&self, envelope: Envelope, expect: Expect) -> Result<Replies, Error> {
        fits(envelope.payload.len())?;
        let (id, replies) = self.pending.register(expect);
        let call = (Arc::clone(&self.pending), self.calls.open(id));
        let Some((service, repeatable)) = self.hub.find_message(&envelope.pattern) else {
            return Err(absent(&envelope));
        };
        let first = Attempt {
            envelope,
            call: Some(call),
            repeatable,
            number: 1,
        };
        self.hub.deliver(&service, first).await?;
        Ok(replies)
    }

    async fn publish(&self, envelope: Envelope) -> Result<(), Error> {
        fits(envelope.payload.len())?;
        let services = self.hub.services_for(Kind::Event, &envelope.pattern);
        let deliveries = services.iter().map(|service| {
            let first = Attempt {
                envelope: envelope.clone(),
                call: None,
                repeatable: true,
                number: 1,
            };
            self.hub.deliver(service, first)
        });
        // A service that is full keeps none of the others from its event; one that has just left
        // needs none.
        let failed = join_all(deliveries)
            .await
            .into_iter()
            .filter_map(Result::err)
            .find(|error| error.kind() != ErrorKind::NoResponders);
        failed.map_or(Ok(()), Err)
    }

    async fn close(&self) {
        self.end();
    }
}

impl MemoryClient {
    /// Ends every call, at both ends.
    fn end(&self) {
        self.calls.cancel_all();
        self.pending
            .fail_all(&Error::new(ErrorKind::Closed, "the client was closed").into());
    }
}

impl Drop for MemoryClient {
    fn drop(&mut self) {
        self.end();
    }
}

impl Hub {
    /// The service that answers `pattern`, and whether a crash may run it again.
    fn find_message(&self, pattern: &str) -> Option<(String, bool)> {
        let services = lock(&self.services);
        services.iter().find_map(|(name, members)| {
            let messages = members
                .iter()
                .flat_map(|member| &member.subscription.messages);
            let message = { messages }.find(|message| message.pattern == pattern)?;
            Some((name.clone(), message.idempotent))
        })
    }
}

fn fits(length: usize) -> Result<(), Error> {
    if length > MAX_PAYLOAD {
        Err(Error::too_large(length, MAX_PAYLOAD))
    } else {
        Ok(())
    }
}
