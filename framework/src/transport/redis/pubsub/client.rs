//! The sending side: one connection that publishes and hears the replies.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, timeout},
};

use super::{
    capabilities,
    channels::InUse,
    sender::{Op, Sender},
};
use crate::{
    envelope::Envelope,
    error::RpcError,
    pattern,
    transport::{
        Capabilities, ClientTransport, Control, Error, ErrorKind, Expect, Item, Pending, Replies,
        Task, Wire,
        clock::Clock,
        nest::{Answer, CallIds, read_answer},
        pending::lock,
        redis::{
            ANSWER, Options,
            link::{Link, Message, Push},
        },
    },
};

/// How many messages wait for the writer at most.
const QUEUE: usize = 65_536;
/// How long an event may take.
const PUBLISH: Duration = Duration::from_secs(30);

pub(in crate::transport::redis) struct PubSubClient {
    inner: Arc<Inner>,
    task: Mutex<Option<Task>>,
}

/// What the task, the connection and the handles share.
pub(super) struct Inner {
    pub(super) options: Arc<Options>,
    pub(super) ids: CallIds,
    pending: Arc<Pending>,
    state: Mutex<State>,
    queued: Notify,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Op>,
    /// The calls that nobody has answered or dropped. One that was sent holds its reply channel.
    calls: HashMap<u64, Option<InUse>>,
    closed: bool,
}

impl PubSubClient {
    pub(in crate::transport::redis) async fn open(
        options: Arc<Options>,
    ) -> Result<Arc<Self>, Error> {
        let pending = Pending::new();
        let inner = Arc::new(Inner {
            options: Arc::clone(&options),
            ids: CallIds::new(),
            pending: Arc::clone(&pending),
            state: Mutex::default(),
            queued: Notify::new(),
        });
        let control: Weak<dyn Control> = Arc::<Inner>::downgrade(&inner);
        pending.set_control(control);
        let hearing = Arc::downgrade(&inner);
        let mut link =
            Link::new(options, Clock::new(), ANSWER).listening(Vec::new(), move |push| {
                if let Some(inner) = hearing.upgrade() {
                    inner.hear(push);
                }
            });
        link.open().await?;
        let task = Task::spawn(Sender::new(Arc::clone(&inner), link).run());
        Ok(Arc::new(Self {
            inner,
            task: Mutex::new(Some(task)),
        }))
    }
}

#[async_trait]
impl ClientTransport for PubSubClient {
    fn name(&self) -> &'static str {
        self.inner.options.name
    }

    fn capabilities(&self) -> Capabilities {
        capabilities(&self.inner.options)
    }

    fn wire(&self) -> Wire {
        Wire::Nest
    }

    async fn request(&self, envelope: Envelope, kind: Expect) -> Result<Replies, Error> {
        let inner = &self.inner;
        inner.check(&envelope)?;
        let (call, replies) = inner.pending.register(kind);
        inner.push(Op::Request {
            call,
            route: pattern::route(envelope.pattern.clone()),
            envelope,
            queued: Instant::now(),
        })?;
        Ok(replies)
    }

    async fn publish(&self, envelope: Envelope) -> Result<(), Error> {
        self.inner.check(&envelope)?;
        let (done, outcome) = oneshot::channel();
        self.inner.push(Op::Event {
            route: pattern::route(envelope.pattern.clone()),
            envelope,
            done,
        })?;
        match timeout(PUBLISH, outcome).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(closed()),
            Err(_) => Err(Error::new(
                ErrorKind::Timeout,
                "redis did not take the event in time",
            )),
        }
    }

    async fn close(&self) {
        let mut state = lock(&self.inner.state);
        state.closed = true;
        state.queue.clear();
        state.calls.clear();
        drop(state);
        drop(lock(&self.task).take());
        self.inner.pending.fail_all(&RpcError::from(closed()));
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the client was closed")
}

impl Inner {
    fn check(&self, envelope: &Envelope) -> Result<(), Error> {
        let (length, limit) = (envelope.payload.len(), self.options.max_payload);
        match length > limit {
            true => Err(Error::too_large(length, limit)),
            false => Ok(()),
        }
    }

    fn push(&self, op: Op) -> Result<(), Error> {
        let mut state = lock(&self.state);
        if state.closed {
            return Err(closed());
        }
        if state.queue.len() >= QUEUE {
            return Err(Error::new(ErrorKind::Full, "too much waits for redis"));
        }
        if let Op::Request { call, .. } = op {
            state.calls.insert(call, None);
        }
        state.queue.push_back(op);
        let first = state.queue.len() == 1;
        drop(state);
        if first {
            self.queued.notify_one();
        }
        Ok(())
    }

