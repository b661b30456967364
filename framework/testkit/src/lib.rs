//! What nestling's tests and `cargo xtask` need from the outside world: real brokers, and real NestJS applications.
//!
//! [`Broker::start`] runs a NATS, Redis or Kafka server of one's own on a free port; [`shared`] hands out one per test
//! process, or the one that `TEST_NATS_URL`, `TEST_REDIS_URL` or `TEST_KAFKA_URL` names. A broker started here never
//! outlives the process that started it, even if that one is killed with `SIGKILL`: see [`Process`].
//!
//! ```no_run
//! use nestling_testkit::{Kind, broker_or_skip, unique};
//!
//! # fn test() {
//! let Some(url) = broker_or_skip(Kind::Nats) else {
//!     return;
//! };
//! let subject = unique("greeting");
//! # }
//! ```

mod brokers;
mod cache;
#[cfg(feature = "suite")]
mod certificates;
pub mod clock;
pub mod nestjs;
mod process;
#[cfg(feature = "suite")]
mod proxy;
#[cfg(feature = "suite")]
pub mod suite;

pub use brokers::{
    Broker, Kind, Options, Security, Unavailable, broker_or_skip, find_program, kafka_jars,
    or_skip, shared, unique,
};
#[cfg(feature = "suite")]
pub use certificates::Authority;
pub use process::Process;
#[cfg(feature = "suite")]
pub use proxy::{Proxy, Way};
