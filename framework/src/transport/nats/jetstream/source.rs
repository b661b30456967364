//! A source: one durable consumer, asked for no more than there is room for.

use std::{
    collections::{HashSet, VecDeque},
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{self, Poll},
    time::Duration,
};

use async_nats::{Client, Message, StatusCode, Subject, Subscriber, connection::State};
use bytestring::ByteString;
use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use serde_json::json;
use tokio::{
    sync::Notify,
    time::{Instant, Sleep, sleep, timeout},
};

use super::{
    super::{
        super::{
            Delivery, Error, Kind, Source, Subscription,
            trials::{Trial, Trials},
        },
        PATIENCE, closed, pause, round_trip,
        source::{asked, connects},
        unique_token,
        wire::{self, Speaker},
    },
    API, Consumer, EVENT_SUBJECT, EVENTS, create_streams, dead_letters,
    publish::store_patiently,
    record::{Count, Record},
    settle::{DurableResponder, Settling, Taken},
};
use crate::{envelope::header, handler::BoxFuture};

/// How often it is looked whether the connection is another one.
const TICK: Duration = Duration::from_millis(500);
/// Every so many ticks the broker hears that events are still in work: well within its patience.
const PROGRESS_TICKS: u32 = 6;
/// How long the broker keeps a pull that it has nothing for.
const EXPIRES: Duration = Duration::from_secs(30);
/// Its word that it no longer does may have been lost.
const EXPIRED: Duration = Duration::from_secs(35);
/// Before the broker is asked again that has refused.
const REFUSED: Duration = Duration::from_millis(250);
/// The most events that are here and not handed out: two rounds of the run loop. When half of them are
/// gone the next are asked for. More would be kept from other replicas.
const AHEAD: usize = 128;
/// How long the end of a subscription may take.
const DRAIN_LIMIT: Duration = Duration::from_secs(3);
const ASK_AGAIN: Duration = Duration::from_millis(10);
/// What this version cannot read waits for a replica that can.
const NOT_OURS: Duration = Duration::from_secs(30);

/// The durable sources of a service, one for each pattern of its events.
pub(in super::super) async fn subscribe(
    client: &Client,
    lost: &Arc<Notify>,
    subscription: &Subscription,
) -> Result<Vec<Box<dyn Source>>, Error> {
    create_streams(client).await?;
    let mut sources: Vec<Box<dyn Source>> = Vec::new();
    let trials = Trials::new();
    for event in &subscription.events {
        let consumer = Consumer::new(
            &subscription.service,
            &event.pattern,
            subscription.max_in_flight,
            subscription.temporary,
        );
        consumer.create(client).await?;
        let known = Record::known(client, &consumer.name).await;
        let inbox = wire::reply_prefix(&unique_token());
        let messages = client.subscribe(format!("{inbox}>"));
        let messages = messages.await.map_err(closed)?;
        let unread = Subject::from(format!("{inbox}unread"));
        let service = &subscription.service;
        let settling = Settling::new(client.clone(), service, &consumer.name, unread);
        sources.push(Box::new(DurableSource {
            wildcard: wire::has_wildcard(&event.pattern),
            pattern: event.pattern.clone(),
            most: subscription.max_in_flight.max(1),
            consumer,
            inbox,
            messages,
            connects: connects(client),
            settling,
            arrived: VecDeque::new(),
            looking: None,
            known,
            suspects: VecDeque::new(),
            trying: None,
            trials: trials.clone(),
            pull: Pull::None,
            pulls: 0,
            alarm: Box::pin(sleep(Duration::ZERO)),
            tick: Box::pin(sleep(TICK)),
            ticks: 0,
            mending: None,
            burying: FuturesUnordered::new(),
            stopping: None,
            ended: false,
            lost: Arc::clone(lost),
            closing: None,
        }));
    }
    round_trip(client).await?;
    Ok(sources)
}

