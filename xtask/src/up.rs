//! `cargo xtask up`: the whole shop on this machine, each part as a process of its own.

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use nestling_testkit::{Broker, Kind, Options as BrokerOptions, Unavailable};

use crate::{
    cargo, check,
    fleet::{Addresses, Fleet, Home, Listen, SERVICES, service_command},
    guide, install,
    ports::{self, Ports},
    signal::Interrupt,
    terminal::{last_lines, loud_step, step},
};

const USUAL_PORT: u16 = 8080;
const READY_LIMIT: Duration = Duration::from_secs(120);
const SEED_LIMIT: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(100);

/// What `cargo xtask up` takes.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Run the shop as one process without brokers
    #[arg(long)]
    embedded: bool,
    /// Drive one order through the running shop, verify what came of it, and stop
    #[arg(long)]
    check: bool,
    /// Where data and logs are kept from one start to the next
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// The gateway's port [default: 8080, or a free one with --check]
    #[arg(long)]
    port: Option<u16>,
    /// A NATS server that runs already
    #[arg(long, value_name = "URL", conflicts_with = "embedded")]
    nats: Option<String>,
    /// A Redis server that runs already
    #[arg(long, value_name = "URL", conflicts_with = "embedded")]
    redis: Option<String>,
    /// A Kafka broker that runs already
    #[arg(long, value_name = "URL", conflicts_with = "embedded")]
    kafka: Option<String>,
}

impl Options {
    fn given(&self, kind: Kind) -> Option<&String> {
        match kind {
            Kind::Nats => self.nats.as_ref(),
            Kind::Redis => self.redis.as_ref(),
            Kind::Kafka => self.kafka.as_ref(),
        }
    }
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let interrupt = Interrupt::listen()?;
    let start = Instant::now();
    let (home, _lock) = open_home(options)?;
    let port = gateway_port(options)?;
    let base = format!("http://127.0.0.1:{port}");
    println!("data and logs: {}", home.0.display());

    let mut fleet = Fleet::default();
    let addresses = if options.embedded {
        start_embedded(&mut fleet, &home, port, &base, &interrupt)?;
        None
    } else {
        Some(start_fleet(
            options, &mut fleet, &home, port, &base, &interrupt,
        )?)
    };
    println!("\nready after {:.1} s", start.elapsed().as_secs_f64());

    let outcome = if options.check {
        check::run(&base, &home).inspect_err(|_| print_logs(&fleet, &home))
    } else {
        guide::print(&base, &home, addresses.as_ref(), &fleet);
        watch(&mut fleet, &home, &interrupt);
        Ok(())
    };
    println!();
    step("stop", || {
        let killed = fleet.stop();
        if !killed.is_empty() {
            bail!(
                "killed after they did not drain in time: {}",
                killed.join(", ")
            );
        }
        Ok(())
    })?;
    outcome.map(|()| ExitCode::SUCCESS)
}

/// The data folder, ours alone until the returned file is closed.
fn open_home(options: &Options) -> Result<(Home, File)> {
    let folder = match &options.data {
        Some(folder) => folder.clone(),
        None => cargo::root().join("data"),
    };
    let logs = folder.join("logs");
    fs::create_dir_all(&logs).with_context(|| format!("make folder {}", logs.display()))?;
    let folder = folder
        .canonicalize()
        .with_context(|| format!("find folder {}", folder.display()))?;
    let path = folder.join("up.lock");
    let lock = File::create(&path).with_context(|| format!("open {}", path.display()))?;
    match lock.try_lock() {
        Ok(()) => Ok((Home(folder), lock)),
        Err(TryLockError::WouldBlock) => bail!(
            "another `cargo xtask up` is using {}; stop it, or choose another folder with --data",
            folder.display()
        ),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("lock {}", path.display()))
        }
    }
}

fn gateway_port(options: &Options) -> Result<u16> {
    match options.port {
        Some(port) if ports::is_free(port) => Ok(port),
        Some(port) => bail!("port {port} is taken; choose another with --port"),
        None if options.check => ports::any_free(),
        None if ports::is_free(USUAL_PORT) => Ok(USUAL_PORT),
        None => {
            println!("port {USUAL_PORT} is taken, so the gateway gets another");
            ports::any_free()
        }
    }
}

