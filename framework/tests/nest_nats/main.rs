//! The wire of NestJS on NATS: captured bytes in both roles, and what no capture shows.

#![cfg(feature = "nats")]
#![allow(
    clippy::unwrap_used,
    reason = "`allow-unwrap-in-tests` does not see helpers outside of tests"
)]

#[path = "../captured/mod.rs"]
mod captured;
mod edges;
mod peer;
mod vectors;
mod wires;

use nestling::{Router, Running, Server};
use nestling_testkit::{Broker, Kind, Options, or_skip};

/// A broker of a test's own, for tests whose subjects are not their own.
fn broker() -> Option<Broker> {
    or_skip(Broker::start(Kind::Nats, Options::default()))
}

async fn start(url: &str, service: &str, router: Router) -> Running {
    let server = Server::new(service, router).listen(url);
    server.start().await.expect("the server starts")
}
