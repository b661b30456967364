//! The task of a client that writes: requests, events and control messages, in batches.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use bytestring::ByteString;
use redis::{Cmd, RedisError, Value};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};

use super::{
    MOST_BYTES,
    client::Inner,
    link::Link,
    wire::{self, Head},
};
use crate::transport::{Error, ErrorKind};

/// How many entries one pipeline writes at most.
const BATCH: usize = 1024;
/// How long a request waits for a connection before it fails.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often a client that has nothing to say looks whether its connection is still there.
pub(super) const IDLE: Duration = Duration::from_secs(5);

/// What a client has to say.
pub(super) enum Op {
    Request {
        call: u64,
        entry: Outgoing,
        queued: Instant,
    },
    Event {
        entry: Outgoing,
        done: oneshot::Sender<Result<(), Error>>,
    },
    Control {
        pattern: ByteString,
        message: wire::Control,
    },
    /// The last one.
    Close(oneshot::Sender<()>),
}

/// An entry on its way to a stream.
pub(super) struct Outgoing {
    pub(super) stream: String,
    pub(super) head: Vec<u8>,
    pub(super) payload: Bytes,
    pub(super) deadline: Option<Instant>,
}

/// The task's state.
pub(super) struct Sender {
    inner: Arc<Inner>,
    link: Link,
    /// Taken from the queue and not yet written.
    backlog: VecDeque<Op>,
}

impl Sender {
    pub(super) fn new(inner: Arc<Inner>, link: Link) -> Self {
        Self {
            inner,
            link,
            backlog: VecDeque::new(),
        }
    }

    pub(super) async fn run(mut self) {
        loop {
            self.inner.take_ops(&mut self.backlog);
            if self.backlog.is_empty() {
                let idle = timeout(IDLE, self.inner.queued()).await.is_err();
                if idle && let Err(error) = self.link.keep_up().await {
                    self.link.pause(&error).await;
                }
                continue;
            }
            if let Err(error) = self.link.connect().await {
                self.give_up_old(&error);
                self.link.pause(&error).await;
                continue;
            }
            let batch = self.next_batch();
            let closing = matches!(batch.last(), Some(Op::Close(_)));
            let mut pipeline = redis::pipe();
            for op in &batch {
                pipeline.add_command(self.command(op));
            }
            match self.link.run_all(&pipeline).await {
                Ok(answers) => {
                    for (op, answer) in batch.into_iter().zip(answers) {
                        self.answered(op, answer);
                    }
                }
                Err(error) => {
                    for op in batch.into_iter().rev() {
                        self.lost(op, &error);
                    }
                    self.link.pause(&error).await;
                }
            }
            if closing {
                return;
            }
        }
    }

    /// Takes what fits into one pipeline, without what nobody waits for any more.
    fn next_batch(&mut self) -> Vec<Op> {
        let cancelled: HashSet<u64> = self.backlog.iter().filter_map(Op::cancels).collect();
        let now = Instant::now();
        let mut batch = Vec::with_capacity(self.backlog.len().min(BATCH));
        let mut bytes = 0;
        while batch.len() < BATCH {
            let size = self.backlog.front().map_or(0, Op::size);
            if bytes > 0 && bytes + size > MOST_BYTES {
                break;
            }
            let Some(mut op) = self.backlog.pop_front() else {
                break;
            };
            match &mut op {
                Op::Request { call, entry, .. } => {
                    if cancelled.contains(call) || entry.deadline.is_some_and(|at| at <= now) {
                        continue;
                    }
                    if let Some(deadline) = entry.deadline {
                        Head::set_remaining(&mut entry.head, (deadline - now).as_millis());
                    }
                }
                Op::Event { done, .. } if done.is_closed() => continue,
                Op::Event { .. } | Op::Control { .. } => {}
                Op::Close(_) => {}
            }
            bytes += size;
            let last = matches!(op, Op::Close(_));
            batch.push(op);
            if last {
                break;
            }
        }
        batch
    }

