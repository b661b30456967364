//! One assigned partition: what is in work, and the [`Source`] that reads it.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::{Arc, Condvar, Mutex, PoisonError},
    task::{self, Poll},
    time::{Duration, Instant},
};

use futures_util::task::AtomicWaker;
use rdkafka::{consumer::base_consumer::PartitionQueue, message::Message as _};

use super::{
    careful::Next,
    carries::Carries,
    delivery::deliver,
    group::{Group, GroupContext},
    offsets::{Commit, Offsets},
};
use crate::{
    envelope::Envelope,
    transport::{Delivery, Outcome, Source, pending::lock, trials::Trial},
};

/// How many records one poll looks at, delivered or not.
const LOOKED_AT: usize = 512;
/// Nothing more is taken while so many records wait for their dead letters to be stored.
const MOST_BURYING: usize = 64;
/// How long nothing is delivered while the broker does not confirm that this reader has begun.
const ANNOUNCE: Duration = Duration::from_secs(5);
/// How long a source waits at its end for the consumer to close.
const CLOSE: Duration = Duration::from_secs(8);

/// A partition that is assigned to this process.
pub(super) struct Partition {
    pub(super) topic: String,
    pub(super) number: i32,
    pub(super) carries: Arc<Carries>,
    /// Where the library puts its records. Taken away when the partition is, since a queue that is
    /// dropped later would silence the one that takes its place.
    pub(super) queue: Mutex<Option<PartitionQueue<GroupContext>>>,
    pub(super) state: Mutex<State>,
    /// Told when nothing is in work any more, while somebody waits for that.
    idle: Condvar,
    pub(super) waker: Arc<AtomicWaker>,
}

pub(super) struct State {
    pub(super) offsets: Offsets,
    /// Which record is on trial.
    trial: Option<(i64, Trial)>,
    /// Records given back: read again from this offset, not before this time.
    again: Option<(i64, Instant)>,
    /// How many records wait for their dead letters to be stored.
    burying: usize,
    /// The source waits for something to be settled.
    full: bool,
    /// Somebody waits, or has waited, for nothing to be in work.
    awaited: bool,
    revoked: bool,
}

impl Partition {
    pub(super) fn new(
        topic: String,
        number: i32,
        carries: Arc<Carries>,
        offsets: Offsets,
        queue: Option<PartitionQueue<GroupContext>>,
        waker: Arc<AtomicWaker>,
    ) -> Self {
        let state = State {
            offsets,
            trial: None,
            again: None,
            burying: 0,
            full: false,
            awaited: false,
            revoked: false,
        };
        Self {
            topic,
            number,
            carries,
            queue: Mutex::new(queue),
            state: Mutex::new(state),
            idle: Condvar::new(),
            waker,
        }
    }

    /// Delivers nothing more: it belongs to somebody else now, or to nobody.
    pub(super) fn revoke(&self) {
        lock(&self.state).revoked = true;
        let queue = lock(&self.queue).take();
        drop(queue);
        self.waker.wake();
    }

