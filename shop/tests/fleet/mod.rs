//! The shop as it runs for real: a process for each service, each on its own transport, over
//! brokers of their own. Everything ends with the [`Fleet`].

use std::{
    collections::BTreeMap,
    env,
    fs::{self, File},
    io,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant, SystemTime},
};

use gateway::Clients;
use nestling::{Client, Health};
use nestling_testkit::{Broker, Kind, Options, Process, unique};
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};

use crate::buyer::{Unmet, until};

const SERVICES: [&str; 6] = [
    "user",
    "product",
    "payment",
    "order",
    "review",
    "recommendation",
];
/// How much of a log is shown when a test fails.
const LAST_LINES: usize = 40;
/// How long a process that was told to end may take on a machine that is busy with other things; its
/// own limit is ten seconds.
const ENDING: Duration = Duration::from_secs(60);

/// Two fleets at once are more than a small machine bears.
static TURN: Mutex<()> = Mutex::const_new(());

/// The running shop.
pub(crate) struct Fleet {
    /// A client of each service.
    pub(crate) clients: Clients,
    urls: BTreeMap<&'static str, String>,
    /// By name and replica.
    services: BTreeMap<(&'static str, usize), Service>,
    brokers: Vec<Broker>,
    home: TempDir,
    _turn: MutexGuard<'static, ()>,
}

struct Service {
    command: Command,
    log: PathBuf,
    process: Process,
    /// On how many URLs it listens.
    listens: usize,
}

impl Service {
    fn start(command: Command, log: PathBuf, listens: usize) -> io::Result<Self> {
        let process = spawn(&command, &log)?;
        Ok(Self {
            command,
            log,
            process,
            listens,
        })
    }

    /// How often it has said that it listens, since its first start.
    fn listened(&self) -> usize {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let is_listening = |line: &&str| line.contains("listening");
        log.lines().filter(is_listening).count()
    }

    /// Waits until it receives from everywhere, when it had said so `before` times before its start.
    async fn until_it_listens(&mut self, before: usize) {
        until(async || {
            let status = self.process.exited();
            assert_eq!(status, None, "it ended by itself: {}", self.last_lines());
            match self.listened() {
                count if count >= before + self.listens => Ok(()),
                count => {
                    let lines = self.last_lines();
                    Err(Unmet::new(format_args!(
                        "{count} URLs are listened on: {lines}"
                    )))
                }
            }
        })
        .await;
    }

    fn last_lines(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
    }

    fn start_again(&mut self) -> io::Result<()> {
        self.process = spawn(&self.command, &self.log)?;
        Ok(())
    }
}

fn spawn(command: &Command, log: &Path) -> io::Result<Process> {
    let log = File::options().create(true).append(true).open(log)?;
    Process::spawn(command, log)
}

impl Fleet {
    /// Starts brokers and services; returns when each service is ready. None, with a line that says
    /// so, where there cannot be a broker.
    pub(crate) async fn start() -> Option<Self> {
        Self::start_replicated(1).await
    }

