//! Redis: Streams with a consumer group per service, replies through a list per client.
//!
//! The wire is written down in `docs/wire/redis.md`.

mod client;
mod link;
mod lot;
mod reader;
mod responder;
mod sender;
mod server;
mod wire;
mod writer;

use std::{sync::Arc, time::Duration};

use redis::{
    ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, RedisConnectionInfo,
    io::tcp::TcpSettings,
};

use self::{client::RedisClient, server::RedisServer};
use super::{
    Address, Capabilities, ClientTransport, Error, ErrorKind, Order, Scheme, ServerTransport,
};
use crate::contract::Guarantee;

pub(super) const SCHEME: Scheme = Scheme {
    name: "redis",
    options: &["claim_idle", "max_payload", "prefix", "wire"],
    server: |address| {
        Box::pin(async move {
            let server: Arc<dyn ServerTransport> =
                Arc::new(RedisServer::new(Options::new(&address)?));
            Ok(server)
        })
    },
    client: |address, identity| {
        Box::pin(async move {
            let options = Options::new(&address)?;
            let client: Arc<dyn ClientTransport> = RedisClient::open(options, &identity).await?;
            Ok(client)
        })
    },
};

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
    info: ConnectionInfo,
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
        let (name, port) = host
            .rsplit_once(':')
            .and_then(|(name, port)| Some((name, port.parse().ok()?)))
            .ok_or_else(|| config("the host is not host:port"))?;
        let name = name.trim_start_matches('[').trim_end_matches(']');
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
        let info = ConnectionAddr::Tcp(name.to_owned(), port)
            .into_connection_info()
            .map_err(|error| config("cannot be used").with_source(error))?
            .set_tcp_settings(TcpSettings::default().set_nodelay(true))
            .set_redis_settings(settings);
        if address.option("wire").is_some_and(|wire| wire != "native") {
            return Err(config("the wire of redis:// is native"));
        }
        let claim_idle = address.parsed_option("claim_idle")?.unwrap_or(5000);
        if claim_idle < 100 {
            return Err(config("claim_idle is at least 100 milliseconds"));
        }
        Ok(Arc::new(Self {
            info,
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
            order: Order::Key,
            redelivers: true,
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

    /// The channel of what callers of a pattern say about calls in work.
    fn control_channel(&self, pattern: &str) -> String {
        format!("{}:control:{pattern}", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(url: &str) -> Result<Arc<Options>, Error> {
        Options::new(&url.parse()?)
    }

    #[test]
    fn a_url_names_host_database_credentials_and_limits() {
        let options = options("redis://ada:p%40ss@[::1]/3?claim_idle=500&prefix=test").unwrap();
        assert_eq!(
            *options.info.addr(),
            ConnectionAddr::Tcp("::1".to_owned(), 6379)
        );
        let settings = options.info.redis_settings();
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
    }

    #[test]
    fn a_url_that_makes_no_sense_is_refused() {
        for url in [
            "redis://a,b",
            "redis://a/x",
            "redis://a?wire=nest",
            "redis://a?claim_idle=1",
        ] {
            assert_eq!(
                options(url).err().unwrap().kind(),
                ErrorKind::Config,
                "{url}"
            );
        }
    }
}
