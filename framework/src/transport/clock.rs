//! What time it is at a broker, whose clock need not agree with this machine's.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// The broker's clock, as far as its last answer tells.
pub(super) struct Clock {
    origin: Instant,
    /// What the broker's clock showed at `origin`, in milliseconds.
    offset: AtomicI64,
}

impl Clock {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            origin: Instant::now(),
            offset: AtomicI64::new(0),
        })
    }

    /// It showed `millis` at some moment between then and now.
    pub(super) fn showed(&self, millis: i64, since: Instant) {
        self.set(millis, since + since.elapsed() / 2);
    }

    fn set(&self, millis: i64, halfway: Instant) {
        let offset = millis.saturating_sub(self.local(halfway));
        self.offset.store(offset, Ordering::Relaxed);
    }

    /// It has shown `millis` already.
    #[cfg(feature = "kafka")]
    pub(super) fn has_shown(&self, millis: i64, now: Instant) {
        let offset = millis.saturating_sub(self.local(now));
        self.offset.fetch_max(offset, Ordering::Relaxed);
    }

    /// How long ago it showed `millis`.
    pub(super) fn since(&self, millis: u64, now: Instant) -> Duration {
        let offset = self.offset.load(Ordering::Relaxed);
        let broker = offset.saturating_add(self.local(now));
        Duration::from_millis(u64::try_from(broker).unwrap_or(0).saturating_sub(millis))
    }

    fn local(&self, now: Instant) -> i64 {
        let since = now.saturating_duration_since(self.origin).as_millis();
        i64::try_from(since).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_time_is_read_from_the_brokers_clock() {
        let clock = Clock::new();
        let now = Instant::now();
        clock.set(1_000_500, now);
        let later = now + Duration::from_millis(250);
        assert_eq!(clock.since(1_000_600, later), Duration::from_millis(150));
        assert_eq!(clock.since(2_000_000, later), Duration::ZERO);
    }

    #[cfg(feature = "kafka")]
    #[test]
    fn what_it_has_shown_can_only_put_it_forward() {
        let clock = Clock::new();
        let now = Instant::now();
        clock.set(1_000_500, now);
        clock.has_shown(1_000_400, now);
        assert_eq!(clock.since(1_000_000, now), Duration::from_millis(500));
        clock.has_shown(4_600_500, now);
        assert_eq!(clock.since(4_600_000, now), Duration::from_millis(500));
    }
}
