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
    time::SystemTime,
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

/// Two fleets at once are more than a small machine bears.
static TURN: Mutex<()> = Mutex::const_new(());

/// The running shop.
pub(crate) struct Fleet {
    /// A client of each service.
    pub(crate) clients: Clients,
    urls: BTreeMap<&'static str, String>,
    services: BTreeMap<&'static str, Service>,
    brokers: Vec<Broker>,
    home: TempDir,
    _turn: MutexGuard<'static, ()>,
}

struct Service {
    command: Command,
    log: PathBuf,
    process: Process,
}

impl Service {
    fn start(command: Command, log: PathBuf) -> io::Result<Self> {
        let process = spawn(&command, &log)?;
        Ok(Self {
            command,
            log,
            process,
        })
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
        let urls = BTreeMap::from([
            ("user", url(Kind::Nats)),
            ("product", free_tcp_url()),
            ("payment", url(Kind::Redis)),
            ("order", url(Kind::Kafka)),
            ("review", url(Kind::Nats)),
            ("recommendation", free_tcp_url()),
        ]);
        // As `cargo xtask up` has it: NestJS applications listen where events are mirrored.
        let events = format!("{}?topic=both", url(Kind::Kafka));
        let home = tempfile::tempdir().expect("a folder for the data");
        let binaries = binaries();
        let mut services = BTreeMap::new();
        for name in SERVICES {
            let mut command = Command::new(binaries.join(name));
            command
                .args([
                    "--listen",
                    &urls[name],
                    "--events",
                    &events,
                    "--instance",
                    "1",
                ])
                .arg("--data")
                .arg(home.path());
            if name == "order" {
                command.args(["--product", &urls["product"], "--payment", &urls["payment"]]);
            }
            if name == "payment" {
                command.env("PAYMENT_SEAL_KEY", "5e".repeat(32));
            }
            let log = home.path().join(format!("{name}.log"));
            services.insert(
                name,
                Service::start(command, log).expect("the service starts"),
            );
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

    /// The database of a service.
    pub(crate) fn database(&self, service: &str) -> PathBuf {
        self.home.path().join(format!("{service}.db"))
    }

    /// Ends a service as a power cut would: `kill -9`.
    pub(crate) fn kill(&mut self, service: &str) {
        let service = self.services.get_mut(service).expect("it is one of ours");
        assert_eq!(
            service.process.exited(),
            None,
            "it ended before it was killed"
        );
        service.process.kill();
    }

    /// Starts a killed service again, as it was started before.
    pub(crate) fn start_again(&mut self, service: &str) {
        let service = self.services.get_mut(service).expect("it is one of ours");
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
        for (name, service) in &mut self.services {
            assert_eq!(service.process.exited(), None, "{name} ended by itself");
        }
    }
}

/// Logs vanish with the fleet, so a failed test shows how they end.
impl Drop for Fleet {
    fn drop(&mut self) {
        if !thread::panicking() {
            return;
        }
        for (name, service) in &self.services {
            let log = fs::read_to_string(&service.log).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
            eprintln!("--- {name} ---\n{}", last.join("\n"));
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

fn free_tcp_url() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("it has an address");
    format!("tcp://{address}")
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
