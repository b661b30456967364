//! Redis: Streams with a consumer group per service, replies through a list per client; and beside
//! them the Pub/Sub channels of NestJS.
//!
//! Both wires are written down in `docs/wire/redis.md`.

mod client;
mod dead_letters;
mod link;
mod lot;
mod pubsub;
mod reader;
mod responder;
mod sender;
mod server;
mod wire;
mod writer;

use std::{sync::Arc, time::Duration};

use redis::{ProtocolVersion, RedisConnectionInfo};

use self::{
    client::RedisClient, dead_letters::RedisDeadLetters, pubsub::PubSubClient, server::RedisServer,
};
use super::{
    Address, Capabilities, ClientTransport, DeadLetters, Error, ErrorKind, Order, Scheme,
    ServerTransport, tls::Connector,
};
use crate::contract::Guarantee;

/// Streams, and what NestJS publishes: servers hear both, and clients choose.
pub(super) const SCHEME: Scheme = Scheme {
    name: "redis",
    options: &["claim_idle", "max_payload", "prefix", "wire"],
    server: |address| {
        Box::pin(async move {
            let hears = match address.option("wire") {
                None => Hears::Both,
                Some("native") => Hears::Streams,
                Some(other) => return Err(no_wire(&address, other, SERVER_WIRES)),
            };
            open_server(&address, hears)
        })
    },
    client: |address, identity| {
        Box::pin(async move {
            let options = Options::new(&address)?;
            let client: Arc<dyn ClientTransport> = match address.option("wire") {
                None | Some("native") => RedisClient::open(options, &identity).await?,
                Some("nest") => PubSubClient::open(options).await?,
                Some(other) => return Err(no_wire(&address, other, CLIENT_WIRES)),
            };
            Ok(client)
        })
    },
    dead_letters: Some(|address| {
        Box::pin(async move {
            if let Some(other) = address.option("wire").filter(|wire| *wire != "native") {
                return Err(no_wire(&address, other, DEAD_LETTERS_WIRE));
            }
            let kept: Arc<dyn DeadLetters> =
                RedisDeadLetters::open(Options::new(&address)?).await?;
            Ok(kept)
        })
    }),
};

/// The channels of NestJS only.
pub(super) const SCHEME_PUBSUB: Scheme = Scheme {
    name: "redis+pubsub",
    options: &["max_payload"],
    server: |address| Box::pin(async move { open_server(&address, Hears::Channels) }),
    client: |address, _| {
        Box::pin(async move {
            let client: Arc<dyn ClientTransport> =
                PubSubClient::open(Options::new(&address)?).await?;
            Ok(client)
        })
    },
    dead_letters: None,
};

const SERVER_WIRES: &str =
    "a server answers the native wire and that of NestJS, or with wire=native the former only";
const CLIENT_WIRES: &str = "the wire of a client is native or nest";
const DEAD_LETTERS_WIRE: &str = "only events of the native wire are kept when they are given up";

fn open_server(address: &Address, hears: Hears) -> Result<Arc<dyn ServerTransport>, Error> {
    Ok(Arc::new(RedisServer::new(Options::new(address)?, hears)))
}

fn no_wire(address: &Address, wire: &str, known: &str) -> Error {
    let message = format!("{address}: wire cannot be {wire:?}: {known}");
    Error::new(ErrorKind::Config, message)
}

/// What a server listens to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hears {
    Streams,
    Channels,
    Both,
}

/// How long the first connection may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long Redis may take to answer a command that does not block.
const ANSWER: Duration = Duration::from_secs(10);
/// What one pipeline carries at most, unless a single payload is larger: a quarter of a second on
/// a slow network, and far below what Redis buffers for a client.
const MOST_BYTES: usize = 16 << 20;

/// What the URL says.
#[derive(Clone)]
struct Options {
    /// The scheme.
    name: &'static str,
    /// `name:port`.
    host: String,
    tls: Option<Connector>,
    /// Database, protocol and credentials.
    settings: RedisConnectionInfo,
    /// The URL without its password.
    shown: String,
    /// What every key and channel starts with.
    prefix: String,
    /// After how long without a sign of life somebody else takes over an entry.
    claim_idle: Duration,
    max_payload: usize,
}

