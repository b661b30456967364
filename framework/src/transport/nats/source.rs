//! A source: one pattern's queue subscription and, for messages, the subscription that brings what
//! callers say about their calls.

use std::{
    collections::VecDeque,
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{self, Poll},
    time::Duration,
};

use async_nats::{Client, Message, Subject, Subscriber};
use bytestring::ByteString;
use futures_util::{FutureExt, StreamExt};
use tokio::{
    sync::Notify,
    task::coop::unconstrained,
    time::{Instant, Sleep, sleep, timeout},
};

use super::{
    super::{Delivery, Item, Kind, Source},
    COMPLAINT_INTERVAL, PATIENCE,
    nest::{self, Target},
    responder::{Acknowledged, NatsResponder, Shared},
    round_trip,
    wire::{self, Speaker},
};
use crate::{
    envelope::{Envelope, header},
    error::RpcError,
    handler::BoxFuture,
};

/// The most messages of one pattern that wait for room in the server; more are refused.
const MOST_WAITING: usize = 16 * 1024;
/// The same in bytes.
const MOST_WAITING_BYTES: usize = 64 << 20;
/// How long the end of a subscription may take.
const DRAIN_LIMIT: Duration = Duration::from_secs(3);
/// How long a subscription that is to end is watched to see how busy it is.
const WATCH: Duration = Duration::from_millis(20);
/// How long a busy subscription may take for its last messages.
const LAST_LIMIT: Duration = Duration::from_millis(500);
/// How many messages more than it had while it was watched.
const LAST_SLACK: u64 = 16;
/// How soon asking is repeated when the connection had no room for it.
const ASK_AGAIN: Duration = Duration::from_millis(10);

/// What a service has for a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Handlers {
    Message,
    Events,
    Both,
}

impl Handlers {
    /// What a native message is. On a pattern of messages it need not be answered, and on one of
    /// events another service may be the one that answers.
    fn kind(self, is_answered: bool) -> Kind {
        match self {
            Self::Message => Kind::Message,
            Self::Events => Kind::Event,
            Self::Both if is_answered => Kind::Message,
            Self::Both => Kind::Event,
        }
    }
}

pub(super) struct NatsSource {
    handlers: Handlers,
    pattern: ByteString,
    wildcard: bool,
    /// Where NestJS's packets go.
    target: Target,
    /// Packets that no handler sees.
    losses: Losses,
    messages: Subscriber,
    /// How many of them came.
    arrived: u64,
    /// How often the connection had been made when they were subscribed to.
    connects: u64,
    control: Option<Subscriber>,
    /// What arrived while the server had no room. Left in the client library, it would be dropped
    /// without a word when there is too much of it.
    waiting: VecDeque<Message>,
    waiting_bytes: usize,
    shared: Arc<Shared>,
    stopping: Option<Stopping>,
    /// Nothing more will arrive.
    ended: bool,
    /// Told when that was not asked for.
    lost: Arc<Notify>,
    closing: Option<BoxFuture<'static, ()>>,
}

/// How a subscription ends without losing what is on its way.
///
/// What arrives after the library has unsubscribed is dropped without a word, so a busy
/// subscription is first given a last message, by number: the broker counts to it as well and goes
/// over to other replicas by itself, and both sides agree on which message was the last.
struct Stopping {
    step: Step,
    arrived_before: u64,
    limit: Instant,
    timer: Pin<Box<Sleep>>,
}

#[derive(Clone, Copy)]
enum Step {
    Watch,
    NameLast,
    Unsubscribe,
    GiveUp,
}

impl Source for NatsSource {
    fn poll_deliveries(
        &mut self,
        cx: &mut task::Context<'_>,
        room: usize,
        batch: &mut Vec<Delivery>,
    ) -> Poll<Option<usize>> {
        // Pending or not, it wakes this task when there is more to do.
        let _unfinished = self.shared.writer.poll_drain(cx);
        self.poll_stopping(cx);
        let mut count = 0;
        loop {
            while count < room {
                let Some(message) = self.next(cx) else { break };
                if let Some(delivery) = self.deliver(message) {
                    batch.push(delivery);
                    count += 1;
                }
            }
            if room == 0 {
                self.keep_arrived(cx);
            }
            self.poll_control(cx);
            // A control message may have made this keep what there is room for.
            if count == room || self.waiting.is_empty() {
                break;
            }
        }
        if count > 0 {
            Poll::Ready(Some(count))
        } else if self.ended && self.waiting.is_empty() {
            Poll::Ready(None)
        } else {
            Poll::Pending
        }
    }

    fn stop(&mut self) {
        if self.stopping.is_none() {
            let timer = Box::pin(sleep(Duration::ZERO));
            let limit = Instant::now() + DRAIN_LIMIT;
            self.stopping = Some(Stopping {
                step: Step::Watch,
                arrived_before: self.arrived,
                limit,
                timer,
            });
        }
    }

