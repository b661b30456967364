//! The shop as processes: which there are, how each is started, and how all of them end.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, File},
    io::{self, Read, Write as _},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nestling_testkit::{Broker, Kind, Process};

/// How long a process may take to finish what it is doing.
const DRAIN_LIMIT: Duration = Duration::from_secs(15);
const SEAL_KEY: &str = "PAYMENT_SEAL_KEY";

/// What a service listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listen {
    Broker(Kind),
    Tcp,
}

/// A service of the shop.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) name: &'static str,
    pub(crate) listen: Listen,
    /// The services it calls; each is an option with that one's URL.
    peers: &'static [&'static str],
}

pub(crate) const SERVICES: [Service; 6] = [
    Service {
        name: "user",
        listen: Listen::Broker(Kind::Nats),
        peers: &[],
    },
    Service {
        name: "product",
        listen: Listen::Tcp,
        peers: &[],
    },
    Service {
        name: "payment",
        listen: Listen::Broker(Kind::Redis),
        peers: &[],
    },
    Service {
        name: "order",
        listen: Listen::Broker(Kind::Kafka),
        peers: &["product", "payment"],
    },
    Service {
        name: "review",
        listen: Listen::Broker(Kind::Nats),
        peers: &[],
    },
    Service {
        name: "recommendation",
        listen: Listen::Tcp,
        peers: &[],
    },
];

/// Where everybody is to be reached.
#[derive(Debug)]
pub(crate) struct Addresses {
    pub(crate) services: BTreeMap<&'static str, String>,
    pub(crate) events: String,
}

impl Addresses {
    /// The options that name the given services' URLs.
    fn options_for(&self, names: impl IntoIterator<Item = &'static str>) -> Vec<String> {
        names
            .into_iter()
            .flat_map(|name| [format!("--{name}"), self.services[name].clone()])
            .collect()
    }

    /// The options of a program that talks to all services: the gateway, the seeding.
    pub(crate) fn options_for_all(&self) -> Vec<String> {
        self.options_for(SERVICES.iter().map(|service| service.name))
    }
}

/// The folder of everything that `up` leaves behind.
#[derive(Clone, Debug)]
pub(crate) struct Home(pub(crate) PathBuf);

impl Home {
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.0.join("logs").join(format!("{name}.log"))
    }

    /// The command line of a process, for whoever wants to start it by hand.
    pub(crate) fn command_file(&self, name: &str) -> PathBuf {
        self.0.join("logs").join(format!("{name}.cmd"))
    }

    pub(crate) fn data(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn open_log(&self, name: &str) -> Result<File> {
        let path = self.log(name);
        File::options()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))
    }

    /// Starts a process on a leash, its output appended to its log and its command line kept beside it.
    pub(crate) fn spawn(&self, name: &str, command: &Command) -> Result<Process> {
        self.record(name, command)?;
        Process::spawn(command, self.open_log(name)?).with_context(|| format!("start {name}"))
    }

    fn record(&self, name: &str, command: &Command) -> Result<()> {
        let mut line = String::from("# To start this process by hand: sh ");
        writeln!(
            line,
            "{}",
            quote(&self.command_file(name).display().to_string())
        )?;
        for (variable, value) in command.get_envs() {
            if variable == SEAL_KEY {
                let key = self.seal_key_file().display().to_string();
                writeln!(line, "export {SEAL_KEY}=\"$(cat {})\"", quote(&key))?;
            } else if let Some(value) = value {
                let value = quote(&value.to_string_lossy());
                writeln!(line, "export {}={value}", variable.display())?;
            }
        }
        let words: Vec<String> = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| quote(&word.to_string_lossy()))
            .collect();
        writeln!(line, "exec {}", words.join(" "))?;
        let path = self.command_file(name);
        fs::write(&path, line).with_context(|| format!("write {}", path.display()))
    }

    fn seal_key_file(&self) -> PathBuf {
        self.data("payment").join("seal.key")
    }

    /// The key that seals what the payment service stores: made once, as without it the sealed is lost.
    fn seal_key(&self) -> Result<String> {
        let path = self.seal_key_file();
        match fs::read_to_string(&path) {
            Ok(key) => return Ok(key.trim().to_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        }
        let mut bytes = [0; 32];
        File::open("/dev/urandom")
            .and_then(|mut source| source.read_exact(&mut bytes))
            .context("read /dev/urandom")?;
        let key = bytes
            .iter()
            .fold(String::new(), |key, byte| key + &format!("{byte:02x}"));
        File::options()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| writeln!(file, "{key}"))
            .with_context(|| format!("write {}", path.display()))?;
        Ok(key)
    }
}

