//! What services give up, for as long as the process lives.

use std::sync::atomic::Ordering;

use async_trait::async_trait;

use super::{Hub, Memory};
use crate::transport::{DeadLetter, DeadLetters, Error, pending::lock};

/// The most dead letters that are kept; the oldest go first.
const MOST_DEAD: usize = 4096;

impl Hub {
    pub(super) fn bury(&self, dead_letter: DeadLetter) {
        let id = self.next_dead.fetch_add(1, Ordering::Relaxed);
        let mut dead_letters = lock(&self.dead_letters);
        if dead_letters.len() == MOST_DEAD {
            tracing::error!("the oldest dead letter is dropped: there are too many");
            dead_letters.pop_front();
        }
        dead_letters.push_back((id, dead_letter));
    }
}

#[async_trait]
impl DeadLetters for Memory {
    async fn list(
        &self,
        service: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, DeadLetter)>, Error> {
        let after = after.and_then(|id| id.parse::<u64>().ok());
        let dead_letters = lock(&self.hub.dead_letters);
        let wanted = dead_letters
            .iter()
            .filter(|(id, dead)| dead.service == service && after.is_none_or(|after| *id > after));
        Ok(wanted
            .take(limit)
            .map(|(id, dead)| (id.to_string(), dead.clone()))
            .collect())
    }

    async fn find(&self, service: &str, id: &str) -> Result<Option<DeadLetter>, Error> {
        let dead_letters = lock(&self.hub.dead_letters);
        let found = dead_letters
            .iter()
            .find(|(other, dead)| other.to_string() == id && dead.service == service);
        Ok(found.map(|(_, dead)| dead.clone()))
    }

    async fn discard(&self, service: &str, id: &str) -> Result<bool, Error> {
        let mut dead_letters = lock(&self.hub.dead_letters);
        let before = dead_letters.len();
        dead_letters.retain(|(other, dead)| other.to_string() != id || dead.service != service);
        Ok(dead_letters.len() < before)
    }
}
