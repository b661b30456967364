//! How much of one handler's work may go on at once: [`Limit`].

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::RpcError;

/// How many messages may wait for each place at a handler, and how many for all of them. More would
/// be answered too late for most callers, and a refusal at once is worth more to them.
const QUEUE: usize = 16;
const LONGEST_QUEUE: usize = 1024;

/// The places at one handler; clones of a route share them. The default has no limit.
#[derive(Clone, Default)]
pub(crate) struct Limit(Option<Arc<Places>>);

struct Places {
    most: usize,
    free: Arc<Semaphore>,
    /// Room for messages that wait. Events are held back at their source instead.
    queue: Arc<Semaphore>,
}

/// A place at a handler, held while it works; nothing where the handler has no limit.
#[derive(Debug)]
pub(crate) struct Place {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Limit {
    /// `most` at once, at least one.
    pub(crate) fn new(most: usize) -> Self {
        let most = most.clamp(1, Semaphore::MAX_PERMITS);
        let queue = most.saturating_mul(QUEUE).min(LONGEST_QUEUE);
        Self(Some(Arc::new(Places {
            most,
            free: Arc::new(Semaphore::new(most)),
            queue: Arc::new(Semaphore::new(queue)),
        })))
    }

    pub(crate) fn is_some(&self) -> bool {
        self.0.is_some()
    }

    /// A place, if one is free and nobody waits for it.
    pub(crate) fn try_take(&self) -> Option<Place> {
        let permit = match &self.0 {
            None => None,
            Some(places) => Some(Arc::clone(&places.free).try_acquire_owned().ok()?),
        };
        Some(Place { _permit: permit })
    }

    /// A place, in the order of asking.
    pub(crate) async fn take(&self) -> Place {
        let permit = match &self.0 {
            None => None,
            // Nobody closes the semaphore.
            Some(places) => Arc::clone(&places.free).acquire_owned().await.ok(),
        };
        Place { _permit: permit }
    }

    /// Lets a message wait for a place, if not too many do.
    pub(crate) fn queue(&self) -> Option<OwnedSemaphorePermit> {
        let places = self.0.as_ref()?;
        Arc::clone(&places.queue).try_acquire_owned().ok()
    }

    /// What is told to the caller of a message that found no place, or not in time.
    pub(crate) fn exhausted(&self, pattern: &str) -> RpcError {
        let most = self.0.as_ref().map_or(0, |places| places.most);
        RpcError::resource_exhausted(format!("{most} of {pattern} are in work, and others wait"))
    }
}
