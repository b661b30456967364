//! The other end of [`Pending`](super::Pending): the calls a server works on, and what their
//! callers say about them meanwhile.

use std::{
    collections::HashMap,
    fmt,
    hash::Hash,
    sync::{Arc, Mutex},
    task::{self, Poll, Waker},
};

use foldhash::fast::RandomState;

use super::{Gone, pending::lock};

/// How many values of a stream may be on their way before its reader gives credit.
pub const WINDOW: u32 = 64;

/// The calls in work, by whatever identifies a call on the wire.
///
/// A [`Call`] is in the table as long as it lives, so that a cancel or credit frame finds it.
pub struct Calls<K: Eq + Hash + Clone + Send + 'static> {
    table: Arc<Mutex<Table<K>>>,
}

/// What the callers say is in the table itself: most calls are over before anybody asks for it, and
/// an object of their own would be in vain.
struct Table<K> {
    // A peer may choose what its calls are called, but knows no seed, and has no more of them in work at
    // once than it is allowed: a fast hash will do.
    entries: HashMap<K, Entry, RandomState>,
    opened: u64,
}

struct Entry {
    /// Which of the calls with this key it is: a peer may use one again.
    number: u64,
    said: Said,
}

impl<K: Eq + Hash + Clone + Send + 'static> Calls<K> {
    /// An empty table.
    pub fn new() -> Self {
        let table = Table {
            entries: HashMap::default(),
            opened: 0,
        };
        Self {
            table: Arc::new(Mutex::new(table)),
        }
    }

    /// A call has arrived, with credit for [`WINDOW`] values.
    pub fn open(&self, key: K) -> Call<K> {
        let mut table = lock(&self.table);
        table.opened += 1;
        let number = table.opened;
        let said = Said::default();
        let replaced = table.entries.insert(key.clone(), Entry { number, said });
        drop(table);
        // Whoever works on a call of the same name hears no more of its caller, and is told so.
        let waker = replaced.and_then(|entry| entry.said.waker);
        waker.into_iter().for_each(Waker::wake);
        Call {
            key,
            number,
            table: Arc::clone(&self.table),
        }
    }

    /// Its caller no longer waits.
    pub fn cancel(&self, key: &K) {
        self.update(key, Said::cancel);
    }

    /// Its caller has room for `values` more.
    pub fn credit(&self, key: &K, values: u32) {
        self.update(key, |said| said.credit(values));
    }

    /// All callers have gone, as when their connection is lost.
    pub fn cancel_all(&self) {
        let mut table = lock(&self.table);
        let entries = table.entries.values_mut();
        let wakers: Vec<_> = entries.filter_map(|entry| entry.said.cancel()).collect();
        drop(table);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// How many calls are in work.
    pub fn len(&self) -> usize {
        lock(&self.table).entries.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn update(&self, key: &K, change: impl FnOnce(&mut Said) -> Option<Waker>) {
        let mut table = lock(&self.table);
        let waker = { table.entries.get_mut(key) }.and_then(|entry| change(&mut entry.said));
        drop(table);
        waker.into_iter().for_each(Waker::wake);
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
    number: u64,
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
        self.said(|said| said.poll_credit(cx))
            .unwrap_or(Poll::Ready(Err(Gone)))
    }

    /// Ready when the caller has gone.
    pub fn poll_cancelled(&self, cx: &mut task::Context<'_>) -> Poll<()> {
        self.said(|said| said.poll_cancelled(cx))
            .unwrap_or(Poll::Pending)
    }

    /// Whether the caller has gone.
    pub fn is_cancelled(&self) -> bool {
        self.said(|said| said.cancelled).unwrap_or(false)
    }

    /// What its caller says; `None` once there is another call with this key, about which all that is
    /// said from then on is.
    fn said<T>(&self, look: impl FnOnce(&mut Said) -> T) -> Option<T> {
        let mut table = lock(&self.table);
        let entry = table.entries.get_mut(&self.key);
        let own = entry.filter(|entry| entry.number == self.number)?;
        Some(look(&mut own.said))
    }
}

impl<K: Eq + Hash + Clone + Send + 'static> Drop for Call<K> {
    fn drop(&mut self) {
        let mut table = lock(&self.table);
        // A peer may reuse an id: only the call's own entry goes.
        let entry = table.entries.get(&self.key);
        if entry.is_some_and(|entry| entry.number == self.number) {
            let own = table.entries.remove(&self.key);
            drop(table);
            drop(own);
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

/// What the caller of one call says about it, where that needs no table.
#[derive(Default)]
pub(super) struct Shared {
    said: Mutex<Said>,
}

struct Said {
    credit: u32,
    cancelled: bool,
    waker: Option<Waker>,
}

impl Default for Said {
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
        self.update(Said::cancel);
    }

    pub(super) fn credit(&self, values: u32) {
        self.update(|said| said.credit(values));
    }

    pub(super) fn poll_credit(&self, cx: &mut task::Context<'_>) -> Poll<Result<(), Gone>> {
        lock(&self.said).poll_credit(cx)
    }

    pub(super) fn poll_cancelled(&self, cx: &mut task::Context<'_>) -> Poll<()> {
        lock(&self.said).poll_cancelled(cx)
    }

    fn update(&self, change: impl FnOnce(&mut Said) -> Option<Waker>) {
        let waker = change(&mut lock(&self.said));
        waker.into_iter().for_each(Waker::wake);
    }
}

impl Said {
    /// The waker is for whoever no longer has the lock.
    fn cancel(&mut self) -> Option<Waker> {
        self.cancelled = true;
        self.waker.take()
    }

    fn credit(&mut self, values: u32) -> Option<Waker> {
        self.credit = self.credit.saturating_add(values);
        self.waker.take()
    }

    fn poll_credit(&mut self, cx: &mut task::Context<'_>) -> Poll<Result<(), Gone>> {
        if self.cancelled {
            return Poll::Ready(Err(Gone));
        }
        match self.credit.checked_sub(1) {
            Some(left) => {
                self.credit = left;
                Poll::Ready(Ok(()))
            }
            None => self.wait(cx),
        }
    }

    fn poll_cancelled(&mut self, cx: &mut task::Context<'_>) -> Poll<()> {
        match self.cancelled {
            true => Poll::Ready(()),
            false => self.wait(cx),
        }
    }

    fn wait<T>(&mut self, cx: &mut task::Context<'_>) -> Poll<T> {
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
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
        calls.cancel(&"id");
        assert!(newer.is_cancelled());
        assert!(!older.is_cancelled());
        drop(older);
        assert!(newer.is_cancelled());
        drop(newer);
        assert!(calls.is_empty());
    }
}
