//! The nest wire on Kafka: captured conversations of real NestJS applications, replayed by a raw
//! peer against our server and our client, and what no capture shows.

#![cfg(feature = "kafka")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod both_wires;
mod client;
mod edges;
mod peer;
mod server;
mod vectors;

use std::time::Duration;

use nestling::{Client, Router, Running, Server};

const SOON: Duration = Duration::from_secs(30);

/// The address of the broker that the tests of this process share; without one a test ends here.
macro_rules! kafka {
    () => {
        match nestling_testkit::broker_or_skip(nestling_testkit::Kind::Kafka) {
            Some(url) => url,
            None => return,
        }
    };
}
use kafka;

async fn start(url: &str, service: &str, router: Router) -> Running {
    Server::new(service, router)
        .retry(3, Duration::from_millis(1))
        .listen(url)
        .start()
        .await
        .unwrap()
}

async fn nest_client(url: &str) -> Client {
    Client::connect(format!("{url}?wire=nest")).await.unwrap()
}
