//! The other end of [`Pending`](super::Pending): the calls a server works on, and what their
//! callers say about them meanwhile.

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
    hash::Hash,
    sync::{Arc, Mutex},
    task::{self, Poll, Waker},
};

use foldhash::fast::RandomState;

use super::{Gone, pending::lock};

/// How many values of a stream may be on their way before its reader gives credit.
pub const WINDOW: u32 = 64;

/// A peer may choose what its calls are called, but knows no seed, and has no more of them in work at
/// once than it is allowed: a fast hash will do.
type Table<K> = HashMap<K, Arc<Shared>, RandomState>;

/// The calls in work, by whatever identifies a call on the wire.
///
/// A [`Call`] is in the table as long as it lives, so that a cancel or credit frame finds it.
pub struct Calls<K: Eq + Hash + Clone + Send + 'static> {
    table: Arc<Mutex<Table<K>>>,
}

impl<K: Eq + Hash + Clone + Send + 'static> Calls<K> {
    /// An empty table.
    pub fn new() -> Self {
        Self {
            table: Arc::default(),
        }
    }

    /// A call has arrived, with credit for [`WINDOW`] values.
    pub fn open(&self, key: K) -> Call<K> {
        let shared = Arc::new(Shared::default());
        lock(&self.table).insert(key.clone(), Arc::clone(&shared));
        Call {
            key,
            shared,
            table: Arc::clone(&self.table),
        }
    }

    /// Its caller no longer waits.
    pub fn cancel(&self, key: &K) {
        if let Some(shared) = self.find(key) {
            shared.cancel();
        }
    }

    /// Its caller has room for `values` more.
    pub fn credit(&self, key: &K, values: u32) {
        if let Some(shared) = self.find(key) {
            shared.credit(values);
        }
    }

    /// All callers have gone, as when their connection is lost.
    pub fn cancel_all(&self) {
        let all: Vec<_> = lock(&self.table).values().cloned().collect();
        for shared in all {
            shared.cancel();
        }
    }

    /// How many calls are in work.
    pub fn len(&self) -> usize {
        lock(&self.table).len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn find(&self, key: &K) -> Option<Arc<Shared>> {
        lock(&self.table).get(key).cloned()
    }
}

impl<K: Eq + Hash + Clone + Send + 'static> Default for Calls<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Eq + Hash + Clone + Send + 'static> Clone for Calls<K> {
    fn clone(&self) -> Self {
        Self {
            table: Arc::clone(&self.table),
        }
    }
}

impl<K: Eq + Hash + Clone + Send + 'static> fmt::Debug for Calls<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Calls")
            .field("in_work", &self.len())
            .finish()
    }
}

/// One call in work; a [`Responder`](super::Responder) holds it and asks it.
pub struct Call<K: Eq + Hash + Clone + Send + 'static> {
    key: K,
    shared: Arc<Shared>,
    table: Arc<Mutex<Table<K>>>,
}

impl<K: Eq + Hash + Clone + Send + 'static> Call<K> {
    /// What identifies it on the wire.
    pub fn key(&self) -> &K {
        &self.key
    }

    /// Takes credit for one value; ask once for each.
    ///
    /// # Errors
    /// [`Gone`] when the caller has gone.
    pub fn poll_credit(&self, cx: &mut task::Context<'_>) -> Poll<Result<(), Gone>> {
        self.shared.poll_credit(cx)
    }

    /// Ready when the caller has gone.
    pub fn poll_cancelled(&self, cx: &mut task::Context<'_>) -> Poll<()> {
        self.shared.poll_cancelled(cx)
    }

    /// Whether the caller has gone.
    pub fn is_cancelled(&self) -> bool {
        lock(&self.shared.state).cancelled
    }
}

impl<K: Eq + Hash + Clone + Send + 'static> Drop for Call<K> {
    fn drop(&mut self) {
        let mut table = lock(&self.table);
        // A peer may reuse an id: only the call's own entry goes.
        if let Entry::Occupied(entry) = table.entry(self.key.clone())
            && Arc::ptr_eq(entry.get(), &self.shared)
        {
            entry.remove();
        }
    }
}

impl<K: Eq + Hash + Clone + Send + 'static> fmt::Debug for Call<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("cancelled", &self.is_cancelled())
            .finish_non_exhaustive()
    }
}

/// What the caller of one call says about it.
#[derive(Default)]
pub(super) struct Shared {
    state: Mutex<State>,
}

struct State {
    credit: u32,
    cancelled: bool,
    waker: Option<Waker>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            credit: WINDOW,
            cancelled: false,
            waker: None,
        }
    }
}

impl Shared {
    pub(super) fn cancel(&self) {
        self.update(|state| state.cancelled = true);
    }

    pub(super) fn credit(&self, values: u32) {
        self.update(|state| state.credit = state.credit.saturating_add(values));
    }

    pub(super) fn poll_credit(&self, cx: &mut task::Context<'_>) -> Poll<Result<(), Gone>> {
        self.poll(cx, |state| {
            if state.cancelled {
                return Some(Err(Gone));
            }
            state.credit.checked_sub(1).map(|left| {
                state.credit = left;
                Ok(())
            })
        })
    }

    pub(super) fn poll_cancelled(&self, cx: &mut task::Context<'_>) -> Poll<()> {
        self.poll(cx, |state| state.cancelled.then_some(()))
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        let mut state = lock(&self.state);
        change(&mut state);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn poll<T>(
        &self,
        cx: &mut task::Context<'_>,
        check: impl FnOnce(&mut State) -> Option<T>,
    ) -> Poll<T> {
        let mut state = lock(&self.state);
        match check(&mut state) {
            Some(value) => Poll::Ready(value),
            None => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test]
    async fn a_stream_waits_for_credit_and_ends_with_its_caller() {
        let calls = Calls::new();
        let call = calls.open(1_u64);
        for _ in 0..WINDOW {
            assert_eq!(poll_fn(|cx| call.poll_credit(cx)).await, Ok(()));
        }
        let waiting = poll_fn(|cx| call.poll_credit(cx));
        let grant = async { calls.credit(&1, 1) };
        assert_eq!(tokio::join!(waiting, grant).0, Ok(()));
        let waiting = poll_fn(|cx| call.poll_credit(cx));
        let cancel = async { calls.cancel(&1) };
        assert_eq!(tokio::join!(waiting, cancel).0, Err(Gone));
        drop(call);
        assert!(calls.is_empty());
    }

    #[test]
    fn a_reused_id_does_not_remove_the_newer_call() {
        let calls = Calls::new();
        let older = calls.open("id");
        let newer = calls.open("id");
        drop(older);
        calls.cancel(&"id");
        assert!(newer.is_cancelled());
    }
}