    /// Moves what waits to the end of `backlog`.
    pub(super) fn take_ops(&self, backlog: &mut VecDeque<Op>) {
        backlog.append(&mut lock(&self.state).queue);
    }

    /// Waits until something has been queued, or the connection is lost.
    pub(super) async fn queued(&self) {
        self.queued.notified().await;
    }

    /// Notes that calls are about to be sent, and what they hold meanwhile; those that nobody waits
    /// for any more are left out.
    pub(super) fn sending(&self, batch: &mut Vec<Op>, hold: impl Fn(&Op) -> Option<InUse>) {
        let mut state = lock(&self.state);
        batch.retain(|op| {
            let Op::Request { call, .. } = op else {
                return true;
            };
            let Some(held) = state.calls.get_mut(call) else {
                return false;
            };
            *held = hold(op);
            true
        });
    }

    pub(super) fn fail(&self, call: u64, error: Error) {
        lock(&self.state).calls.remove(&call);
        self.pending.complete(call, Item::Fail(error.into()));
    }

    /// The connection is lost, and with it every reply that was to come.
    pub(super) fn abandon_sent(&self) {
        let mut state = lock(&self.state);
        let sent: Vec<_> = state
            .calls
            .extract_if(|_, held| held.is_some())
            .map(|(call, _)| call)
            .collect();
        drop(state);
        for call in sent {
            let message = "the connection to redis was lost before the reply";
            let error = Error::new(ErrorKind::Closed, message);
            self.pending.complete(call, Item::Fail(error.into()));
        }
    }

    /// Runs in the task that reads the connection, so that a reply is with its caller at once.
    fn hear(&self, push: Push) {
        match push {
            Push::Message(message) => self.receive(message),
            Push::Lost => self.queued.notify_one(),
        }
    }

    fn receive(&self, message: Message) {
        if is_for_another(&self.ids, &message.payload) {
            return;
        }
        let answer = match read_answer(&Bytes::from(message.payload)) {
            Ok(answer) => answer,
            Err(error) => {
                tracing::debug!(%error, "a reply that is not JSON is ignored");
                return;
            }
        };
        let Answer { id, item } = answer;
        let Some(call) = id.and_then(|id| self.ids.parse(&id)) else {
            return;
        };
        if !matches!(item, Item::Value(_)) {
            lock(&self.state).calls.remove(&call);
        }
        if !self.pending.complete(call, item) {
            tracing::trace!(call, "a reply that nobody waits for");
        }
    }
}

impl Control for Inner {
    /// The wire has no word for it; the call is only forgotten.
    fn cancel(&self, call: u64) {
        lock(&self.state).calls.remove(&call);
    }

    fn credit(&self, _: u64, _: u32) {}
}

/// Whether a reply ends with the id of somebody else's request, as all do that NestJS has written:
/// every client of a pattern gets the replies of all others, and need not read them.
fn is_for_another(ids: &CallIds, payload: &[u8]) -> bool {
    const LENGTH: usize = br#","id":"000000000000000000000"}"#.len();
    let Some((_, end)) = payload.split_last_chunk::<LENGTH>() else {
        return false;
    };
    let (Some(id), true) = (end.strip_prefix(br#","id":"#), end.ends_with(b"\"}")) else {
        return false;
    };
    let id = &id[..id.len() - 1];
    let digits = &id[1..id.len() - 1];
    digits.iter().all(u8::is_ascii_hexdigit) && ids.parse(id).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reply_to_another_client_is_known_by_its_end() {
        let ids = CallIds::new();
        let ours = ids.text(7);
        let theirs = ours.replacen(&ours[..1], if ours.starts_with('0') { "1" } else { "0" }, 1);
        let check = |json: String, expected: bool| {
            assert_eq!(is_for_another(&ids, json.as_bytes()), expected, "{json}");
        };
        check(format!(r#"{{"response":1,"id":"{theirs}"}}"#), true);
        check(format!(r#"{{"response":1,"id":"{ours}"}}"#), false);
        // What ends otherwise has to be read.
        check(format!(r#"{{"id":"{theirs}","response":1}}"#), false);
        check(
            format!(r#"{{"response":{{"a":1,"id":"{theirs}"}}}}"#),
            false,
        );
        check(
            format!(r#"{{"response":1,"id":"{}"}}"#, "\"".repeat(21)),
            false,
        );
        check(r#"{"id":5}"#.to_owned(), false);
        check(String::new(), false);
    }
}
