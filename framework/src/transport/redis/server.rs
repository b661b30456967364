//! The receiving side: one read after another over all streams, polled by the server's own task.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering},
    },
    task::{self, Poll},
    time::Duration,
};

use async_trait::async_trait;
use bytestring::ByteString;
use futures_util::{stream, task::AtomicWaker};
use tokio::time::{Instant, Sleep, sleep};

use super::{
    ANSWER, Hears, MOST_BYTES, Options, dead_letters,
    link::{Link, Push},
    lot::{Held, Lot, Lots},
    pubsub::{self, PubSubSource},
    reader::{Got, Reader, attempt_of},
    responder::{Acknowledgement, Answer},
    wire::{CallKey, Control, Head},
    writer::{Op, Ops, Writer},
};
use crate::{
    envelope::{Envelope, header},
    handler::BoxFuture,
    transport::{
        Calls, Capabilities, Delivery, Error, Kind, ServerTransport, Source, Sources, Subscription,
        clock::Clock, pending::lock, trials::Trials,
    },
};

/// How long a blocked read may take to end when the server drains, and how long the last
/// acknowledgements may take.
const LAST_READ: Duration = Duration::from_secs(3);
const LAST_WRITES: Duration = Duration::from_secs(5);

pub(super) struct RedisServer {
    options: Arc<Options>,
    hears: Hears,
}

impl RedisServer {
    pub(super) fn new(options: Arc<Options>, hears: Hears) -> Self {
        Self { options, hears }
    }
}

#[async_trait]
impl ServerTransport for RedisServer {
    fn name(&self) -> &'static str {
        self.options.name
    }

    fn capabilities(&self) -> Capabilities {
        match self.hears {
            Hears::Channels => pubsub::capabilities(&self.options),
            Hears::Streams | Hears::Both => self.options.capabilities(),
        }
    }

    async fn subscribe(&self, subscription: Subscription) -> Result<Sources, Error> {
        let mut sources: Vec<Box<dyn Source>> = Vec::new();
        if self.hears != Hears::Channels {
            self.read_streams(&subscription, &mut sources).await?;
        }
        if self.hears != Hears::Streams {
            let source = PubSubSource::open(&self.options, &subscription).await?;
            sources.extend(source.map(|source| Box::new(source) as Box<dyn Source>));
        }
        Ok(Box::pin(stream::iter(sources)))
    }
}

impl RedisServer {
    async fn read_streams(
        &self,
        subscription: &Subscription,
        sources: &mut Vec<Box<dyn Source>>,
    ) -> Result<(), Error> {
        let options = &self.options;
        let message = |idempotent| {
            let wanted = subscription
                .messages
                .iter()
                .filter(move |m| m.idempotent == idempotent);
            wanted.map(|message| StreamOf {
                key: options.message_stream(&message.pattern),
                messages: Some(message.pattern.clone()),
            })
        };
        let producers: BTreeSet<_> = subscription
            .events
            .iter()
            .map(|event| options.event_stream(&event.pattern))
            .collect();
        let events = producers.into_iter().map(|key| StreamOf {
            key,
            messages: None,
        });
        let kept: Vec<_> = message(true).chain(events).collect();
        let at_most_once: Vec<_> = message(false).collect();

        for (streams, redelivers) in [(kept, true), (at_most_once, false)] {
            if !streams.is_empty() {
                let shared = Shared::new(options, subscription, streams, redelivers);
                sources.push(Box::new(RedisSource::open(shared).await?));
            }
        }
        Ok(())
    }
}

/// A stream that a source reads.
pub(super) struct StreamOf {
    pub(super) key: String,
    /// The pattern of its messages; none for a stream of events.
    pub(super) messages: Option<ByteString>,
}

