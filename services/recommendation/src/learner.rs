//! Keeps the model up with the baskets, beside the handlers that read it.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use contracts::{OrderId, ProductId};
use tokio::{sync::Notify, time::Instant};

use crate::{
    baskets::Baskets,
    model::{Cosine, Model},
};

/// The least time between two fits.
const PAUSE: Duration = Duration::from_secs(1);
/// How much of a core fitting may take: one part in so many.
const SHARE: u32 = 10;

/// The baskets, the model fitted on them, and word of a change.
#[derive(Clone)]
pub(crate) struct Learner {
    shared: Arc<Shared>,
}

struct Shared {
    baskets: Mutex<Baskets>,
    model: RwLock<Arc<dyn Model>>,
    changed: Notify,
}

impl Learner {
    pub(crate) fn new(baskets: Baskets) -> Self {
        let model: Arc<dyn Model> = Arc::new(Cosine::fit(Baskets::default().snapshot()));
        let shared = Shared {
            baskets: Mutex::new(baskets),
            model: RwLock::new(model),
            changed: Notify::new(),
        };
        // What was there at start is to be learned first.
        shared.changed.notify_one();
        Self {
            shared: Arc::new(shared),
        }
    }

    pub(crate) fn add(&self, order: OrderId, products: &[ProductId]) {
        self.change(|baskets| baskets.add(order, products));
    }

    pub(crate) fn remove(&self, order: OrderId) {
        self.change(|baskets| baskets.remove(order));
    }

    fn change(&self, change: impl FnOnce(&mut Baskets)) {
        // A change is whole or panics before it is made, so a poisoned lock holds good baskets.
        change(
            &mut self
                .shared
                .baskets
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        self.shared.changed.notify_one();
    }

    /// The latest model.
    pub(crate) fn model(&self) -> Arc<dyn Model> {
        Arc::clone(
            &self
                .shared
                .model
                .read()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    /// Fits whenever something has changed, for as long as the service runs: at once the first time,
    /// and then with pauses, so that an import does not keep a core busy.
    pub(crate) async fn learn(self) {
        loop {
            self.shared.changed.notified().await;
            let started = Instant::now();
            let snapshot = self
                .shared
                .baskets
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .snapshot();
            match tokio::task::spawn_blocking(move || Cosine::fit(snapshot)).await {
                Ok(fitted) => {
                    let took = started.elapsed();
                    tracing::debug!(model = ?fitted, ?took, "fitted");
                    let mut model = self
                        .shared
                        .model
                        .write()
                        .unwrap_or_else(PoisonError::into_inner);
                    *model = Arc::new(fitted);
                }
                Err(error) => tracing::error!(%error, "the model could not be fitted"),
            }
            tokio::time::sleep(PAUSE.max(started.elapsed() * SHARE)).await;
        }
    }
}

impl fmt::Debug for Learner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Learner")
            .field("model", &self.model())
            .finish_non_exhaustive()
    }
}
