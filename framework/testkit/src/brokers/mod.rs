//! Starting, finding and ending brokers.

mod kafka;
mod names;
mod nats;
mod redis;
mod security;

use std::{
    env,
    fmt::{self, Display},
    fs::{self, DirBuilder, File, TryLockError},
    io::{self, Read, Seek, SeekFrom},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

#[cfg(unix)]
use std::os::unix::fs::DirBuilderExt;

use crate::Process;

pub use kafka::jars as kafka_jars;
pub use names::unique;
pub use security::Security;

/// How often a free port is looked for anew when somebody else was quicker to take it.
const PORT_ATTEMPTS: usize = 5;
const POLL: Duration = Duration::from_millis(20);
const STOP_LIMIT: Duration = Duration::from_secs(10);
const LOCK_LIMIT: Duration = Duration::from_secs(20);
/// How much of the end of a log is read to explain a failed start.
const LOG_TAIL: u64 = 2000;

/// The brokers that nestling has a transport for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// NATS with JetStream.
    Nats,
    /// Redis with an append-only file.
    Redis,
    /// A single-node Apache Kafka.
    Kafka,
}

impl Kind {
    /// Every broker, in the order in which they are best started.
    pub const ALL: [Self; 3] = [Self::Nats, Self::Redis, Self::Kafka];

    /// The lower-case name, which is also the scheme of the broker's URL.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nats => "nats",
            Self::Redis => "redis",
            Self::Kafka => "kafka",
        }
    }

    /// The environment variable with the URL of a broker to use instead of one's own.
    #[must_use]
    pub fn variable(self) -> &'static str {
        match self {
            Self::Nats => "TEST_NATS_URL",
            Self::Redis => "TEST_REDIS_URL",
            Self::Kafka => "TEST_KAFKA_URL",
        }
    }

    /// The programs the broker needs, each with the Debian package that has it.
    #[must_use]
    pub fn programs(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Nats => &[("nats-server", "nats-server")],
            Self::Redis => &[("redis-server", "redis-server")],
            Self::Kafka => &[("java", "default-jre-headless"), ("mvn", "maven")],
        }
    }

    /// Those of [`Kind::programs`] that are not installed and would be needed now; Maven is not, once Kafka's jars are in
    /// the cache.
    #[must_use]
    pub fn missing_programs(self) -> Vec<(&'static str, &'static str)> {
        let mut programs = self.programs().to_vec();
        programs.retain(|(program, _)| {
            find_program(program).is_none() && !(*program == "mvn" && kafka::jars_are_cached())
        });
        programs
    }

    fn ready_limit(self) -> Duration {
        match self {
            Self::Nats | Self::Redis => Duration::from_secs(20),
            // A start takes two seconds on an idle machine, and many times that beside a build.
            Self::Kafka => Duration::from_secs(90),
        }
    }

    fn unavailable(self, reason: impl Display) -> Unavailable {
        Unavailable {
            what: self.name(),
            reason: reason.to_string(),
            remedy: format!("set {} to the URL of a running one", self.variable()),
        }
    }

    fn missing(self, program: &str) -> Unavailable {
        let package = self
            .programs()
            .iter()
            .find_map(|(name, package)| (*name == program).then_some(*package))
            .unwrap_or(program);
        Unavailable {
            what: self.name(),
            reason: format!("the program {program} is not installed"),
            remedy: format!(
                "install Debian's package {package}, run `cargo xtask test`, which installs it, or set {} to the URL \
                 of a running one",
                self.variable()
            ),
        }
    }
}

impl Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why there is no broker, or no NestJS, and what to do about it.
#[derive(Clone, Debug)]
pub struct Unavailable {
    /// What is missing.
    pub what: &'static str,
    /// What went wrong.
    pub reason: String,
    /// What the reader can do.
    pub remedy: String,
}

impl Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            what,
            reason,
            remedy,
        } = self;
        write!(f, "{what} is unavailable: {reason}; {remedy}")
    }
}

impl std::error::Error for Unavailable {}

