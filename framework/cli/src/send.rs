//! `nestling send`: a message, and what is answered.

use std::time::Duration;

use nestling::{
    Client,
    transport::{Error, ErrorKind},
};
use serde_json::value::RawValue;
use tokio::time::timeout;

use crate::{
    call::{Call, Prepared},
    outcome::{EXIT_CODES, Failure},
    output::Output,
};

/// How much longer than we wait the service may take: so that it is we who stop first.
const GRACE: Duration = Duration::from_secs(1);

/// Send a message, and print each value of the reply as a line of JSON when it arrives.
#[derive(Debug, clap::Args)]
#[command(after_help = help())]
pub(crate) struct Send {
    #[command(flatten)]
    call: Call,
    /// How long a reply of many values may take as a whole, and how long a broker keeps the message
    /// for a service that is away
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = humantime::parse_duration)]
    max_time: Duration,
}

fn help() -> String {
    format!(
        "\
Examples, the first of which runs in another terminal:
  nestling listen tcp://127.0.0.1:7000 greeter.greet '{{\"cmd\":\"sum\"}}' --echo
  nestling send tcp://127.0.0.1:7000 greeter.greet '{{\"name\":\"Ada\"}}'
  echo '[1, 2.50]' | nestling send tcp://127.0.0.1:7000 greeter.greet -
  nestling send tcp://127.0.0.1:7000 greeter.greet --header actor=ada --timeout 300ms
  nestling send tcp://127.0.0.1:7000 '{{\"cmd\":\"sum\"}}' '[1,2,3]' --wire native

{EXIT_CODES}"
    )
}

impl Send {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let max_time = self.max_time;
        let call = self.call.prepare()?;
        let replies = async |client: &Client, call| {
            let replies = timeout(max_time, replies(client, call, max_time));
            replies.await.unwrap_or_else(|_| Err(too_long(max_time)))
        };
        call.make(replies).await
    }
}

async fn replies(client: &Client, call: Prepared, max_time: Duration) -> Result<(), Failure> {
    let mut message = client
        .stream_at::<Box<RawValue>>(call.pattern, &())
        .payload(call.payload)
        .timeout(call.timeout)
        .within(max_time.saturating_add(GRACE));
    for (name, value) in call.headers {
        message = message.header(name, value);
    }
    let output = Output::default();
    let mut replies = message.await?;
    while let Some(reply) = replies.try_next().await? {
        output.line(reply.get()).await?;
    }
    Ok(())
}

fn too_long(max_time: Duration) -> Failure {
    let limit = humantime::format_duration(max_time);
    Error::new(
        ErrorKind::Timeout,
        format!("the reply did not end within {limit}"),
    )
    .into()
}
