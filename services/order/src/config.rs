//! The service's times and bounds, and the clock it reads.

use std::{fmt, sync::Arc, time::Duration};

use contracts::{Currency, Timestamp};

/// Tells the time; tests pass one they can move.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// A clock that asks `now`.
    pub fn new(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// What it shows.
    pub fn now(&self) -> Timestamp {
        (self.0)()
    }
}

/// The clock of this machine.
impl Default for Clock {
    fn default() -> Self {
        Self::new(Timestamp::now)
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// How long things may take and how often they are tried.
#[derive(Clone, Debug)]
pub struct Config {
    /// The currency of an empty cart.
    pub currency: Currency,
    /// How long the prices of a quote hold.
    pub quote_ttl: Duration,
    /// When a placed order without an answer about its stock is rejected.
    pub reserve_deadline: Duration,
    /// When an order that is not paid for is rejected.
    pub payment_deadline: Duration,
    /// How much longer than until the payment deadline stock is held.
    pub hold_margin: Duration,
    /// How often due sagas are looked for.
    pub tick: Duration,
    /// The pause before the second try of a step; it doubles with each quick retry.
    pub first_retry: Duration,
    /// How many retries are quick.
    pub quick_retries: u32,
    /// The pause between the tries after those.
    pub steady_retry: Duration,
    /// The pause before payment is asked again about a pending authorisation; it doubles up to
    /// [`steady_retry`](Self::steady_retry).
    pub pending_retry: Duration,
    /// How long a call to another service may take.
    pub call_timeout: Duration,
    /// How long a step is its runner's alone; longer than the calls of a step, because a step whose
    /// runner crashed is taken up again after it.
    pub lease: Duration,
    /// How many sagas run at once.
    pub concurrency: usize,
    /// The replica's stable name, if it has one: it takes up at once what it left in a crash.
    pub instance: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            currency: Currency::EUR,
            quote_ttl: Duration::from_secs(600),
            reserve_deadline: Duration::from_secs(60),
            payment_deadline: Duration::from_secs(600),
            hold_margin: Duration::from_secs(300),
            tick: Duration::from_secs(1),
            first_retry: Duration::from_millis(100),
            quick_retries: 5,
            steady_retry: Duration::from_secs(5),
            pending_retry: Duration::from_millis(500),
            call_timeout: Duration::from_secs(4),
            lease: Duration::from_secs(10),
            concurrency: 64,
            instance: None,
        }
    }
}

impl Config {
    /// For how long stock is reserved.
    pub fn hold(&self) -> Duration {
        self.payment_deadline + self.hold_margin
    }

    /// The pause after the `tries`-th failed try of a step, counted from 1.
    pub fn retry_after(&self, tries: u32) -> Duration {
        if tries > self.quick_retries {
            return self.steady_retry;
        }
        doubled(self.first_retry, tries).min(self.steady_retry)
    }

    /// The pause after the `tries`-th time that an authorisation was pending, counted from 1.
    pub fn pending_after(&self, tries: u32) -> Duration {
        doubled(self.pending_retry, tries).min(self.steady_retry)
    }
}

fn doubled(first: Duration, tries: u32) -> Duration {
    first.saturating_mul(1 << tries.saturating_sub(1).min(16))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_are_quick_at_first_and_then_steady() {
        let config = Config::default();
        let pauses: Vec<_> = (1..=7)
            .map(|tries| config.retry_after(tries).as_millis())
            .collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 5000, 5000]);
        assert_eq!(config.pending_after(u32::MAX), config.steady_retry);
    }
}
