//! What connections cost that are open and quiet: a service has many of those.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use nestling_testkit::unique;

use crate::{
    caller::Caller,
    payload::Payload,
    run::connect,
    serve::Server,
    spec::{Encoding, Spec, Transport, Who, Wire, Workload, name},
    usage,
};

/// Bytes of JSON in the one request that each connection makes before it is quiet.
const PAYLOAD: usize = 64;
/// How many connections are made at once.
const AT_ONCE: usize = 64;
/// Memory is settled when it has not shrunk for so long; a server looks for what it can give back every five seconds.
const SETTLED: Duration = Duration::from_secs(12);
const POLL: Duration = Duration::from_millis(500);

/// What the measurement takes.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// How many connections are open
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    connections: usize,
}

/// Measures what a quiet TCP connection takes of the server's memory, on each wire.
pub(crate) async fn measure(options: &Options) -> Result<()> {
    let connections = options.connections;
    ensure!(connections > 0, "there is at least one connection");
    println!("{connections} connections, each quiet after one request:\n");
    println!("{:<14} {:<9} {:>10}", "wire", "who", "KiB each");
    for (wire, codec) in [
        (Wire::Native, Encoding::Bincode),
        (Wire::Nest, Encoding::Json),
    ] {
        let spec = Spec {
            transport: Transport::Tcp,
            wire,
            codec,
            workload: Workload::Request,
        };
        for who in [Who::Nestling, Who::Floor] {
            let bytes = of_each(spec, who, connections).await?;
            let row = spec.to_string();
            let row = row.trim_end_matches(" request");
            println!("{row:<14} {:<9} {:>10.1}", name(&who), bytes / 1024.0);
        }
    }
    println!("\nThe kernel's own memory for a socket is not counted.");
    Ok(())
}

async fn of_each(spec: Spec, who: Who, connections: usize) -> Result<f64> {
    let pattern = format!("{}.echo", unique("bench"));
    let server = Server::start(spec, who, "tcp://127.0.0.1:0", &pattern)?;
    let payload = Payload::of(PAYLOAD)?;
    // What the first connection brings along is no cost of a connection.
    let _first = open(spec, who, &server.url, &pattern, &payload).await?;
    let before = settled(server.pid()).await?;
    let opening = (0..connections).map(|_| open(spec, who, &server.url, &pattern, &payload));
    let opened: Vec<_> = stream::iter(opening)
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await
        .context("each connection is a file of either process: see `ulimit -n`")?;
    let after = settled(server.pid()).await?;
    drop(opened);
    Ok((after as f64 - before as f64) / connections as f64)
}

async fn open(
    spec: Spec,
    who: Who,
    url: &str,
    pattern: &str,
    payload: &Payload,
) -> Result<Arc<dyn Caller>> {
    let caller = connect(spec, who, url, pattern).await?;
    caller.act(payload).await?;
    Ok(caller)
}

/// The memory of a process once it gives nothing more back.
async fn settled(pid: u32) -> Result<u64> {
    let mut least = usage::memory(pid)?;
    let mut since = Instant::now();
    while since.elapsed() < SETTLED {
        tokio::time::sleep(POLL).await;
        let memory = usage::memory(pid)?;
        if memory < least {
            (least, since) = (memory, Instant::now());
        }
    }
    Ok(least)
}
