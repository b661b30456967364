//! Events that may have ended the process that had them, tried one at a time.
//!
//! A broker knows what a process had in work when it died, and not what it died of. So a death is
//! held against nobody, and everything gets a second chance at once. What was in work at two deaths
//! without a word in between is on trial: the try is written down before it begins, and no other
//! event is on trial until it has ended. If the process dies again, the count meets the right one.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Of so many deaths that nobody explained an event must have been part to go on trial.
pub(super) const DEATHS: u64 = 2;

/// Who may be on trial: one event of all that a service gets from a broker.
#[derive(Clone, Debug)]
pub(super) struct Trials(Arc<Semaphore>);

/// The right to be tried, until it is dropped. The try has ended by then, or at least has been
/// reported to have failed.
#[derive(Debug)]
pub(super) struct Trial {
    _permit: OwnedSemaphorePermit,
}

impl Trials {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }

    /// Waits for its turn, in the order of asking.
    pub(super) async fn next(self) -> Trial {
        let permit = self.0.acquire_owned().await;
        Trial {
            _permit: permit.expect("nobody closes this semaphore"),
        }
    }

    /// Whether nobody is on trial.
    #[cfg(feature = "redis")]
    pub(super) fn is_free(&self) -> bool {
        self.0.available_permits() > 0
    }

    /// The same if it is free at once.
    pub(super) fn try_next(&self) -> Option<Trial> {
        let permit = Arc::clone(&self.0).try_acquire_owned().ok()?;
        Some(Trial { _permit: permit })
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn one_is_on_trial_at_a_time() {
        let trials = Trials::new();
        let first = trials.try_next().unwrap();
        assert!(trials.try_next().is_none());
        let mut second = Box::pin(trials.clone().next());
        assert!((&mut second).now_or_never().is_none());
        drop(first);
        assert!(trials.try_next().is_none(), "somebody has waited for it");
        assert!(second.now_or_never().is_some());
        assert!(trials.try_next().is_some());
    }
}
