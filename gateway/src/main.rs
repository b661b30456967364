//! The gateway as a process of its own.

use std::{net::SocketAddr, time::Duration};

use anyhow::Context;
use clap::Parser;
use gateway::{Clients, Urls};
use nestling::service::{init_logging, terminated};
use tokio::net::TcpListener;

/// Services that are started together with the gateway get this long to come up.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Parser)]
#[command(version, about = "The shop's HTTP interface")]
struct Options {
    /// Where to listen for HTTP.
    #[arg(
        long,
        env = "BIND",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:8080"
    )]
    bind: SocketAddr,
    #[command(flatten)]
    urls: Urls,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Options { bind, urls } = Options::parse();
    init_logging();
    let mut stop = Box::pin(terminated());
    let clients = tokio::select! {
        clients = Clients::connect(&urls, PATIENCE) => clients.context("connect to the services")?,
        () = &mut stop => return Ok(()),
    };
    let listener = TcpListener::bind(bind)
        .await
        .with_context(|| format!("listen on {bind}"))?;
    gateway::serve(listener, gateway::app(clients), stop).await?;
    Ok(())
}
