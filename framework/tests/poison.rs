//! An event whose handler ends the process: it is given up in the end, and what was in work beside
//! it is not. A service here is a process of its own, which is this test program once more.

#![cfg(all(feature = "nats", feature = "redis", feature = "kafka"))]
#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

use std::{
    env,
    fs::{self, File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
    time::Duration,
};

use nestling::{
    Client, Endpoint, Guarantee, Payload, Router, RpcError, Server, transport::DeadLetter,
};
use nestling_testkit::{Kind, Process, broker_or_skip, suite::witness::within, unique};
use tokio::time::{Instant, sleep};

/// What the process is to do, if it is a service.
const SERVICE: &str = "NESTLING_POISONED_SERVICE";
const EVENTS: u32 = 20;
const POISON: u32 = 12;
/// How long all of it may take: JetStream hands out again after ten seconds.
const LIMIT: Duration = Duration::from_secs(240);

/// Everything a service is told.
struct Brief {
    url: String,
    pattern: &'static str,
    tries: u32,
    /// Where it writes down what it has handled.
    handled: PathBuf,
}

impl Brief {
    fn server(&self, router: Router) -> Server {
        Server::new(self.pattern, router)
            .instance("one")
            .listen(&*self.url)
            .retry(self.tries, Duration::from_millis(1))
    }

    fn spawn(&self, log: &Path) -> Process {
        let Self {
            url,
            pattern,
            tries,
            handled,
        } = self;
        let mut command = Command::new(env::current_exe().unwrap());
        let brief = format!("{url} {pattern} {tries} {}", handled.display());
        command.env(SERVICE, brief).args([
            "--exact",
            "the_service_in_a_process_of_its_own",
            "--nocapture",
        ]);
        let log = OpenOptions::new().append(true).create(true).open(log);
        Process::spawn(&command, log.unwrap()).unwrap()
    }

    fn handled(&self) -> Vec<u32> {
        let text = fs::read_to_string(&self.handled).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }
}

/// No test but the service, when the others start it.
#[tokio::test]
async fn the_service_in_a_process_of_its_own() {
    let Ok(brief) = env::var(SERVICE) else { return };
    tracing_subscriber::fmt().with_ansi(false).init();
    let mut brief = brief.split(' ').map(str::to_owned);
    let mut next = || brief.next().unwrap();
    let brief = Brief {
        url: next(),
        pattern: next().leak(),
        tries: next().parse().unwrap(),
        handled: next().into(),
    };
    let handled = OpenOptions::new()
        .append(true)
        .create(true)
        .open(&brief.handled);
    let handled: &Mutex<File> = Box::leak(Box::new(Mutex::new(handled.unwrap())));
    let react = move |Payload(n): Payload<u32>| async move {
        if n == POISON {
            std::process::abort();
        }
        // It is in work when the poison comes.
        sleep(Duration::from_millis(50)).await;
        writeln!(handled.lock().unwrap(), "{n}").map_err(RpcError::internal)
    };
    let router = Router::new().event_with(brief.pattern, Guarantee::AtLeastOnce, react);
    let _running = brief.server(router).start().await.unwrap();
    std::future::pending().await
}

async fn innocents_survive(kind: Kind, options: &str, tries: u32) {
    let Some(url) = broker_or_skip(kind) else {
        return;
    };
    let folder = env::temp_dir().join(unique("nestling-poison"));
    fs::create_dir(&folder).unwrap();
    let brief = Brief {
        url: format!("{url}?{options}"),
        pattern: unique("poison").leak(),
        tries,
        handled: folder.join("handled"),
    };
    // The broker gets to know the service.
    let ignore = || async { Ok::<_, RpcError>(()) };
    let router = Router::new().event_with(brief.pattern, Guarantee::AtLeastOnce, ignore);
    let first = within("a start", brief.server(router).start())
        .await
        .unwrap();
    within("a stop", first.shutdown()).await;
    let client = Client::connect(&*brief.url).await.unwrap();
    for n in 0..EVENTS {
        client.emit_at(brief.pattern, &n).await.unwrap();
    }

    let dead = Endpoint::from(&*brief.url).dead_letters().await.unwrap();
    let log = folder.join("log");
    let deadline = Instant::now() + LIMIT;
    let mut deaths = 0;
    let mut service = brief.spawn(&log);
    let letters: Vec<(String, DeadLetter)> = loop {
        if service.exited().is_some() {
            deaths += 1;
            service = brief.spawn(&log);
        }
        let letters = dead.list(brief.pattern, None, 100).await.unwrap();
        let mut handled = brief.handled();
        handled.sort_unstable();
        handled.dedup();
        if letters.len() + handled.len() >= EVENTS as usize {
            break letters;
        }
        if Instant::now() > deadline {
            let log = fs::read_to_string(&log).unwrap_or_default();
            panic!("{deaths} deaths, handled {handled:?}, given up {letters:?}\n{log}");
        }
        sleep(Duration::from_millis(50)).await;
    };
    let given_up: Vec<_> = letters
        .iter()
        .map(|(_, letter)| &letter.rejection)
        .map(|rejection| (&*rejection.envelope.payload, rejection.attempts))
        .collect();
    assert_eq!(given_up, [(POISON.to_string().as_bytes(), tries)]);
    // Two that nobody was blamed for, and a trial for each try.
    assert_eq!(deaths, 2 + tries);
    drop(service);
    fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn on_redis_only_the_event_to_blame_is_given_up() {
    innocents_survive(Kind::Redis, "claim_idle=500", 2).await;
}

#[tokio::test]
async fn on_kafka_only_the_event_to_blame_is_given_up() {
    innocents_survive(Kind::Kafka, "", 2).await;
}

#[tokio::test]
async fn on_jetstream_only_the_event_to_blame_is_given_up() {
    innocents_survive(Kind::Nats, "events=jetstream", 1).await;
}
