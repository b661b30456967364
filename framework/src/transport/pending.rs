//! From a call's id to its waiting caller: [`Pending`] and [`Replies`].

mod deadlines;

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    future::poll_fn,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    task::{self, Poll, Waker, ready},
};

use bytes::Bytes;
use foldhash::fast::RandomState;
use tokio::time::Instant;

use self::deadlines::Deadlines;
use super::{Expect, Gone, WINDOW, calls::Shared};
use crate::error::RpcError;

/// The most values that wait for a caller, on wires without credit.
const MOST_WAITING: usize = 4096;

/// What arrives for a waiting caller.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// One value; more may follow.
    Value(Bytes),
    /// The last value, or the only one.
    Last(Bytes),
    /// No more values.
    End,
    /// The error that ends the call.
    Fail(RpcError),
}

/// What a client tells the other end of a call, where the wire can.
pub trait Control: Send + Sync + 'static {
    /// The caller no longer waits for `call`.
    fn cancel(&self, call: u64);

    /// The caller of a stream has room for `values` more.
    fn credit(&self, call: u64, values: u32);
}

/// The calls of one client that wait for replies, by id.
pub struct Pending {
    // The ids are ours, so a hash need not withstand an attack.
    table: Mutex<HashMap<u64, Arc<Slot>, RandomState>>,
    next: AtomicU64,
    control: Mutex<Option<Weak<dyn Control>>>,
    deadlines: Deadlines,
}

impl Pending {
    /// An empty table. Ids start at a random number, so that a late reply to an earlier process
    /// finds nobody.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            table: Mutex::default(),
            next: AtomicU64::new(u64::from(fastrand::u32(..)) << 24),
            control: Mutex::default(),
            deadlines: Deadlines::default(),
        })
    }

    /// Says how cancellation and credit are sent.
    pub fn set_control(&self, control: Weak<dyn Control>) {
        *lock(&self.control) = Some(control);
    }

    /// A new call and where its replies will appear. The call is forgotten when they are dropped.
    pub fn register(self: &Arc<Self>, expect: Expect) -> (u64, Replies) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let slot = Arc::new(Slot::default());
        lock(&self.table).insert(id, Arc::clone(&slot));
        let table = Some((Arc::clone(self), id));
        (
            id,
            Replies {
                slot,
                table,
                expect,
                ended: false,
                taken: 0,
            },
        )
    }

    /// The same for a call that is answered in this process: its two ends share one object, and nobody
    /// need be told what the caller says.
    pub(super) fn register_local(self: &Arc<Self>, expect: Expect) -> (Local, Replies) {
        let (id, replies) = self.register(expect);
        let local = Local {
            pending: Arc::clone(self),
            id,
            slot: Arc::clone(&replies.slot),
        };
        (local, replies)
    }

    /// Hands `item` to the caller of `id`; false when nobody waits for it.
    pub fn complete(&self, id: u64, item: Item) -> bool {
        let slot = {
            let mut table = lock(&self.table);
            match item {
                Item::Value(_) => table.get(&id).cloned(),
                _ => table.remove(&id),
            }
        };
        match slot {
            Some(slot) => {
                if !slot.push(item) {
                    lock(&self.table).remove(&id);
                    slot.caller.cancel();
                    self.control(|control| control.cancel(id));
                }
                true
            }
            None => false,
        }
    }

    /// Ends every call that waits, as when the connection is lost.
    pub fn fail_all(&self, error: &RpcError) {
        let mut slots: Vec<_> = lock(&self.table).drain().collect();
        slots.sort_unstable_by_key(|(id, _)| *id);
        for (_, slot) in slots {
            slot.push(Item::Fail(error.clone()));
            slot.caller.cancel();
        }
    }

    /// How many calls wait.
    pub fn len(&self) -> usize {
        lock(&self.table).len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn control(&self, tell: impl FnOnce(&dyn Control)) {
        let control = lock(&self.control).as_ref().and_then(Weak::upgrade);
        if let Some(control) = control {
            tell(&*control);
        }
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending")
            .field("waiting", &self.len())
            .finish_non_exhaustive()
    }
}

/// The replies to one call, as they arrive. Dropping it forgets the call, and tells the other end.
pub struct Replies {
    slot: Arc<Slot>,
    table: Option<(Arc<Pending>, u64)>,
    expect: Expect,
    ended: bool,
    taken: u32,
}

