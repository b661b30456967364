//! When the callers of one client stop waiting: [`Deadlines`].
//!
//! A timer for each call is most of what waiting costs, and nearly all are taken down before they fire.
//! So those of one client are a queue, in their order, with one task that sleeps until the first is
//! past. Calls that have ended stay in it until there are more of them than of those that wait.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, Weak},
    task::Waker,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::{Pending, Slot, lock};
use crate::transport::Task;

/// How many entries are kept before those of calls that have ended are looked for.
const FEW: usize = 64;

/// The queue of one client, and the task that watches it.
pub(super) struct Deadlines {
    queue: Mutex<Queue>,
    /// There is an earlier one than the task knows of.
    changed: Arc<Notify>,
}

struct Queue {
    /// Sorted. A call may have several: it waits for each value of a stream.
    entries: VecDeque<(Instant, u64)>,
    /// How many there may be before they are looked through.
    room: usize,
    is_watched: bool,
    task: Option<Task>,
}

impl Default for Deadlines {
    fn default() -> Self {
        let queue = Queue {
            entries: VecDeque::new(),
            room: FEW,
            is_watched: false,
            task: None,
        };
        Self {
            queue: Mutex::new(queue),
            changed: Arc::default(),
        }
    }
}

impl Pending {
    /// Has the caller of `id` woken at `deadline`, if it still waits then.
    pub(super) fn watch(self: &Arc<Self>, deadline: Instant, id: u64) {
        let (is_first, is_watched) = {
            let mut queue = lock(&self.deadlines.queue);
            if queue.entries.len() >= queue.room {
                let waiting = lock(&self.table);
                queue.entries.retain(|(_, id)| waiting.contains_key(id));
                queue.room = FEW + 2 * queue.entries.len();
            }
            let is_first = queue.insert(deadline, id);
            (is_first, std::mem::replace(&mut queue.is_watched, true))
        };
        if !is_watched {
            // Without the lock: a runtime that shuts down drops the task here and now.
            let task = Task::spawn(watch(Watcher(Arc::downgrade(self))));
            let earlier = lock(&self.deadlines.queue).task.replace(task);
            drop(earlier);
        } else if is_first {
            self.deadlines.changed.notify_one();
        }
    }

    /// Tells those callers whose time is over, and returns when the next one's is.
    fn expire(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut over: Vec<Waker> = Vec::new();
        let mut queue = lock(&self.deadlines.queue);
        let next = loop {
            match queue.entries.front() {
                Some(&(deadline, id)) if deadline <= now => {
                    queue.entries.pop_front();
                    let Some(slot) = self.slot(id) else { continue };
                    let (waker, later) = slot.expire(now);
                    over.extend(waker);
                    if let Some(later) = later {
                        queue.insert(later, id);
                    }
                }
                first => break first.map(|(deadline, _)| *deadline),
            }
        };
        drop(queue);
        over.into_iter().for_each(Waker::wake);
        next
    }

    fn slot(&self, id: u64) -> Option<Arc<Slot>> {
        lock(&self.table).get(&id).cloned()
    }
}

impl Queue {
    /// Whether it is now the first.
    fn insert(&mut self, deadline: Instant, id: u64) -> bool {
        let entries = &mut self.entries;
        // Most calls wait as long as the one before.
        let place = match entries.back() {
            Some((last, _)) if *last > deadline => {
                entries.partition_point(|(other, _)| *other <= deadline)
            }
            _ => entries.len(),
        };
        entries.insert(place, (deadline, id));
        place == 0
    }
}

async fn watch(watcher: Watcher) {
    while let Some(pending) = watcher.0.upgrade() {
        let next = pending.expire();
        let changed = Arc::clone(&pending.deadlines.changed);
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
/// woken, and start another.
struct Watcher(Weak<Pending>);

impl Drop for Watcher {
    fn drop(&mut self) {
        let Some(pending) = self.0.upgrade() else {
            return;
        };
        let entries = {
            let mut queue = lock(&pending.deadlines.queue);
            queue.is_watched = false;
            std::mem::take(&mut queue.entries)
        };
        for (_, id) in entries {
            let waker = pending.slot(id).and_then(|slot| slot.unwatch());
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
        assert!(lock(&pending.deadlines.queue).entries.len() < 2 * FEW);
    }

    #[test]
    fn a_caller_outlives_the_runtime_of_the_task_that_watches() {
        let runtime = || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
        };
        let (first, second) = (runtime().unwrap(), runtime().unwrap());
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