struct DurableSource {
    pattern: ByteString,
    wildcard: bool,
    consumer: Consumer,
    /// The start of the subjects that the broker answers on.
    inbox: String,
    messages: Subscriber,
    /// How often the connection had been made at the last look.
    connects: u64,
    settling: Arc<Settling>,
    /// What was asked for and has not been handed out.
    arrived: VecDeque<Arrived>,
    /// The first of them, while somebody looks up how often it was tried.
    looking: Option<(Arrived, BoxFuture<'static, Option<Record>>)>,
    /// Of these something was written down before this process began. The broker has been seen to
    /// call the next delivery of one that was given back the first.
    known: HashSet<u64>,
    /// Those that may have ended processes, which wait for their trials.
    suspects: VecDeque<(Arrived, Option<Record>)>,
    /// The first of them, when it is its turn and that has been written down.
    trying: Option<(Arrived, Option<Record>, BoxFuture<'static, Trial>)>,
    trials: Trials,
    /// The most that may be unsettled here.
    most: usize,
    pull: Pull,
    pulls: u64,
    /// When the pull, or a step of stopping, is over.
    alarm: Pin<Box<Sleep>>,
    tick: Pin<Box<Sleep>>,
    ticks: u32,
    /// The consumer is gone and is made again.
    mending: Option<BoxFuture<'static, ()>>,
    /// Events whose dead letters are being stored.
    burying: FuturesUnordered<BoxFuture<'static, Taken>>,
    stopping: Option<Stopping>,
    /// Nothing more will arrive.
    ended: bool,
    lost: Arc<Notify>,
    closing: Option<BoxFuture<'static, ()>>,
}

struct Arrived {
    taken: Taken,
    message: Message,
}

/// What the broker has been asked for.
enum Pull {
    None,
    /// So many events that have not come yet.
    Open(usize),
    /// It does not want to be asked for a while.
    Paused,
}

struct Stopping {
    unsubscribed: bool,
    limit: Instant,
}

impl Source for DurableSource {
    fn poll_deliveries(
        &mut self,
        cx: &mut task::Context<'_>,
        room: usize,
        batch: &mut Vec<Delivery>,
    ) -> Poll<Option<usize>> {
        self.settling.waker.register(cx.waker());
        // Pending or not, it wakes this task when there is more to do.
        let _unfinished = self.settling.writer.poll_drain(cx);
        self.poll_tick(cx);
        self.poll_burying(cx);
        self.poll_arrivals(cx);
        self.poll_stopping(cx);
        let mut count = 0;
        while count < room {
            let Some(delivery) = self.poll_next(cx) else {
                break;
            };
            batch.push(delivery);
            count += 1;
        }
        self.poll_pull(cx, room > 0);
        if count > 0 {
            Poll::Ready(Some(count))
        } else if self.ended && self.is_empty() {
            Poll::Ready(None)
        } else {
            Poll::Pending
        }
    }

    fn stop(&mut self) {
        if self.stopping.is_none() {
            self.stopping = Some(Stopping {
                unsubscribed: false,
                limit: Instant::now() + DRAIN_LIMIT,
            });
            self.mending = None;
            self.alarm.as_mut().reset(Instant::now());
        }
    }

    fn poll_close(&mut self, cx: &mut task::Context<'_>) -> Poll<()> {
        self.settling.waker.register(cx.waker());
        self.poll_tick(cx);
        self.poll_burying(cx);
        // What cannot be stored in time is not acknowledged either, and comes again.
        if !self.burying.is_empty() && !self.is_too_late(cx) {
            return Poll::Pending;
        }
        let (settling, consumer) = (&self.settling, &self.consumer);
        let closing = self.closing.get_or_insert_with(|| {
            let settling = Arc::clone(settling);
            let consumer = consumer.temporary.then(|| consumer.clone());
            Box::pin(close(settling, consumer))
        });
        closing.poll_unpin(cx)
    }
}

async fn close(settling: Arc<Settling>, temporary: Option<Consumer>) {
    let closing = async {
        poll_fn(|cx| settling.writer.poll_drain(cx)).await;
        round_trip(&settling.client).await?;
        match temporary {
            Some(consumer) => consumer.delete(&settling.client).await,
            None => Ok(()),
        }
    };
    match timeout(PATIENCE, closing).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "events may come again"),
        Err(_) => tracing::warn!("events may come again: the broker is away"),
    }
}