    fn poll_close(&mut self, cx: &mut task::Context<'_>) -> Poll<()> {
        let shared = &self.shared;
        let closing = self.closing.get_or_insert_with(|| {
            let shared = Arc::clone(shared);
            Box::pin(async move {
                let flushed = async {
                    poll_fn(|cx| shared.writer.poll_drain(cx)).await;
                    round_trip(&shared.client).await
                };
                match timeout(PATIENCE, flushed).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::warn!(%error, "replies may be lost"),
                    Err(_) => tracing::warn!("replies may be lost: the broker is away"),
                }
            })
        });
        closing.poll_unpin(cx)
    }
}

impl NatsSource {
    pub(super) fn new(
        client: &Client,
        lost: &Arc<Notify>,
        pattern: ByteString,
        handlers: Handlers,
        target: Target,
        (messages, control): (Subscriber, Option<Subscriber>),
    ) -> Self {
        Self {
            handlers,
            wildcard: wire::has_wildcard(&pattern),
            pattern,
            target,
            losses: Losses::default(),
            messages,
            arrived: 0,
            connects: connects(client),
            control,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            shared: Shared::new(client.clone()),
            stopping: None,
            ended: false,
            lost: Arc::clone(lost),
            closing: None,
        }
    }

    /// The next message, first of those that wait.
    fn next(&mut self, cx: &mut task::Context<'_>) -> Option<Message> {
        if let Some(message) = self.waiting.pop_front() {
            self.waiting_bytes -= message.length;
            return Some(message);
        }
        self.arrived(cx)
    }

    fn arrived(&mut self, cx: &mut task::Context<'_>) -> Option<Message> {
        if self.ended {
            return None;
        }
        match self.messages.poll_next_unpin(cx) {
            Poll::Ready(Some(message)) => {
                self.arrived += 1;
                Some(message)
            }
            Poll::Ready(None) => {
                self.ended = true;
                if self.stopping.is_none() {
                    self.lost.notify_one();
                }
                None
            }
            Poll::Pending => None,
        }
    }

    /// Takes over what has arrived, up to the bound; the rest is refused.
    fn keep_arrived(&mut self, cx: &mut task::Context<'_>) {
        while let Some(message) = self.arrived(cx) {
            let bytes = self.waiting_bytes + message.length;
            if self.waiting.len() < MOST_WAITING && bytes <= MOST_WAITING_BYTES {
                self.waiting_bytes = bytes;
                self.waiting.push_back(message);
            } else {
                self.refuse(message);
            }
        }
    }

    fn refuse(&mut self, message: Message) {
        let text = format!("too many requests wait for {}", self.pattern);
        let item = Item::Fail(RpcError::resource_exhausted(text));
        let answer = match (wire::speaker(&message), message.reply) {
            (Speaker::Native, Some(reply)) if self.handlers.kind(true) == Kind::Message => {
                Some(wire::reply(reply, item))
            }
            (Speaker::Foreign, Some(reply)) if !matches!(self.target, Target::Off) => {
                let packet = nest::packet(&message.payload).ok();
                let id = packet.and_then(|packet| packet.id);
                id.map(|id| nest::reply(reply, &id, &item))
            }
            _ => None,
        };
        if !answer.is_some_and(|answer| self.shared.writer.offer(answer)) {
            self.losses.add(&message.subject, "too many of them wait");
        }
    }

    fn deliver(&mut self, message: Message) -> Option<Delivery> {
        match wire::speaker(&message) {
            Speaker::Native => Some(self.deliver_native(message)),
            Speaker::Foreign => self.deliver_packet(message),
            Speaker::Unknown => {
                self.losses.add(&message.subject, "a version nobody knows");
                None
            }
        }
    }

    fn deliver_native(&self, message: Message) -> Delivery {
        let (headers, deadline) = wire::received_headers(&message);
        let envelope = Envelope {
            pattern: self.received_pattern(&message),
            headers,
            payload: message.payload,
            deadline,
        };
        let mut delivery = match self.handlers.kind(message.reply.is_some()) {
            Kind::Message => request(envelope, self.shared.native(message.reply)),
            Kind::Event => event(envelope),
        };
        if self.wildcard {
            delivery.subscription = Some(self.pattern.clone());
        }
        delivery
    }

    fn deliver_packet(&mut self, message: Message) -> Option<Delivery> {
        let route = match &self.target {
            Target::Handler(route) => Some(route.clone()),
            Target::Nobody => None,
            Target::Off => {
                tracing::debug!(subject = %message.subject, "ignored: not of the native wire");
                return None;
            }
        };
        let mut packet = match nest::packet(&message.payload) {
            Ok(packet) => packet,
            Err(error) => {
                self.losses.add(&message.subject, error);
                return None;
            }
        };
        let id = packet.id.take();
        let Some(route) = route else {
            let answer = id.zip(message.reply);
            let answer = answer.map(|(id, reply)| nest::no_handler(reply, &id));
            if !answer.is_some_and(|answer| self.shared.writer.offer(answer)) {
                self.losses.add(&message.subject, "no handler");
            }
            return None;
        };
        let pattern = self.received_pattern(&message);
        let subscription = (route != pattern).then_some(route);
        let envelope = nest::envelope(pattern, &message, packet);
        let mut delivery = match id {
            Some(id) => request(envelope, self.shared.nest(message.reply, id)),
            None => event(envelope),
        };
        delivery.subscription = subscription;
        Some(delivery)
    }

