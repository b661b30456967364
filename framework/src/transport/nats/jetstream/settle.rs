//! Acknowledging: what becomes of an event that was delivered.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    task::{self, Poll},
    time::Duration,
};

use async_nats::{Client, Subject, message::OutboundMessage};
use bytes::Bytes;
use futures_util::task::AtomicWaker;

use super::{
    super::{
        super::{Gone, Outcome, Rejection, Responder, pending::lock, trials::Trial},
        writer::Writer,
    },
    record::{self, Count, Record},
};

const ACK: Bytes = Bytes::from_static(b"+ACK");
const NAK: Bytes = Bytes::from_static(b"-NAK");
const PROGRESS: Bytes = Bytes::from_static(b"+WPI");
const TERM: Bytes = Bytes::from_static(b"+TERM");

/// What a source and its responders share.
pub(super) struct Settling {
    pub(super) client: Client,
    pub(super) writer: Writer,
    pub(super) service: String,
    pub(super) consumer: String,
    /// Wakes the source.
    pub(super) waker: AtomicWaker,
    /// Where answers go that nobody reads.
    unread: Subject,
    next: AtomicU64,
    /// Where everything that was delivered is acknowledged.
    unsettled: Mutex<HashMap<u64, Subject>>,
    /// What has to be stored before it can be.
    rejected: Mutex<Vec<(Taken, Rejection)>>,
}

impl Settling {
    pub(super) fn new(client: Client, service: &str, consumer: &str, unread: Subject) -> Arc<Self> {
        Arc::new(Self {
            writer: Writer::new(client.clone()),
            client,
            service: service.to_owned(),
            consumer: consumer.to_owned(),
            waker: AtomicWaker::new(),
            unread,
            next: AtomicU64::new(0),
            unsettled: Mutex::default(),
            rejected: Mutex::default(),
        })
    }

    /// Takes responsibility for a delivery.
    pub(super) fn take(&self, reply: Subject, count: Count) -> Taken {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.unsettled).insert(id, reply);
        Taken {
            id,
            count,
            tries: 0,
            recorded: None,
        }
    }

    pub(super) fn unsettled(&self) -> usize {
        lock(&self.unsettled).len()
    }

    pub(super) fn take_rejected(&self) -> Vec<(Taken, Rejection)> {
        std::mem::take(&mut lock(&self.rejected))
    }

    /// Says that all of it is still in work.
    pub(super) fn progress(&self) {
        let replies: Vec<_> = lock(&self.unsettled).values().cloned().collect();
        for reply in replies {
            self.writer.send(to(reply, PROGRESS));
        }
    }

    /// It is not handled here.
    pub(super) fn give_back(&self, taken: &mut Taken, after: Duration) {
        // Otherwise this delivery would have ended without a word.
        self.record(taken);
        let payload = match after.is_zero() {
            true => NAK,
            false => format!("-NAK {{\"delay\":{}}}", after.as_nanos()).into(),
        };
        self.settle(taken, payload);
    }

    /// The same for one whose trial did not begin, of which this is known.
    pub(super) fn give_back_suspect(&self, taken: &mut Taken, record: Option<Record>) {
        taken.tries = Record::tries(record);
        self.give_back(taken, Duration::ZERO);
    }

    /// The same for one that was never handed out. What is written down of its tries is not known
    /// here if it was delivered before, so then this delivery ends without a word.
    pub(super) fn give_back_untried(&self, taken: &mut Taken) {
        match taken.count.delivered {
            0 | 1 => self.give_back(taken, Duration::ZERO),
            _ => self.settle(taken, NAK),
        }
    }

    fn finish(&self, taken: &Taken, payload: Bytes) {
        self.settle(taken, payload);
        if taken.recorded.is_some() {
            let unread = self.unread.clone();
            let forget = record::forget(taken.count, &self.consumer, unread);
            self.writer.send(forget);
        }
    }

    /// Its dead letter is stored.
    pub(super) fn bury(&self, taken: &Taken) {
        self.finish(taken, TERM);
    }

    fn settle(&self, taken: &Taken, payload: Bytes) {
        let reply = lock(&self.unsettled).remove(&taken.id);
        if let Some(reply) = reply {
            self.writer.send(to(reply, payload));
            self.waker.wake();
        }
    }

    fn record(&self, taken: &mut Taken) {
        let record = Record::new(taken.count, taken.tries);
        if taken.recorded != Some(record) {
            taken.recorded = Some(record);
            let message = record.message(taken.count, &self.consumer);
            self.writer.send(message);
        }
    }
}

fn to(subject: Subject, payload: Bytes) -> OutboundMessage {
    OutboundMessage {
        subject,
        reply: None,
        payload,
        headers: None,
    }
}

/// An event that this replica has and the broker waits for.
#[derive(Debug)]
pub(super) struct Taken {
    id: u64,
    pub(super) count: Count,
    /// How often it was tried in vain.
    pub(super) tries: u32,
    /// What is written down about it.
    pub(super) recorded: Option<Record>,
}

pub(super) struct DurableResponder {
    pub(super) settling: Arc<Settling>,
    pub(super) taken: Taken,
    pub(super) trial: Option<Trial>,
}

impl Responder for DurableResponder {
    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> Poll<Result<(), Gone>> {
        Poll::Ready(Err(Gone))
    }

    fn value(&mut self, _: Bytes) {}

    fn poll_cancelled(&mut self, _: &mut task::Context<'_>) -> Poll<()> {
        Poll::Pending
    }

    fn tried(&mut self, attempts: u32) {
        // Handlers of one event are tried apart; the one that was tried most counts.
        if attempts > self.taken.tries {
            self.taken.tries = attempts;
            self.settling.record(&mut self.taken);
        }
        self.trial = None;
    }

    fn settle(mut self: Box<Self>, outcome: Outcome) {
        match outcome {
            Outcome::Ack | Outcome::Reply(_) | Outcome::Done | Outcome::Fail(_) => {
                self.settling.finish(&self.taken, ACK);
            }
            Outcome::Retry { after } => self.settling.give_back(&mut self.taken, after),
            Outcome::Reject(rejection) => {
                let Self {
                    settling, taken, ..
                } = *self;
                lock(&settling.rejected).push((taken, *rejection));
                settling.waker.wake();
            }
        }
    }
}
