//! When the callers of one client stop waiting: [`Deadlines`].
//!
//! A timer for each call is most of what waiting costs, and nearly all are taken down before they fire.
//! So those of one client are a queue, in their order, with one task that sleeps until the first is
//! past. Calls that have ended stay in it until there are more of them than of those that wait.
//!
//! There is such a queue for each runtime that calls are made on: one that is busy, or that nobody drives,
//! must not keep those on another waiting.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    sync::{Arc, Mutex, Weak},
    task::Waker,
};

use tokio::{
    runtime::{Handle, Id},
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::{Pending, Slot, lock};
use crate::transport::Task;

/// How many entries are kept before those of calls that have ended are looked for.
const FEW: usize = 64;

/// The queues of one client.
#[derive(Default)]
pub(super) struct Deadlines(Mutex<Vec<Queue>>);

/// What is waited for on one runtime, and the task that watches it.
struct Queue {
    runtime: Id,
    /// The earliest first. A call may have several: it waits for each value of a stream.
    entries: BinaryHeap<Reverse<(Instant, u64)>>,
    /// How many there may be before they are looked through.
    room: usize,
    /// There is an earlier one than the task knows of.
    changed: Arc<Notify>,
    task: Option<Task>,
}

impl Queue {
    fn new(runtime: Id) -> Self {
        Self {
            runtime,
            entries: BinaryHeap::new(),
            room: FEW,
            changed: Arc::default(),
            task: None,
        }
    }

    fn first(&self) -> Option<Instant> {
        self.entries.peek().map(|Reverse((deadline, _))| *deadline)
    }
}

impl Pending {
    /// Has the caller of `id` woken at `deadline`, if it still waits then.
    pub(super) fn watch(self: &Arc<Self>, deadline: Instant, id: u64) {
        let runtime = Handle::current().id();
        let mut queues = lock(&self.deadlines.0);
        let known = queues.iter().position(|queue| queue.runtime == runtime);
        let position = known.unwrap_or_else(|| {
            queues.push(Queue::new(runtime));
            queues.len() - 1
        });
        let queue = &mut queues[position];
        if queue.entries.len() >= queue.room {
            let waiting = lock(&self.table);
            queue
                .entries
                .retain(|Reverse((_, id))| waiting.contains_key(id));
            queue.room = FEW + 2 * queue.entries.len();
        }
        let is_first = queue.first().is_none_or(|first| deadline < first);
        queue.entries.push(Reverse((deadline, id)));
        let changed = Arc::clone(&queue.changed);
        drop(queues);
        if known.is_none() {
            self.begin(runtime, changed);
        } else if is_first {
            changed.notify_one();
        }
    }

    /// Starts the task of a new queue. Without the lock: a runtime that shuts down drops it here and now.
    fn begin(self: &Arc<Self>, runtime: Id, changed: Arc<Notify>) {
        let watcher = Watcher {
            pending: Arc::downgrade(self),
            runtime,
        };
        let task = Task::spawn(watch(watcher, changed));
        let mut queues = lock(&self.deadlines.0);
        let queue = queues.iter_mut().find(|queue| queue.runtime == runtime);
        let unused = match queue {
            Some(queue) => queue.task.replace(task),
            None => Some(task),
        };
        drop(queues);
        drop(unused);
    }

    /// Tells those callers whose time is over, and returns when the next one's is.
    fn expire(&self, runtime: Id) -> Option<Instant> {
        let now = Instant::now();
        let mut over: Vec<Waker> = Vec::new();
        let mut queues = lock(&self.deadlines.0);
        let queue = queues.iter_mut().find(|queue| queue.runtime == runtime)?;
        while let Some(&Reverse((deadline, id))) = queue.entries.peek()
            && deadline <= now
        {
            queue.entries.pop();
            let Some(slot) = self.slot(id) else { continue };
            let (waker, later) = slot.expire(deadline, now);
            over.extend(waker);
            queue
                .entries
                .extend(later.map(|later| Reverse((later, id))));
        }
        let next = queue.first();
        drop(queues);
        over.into_iter().for_each(Waker::wake);
        next
    }

    fn slot(&self, id: u64) -> Option<Arc<Slot>> {
        lock(&self.table).get(&id).cloned()
    }
}

async fn watch(watcher: Watcher, changed: Arc<Notify>) {
    while let Some(pending) = watcher.pending.upgrade() {
        let next = pending.expire(watcher.runtime);
        // The client may go meanwhile, and this task with it.
        drop(pending);
        match next {
            None => changed.notified().await,
            Some(next) => tokio::select! {
                biased;
                () = changed.notified() => {}
                () = sleep_until(next) => {}
            },
        }
    }
}

/// What the task holds. When its runtime ends before the client does, those who wait elsewhere are
/// woken, and wait where they are.
struct Watcher {
    pending: Weak<Pending>,
    runtime: Id,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let Some(pending) = self.pending.upgrade() else {
            return;
        };
        let mut queues = lock(&pending.deadlines.0);
        let position = queues
            .iter()
            .position(|queue| queue.runtime == self.runtime);
        let queue = position.map(|position| queues.swap_remove(position));
        drop(queues);
        for Reverse((_, id)) in queue.iter().flat_map(|queue| &queue.entries) {
            let waker = pending.slot(*id).and_then(|slot| slot.unwatch());
            waker.into_iter().for_each(Waker::wake);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::future::join_all;
    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::transport::{Expect, Item};

    fn after(millis: u64) -> Instant {
        Instant::now() + Duration::from_millis(millis)
    }

    #[tokio::test(start_paused = true)]
    async fn each_caller_waits_until_its_own_deadline_whatever_their_order() {
        let pending = Pending::new();
        let started = Instant::now();
        let calls = [30, 10, 20, 10, 40].map(|millis| {
            let (_, mut replies) = pending.register(Expect::Single);
            async move {
                assert_eq!(replies.item_until(after(millis)).await, None);
                (millis, started.elapsed().as_millis())
            }
        });
        for (millis, waited) in join_all(calls).await {
            // The clock ticks in milliseconds.
            assert!((millis..=millis + 1).contains(&u64::try_from(waited).unwrap()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_value_of_a_stream_has_a_deadline_of_its_own() {
        let pending = Pending::new();
        let (id, mut replies) = pending.register(Expect::Many);
        // What was given up before its deadline says nothing of what comes later.
        let given_up = timeout(Duration::from_millis(5), replies.item_until(after(10)));
        assert!(given_up.await.is_err());
        sleep(Duration::from_millis(20)).await;
        for millis in [50, 5, 50] {
            let started = Instant::now();
            assert_eq!(replies.item_until(after(millis)).await, None);
            assert!(started.elapsed() >= Duration::from_millis(millis));
            assert!(started.elapsed() <= Duration::from_millis(millis + 1));
            pending.complete(id, Item::Value("late".into()));
            let soon = replies.item_until(after(1)).await;
            assert_eq!(soon, Some(Item::Value("late".into())));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn calls_that_have_ended_are_not_kept_until_their_deadline() {
        let pending = Pending::new();
        let (_, mut waiting) = pending.register(Expect::Single);
        let others = async {
            for _ in 0..10 * FEW {
                let (id, mut replies) = pending.register(Expect::Single);
                let complete = async { pending.complete(id, Item::End) };
                let item = replies.item_until(after(1000));
                let (item, _) = tokio::join!(item, complete);
                assert_eq!(item, Some(Item::End));
            }
        };
        let (item, ()) = tokio::join!(waiting.item_until(after(1000)), others);
        assert_eq!(item, None);
        let queues = lock(&pending.deadlines.0);
        assert!(queues.iter().all(|queue| queue.entries.len() < 2 * FEW));
    }

    #[tokio::test(start_paused = true)]
    async fn waits_of_different_lengths_leave_nothing_behind() {
        let pending = Pending::new();
        let (id, mut replies) = pending.register(Expect::Many);
        for millis in [50, 5].repeat(10 * FEW) {
            let complete = async {
                sleep(Duration::from_millis(1)).await;
                pending.complete(id, Item::Value("soon".into()))
            };
            let (item, _) = tokio::join!(replies.item_until(after(millis)), complete);
            assert_eq!(item, Some(Item::Value("soon".into())));
        }
        let queues = lock(&pending.deadlines.0);
        assert!(queues.iter().all(|queue| queue.entries.len() < FEW));
    }

    fn runtime() -> tokio::runtime::Runtime {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap()
    }

    #[test]
    fn a_runtime_that_nobody_drives_keeps_no_caller_on_another_waiting() {
        let (first, second) = (runtime(), runtime());
        let pending = Pending::new();
        let wait = || {
            let (_, mut replies) = pending.register(Expect::Single);
            async move { replies.item_until(after(20)).await }
        };
        assert_eq!(first.block_on(wait()), None);
        let bounded = async { timeout(Duration::from_secs(60), wait()).await };
        assert_eq!(second.block_on(bounded), Ok(None));
        drop(first);
    }

    #[test]
    fn a_caller_outlives_the_runtime_of_the_task_that_watches() {
        let (first, second) = (runtime(), runtime());
        let pending = Pending::new();
        let (_, mut replies) = pending.register(Expect::Single);
        let mut waiting = Box::pin(replies.item_until(after(50)));
        first.block_on(async {
            tokio::select! {
                biased;
                _ = &mut waiting => panic!("nobody has replied, and it is not late"),
                () = tokio::task::yield_now() => {}
            }
        });
        drop(first);
        assert_eq!(second.block_on(waiting), None);
    }
}
