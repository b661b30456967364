//! The gateway as a process of its own.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, bail};
use clap::Parser;
use gateway::{Clients, Urls};
use nestling::{
    Signals,
    service::{Drain, init_logging},
};
use tokio::{net::TcpListener, sync::oneshot};

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
    #[command(flatten)]
    drain: Drain,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Options { bind, urls, drain } = Options::parse();
    init_logging();
    let mut signals = Signals::listen().context("wait for signals")?;
    let clients = tokio::select! {
        clients = Clients::connect(&urls, PATIENCE) => clients.context("connect to the services")?,
        () = signals.next() => return Ok(()),
    };
    let listener = TcpListener::bind(bind)
        .await
        .with_context(|| format!("listen on {bind}"))?;
    let (stop, stopped) = oneshot::channel::<()>();
    // It is told to stop by a word, or by its sender going away.
    let stopped = async { drop(stopped.await) };
    let serving = gateway::serve(listener, gateway::app(clients), stopped, drain.limit());
    let cut_off = async {
        signals.next().await;
        drop(stop);
        signals.next().await;
    };
    tokio::select! {
        served = serving => Ok(served?),
        () = cut_off => bail!("ended by a second signal before everything was answered"),
    }
}