impl DurableSource {
    /// Takes over what the broker has sent: never more than was asked for.
    fn poll_arrivals(&mut self, cx: &mut task::Context<'_>) {
        while !self.ended {
            match self.messages.poll_next_unpin(cx) {
                Poll::Ready(Some(message)) => self.receive(message),
                Poll::Ready(None) => {
                    self.ended = true;
                    if self.stopping.is_none() {
                        self.lost.notify_one();
                    }
                }
                Poll::Pending => return,
            }
        }
    }

    fn receive(&mut self, message: Message) {
        if let Some(status) = message.status {
            self.receive_status(status, &message);
            return;
        }
        let reply = message.reply.clone();
        let Some((reply, count)) = reply.and_then(|reply| {
            let count = Count::of(&reply)?;
            Some((reply, count))
        }) else {
            return;
        };
        if let Pull::Open(left) = self.pull {
            self.pull = match left {
                0 | 1 => Pull::None,
                _ => Pull::Open(left - 1),
            };
        }
        let mut taken = self.settling.take(reply, count);
        if wire::speaker(&message) == Speaker::Unknown {
            tracing::warn!(subject = %message.subject, "given back: a version nobody here knows");
            self.settling.give_back(&mut taken, NOT_OURS);
            return;
        }
        self.arrived.push_back(Arrived { taken, message });
    }

    /// The end of a pull, if it is of the one that is open.
    fn receive_status(&mut self, status: StatusCode, message: &Message) {
        let number = message.subject.strip_prefix(&*self.inbox);
        if number.and_then(|number| number.parse().ok()) != Some(self.pulls) {
            return;
        }
        let why = message.description.as_deref().unwrap_or_default();
        match status {
            StatusCode::IDLE_HEARTBEAT => {}
            StatusCode::TIMEOUT | StatusCode::NOT_FOUND => self.pull = Pull::None,
            StatusCode::NO_RESPONDERS => self.mend(),
            StatusCode::REQUEST_TERMINATED if why.contains("Deleted") => self.mend(),
            _ => {
                tracing::debug!(%status, why, consumer = self.consumer.name, "pull refused");
                self.pull = Pull::Paused;
                self.alarm.as_mut().reset(Instant::now() + REFUSED);
            }
        }
    }

    /// Sees to it that there is a consumer. A pull of one that is gone is not answered.
    fn mend(&mut self) {
        self.pull = Pull::None;
        if self.stopping.is_some() || self.mending.is_some() {
            return;
        }
        let (client, consumer) = (self.settling.client.clone(), self.consumer.clone());
        self.mending = Some(Box::pin(async move {
            let (mut attempt, mut is_said) = (1, false);
            loop {
                let made = async {
                    if consumer.find(&client).await?.is_some() {
                        return Ok(());
                    }
                    if !std::mem::replace(&mut is_said, true) {
                        let consumer = &*consumer.name;
                        tracing::error!(consumer, "the broker has lost it; it is made again");
                    }
                    create_streams(&client).await?;
                    consumer.create_again(&client).await
                };
                let Err(error) = made.await else { return };
                tracing::warn!(%error, "no durable events for now");
                attempt += 1;
                sleep(pause(attempt)).await;
            }
        }));
    }

