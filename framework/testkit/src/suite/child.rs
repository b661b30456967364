//! A replica in a process of its own, which a case can kill as an operating system does.
//!
//! The process is the test's own program, told by its arguments to run nothing but
//! `a_replica_in_a_process_of_its_own`, and by a variable of its environment what to serve. It says on its output what
//! it begins, before it does anything else with it.

use std::{
    env, fs,
    future::pending,
    io::{self, BufRead, BufReader, PipeReader, Write},
    path::PathBuf,
    process::Command,
    thread,
};

use nestling::{Guarantee, Payload, Router, RpcError, Server};
use tokio::{runtime, sync::oneshot};

use super::{
    fixture::Stage,
    witness::{Record, within},
};
use crate::{Process, brokers::private_folder, clock, or_skip, unique};

/// What the process serves: a JSON list of URL, service, three patterns, and what is promised for an event.
const VARIABLE: &str = "NESTLING_SUITE_REPLICA";
/// The entry, which is part of what `conformance!` writes.
const ENTRY: &str = "a_replica_in_a_process_of_its_own";
/// What tells its words from those of the test runner, also behind them on one line.
const MARK: &str = "@@ ";
const AT_LEAST_ONCE: &str = "at least once";
/// One in so many is begun and never finished, by who holds on to them.
pub(super) const HELD: u64 = 3;

/// What there is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Job {
    /// A request that may run twice.
    Careless,
    /// A request that must not.
    Careful,
    Event,
}

impl Job {
    const ALL: [(Self, &'static str); 3] = [
        (Self::Careless, "careless"),
        (Self::Careful, "careful"),
        (Self::Event, "event"),
    ];

    fn word(self) -> &'static str {
        let is_this = |(job, _): &&(Self, &str)| *job == self;
        Self::ALL.iter().find(is_this).map_or("", |(_, word)| word)
    }
}

/// The patterns of the three jobs.
#[derive(Clone, Copy)]
pub(super) struct Patterns {
    pub(super) careless: &'static str,
    pub(super) careful: &'static str,
    pub(super) event: &'static str,
    pub(super) guarantee: Guarantee,
}

impl Patterns {
    pub(super) fn of(stage: &Stage) -> Self {
        Self {
            careless: stage.pattern("careless"),
            careful: stage.pattern("careful"),
            event: stage.pattern("happened"),
            guarantee: stage.guarantee(),
        }
    }

    /// Handlers that tell what they begin, and finish all of it or all but some.
    pub(super) fn router(
        self,
        tell: impl Fn(Job, u64) + Copy + Send + Sync + 'static,
        holds: bool,
    ) -> Router {
        let work = move |job: Job, n: u64| async move {
            tell(job, n);
            if holds && n.is_multiple_of(HELD) {
                pending::<()>().await;
            }
            Ok::<_, RpcError>(n)
        };
        let careless = move |Payload(n): Payload<u64>| work(Job::Careless, n);
        let careful = move |Payload(n): Payload<u64>| work(Job::Careful, n);
        let event = move |Payload((_, n)): Payload<(u64, u64)>| async move {
            work(Job::Event, n).await.map(drop)
        };
        Router::new()
            .message_with(self.careless, true, careless)
            .message_at(self.careful, careful)
            .event_with(self.event, self.guarantee, event)
    }
}

/// Serves, if this process was started for that.
///
/// # Panics
///
/// When it cannot.
pub fn serve_as_a_child() {
    let Ok(what) = env::var(VARIABLE) else {
        return;
    };
    let words: [String; 6] = serde_json::from_str(&what).expect("it is what a case wrote");
    let [url, service, careless, careful, event, promised] = words.map(|word| &*String::leak(word));
    let patterns = Patterns {
        careless,
        careful,
        event,
        guarantee: match promised {
            AT_LEAST_ONCE => Guarantee::AtLeastOnce,
            _ => Guarantee::BestEffort,
        },
    };
    let router = patterns.router(|job, n| say(&format!("{} {n}", job.word())), true);
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime.expect("a runtime can be built").block_on(async {
        let running = Server::new(service, router).listen(url).start().await;
        let running = running.expect("a server starts");
        say(&format!("at {}", running.address()));
        pending::<()>().await;
    });
}

fn say(words: &str) {
    let said = writeln!(io::stdout().lock(), "{MARK}{words}");
    said.expect("the case listens");
}

/// The process, from outside.
pub(super) struct Child {
    process: Process,
    folder: PathBuf,
    pub(super) address: String,
    /// What it has begun.
    pub(super) begun: &'static Record<(Job, u64)>,
}

impl Child {
    /// Starts one and waits until it serves; `None` where processes cannot meet.
    pub(super) async fn start(stage: &Stage, patterns: Patterns) -> Option<Self> {
        Self::start_ahead(stage, patterns, 0).await
    }

    /// The same with a clock that is so many seconds ahead, or behind; `None` also where that cannot be had.
    pub(super) async fn start_ahead(
        stage: &Stage,
        patterns: Patterns,
        seconds: i64,
    ) -> Option<Self> {
        let url = stage.url()?;
        let promised = match patterns.guarantee {
            Guarantee::AtLeastOnce => AT_LEAST_ONCE,
            Guarantee::BestEffort => "",
        };
        let what = [
            &*url,
            &stage.service("service"),
            patterns.careless,
            patterns.careful,
            patterns.event,
            promised,
        ];
        let mut command = Command::new(env::current_exe().expect("a test is a program"));
        command
            .args([ENTRY, "--nocapture", "--test-threads=1"])
            .env(VARIABLE, serde_json::json!(what).to_string());
        if seconds != 0 {
            or_skip(clock::set_wrong(&mut command, seconds))?;
        }
        let folder = env::temp_dir().join(unique("nestling-replica"));
        private_folder(&folder).expect("a folder can be made");
        let log = folder.join("replica.log");
        let (process, _, output) = Process::spawn_talking(&command, &log, &folder)
            .expect("the test's own program can be started");
        let begun = Record::new();
        let (serves, address) = oneshot::channel();
        thread::spawn(move || listen(output, serves, begun));
        let address = within("the other process to serve", address).await;
        let address = address.unwrap_or_else(|_| {
            panic!("it ended: {}", fs::read_to_string(&log).unwrap_or_default())
        });
        Some(Self {
            process,
            folder,
            address,
            begun,
        })
    }

    /// Ends it with `SIGKILL`, and waits until it is gone.
    pub(super) fn kill(&mut self) {
        self.process.kill();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("remove {}: {error}", self.folder.display());
        }
    }
}

/// Notes what the process says, until it ends.
fn listen(output: PipeReader, serves: oneshot::Sender<String>, begun: &Record<(Job, u64)>) {
    let mut serves = Some(serves);
    for line in BufReader::new(output).lines().map_while(Result::ok) {
        let words = line.split_once(MARK).map(|(_, words)| words);
        match words.and_then(|words| words.split_once(' ')) {
            Some(("at", address)) => {
                if let Some(serves) = serves.take() {
                    // A case that has failed meanwhile does not listen any more.
                    serves.send(address.to_owned()).unwrap_or_default();
                }
            }
            Some((word, n)) => {
                let job = Job::ALL.into_iter().find(|(_, known)| *known == word);
                if let (Some((job, _)), Ok(n)) = (job, n.parse()) {
                    begun.push((job, n));
                }
            }
            None => {}
        }
    }
}
