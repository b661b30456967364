//! Where a transport under test is, and the place in it that is one case's own.

use std::{
    fmt, fs,
    future::Future,
    path::Path,
    sync::{Arc, LazyLock, OnceLock},
    time::Duration,
};

use nestling::{
    Builder, Client, Endpoint, Guarantee, Payload, Router, RpcError, Running, Server,
    sqlite::{self, DeadLetterTable},
    transport::{Capabilities, DeadLetters, Memory},
};
use tokio::runtime::{self, Runtime};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

use super::{needs::Need, witness::within};
use crate::{
    Authority, Broker, Kind, Options, Security, Unavailable, broker_or_skip, or_skip, unique,
};

/// How long a case may take as a whole.
const CASE_LIMIT: Duration = Duration::from_secs(300);
/// How long a call of a case may take, unless the case is about that.
const CALL_LIMIT: Duration = Duration::from_secs(30);

/// A transport under test.
#[derive(Debug)]
pub struct Fixture {
    place: Place,
    /// Ends with the fixture.
    _broker: Option<Broker>,
    calling: String,
    serving: Option<Guarantee>,
    keeping: bool,
    capabilities: OnceLock<Capabilities>,
}

#[derive(Clone, Debug)]
enum Place {
    Memory,
    /// Clients connect to the addresses that servers got.
    Peer(String),
    /// Everybody connects to a broker.
    Broker {
        kind: Kind,
        url: String,
        scheme: Option<&'static str>,
        options: String,
        /// Of a broker that is not for everybody.
        security: Option<Security>,
    },
}

impl Place {
    fn broker_url(&self) -> String {
        let Self::Broker {
            url,
            scheme,
            options,
            ..
        } = self
        else {
            return String::new();
        };
        let url = with_options(url, options);
        match (scheme, url.split_once("://")) {
            (Some(scheme), Some((_, rest))) => format!("{scheme}://{rest}"),
            _ => url,
        }
    }
}

impl Fixture {
    fn new(place: Place) -> Option<Self> {
        Some(Self {
            place,
            _broker: None,
            calling: String::new(),
            serving: None,
            keeping: false,
            capabilities: OnceLock::new(),
        })
    }

    /// The transport inside this process, a new one for each case.
    pub fn memory() -> Option<Self> {
        Self::new(Place::Memory)
    }

    /// A transport without a broker: servers listen on `url`, and clients connect to where they are.
    pub fn peer(url: impl Into<String>) -> Option<Self> {
        Self::new(Place::Peer(url.into()))
    }

    /// A transport over the broker that all tests of this process share; `options` go behind the `?` of its URL. `None`
    /// when there is no such broker here.
    pub fn broker(kind: Kind, options: &str) -> Option<Self> {
        let url = broker_or_skip(kind)?;
        Self::new(Place::Broker {
            kind,
            url,
            scheme: None,
            options: options.to_owned(),
            security: None,
        })
    }

    /// The same over a broker of its own, that speaks TLS, wants to see certificates, and asks for name and password.
    pub fn secure_broker(kind: Kind, options: &str) -> Option<Self> {
        let security = security();
        let broker = or_skip(start_broker(kind, Some(security.clone()), None))?;
        let fixture = Self::new(Place::Broker {
            kind,
            url: broker.url(),
            scheme: None,
            options: options.to_owned(),
            security: Some(security),
        })?;
        Some(Self {
            _broker: Some(broker),
            ..fixture
        })
    }

    /// As [`Fixture::peer`], with TLS and certificates on both sides, which are kept in `folder`.
    ///
    /// # Panics
    ///
    /// When the folder cannot be written to.
    pub fn secure_peer(url: &str, folder: &Path) -> Option<Self> {
        let security = security();
        let folder = folder.join(unique("certificates"));
        fs::create_dir_all(&folder).expect("the folder can be made");
        security
            .write(&folder)
            .expect("the folder can be written to");
        let fixture = Self::peer(with_options(url, &security.server_options(&folder)))?;
        Some(fixture.calling(security.client_options(&folder)))
    }

    /// The same with these options behind the `?` of the clients' URLs only.
    #[must_use]
    pub fn calling(mut self, options: impl Into<String>) -> Self {
        self.calling = options.into();
        self
    }

    /// What servers promise for an event, if that is more than the clients' wire does: they try a failing one again,
    /// however it came.
    #[must_use]
    pub fn serving(mut self, guarantee: Guarantee) -> Self {
        self.serving = Some(guarantee);
        self
    }

    /// Servers keep what they give up in a table, as the transport does not: cases about dead letters find them there.
    #[must_use]
    pub fn keeping(mut self) -> Self {
        self.keeping = true;
        self
    }

    /// The same broker by another scheme than its URL has.
    #[must_use]
    pub fn scheme(mut self, scheme: &'static str) -> Self {
        if let Place::Broker { scheme: old, .. } = &mut self.place {
            *old = Some(scheme);
        }
        self
    }

    /// What the transport declares, as a client that is connected sees it.
    ///
    /// # Panics
    ///
    /// When it does not work.
    pub fn capabilities(&self) -> Capabilities {
        runtime().block_on(self.probed())
    }