    fn received_pattern(&self, message: &Message) -> ByteString {
        match self.wildcard {
            true => ByteString::from(message.subject.as_str()),
            false => self.pattern.clone(),
        }
    }

    fn poll_control(&mut self, cx: &mut task::Context<'_>) {
        while let Some(control) = &mut self.control {
            let Poll::Ready(message) = control.poll_next_unpin(cx) else {
                return;
            };
            let Some(message) = message else {
                self.control = None;
                return;
            };
            let Some(reply) = message.reply else { continue };
            let key = self.shared.key(&reply);
            match wire::Control::parse(&message.payload) {
                Some(wire::Control::Credit(values)) => self.shared.calls.credit(&key, values),
                Some(wire::Control::Cancel) => {
                    self.shared.calls.cancel(&key);
                    self.forget(cx, &reply);
                }
                None => tracing::debug!(%reply, "a control message nobody understands"),
            }
        }
    }

    /// Takes a cancelled request out of those that wait. It arrived before its cancellation, so it
    /// is here, or handed out already.
    fn forget(&mut self, cx: &mut task::Context<'_>, reply: &Subject) {
        self.keep_arrived(cx);
        let call = wire::call_key(reply);
        let is_cancelled = |message: &Message| {
            message
                .reply
                .as_deref()
                .is_some_and(|other| wire::call_key(other) == call)
        };
        let position = self.waiting.iter().position(is_cancelled);
        if let Some(message) = position.and_then(|position| self.waiting.remove(position)) {
            self.waiting_bytes -= message.length;
        }
    }

    fn poll_stopping(&mut self, cx: &mut task::Context<'_>) {
        let Some(stopping) = &mut self.stopping else {
            return;
        };
        while !self.ended && stopping.timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let (step, next) = match stopping.step {
                Step::Watch => (Step::NameLast, now + WATCH),
                Step::NameLast => {
                    let recently = self.arrived - stopping.arrived_before;
                    let last = self.arrived + recently + LAST_SLACK;
                    // After a reconnect the broker has counted anew.
                    if recently == 0 || connects(&self.shared.client) != self.connects {
                        (Step::Unsubscribe, now)
                    } else if asked(self.messages.unsubscribe_after(last)) {
                        (Step::Unsubscribe, now + LAST_LIMIT)
                    } else {
                        (Step::NameLast, now + ASK_AGAIN)
                    }
                }
                _ if now >= stopping.limit => {
                    tracing::warn!(pattern = %self.pattern, "the subscription did not end in time");
                    self.ended = true;
                    return;
                }
                Step::Unsubscribe if asked(self.messages.drain()) => (Step::GiveUp, stopping.limit),
                Step::Unsubscribe => (Step::Unsubscribe, now + ASK_AGAIN),
                Step::GiveUp => (Step::GiveUp, stopping.limit),
            };
            stopping.step = step;
            stopping.timer.as_mut().reset(next);
        }
    }
}

fn request(envelope: Envelope, responder: NatsResponder) -> Delivery {
    Delivery::new(Kind::Message, envelope, Box::new(responder))
}

fn event(envelope: Envelope) -> Delivery {
    let lane = envelope.headers.get_shared(header::KEY).cloned();
    let mut delivery = Delivery::new(Kind::Event, envelope, Box::new(Acknowledged));
    delivery.lane = lane;
    delivery
}

/// Says that messages are lost, but not more often than anybody reads.
#[derive(Default)]
struct Losses {
    total: u64,
    said: Option<Instant>,
}

impl Losses {
    fn add(&mut self, subject: &str, why: impl fmt::Display) {
        self.total += 1;
        let now = Instant::now();
        let recently = |said| now.duration_since(said) < COMPLAINT_INTERVAL;
        if self.said.is_some_and(recently) {
            tracing::debug!(subject, %why, "dropped");
        } else {
            self.said = Some(now);
            tracing::warn!(subject, %why, so_far = self.total, "dropped");
        }
    }
}

/// Whether the connection took a command at once. If it is closed there is nothing left to ask.
pub(super) fn asked<E>(command: impl Future<Output = Result<(), E>>) -> bool {
    unconstrained(command).now_or_never().is_some()
}

pub(super) fn connects(client: &Client) -> u64 {
    client.statistics().connects.load(Ordering::Relaxed)
}
