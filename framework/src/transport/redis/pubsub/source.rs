//! The receiving side: one connection that hears and answers.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{self, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use tokio::{
    sync::Semaphore,
    time::{Instant, Sleep, sleep},
};

use super::{
    inbox::{Inbox, Received, Refused},
    names::{Names, Place},
    outbox::{Outbox, Packet, Reply, Writer},
    responder::{Answer, Heard},
};
use crate::{
    envelope::header,
    error::RpcError,
    transport::{
        Delivery, Error, Item, Kind, Source, Subscription,
        clock::Clock,
        nest,
        redis::{
            ANSWER, Options,
            link::{Link, Push},
            server::Work,
        },
    },
};

/// How often an idle connection is asked whether it is still there.
const TICK: Duration = Duration::from_secs(5);
/// How long the end of the subscriptions may take when the server drains, and the last replies.
const LAST_MESSAGES: Duration = Duration::from_secs(3);
const LAST_WRITES: Duration = Duration::from_secs(5);
/// How many values of streams may wait to be written.
const VALUES: usize = 1024;
/// How often losses are logged.
const REPORT: Duration = Duration::from_secs(1);

/// What the source, its connection and its responders have in common.
pub(super) struct Shared {
    pub(super) options: Arc<Options>,
    /// For the values of streams that wait to be written.
    pub(super) room: Arc<Semaphore>,
    names: Names,
    inbox: Inbox,
    outbox: Outbox,
    /// The connection is lost.
    lost: AtomicBool,
    waker: AtomicWaker,
}

impl Shared {
    /// Queues a reply. Bounded by what is in work, as nothing new is taken when it is much.
    pub(super) fn reply(&self, reply: Reply) {
        if self.outbox.push(reply) {
            self.waker.wake();
        }
    }

    /// Counts an event that nobody will handle.
    pub(super) fn lose(&self) {
        self.inbox.lose();
    }

    fn hear(&self, push: Push) {
        let wake = match push {
            Push::Message(message) => self.inbox.push(message),
            Push::Lost => {
                self.lost.store(true, Ordering::Release);
                true
            }
        };
        if wake {
            self.waker.wake();
        }
    }

    fn refuse(&self, channel: Bytes, id: Bytes, error: RpcError) {
        let item = Item::Fail(error);
        let packet = Packet::End { item, stream: None };
        self.reply(Reply {
            channel,
            id,
            packet,
        });
    }

    /// What is handed out for a message; none for what has been answered, or is for nobody here.
    fn delivery(self: &Arc<Self>, received: Received) -> Option<Delivery> {
        let Received { message, at } = received;
        let place = self.names.place(message.glob.as_deref(), message.channel)?;
        let packet = read(&place, message.payload)?;
        let Place {
            pattern,
            reply,
            route,
            ..
        } = place;
        let Some(route) = route else {
            self.answer_no_handler(reply, packet.id);
            return None;
        };
        let (data, limit) = (packet.data.unwrap_or_default(), self.options.max_payload);
        if data.len() > limit {
            let text = format!(
                "payload of {} bytes is above the limit of {limit}",
                data.len()
            );
            match packet.id {
                Some(id) => self.refuse(reply, id, RpcError::resource_exhausted(text)),
                None => self.lose(),
            }
            return None;
        }
        let subscription = (route != pattern).then_some(route);
        let envelope = nest::envelope(pattern, data, packet.metadata, at);
        let mut delivery = match packet.id {
            Some(id) => {
                let answer = Answer::new(Arc::clone(self), reply, id);
                Delivery::new(Kind::Message, envelope, Box::new(answer))
            }
            None => {
                let lane = envelope.headers.get_shared(header::KEY).cloned();
                let shared = Arc::clone(self);
                let mut delivery = Delivery::new(Kind::Event, envelope, Box::new(Heard { shared }));
                delivery.lane = lane;
                delivery
            }
        };
        delivery.subscription = subscription;
        Some(delivery)
    }

    fn answer_no_handler(&self, channel: Bytes, id: Option<Bytes>) {
        match id {
            Some(id) => self.reply(Reply {
                channel,
                id,
                packet: Packet::NoHandler,
            }),
            None => self.lose(),
        }
    }
}

/// What a message says. Whatever is no packet is an event, and itself its data.
fn read(place: &Place, payload: Vec<u8>) -> Option<nest::Packet> {
    let payload = Bytes::from(payload);
    if place.may_be_answer && nest::is_answer(&payload) {
        tracing::trace!(channel = %place.pattern, "a reply that a glob has brought");
        return None;
    }
    let data = match nest::read_packet(&payload) {
        Ok(nest::Incoming::Packet(packet)) => return Some(packet),
        Ok(nest::Incoming::Foreign(json)) => json,
        Err(error) if error.is_data() => {
            tracing::warn!(channel = %place.pattern, %error, "dropped: a packet that cannot be read");
            return None;
        }
        Err(_) => nest::text(&payload),
    };
    Some(nest::Packet {
        data: Some(data),
        ..nest::Packet::default()
    })
}

pub(in crate::transport::redis) struct PubSubSource {
    shared: Arc<Shared>,
    /// What is being done was the last of hearing, or not.
    write: Work<Writer, bool>,
    taken: Vec<Received>,
    /// When the connection is asked next whether it is there.
    tick: Pin<Box<Sleep>>,
    /// When patience with the end of the subscriptions ends, and with the last writes.
    stop: Option<Pin<Box<Sleep>>>,
    close: Option<Pin<Box<Sleep>>>,
    /// Nothing more will arrive.
    deaf: bool,
    /// Losses that are not logged yet, and when they will be.
    lost: u64,
    report_at: Instant,
}

