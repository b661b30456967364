//! [`Caller`]: the calling side of a contestant.

use anyhow::Result;
use async_trait::async_trait;

use crate::payload::Payload;

/// One connection to a server.
#[async_trait]
pub(crate) trait Caller: Send + Sync {
    /// Sends the payload and waits for what the workload says: its reply, all values of a stream, or the
    /// acknowledgement of an event. Returns how many messages that were.
    async fn act(&self, payload: &Payload) -> Result<u32>;
}
