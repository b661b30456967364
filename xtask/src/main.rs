//! `cargo xtask`: what a developer types. It needs nothing but cargo; what else it needs it installs, and says so.

mod bench;
mod cargo;
mod chaos;
mod check;
mod cost;
mod fleet;
mod guide;
mod install;
mod lint;
mod ports;
mod signal;
mod terminal;
mod test;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Runs, tests and checks nestling and its shop.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Starts the whole shop: brokers, every service and the gateway as processes of their own
    Up(up::Options),
    /// Runs the whole test suite against real brokers
    Test(test::Options),
    /// Places orders while services and brokers are killed, and checks what became of each
    Chaos(chaos::Options),
    /// Counts instructions and allocations per message, and compares with what is recorded
    Cost(cost::Options),
    /// Compares transports: the same handler on each, beside the raw client library
    Bench(bench::Options),
    /// Checks format, lints, documentation and dependencies
    Lint(lint::Options),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match arguments.command {
        Task::Up(options) => up::run(&options),
        Task::Test(options) => test::run(&options),
        Task::Chaos(options) => chaos::run(&options),
        Task::Cost(options) => cost::run(&options),
        Task::Bench(options) => bench::run(&options),
        Task::Lint(options) => lint::run(&options),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}
