//! The sending side with faults: connections that are refused, messages and replies that are late, lost or come twice.
//! It sees every request that a client makes, and notes what may not be.

use std::{
    collections::{BTreeMap, HashMap},
    future::pending,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use async_trait::async_trait;
use nestling::{
    Envelope,
    transport::{
        Capabilities, ClientTransport, Control, Error, ErrorKind, Expect, Item, Memory, Pending,
        Replies, Task,
    },
};
use tokio::time::{Instant, sleep};

use crate::shared::Shared;

/// How often each thing goes wrong, in a thousand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Losses {
    /// There is no connection.
    pub(crate) refused: u32,
    /// A message or reply takes its time.
    pub(crate) late: u32,
    /// A reply never comes.
    pub(crate) lost: u32,
    /// The last item comes twice.
    pub(crate) repeated: u32,
}

/// What no client of this transport may exceed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Most {
    pub(crate) in_flight: usize,
    pub(crate) per_try: Duration,
}

pub(crate) struct Lossy {
    inner: Arc<dyn ClientTransport>,
    shared: Shared,
    losses: Losses,
    most: Most,
    pending: Arc<Pending>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Nobody can be reached.
    down: bool,
    forwarders: HashMap<u64, (String, Task)>,
    /// How often each message was sent.
    requests: BTreeMap<(String, Vec<u8>), u32>,
}

impl Lossy {
    pub(crate) fn new(memory: &Memory, shared: &Shared, losses: Losses, most: Most) -> Arc<Self> {
        let pending = Pending::new();
        Arc::new_cyclic(|lossy: &Weak<Self>| {
            pending.set_control(lossy.clone());
            Self {
                inner: memory.client(),
                shared: shared.clone(),
                losses,
                most,
                pending,
                state: Arc::default(),
            }
        })
    }

    pub(crate) fn set_down(&self, down: bool) {
        self.state.lock().unwrap().down = down;
    }

    /// How many requests were made to `pattern`.
    pub(crate) fn requests(&self, pattern: &str) -> u32 {
        let state = self.state.lock().unwrap();
        let of_pattern = state.requests.iter().filter(|((p, _), _)| p == pattern);
        of_pattern.map(|(_, count)| count).sum()
    }

    /// How often each message of `pattern` was sent at most.
    pub(crate) fn most_tries(&self, pattern: &str) -> u32 {
        let state = self.state.lock().unwrap();
        let of_pattern = state.requests.iter().filter(|((p, _), _)| p == pattern);
        of_pattern.map(|(_, count)| *count).max().unwrap_or(0)
    }

    /// How many calls are remembered, here and by those who forward them.
    pub(crate) fn remembered(&self) -> (usize, usize) {
        let forwarders = self.state.lock().unwrap().forwarders.len();
        (self.pending.len(), forwarders)
    }

    /// What a request may not be, before anything is made of it.
    fn inspect(&self, envelope: &Envelope, expect: Expect) {
        let pattern = &*envelope.pattern;
        let mut state = self.state.lock().unwrap();
        let message = (pattern.to_owned(), envelope.payload.to_vec());
        *state.requests.entry(message).or_default() += 1;
        let in_flight = state.forwarders.values().filter(|(p, _)| p == pattern);
        let in_flight = in_flight.count() + 1;
        drop(state);
        if in_flight > self.most.in_flight {
            self.shared
                .violation(format_args!("{in_flight} calls of {pattern} are in flight"));
        }
        let Some(deadline) = envelope.deadline.filter(|_| expect == Expect::Single) else {
            return;
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            self.shared
                .violation(format_args!("{pattern} is sent when its time is over"));
        }
        // What may not be sent twice has all its time for one try.
        if pattern != "once" && left > self.most.per_try {
            self.shared
                .violation(format_args!("a try of {pattern} has {left:?}"));
        }
    }

    fn late(&self) -> Duration {
        match self.shared.happens(self.losses.late) {
            true => Duration::from_millis(self.shared.pick(1..300)),
            false => Duration::ZERO,
        }
    }
}

#[async_trait]
impl ClientTransport for Lossy {
    fn name(&self) -> &'static str {
        "lossy"
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn request(&self, envelope: Envelope, expect: Expect) -> Result<Replies, Error> {
        self.inspect(&envelope, expect);
        let is_down = self.state.lock().unwrap().down;
        if is_down || self.shared.happens(self.losses.refused) {
            return Err(Error::new(ErrorKind::Connect, "nobody there"));
        }
        let pattern = envelope.pattern.to_string();
        let (id, replies) = self.pending.register(expect);
        let forwarder = Forwarder {
            id,
            inner: Arc::clone(&self.inner),
            pending: Arc::clone(&self.pending),
            state: Arc::clone(&self.state),
            ways: [self.late(), self.late()],
            lost: self.shared.happens(self.losses.lost),
            repeated: self.shared.happens(self.losses.repeated),
        };
        let forwarder = Task::spawn(forwarder.run(envelope, expect));
        let mut state = self.state.lock().unwrap();
        state.forwarders.insert(id, (pattern, forwarder));
        Ok(replies)
    }

    async fn publish(&self, envelope: Envelope) -> Result<(), Error> {
        self.inner.publish(envelope).await
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

impl Control for Lossy {
    fn cancel(&self, call: u64) {
        drop(self.state.lock().unwrap().forwarders.remove(&call));
    }

    /// The streams here are shorter than the first credit.
    fn credit(&self, _: u64, _: u32) {}
}

/// One call on its way there and back.
struct Forwarder {
    id: u64,
    inner: Arc<dyn ClientTransport>,
    pending: Arc<Pending>,
    state: Arc<Mutex<State>>,
    ways: [Duration; 2],
    lost: bool,
    repeated: bool,
}

impl Forwarder {
    async fn run(self, envelope: Envelope, expect: Expect) {
        let [there, back] = self.ways;
        sleep(there).await;
        let mut replies = match self.inner.request(envelope, expect).await {
            Ok(replies) => replies,
            Err(error) => return self.end(Item::Fail(error.into())),
        };
        loop {
            let item = replies.item().await;
            if self.lost {
                return pending().await;
            }
            sleep(back).await;
            match item {
                Item::Value(_) => self.pending.complete(self.id, item),
                item => return self.end(item),
            };
        }
    }

    fn end(&self, item: Item) {
        if self.repeated {
            self.pending.complete(self.id, item.clone());
        }
        self.pending.complete(self.id, item);
        let ended = self.state.lock().unwrap().forwarders.remove(&self.id);
        drop(ended);
    }
}
