//! `cargo xtask bench`: builds the comparison of transports and runs it.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use nestling_testkit::Kind;

use crate::{cargo, install};

/// What `cargo xtask bench` takes: it is handed on.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Options {
    /// What the comparison takes; `--help` lists it
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let has = |flag: &str| options.arguments.iter().any(|argument| argument == flag);
    let peers = match has("--peers") {
        true => {
            install::ensure_for_tests(&Kind::ALL)?;
            Some(build_peers()?)
        }
        false => {
            install::ensure(&Kind::ALL)?;
            None
        }
    };
    let mut command = cargo::command();
    command.args(["run", "--release", "--package", "bench", "--"]);
    command.args(&options.arguments);
    if let Some(peers) = peers {
        command.env("BENCH_PEERS", peers);
    }
    let status = command.status().context("run cargo run")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// tarpc and tonic, which are no part of the workspace.
fn build_peers() -> Result<PathBuf> {
    let target = cargo::root().join("target/peers");
    let mut command = cargo::command();
    command
        .args(["build", "--release", "--locked"])
        .args(["--manifest-path", "bench/peers/Cargo.toml"])
        .arg("--target-dir")
        .arg(&target);
    cargo::run(&mut command)?;
    Ok(target.join("release/peers"))
}
