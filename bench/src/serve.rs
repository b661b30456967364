//! The other side: a process that answers, and tells what it has seen when it is asked.
//!
//! It prints one line when it is ready, with the URL where it is; then a line of JSON for each line it reads.

use std::{
    any::Any,
    io::{BufRead, BufReader, PipeReader, PipeWriter, Write},
    process::Command,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use nestling_testkit::Process;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};

use crate::{
    floor, ours,
    payload::{self, Payload},
    spec::{Spec, Who, name},
};

/// What `bench serve` takes; only this program starts it.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) spec: Spec,
    #[arg(long)]
    pub(crate) who: Who,
    /// Where to listen, or the broker.
    #[arg(long)]
    pub(crate) url: String,
    /// The pattern, which nobody else uses.
    #[arg(long)]
    pub(crate) pattern: String,
}

/// What holds a server together until it is dropped.
pub(crate) type Serving = (String, Box<dyn Any + Send>);

/// The events that were handled.
#[derive(Debug)]
pub(crate) struct Seen(Mutex<Noted>);

#[derive(Debug)]
struct Noted {
    latency: Histogram<u64>,
    last: u64,
}

/// What is told of them.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Handled {
    pub(crate) count: u64,
    /// When the last was handled, in nanoseconds since 1970.
    pub(crate) last: u64,
    /// How many took so many nanoseconds, from their publication.
    pub(crate) latency: Vec<(u64, u64)>,
}

impl Seen {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Noted {
            latency: bench::load::latencies(),
            last: 0,
        }))
    }

    /// An event has been handled.
    pub(crate) fn note(&self, payload: &Payload) -> Result<()> {
        let now = payload::now()?;
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        noted.latency.saturating_record(payload.age(now));
        noted.last = noted.last.max(now);
        Ok(())
    }

    fn take(&self) -> Handled {
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = noted.latency.iter_recorded();
        let handled = Handled {
            count: noted.latency.len(),
            last: noted.last,
            latency: counts
                .map(|step| (step.value_iterated_to(), step.count_at_value()))
                .collect(),
        };
        noted.latency.reset();
        handled
    }
}

/// Runs until its input ends.
pub(crate) async fn serve(options: Options) -> Result<()> {
    let seen: &'static Seen = Box::leak(Box::new(Seen::new()));
    let (url, _serving) = match options.who {
        Who::Nestling => ours::serve(&options, seen).await?,
        Who::Floor => floor::serve(&options, seen).await?,
        peer => bail!("{} is no part of this program", name(&peer)),
    };
    answer(&url, || serde_json::to_string(&seen.take())).await
}

/// Says that this process is ready, at `url`, and answers each line it reads, until its input ends.
pub(crate) async fn answer(
    url: &str,
    mut line: impl FnMut() -> serde_json::Result<String>,
) -> Result<()> {
    let mut out = tokio::io::stdout();
    let mut lines = tokio::io::BufReader::new(tokio::io::stdin()).lines();
    let mut next = url.to_owned();
    loop {
        next.push('\n');
        out.write_all(next.as_bytes()).await?;
        out.flush().await?;
        if lines.next_line().await?.is_none() {
            return Ok(());
        }
        next = line()?;
    }
}

/// A server in a process of its own.
#[derive(Debug)]
pub(crate) struct Server {
    process: Process,
    input: PipeWriter,
    output: BufReader<PipeReader>,
    pub(crate) url: String,
    _scratch: TempDir,
}

impl Server {
    /// Starts this program as one and waits until it is ready.
    pub(crate) fn start(spec: Spec, who: Who, url: &str, pattern: &str) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("serve")
            .args(["--transport", &name(&spec.transport)])
            .args(["--wire", &name(&spec.wire)])
            .args(["--codec", &name(&spec.codec)])
            .args(["--workload", &name(&spec.workload)])
            .args(["--who", &name(&who), "--url", url, "--pattern", pattern]);
        Self::launch(&command)
    }

    /// Starts a program that speaks as this one does.
    pub(crate) fn launch(command: &Command) -> Result<Self> {
        let scratch = tempfile::tempdir().context("make a folder")?;
        let log = scratch.path().join("log");
        let (process, input, output) = Process::spawn_talking(command, &log, scratch.path())?;
        let mut output = BufReader::new(output);
        let mut url = String::new();
        output.read_line(&mut url).context("hear of a server")?;
        if url.trim().is_empty() {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            bail!("the server ended at once: {}", said.trim());
        }
        Ok(Self {
            process,
            input,
            output,
            url: url.trim().to_owned(),
            _scratch: scratch,
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The events that were handled since it was asked last.
    pub(crate) fn handled(&mut self) -> Result<Handled> {
        self.input.write_all(b"?\n").context("ask the server")?;
        let mut line = String::new();
        self.output
            .read_line(&mut line)
            .context("hear the server")?;
        serde_json::from_str(&line).context("understand the server")
    }
}