impl Options {
    fn new(address: &Address) -> Result<Arc<Self>, Error> {
        let config = |what: &str| Error::new(ErrorKind::Config, format!("{address}: {what}"));
        let mut hosts = address.hosts(6379);
        let host = match (hosts.pop(), hosts.is_empty()) {
            (Some(host), true) => host,
            (None, _) => "127.0.0.1:6379".to_owned(),
            (Some(_), false) => return Err(config("redis is reached through one host")),
        };
        let database = match address.path() {
            "" => 0,
            path => path
                .parse()
                .map_err(|_| config("the path is not the number of a database"))?,
        };
        let mut settings = RedisConnectionInfo::default()
            .set_db(database)
            .set_protocol(ProtocolVersion::RESP3);
        if let Some(user) = address.user().filter(|user| !user.is_empty()) {
            settings = settings.set_username(user);
        }
        if let Some(password) = address.password() {
            settings = settings.set_password(password);
        }
        let claim_idle = address.parsed_option("claim_idle")?.unwrap_or(5000);
        if claim_idle < 100 {
            return Err(config("claim_idle is at least 100 milliseconds"));
        }
        let schemes = [SCHEME.name, SCHEME_PUBSUB.name];
        let name = schemes.into_iter().find(|name| *name == address.scheme());
        Ok(Arc::new(Self {
            name: name.unwrap_or(SCHEME.name),
            host,
            tls: Connector::of(address)?,
            settings,
            shown: address.to_string(),
            prefix: address.option("prefix").unwrap_or("nestling").to_owned(),
            claim_idle: Duration::from_millis(claim_idle),
            max_payload: address.parsed_option("max_payload")?.unwrap_or(16 << 20),
        }))
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            events: Guarantee::AtLeastOnce,
            replicas_share: true,
            fan_out: true,
            durable: true,
            order: Order::KeyInReplica,
            redelivers: true,
            dead_letters: true,
            cancels: true,
            stream_credit: true,
            detects_absence: true,
            max_payload: self.max_payload,
        }
    }

    /// The stream that the requests of a pattern wait in.
    fn message_stream(&self, pattern: &str) -> String {
        format!("{}:message:{pattern}", self.prefix)
    }

    /// The stream of all events of the service that `pattern` begins with.
    fn event_stream(&self, pattern: &str) -> String {
        let producer = pattern.split('.').next().unwrap_or(pattern);
        format!("{}:events:{producer}", self.prefix)
    }

    /// The stream of what a service has given up.
    fn dead_stream(&self, service: &str) -> String {
        format!("{}:dead:{service}", self.prefix)
    }

    /// The channel of what callers of a pattern say about calls in work.
    fn control_channel(&self, pattern: &str) -> String {
        format!("{}:control:{pattern}", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::ClientIdentity;

    fn options(url: &str) -> Result<Arc<Options>, Error> {
        Options::new(&url.parse()?)
    }

    #[test]
    fn a_url_names_host_database_credentials_and_limits() {
        let options = options("redis://ada:p%40ss@[::1]/3?claim_idle=500&prefix=test").unwrap();
        assert_eq!(options.host, "[::1]:6379");
        let settings = &options.settings;
        assert_eq!(settings.db(), 3);
        assert_eq!(
            (settings.username(), settings.password()),
            (Some("ada"), Some("p@ss"))
        );
        assert_eq!(options.claim_idle, Duration::from_millis(500));
        assert_eq!(
            options.event_stream("order.placed.late"),
            "test:events:order"
        );
        assert_eq!(options.message_stream("user.get"), "test:message:user.get");
        assert_eq!(options.dead_stream("a: b"), "test:dead:a: b");
    }

    #[tokio::test]
    async fn a_wire_that_is_not_there_is_refused_by_name() {
        let check = async |url: &str, side: &str, says: &str| {
            let address: Address = url.parse().unwrap();
            let identity = ClientIdentity {
                service: "s".to_owned(),
                instance: "i".to_owned(),
            };
            let error = match side {
                "server" => (SCHEME.server)(address).await.err(),
                "client" => (SCHEME.client)(address, identity).await.err(),
                _ => (SCHEME.dead_letters.unwrap())(address).await.err(),
            };
            let error = error.unwrap();
            assert_eq!(error.kind(), ErrorKind::Config, "{url}");
            assert!(error.to_string().contains(says), "{error}");
        };
        check("redis://a?wire=nest", "server", "wire=native").await;
        check("redis://a?wire=morse", "server", "wire=native").await;
        check("redis://a?wire=morse", "client", "native or nest").await;
        check("redis://a?wire=nest", "dead letters", "native wire").await;
    }

    #[test]
    fn a_url_that_makes_no_sense_is_refused() {
        for url in ["redis://a,b", "redis://a/x", "redis://a?claim_idle=1"] {
            assert_eq!(
                options(url).err().unwrap().kind(),
                ErrorKind::Config,
                "{url}"
            );
        }
    }
}
