//! The wire of NestJS on Redis: captured bytes in both roles, and what no capture shows.

#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, reason = "a test may fail")]

#[path = "../captured/mod.rs"]
mod captured;
mod edges;
mod losses;
mod peer;
mod vectors;
mod wires;

use nestling::{Client, Router, Running, Server};
use nestling_testkit::{Broker, Kind, Options, or_skip};

/// A broker of a test's own, for tests whose channels are not their own.
fn broker() -> Option<Broker> {
    or_skip(Broker::start(Kind::Redis, Options::default()))
}

async fn start(url: &str, service: &str, router: Router) -> Running {
    let server = Server::new(service, router).listen(url);
    server.start().await.expect("the server starts")
}

/// A client that speaks the wire of NestJS.
async fn nest_client(url: &str) -> Client {
    let url = format!("{url}?wire=nest");
    Client::connect(url).await.expect("the client connects")
}
