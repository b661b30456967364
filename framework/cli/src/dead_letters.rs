//! `nestling dead-letters`: events that services gave up.

use std::{sync::Arc, time::Duration};

use nestling::{
    Client, Endpoint, RpcError,
    transport::{self, DeadLetter, Error, ErrorKind},
};
use serde::Serialize;
use tokio::time::timeout;

use crate::{
    outcome::{EXIT_CODES, Failure},
    output::{Carried, Output},
};

/// How many are asked for at once.
const PAGE: usize = 100;

/// Look at events that a service gave up, give them to it once more, or throw them away.
#[derive(Debug, clap::Args)]
#[command(after_help = help())]
pub(crate) struct DeadLetters {
    #[command(subcommand)]
    action: Action,
}

fn help() -> String {
    format!(
        "\
Examples:
  nestling dead-letters list redis://127.0.0.1:6379 --service order
  nestling dead-letters show redis://127.0.0.1:6379 --service order 1700000000000-0
  nestling dead-letters replay kafka://127.0.0.1:9092 --service order --all
  nestling dead-letters replay sqlite:data/user/user.db --service user --all --through nats://127.0.0.1:4222
  nestling dead-letters discard redis://127.0.0.1:6379 --service order 1700000000000-0

A line has the members id, at (milliseconds since 1970), pattern, reason, attempts and handlers, and
with `show` also headers and payload; one that is not JSON is text or base64 instead.
A replayed event reaches the handlers that failed, and nobody else.

{EXIT_CODES}"
    )
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Print them, oldest first
    List {
        #[command(flatten)]
        place: Place,
        /// How many at the most
        #[arg(long, default_value_t = PAGE)]
        limit: usize,
        /// Only those behind this one
        #[arg(long, value_name = "ID")]
        after: Option<String>,
    },
    /// Print some of them with all that the event had
    Show {
        #[command(flatten)]
        place: Place,
        /// Which
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Give some of them to the service once more
    Replay {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        which: Which,
        /// The transport to send them by, where it is not what keeps them
        #[arg(long, value_name = "URL")]
        through: Option<String>,
    },
    /// Throw some of them away
    Discard {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        which: Which,
    },
}

#[derive(Debug, clap::Args)]
struct Place {
    /// Where: redis://host:port, kafka://host:port, nats://host:port?events=jetstream, or a service's
    /// own sqlite:path
    url: String,
    /// The service that gave them up
    #[arg(long)]
    service: String,
    /// How long each step may take
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// These
    ids: Vec<String>,
    /// All that are there now
    #[arg(long)]
    all: bool,
}

impl DeadLetters {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        match self.action {
            Action::List {
                place,
                limit,
                after,
            } => place.open().await?.list(limit, after).await,
            Action::Show { place, ids } => place.open().await?.show(&ids).await,
            Action::Replay {
                place,
                which,
                through,
            } => {
                let opened = place.open().await?;
                let client = opened.client(through.as_ref()).await?;
                opened
                    .each(which, async |opened: &Opened, id: &str| {
                        let replayed = client
                            .replay(&*opened.dead_letters, &opened.place.service, id)
                            .await?;
                        Ok(replayed)
                    })
                    .await
            }
            Action::Discard { place, which } => {
                let discard = async |opened: &Opened, id: &str| opened.discard(id).await;
                place.open().await?.each(which, discard).await
            }
        }
    }
}

impl Place {
    async fn open(self) -> Result<Opened, Failure> {
        let endpoint = Endpoint::from(&self.url);
        let dead_letters = within(self.timeout, endpoint.dead_letters()).await?;
        Ok(Opened {
            place: self,
            dead_letters,
            output: Output::default(),
        })
    }
}

struct Opened {
    place: Place,
    dead_letters: Arc<dyn transport::DeadLetters>,
    output: Output,
}

/// The line that is printed.
#[derive(Serialize)]
struct Line<'a> {
    id: &'a str,
    at: u128,
    pattern: &'a str,
    reason: &'a str,
    attempts: u32,
    handlers: &'a [usize],
    #[serde(flatten)]
    carried: Option<Carried<'a>>,
}

impl Opened {
    async fn client(&self, through: Option<&String>) -> Result<Client, Failure> {
        let url = through.unwrap_or(&self.place.url);
        let builder = Client::builder(url).timeout(self.place.timeout);
        Ok(within(self.place.timeout, builder.build()).await?)
    }

    async fn list(&self, limit: usize, mut after: Option<String>) -> Result<(), Failure> {
        let mut left = limit;
        while left > 0 {
            let page = self.page(after.as_deref(), left.min(PAGE)).await?;
            let Some((last, _)) = page.last() else { break };
            after = Some(last.clone());
            left -= page.len();
            for (id, letter) in &page {
                self.print(id, letter, false).await?;
            }
        }
        Ok(())
    }

    async fn show(&self, ids: &[String]) -> Result<(), Failure> {
        for id in ids {
            let found = self.dead_letters.find(&self.place.service, id);
            let letter = within(self.place.timeout, found).await?;
            let letter = letter.ok_or_else(|| absent(id))?;
            self.print(id, &letter, true).await?;
        }
        Ok(())
    }

    /// Does something with each, and prints the ids of those it was done with.
    async fn each(
        &self,
        which: Which,
        act: impl AsyncFn(&Self, &str) -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        if !which.all {
            for id in &which.ids {
                if !act(self, id).await? {
                    return Err(absent(id));
                }
                self.output.line(&quoted(id)).await?;
            }
            return Ok(());
        }
        // What fails again meanwhile comes back behind the last one, and is left for another time.
        let mut ids = Vec::new();
        loop {
            let page = self.page(ids.last().map(String::as_str), PAGE).await?;
            if page.is_empty() {
                break;
            }
            ids.extend(page.into_iter().map(|(id, _)| id));
        }
        for id in &ids {
            // Somebody else may be at it too.
            if act(self, id).await? {
                self.output.line(&quoted(id)).await?;
            }
        }
        Ok(())
    }

    async fn discard(&self, id: &str) -> Result<bool, Failure> {
        let discarded = self.dead_letters.discard(&self.place.service, id);
        Ok(within(self.place.timeout, discarded).await?)
    }

    async fn page(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, DeadLetter)>, Failure> {
        let list = self.dead_letters.list(&self.place.service, after, limit);
        Ok(within(self.place.timeout, list).await?)
    }

    async fn print(&self, id: &str, letter: &DeadLetter, whole: bool) -> Result<(), Failure> {
        let rejection = &letter.rejection;
        let line = Line {
            id,
            at: letter
                .at
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap_or_default()
                .as_millis(),
            pattern: &rejection.envelope.pattern,
            reason: &rejection.reason,
            attempts: rejection.attempts,
            handlers: &rejection.handlers,
            carried: whole.then(|| Carried::by(&rejection.envelope)),
        };
        let line = serde_json::to_string(&line).map_err(RpcError::internal)?;
        Ok(self.output.line(&line).await?)
    }
}

async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    match timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => Err(Error::new(ErrorKind::Timeout, "no answer in time")),
    }
}

fn absent(id: &str) -> Failure {
    Failure::Answer(RpcError::not_found(format!("no dead letter {id}")))
}

fn quoted(id: &str) -> String {
    serde_json::Value::from(id).to_string()
}
