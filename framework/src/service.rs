//! What the `main` of every service does: command line, logging, connecting, running.

use std::{fmt, io::IsTerminal, path::PathBuf, time::Duration};

use tracing_subscriber::EnvFilter;

use crate::{
    client::{Builder, Client},
    endpoint::Endpoints,
    router::Router,
    server::{START_PATIENCE, Server, Signals},
    transport::Error,
};

/// The command line that services share; flatten it into your own.
///
/// Every option is also an environment variable. Printing it hides what is secret in the URLs.
#[derive(Clone, clap::Args)]
pub struct Config {
    /// Where to listen for messages; repeat it, or separate several by spaces.
    #[arg(
        long,
        env = "LISTEN",
        hide_env_values = true,
        value_name = "URL",
        required = true,
        value_delimiter = ' '
    )]
    pub listen: Vec<String>,
    /// The bus that events arrive by and leave on; the listen URLs when absent.
    #[arg(
        long,
        env = "EVENTS",
        hide_env_values = true,
        value_name = "URL",
        value_delimiter = ' '
    )]
    pub events: Vec<String>,
    /// Which replica this is; give each a stable name of its own.
    #[arg(long, env = "INSTANCE", value_name = "NAME")]
    pub instance: Option<String>,
    /// The folder of this service's files.
    #[arg(long, env = "DATA", value_name = "DIR", default_value = "data")]
    pub data: PathBuf,
    /// How it ends.
    #[command(flatten)]
    pub drain: Drain,
}

/// How long a process takes to end; flatten it into the command line of one that has no [`Config`].
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Drain {
    /// How long what has begun may take to finish after SIGTERM or SIGINT; a second one ends it at
    /// once.
    #[arg(
        long = "drain-timeout",
        env = "DRAIN_TIMEOUT",
        value_name = "SECONDS",
        default_value_t = 10
    )]
    pub seconds: u32,
}

impl Drain {
    /// The limit.
    pub fn limit(self) -> Duration {
        Duration::from_secs(self.seconds.into())
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden = |urls: &[String]| Endpoints::from(urls);
        f.debug_struct("Config")
            .field("listen", &hidden(&self.listen))
            .field("events", &hidden(&self.events))
            .field("instance", &self.instance)
            .field("data", &self.data)
            .finish()
    }
}

impl Config {
    /// Starts to log to standard error, filtered by `RUST_LOG` (`info` when unset).
    pub fn init_logging(&self) {
        init_logging();
    }

    /// A server with these URLs.
    pub fn server(&self, name: &str, router: Router) -> Server {
        let server = Server::new(name, router)
            .listen(&self.listen)
            .events(&self.events)
            .drain_timeout(self.drain.limit());
        match &self.instance {
            Some(instance) => server.instance(instance),
            None => server,
        }
    }

    /// A client of `url` that calls under the service's name, and waits for a broker as [`Server::run`]
    /// does.
    pub fn client(&self, name: &str, url: &str) -> Builder {
        let builder = Client::builder(url).patience(START_PATIENCE);
        match &self.instance {
            Some(instance) => builder.identity(name, instance),
            None => builder.identity(name, uuid::Uuid::new_v4().simple().to_string()),
        }
    }

    /// A client of the bus: the first events URL, or the first listen URL.
    ///
    /// # Errors
    /// When it cannot be reached within a minute.
    pub async fn bus(&self, name: &str) -> Result<Client, Error> {
        let url = self
            .events
            .first()
            .or(self.listen.first())
            .map_or("", String::as_str);
        self.client(name, url).build().await
    }

    /// The path of a file in the data folder, which is made if it is not there.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn file(&self, name: &str) -> std::io::Result<PathBuf> {
        std::fs::create_dir_all(&self.data)?;
        Ok(self.data.join(name))
    }
}

/// Starts to log to standard error, filtered by `RUST_LOG` (`info` when unset): for a process
/// without a [`Config`], such as a gateway.
pub fn init_logging() {
    init_logging_or("info");
}

/// Starts to log to standard error, filtered by `RUST_LOG`, or by `default` when that is unset: for a
/// process with other things to say there.
pub fn init_logging_or(default: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let colours = std::io::stderr().is_terminal();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(colours)
        .with_writer(std::io::stderr);
    subscriber.with_env_filter(filter).init();
}

/// Waits for SIGINT or SIGTERM: for a process that is not a [`Server`]. Where signals cannot be
/// waited for it says so in the log and ends, so that the process does too.
pub async fn terminated() {
    match Signals::listen() {
        Ok(mut signals) => signals.next().await,
        Err(error) => tracing::error!(%error, "signals cannot be waited for"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_printed() {
        let config = Config {
            listen: vec!["nats://ada:hunter2@localhost".to_owned()],
            events: vec!["redis://:hunter2@localhost".to_owned()],
            instance: None,
            data: PathBuf::from("data"),
            drain: Drain { seconds: 0 },
        };
        let text = format!("{config:?}");
        assert!(text.contains("localhost") && !text.contains("hunter2"));
    }
}
