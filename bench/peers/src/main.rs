//! tarpc and tonic in the comparison: `peers serve` answers, `peers load` calls. Both say one line when they are ready;
//! `peers load` then answers each line of JSON it reads, a [`Turn`], with one, a [`Told`].

#[path = "../../src/load.rs"]
#[allow(dead_code, reason = "peers are only measured in a closed loop")]
mod load;
mod tarpc_echo;
mod tonic_echo;

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use anyhow::Result;
use clap::{Parser, ValueEnum};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

#[derive(Parser)]
enum Role {
    Serve {
        #[arg(long)]
        who: Who,
    },
    Load {
        #[arg(long)]
        who: Who,
        #[arg(long)]
        url: String,
        #[arg(long)]
        connections: usize,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Who {
    Tarpc,
    Tonic,
}

/// What is to be done.
#[derive(Deserialize)]
struct Turn {
    concurrency: usize,
    nanos: u64,
    /// Bytes in the body of a message.
    body: usize,
}

/// What has been seen.
#[derive(Serialize)]
struct Told {
    messages: u64,
    errors: u64,
    first_error: Option<String>,
    nanos: u64,
    /// How many took so many nanoseconds.
    latency: Vec<(u64, u64)>,
}

type Acting = Pin<Box<dyn Future<Output = Result<u32, String>> + Send>>;
/// The calling side: one call over the n-th connection.
type Act = Arc<dyn Fn(usize, Arc<String>) -> Acting + Send + Sync>;

#[tokio::main]
async fn main() -> Result<()> {
    match Role::parse() {
        Role::Serve { who } => {
            let address = match who {
                Who::Tarpc => tarpc_echo::serve().await?,
                Who::Tonic => tonic_echo::serve().await?,
            };
            say(format!("tcp://{address}\n").as_bytes()).await?;
            let mut lines = BufReader::new(tokio::io::stdin()).lines();
            while lines.next_line().await?.is_some() {}
        }
        Role::Load {
            who,
            url,
            connections,
        } => {
            let host = url.trim_start_matches("tcp://");
            let act = match who {
                Who::Tarpc => tarpc_echo::connect(host, connections).await?,
                Who::Tonic => tonic_echo::connect(host, connections).await?,
            };
            say(b"ready\n").await?;
            let mut lines = BufReader::new(tokio::io::stdin()).lines();
            while let Some(line) = lines.next_line().await? {
                let mut told = serde_json::to_vec(&turn(&act, serde_json::from_str(&line)?).await)?;
                told.push(b'\n');
                say(&told).await?;
            }
        }
    }
    Ok(())
}

async fn turn(act: &Act, turn: Turn) -> Told {
    let body = Arc::new("x".repeat(turn.body));
    let act = Arc::clone(act);
    let call = move |number| act(number, Arc::clone(&body));
    let measured = load::closed(turn.concurrency, Duration::from_nanos(turn.nanos), call).await;
    let counts = measured.latency.iter_recorded();
    Told {
        messages: measured.messages,
        errors: measured.errors,
        first_error: measured.first_error,
        nanos: u64::try_from(measured.elapsed.as_nanos()).unwrap_or(u64::MAX),
        latency: counts
            .map(|step| (step.value_iterated_to(), step.count_at_value()))
            .collect(),
    }
}

async fn say(line: &[u8]) -> Result<()> {
    let mut out = tokio::io::stdout();
    out.write_all(line).await?;
    out.flush().await?;
    Ok(())
}
