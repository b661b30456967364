//! TCP between two processes, without a broker: many calls in flight on one connection, replies in
//! completion order.
//!
//! A server speaks two wires, and the first byte of a connection says which: the native one
//! (`frame`) and that of NestJS (`text`, `packet`). Both are described in `docs/wire/tcp.md`.
//!
//! Nothing is stored: an event reaches the one peer it is sent to if that is there, and replicas
//! share the work because clients spread their calls over the addresses they were given.

mod alive;
mod answer;
mod client;
mod closing;
mod connection;
#[cfg(any(test, fuzzing))]
pub(super) mod feed;
mod frame;
mod handshakes;
mod input;
mod link;
mod outbox;
mod packet;
mod server;
mod shared;
mod text;

use std::sync::Arc;

use self::{client::TcpClient, server::TcpServer};
use super::{
    Address, Capabilities, ClientTransport, Error, ErrorKind, Order, Scheme, ServerTransport, Wire,
    tls::{Acceptor, Connector},
};
use crate::contract::Guarantee;

pub(super) const SCHEME: Scheme = Scheme {
    name: NAME,
    options: &["max_frame", "wire"],
    server: |address| {
        Box::pin(async move {
            let settings = Settings::server(&address)?;
            let server = TcpServer::new(settings, Acceptor::of(&address)?);
            Ok(Arc::new(server) as Arc<dyn ServerTransport>)
        })
    },
    client: |address, _| {
        Box::pin(async move {
            let settings = Settings::client(&address)?;
            let client = TcpClient::new(settings, Connector::of(&address)?.as_ref());
            Ok(Arc::new(client) as Arc<dyn ClientTransport>)
        })
    },
    dead_letters: None,
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
    /// The wire that is asked for. Without one a server speaks all and a client the native one.
    wire: Option<Wire>,
}

impl Settings {
    fn server(address: &Address) -> Result<Self, Error> {
        let settings = Self::read(address)?;
        if settings.wire == Some(Wire::Nest) {
            let what = "a server speaks to NestJS applications without being asked to; \
                        only `wire=native`, to leave that off, can be said";
            return Err(config(address, what));
        }
        Ok(settings)
    }

    fn client(address: &Address) -> Result<Self, Error> {
        Self::read(address)
    }

    fn read(address: &Address) -> Result<Self, Error> {
        let config = |what: &str| Err(config(address, what));
        let hosts = address.hosts(DEFAULT_PORT);
        if hosts.is_empty() {
            return config("names no host");
        }
        if address.user().is_some() {
            return config(
                "there are no user names on TCP; a server that has to know its clients asks for their \
                 certificates: client_ca=FILE on its side, cert=FILE and key=FILE on theirs",
            );
        }
        let wire = match address.option("wire") {
            None => None,
            Some("native") => Some(Wire::Native),
            Some("nest") => Some(Wire::Nest),
            Some(other) => {
                return config(&format!(
                    "no wire {other:?}: a server's may be `native`, a client's `native` or `nest`"
                ));
            }
        };
        let max_frame = address
            .parsed_option("max_frame")?
            .unwrap_or(DEFAULT_MAX_FRAME);
        if !(frame::LEAST_FRAME..=GREATEST_MAX_FRAME).contains(&max_frame) {
            let least = frame::LEAST_FRAME;
            return config(&format!(
                "max_frame has to be from {least} to {GREATEST_MAX_FRAME}"
            ));
        }
        Ok(Self {
            hosts,
            max_frame,
            wire,
        })
    }

    /// NestJS's wire has neither a way to cancel nor credit for streams.
    fn capabilities(&self) -> Capabilities {
        let is_native = self.wire != Some(Wire::Nest);
        Capabilities {
            events: Guarantee::BestEffort,
            replicas_share: true,
            fan_out: false,
            durable: false,
            order: Order::Connection,
            redelivers: false,
            dead_letters: false,
            cancels: is_native,
            stream_credit: is_native,
            detects_absence: true,
            max_payload: self.max_payload(),
        }
    }

    fn max_payload(&self) -> usize {
        self.max_frame - frame::OVERHEAD
    }
}

fn config(address: &Address, what: &str) -> Error {
    Error::new(ErrorKind::Config, format!("{address}: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str) -> Result<Settings, Error> {
        Settings::client(&url.parse()?)
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
    fn a_server_is_not_asked_for_the_wire_it_speaks_anyhow() {
        let server = |url: &str| Settings::server(&url.parse()?).map(|settings| settings.wire);
        assert_eq!(server("tcp://h").unwrap(), None);
        assert_eq!(server("tcp://h?wire=native").unwrap(), Some(Wire::Native));
        let refused = server("tcp://h?wire=nest").unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Config);
        assert!(refused.to_string().contains("wire=native"), "{refused}");
        let client = settings("tcp://h?wire=nest").unwrap();
        assert_eq!(client.wire, Some(Wire::Nest));
        assert!(!client.capabilities().cancels && !client.capabilities().stream_credit);
    }

    #[test]
    fn urls_that_make_no_sense_are_refused() {
        for url in [
            "tcp://",
            "tcp://h?wire=morse",
            "tcp://h?wire=",
            "tcp://h?max_frame=1",
            "tcp://h?max_frame=x",
            "tcp://ada@h",
            "tcp://ada:secret@h",
        ] {
            assert_eq!(
                settings(url).unwrap_err().kind(),
                ErrorKind::Config,
                "{url}"
            );
        }
    }
}
