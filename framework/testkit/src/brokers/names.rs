//! Names that no other test uses.

use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher,
    process,
    sync::atomic::{AtomicU64, Ordering},
};

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// A name for one test's subjects, topics, streams or folders: the prefix, the pid, a number and chance, joined by
/// dashes. Chance keeps apart what two runs leave on one broker, as pids come round again.
#[must_use]
pub fn unique(prefix: &str) -> String {
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let chance = random() as u32;
    format!("{prefix}-{}-{number}-{chance:08x}", process::id())
}

/// A random number for names; the standard library seeds its hashers from the system.
pub(crate) fn random() -> u64 {
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    RandomState::new().hash_one(number)
}
