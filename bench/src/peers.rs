//! Peers: NestJS's servers, called by nestling's clients as the others of a row are; tarpc and tonic, with both sides in
//! programs of their own, which are built when they are asked for.

use std::{
    env,
    io::{BufRead, BufReader, PipeReader, PipeWriter, Write},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use bench::load::{self, Measured};
use nestling_testkit::{Process, nestjs::App, unique};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    payload::Payload,
    serve::Server,
    spec::{Encoding, Spec, Transport, Who, Wire, Workload, name},
};

/// The variable with the path of the program that is tarpc and tonic.
const PROGRAM: &str = "BENCH_PEERS";

/// Who else has this row.
pub(crate) fn of(spec: &Spec) -> &'static [Who] {
    match (spec.transport, spec.wire, spec.codec, spec.workload) {
        (_, Wire::Nest, _, Workload::Request) => &[Who::Nestjs],
        (Transport::Tcp, Wire::Native, Encoding::Bincode, Workload::Request) => {
            &[Who::Tarpc, Who::Tonic]
        }
        _ => &[],
    }
}

/// A NestJS application that answers the pattern, and where it is.
pub(crate) fn nestjs(url: &str, pattern: &str) -> Result<(App, String)> {
    let run = unique("bench");
    let arguments = [url, "--run", &run, "--pattern", pattern];
    let app = App::start("echo.mjs", &arguments, |_| {})?;
    let ready: Value = serde_json::from_str(app.ready())?;
    let at = ready["url"].as_str().context("it says where it is")?;
    let at = at.to_owned();
    Ok((app, at))
}

fn program() -> Result<PathBuf> {
    let path = env::var_os(PROGRAM).with_context(|| {
        format!("{PROGRAM} does not say where tarpc and tonic are: `cargo xtask bench --peers` builds them")
    })?;
    Ok(path.into())
}

/// tarpc's or tonic's server.
pub(crate) fn serve(who: Who) -> Result<Server> {
    let mut command = Command::new(program()?);
    command.args(["serve", "--who", &name(&who)]);
    Server::launch(&command)
}

/// Their calling side.
#[derive(Debug)]
pub(crate) struct Caller {
    process: Process,
    input: PipeWriter,
    output: BufReader<PipeReader>,
    _scratch: TempDir,
}

#[derive(Serialize)]
struct Turn {
    concurrency: usize,
    nanos: u128,
    body: usize,
}

#[derive(Deserialize)]
struct Told {
    messages: u64,
    errors: u64,
    first_error: Option<String>,
    nanos: u64,
    latency: Vec<(u64, u64)>,
}

impl Caller {
    pub(crate) fn connect(who: Who, url: &str, connections: usize) -> Result<Self> {
        let mut command = Command::new(program()?);
        command
            .args(["load", "--who", &name(&who), "--url", url])
            .args(["--connections", &connections.to_string()]);
        let scratch = tempfile::tempdir().context("make a folder")?;
        let log = scratch.path().join("log");
        let (process, input, output) = Process::spawn_talking(&command, &log, scratch.path())?;
        let mut caller = Self {
            process,
            input,
            output: BufReader::new(output),
            _scratch: scratch,
        };
        if caller.hear()?.trim() != "ready" {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            bail!("{} does not connect: {}", name(&who), said.trim());
        }
        Ok(caller)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line).context("hear a peer")?;
        Ok(line)
    }

    pub(crate) fn closed(
        &mut self,
        concurrency: usize,
        duration: Duration,
        payload: &Payload,
    ) -> Result<Measured> {
        let turn = Turn {
            concurrency,
            nanos: duration.as_nanos(),
            body: payload.body.len(),
        };
        let mut line = serde_json::to_vec(&turn)?;
        line.push(b'\n');
        self.input.write_all(&line).context("tell a peer")?;
        let told: Told = serde_json::from_str(&self.hear()?).context("understand a peer")?;
        let mut latency = load::latencies();
        for (value, count) in told.latency {
            latency.saturating_record_n(value, count);
        }
        Ok(Measured {
            messages: told.messages,
            errors: told.errors,
            first_error: told.first_error,
            elapsed: Duration::from_nanos(told.nanos),
            latency,
        })
    }
}
