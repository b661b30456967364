//! A provider whose answers get lost.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use contracts::{Money, PaymentId, Secret, payment::Card};
use nestling::sqlite;
use payment::{Answer, Charge, Provider, ProviderError, Simulator, StoredCard};

use crate::shop::{Shop, shop_with};

/// Does what it is told and loses the answer while `is_silent`.
#[derive(Debug)]
pub(crate) struct Lossy {
    inner: Simulator,
    pub(crate) is_silent: AtomicBool,
}

impl Lossy {
    fn lose<'a, T: Send + 'a>(&'a self, answer: Answer<'a, T>) -> Answer<'a, T> {
        Box::pin(async move {
            let answer = answer.await;
            if self.is_silent.load(Ordering::SeqCst) {
                Err(ProviderError::NoAnswer)
            } else {
                answer
            }
        })
    }
}

impl Provider for Lossy {
    fn tokenize(&self, card: Card) -> Answer<'_, StoredCard> {
        self.inner.tokenize(card)
    }

    fn authorize(&self, id: PaymentId, token: Secret, amount: Money) -> Answer<'_, Charge> {
        self.lose(self.inner.authorize(id, token, amount))
    }

    fn capture(&self, id: PaymentId) -> Answer<'_, Charge> {
        self.lose(self.inner.capture(id))
    }

    fn void(&self, id: PaymentId) -> Answer<'_, Charge> {
        self.lose(self.inner.void(id))
    }

    fn refund(&self, id: PaymentId) -> Answer<'_, Charge> {
        self.lose(self.inner.refund(id))
    }

    fn status(&self, id: PaymentId) -> Answer<'_, Charge> {
        self.lose(self.inner.status(id))
    }
}

pub(crate) async fn lossy_shop() -> (Shop, Arc<Lossy>) {
    let pool = sqlite::open_in_memory().await.unwrap();
    let (inner, task) = Simulator::start(pool.clone()).await.unwrap();
    let provider = Arc::new(Lossy {
        inner,
        is_silent: AtomicBool::new(true),
    });
    (shop_with(provider.clone(), pool, task).await, provider)
}
