//! The sending side: one connection that writes, in batches, and one that waits for replies.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use bytestring::ByteString;
use redis::Value;
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, timeout, timeout_at},
};

use super::{
    ANSWER, Options,
    link::Link,
    sender::{Op, Outgoing, Sender},
    wire::{self, CallKey, Head, ItemKind, MAX_HEAD, Reply},
};
use crate::{
    envelope::Envelope,
    error::RpcError,
    transport::{
        Capabilities, ClientIdentity, ClientTransport, Control, Error, ErrorKind, Expect, Item,
        Pending, Replies, Task, clock::Clock, pending::lock,
    },
};

/// How many messages wait for the writer at most.
const QUEUE: usize = 65_536;
/// How long an event without a deadline may take.
const PUBLISH: Duration = Duration::from_secs(30);
/// How long a read of the reply list waits, and how many items it takes.
const BLOCK_SECONDS: u32 = 5;
const MOST_ITEMS: u32 = 256;
/// How long the farewell may take.
const CLOSE: Duration = Duration::from_secs(2);

pub(super) struct RedisClient {
    inner: Arc<Inner>,
    tasks: Mutex<Vec<Task>>,
}

/// What the tasks and the handles share.
pub(super) struct Inner {
    options: Arc<Options>,
    /// The random number in the name of the reply list.
    client: u64,
    reply_list: String,
    pending: Arc<Pending>,
    calls: Mutex<HashMap<u64, CallState>>,
    queue: Mutex<Queue>,
    queued: Notify,
}

#[derive(Default)]
struct Queue {
    ops: VecDeque<Op>,
    closed: bool,
}

/// What is known of a call beside who waits for it.
struct CallState {
    pattern: ByteString,
    attempt: u8,
    /// The sequence number that comes next.
    next: u32,
}

impl RedisClient {
    pub(super) async fn open(
        options: Arc<Options>,
        identity: &ClientIdentity,
    ) -> Result<Arc<Self>, Error> {
        let client = fastrand::u64(..);
        let ClientIdentity { service, instance } = identity;
        let reply_list = format!(
            "{}:reply:{service}:{instance}:{client:016x}",
            options.prefix
        );
        let clock = Clock::new();
        let blocked = Duration::from_secs(BLOCK_SECONDS.into());
        let mut writing = Link::new(Arc::clone(&options), Arc::clone(&clock), ANSWER);
        let mut reading = Link::new(Arc::clone(&options), clock, blocked + ANSWER);
        writing.open().await?;
        reading.open().await?;
        let pending = Pending::new();
        let inner = Arc::new(Inner {
            options,
            client,
            reply_list,
            pending: Arc::clone(&pending),
            calls: Mutex::default(),
            queue: Mutex::default(),
            queued: Notify::new(),
        });
        let control: Weak<dyn Control> = Arc::<Inner>::downgrade(&inner);
        pending.set_control(control);
        let sender = Sender::new(Arc::clone(&inner), writing);
        let tasks = vec![
            Task::spawn(sender.run()),
            Task::spawn(receive(Arc::clone(&inner), reading)),
        ];
        Ok(Arc::new(Self {
            inner,
            tasks: Mutex::new(tasks),
        }))
    }
}

