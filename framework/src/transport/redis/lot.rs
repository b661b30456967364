//! Which entries this process holds: read, and not yet settled.

use std::{
    collections::{HashSet, VecDeque},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::time::Instant;

use super::wire::Id;
use crate::transport::pending::lock;

/// The entries that came with one read: one allocation for all of them.
pub(super) struct Lot {
    read_at: Instant,
    entries: Vec<Slot>,
}

struct Slot {
    stream: usize,
    id: Id,
    open: AtomicBool,
}

impl Lot {
    pub(super) fn new(entries: impl Iterator<Item = (usize, Id)>) -> Arc<Self> {
        let slot = |(stream, id)| Slot {
            stream,
            id,
            open: AtomicBool::new(true),
        };
        Arc::new(Self {
            read_at: Instant::now(),
            entries: entries.map(slot).collect(),
        })
    }
}

/// One entry that we hold, until it is settled.
pub(super) struct Held {
    lot: Arc<Lot>,
    index: usize,
}

impl Held {
    /// The entry at `index` of the lot.
    pub(super) fn new(lot: &Arc<Lot>, index: usize) -> Self {
        Self {
            lot: Arc::clone(lot),
            index,
        }
    }

    pub(super) fn stream(&self) -> usize {
        self.lot.entries[self.index].stream
    }

    pub(super) fn id(&self) -> Id {
        self.lot.entries[self.index].id
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.lot.entries[self.index]
            .open
            .store(false, Ordering::Release);
    }
}

/// All lots with entries in work.
#[derive(Default)]
pub(super) struct Lots(Mutex<VecDeque<Weak<Lot>>>);

impl Lots {
    pub(super) fn add(&self, lot: &Arc<Lot>) {
        let mut lots = lock(&self.0);
        while lots.front().is_some_and(|lot| lot.strong_count() == 0) {
            lots.pop_front();
        }
        lots.push_back(Arc::downgrade(lot));
    }

    /// The entries of stream `stream` that are in work.
    pub(super) fn held(&self, stream: usize) -> HashSet<Id> {
        let mut held = HashSet::new();
        self.visit(|_, slot| {
            if slot.stream == stream {
                held.insert(slot.id);
            }
        });
        held
    }

    /// The entries read before `instant` that are still in work, by the index of their stream.
    pub(super) fn older(&self, instant: Instant, streams: usize) -> Vec<Vec<Id>> {
        let mut older = vec![Vec::new(); streams];
        self.visit(|lot, slot| {
            if lot.read_at <= instant {
                older[slot.stream].push(slot.id);
            }
        });
        older
    }

    fn visit(&self, mut see: impl FnMut(&Lot, &Slot)) {
        let mut lots = lock(&self.0);
        lots.retain(|lot| lot.strong_count() > 0);
        let alive: Vec<_> = lots.iter().filter_map(Weak::upgrade).collect();
        drop(lots);
        for lot in alive {
            for slot in lot
                .entries
                .iter()
                .filter(|slot| slot.open.load(Ordering::Acquire))
            {
                see(&lot, slot);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_held_until_it_is_settled() {
        let id = |millis| Id {
            millis,
            sequence: 0,
        };
        let lots = Lots::default();
        let lot = Lot::new([(0, id(1)), (1, id(2))].into_iter());
        lots.add(&lot);
        let (one, two) = (Held::new(&lot, 0), Held::new(&lot, 1));
        drop(lot);
        assert_eq!(lots.held(0), HashSet::from([id(1)]));
        assert_eq!((two.stream(), two.id()), (1, id(2)));
        assert_eq!(lots.older(Instant::now(), 2), [vec![id(1)], vec![id(2)]]);
        drop(one);
        assert!(lots.held(0).is_empty());
        drop(two);
        assert!(lots.older(Instant::now(), 2).iter().all(Vec::is_empty));
    }
}
