//! [`Endpoint`]: where to listen or connect, as a URL or as a transport that is there already.

use std::{fmt, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use crate::transport::{
    self, ClientIdentity, ClientTransport, DeadLetters, Error, ErrorKind, Memory, ServerTransport,
};

/// A transport URL, a [`Memory`], or a transport of your own.
#[derive(Clone)]
pub struct Endpoint {
    target: Target,
}

#[derive(Clone)]
enum Target {
    Url(String),
    Memory(Memory),
    Server(Arc<dyn ServerTransport>),
    Client(Arc<dyn ClientTransport>),
}

impl Endpoint {
    pub(crate) async fn open_server(&self) -> Result<Arc<dyn ServerTransport>, Error> {
        match &self.target {
            Target::Url(url) => transport::open_server(url).await,
            Target::Memory(memory) => Ok(Arc::new(memory.clone())),
            Target::Server(server) => Ok(Arc::clone(server)),
            Target::Client(client) => Err(wrong_side(client.name(), "listen")),
        }
    }

    pub(crate) async fn open_client(
        &self,
        identity: ClientIdentity,
    ) -> Result<Arc<dyn ClientTransport>, Error> {
        match &self.target {
            Target::Url(url) => transport::open_client(url, identity).await,
            Target::Memory(memory) => Ok(memory.client()),
            Target::Client(client) => Ok(Arc::clone(client)),
            Target::Server(server) => Err(wrong_side(server.name(), "connect")),
        }
    }

    /// The events that services have given up on this transport.
    ///
    /// # Errors
    /// When the transport keeps none, or cannot be reached.
    pub async fn dead_letters(&self) -> Result<Arc<dyn DeadLetters>, Error> {
        match &self.target {
            Target::Url(url) => transport::open_dead_letters(url).await,
            Target::Memory(memory) => Ok(Arc::new(memory.clone())),
            Target::Client(client) => Err(wrong_side(client.name(), "show dead letters")),
            Target::Server(server) => Err(wrong_side(server.name(), "show dead letters")),
        }
    }

    /// The one of both that serves for both, if they name the same thing, so that it is subscribed
    /// to once.
    ///
    /// # Errors
    /// When they name the same thing in ways that exclude each other.
    pub(crate) fn joined(&self, other: &Self) -> Result<Option<Self>, Error> {
        let is_same = match (&self.target, &other.target) {
            (Target::Url(one), Target::Url(other)) => {
                return Ok(transport::joined(one, other)?.map(Self::from));
            }
            (Target::Memory(one), Target::Memory(other)) => one.is_same(other),
            (Target::Server(one), Target::Server(other)) => Arc::ptr_eq(one, other),
            _ => false,
        };
        Ok(is_same.then(|| self.clone()))
    }
}

fn wrong_side(name: &str, verb: &str) -> Error {
    Error::new(
        ErrorKind::Config,
        format!("this half of the {name} transport cannot {verb}"),
    )
}

impl From<&str> for Endpoint {
    fn from(url: &str) -> Self {
        Self {
            target: Target::Url(url.to_owned()),
        }
    }
}

impl From<String> for Endpoint {
    fn from(url: String) -> Self {
        Self {
            target: Target::Url(url),
        }
    }
}

impl From<&String> for Endpoint {
    fn from(url: &String) -> Self {
        Self {
            target: Target::Url(url.clone()),
        }
    }
}

impl From<&Memory> for Endpoint {
    fn from(memory: &Memory) -> Self {
        Self {
            target: Target::Memory(memory.clone()),
        }
    }
}

impl From<Arc<dyn ServerTransport>> for Endpoint {
    fn from(server: Arc<dyn ServerTransport>) -> Self {
        Self {
            target: Target::Server(server),
        }
    }
}

impl From<Arc<dyn ClientTransport>> for Endpoint {
    fn from(client: Arc<dyn ClientTransport>) -> Self {
        Self {
            target: Target::Client(client),
        }
    }
}

impl From<&Self> for Endpoint {
    fn from(endpoint: &Self) -> Self {
        endpoint.clone()
    }
}

/// Passwords in the URL are hidden.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Url(url) => match url.parse::<transport::Address>() {
                Ok(address) => address.fmt(f),
                Err(_) => f.write_str("an unreadable URL"),
            },
            Target::Memory(_) => f.write_str("memory:"),
            Target::Server(server) => write!(f, "{}:", server.name()),
            Target::Client(client) => write!(f, "{}:", client.name()),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({self})")
    }
}

/// One endpoint or several: whatever [`Server::listen`](crate::Server::listen) takes.
#[derive(Clone, Debug, Default)]
pub struct Endpoints(pub(crate) Vec<Endpoint>);

impl<E: Into<Endpoint>> From<E> for Endpoints {
    fn from(endpoint: E) -> Self {
        Self(vec![endpoint.into()])
    }
}

impl From<&[String]> for Endpoints {
    fn from(urls: &[String]) -> Self {
        Self(urls.iter().map(Endpoint::from).collect())
    }
}

impl From<&Vec<String>> for Endpoints {
    fn from(urls: &Vec<String>) -> Self {
        urls.as_slice().into()
    }
}

impl From<&[Endpoint]> for Endpoints {
    fn from(endpoints: &[Endpoint]) -> Self {
        Self(endpoints.to_vec())
    }
}

impl From<&Vec<Endpoint>> for Endpoints {
    fn from(endpoints: &Vec<Endpoint>) -> Self {
        endpoints.as_slice().into()
    }
}
/// How often it is tried whether a broker is back.
const PAUSE: Duration = Duration::from_millis(500);

/// Opens something again and again while that may help, for as long as `patience`.
pub(crate) async fn patiently<T, E: fmt::Display, Opening: Future<Output = Result<T, E>>>(
    patience: Duration,
    may_pass: impl Fn(&E) -> bool,
    mut open: impl FnMut() -> Opening,
) -> Result<T, E> {
    let until = Instant::now() + patience;
    loop {
        match open().await {
            Err(error) if may_pass(&error) && Instant::now() < until => {
                tracing::warn!(%error, "cannot start yet, trying again");
                sleep(PAUSE).await;
            }
            opened => return opened,
        }
    }
}
