//! The `shop` command: the whole shop in one process, its demo data, and real data.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};
use gateway::Urls;
use nestling::{Signals, service::Drain, transport::Memory};
use shop::{Layout, Shop, Staff, import, seed};
use tokio::{net::TcpListener, sync::oneshot};

/// What follows from an order is there after this time, or counts as missing.
const PENDING: Duration = Duration::from_secs(60);

#[derive(Debug, Parser)]
#[command(version, about = "The shop as a whole")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run all services and the gateway in this process, over the in-memory transport.
    Dev {
        /// Where the gateway listens.
        #[arg(long, env = "BIND", default_value = "127.0.0.1:8080")]
        bind: SocketAddr,
        /// Where the databases are; in memory when absent.
        #[arg(long, env = "DATA")]
        data: Option<PathBuf>,
        #[command(flatten)]
        drain: Drain,
    },
    /// Add the demo catalogue to a running shop; repeating it changes nothing.
    Seed {
        /// What to add.
        #[arg(long, default_value = "demo")]
        profile: Profile,
        #[command(flatten)]
        peers: Urls,
    },
    /// Add real data to a running shop; what was stopped goes on.
    Import {
        #[command(subcommand)]
        source: Source,
    },
    /// Check that stock, payments and orders agree, in the databases of a shop that runs or has run.
    Verify {
        /// Where the databases are.
        #[arg(long, env = "DATA", default_value = "data")]
        data: PathBuf,
    },
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Profile {
    /// 12 categories, 240 products.
    Demo,
}

#[derive(Debug, Subcommand)]
enum Source {
    /// The UCI Online Retail transactions (Chen, 2015, CC BY 4.0), as CSV, plain or .xz.
    OnlineRetail {
        /// The file.
        file: PathBuf,
        /// Where to note how far it came.
        #[arg(long, default_value = "data/import/online-retail.json")]
        state: PathBuf,
        #[command(flatten)]
        peers: Urls,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    nestling::service::init_logging();
    match Args::parse().command {
        Command::Dev { bind, data, drain } => dev(bind, data, drain).await,
        Command::Seed {
            profile: Profile::Demo,
            peers,
        } => {
            let product = Staff::connect(&peers.product).await?;
            let imported = seed::catalogue(&product).await?;
            println!(
                "catalogue: {} products added, {} known",
                imported.added, imported.known
            );
            product.close().await;
            print_logins();
            Ok(())
        }
        Command::Import {
            source: Source::OnlineRetail { file, state, peers },
        } => online_retail(&file, &state, &peers).await,
        Command::Verify { data } => verify(&data).await,
    }
}

async fn dev(bind: SocketAddr, data: Option<PathBuf>, drain: Drain) -> anyhow::Result<()> {
    let memory = Memory::new();
    let shop = Shop::start(&Layout {
        data,
        ..Layout::new(&memory, &memory)
    })
    .await?;
    seed::catalogue(&Staff::connect(&shop.product).await?).await?;
    let listener = TcpListener::bind(bind)
        .await
        .with_context(|| format!("listen on {bind}"))?;
    println!("shop: http://{}", listener.local_addr()?);
    print_logins();
    println!(
        "card: 4242 4242 4242 4242 approves, 4000 0000 0000 0002 and 4000 0000 0000 9995 decline"
    );
    let mut signals = Signals::listen().context("wait for signals")?;
    let (stop, stopped) = oneshot::channel::<()>();
    // It is told to stop by a word, or by its sender going away.
    let stopped = async { drop(stopped.await) };
    let app = gateway::app(shop.clients.clone());
    let serving = async {
        gateway::serve(listener, app, stopped, drain.limit()).await?;
        shop.shutdown().await;
        Ok(())
    };
    let cut_off = async {
        signals.next().await;
        drop(stop);
        signals.next().await;
    };
    tokio::select! {
        served = serving => served,
        () = cut_off => bail!("ended by a second signal before everything was done"),
    }
}

fn print_logins() {
    for account in user::DEMO_ACCOUNTS {
        let role = account
            .roles
            .last()
            .map_or("customer", |role| role.as_str());
        println!("login: {role} {} {}", account.email, account.password);
    }
}

async fn verify(data: &Path) -> anyhow::Result<()> {
    let findings = shop::verify::verify(data, PENDING).await?;
    for finding in &findings {
        println!("{finding}");
    }
    let broken = findings
        .iter()
        .filter(|finding| !finding.breaches.is_empty());
    match broken.count() {
        0 => Ok(()),
        broken => bail!("{broken} of {} laws are broken", findings.len()),
    }
}

async fn online_retail(file: &Path, state: &Path, peers: &Urls) -> anyhow::Result<()> {
    eprintln!("reading {}", file.display());
    let retail = import::read(file)?;
    let (products, orders) = retail.size();
    let report = &retail.report;
    println!(
        "{} lines: {} sales of {products} products in {orders} orders",
        report.lines, report.sales
    );
    println!(
        "{} returns, {} returns of nothing we know, {} lines that are no goods, {} bad lines",
        report.returns, report.unmatched_returns, report.not_goods, report.bad
    );
    for (line, wrong) in &report.bad_lines {
        println!("  line {line}: {wrong}");
    }
    let product = Staff::connect(&peers.product).await?;
    let order = Staff::connect(&peers.order).await?;
    let target = format!("{} {}", peers.product, peers.order);
    import::send(&retail, &product, &order, &target, state).await?;
    product.close().await;
    order.close().await;
    println!("imported");
    Ok(())
}