#[async_trait]
impl ClientTransport for RedisClient {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.options.capabilities()
    }

    async fn request(&self, envelope: Envelope, kind: Expect) -> Result<Replies, Error> {
        let inner = &self.inner;
        let (call, replies) = inner.pending.register(kind);
        let key = CallKey {
            client: inner.client,
            call,
        };
        let stream = inner.options.message_stream(&envelope.pattern);
        let pattern = envelope.pattern.clone();
        let entry = inner.outgoing(envelope, stream, key, inner.reply_list.as_bytes())?;
        lock(&inner.calls).insert(
            call,
            CallState {
                pattern,
                attempt: 0,
                next: 0,
            },
        );
        if let Err(error) = inner.push(Op::Request {
            call,
            entry,
            queued: Instant::now(),
        }) {
            lock(&inner.calls).remove(&call);
            return Err(error);
        }
        Ok(replies)
    }

    async fn publish(&self, envelope: Envelope) -> Result<(), Error> {
        let stream = self.inner.options.event_stream(&envelope.pattern);
        let mut entry = self
            .inner
            .outgoing(envelope, stream, CallKey::default(), b"")?;
        let deadline = *entry
            .deadline
            .get_or_insert_with(|| Instant::now() + PUBLISH);
        let (done, outcome) = oneshot::channel();
        self.inner.push(Op::Event { entry, done })?;
        match timeout_at(deadline, outcome).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Error::new(ErrorKind::Closed, "the client was closed")),
            Err(_) => Err(Error::new(
                ErrorKind::Timeout,
                "redis did not confirm the event in time",
            )),
        }
    }

    async fn close(&self) {
        let (done, finished) = oneshot::channel();
        if self.inner.push(Op::Close(done)).is_ok() {
            lock(&self.inner.queue).closed = true;
            if timeout(CLOSE, finished).await.is_err() {
                tracing::debug!(
                    list = self.inner.reply_list,
                    "the reply list expires by itself"
                );
            }
        }
        lock(&self.tasks).clear();
        lock(&self.inner.calls).clear();
        let closed = Error::new(ErrorKind::Closed, "the client was closed");
        self.inner.pending.fail_all(&RpcError::from(closed));
    }
}

impl Inner {
    fn outgoing(
        &self,
        envelope: Envelope,
        stream: String,
        key: CallKey,
        reply: &[u8],
    ) -> Result<Outgoing, Error> {
        let limit = self.options.max_payload;
        if envelope.payload.len() > limit {
            return Err(Error::too_large(envelope.payload.len(), limit));
        }
        let head = Head::encode(&envelope, key, reply);
        if head.len() > MAX_HEAD {
            let message = format!("headers of {} bytes are above {MAX_HEAD}", head.len());
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        let Envelope {
            payload, deadline, ..
        } = envelope;
        Ok(Outgoing {
            stream,
            head,
            payload,
            deadline,
        })
    }

    /// Moves what waits to the end of `backlog`.
    pub(super) fn take_ops(&self, backlog: &mut VecDeque<Op>) {
        backlog.append(&mut lock(&self.queue).ops);
    }

    /// Waits until something has been queued.
    pub(super) async fn queued(&self) {
        self.queued.notified().await;
    }

    pub(super) fn shown(&self) -> &str {
        &self.options.shown
    }

    pub(super) fn reply_list(&self) -> &str {
        &self.reply_list
    }

    pub(super) fn control_channel(&self, pattern: &str) -> String {
        self.options.control_channel(pattern)
    }

    fn push(&self, op: Op) -> Result<(), Error> {
        let mut queue = lock(&self.queue);
        if queue.closed {
            return Err(Error::new(ErrorKind::Closed, "the client was closed"));
        }
        if queue.ops.len() >= QUEUE {
            return Err(Error::new(ErrorKind::Full, "too much waits for redis"));
        }
        queue.ops.push_back(op);
        let first = queue.ops.len() == 1;
        drop(queue);
        if first {
            self.queued.notify_one();
        }
        Ok(())
    }

    pub(super) fn fail(&self, call: u64, error: Error) {
        lock(&self.calls).remove(&call);
        self.pending.complete(call, Item::Fail(error.into()));
    }

    /// Hands an item to its caller, unless it is a repetition.
    fn take_in(&self, reply: Reply) {
        let call = reply.call;
        let mut calls = lock(&self.calls);
        let Entry::Occupied(mut entry) = calls.entry(call) else {
            return;
        };
        let state = entry.get_mut();
        let item = match state.accept(&reply) {
            Verdict::Repeated => return,
            Verdict::New => reply.into_item(),
            Verdict::Broken(why) => Item::Fail(RpcError::unavailable(why)),
        };
        if !matches!(item, Item::Value(_)) {
            entry.remove();
        }
        drop(calls);
        self.pending.complete(call, item);
    }

    fn tell(&self, pattern: ByteString, call: u64, values: u32) {
        let message = wire::Control {
            key: CallKey {
                client: self.client,
                call,
            },
            values,
        };
        if let Err(error) = self.push(Op::Control { pattern, message }) {
            tracing::debug!(%error, "a handler is not told about its caller");
        }
    }
}

impl Control for Inner {
    fn cancel(&self, call: u64) {
        let state = lock(&self.calls).remove(&call);
        if let Some(state) = state {
            self.tell(state.pattern, call, 0);
        }
    }