impl PubSubSource {
    /// Subscribes; `None` where there is nothing to subscribe to.
    pub(in crate::transport::redis) async fn open(
        options: &Arc<Options>,
        subscription: &Subscription,
    ) -> Result<Option<Self>, Error> {
        // A glob is not meant to match what we say about calls on the native wire.
        let names = Names::new(subscription, options.control_channel(""));
        let (channels, globs) = (names.channels(), names.globs());
        if channels.is_empty() && globs.is_empty() {
            return Ok(None);
        }
        let shared = Arc::new(Shared {
            options: Arc::clone(options),
            room: Arc::new(Semaphore::new(VALUES)),
            names,
            inbox: Inbox::new(),
            outbox: Outbox::default(),
            lost: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        });
        let hearing = Arc::downgrade(&shared);
        let mut link = Link::new(Arc::clone(options), Clock::new(), ANSWER)
            .listening(channels, move |push| {
                if let Some(shared) = hearing.upgrade() {
                    shared.hear(push);
                }
            })
            .matching(globs);
        link.open().await?;
        Ok(Some(Self {
            shared,
            write: Work::Idle(Some(Box::new(Writer::new(link)))),
            taken: Vec::new(),
            tick: Box::pin(sleep(TICK)),
            stop: None,
            close: None,
            deaf: false,
            lost: 0,
            report_at: Instant::now(),
        }))
    }

    /// Writes what there is, and connects again when the connection is lost.
    fn poll_write(&mut self, cx: &mut task::Context<'_>) {
        loop {
            match &mut self.write {
                Work::Busy(future) => match future.as_mut().poll(cx) {
                    Poll::Ready((writer, deaf)) => {
                        self.write = Work::Idle(Some(writer));
                        self.deaf |= deaf;
                    }
                    Poll::Pending => return,
                },
                Work::Idle(writer) => {
                    let leave = self.stop.is_some() && !self.deaf;
                    let due = self.tick.as_mut().poll(cx).is_ready();
                    let lost = self.shared.lost.swap(false, Ordering::AcqRel);
                    let replies = self.shared.outbox.take();
                    if replies.is_empty() && !lost && !due && !leave {
                        return;
                    }
                    if due {
                        self.tick.as_mut().reset(Instant::now() + TICK);
                    }
                    let Some(mut writer) = writer.take() else {
                        return;
                    };
                    self.write = Work::Busy(Box::pin(async move {
                        if leave {
                            writer.leave().await;
                        }
                        writer.write(replies, due).await;
                        (writer, leave)
                    }));
                }
            }
        }
    }

    /// Answers the requests that there was no room for.
    fn refuse(&mut self) {
        if self.shared.outbox.is_full() {
            return;
        }
        for Refused { reply, id } in self.shared.inbox.take_refused() {
            let error = RpcError::resource_exhausted("too many requests wait for the service");
            self.shared.refuse(reply, id, error);
        }
    }

    fn report(&mut self) {
        self.lost += self.shared.inbox.take_lost();
        if self.lost == 0 || Instant::now() < self.report_at {
            return;
        }
        self.report_at = Instant::now() + REPORT;
        let count = std::mem::take(&mut self.lost);
        tracing::warn!(
            count,
            "events that came by pub/sub are lost: nobody handles them, or not in time"
        );
    }
}

impl Source for PubSubSource {
    fn poll_deliveries(
        &mut self,
        cx: &mut task::Context<'_>,
        room: usize,
        batch: &mut Vec<Delivery>,
    ) -> Poll<Option<usize>> {
        self.shared.waker.register(cx.waker());
        self.refuse();
        self.report();
        self.poll_write(cx);
        let room = match self.shared.outbox.is_full() {
            true => 0,
            false => room,
        };
        let before = batch.len();
        while batch.len() - before < room {
            self.shared
                .inbox
                .take(room - (batch.len() - before), &mut self.taken);
            if self.taken.is_empty() {
                break;
            }
            let shared = &self.shared;
            let taken = self.taken.drain(..);
            batch.extend(taken.filter_map(|received| shared.delivery(received)));
        }
        if batch.len() > before {
            return Poll::Ready(Some(batch.len() - before));
        }
        if let Some(patience) = &mut self.stop {
            if !self.deaf && patience.as_mut().poll(cx).is_ready() {
                tracing::warn!("the subscriptions did not end in time");
                self.deaf = true;
            }
            if self.deaf && self.shared.inbox.is_empty() {
                return Poll::Ready(None);
            }
        }
        Poll::Pending
    }

    fn stop(&mut self) {
        if self.stop.is_none() {
            self.stop = Some(Box::pin(sleep(LAST_MESSAGES)));
        }
    }

    fn poll_close(&mut self, cx: &mut task::Context<'_>) -> Poll<()> {
        let close = self
            .close
            .get_or_insert_with(|| Box::pin(sleep(LAST_WRITES)));
        let late = close.as_mut().poll(cx).is_ready();
        self.shared.waker.register(cx.waker());
        self.report_at = Instant::now();
        self.refuse();
        self.report();
        self.poll_write(cx);
        match &self.write {
            Work::Busy(_) if late => {
                tracing::warn!("the last replies could not be written in time");
                Poll::Ready(())
            }
            Work::Busy(_) => Poll::Pending,
            Work::Idle(_) => Poll::Ready(()),
        }
    }
}
