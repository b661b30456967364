//! `nestling bench`: the same message again and again, and how long its replies took.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bench::load::{self, Measured};
use futures_util::future::BoxFuture;
use nestling::{Client, RpcError};
use serde_json::{json, value::RawValue};

use crate::{
    call::{Call, Prepared},
    outcome::{EXIT_CODES, Failure},
    output::Output,
};

/// Send the same message again and again, and show how many replies came and how long they took.
///
/// Keeps a number of messages in flight, or begins so many a second, whatever becomes of those before (--rate): that is
/// how users see a service, and its latencies count from when a message should have been sent.
#[derive(Debug, clap::Args)]
#[command(after_help = help())]
pub(crate) struct Bench {
    #[command(flatten)]
    call: Call,
    /// How many messages are in flight
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    concurrency: u32,
    /// How many messages are begun a second, instead
    #[arg(long, value_name = "N", conflicts_with = "concurrency", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: Option<u32>,
    /// For how long
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// Emit an event instead, and wait for what acknowledgement the transport has
    #[arg(long)]
    event: bool,
    /// Show the figures as a line of JSON, times in microseconds
    #[arg(long = "json")]
    as_json: bool,
}

fn help() -> String {
    format!(
        "\
Examples, the first of which runs in another terminal:
  nestling listen tcp://127.0.0.1:7000 greeter.greet --reply '\"Hello\"' > /dev/null
  nestling bench tcp://127.0.0.1:7000 greeter.greet '{{\"name\":\"Ada\"}}'
  nestling bench tcp://127.0.0.1:7000 greeter.greet --concurrency 1 --duration 1s
  nestling bench tcp://127.0.0.1:7000 greeter.greet --rate 1000 --json

{EXIT_CODES}"
    )
}

impl Bench {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let Self {
            concurrency,
            rate,
            duration,
            event,
            as_json,
            call,
        } = self;
        let load = async |client: &Client, call: Prepared| {
            let act = act(client.clone(), call, event);
            let measured = match rate {
                Some(rate) => load::open(f64::from(rate), duration, act).await,
                None => load::closed(concurrency as usize, duration, act).await,
            };
            let output = Output::default();
            match as_json {
                true => output.line(&figures(&measured).to_string()).await?,
                false => {
                    output.line(&throughput(&measured)).await?;
                    output.line(&latency(&measured)).await?;
                }
            }
            match measured.first_error {
                None => Ok(()),
                Some(error) => Err(RpcError::unknown(format!(
                    "{} failed, the first with: {error}",
                    measured.errors
                ))
                .into()),
            }
        };
        call.prepare()?.make(load).await
    }
}

/// One message or event.
fn act(
    client: Client,
    call: Prepared,
    event: bool,
) -> impl Fn(usize) -> BoxFuture<'static, Result<u32, String>> + Clone + Send + Sync + 'static {
    let call = Arc::new(call);
    move |_| {
        let (client, call) = (client.clone(), Arc::clone(&call));
        Box::pin(async move {
            let ended = match event {
                true => emit(&client, &call).await,
                false => send(&client, &call).await,
            };
            ended.map(|()| 1).map_err(|error| error.to_string())
        })
    }
}

async fn send(client: &Client, call: &Prepared) -> Result<(), RpcError> {
    let mut message = client
        .send_at::<Box<RawValue>>(call.pattern.clone(), &())
        .payload(call.payload.clone())
        .timeout(call.timeout);
    for (name, value) in &call.headers {
        message = message.header(name.clone(), value.clone());
    }
    message.await.map(drop)
}

async fn emit(client: &Client, call: &Prepared) -> Result<(), RpcError> {
    let mut event = client
        .emit_at(call.pattern.clone(), &())
        .payload(call.payload.clone())
        .timeout(call.timeout);
    for (name, value) in &call.headers {
        event = event.header(name.clone(), value.clone());
    }
    event.await
}

/// The percentiles that are shown.
const PERCENTILES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];

fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1000.0
}

fn throughput(measured: &Measured) -> String {
    format!(
        "{:.0} a second: {} in {:.2} s, {} failed",
        measured.throughput(),
        measured.messages,
        measured.elapsed.as_secs_f64(),
        measured.errors,
    )
}

fn latency(measured: &Measured) -> String {
    let shown = PERCENTILES.map(|(name, quantile)| {
        let at = micros(measured.latency.value_at_quantile(quantile));
        format!("{name} {at:.0} µs")
    });
    format!(
        "{}, max {:.0} µs",
        shown.join(", "),
        micros(measured.latency.max())
    )
}

fn figures(measured: &Measured) -> serde_json::Value {
    let latency = PERCENTILES
        .iter()
        .map(|&(name, quantile)| (name, micros(measured.latency.value_at_quantile(quantile))))
        .chain([("max", micros(measured.latency.max()))]);
    json!({
        "throughput": measured.throughput(),
        "messages": measured.messages,
        "errors": measured.errors,
        "seconds": measured.elapsed.as_secs_f64(),
        "latency": latency.collect::<BTreeMap<_, _>>(),
    })
}
