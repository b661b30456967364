//! The receiving side: each connection is a source.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, OnceLock},
    task::{self, Poll, Waker, ready},
    time::Duration,
};

use async_trait::async_trait;
use futures_core::Stream;
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Sleep, sleep},
};

use super::{NAME, Settings, connection::Connection, shared::Shared};
use crate::transport::{
    Capabilities, Error, ErrorKind, ServerTransport, Source, Sources, Subscription, pending::lock,
};

/// After a failed `accept`, as when there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A TCP listener, or several.
pub(super) struct TcpServer {
    settings: Settings,
    listening: Arc<Mutex<Listening>>,
    bound: OnceLock<Vec<SocketAddr>>,
}

#[derive(Default)]
struct Listening {
    listeners: Vec<TcpListener>,
    waker: Option<Waker>,
}

impl TcpServer {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings,
            listening: Arc::default(),
            bound: OnceLock::new(),
        }
    }
}

#[async_trait]
impl ServerTransport for TcpServer {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        self.settings.capabilities()
    }

    async fn subscribe(&self, subscription: Subscription) -> Result<Sources, Error> {
        let mut listeners = Vec::new();
        let mut bound = Vec::new();
        for host in &self.settings.hosts {
            let failed = |error: io::Error| {
                Error::new(ErrorKind::Connect, format!("listen on tcp://{host}")).with_source(error)
            };
            let listener = TcpListener::bind(host).await.map_err(failed)?;
            bound.push(listener.local_addr().map_err(failed)?);
            listeners.push(listener);
        }
        if self.bound.set(bound).is_err() {
            return Err(Error::new(
                ErrorKind::Config,
                "the listener is in use already",
            ));
        }
        lock(&self.listening).listeners = listeners;
        let shared = Shared::new(&self.settings, &subscription);
        let listening = Arc::clone(&self.listening);
        Ok(Box::pin(Accepting {
            listening,
            pause: None,
            failing: false,
            shared: Arc::new(shared),
        }))
    }

    fn local_url(&self) -> Option<String> {
        let bound: Vec<_> = self.bound.get()?.iter().map(ToString::to_string).collect();
        let query = match self.settings.max_frame {
            super::DEFAULT_MAX_FRAME => String::new(),
            other => format!("?max_frame={other}"),
        };
        Some(format!("tcp://{}{query}", bound.join(",")))
    }

    async fn close(&self) {
        let mut listening = lock(&self.listening);
        listening.listeners.clear();
        if let Some(waker) = listening.waker.take() {
            waker.wake();
        }
    }
}

/// Connections as they are made.
struct Accepting {
    listening: Arc<Mutex<Listening>>,
    pause: Option<Pin<Box<Sleep>>>,
    /// The last attempt failed, which has been said.
    failing: bool,
    shared: Arc<Shared>,
}

impl Stream for Accepting {
    type Item = Box<dyn Source>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            match ready!(self.poll_accept(cx)) {
                None => return Poll::Ready(None),
                Some(Ok((socket, peer))) => {
                    self.failing = false;
                    let connection = Connection::new(socket, peer, Arc::clone(&self.shared));
                    return Poll::Ready(Some(Box::new(connection)));
                }
                Some(Err(error)) => {
                    if !std::mem::replace(&mut self.failing, true) {
                        tracing::warn!(%error, "cannot accept a TCP connection, trying again");
                    }
                    self.pause = Some(Box::pin(sleep(ACCEPT_PAUSE)));
                }
            }
        }
    }
}

type Accepted = io::Result<(TcpStream, SocketAddr)>;

impl Accepting {
    fn poll_accept(&self, cx: &mut task::Context<'_>) -> Poll<Option<Accepted>> {
        let mut listening = lock(&self.listening);
        if listening.listeners.is_empty() {
            return Poll::Ready(None);
        }
        listening.waker = Some(cx.waker().clone());
        for listener in &listening.listeners {
            if let Poll::Ready(accepted) = listener.poll_accept(cx) {
                return Poll::Ready(Some(accepted));
            }
        }
        Poll::Pending
    }
}
