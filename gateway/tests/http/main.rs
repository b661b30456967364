//! The gateway over fake services on the memory transport.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod auth;
mod failures;
mod fakes;
mod orders;
mod problems;
mod routes;
mod shop;
mod system;
