//! What a service keeps of the events it gives up, where their transport has no place for them.

use std::{fmt, sync::Arc, time::Duration};

use tokio::time::{sleep, timeout};

use super::Origin;
use crate::transport::{DeadLetter, DeadLetterStore, Rejection};

/// How long one try to store a dead letter may take.
const STORING: Duration = Duration::from_secs(10);
/// The pause after the first try that failed, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const MOST_PAUSE: Duration = Duration::from_secs(10);

/// The place for them, if the service has one.
#[derive(Clone, Default)]
pub(super) struct Kept(pub(super) Option<Arc<dyn DeadLetterStore>>);

impl Kept {
    /// Stores what was given up, again and again until it is stored; nothing if the transport does
    /// that when it is told. Dropped at the end of a drain, it says what is lost.
    pub(super) async fn keep(&self, service: &str, origin: Origin, rejection: &Rejection) {
        let Some(store) = self.0.as_ref().filter(|_| !origin.dead_letters) else {
            return;
        };
        let mut pause = FIRST_PAUSE;
        let mut burial = Burial::new(&rejection.envelope.pattern);
        while !burial.is_done {
            let dead_letter = DeadLetter::new(service, rejection.clone());
            let error = match timeout(STORING, store.keep(dead_letter)).await {
                Ok(Ok(())) => {
                    burial.is_done = true;
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("it took over {STORING:?}"),
            };
            let pattern = burial.pattern;
            tracing::warn!(
                pattern,
                error,
                "a dead letter cannot be stored, trying again"
            );
            sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            pause = pause.saturating_mul(2).min(MOST_PAUSE);
        }
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Kept").field(&self.0.is_some()).finish()
    }
}

/// A dead letter on its way to where it is kept.
struct Burial<'a> {
    pattern: &'a str,
    is_done: bool,
}

impl<'a> Burial<'a> {
    fn new(pattern: &'a str) -> Self {
        let is_done = false;
        Self { pattern, is_done }
    }
}

impl Drop for Burial<'_> {
    fn drop(&mut self) {
        if !self.is_done {
            let pattern = self.pattern;
            tracing::error!(pattern, "the server ends before a dead letter was stored");
        }
    }
}
