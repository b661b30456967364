//! A transport that loses, repeats, delays and reorders what the memory transport delivers.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    future::Future,
    pin::Pin,
    task::{self, Poll},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use nestling::transport::{
    Capabilities, Delivery, Error, Gone, Kind, Memory, Outcome, Responder, ServerTransport, Source,
    Sources, Subscription,
};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::shared::Shared;

/// How often each thing goes wrong, in a thousand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Odds {
    /// The consumer dies with it: it is given back.
    pub(crate) given_back: u32,
    /// An event comes twice.
    pub(crate) repeated: u32,
    /// It is held back for a while, and others overtake it.
    pub(crate) delayed: u32,
    /// Its outcome gets lost: nobody hears of the reply.
    pub(crate) unsettled: u32,
}

/// The memory transport with faults, all from one seed.
pub(crate) struct Faulty {
    pub(crate) memory: Memory,
    pub(crate) odds: Odds,
    pub(crate) shared: Shared,
}

#[async_trait]
impl ServerTransport for Faulty {
    fn name(&self) -> &'static str {
        "faulty"
    }

    fn capabilities(&self) -> Capabilities {
        self.memory.capabilities()
    }

    async fn subscribe(&self, subscription: Subscription) -> Result<Sources, Error> {
        let (odds, shared) = (self.odds, self.shared.clone());
        let sources = self.memory.subscribe(subscription).await?;
        Ok(Box::pin(sources.map(move |source| {
            Box::new(FaultySource {
                source,
                odds,
                shared: shared.clone(),
                arrived: Vec::new(),
                held: BinaryHeap::new(),
                count: 0,
                timer: None,
                stopped: false,
            }) as Box<dyn Source>
        })))
    }
}

struct FaultySource {
    source: Box<dyn Source>,
    odds: Odds,
    shared: Shared,
    arrived: Vec<Delivery>,
    held: BinaryHeap<Reverse<Held>>,
    count: u64,
    timer: Option<Pin<Box<Sleep>>>,
    stopped: bool,
}

struct Held {
    until: Instant,
    number: u64,
    delivery: Delivery,
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Held {}

impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Held {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.until, self.number).cmp(&(other.until, other.number))
    }
}

impl FaultySource {
    /// Decides what becomes of a delivery.
    fn meddle(&mut self, delivery: Delivery) {
        if self.shared.happens(self.odds.given_back) {
            return drop(delivery);
        }
        if delivery.kind == Kind::Event && self.shared.happens(self.odds.repeated) {
            self.hold(copy(&delivery));
        }
        let lost = delivery.kind == Kind::Message && self.shared.happens(self.odds.unsettled);
        let delivery = if lost { unheard(delivery) } else { delivery };
        self.hold(delivery);
    }

    fn hold(&mut self, delivery: Delivery) {
        let delay = match self.shared.happens(self.odds.delayed) {
            true => self.shared.pick(1..400),
            false => 0,
        };
        self.count += 1;
        self.held.push(Reverse(Held {
            until: Instant::now() + Duration::from_millis(delay),
            number: self.count,
            delivery,
        }));
    }
}

impl Source for FaultySource {
    fn poll_deliveries(
        &mut self,
        cx: &mut task::Context<'_>,
        room: usize,
        batch: &mut Vec<Delivery>,
    ) -> Poll<Option<usize>> {
        let mut ended = false;
        loop {
            let mut arrived = std::mem::take(&mut self.arrived);
            let polled = self.source.poll_deliveries(cx, room, &mut arrived);
            for delivery in arrived.drain(..) {
                self.meddle(delivery);
            }
            self.arrived = arrived;
            match polled {
                Poll::Ready(Some(_)) => {}
                Poll::Ready(None) => {
                    ended = true;
                    break;
                }
                Poll::Pending => break,
            }
        }
        let now = Instant::now();
        let mut count = 0;
        while count < room
            && self
                .held
                .peek()
                .is_some_and(|Reverse(held)| held.until <= now || self.stopped)
            && let Some(Reverse(held)) = self.held.pop()
        {
            batch.push(held.delivery);
            count += 1;
        }
        if count > 0 {
            return Poll::Ready(Some(count));
        }
        let Some(Reverse(next)) = self.held.peek() else {
            return if ended {
                Poll::Ready(None)
            } else {
                Poll::Pending
            };
        };
        // Who has no room asks again when there is some; waking it would stop the clock.
        if room == 0 {
            return Poll::Pending;
        }
        let mut timer = Box::pin(sleep_until(next.until));
        if timer.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        self.timer = Some(timer);
        Poll::Pending
    }

    fn stop(&mut self) {
        self.stopped = true;
        self.source.stop();
    }

    fn poll_close(&mut self, cx: &mut task::Context<'_>) -> Poll<()> {
        self.source.poll_close(cx)
    }
}

/// The same event once more, whose outcome nobody waits for.
fn copy(delivery: &Delivery) -> Delivery {
    let mut copy = Delivery::new(Kind::Event, delivery.envelope.clone(), Box::new(Nobody));
    copy.lane.clone_from(&delivery.lane);
    copy.attempt = delivery.attempt;
    copy
}

struct Nobody;

impl Responder for Nobody {
    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> Poll<Result<(), Gone>> {
        Poll::Ready(Err(Gone))
    }

    fn value(&mut self, _: Bytes) {}

    fn poll_cancelled(&mut self, _: &mut task::Context<'_>) -> Poll<()> {
        Poll::Pending
    }

    fn settle(self: Box<Self>, _: Outcome) {}
}

/// The message with a responder that tells nobody what became of it.
fn unheard(delivery: Delivery) -> Delivery {
    let (envelope, attempt) = (delivery.envelope.clone(), delivery.attempt);
    let mut unheard = Delivery::new(Kind::Message, envelope, Box::new(Unheard(delivery)));
    unheard.attempt = attempt;
    unheard
}

struct Unheard(Delivery);

impl Responder for Unheard {
    fn poll_ready(&mut self, cx: &mut task::Context<'_>) -> Poll<Result<(), Gone>> {
        self.0.responder().poll_ready(cx)
    }

    fn value(&mut self, payload: Bytes) {
        self.0.responder().value(payload);
    }

    fn poll_cancelled(&mut self, cx: &mut task::Context<'_>) -> Poll<()> {
        self.0.responder().poll_cancelled(cx)
    }

    fn settle(self: Box<Self>, outcome: Outcome) {
        match outcome {
            // It is as if the connection had been lost with the reply on it.
            Outcome::Reply(_) | Outcome::Done | Outcome::Fail(_) => std::mem::forget(self.0),
            other => self.0.settle(other),
        }
    }
}
