//! `cargo xtask chaos`: orders, while services and brokers are killed.

use std::process::ExitCode;

use anyhow::{Context, Result};
use nestling_testkit::Kind;

use crate::{cargo, install};

/// What `cargo xtask chaos` takes.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// How many orders are placed
    #[arg(long, default_value_t = 1000)]
    orders: u32,
    /// What the moments and the victims are drawn from
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    install::ensure(&Kind::ALL)?;
    let mut command = cargo::command();
    command
        .env("REQUIRE_BROKERS", "1")
        .env("CHAOS_ORDERS", options.orders.to_string())
        .env("CHAOS_SEED", options.seed.to_string())
        .args([
            "test",
            "--package",
            "shop",
            "--test",
            "chaos",
            "no_order_is_lost",
        ])
        .args(cargo::FEATURES)
        .args(["--", "--nocapture"]);
    let status = command.status().context("run cargo test")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}
