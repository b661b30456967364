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
use nestling_testkit::{Broker, Kind, Options};

/// A broker of a test's own, for tests whose subjects are not their own.
fn broker() -> Option<Broker> {
    match Broker::start(Kind::Nats, Options::default()) {
        Ok(broker) => Some(broker),
        Err(unavailable) => {
            let required = std::env::var("REQUIRE_BROKERS");
            assert_ne!(required.as_deref(), Ok("1"), "{unavailable}");
            eprintln!("skipped: {unavailable}");
            None
        }
    }
}

async fn start(url: &str, service: &str, router: Router) -> Running {
    let server = Server::new(service, router).listen(url);
    server.start().await.expect("the server starts")
}