    /// Asks for as many events as there is room for, one pull after the other, and before the last of
    /// those that are here are handed out: else everybody would wait for the broker.
    fn poll_pull(&mut self, cx: &mut task::Context<'_>, has_room: bool) {
        if self.stopping.is_some() || self.ended {
            return;
        }
        if !matches!(self.pull, Pull::None) && self.alarm.as_mut().poll(cx).is_ready() {
            match self.pull {
                // The broker should have said long ago that it is over.
                Pull::Open(_) => self.mend(),
                _ => self.pull = Pull::None,
            }
        }
        if let Some(mending) = &mut self.mending {
            if mending.poll_unpin(cx).is_pending() {
                return;
            }
            self.mending = None;
        }
        let here = self.settling.unsettled();
        let ahead = AHEAD.saturating_sub(self.arrived.len());
        let room = self.most.saturating_sub(here).min(ahead);
        let is_due = has_room && room > 0 && ahead >= AHEAD / 2;
        if !is_due || !matches!(self.pull, Pull::None) {
            return;
        }
        if self.settling.client.connection_state() != State::Connected {
            // The next tick looks again.
            return;
        }
        self.pulls += 1;
        let next = format!("{API}CONSUMER.MSG.NEXT.{EVENTS}.{}", self.consumer.name);
        let pull = json!({"batch": room, "expires": super::nanos(EXPIRES)});
        self.settling
            .writer
            .send(async_nats::message::OutboundMessage {
                subject: next.into(),
                reply: Some(format!("{}{}", self.inbox, self.pulls).into()),
                payload: pull.to_string().into(),
                headers: None,
            });
        self.pull = Pull::Open(room);
        self.alarm.as_mut().reset(Instant::now() + EXPIRED);
        if self.alarm.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
    }

    /// Whether nothing is here that was not handed out.
    fn is_empty(&self) -> bool {
        self.arrived.is_empty()
            && self.looking.is_none()
            && self.suspects.is_empty()
            && self.trying.is_none()
    }

    /// The next event. One that was delivered before is looked up first.
    fn poll_next(&mut self, cx: &mut task::Context<'_>) -> Option<Delivery> {
        if let Some(tried) = self.poll_trial(cx) {
            return Some(tried);
        }
        loop {
            if self.looking.is_none() {
                let arrived = self.arrived.pop_front()?;
                let Count {
                    sequence,
                    delivered,
                } = arrived.taken.count;
                if delivered <= 1 && !self.known.remove(&sequence) {
                    return Some(self.deliver(arrived, None, None));
                }
                let client = self.settling.client.clone();
                let (count, consumer) = (arrived.taken.count, self.consumer.name.clone());
                let looking =
                    Box::pin(async move { Record::find(&client, count, &consumer).await });
                self.looking = Some((arrived, looking));
            }
            let (_, looking) = self.looking.as_mut()?;
            let Poll::Ready(record) = looking.poll_unpin(cx) else {
                return None;
            };
            let (arrived, _) = self.looking.take()?;
            if !Record::is_suspect(record, arrived.taken.count) {
                return Some(self.deliver(arrived, record, None));
            }
            self.suspects.push_back((arrived, record));
            if let Some(tried) = self.poll_trial(cx) {
                return Some(tried);
            }
        }
    }

    /// The next suspect, when it may be tried.
    fn poll_trial(&mut self, cx: &mut task::Context<'_>) -> Option<Delivery> {
        if self.trying.is_none() {
            let (arrived, record) = self.suspects.pop_front()?;
            let (settling, trials) = (Arc::clone(&self.settling), self.trials.clone());
            let count = arrived.taken.count;
            let noted = Record::of_trial(record, count);
            let trying = Box::pin(async move {
                let trial = trials.next().await;
                let message = noted.message(count, &settling.consumer);
                store_patiently(&settling.client, &message, "note a trial").await;
                trial
            });
            self.trying = Some((arrived, record, trying));
        }
        let (.., trying) = self.trying.as_mut()?;
        let Poll::Ready(trial) = trying.poll_unpin(cx) else {
            return None;
        };
        let (arrived, record, _) = self.trying.take()?;
        Some(self.deliver(arrived, record, Some(trial)))
    }

    fn deliver(&self, arrived: Arrived, record: Option<Record>, trial: Option<Trial>) -> Delivery {
        let Arrived { mut taken, message } = arrived;
        taken.tries = Record::tries(record);
        taken.recorded = match trial {
            Some(_) => Some(Record::of_trial(record, taken.count)),
            None => record,
        };
        let attempt = taken.tries.saturating_add(1);
        let pattern = match self.wildcard {
            true => {
                let subject = message.subject.as_str();
                ByteString::from(subject.strip_prefix(EVENT_SUBJECT).unwrap_or(subject))
            }
            false => self.pattern.clone(),
        };
        let envelope = dead_letters::envelope(message, pattern);
        let lane = envelope.headers.get_shared(header::KEY).cloned();
        let settling = Arc::clone(&self.settling);
        let responder = DurableResponder {
            settling,
            taken,
            trial,
        };
        let mut delivery = Delivery::new(Kind::Event, envelope, Box::new(responder));
        delivery.attempt = attempt;
        delivery.lane = lane;
        delivery.subscription = self.wildcard.then(|| self.pattern.clone());
        delivery
    }

