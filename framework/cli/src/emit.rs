//! `nestling emit`: an event.

use nestling::{Client, Guarantee, header};
use uuid::Uuid;

use crate::{
    call::{Call, Prepared, header_value},
    outcome::{EXIT_CODES, Failure},
};

/// Emit an event, and wait until the broker has it, where there is one.
#[derive(Debug, clap::Args)]
#[command(after_help = help())]
pub(crate) struct Emit {
    #[command(flatten)]
    call: Call,
    /// What the event is about: events with one key keep their order, where the transport has one
    #[arg(long, value_parser = header_value)]
    key: Option<String>,
}

fn help() -> String {
    format!(
        "\
Examples, the first of which runs in another terminal:
  nestling listen tcp://127.0.0.1:7000 order.placed
  nestling emit tcp://127.0.0.1:7000 order.placed '{{\"order\":7}}'
  nestling emit tcp://127.0.0.1:7000 order.placed '{{\"order\":7}}' --key 7 --header actor=ada
  echo '{{\"order\":7}}' | nestling emit tcp://127.0.0.1:7000 order.placed -

{EXIT_CODES}"
    )
}

impl Emit {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let call = self.call.prepare()?;
        let key = self.key;
        call.make(async |client: &Client, call| emit(client, call, key).await)
            .await
    }
}

async fn emit(client: &Client, call: Prepared, key: Option<String>) -> Result<(), Failure> {
    let mut event = client
        .emit_at(call.pattern, &())
        .payload(call.payload)
        .timeout(call.timeout);
    // Where an event may come twice its handlers know it again by this.
    if client.capabilities().events == Guarantee::AtLeastOnce {
        event = event.header(header::EVENT_ID, Uuid::now_v7().to_string());
    }
    for (name, value) in call.headers {
        event = event.header(name, value);
    }
    if let Some(key) = key {
        event = event.header(header::KEY, key);
    }
    Ok(event.await?)
}