    async fn probed(&self) -> Capabilities {
        match self.capabilities.get() {
            Some(capabilities) => *capabilities,
            None => {
                let found = self.stage_with("probe", None).probe().await;
                *self.capabilities.get_or_init(|| found)
            }
        }
    }

    async fn stage(&self, case: &str) -> Stage {
        let capabilities = self.probed().await;
        let mut stage = self.stage_with(case, Some(capabilities));
        if self.keeping {
            let pool = sqlite::open_in_memory().await.expect("SQLite is there");
            let table = DeadLetterTable::open(pool).await;
            stage.table = Some(table.expect("a table is made"));
        }
        stage
    }

    fn stage_with(&self, case: &str, capabilities: Option<Capabilities>) -> Stage {
        Stage {
            prefix: unique(&case.replace('_', "-")),
            place: self.place.clone(),
            calling: self.calling.clone(),
            serving: self.serving,
            hub: Memory::new(),
            table: None,
            capabilities,
        }
    }
}

/// Runs one case, unless the transport does not give what it needs.
///
/// # Panics
///
/// When the case fails.
pub fn run<F: Future<Output = ()>>(
    fixture: &LazyLock<Option<Fixture>>,
    case: &str,
    needs: &[Need],
    body: fn(Stage) -> F,
) {
    let Some(fixture) = fixture.as_ref() else {
        return;
    };
    log();
    let runtime = runtime();
    runtime.block_on(async {
        let stage = fixture.stage(case).await;
        let mut capabilities = stage.capabilities();
        capabilities.dead_letters |= stage.table.is_some();
        if let Some((lacks, _)) = needs.iter().find(|(_, has)| !has(&capabilities)) {
            eprintln!("off: the transport does not declare `{lacks}`");
            return;
        }
        let ended = tokio::time::timeout(CASE_LIMIT, body(stage)).await;
        assert!(ended.is_ok(), "{case} took more than {CASE_LIMIT:?}");
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
}

fn runtime() -> Runtime {
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime.expect("a runtime can be built")
}

/// What the framework and the transports log, where `RUST_LOG` asks for it; nothing otherwise.
fn log() {
    static LOG: LazyLock<()> = LazyLock::new(|| {
        let filter = EnvFilter::builder().with_default_directive(LevelFilter::OFF.into());
        tracing_subscriber::fmt()
            .with_env_filter(filter.from_env_lossy())
            .with_test_writer()
            .init();
    });
    LazyLock::force(&LOG);
}

/// One case's own place in a transport: nobody else uses its names.
#[derive(Clone)]
pub struct Stage {
    prefix: String,
    place: Place,
    calling: String,
    serving: Option<Guarantee>,
    hub: Memory,
    table: Option<DeadLetterTable>,
    capabilities: Option<Capabilities>,
}

impl Stage {
    /// Finds out what the transport gives.
    async fn probe(&self) -> Capabilities {
        let router = Router::new().message_at(self.pattern("probe"), echo::<u64>);
        let server = self.start(router).await;
        let client = self.client(&[&server]).await;
        let capabilities = client.capabilities();
        server.shutdown().await;
        capabilities
    }

    /// What the transport says that it gives.
    pub fn capabilities(&self) -> Capabilities {
        self.capabilities.expect("a case gets its stage with them")
    }

    /// The most the transport promises for an event.
    pub fn guarantee(&self) -> Guarantee {
        self.capabilities().events
    }

    /// How often a failing event is tried when the server's limit is `limit`.
    pub fn tries(&self, limit: u32) -> u32 {
        match self.serving.unwrap_or_else(|| self.guarantee()) {
            Guarantee::AtLeastOnce => limit,
            Guarantee::BestEffort => 1,
        }
    }

    /// The broker behind the transport, if it has one.
    pub fn broker(&self) -> Option<Kind> {
        match &self.place {
            Place::Broker { kind, .. } => Some(*kind),
            Place::Memory | Place::Peer(_) => None,
        }
    }

    /// Another broker of the same kind, reached by a proxy on this port as well if there is one; `None` if there is no
    /// broker to be had.
    pub fn own_broker(&self, link: Option<u16>) -> Option<Broker> {
        match &self.place {
            Place::Broker { kind, security, .. } => {
                or_skip(start_broker(*kind, security.clone(), link))
            }
            Place::Memory | Place::Peer(_) => None,
        }
    }

    /// Whether messages travel over connections, which can fail.
    pub fn has_links(&self) -> bool {
        !matches!(self.place, Place::Memory)
    }

    /// Whether somebody notices that the other end of a connection is silent and will stay so. NestJS's wire on TCP has
    /// no word for the question, so that a peer who takes his time looks the same.
    pub fn asks_whether_peers_live(&self) -> bool {
        !(matches!(self.place, Place::Peer(_)) && self.calling.contains("wire=nest"))
    }

    /// The URL by which another process serves here; `None` where there is no such thing.
    pub(super) fn url(&self) -> Option<String> {
        match &self.place {
            Place::Memory => None,
            Place::Peer(url) => Some(url.clone()),
            Place::Broker { .. } => Some(self.place.broker_url()),
        }
    }

    /// The same names on another broker of the same kind.
    #[must_use]
    pub fn moved_to(mut self, other: String) -> Self {
        if let Place::Broker { url, .. } = &mut self.place {
            *url = other;
        }
        self
    }

    /// A pattern of this case.
    pub fn pattern(&self, verb: &str) -> &'static str {
        String::leak(format!("{}.{verb}", self.prefix))
    }

    /// The full name of one of this case's services.
    pub fn service(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// Where servers listen.
    fn endpoint(&self) -> Endpoint {
        match &self.place {
            Place::Memory => (&self.hub).into(),
            Place::Peer(url) => url.into(),
            Place::Broker { .. } => self.place.broker_url().into(),
        }
    }

    /// What services have given up.
    pub async fn dead_letters(&self) -> Arc<dyn DeadLetters> {
        if let Some(table) = &self.table {
            return Arc::new(table.clone());
        }
        let endpoint = self.endpoint();
        within("dead letters to open", endpoint.dead_letters())
            .await
            .expect("the dead letters open")
    }

    /// A server that listens on the transport.
    pub fn server(&self, service: &str, router: Router) -> Server {
        let server = Server::new(self.service(service), router).listen(self.endpoint());
        match &self.table {
            Some(table) => server.dead_letters(table.clone()),
            None => server,
        }
    }

    /// A server that listens where `earlier` did.
    pub fn server_again(&self, service: &str, router: Router, earlier: &str) -> Server {
        match &self.place {
            Place::Peer(url) => {
                let options = url.split_once('?').map_or("", |(_, options)| options);
                let address = earlier.split('?').next().unwrap_or(earlier);
                let url = with_options(address, options);
                Server::new(self.service(service), router).listen(url)
            }
            Place::Memory | Place::Broker { .. } => self.server(service, router),
        }
    }

    /// The one server of a case that needs no more.
    pub async fn start(&self, router: Router) -> Running {
        self.start_server(self.server("service", router)).await
    }

    /// Starts a server, which has to work.
    pub async fn start_server(&self, server: Server) -> Running {
        within("a server to start", server.start())
            .await
            .expect("a server starts")
    }

    /// A client that reaches all of `servers`.
    pub async fn client(&self, servers: &[&Running]) -> Client {
        self.connect(self.client_builder(servers)).await
    }

    /// Connects a client, which has to work.
    pub async fn connect(&self, builder: Builder) -> Client {
        within("a client to connect", builder.build())
            .await
            .expect("a client connects")
    }

    /// A client about to be made.
    pub fn client_builder(&self, servers: &[&Running]) -> Builder {
        let addresses: Vec<_> = servers.iter().map(|server| server.address()).collect();
        self.client_builder_of(&addresses)
    }

    /// The same for servers at these addresses.
    pub fn client_builder_of(&self, addresses: &[&str]) -> Builder {
        let url = match &self.place {
            Place::Peer(_) => joined(addresses),
            Place::Broker { .. } => self.place.broker_url(),
            Place::Memory => String::new(),
        };
        self.client_builder_at(&url)
    }

    /// A client about to be made that calls at this address.
    pub fn client_builder_at(&self, url: &str) -> Builder {
        let endpoint: Endpoint = match &self.place {
            Place::Memory => (&self.hub).into(),
            Place::Peer(_) | Place::Broker { .. } => with_options(url, &self.calling).into(),
        };
        // One name for all cases: a broker may keep something for each service that calls.
        Client::builder(endpoint)
            .identity("conformance", unique("client"))
            .timeout(CALL_LIMIT)
    }
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stage")
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

fn with_options(url: &str, options: &str) -> String {
    match options {
        "" => url.to_owned(),
        options if url.contains('?') => format!("{url}&{options}"),
        options => format!("{url}?{options}"),
    }
}

/// `scheme://one?a=b` and `scheme://two?a=b` as `scheme://one,two?a=b`.
fn joined(addresses: &[&str]) -> String {
    let (first, options) = addresses[0].split_once('?').unwrap_or((addresses[0], ""));
    let mut url = first.to_owned();
    for address in &addresses[1..] {
        let (_, host) = address.split_once("://").expect("an address is a URL");
        url.push(',');
        url.push_str(host.split('?').next().unwrap_or(host));
    }
    with_options(&url, options)
}

fn start_broker(
    kind: Kind,
    security: Option<Security>,
    link: Option<u16>,
) -> Result<Broker, Unavailable> {
    let options = Options {
        security,
        link,
        ..Options::default()
    };
    Broker::start(kind, options)
}

fn security() -> Security {
    let made =
        Authority::new().and_then(|authority| authority.security(&unique("pass").replace('-', "")));
    made.expect("certificates can be made")
}

/// Answers with what it was sent.
pub(super) async fn echo<T: Send>(Payload(value): Payload<T>) -> Result<T, RpcError> {
    Ok(value)
}