    /// Waits on this thread until nothing is in work.
    pub(super) fn wait_idle(&self, deadline: Instant) {
        let left = deadline.saturating_duration_since(Instant::now());
        let busy = |state: &mut State| state.offsets.in_work() > 0;
        let mut state = lock(&self.state);
        state.awaited = true;
        let waited = self.idle.wait_timeout_while(state, left, busy);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// What is settled and not committed, with so much metadata at most.
    pub(super) fn uncommitted(&self, room: usize) -> Option<Commit> {
        let mut state = lock(&self.state);
        state.offsets.set_room(room);
        state.offsets.uncommitted()
    }

    /// The broker has acknowledged this.
    pub(super) fn committed(&self, commit: Commit) {
        let mut state = lock(&self.state);
        let is_awaited = !state.offsets.is_announced() || state.trial.is_some();
        state.offsets.commit(commit);
        drop(state);
        if is_awaited || self.commits_first() {
            self.waker.wake();
        }
    }

    /// Whoever reads it next need not be careful.
    pub(super) fn hand_over(&self) {
        lock(&self.state).offsets.hand_over();
    }

    /// A record in work is to be tried, for the `attempt`-th time, once that is committed.
    pub(super) fn begin_trial(&self, offset: i64, attempt: u32, trial: Trial) {
        let mut state = lock(&self.state);
        state.offsets.tried(offset, attempt);
        state.trial = Some((offset, trial));
    }

    /// The trial of a record, if it was on trial, is over, or has not begun after all although it
    /// was noted as the `untried`-th.
    pub(super) fn end_trial(&self, offset: i64, untried: Option<u32>) {
        let mut state = lock(&self.state);
        let trial = state.trial.take_if(|(tried, _)| *tried == offset);
        if let (Some(_), Some(attempt)) = (&trial, untried) {
            state.offsets.untried(offset, attempt);
        }
        drop(state);
        if trial.is_some() {
            self.waker.wake();
        }
    }

    /// Whether the broker knows where this service is.
    pub(super) fn is_placed(&self) -> bool {
        lock(&self.state).offsets.committed().is_some()
    }

    /// From where records that were given back are to be read again, once it is time.
    pub(super) fn take_again(&self, now: Instant) -> Option<i64> {
        let mut state = lock(&self.state);
        match state.again {
            Some((offset, at)) if at <= now => {
                state.again = None;
                Some(offset)
            }
            _ => None,
        }
    }

    /// Whether it belongs to somebody else by now.
    pub(super) fn is_revoked(&self) -> bool {
        lock(&self.state).revoked
    }

    /// A record has been tried in vain, so often by now.
    pub(super) fn tried(&self, offset: i64, attempts: u32) {
        lock(&self.state).offsets.tried(offset, attempts);
        self.end_trial(offset, None);
    }

    /// The dead letter of a record is about to be stored.
    pub(super) fn begin_burying(&self) {
        lock(&self.state).burying += 1;
    }

    /// The dead letter of a record is stored, and the record thereby settled.
    pub(super) fn buried(&self, offset: i64) {
        self.leave(|state| {
            state.burying = state.burying.saturating_sub(1);
            state.offsets.settle(offset);
        });
    }

    pub(super) fn settle(&self, offset: i64) {
        self.end_trial(offset, None);
        self.leave(|state| state.offsets.settle(offset));
    }

    pub(super) fn give_back(&self, offset: i64, after: Duration) {
        self.end_trial(offset, None);
        self.leave(|state| {
            if state.offsets.give_back(offset) {
                let at = Instant::now() + after;
                state.again = Some(match state.again {
                    Some((first, last)) => (first.min(offset), last.max(at)),
                    None => (offset, at),
                });
            }
        });
    }

    fn leave(&self, change: impl FnOnce(&mut State)) {
        let mut state = lock(&self.state);
        change(&mut state);
        let wake = std::mem::take(&mut state.full);
        let idle = state.awaited && state.offsets.in_work() == 0;
        drop(state);
        if wake {
            self.waker.wake();
        }
        if idle {
            self.idle.notify_all();
        }
    }

    /// Whether too much is taken and not settled; then the source is woken when something is.
    pub(super) fn is_full(&self, most: usize) -> bool {
        let mut state = lock(&self.state);
        // With nothing in work, records that were given back are in the way: they have to be read.
        let is_long = state.offsets.span() >= most && state.offsets.in_work() > 0;
        state.full = is_long || state.burying >= MOST_BURYING;
        state.full
    }

    /// Whether offsets are committed before their records are delivered.
    pub(super) fn commits_first(&self) -> bool {
        self.carries.commits_first()
    }
}

/// Reads one partition.
pub(super) struct PartitionSource {
    pub(super) group: Arc<Group>,
    pub(super) partition: Arc<Partition>,
    /// The record that is tried next, where that is to be careful.
    pub(super) next: Next,
    /// How long the broker may take to hear that this reader has begun.
    patience: Option<Pin<Box<tokio::time::Sleep>>>,
    /// Deliveries that wait for the commit of their offsets.
    parked: VecDeque<(i64, Delivery)>,
    stopped: bool,
    closing: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    counted: bool,
}

impl PartitionSource {
    pub(super) fn new(group: Arc<Group>, partition: Arc<Partition>) -> Self {
        group.source_opened();
        Self {
            group,
            partition,
            next: Next::default(),
            patience: None,
            parked: VecDeque::new(),
            stopped: false,
            closing: None,
            counted: true,
        }
    }