/// What a source, its reader, its writer and its responders have in common.
pub(super) struct Shared {
    pub(super) options: Arc<Options>,
    /// The consumer group.
    pub(super) service: String,
    /// The consumer.
    pub(super) instance: String,
    /// Whether the groups go when this process does.
    pub(super) temporary: bool,
    pub(super) streams: Vec<StreamOf>,
    /// How many entries are taken at once.
    most: usize,
    /// Whether entries stay pending until they are settled.
    pub(super) redelivers: bool,
    pub(super) lots: Lots,
    pub(super) trials: Trials,
    pub(super) clock: Arc<Clock>,
    pub(super) stopping: AtomicBool,
    /// The number of the connection that a read may be blocked on.
    pub(super) reading: AtomicI64,
    /// The weight of events that are on their way to the dead letters.
    pub(super) dying: AtomicUsize,
    events: HashSet<ByteString>,
    calls: Calls<CallKey>,
    ops: Mutex<Ops>,
    waker: AtomicWaker,
}

impl Shared {
    fn new(
        options: &Arc<Options>,
        subscription: &Subscription,
        streams: Vec<StreamOf>,
        redelivers: bool,
    ) -> Arc<Self> {
        Arc::new(Self {
            options: Arc::clone(options),
            service: subscription.service.clone(),
            instance: subscription.instance.clone(),
            temporary: subscription.temporary,
            streams,
            most: subscription.max_in_flight,
            redelivers,
            lots: Lots::default(),
            trials: Trials::new(),
            clock: Clock::new(),
            stopping: AtomicBool::new(false),
            reading: AtomicI64::new(0),
            dying: AtomicUsize::new(0),
            events: subscription
                .events
                .iter()
                .map(|event| event.pattern.clone())
                .collect(),
            calls: Calls::new(),
            ops: Mutex::default(),
            waker: AtomicWaker::new(),
        })
    }

    /// Queues what is to be written. Bounded by what is in work.
    pub(super) fn push(&self, op: Op) {
        self.queue(|ops| ops.list.push(op));
    }

    /// Queues what Redis is to count for an event in work that has been tried.
    pub(super) fn tried(&self, held: &Held, delivered: u32) {
        let entry = (held.stream(), held.id());
        self.queue(|ops| {
            ops.tried.insert(entry, delivered);
        });
    }

    fn queue(&self, add: impl FnOnce(&mut Ops)) {
        let mut ops = lock(&self.ops);
        let first = ops.is_empty();
        add(&mut ops);
        drop(ops);
        if first {
            self.waker.wake();
        }
    }

    /// What the next pipeline carries.
    fn take_ops(&self) -> Ops {
        let mut ops = lock(&self.ops);
        let mut bytes = 0;
        let fits = ops.list.iter().take_while(|op| {
            let fits = bytes == 0 || bytes + op.size() <= MOST_BYTES;
            bytes += op.size();
            fits
        });
        let count = fits.count();
        if count == ops.list.len() {
            return std::mem::take(&mut *ops);
        }
        let list = ops.list.split_off(count);
        let rest = Ops {
            list,
            tried: HashMap::new(),
        };
        std::mem::replace(&mut *ops, rest)
    }

    fn hear(&self, push: &Push) {
        match push {
            // The next tick connects again.
            Push::Lost => {}
            Push::Message(message) => match Control::decode(&message.payload) {
                Some(Control { key, values: 0 }) => self.calls.cancel(&key),
                Some(Control { key, values }) => self.calls.credit(&key, values),
                None => tracing::debug!("a control message that is not native is ignored"),
            },
        }
    }
}