/// For a POSIX shell.
fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// The command of one service.
pub(crate) fn service_command(
    service: &Service,
    binary: &Path,
    home: &Home,
    addresses: &Addresses,
) -> Result<Command> {
    let data = home.data(service.name);
    fs::create_dir_all(&data).with_context(|| format!("make folder {}", data.display()))?;
    let mut command = Command::new(binary);
    command
        .args(["--listen", &addresses.services[service.name]])
        .args(["--events", &addresses.events])
        // A name that stays: brokers give a process that comes back its old work at once.
        .args(["--instance", "1"])
        .arg("--data")
        .arg(data)
        .args(addresses.options_for(service.peers.iter().copied()));
    if service.name == "payment" {
        command.env(SEAL_KEY, home.seal_key()?);
    }
    if service.name == "user" {
        command.env("SEED_DEMO", "true");
    }
    Ok(command)
}

/// A running process of ours.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) name: &'static str,
    pub(crate) process: Process,
    end_was_told: bool,
}

/// Everything that runs. Dropping it stops it, callers before those they call.
#[derive(Debug, Default)]
pub(crate) struct Fleet {
    pub(crate) brokers: Vec<Broker>,
    services: Vec<Member>,
    front: Option<Member>,
}

impl Fleet {
    pub(crate) fn add_service(&mut self, name: &'static str, process: Process) {
        self.services.push(Member::new(name, process));
    }

    /// The process that takes requests from outside; it is the first to stop.
    pub(crate) fn set_front(&mut self, name: &'static str, process: Process) {
        self.front = Some(Member::new(name, process));
    }

    /// The name and pid of every process, the brokers last.
    pub(crate) fn pids(&self) -> Vec<(&'static str, u32)> {
        let members = self.front.iter().chain(&self.services);
        let brokers = self.brokers.iter();
        members
            .map(|member| (member.name, member.process.pid()))
            .chain(brokers.filter_map(|broker| Some((broker.kind().name(), broker.pid()?))))
            .collect()
    }

    /// Processes that have ended by themselves since the last call, and how.
    pub(crate) fn ended(&mut self) -> Vec<(String, String)> {
        let mut ended = Vec::new();
        for member in self.services.iter_mut().chain(&mut self.front) {
            if !member.end_was_told
                && let Some(status) = member.process.exited()
            {
                member.end_was_told = true;
                ended.push((member.name.to_owned(), status.to_string()));
            }
        }
        ended
    }

    /// Drains and stops everything; the names of those that had to be killed.
    pub(crate) fn stop(&mut self) -> Vec<&'static str> {
        let mut killed = Vec::new();
        if let Some(mut front) = self.front.take()
            && !front.process.stop(DRAIN_LIMIT)
        {
            killed.push(front.name);
        }
        for service in &mut self.services {
            service.process.terminate();
        }
        let deadline = Instant::now() + DRAIN_LIMIT;
        for mut service in self.services.drain(..) {
            let rest = deadline.saturating_duration_since(Instant::now());
            if service.process.wait(rest).is_none() {
                service.process.kill();
                killed.push(service.name);
            }
        }
        for broker in &mut self.brokers {
            broker.stop();
        }
        self.brokers.clear();
        killed
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Member {
    fn new(name: &'static str, process: Process) -> Self {
        Self {
            name,
            process,
            end_was_told: false,
        }
    }
}