fn start_fleet(
    options: &Options,
    fleet: &mut Fleet,
    home: &Home,
    port: u16,
    base: &str,
    interrupt: &Interrupt,
) -> Result<Addresses> {
    let own: Vec<Kind> = Kind::ALL
        .into_iter()
        .filter(|kind| options.given(*kind).is_none())
        .collect();
    install::ensure(&own).map_err(|error| or_embedded(&error))?;
    interrupt.check()?;
    let mut packages: Vec<&str> = SERVICES.iter().map(|service| service.name).collect();
    packages.extend(["gateway", "shop"]);
    let binaries = loud_step("build", || cargo::build(&packages, &cargo::FEATURES))?;
    interrupt.check()?;

    let mut ports = Ports::load(home.0.join("ports"))?;
    let mut brokers = BTreeMap::new();
    for kind in Kind::ALL {
        let url = match options.given(kind) {
            Some(url) => url.clone(),
            None => {
                start_broker(kind, fleet, home, &mut ports).map_err(|error| or_embedded(&error))?
            }
        };
        brokers.insert(kind.name(), url);
        interrupt.check()?;
    }
    let mut addresses = Addresses {
        services: BTreeMap::new(),
        events: for_everybody(&brokers[Kind::Kafka.name()]),
    };
    for service in &SERVICES {
        let url = match service.listen {
            Listen::Broker(kind) => brokers[kind.name()].clone(),
            Listen::Tcp => format!("tcp://127.0.0.1:{}", ports.pick(service.name)?),
        };
        addresses.services.insert(service.name, url);
    }

    step("start the services and the gateway", || {
        for service in &SERVICES {
            let binary = binary(&binaries, service.name)?;
            let mut command = service_command(service, binary, home, &addresses)?;
            if options.check {
                command.env("RUST_LOG", check::LOG_FILTER);
            }
            fleet.add_service(service.name, home.spawn(service.name, &command)?);
        }
        let mut gateway = Command::new(binary(&binaries, "gateway")?);
        gateway
            .args(["--bind", &format!("127.0.0.1:{port}")])
            .args(addresses.options_for_all());
        fleet.set_front("gateway", home.spawn("gateway", &gateway)?);
        Ok(())
    })?;
    step("wait until all are ready", || {
        wait_ready(fleet, home, base, interrupt)
    })?;
    step("seed the demo catalogue", || {
        let mut seed = Command::new(binary(&binaries, "shop")?);
        seed.args(["seed", "--profile", "demo"])
            .args(addresses.options_for_all());
        run_seed(&seed, fleet, home, interrupt)
    })?;
    Ok(addresses)
}

/// The bus, on which each event also gets to where NestJS applications listen for it.
fn for_everybody(kafka: &str) -> String {
    match kafka.split_once('?') {
        Some((_, options)) if options.contains("topic=") => kafka.to_owned(),
        Some(_) => format!("{kafka}&topic=both"),
        None => format!("{kafka}?topic=both"),
    }
}

fn start_embedded(
    fleet: &mut Fleet,
    home: &Home,
    port: u16,
    base: &str,
    interrupt: &Interrupt,
) -> Result<()> {
    // It talks to no Kafka, so that it need not install what TLS to one is built with.
    let features = match install::has_openssl() {
        true => &cargo::FEATURES[..],
        false => &[],
    };
    let binaries = loud_step("build", || cargo::build(&["shop"], features))?;
    interrupt.check()?;
    let mut shop = Command::new(binary(&binaries, "shop")?);
    shop.args(["dev", "--bind", &format!("127.0.0.1:{port}"), "--data"])
        .arg(home.data("embedded"));
    step("start the shop in one process", || {
        fleet.set_front(guide::EMBEDDED, home.spawn(guide::EMBEDDED, &shop)?);
        wait_ready(fleet, home, base, interrupt)
    })
}

/// What to do about a broker that cannot be had.
fn or_embedded(error: &anyhow::Error) -> anyhow::Error {
    let reason = match error.downcast_ref::<Unavailable>() {
        Some(Unavailable { what, reason, .. }) => format!("{what} is unavailable: {reason}"),
        None => format!("{error:#}"),
    };
    anyhow!(
        "{reason}\n\nA broker that runs elsewhere is used when its URL is given: --nats URL, --redis URL, --kafka URL.\n\
         `cargo xtask up --embedded` runs the same shop without any broker."
    )
}