/// Either the thing itself, at rest, or what it is doing.
pub(super) enum Work<T, O> {
    Idle(Option<Box<T>>),
    Busy(BoxFuture<'static, (Box<T>, O)>),
}

struct RedisSource {
    shared: Arc<Shared>,
    read: Work<Reader, Vec<Got>>,
    write: Work<Writer, ()>,
    ready: VecDeque<Delivery>,
    /// When the writer looks after entries in work next.
    tick: Pin<Box<Sleep>>,
    /// When patience with the last read ends, and with the last writes.
    stop: Option<Pin<Box<Sleep>>>,
    close: Option<Pin<Box<Sleep>>>,
    left: bool,
}

impl RedisSource {
    async fn open(shared: Arc<Shared>) -> Result<Self, Error> {
        let link = || {
            Link::new(
                Arc::clone(&shared.options),
                Arc::clone(&shared.clock),
                ANSWER,
            )
        };
        let patterns = shared
            .streams
            .iter()
            .filter_map(|stream| stream.messages.as_ref());
        let channels: Vec<_> = patterns
            .map(|pattern| shared.options.control_channel(pattern))
            .collect();
        let listener = Arc::downgrade(&shared);
        let mut writing = link().listening(channels, move |push| {
            if let Some(shared) = listener.upgrade() {
                shared.hear(&push);
            }
        });
        writing.open().await?;
        let mut reader = Reader::new(Arc::clone(&shared), link());
        reader.open().await?;
        Ok(Self {
            read: Work::Idle(Some(Box::new(reader))),
            write: Work::Idle(Some(Box::new(Writer::new(Arc::clone(&shared), writing)))),
            ready: VecDeque::new(),
            tick: Box::pin(sleep(Writer::tick(&shared.options))),
            stop: None,
            close: None,
            left: false,
            shared,
        })
    }

    fn poll_write(&mut self, cx: &mut task::Context<'_>) {
        self.shared.waker.register(cx.waker());
        loop {
            match &mut self.write {
                Work::Busy(future) => match future.as_mut().poll(cx) {
                    Poll::Ready((writer, ())) => self.write = Work::Idle(Some(writer)),
                    Poll::Pending => return,
                },
                Work::Idle(writer) => {
                    let due = self.tick.as_mut().poll(cx).is_ready();
                    let ops = self.shared.take_ops();
                    if ops.is_empty() && !due {
                        return;
                    }
                    if due {
                        let next = Instant::now() + Writer::tick(&self.shared.options);
                        self.tick.as_mut().reset(next);
                    }
                    let Some(mut writer) = writer.take() else {
                        return;
                    };
                    self.write = Work::Busy(Box::pin(async move {
                        writer.write(ops, due).await;
                        (writer, ())
                    }));
                }
            }
        }
    }

    fn poll_read(&mut self, cx: &mut task::Context<'_>, room: usize) {
        loop {
            match &mut self.read {
                Work::Busy(future) => match future.as_mut().poll(cx) {
                    Poll::Ready((reader, got)) => {
                        self.read = Work::Idle(Some(reader));
                        self.accept(got);
                    }
                    Poll::Pending => return,
                },
                Work::Idle(reader) => {
                    let room = room.min(self.shared.most).saturating_sub(self.ready.len());
                    let full = dead_letters::too_many(&self.shared);
                    if room == 0 || full || self.stop.is_some() {
                        return;
                    }
                    let Some(mut reader) = reader.take() else {
                        return;
                    };
                    self.read = Work::Busy(Box::pin(async move {
                        let got = reader.next(room).await;
                        (reader, got)
                    }));
                }
            }
        }
    }

    fn accept(&mut self, got: Vec<Got>) {
        if got.is_empty() {
            return;
        }
        let lot = Lot::new(got.iter().map(|got| (got.stream, got.id)));
        if self.shared.redelivers {
            self.shared.lots.add(&lot);
        }
        let now = Instant::now();
        for (index, got) in got.into_iter().enumerate() {
            let held = Held::new(&lot, index);
            match self.delivery(got, held, now) {
                Ok(delivery) => self.ready.push_back(delivery),
                Err(held) => self.shared.push(Op::Settle(held)),
            }
        }
    }

