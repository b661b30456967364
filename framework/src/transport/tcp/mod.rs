//! TCP between two processes, without a broker: many calls in flight on one connection, replies in
//! completion order.
//!
//! The wire is described in `docs/wire/tcp.md`. Nothing is stored: an event reaches the one peer it
//! is sent to if that is there, and replicas share the work because clients spread their calls
//! over the addresses they were given.

mod alive;
mod answer;
mod client;
mod connection;
mod frame;
mod input;
mod link;
mod outbox;
mod server;

use std::sync::Arc;

use self::{client::TcpClient, server::TcpServer};
use super::{
    Address, Capabilities, ClientTransport, Error, ErrorKind, Order, Scheme, ServerTransport,
};
use crate::contract::Guarantee;

pub(super) const SCHEME: Scheme = Scheme {
    name: NAME,
    options: &["max_frame", "wire"],
    server: |address| {
        Box::pin(async move {
            let settings = Settings::read(&address)?;
            Ok(Arc::new(TcpServer::new(settings)) as Arc<dyn ServerTransport>)
        })
    },
    client: |address, _| {
        Box::pin(async move {
            let settings = Settings::read(&address)?;
            Ok(Arc::new(TcpClient::new(settings)) as Arc<dyn ClientTransport>)
        })
    },
};

const NAME: &str = "tcp";
const DEFAULT_PORT: u16 = 3000;
const DEFAULT_MAX_FRAME: usize = 16 * 1024 * 1024;
const GREATEST_MAX_FRAME: usize = 1024 * 1024 * 1024;

/// What a URL says.
#[derive(Clone, Debug)]
struct Settings {
    hosts: Vec<String>,
    max_frame: usize,
}

impl Settings {
    fn read(address: &Address) -> Result<Self, Error> {
        let config =
            |what: String| Err(Error::new(ErrorKind::Config, format!("{address}: {what}")));
        let hosts = address.hosts(DEFAULT_PORT);
        if hosts.is_empty() {
            return config("names no host".to_owned());
        }
        match address.option("wire") {
            None | Some("native") => {}
            Some(wire) => return config(format!("tcp does not speak the wire {wire:?}")),
        }
        let max_frame = address
            .parsed_option("max_frame")?
            .unwrap_or(DEFAULT_MAX_FRAME);
        if !(frame::LEAST_FRAME..=GREATEST_MAX_FRAME).contains(&max_frame) {
            let least = frame::LEAST_FRAME;
            return config(format!(
                "max_frame has to be from {least} to {GREATEST_MAX_FRAME}"
            ));
        }
        Ok(Self { hosts, max_frame })
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            events: Guarantee::BestEffort,
            replicas_share: true,
            fan_out: false,
            durable: false,
            order: Order::Connection,
            redelivers: false,
            cancels: true,
            stream_credit: true,
            detects_absence: true,
            max_payload: self.max_payload(),
        }
    }

    fn max_payload(&self) -> usize {
        self.max_frame - frame::OVERHEAD
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str) -> Result<Settings, Error> {
        Settings::read(&url.parse()?)
    }

    #[test]
    fn a_url_without_options_has_defaults() {
        let settings = settings("tcp://localhost").unwrap();
        assert_eq!(settings.hosts, ["localhost:3000"]);
        assert_eq!(
            settings.capabilities().max_payload,
            DEFAULT_MAX_FRAME - frame::OVERHEAD
        );
    }

    #[test]
    fn urls_that_make_no_sense_are_refused() {
        for url in [
            "tcp://",
            "tcp://h?wire=morse",
            "tcp://h?max_frame=1",
            "tcp://h?max_frame=x",
        ] {
            assert_eq!(
                settings(url).unwrap_err().kind(),
                ErrorKind::Config,
                "{url}"
            );
        }
    }
}
