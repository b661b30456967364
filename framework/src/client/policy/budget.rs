//! How many retries a client may make in all: [`Budget`].

use std::sync::atomic::{AtomicU64, Ordering};

/// What one retry costs, in the unit that [`Budget`] counts in.
const RETRY: u64 = 1000;
/// Retries that a client may make before it has earned any, and the most it saves up.
const RESERVE: u64 = 10 * RETRY;

/// A token bucket: calls put shares of a token in, a retry takes a whole one out.
#[derive(Debug)]
pub(super) struct Budget(AtomicU64);

impl Budget {
    pub(super) fn new() -> Self {
        Self(AtomicU64::new(RESERVE))
    }

    /// A call was made that is worth `share` of a retry.
    pub(super) fn earn(&self, share: f64) {
        let earned = (share.clamp(0.0, 1.0) * RETRY as f64) as u64;
        self.update(|tokens| Some(RESERVE.min(tokens + earned)));
    }

    /// Takes what a retry costs, if it is there.
    pub(super) fn spend(&self) -> bool {
        self.update(|tokens| tokens.checked_sub(RETRY))
    }

    fn update(&self, change: impl FnMut(u64) -> Option<u64>) -> bool {
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, change)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_a_share_of_the_calls_and_a_reserve() {
        for seed in 0..20 {
            let mut random = fastrand::Rng::with_seed(seed);
            let budget = Budget::new();
            let (mut calls, mut retries) = (0_u64, 0_u64);
            for _ in 0..10_000 {
                if random.bool() {
                    budget.earn(0.1);
                    calls += 1;
                } else {
                    retries += u64::from(budget.spend());
                }
                assert!(retries <= 10 + calls / 10, "{retries} after {calls} calls");
            }
            assert!(retries > calls / 11, "the budget is there to be used");
        }
    }

    #[test]
    fn a_quiet_time_saves_no_more_than_the_reserve() {
        let budget = Budget::new();
        (0..10_000).for_each(|_| budget.earn(1.0));
        assert_eq!((0..100).filter(|_| budget.spend()).count(), 10);
    }
}
