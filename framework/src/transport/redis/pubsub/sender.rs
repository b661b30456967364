//! The task of a client that publishes, in batches.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytestring::ByteString;
use redis::{Cmd, Pipeline, RedisError, RedisResult, Value};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};

use super::{channels::Channels, client::Inner};
use crate::{
    envelope::Envelope,
    pattern,
    transport::{
        Error, ErrorKind,
        nest::{write_event, write_request},
        redis::{
            MOST_BYTES,
            link::Link,
            sender::{IDLE, refused},
        },
    },
};

/// How many messages one pipeline publishes at most.
const BATCH: usize = 1024;
/// How long a request waits for a connection before it fails.
const PATIENCE: Duration = Duration::from_secs(2);
/// How many reply channels stay subscribed to without a call.
const IDLE_CHANNELS: usize = 256;

/// What a client has to say.
pub(super) enum Op {
    Request {
        call: u64,
        route: ByteString,
        envelope: Envelope,
        queued: Instant,
    },
    Event {
        route: ByteString,
        envelope: Envelope,
        done: oneshot::Sender<Result<(), Error>>,
    },
}

/// The task's state.
pub(super) struct Sender {
    inner: Arc<Inner>,
    link: Link,
    channels: Channels,
    /// Taken from the queue and not yet written.
    backlog: VecDeque<Op>,
    packet: Vec<u8>,
}

impl Sender {
    pub(super) fn new(inner: Arc<Inner>, link: Link) -> Self {
        Self {
            inner,
            link,
            channels: Channels::new(IDLE_CHANNELS),
            backlog: VecDeque::new(),
            packet: Vec::new(),
        }
    }

    pub(super) async fn run(mut self) {
        loop {
            // A new connection has no subscriptions, so those of the lost one are forgotten first.
            let is_up = self.link.is_up();
            if !is_up {
                self.channels.clear();
                self.inner.abandon_sent();
            }
            self.inner.take_ops(&mut self.backlog);
            if self.backlog.is_empty() {
                let idle = timeout(IDLE, self.inner.queued()).await.is_err();
                // Only a connection that was found lost above, and its subscriptions forgotten, is
                // made again.
                let kept = match idle {
                    true if is_up => self.link.probe().await,
                    true => self.link.connect().await,
                    false => Ok(()),
                };
                if let Err(error) = kept {
                    self.link.pause(&error).await;
                }
                continue;
            }
            if !is_up && let Err(error) = self.link.connect().await {
                self.give_up_old(&error);
                self.link.pause(&error).await;
                continue;
            }
            let mut batch = self.next_batch();
            match self.publish(&mut batch).await {
                Ok(answers) => {
                    for (op, answer) in batch.into_iter().zip(answers) {
                        self.answered(op, answer);
                    }
                }
                Err(error) => {
                    for op in batch {
                        self.lost(op, &error);
                    }
                    self.link.pause(&error).await;
                }
            }
        }
    }

    /// Takes what fits into one pipeline.
    fn next_batch(&mut self) -> Vec<Op> {
        let mut batch = Vec::with_capacity(self.backlog.len().min(BATCH));
        let mut bytes = 0;
        while batch.len() < BATCH {
            let size = self.backlog.front().map_or(0, Op::size);
            if bytes > 0 && bytes + size > MOST_BYTES {
                break;
            }
            let Some(op) = self.backlog.pop_front() else {
                break;
            };
            bytes += size;
            batch.push(op);
        }
        batch
    }

    /// Publishes on the present connection or not at all: on another one nobody would hear the
    /// replies. What nobody waits for any more is taken out of the batch.
    async fn publish(&mut self, batch: &mut Vec<Op>) -> RedisResult<Vec<Value>> {
        let now = Instant::now();
        batch.retain(|op| op.is_wanted(now));
        let missing = self.channels.missing(batch.iter().filter_map(Op::calls));
        if !missing.is_empty() {
            self.link.subscribe(&missing).await?;
        }
        let channels = &self.channels;
        self.inner.sending(batch, |op| {
            op.calls().and_then(|route| channels.hold(route))
        });
        let idle = self.channels.evict();
        if !idle.is_empty() {
            self.link.unsubscribe(&idle).await?;
        }
        let pipeline = self.pipeline(batch);
        if pipeline.is_empty() {
            return Ok(Vec::new());
        }
        self.link.run_all_here(&pipeline).await
    }