/// How to start a broker. The default is a throw-away one: a free port, and data that vanishes with it.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where data, configuration and the log are kept, made if missing. `None` is a temporary folder that is removed
    /// with the broker, also when the owner of the broker is killed.
    pub data_dir: Option<PathBuf>,
    /// The port on 127.0.0.1. `None` is any free one.
    pub port: Option<u16>,
    /// Whether nothing that passes through is written to disk, where the broker leaves the choice (Redis): for what
    /// must not be kept, such as card numbers on their way.
    pub volatile: bool,
    /// The port of a proxy on 127.0.0.1 that leads to the broker's [`link_port`](Broker::link_port). A broker that tells
    /// its clients where it is (Kafka) sends those who came that way back the same way.
    pub link: Option<u16>,
    /// Further lines of the broker's configuration, for Kafka.
    pub properties: Vec<String>,
    /// Who is let in, and by what certificates they know each other. `None` is everybody, without TLS.
    pub security: Option<Security>,
}

/// A running broker of one's own. Dropping it ends it.
#[derive(Debug)]
pub struct Broker {
    kind: Kind,
    port: u16,
    data_dir: PathBuf,
    throw_away: bool,
    volatile: bool,
    link: Option<Link>,
    properties: Vec<String>,
    security: Option<Security>,
    process: Option<Process>,
}

/// A way to a broker that leads through a proxy.
#[derive(Clone, Copy, Debug)]
struct Link {
    proxy: u16,
    /// Where the broker listens for what comes from there.
    port: u16,
}

impl Broker {
    /// Starts a broker and returns when it answers its protocol.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] when the program is not installed, the port or the data folder is taken, or the broker does not
    /// answer in time; the end of its log is part of the reason.
    pub fn start(kind: Kind, options: Options) -> Result<Self, Unavailable> {
        let throw_away = options.data_dir.is_none();
        let data_dir = match options.data_dir {
            Some(folder) => folder,
            None => env::temp_dir().join(unique(&format!("nestling-{kind}"))),
        };
        private_folder(&data_dir).map_err(|error| {
            kind.unavailable(format_args!("make folder {}: {error}", data_dir.display()))
        })?;
        let data_dir = data_dir.canonicalize().map_err(|error| {
            kind.unavailable(format_args!("find folder {}: {error}", data_dir.display()))
        })?;
        let mut broker = Self {
            kind,
            port: 0,
            data_dir,
            throw_away,
            volatile: options.volatile,
            link: None,
            properties: options.properties,
            security: options.security,
            process: None,
        };
        if let Some(security) = &broker.security {
            security.write(&broker.data_dir).map_err(|error| {
                let folder = broker.data_dir.display();
                kind.unavailable(format_args!("write certificates to {folder}: {error}"))
            })?;
        }
        let mut attempts = match options.port {
            Some(_) => 1,
            None => PORT_ATTEMPTS,
        };
        loop {
            broker.port = match options.port {
                Some(port) => port,
                None => free_port()
                    .map_err(|error| kind.unavailable(format_args!("find a free port: {error}")))?,
            };
            attempts -= 1;
            broker.link = options
                .link
                .map(|proxy| broker.link_by(proxy))
                .transpose()?;
            match broker.launch() {
                Ok(()) => return Ok(broker),
                Err(Failure::Port(_)) if attempts > 0 => {}
                Err(failure) => return Err(failure.into_inner()),
            }
        }
    }

    /// Which broker it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The address in the form that nestling's transports take, such as `nats://127.0.0.1:4222`, with all that is needed
    /// to be let in.
    #[must_use]
    pub fn url(&self) -> String {
        let Self { kind, port, .. } = self;
        match &self.security {
            None => format!("{kind}://127.0.0.1:{port}"),
            Some(security) => {
                let Security { user, password, .. } = security;
                let options = security.client_options(&self.data_dir);
                format!("{kind}://{user}:{password}@127.0.0.1:{port}?{options}")
            }
        }
    }

    /// The port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The port on 127.0.0.1 that a proxy has to lead to, if the broker was told of one: another than
    /// [`port`](Self::port) where connections that come that way are answered differently.
    #[must_use]
    pub fn link_port(&self) -> u16 {
        self.link.map_or(self.port, |link| link.port)
    }

