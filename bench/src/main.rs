//! `bench`: the same handler on every transport, beside the raw client library. `cargo xtask bench` builds and runs it.

mod caller;
mod floor;
mod gateway;
mod idle;
mod matrix;
mod ours;
mod payload;
mod peers;
mod report;
mod run;
mod serve;
mod spec;
mod usage;

use std::{env, fs, path::PathBuf, process::Command};

use anyhow::{Context, Result};
use clap::Parser;

use crate::{report::Report, run::Brokers};

/// Compares transports: throughput, latency and processor time of the same handler on each, beside the raw client
/// library doing the same work.
#[derive(Parser)]
#[command(name = "bench", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    role: Option<Role>,
    #[command(flatten)]
    compare: Compare,
}

#[derive(clap::Subcommand)]
enum Role {
    /// What a quiet TCP connection takes of a server's memory
    Idle(idle::Options),
    /// What the gateway adds to a call
    Gateway(gateway::Options),
    /// A part of that; only this program starts it.
    #[command(hide = true)]
    Side(gateway::Side),
    /// The other side; only this program starts it.
    #[command(hide = true)]
    Serve(serve::Options),
}

#[derive(clap::Args)]
struct Compare {
    #[command(flatten)]
    options: matrix::Options,
    /// An earlier bench.json to compare with
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// Where bench.json and bench.html are written
    #[arg(long, default_value = "target/bench", value_name = "FOLDER")]
    out: PathBuf,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
    runtime.block_on(async {
        match cli.role {
            Some(Role::Idle(options)) => idle::measure(&options).await,
            Some(Role::Gateway(options)) => gateway::measure(&options).await,
            Some(Role::Side(side)) => gateway::run(side).await,
            Some(Role::Serve(options)) => serve::serve(options).await,
            None => compare(cli.compare).await,
        }
    })
}

async fn compare(compare: Compare) -> Result<()> {
    let baseline = compare.baseline.as_deref().map(Report::read).transpose()?;
    let mut brokers = Brokers::default();
    let mut rows = Vec::new();
    report::print_heading(&compare.options);
    for spec in compare.options.specs() {
        let measured = run::measure(spec, &compare.options, &mut brokers, |contestants| {
            report::print(&contestants);
            rows.extend(contestants);
        });
        measured.await?;
    }
    let report = Report {
        commit: commit(),
        machine: machine(),
        command: command(),
        date: date(),
        rows,
    };
    report.write(&compare.out)?;
    println!("\n{}", compare.out.join("bench.json").display());
    println!("{}", compare.out.join("bench.html").display());
    if let Some(baseline) = baseline {
        println!("\nagainst commit {}:", baseline.commit);
        for verdict in report::verdicts(&report, &baseline) {
            println!("{verdict}");
        }
    }
    Ok(())
}

/// The commit that is checked out, with a `+` if there are changes.
fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return "unknown".to_owned();
    };
    match git(&["status", "--porcelain", "--untracked-files=no"]) {
        Some(changes) if changes.is_empty() => commit,
        _ => format!("{commit}+"),
    }
}

/// Processor and cores: no name of a host.
fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown processor", |(_, model)| model.trim());
    format!("{cores} cores of {model}, {}", env::consts::OS)
}

fn command() -> String {
    let arguments: Vec<_> = env::args().skip(1).collect();
    format!("cargo xtask bench {}", arguments.join(" "))
        .trim()
        .to_owned()
}

fn date() -> String {
    let output = Command::new("date").args(["-u", "+%F %H:%M UTC"]).output();
    output.map_or_else(
        |_| "undated".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}
