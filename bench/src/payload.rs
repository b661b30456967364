//! What is sent: a record whose JSON has a given size.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use nestling::Codec;
use serde::{Deserialize, Serialize};

/// `{"at":…,"body":"…"}` around a time of sixteen digits and an empty body.
const FRAME: usize = 33;

/// In nanoseconds.
const MICRO: u64 = 1_000;

/// The one message and event of the comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Payload {
    /// When it was sent, in microseconds since 1970, which JavaScript can count; both ends run on one
    /// machine.
    pub(crate) at: u64,
    pub(crate) body: String,
}

impl Payload {
    /// One whose JSON has `size` bytes.
    pub(crate) fn of(size: usize) -> Result<Self> {
        ensure!(size >= FRAME, "a payload has at least {FRAME} bytes");
        Ok(Self {
            at: now()? / MICRO,
            body: "x".repeat(size - FRAME),
        })
    }

    /// The same, sent now.
    pub(crate) fn again(&self) -> Result<Self> {
        Ok(Self {
            at: now()? / MICRO,
            body: self.body.clone(),
        })
    }

    /// Nanoseconds since it was sent, at `now`.
    pub(crate) fn age(&self, now: u64) -> u64 {
        now.saturating_sub(self.at * MICRO)
    }

    pub(crate) fn encode(&self, codec: Codec) -> Result<Vec<u8>> {
        Ok(match codec {
            Codec::Bincode => bincode::serde::encode_to_vec(self, bincode::config::standard())?,
            _ => serde_json::to_vec(self)?,
        })
    }

    pub(crate) fn decode(codec: Codec, bytes: &[u8]) -> Result<Self> {
        Ok(match codec {
            Codec::Bincode => {
                bincode::serde::decode_from_slice(bytes, bincode::config::standard())?.0
            }
            _ => serde_json::from_slice(bytes)?,
        })
    }
}

/// Nanoseconds since 1970.
pub(crate) fn now() -> Result<u64> {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH)?;
    u64::try_from(elapsed.as_nanos()).context("a time before the year 2554")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_json_has_the_size_that_was_asked_for() {
        for size in [33, 64, 1024, 262_144] {
            let payload = Payload::of(size).unwrap();
            let json = payload.encode(Codec::Json).unwrap();
            assert_eq!(json.len(), size);
            assert_eq!(Payload::decode(Codec::Json, &json).unwrap(), payload);
        }
        assert!(Payload::of(32).is_err());
    }
}
