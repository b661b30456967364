//! How work that has waited comes by a permit: [`Turnstile`].

use std::sync::Arc;

use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};

/// The way back to a permit for the events, or for the messages, that waited at one source: one at a time, in the order of asking.
///
/// Permits go to those who ask first. A thousand events that ask for their next try would all be
/// served before the sources that ask for one; so, they take turns with them.
#[derive(Clone)]
pub(super) struct Turnstile {
    permits: Arc<Semaphore>,
    gate: Arc<Mutex<()>>,
}

impl Turnstile {
    pub(super) fn new(permits: Arc<Semaphore>) -> Self {
        let gate = Arc::default();
        Self { permits, gate }
    }

    /// Waits for a permit; nobody closes the semaphore, so there is one in the end.
    pub(super) async fn permit(&self) -> Option<OwnedSemaphorePermit> {
        let turn = self.gate.lock().await;
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        drop(turn);
        permit.ok()
    }
}