    fn command(&self, op: &Op) -> Cmd {
        match op {
            Op::Request { entry, .. } | Op::Event { entry, .. } => {
                let size = entry.stream.len() + entry.head.len() + entry.payload.len() + 32;
                let mut add = Cmd::with_capacity(8, size);
                // Where there is no stream, nobody has ever subscribed.
                add.arg("XADD")
                    .arg(&entry.stream)
                    .arg("NOMKSTREAM")
                    .arg("*");
                add.arg(wire::HEAD)
                    .arg(&entry.head[..])
                    .arg(wire::PAYLOAD)
                    .arg(&entry.payload[..]);
                add
            }
            Op::Control { pattern, message } => {
                let mut publish = redis::cmd("PUBLISH");
                publish
                    .arg(self.inner.control_channel(pattern))
                    .arg(&message.encode());
                publish
            }
            Op::Close(_) => {
                let mut delete = redis::cmd("DEL");
                delete.arg(self.inner.reply_list());
                delete
            }
        }
    }

    fn answered(&self, op: Op, answer: Value) {
        let answer = answer.extract_error();
        match (op, answer) {
            (Op::Request { call, entry, .. }, Ok(Value::Nil)) => {
                let message = format!("nobody has ever subscribed to {}", entry.stream);
                self.inner
                    .fail(call, Error::new(ErrorKind::NoResponders, message));
            }
            (Op::Request { .. }, Ok(_)) => {}
            (Op::Request { call, .. }, Err(error)) => self.inner.fail(call, refused(error)),
            // Whoever dropped the other end does not want to know.
            (Op::Event { done, .. }, Ok(_)) => drop(done.send(Ok(()))),
            (Op::Event { done, .. }, Err(error)) => drop(done.send(Err(refused(error)))),
            (Op::Close(done), _) => drop(done.send(())),
            (Op::Control { .. }, Ok(_)) => {}
            (Op::Control { .. }, Err(error)) => {
                tracing::warn!(%error, "redis refused a control message");
            }
        }
    }

    /// The connection was lost with `op` on its way: it may or may not have arrived.
    fn lost(&mut self, op: Op, error: &RedisError) {
        match op {
            Op::Request { call, .. } => {
                let message = "the connection was lost while the request was sent";
                let error = Error::new(ErrorKind::Closed, message).with_source(error.clone());
                self.inner.fail(call, error);
            }
            // Twice is allowed, not at all is not; whoever waits has a deadline.
            Op::Event { .. } => self.backlog.push_front(op),
            Op::Close(done) => drop(done.send(())),
            Op::Control { .. } => tracing::debug!(%error, "a control message was lost"),
        }
    }

    /// There is no connection: what has waited long enough fails.
    fn give_up_old(&mut self, error: &RedisError) {
        let now = Instant::now();
        let shown = self.inner.shown();
        let waited = |op: &Op| match op {
            Op::Request { queued, .. } => now.saturating_duration_since(*queued) >= PATIENCE,
            Op::Event { done, .. } => done.is_closed(),
            Op::Control { .. } => true,
            Op::Close(_) => false,
        };
        let (old, young): (VecDeque<_>, _) = self.backlog.drain(..).partition(waited);
        self.backlog = young;
        for op in old {
            if let Op::Request { call, .. } = op {
                let failed = Error::new(ErrorKind::Connect, format!("connect to {shown}"));
                self.inner.fail(call, failed.with_source(error.clone()));
            }
        }
    }
}

impl Op {
    fn size(&self) -> usize {
        match self {
            Self::Request { entry, .. } | Self::Event { entry, .. } => {
                entry.head.len() + entry.payload.len()
            }
            Self::Control { .. } | Self::Close(_) => 0,
        }
    }

    /// The call that this cancels.
    fn cancels(&self) -> Option<u64> {
        match self {
            Self::Control {
                message: wire::Control { key, values: 0 },
                ..
            } => Some(key.call),
            _ => None,
        }
    }
}

pub(super) fn refused(error: RedisError) -> Error {
    Error::new(kind_of(&error), "redis refused the message").with_source(error)
}

pub(super) fn kind_of(error: &RedisError) -> ErrorKind {
    match error.code() {
        Some("OOM") => ErrorKind::Full,
        Some("LOADING" | "READONLY" | "MISCONF" | "MASTERDOWN" | "CLUSTERDOWN" | "NOREPLICAS") => {
            ErrorKind::Connect
        }
        Some("NOPERM" | "WRONGTYPE") => ErrorKind::Config,
        Some("NOAUTH" | "WRONGPASS") => ErrorKind::Refused,
        _ if error.is_timeout() => ErrorKind::Timeout,
        _ if error.is_io_error() => ErrorKind::Connect,
        _ => ErrorKind::Protocol,
    }
}