    /// What is handed out for an entry; an entry that nobody here wants is given back in `Err`, to
    /// be acknowledged.
    fn delivery(&self, got: Got, held: Held, now: Instant) -> Result<Delivery, Held> {
        let shared = Arc::clone(&self.shared);
        let stream = &self.shared.streams[got.stream];
        // Everything in these streams is native: NestJS applications use Pub/Sub.
        let Some((head, payload)) = got
            .fields
            .and_then(|(head, payload)| Some((Head::decode(head)?, payload)))
        else {
            tracing::warn!(stream = stream.key, id = %got.id, "an entry that is not native is dropped");
            return Err(held);
        };
        let mut envelope = Envelope {
            pattern: head.pattern,
            headers: head.headers,
            payload,
            deadline: None,
        };
        let Some(pattern) = &stream.messages else {
            if !self.shared.events.contains(&envelope.pattern) {
                return Err(held);
            }
            let lane = envelope.headers.get_shared(header::KEY).cloned();
            let (delivered, trial) = (got.delivered, got.trial);
            let responder = Box::new(Acknowledgement::new(shared, held, delivered, trial));
            let mut delivery = Delivery::new(Kind::Event, envelope, responder);
            delivery.lane = lane;
            delivery.attempt = attempt_of(delivered);
            return Ok(delivery);
        };
        envelope.pattern = pattern.clone();
        if let Some(remaining) = head.remaining {
            let waited = self.shared.clock.since(got.id.millis, now);
            match Duration::from_millis(remaining.into()).checked_sub(waited) {
                Some(left) => envelope.deadline = Some(now + left),
                None => {
                    tracing::debug!(%pattern, id = %got.id, ?waited, "a request whose caller has gone is dropped");
                    return Err(held);
                }
            }
        }
        let responder = Box::new(Answer {
            call: shared.calls.open(head.key),
            to: head.reply,
            attempt: u8::try_from(got.delivered).unwrap_or(u8::MAX),
            sequence: 0,
            held,
            redelivers: shared.redelivers,
            broken: false,
            shared,
        });
        let mut delivery = Delivery::new(Kind::Message, envelope, responder);
        delivery.attempt = got.delivered;
        Ok(delivery)
    }
}

impl Source for RedisSource {
    fn poll_deliveries(
        &mut self,
        cx: &mut task::Context<'_>,
        room: usize,
        batch: &mut Vec<Delivery>,
    ) -> Poll<Option<usize>> {
        self.poll_write(cx);
        self.poll_read(cx, room);
        if let Some(patience) = &mut self.stop {
            if matches!(self.read, Work::Busy(_)) && patience.as_mut().poll(cx).is_ready() {
                tracing::warn!("a read did not end in time; what it brings is not handled here");
                self.read = Work::Idle(None);
            }
            if self.shared.redelivers {
                // Unsettled, each goes back to the group.
                self.ready.clear();
            }
            if self.ready.is_empty() && matches!(self.read, Work::Idle(_)) {
                return Poll::Ready(None);
            }
        }
        let count = room.min(self.ready.len());
        if count == 0 {
            return Poll::Pending;
        }
        batch.extend(self.ready.drain(..count));
        // The next read is under way while these are handled.
        self.poll_read(cx, room - count);
        Poll::Ready(Some(count))
    }

    fn stop(&mut self) {
        if self.stop.is_some() {
            return;
        }
        self.stop = Some(Box::pin(sleep(LAST_READ)));
        self.shared.stopping.store(true, Ordering::Release);
        if let Work::Busy(_) = self.read {
            self.shared
                .push(Op::Unblock(self.shared.reading.load(Ordering::Acquire)));
        }
    }

    fn poll_close(&mut self, cx: &mut task::Context<'_>) -> Poll<()> {
        let close = self
            .close
            .get_or_insert_with(|| Box::pin(sleep(LAST_WRITES)));
        if close.as_mut().poll(cx).is_ready() {
            tracing::warn!("the last acknowledgements could not be written in time");
            return Poll::Ready(());
        }
        loop {
            self.poll_write(cx);
            let Work::Idle(writer) = &mut self.write else {
                return Poll::Pending;
            };
            if self.left {
                return Poll::Ready(());
            }
            self.left = true;
            let Some(mut writer) = writer.take() else {
                return Poll::Ready(());
            };
            self.write = Work::Busy(Box::pin(async move {
                writer.leave().await;
                (writer, ())
            }));
        }
    }
}