    fn poll_tick(&mut self, cx: &mut task::Context<'_>) {
        while self.tick.as_mut().poll(cx).is_ready() {
            self.tick.as_mut().reset(Instant::now() + TICK);
            let client = &self.settling.client;
            if client.connection_state() != State::Connected {
                continue;
            }
            let connects = connects(client);
            if connects != self.connects {
                // The broker has forgotten what it was asked for, and perhaps all else.
                self.connects = connects;
                self.mend();
            }
            self.ticks += 1;
            if self.ticks >= PROGRESS_TICKS {
                self.ticks = 0;
                self.settling.progress();
            }
        }
    }

    /// Stores the dead letters of what was rejected, side by side, and then acknowledges.
    fn poll_burying(&mut self, cx: &mut task::Context<'_>) {
        for (taken, rejection) in self.settling.take_rejected() {
            let settling = Arc::clone(&self.settling);
            self.burying.push(Box::pin(async move {
                let Settling {
                    client,
                    service,
                    consumer,
                    ..
                } = &*settling;
                dead_letters::bury(client, service, consumer, taken.count, rejection).await;
                taken
            }));
        }
        while let Poll::Ready(Some(taken)) = self.burying.poll_next_unpin(cx) {
            self.settling.bury(&taken);
        }
    }

    fn poll_stopping(&mut self, cx: &mut task::Context<'_>) {
        let Some(stopping) = &mut self.stopping else {
            return;
        };
        while !self.ended && self.alarm.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if now >= stopping.limit {
                tracing::warn!(pattern = %self.pattern, "the subscription did not end in time");
                self.ended = true;
                break;
            }
            stopping.unsubscribed |= asked(self.messages.drain());
            let next = match stopping.unsubscribed {
                true => stopping.limit,
                false => now + ASK_AGAIN,
            };
            self.alarm.as_mut().reset(next);
        }
        // What nobody has tried goes back. The rest is handled here: giving it back would need its
        // tries to be looked up as well.
        let settling = &self.settling;
        let known = &self.known;
        self.arrived.retain_mut(|Arrived { taken, .. }| {
            let fresh = taken.count.delivered <= 1 && !known.contains(&taken.count.sequence);
            if fresh {
                settling.give_back(taken, Duration::ZERO);
            }
            !fresh
        });
        let trying = self.trying.take();
        let trying = trying.map(|(arrived, record, _)| (arrived, record));
        for (mut arrived, record) in trying.into_iter().chain(self.suspects.drain(..)) {
            settling.give_back_suspect(&mut arrived.taken, record);
        }
    }

    /// Whether closing has waited long enough for dead letters.
    fn is_too_late(&mut self, cx: &mut task::Context<'_>) -> bool {
        if !matches!(self.pull, Pull::Paused) {
            // There are no pulls any more; the alarm is free.
            self.pull = Pull::Paused;
            self.alarm.as_mut().reset(Instant::now() + PATIENCE);
        }
        self.alarm.as_mut().poll(cx).is_ready()
    }
}

impl Drop for DurableSource {
    /// A server that is torn down rather than drained gives back what it has not started.
    fn drop(&mut self) {
        let looking = self.looking.take().map(|(arrived, _)| arrived);
        let arrived = std::mem::take(&mut self.arrived);
        for Arrived { mut taken, .. } in looking.into_iter().chain(arrived) {
            self.settling.give_back_untried(&mut taken);
        }
        let trying = self.trying.take();
        let trying = trying.map(|(arrived, record, _)| (arrived, record));
        for (mut arrived, record) in trying.into_iter().chain(self.suspects.drain(..)) {
            self.settling.give_back_suspect(&mut arrived.taken, record);
        }
    }
}