    /// The same, with so many replicas of each service, all of which share its database.
    pub(crate) async fn start_replicated(replicas: usize) -> Option<Self> {
        let turn = TURN.lock().await;
        let mut brokers = BTreeMap::new();
        for kind in Kind::ALL {
            match Broker::start(kind, Options::default()) {
                Ok(broker) => brokers.insert(kind.name(), broker),
                Err(unavailable) => {
                    let required = env::var("REQUIRE_BROKERS").is_ok_and(|value| value == "1");
                    assert!(!required, "REQUIRE_BROKERS=1, but {unavailable}");
                    eprintln!("skipped: {unavailable}");
                    return None;
                }
            };
        }
        let url = |kind: Kind| brokers[kind.name()].url();
        let addresses = || free_addresses(replicas);
        let peers = BTreeMap::from([("product", addresses()), ("recommendation", addresses())]);
        let tcp = |name| format!("tcp://{}", peers[name].join(","));
        let urls = BTreeMap::from([
            ("user", url(Kind::Nats)),
            ("product", tcp("product")),
            ("payment", url(Kind::Redis)),
            ("order", url(Kind::Kafka)),
            ("review", url(Kind::Nats)),
            ("recommendation", tcp("recommendation")),
        ]);
        // As `cargo xtask up` has it: NestJS applications listen where events are mirrored.
        let events = format!("{}?topic=both", url(Kind::Kafka));
        let home = tempfile::tempdir().expect("a folder for the data");
        let binaries = binaries();
        let mut services = BTreeMap::new();
        let all = SERVICES
            .iter()
            .flat_map(|name| (0..replicas).map(move |replica| (*name, replica)));
        for (name, replica) in all {
            // Clients know all addresses, each replica has one.
            let own = peers
                .get(name)
                .map(|addresses| format!("tcp://{}", addresses[replica]));
            let listen = own.as_ref().unwrap_or(&urls[name]);
            let mut command = Command::new(binaries.join(name));
            command
                .args([
                    "--listen",
                    listen,
                    "--events",
                    &events,
                    "--instance",
                    &(replica + 1).to_string(),
                ])
                .arg("--data")
                .arg(home.path())
                // The last lines of a log are to say what was wrong.
                .env("RUST_BACKTRACE", "0");
            if name == "order" {
                command.args(["--product", &urls["product"], "--payment", &urls["payment"]]);
            }
            if name == "payment" {
                command.env("PAYMENT_SEAL_KEY", "5e".repeat(32));
            }
            let log = home.path().join(format!("{name}-{replica}.log"));
            let service = Service::start(command, log, 2).expect("the service starts");
            services.insert((name, replica), service);
        }
        for service in services.values_mut() {
            service.until_it_listens(0).await;
        }
        let clients = Clients {
            user: ready_client("user", &urls).await,
            product: ready_client("product", &urls).await,
            order: ready_client("order", &urls).await,
            payment: ready_client("payment", &urls).await,
            review: ready_client("review", &urls).await,
            recommendation: ready_client("recommendation", &urls).await,
        };
        Some(Self {
            clients,
            urls,
            services,
            brokers: brokers.into_values().collect(),
            home,
            _turn: turn,
        })
    }

    /// Where a service is.
    pub(crate) fn url(&self, service: &str) -> &str {
        &self.urls[service]
    }

    /// The folder of the databases.
    pub(crate) fn data(&self) -> &Path {
        self.home.path()
    }

    /// Starts gateways, each at an address of its own, and returns the addresses.
    pub(crate) async fn start_gateways(&mut self, replicas: usize) -> Vec<String> {
        let addresses = free_addresses(replicas);
        for (replica, address) in addresses.iter().enumerate() {
            let mut command = Command::new(binaries().join("gateway"));
            command.args(["--bind", address]);
            for (name, url) in &self.urls {
                command.args([format!("--{name}"), url.clone()]);
            }
            let log = self.home.path().join(format!("gateway-{replica}.log"));
            let mut gateway = Service::start(command, log, 1).expect("the gateway starts");
            gateway.until_it_listens(0).await;
            self.services.insert(("gateway", replica), gateway);
        }
        addresses
    }

    /// Tells a replica to end, as it is told before an update, and starts it again when it has. Returns
    /// how long it took to end, once the new one is there.
    pub(crate) async fn restart(&mut self, service: &'static str, replica: usize) -> Duration {
        let service = self.replica(service, replica);
        let before = service.listened();
        let told = Instant::now();
        service.process.terminate();
        let status = tokio::task::block_in_place(|| service.process.wait(ENDING));
        let took = told.elapsed();
        let status = status.expect("it ends within its limit");
        assert!(status.success(), "it ended with {status}");
        service.start_again().expect("it starts again");
        service.until_it_listens(before).await;
        took
    }

    fn replica(&mut self, service: &'static str, replica: usize) -> &mut Service {
        let service = self.services.get_mut(&(service, replica));
        service.expect("it is one of ours")
    }