    fn link_by(&self, proxy: u16) -> Result<Link, Unavailable> {
        let port = match self.kind {
            Kind::Nats | Kind::Redis => self.port,
            Kind::Kafka => free_port().map_err(|error| {
                self.kind
                    .unavailable(format_args!("find a free port: {error}"))
            })?,
        };
        Ok(Link { proxy, port })
    }

    /// The folder of data and log.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Where the broker's own output goes.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.data_dir.join("broker.log")
    }

    /// The pid of the broker itself, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// False once the broker was stopped or killed, or has ended by itself.
    pub fn is_running(&mut self) -> bool {
        self.process
            .as_mut()
            .is_some_and(|process| process.exited().is_none())
    }

    /// Ends the broker as a power cut would: `SIGKILL`, and waits until it is gone. Data and port stay reserved to
    /// [`Broker::restart`].
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Ends the broker politely: `SIGTERM`, and `SIGKILL` if it does not go.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.stop(STOP_LIMIT);
        }
    }

    /// Takes away all that the broker has stored, as a lost disk would; it is killed first. The next
    /// [`Broker::restart`] is that of a new broker on the same port.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] when something cannot be removed.
    pub fn wipe(&mut self) -> Result<(), Unavailable> {
        self.kill();
        let log = self.log();
        let remove = || -> io::Result<()> {
            for entry in fs::read_dir(&self.data_dir)? {
                let path = entry?.path();
                if path.is_dir() {
                    fs::remove_dir_all(path)?;
                } else if path != log {
                    fs::remove_file(path)?;
                }
            }
            Ok(())
        };
        remove().map_err(|error| {
            let folder = self.data_dir.display();
            self.kind
                .unavailable(format_args!("empty {folder}: {error}"))
        })
    }

    /// Starts the broker again on the same port with the same data, stopping it first if it still runs.
    ///
    /// # Errors
    ///
    /// As [`Broker::start`].
    pub fn restart(&mut self) -> Result<(), Unavailable> {
        self.stop();
        self.launch().map_err(Failure::into_inner)
    }

    fn launch(&mut self) -> Result<(), Failure> {
        let kind = self.kind;
        let log = self.open_log()?;
        let prepared = match kind {
            Kind::Nats => nats::prepare(self),
            Kind::Redis => redis::prepare(self),
            Kind::Kafka => kafka::prepare(self),
        }?;
        let process = if self.throw_away {
            Process::spawn_with_scratch(&prepared.command, log, &self.data_dir)
        } else {
            Process::spawn(&prepared.command, log)
        };
        let mut process =
            process.map_err(|error| kind.unavailable(format_args!("start it: {error}")))?;
        let deadline = Instant::now() + kind.ready_limit();
        loop {
            // Looking first and asking then would take the answer of another server on the same port for ours.
            let answered = (prepared.probe)(self.port, process.pid());
            if let Some(status) = process.exited() {
                let reason = format!("it ended with {status}; {}", self.last_words());
                let reason = kind.unavailable(reason);
                return Err(if port_is_taken(self.port) {
                    Failure::Port(reason)
                } else {
                    Failure::Other(reason)
                });
            }
            if answered.is_ok_and(|ready| ready) {
                break;
            }
            if Instant::now() >= deadline {
                let limit = kind.ready_limit().as_secs();
                let reason = format!("no answer within {limit} s; {}", self.last_words());
                return Err(Failure::Other(kind.unavailable(reason)));
            }
            thread::sleep(POLL);
        }
        self.process = Some(process);
        Ok(())
    }

    /// The log, locked. The lock belongs to the open file, which the broker inherits: it lasts exactly as long as the
    /// broker does, and two brokers never share one data folder.
    fn open_log(&self) -> Result<File, Unavailable> {
        let path = self.log();
        let fail = |reason: &dyn Display| {
            self.kind
                .unavailable(format_args!("open {}: {reason}", path.display()))
        };
        let log = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(|error| fail(&error))?;
        let deadline = Instant::now() + LOCK_LIMIT;
        loop {
            match log.try_lock() {
                Ok(()) => return Ok(log),
                Err(TryLockError::Error(error)) => return Err(fail(&error)),
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                    return Err(fail(&"another broker is using this folder"));
                }
                Err(TryLockError::WouldBlock) => thread::sleep(POLL),
            }
        }
    }

    fn last_words(&self) -> String {
        match tail(&self.log()) {
            Ok(text) if text.trim().is_empty() => "it logged nothing".to_owned(),
            Ok(text) => format!("it logged:\n{text}\n"),
            Err(error) => format!("its log cannot be read: {error}"),
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if !self.throw_away {
            self.stop();
            return;
        }
        self.kill();
        if let Err(error) = fs::remove_dir_all(&self.data_dir) {
            eprintln!("remove {}: {error}", self.data_dir.display());
        }
    }
}