    fn pipeline(&mut self, batch: &[Op]) -> Pipeline {
        let now = Instant::now();
        let mut pipeline = Pipeline::with_capacity(batch.len());
        for op in batch {
            self.packet.clear();
            op.write(&self.inner, &mut self.packet, now);
            let route = op.route();
            let mut publish = Cmd::with_capacity(3, route.len() + self.packet.len() + 64);
            publish.arg("PUBLISH").arg(&**route).arg(&self.packet[..]);
            pipeline.add_command(publish);
        }
        // One large message need not cost memory for ever.
        self.packet.shrink_to(1 << 20);
        pipeline
    }

    /// Redis says how many have heard it.
    fn answered(&self, op: Op, answer: Value) {
        match (op, answer.extract_error()) {
            (Op::Request { call, route, .. }, Ok(Value::Int(0))) => {
                let message = format!("nobody is subscribed to {route}");
                self.inner
                    .fail(call, Error::new(ErrorKind::NoResponders, message));
            }
            (Op::Request { .. }, Ok(_)) => {}
            (Op::Request { call, .. }, Err(error)) => self.inner.fail(call, refused(error)),
            // Whoever dropped the other end does not want to know.
            (Op::Event { done, .. }, Ok(_)) => drop(done.send(Ok(()))),
            (Op::Event { done, .. }, Err(error)) => drop(done.send(Err(refused(error)))),
        }
    }

    /// The connection was lost with `op` on its way: it may or may not have arrived.
    fn lost(&self, op: Op, error: &RedisError) {
        let message = "the connection to redis was lost while the message was sent";
        let lost = Error::new(ErrorKind::Closed, message).with_source(error.clone());
        match op {
            Op::Request { call, .. } => self.inner.fail(call, lost),
            Op::Event { done, .. } => drop(done.send(Err(lost))),
        }
    }

    /// There is no connection: what has waited long enough fails.
    fn give_up_old(&mut self, error: &RedisError) {
        let now = Instant::now();
        let waited = |op: &Op| match op {
            Op::Request { queued, .. } => now.saturating_duration_since(*queued) >= PATIENCE,
            Op::Event { done, .. } => done.is_closed(),
        };
        let (old, young): (VecDeque<_>, _) = self.backlog.drain(..).partition(waited);
        self.backlog = young;
        for op in old {
            if let Op::Request { call, .. } = op {
                let message = format!("connect to {}", self.inner.options.shown);
                let failed = Error::new(ErrorKind::Connect, message);
                self.inner.fail(call, failed.with_source(error.clone()));
            }
        }
    }
}

impl Op {
    fn route(&self) -> &ByteString {
        match self {
            Self::Request { route, .. } | Self::Event { route, .. } => route,
        }
    }

    /// The route that it expects a reply from.
    fn calls(&self) -> Option<&ByteString> {
        match self {
            Self::Request { route, .. } => Some(route),
            Self::Event { .. } => None,
        }
    }

    fn size(&self) -> usize {
        match self {
            Self::Request { envelope, .. } | Self::Event { envelope, .. } => envelope.payload.len(),
        }
    }

    fn is_wanted(&self, now: Instant) -> bool {
        match self {
            Self::Request { envelope, .. } => envelope.deadline.is_none_or(|at| at > now),
            Self::Event { done, .. } => !done.is_closed(),
        }
    }

    fn write(&self, inner: &Inner, out: &mut Vec<u8>, now: Instant) {
        match self {
            Self::Request { call, envelope, .. } => {
                write_request(out, envelope, &inner.ids.text(*call), Some(now));
            }
            Self::Event { envelope, .. } => {
                write_event(
                    out,
                    &pattern::to_json(&envelope.pattern),
                    envelope,
                    Some(now),
                );
            }
        }
    }
}