impl Replies {
    /// The next item; after an item that ends the call, `Pending` for ever.
    pub fn poll_item(&mut self, cx: &mut task::Context<'_>) -> Poll<Item> {
        match ready!(self.poll(cx, None)) {
            Some(item) => Poll::Ready(item),
            None => Poll::Pending,
        }
    }

    /// The same, or `None` when there is none at `deadline`; ask again with the same until it is
    /// ready. Calls of one client share a timer.
    pub fn poll_item_until(
        &mut self,
        cx: &mut task::Context<'_>,
        deadline: Instant,
    ) -> Poll<Option<Item>> {
        self.poll(cx, Some(deadline))
    }

    fn poll(&mut self, cx: &mut task::Context<'_>, until: Option<Instant>) -> Poll<Option<Item>> {
        if self.ended {
            return Poll::Pending;
        }
        let item = match self.slot.take(cx, until) {
            Taken::Item(item) => item,
            Taken::Late => return Poll::Ready(None),
            Taken::Nothing { watch } => {
                if let (Some(deadline), Some((pending, id))) = (watch, &self.table) {
                    pending.watch(deadline, *id);
                }
                return Poll::Pending;
            }
        };
        if matches!(item, Item::Value(_)) {
            self.grant();
        } else {
            self.ended = true;
        }
        Poll::Ready(Some(item))
    }

    /// Waits for the next item until `deadline`.
    pub async fn item_until(&mut self, deadline: Instant) -> Option<Item> {
        poll_fn(|cx| self.poll_item_until(cx, deadline)).await
    }

    /// Waits for the next item.
    pub async fn item(&mut self) -> Item {
        poll_fn(|cx| self.poll_item(cx)).await
    }

    /// Gives back credit for half a window at a time.
    fn grant(&mut self) {
        if self.expect == Expect::Single {
            return;
        }
        self.taken += 1;
        if self.taken >= WINDOW / 2 {
            let values = std::mem::take(&mut self.taken);
            self.slot.caller.credit(values);
            if let Some((pending, id)) = &self.table {
                pending.control(|control| control.credit(*id, values));
            }
        }
    }
}

impl Drop for Replies {
    fn drop(&mut self) {
        if let Some((pending, id)) = self.table.take()
            && !self.ended
        {
            let waiting = lock(&pending.table).remove(&id).is_some();
            if waiting {
                self.slot.caller.cancel();
                pending.control(|control| control.cancel(id));
            }
        }
    }
}

impl fmt::Debug for Replies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replies")
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

/// The other end of a call that is answered in this process.
pub(super) struct Local {
    pending: Arc<Pending>,
    id: u64,
    slot: Arc<Slot>,
}

impl Local {
    /// Hands `item` to the caller.
    pub(super) fn complete(&self, item: Item) {
        self.pending.complete(self.id, item);
    }

    /// As [`Call::poll_credit`](super::Call::poll_credit).
    pub(super) fn poll_credit(&self, cx: &mut task::Context<'_>) -> Poll<Result<(), Gone>> {
        self.slot.caller.poll_credit(cx)
    }

    /// Ready when the caller has gone.
    pub(super) fn poll_cancelled(&self, cx: &mut task::Context<'_>) -> Poll<()> {
        self.slot.caller.poll_cancelled(cx)
    }
}

#[derive(Default)]
struct Slot {
    state: Mutex<State>,
    /// What the caller says, for a [`Local`] end.
    caller: Shared,
}

#[derive(Default)]
struct State {
    /// The oldest item, apart from the rest so that a single reply needs no queue.
    first: Option<Item>,
    rest: VecDeque<Item>,
    waker: Option<Waker>,
    /// When the caller stops waiting for the next.
    until: Option<Instant>,
    /// The first of the deadlines at which it is woken; others have no effect.
    watched: Option<Instant>,
    /// When it was woken because its time was over.
    late: Option<Instant>,
}

/// What a caller gets when it asks.
enum Taken {
    Item(Item),
    /// Its time is over.
    Late,
    Nothing {
        /// When it is to be woken, if nobody sees to that yet.
        watch: Option<Instant>,
    },
}

impl Slot {
    /// Adds an item; false when it was a value too many and the call was ended instead.
    fn push(&self, item: Item) -> bool {
        let mut state = lock(&self.state);
        let fits = state.rest.len() < MOST_WAITING || !matches!(item, Item::Value(_));
        let item = if fits {
            item
        } else {
            Item::Fail(RpcError::resource_exhausted(
                "the stream is read too slowly",
            ))
        };
        if state.first.is_none() {
            state.first = Some(item);
        } else {
            state.rest.push_back(item);
        }
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        fits
    }