/// What a kind of broker adds to the common start: its command, and the question that tells whether it is ready.
struct Prepared {
    command: Command,
    probe: Box<dyn Fn(u16, u32) -> io::Result<bool>>,
}

/// Why a start failed; another port may help with the first kind.
enum Failure {
    Port(Unavailable),
    Other(Unavailable),
}

impl Failure {
    fn into_inner(self) -> Unavailable {
        match self {
            Self::Port(reason) | Self::Other(reason) => reason,
        }
    }
}

impl From<Unavailable> for Failure {
    fn from(reason: Unavailable) -> Self {
        Self::Other(reason)
    }
}

/// The URL of a broker for tests: the one the environment names, or else one that all tests of this process share,
/// started by the first of them and ended with the process.
///
/// # Errors
///
/// [`Unavailable`] as [`Broker::start`] has it; the same answer for every caller.
pub fn shared(kind: Kind) -> Result<String, Unavailable> {
    static NATS: OnceLock<Result<Broker, Unavailable>> = OnceLock::new();
    static REDIS: OnceLock<Result<Broker, Unavailable>> = OnceLock::new();
    static KAFKA: OnceLock<Result<Broker, Unavailable>> = OnceLock::new();

    if let Ok(url) = env::var(kind.variable())
        && !url.is_empty()
    {
        return Ok(url);
    }
    let cell = match kind {
        Kind::Nats => &NATS,
        Kind::Redis => &REDIS,
        Kind::Kafka => &KAFKA,
    };
    cell.get_or_init(|| Broker::start(kind, Options::default()))
        .as_ref()
        .map(Broker::url)
        .map_err(Clone::clone)
}

/// [`shared`] for a test that has nothing to do without the broker: `None`, with a line that says so, when there is
/// none.
///
/// # Panics
///
/// When there is no broker and the environment says `REQUIRE_BROKERS=1`.
#[must_use]
pub fn broker_or_skip(kind: Kind) -> Option<String> {
    or_skip(shared(kind))
}

/// What was found, for a test that has nothing to do without it: `None`, with a line that says so, when it is not there.
///
/// # Panics
///
/// When it is not there and the environment says `REQUIRE_BROKERS=1`.
#[must_use]
pub fn or_skip<T>(found: Result<T, Unavailable>) -> Option<T> {
    match found {
        Ok(found) => Some(found),
        Err(unavailable) => {
            let required = env::var("REQUIRE_BROKERS").is_ok_and(|value| value == "1");
            assert!(!required, "REQUIRE_BROKERS=1, but {unavailable}");
            eprintln!("skipped: {unavailable}");
            None
        }
    }
}

/// Looks for a program in `PATH` and in the folders for servers, which are not in everyone's `PATH`.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"];
    env::split_paths(&path)
        .chain(usual.map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

pub(crate) fn private_folder(path: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    builder.mode(0o700);
    builder.create(path)
}

fn free_port() -> io::Result<u16> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()
        .map(|address| address.port())
}

fn port_is_taken(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_err()
}

fn connect(port: u16) -> io::Result<TcpStream> {
    let limit = Duration::from_secs(2);
    let stream = TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    Ok(stream)
}

pub(crate) fn tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
}