    /// Ready when the broker has had time enough to hear of this reader; should it die now, that is
    /// not counted.
    fn poll_patience(&mut self, cx: &mut task::Context<'_>) -> Poll<()> {
        let patience = self
            .patience
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(ANNOUNCE)));
        patience.as_mut().poll(cx)
    }

    /// Takes records from the library into `batch` or, where they are committed first, aside.
    fn fetch(&mut self, room: usize, batch: &mut Vec<Delivery>) -> usize {
        let commits_first = self.partition.commits_first();
        let queue = lock(&self.partition.queue);
        let Some(queue) = &*queue else { return 0 };
        let mut count = 0;
        let mut looked_at = 0;
        while count < room {
            if self.partition.is_full(self.group.most_taken) {
                break;
            }
            if looked_at == LOOKED_AT {
                self.partition.waker.wake();
                break;
            }
            looked_at += 1;
            let message = match queue.poll(Duration::ZERO) {
                None => break,
                Some(Ok(message)) => message,
                Some(Err(error)) => {
                    let (topic, partition) = (&self.partition.topic, self.partition.number);
                    tracing::warn!(topic, partition, %error, "read from Kafka");
                    self.group.mender.hear(&error);
                    continue;
                }
            };
            let offset = message.offset();
            let Some(attempt) = lock(&self.partition.state).offsets.take(offset) else {
                continue;
            };
            match deliver(&self.group, &self.partition, &message, attempt) {
                Some(delivery) if commits_first => self.parked.push_back((offset, delivery)),
                Some(delivery) => batch.push(delivery),
                None => {
                    self.partition.settle(offset);
                    continue;
                }
            }
            count += 1;
        }
        count
    }

    /// Delivers what is committed, and has the rest committed.
    fn poll_parked(&mut self, room: usize, batch: &mut Vec<Delivery>) -> usize {
        let mut state = lock(&self.partition.state);
        let revoked = state.revoked;
        if !revoked && !self.stopped {
            // From here on a crash loses them; until now they were not taken.
            for (offset, _) in &self.parked {
                state.offsets.settle(*offset);
            }
        }
        let committed = state.offsets.committed().unwrap_or_default();
        let commit = !revoked && state.offsets.uncommitted().is_some();
        drop(state);
        if commit {
            self.group.commit_soon();
        }
        let mut count = 0;
        while count < room
            && self
                .parked
                .front()
                .is_some_and(|(offset, _)| *offset < committed)
        {
            batch.extend(self.parked.pop_front().map(|(_, delivery)| delivery));
            count += 1;
        }
        if revoked || self.stopped {
            self.unpark();
        }
        count
    }

    /// Leaves to others what was set aside, except what an acknowledgement is awaited for.
    fn unpark(&mut self) {
        let state = lock(&self.partition.state);
        let asked_for = match (state.revoked, state.offsets.committed()) {
            (true, committed) => committed.unwrap_or_default(),
            (false, _) => state.offsets.position(),
        };
        drop(state);
        while self
            .parked
            .back()
            .is_some_and(|(offset, _)| *offset >= asked_for)
        {
            if let Some((offset, delivery)) = self.parked.pop_back() {
                self.partition.give_back(offset, Duration::ZERO);
                discard(delivery);
            }
        }
    }

    fn leave(&mut self) {
        if std::mem::take(&mut self.counted) {
            self.group.source_closed();
        }
    }
}