    /// Ends a service as a power cut would: `kill -9`.
    pub(crate) fn kill(&mut self, service: &'static str) {
        let service = self.replica(service, 0);
        assert_eq!(
            service.process.exited(),
            None,
            "it ended before it was killed"
        );
        service.process.kill();
    }

    /// Starts a killed service again, as it was started before.
    pub(crate) fn start_again(&mut self, service: &'static str) {
        let service = self.replica(service, 0);
        service.start_again().expect("the service starts again");
    }

    /// Ends a broker with `kill -9`, and starts it again with what it has on disk. Takes seconds.
    pub(crate) fn restart_broker(&mut self, kind: Kind) {
        let mut brokers = self.brokers.iter_mut();
        let broker = brokers.find(|broker| broker.kind() == kind);
        let broker = broker.expect("there is one of each kind");
        tokio::task::block_in_place(|| {
            broker.kill();
            broker.restart().expect("the broker starts again");
        });
    }

    /// Fails if a service has ended by itself.
    pub(crate) fn assert_all_run(&mut self) {
        for ((name, replica), service) in &mut self.services {
            let status = service.process.exited();
            assert_eq!(status, None, "{name} {replica} ended by itself");
        }
    }
}

/// Logs vanish with the fleet, so a failed test shows how they end.
impl Drop for Fleet {
    fn drop(&mut self) {
        if !thread::panicking() {
            return;
        }
        for ((name, replica), service) in &self.services {
            eprintln!("--- {name} {replica} ---\n{}", service.last_lines());
        }
    }
}

/// A client of a service that says it can work.
async fn ready_client(name: &'static str, urls: &BTreeMap<&str, String>) -> Client {
    until(async || {
        let client = Client::builder(&urls[name])
            .identity("test", unique("test"))
            .build()
            .await
            .map_err(|error| Unmet::new(format_args!("{name}: {error:?}")))?;
        let pattern = format!("{name}.svc.health");
        let health: Health = client.send_at(pattern, &serde_json::json!({})).await?;
        if health.ready {
            Ok(client)
        } else {
            Err(Unmet::new(format_args!("{name}: {health:?}")))
        }
    })
    .await
}

/// Addresses that nobody listens on. All are taken at once, so that no two are one.
fn free_addresses(count: usize) -> Vec<String> {
    let listener = |_| TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let listeners: Vec<_> = (0..count).map(listener).collect();
    let address = |listener: &TcpListener| listener.local_addr().expect("it has an address");
    listeners
        .iter()
        .map(|listener| address(listener).to_string())
        .collect()
}

/// The folder with the services' programs, as new as this test: it does not matter what was built
/// before.
fn binaries() -> PathBuf {
    let test = env::current_exe().expect("this is a program");
    // A test is in `target/PROFILE/deps`, the programs are in `target/PROFILE`.
    let folder = test
        .ancestors()
        .nth(2)
        .expect("cargo has put it there")
        .to_owned();
    let built = |path: &Path| fs::metadata(path).and_then(|file| file.modified()).ok();
    let age = built(&test).unwrap_or_else(SystemTime::now);
    if SERVICES
        .iter()
        .all(|name| built(&folder.join(name)).is_some_and(|time| time >= age))
    {
        return folder;
    }
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["build", "--bins"]);
    // The same packages as `cargo xtask up`, so that the same features make the same programs.
    for package in SERVICES.iter().chain(&["gateway", "shop"]) {
        cargo.args(["--package", package]);
    }
    let profile = folder.file_name().and_then(|name| name.to_str());
    if let Some(profile) = profile.filter(|profile| *profile != "debug") {
        cargo.args(["--profile", profile]);
    }
    if let Some(target) = folder.parent() {
        cargo.arg("--target-dir").arg(target);
    }
    let status = cargo.status().expect("cargo runs");
    assert!(status.success(), "the services do not compile");
    folder
}