    fn credit(&self, call: u64, values: u32) {
        let pattern = lock(&self.calls)
            .get(&call)
            .map(|state| state.pattern.clone());
        if let Some(pattern) = pattern {
            self.tell(pattern, call, values);
        }
    }
}

#[derive(Debug, PartialEq)]
enum Verdict {
    New,
    Repeated,
    Broken(&'static str),
}

impl CallState {
    fn accept(&mut self, reply: &Reply) -> Verdict {
        if reply.attempt < self.attempt
            || (reply.attempt == self.attempt && reply.sequence < self.next)
        {
            return Verdict::Repeated;
        }
        if reply.attempt > self.attempt {
            if self.next > 0 {
                return Verdict::Broken("the service that was answering has died");
            }
            self.attempt = reply.attempt;
        }
        // An error says more than the gap before it.
        if reply.sequence > self.next && reply.kind != ItemKind::Fail {
            return Verdict::Broken("values were lost on the way");
        }
        self.next = reply.sequence.wrapping_add(1);
        Verdict::New
    }
}

/// The task that waits for replies.
async fn receive(inner: Arc<Inner>, mut link: Link) {
    let mut command = redis::cmd("BLMPOP");
    command
        .arg(BLOCK_SECONDS)
        .arg(1)
        .arg(&inner.reply_list)
        .arg("LEFT");
    command.arg("COUNT").arg(MOST_ITEMS);
    loop {
        match link.run(&command).await {
            Ok(answer) => {
                for reply in replies(answer) {
                    match Reply::decode(reply) {
                        Some(reply) => inner.take_in(reply),
                        None => tracing::warn!("a reply that is not native is dropped"),
                    }
                }
            }
            Err(error) => link.pause(&error).await,
        }
    }
}

/// The items of an answer to `BLMPOP`.
fn replies(answer: Value) -> impl Iterator<Item = Bytes> {
    let items = match answer {
        Value::Array(mut named) => match named.pop() {
            Some(Value::Array(items)) => items,
            _ => Vec::new(),
        },
        _ => Vec::new(),
    };
    items.into_iter().filter_map(|item| match item {
        Value::BulkString(bytes) => Some(Bytes::from(bytes)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(attempt: u8, sequence: u32, kind: ItemKind) -> Reply {
        Reply {
            kind,
            attempt,
            sequence,
            call: 1,
            payload: Bytes::new(),
        }
    }

    fn check(replies: &[(u8, u32, ItemKind)], last: &Verdict) {
        let mut state = CallState {
            pattern: "a.b".into(),
            attempt: 0,
            next: 0,
        };
        let verdicts: Vec<_> = replies
            .iter()
            .map(|&(a, s, k)| state.accept(&reply(a, s, k)))
            .collect();
        let (end, before) = verdicts.split_last().unwrap();
        assert!(
            before.iter().all(|verdict| *verdict == Verdict::New),
            "{verdicts:?}"
        );
        assert_eq!(end, last);
    }

    #[test]
    fn values_come_once_in_order_and_from_one_attempt() {
        use ItemKind::{End, Fail, Last, Value};
        check(&[(1, 0, Last)], &Verdict::New);
        check(&[(1, 0, Value), (1, 1, End)], &Verdict::New);
        check(&[(1, 0, Value), (1, 0, Value)], &Verdict::Repeated);
        check(&[(2, 0, Value), (1, 1, Value)], &Verdict::Repeated);
        check(
            &[(1, 0, Value), (1, 2, Value)],
            &Verdict::Broken("values were lost on the way"),
        );
        check(&[(1, 0, Value), (1, 2, Fail)], &Verdict::New);
        let died = Verdict::Broken("the service that was answering has died");
        check(&[(1, 0, Value), (2, 0, Value)], &died);
        check(&[(3, 0, Value), (3, 1, Value)], &Verdict::New);
    }
}