/// Drops a delivery whose offset is dealt with already.
pub(super) fn discard(mut delivery: Delivery) {
    // The responder of a parked delivery answers nothing when it is told of an acknowledgement.
    delivery.envelope = Envelope::default();
    delivery.settle(Outcome::Ack);
}

impl Source for PartitionSource {
    fn poll_deliveries(
        &mut self,
        cx: &mut task::Context<'_>,
        room: usize,
        batch: &mut Vec<Delivery>,
    ) -> Poll<Option<usize>> {
        self.partition.waker.register(cx.waker());
        let state = lock(&self.partition.state);
        let revoked = state.revoked;
        let is_announced = state.offsets.is_announced();
        let is_careful = state.offsets.is_careful() || !self.next.is_empty();
        drop(state);
        let mut count = 0;
        if revoked || self.stopped {
            self.untake();
        } else if !is_announced && self.poll_patience(cx).is_pending() {
            // Woken when the broker knows of us.
        } else if is_careful && room > 0 {
            count += self.poll_careful(cx, batch);
        } else if room > self.parked.len() {
            let room = room - self.parked.len();
            let fetched = self.fetch(room, batch);
            if !self.partition.commits_first() {
                count += fetched;
            }
        }
        if !self.parked.is_empty() {
            count += self.poll_parked(room, batch);
        }
        match count {
            0 if (revoked || self.stopped) && self.parked.is_empty() => Poll::Ready(None),
            0 => Poll::Pending,
            count => Poll::Ready(Some(count)),
        }
    }

    fn stop(&mut self) {
        self.stopped = true;
        self.partition.waker.wake();
    }

    fn poll_close(&mut self, cx: &mut task::Context<'_>) -> Poll<()> {
        self.leave();
        let group = &self.group;
        let closing = self.closing.get_or_insert_with(|| {
            let closed = group.closed();
            Box::pin(async move {
                if tokio::time::timeout(CLOSE, closed).await.is_err() {
                    tracing::warn!("the Kafka consumer did not close in time");
                }
            })
        });
        closing.as_mut().poll(cx)
    }
}

impl Drop for PartitionSource {
    fn drop(&mut self) {
        self.stopped = true;
        self.untake();
        self.unpark();
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::task::{ArcWake, waker};

    use super::*;
    use crate::transport::kafka::{
        carries::{Native, Nest},
        metadata::ROOM,
    };

    struct Woken(Mutex<bool>);

    impl ArcWake for Woken {
        fn wake_by_ref(woken: &Arc<Self>) {
            *lock(&woken.0) = true;
        }
    }

    fn partition() -> Partition {
        let pattern = "order.placed";
        let carries = Carries {
            topic: pattern.into(),
            native: Native::Event {
                pattern: pattern.into(),
            },
            nest: Nest::Off,
        };
        let offsets = Offsets::new(0, true);
        let waker = Arc::default();
        Partition::new(pattern.into(), 0, Arc::new(carries), offsets, None, waker)
    }

    #[test]
    fn a_partition_is_not_read_on_while_many_dead_letters_wait_to_be_stored() {
        let partition = partition();
        let woken = Arc::new(Woken(Mutex::new(false)));
        partition.waker.register(&waker(Arc::clone(&woken)));
        for offset in 0..64 {
            assert!(!partition.is_full(1000), "{offset}");
            lock(&partition.state).offsets.take(offset);
            partition.begin_burying();
        }
        assert!(partition.is_full(1000));
        assert_eq!(partition.uncommitted(ROOM), None);
        partition.buried(1);
        assert!(*lock(&woken.0));
        assert!(!partition.is_full(1000));
        assert_eq!(partition.uncommitted(ROOM), None, "the first waits");
        partition.buried(0);
        let position = partition.uncommitted(ROOM).map(|commit| commit.position);
        assert_eq!(position, Some(2));
    }
}