/// The binary of a package, which goes by the package's name.
fn binary<'a>(binaries: &'a BTreeMap<String, PathBuf>, name: &str) -> Result<&'a Path> {
    binaries
        .get(name)
        .map(PathBuf::as_path)
        .with_context(|| format!("cargo built no binary {name}"))
}

fn start_broker(kind: Kind, fleet: &mut Fleet, home: &Home, ports: &mut Ports) -> Result<String> {
    step(&format!("start {kind}"), || {
        let broker = Broker::start(
            kind,
            BrokerOptions {
                data_dir: Some(home.data(kind.name())),
                port: ports.known(kind.name()),
                // Cards pass through it on their way to the provider. What it loses when it is
                // stopped is repeated by whoever waits for it; events are on Kafka.
                volatile: kind == Kind::Redis,
                ..BrokerOptions::default()
            },
        )?;
        ports.remember(kind.name(), broker.port())?;
        link_log(&broker, home)?;
        let url = broker.url();
        fleet.brokers.push(broker);
        Ok(url)
    })
}

/// A broker's log is part of its data; a link puts it beside the others.
fn link_log(broker: &Broker, home: &Home) -> Result<()> {
    let link = home.log(broker.kind().name());
    if link.is_symlink() {
        fs::remove_file(&link).with_context(|| format!("remove {}", link.display()))?;
    }
    std::os::unix::fs::symlink(broker.log(), &link)
        .with_context(|| format!("link {}", link.display()))
}

fn wait_ready(fleet: &mut Fleet, home: &Home, base: &str, interrupt: &Interrupt) -> Result<()> {
    let agent = check::agent(Duration::from_secs(5));
    let url = format!("{base}/readyz");
    let deadline = Instant::now() + READY_LIMIT;
    loop {
        interrupt.check()?;
        fail_if_ended(fleet, home)?;
        let answer = match agent.get(&url).call() {
            Ok(answer) if answer.status() == 200 => return Ok(()),
            Ok(mut answer) => {
                let body = answer.body_mut().read_to_string().unwrap_or_default();
                format!("{} {body}", answer.status())
            }
            Err(error) => error.to_string(),
        };
        if Instant::now() >= deadline {
            bail!(
                "not ready after {} s; GET {url} answers: {answer}\nthe logs are in {}",
                READY_LIMIT.as_secs(),
                home.0.join("logs").display()
            );
        }
        thread::sleep(POLL);
    }
}

fn fail_if_ended(fleet: &mut Fleet, home: &Home) -> Result<()> {
    if let Some((name, status)) = fleet.ended().into_iter().next() {
        let log = home.log(&name);
        bail!(
            "{name} ended with {status}; the end of {}:\n{}",
            log.display(),
            last_lines(&log, 20)
        );
    }
    Ok(())
}

fn run_seed(seed: &Command, fleet: &mut Fleet, home: &Home, interrupt: &Interrupt) -> Result<()> {
    let mut process = home.spawn("seed", seed)?;
    let deadline = Instant::now() + SEED_LIMIT;
    loop {
        interrupt.check()?;
        fail_if_ended(fleet, home)?;
        match process.wait(POLL) {
            Some(status) if status.success() => return Ok(()),
            None if Instant::now() < deadline => {}
            ended => {
                let reason = match ended {
                    Some(status) => format!("ended with {status}"),
                    None => format!("was not done after {} s", SEED_LIMIT.as_secs()),
                };
                let log = home.log("seed");
                bail!(
                    "the seeding {reason}; the end of {}:\n{}",
                    log.display(),
                    last_lines(&log, 20)
                );
            }
        }
    }
}

/// What everybody said last, for whoever cannot look into the logs afterwards.
fn print_logs(fleet: &Fleet, home: &Home) {
    for (name, _) in fleet.pids() {
        let log = home.log(name);
        println!("\n{}\n{}", log.display(), last_lines(&log, 10));
    }
}

/// Waits for Ctrl-C. A process that ends meanwhile is reported, and may be started again by hand.
fn watch(fleet: &mut Fleet, home: &Home, interrupt: &Interrupt) {
    while !interrupt.is_raised() {
        for (name, status) in fleet.ended() {
            println!(
                "\n{name} ended with {status}; the end of its log:\n{}\nstart it again with: sh {}",
                last_lines(&home.log(&name), 8),
                home.command_file(&name).display()
            );
        }
        thread::sleep(POLL);
    }
}
