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

use super::{
    NAME, Settings, alive, connection::Connection, handshakes::Handshakes, shared::Shared,
};
use crate::transport::{
    Capabilities, Error, ErrorKind, ServerTransport, Source, Sources, Subscription,
    pending::lock,
    tls::{Acceptor, Stream as Socket},
};

/// After a failed `accept`, as when there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A TCP listener, or several.
pub(super) struct TcpServer {
    settings: Settings,
    tls: Option<Acceptor>,
    listening: Arc<Mutex<Listening>>,
    bound: OnceLock<Vec<SocketAddr>>,
}

#[derive(Default)]
struct Listening {
    listeners: Vec<TcpListener>,
    waker: Option<Waker>,
}

impl TcpServer {
    pub(super) fn new(settings: Settings, tls: Option<Acceptor>) -> Self {
        Self {
            settings,
            tls,
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
            handshakes: self.tls.clone().map(Handshakes::new),
            shared: Arc::new(shared),
        }))
    }

    fn local_url(&self) -> Option<String> {
        let bound: Vec<_> = self.bound.get()?.iter().map(ToString::to_string).collect();
        let mut options = Vec::new();
        if self.settings.max_frame != super::DEFAULT_MAX_FRAME {
            options.push(format!("max_frame={}", self.settings.max_frame));
        }
        // Whom to trust is for the client to know.
        if self.tls.is_some() {
            options.push("tls=on".to_owned());
        }
        let query = if options.is_empty() { "" } else { "?" };
        let (bound, options) = (bound.join(","), options.join("&"));
        Some(format!("tcp://{bound}{query}{options}"))
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
    /// Where TLS is spoken.
    handshakes: Option<Handshakes>,
    shared: Arc<Shared>,
}

impl Stream for Accepting {
    type Item = Box<dyn Source>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let this = &mut *self;
            if let Some(handshakes) = &mut this.handshakes {
                if let Poll::Ready((stream, peer)) = handshakes.poll_done(cx) {
                    return Poll::Ready(Some(this.source(stream, peer)));
                }
                ready!(handshakes.poll_room(cx));
            }
            if let Some(pause) = &mut this.pause {
                ready!(pause.as_mut().poll(cx));
                this.pause = None;
            }
            match ready!(this.poll_accept(cx)) {
                None => return Poll::Ready(None),
                Some(Ok((socket, peer))) => {
                    this.failing = false;
                    match &mut this.handshakes {
                        None => {
                            return Poll::Ready(Some(this.source(Socket::Plain(socket), peer)));
                        }
                        Some(handshakes) => handshakes.start(socket, peer),
                    }
                }
                Some(Err(error)) => {
                    if !std::mem::replace(&mut this.failing, true) {
                        tracing::warn!(%error, "cannot accept a TCP connection, trying again");
                    }
                    this.pause = Some(Box::pin(sleep(ACCEPT_PAUSE)));
                }
            }
        }
    }
}

type Accepted = io::Result<(TcpStream, SocketAddr)>;

impl Accepting {
    fn source(&self, socket: Socket, peer: SocketAddr) -> Box<dyn Source> {
        Box::new(Connection::new(socket, peer, Arc::clone(&self.shared)))
    }

    fn poll_accept(&self, cx: &mut task::Context<'_>) -> Poll<Option<Accepted>> {
        let mut listening = lock(&self.listening);
        if listening.listeners.is_empty() {
            return Poll::Ready(None);
        }
        listening.waker = Some(cx.waker().clone());
        for listener in &listening.listeners {
            if let Poll::Ready(accepted) = listener.poll_accept(cx) {
                if let Ok((socket, peer)) = &accepted
                    && let Err(error) = alive::set_up(socket)
                {
                    tracing::debug!(%peer, %error, "cannot set the socket up");
                }
                return Poll::Ready(Some(accepted));
            }
        }
        Poll::Pending
    }
}