    /// Takes the next item of a caller who waits until then, or has it woken when there is one.
    fn take(&self, cx: &mut task::Context<'_>, until: Option<Instant>) -> Taken {
        let mut state = lock(&self.state);
        if let Some(item) = state.first.take() {
            state.first = state.rest.pop_front();
            state.until = None;
            return Taken::Item(item);
        }
        let late = state.late.take();
        if until.is_some_and(|until| Some(until) <= late) {
            return Taken::Late;
        }
        let is_watched = |until: &Instant| state.watched.is_some_and(|watched| watched <= *until);
        let watch = until.filter(|until| !is_watched(until));
        // Looked at once for each call: on a runtime that shuts down nobody watches.
        if watch.is_some_and(|until| until <= Instant::now()) {
            state.until = None;
            return Taken::Late;
        }
        match &mut state.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        state.until = until;
        state.watched = watch.or(state.watched);
        Taken::Nothing { watch }
    }

    /// It is `deadline`, for which it was watched: ends the wait of a caller whose time is over at
    /// `now`. Else, says when to look again.
    fn expire(&self, deadline: Instant, now: Instant) -> (Option<Waker>, Option<Instant>) {
        let mut state = lock(&self.state);
        if state.watched != Some(deadline) {
            // An earlier one was watched since, which has seen to what comes after it.
            return (None, None);
        }
        state.watched = state.until.filter(|until| *until > now);
        if state.watched.is_some() || state.until.is_none() {
            return (None, state.watched);
        }
        state.until = None;
        state.late = Some(now);
        (state.waker.take(), None)
    }

    /// Has the caller look to its deadline anew.
    fn unwatch(&self) -> Option<Waker> {
        let mut state = lock(&self.state);
        state.watched = None;
        state.waker.take()
    }
}

/// None of these locks is held while foreign code runs, so a poisoned one is still consistent.
pub(super) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Told(Mutex<Vec<String>>);

    impl Control for Told {
        fn cancel(&self, _: u64) {
            lock(&self.0).push("cancel".to_owned());
        }

        fn credit(&self, _: u64, values: u32) {
            lock(&self.0).push(format!("credit {values}"));
        }
    }

    fn pending() -> (Arc<Pending>, Arc<Told>) {
        let told = Arc::new(Told::default());
        let pending = Pending::new();
        let control: Arc<dyn Control> = told.clone();
        pending.set_control(Arc::downgrade(&control));
        (pending, told)
    }

    #[tokio::test]
    async fn a_reply_reaches_its_caller_and_is_then_forgotten() {
        let (pending, told) = pending();
        let (id, mut replies) = pending.register(Expect::Single);
        assert!(pending.complete(id, Item::Last("x".into())));
        assert_eq!(replies.item().await, Item::Last("x".into()));
        assert!(!pending.complete(id, Item::End));
        drop(replies);
        assert!(lock(&told.0).is_empty());
    }

    #[tokio::test]
    async fn a_dropped_call_is_forgotten_and_the_other_end_told() {
        let (pending, told) = pending();
        let (id, replies) = pending.register(Expect::Single);
        drop(replies);
        assert!(pending.is_empty());
        assert!(!pending.complete(id, Item::End));
        assert_eq!(*lock(&told.0), ["cancel"]);
    }

    #[tokio::test]
    async fn reading_a_stream_gives_credit_back() {
        let (pending, told) = pending();
        let (id, mut replies) = pending.register(Expect::Many);
        for _ in 0..WINDOW {
            pending.complete(id, Item::Value(Bytes::new()));
            replies.item().await;
        }
        let half = format!("credit {}", WINDOW / 2);
        assert_eq!(*lock(&told.0), [half.clone(), half]);
    }

    #[tokio::test]
    async fn a_stream_that_nobody_reads_is_ended_at_a_limit() {
        let (pending, told) = pending();
        let (id, mut replies) = pending.register(Expect::Many);
        let mut sent = 0;
        while pending.complete(id, Item::Value(Bytes::new())) {
            sent += 1;
            assert!(sent < 2 * MOST_WAITING);
        }
        assert_eq!(*lock(&told.0), ["cancel"]);
        while let Item::Value(_) = replies.item().await {}
    }

    #[tokio::test]
    async fn a_lost_connection_ends_every_call() {
        let (pending, _) = pending();
        let (_, mut replies) = pending.register(Expect::Single);
        let error = RpcError::unavailable("connection lost");
        pending.fail_all(&error);
        assert_eq!(replies.item().await, Item::Fail(error));
    }
}
