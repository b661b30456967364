//! TLS and credentials where they go wrong; where they go right, the conformance suite runs over them.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers too"
)]

mod brokers;
mod captured;
#[cfg(feature = "kafka-tls")]
mod kafka;
mod secrets;
mod stage;
mod tcp;
