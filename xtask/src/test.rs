//! `cargo xtask test`: brokers, then the whole suite.

use std::{
    env,
    process::{Command, ExitCode},
    thread,
};

use anyhow::{Context, Result};
use nestling_testkit::{Broker, Kind, Options as BrokerOptions};

use crate::{cargo, install, signal::Interrupt, terminal::step};

/// How many tests of one program run beside each other.
const THREADS: &str = "RUST_TEST_THREADS";

/// What `cargo xtask test` takes.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Run only the tests whose names contain one of these
    filters: Vec<String>,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let interrupt = Interrupt::listen()?;
    let wanted: Vec<Kind> = Kind::ALL
        .into_iter()
        .filter(|kind| env::var(kind.variable()).map_or(true, |url| url.is_empty()))
        .collect();
    install::ensure_for_tests(&wanted)?;
    let mut command = cargo::command();
    let mut brokers = Vec::new();
    for kind in wanted {
        interrupt.check()?;
        let broker = step(&format!("start {kind}"), || {
            Ok(Broker::start(kind, BrokerOptions::default())?)
        })?;
        command.env(kind.variable(), broker.url());
        brokers.push(broker);
    }
    let outcome = suite(&mut command, &options.filters);
    drop(brokers);
    outcome
}

/// Leaves the last word to the test runner: its count closes the output, its exit code is ours.
fn suite(command: &mut Command, filters: &[String]) -> Result<ExitCode> {
    // Most tests wait for a broker most of the time.
    if env::var_os(THREADS).is_none() {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        command.env(THREADS, (2 * cores).to_string());
    }
    command
        .env("REQUIRE_BROKERS", "1")
        .args(["test", "--workspace"])
        .args(cargo::FEATURES);
    if !filters.is_empty() {
        command.arg("--").args(filters);
    }
    let status = command.status().context("run cargo test")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}
