//! The sending side: a pool of peers, each with one connection that all calls share.

use std::{
    fmt,
    future::poll_fn,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{FutureExt, future::Shared};
use tokio::time::{Instant, timeout, timeout_at};

use super::{
    NAME, Settings, frame,
    link::{self, Link},
    outbox::{Outgoing, Refused},
    packet,
};
use crate::{
    envelope::Envelope,
    handler::BoxFuture,
    transport::{
        Capabilities, ClientTransport, Error, ErrorKind, Expect, Replies, Task, Wire,
        pending::lock, tls::Connector,
    },
};

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);
/// How long something without a deadline waits for room.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long what is queued may take to be written when the client closes.
const CLOSE: Duration = Duration::from_secs(2);
/// The pause after a first failure to connect; it doubles up to the second.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long a call waits for one peer to be connected before it looks at the next.
const HEAD_START: Duration = Duration::from_millis(250);
/// Connections of one peer that finish their calls after it sent us away.
const MOST_LEAVING: usize = 8;

/// The client of one or several equal servers.
pub(super) struct TcpClient {
    settings: Settings,
    peers: Vec<Arc<Peer>>,
    closed: AtomicBool,
}

impl TcpClient {
    pub(super) fn new(settings: Settings, tls: Option<&Connector>) -> Self {
        let peers = settings
            .hosts
            .iter()
            .map(|host| Peer::new(host, tls, &settings))
            .collect();
        Self {
            settings,
            peers,
            closed: AtomicBool::new(false),
        }
    }

    fn check(&self, envelope: &Envelope) -> Result<(), Error> {
        let length = envelope.payload.len();
        if length > self.settings.max_payload() {
            return Err(Error::too_large(length, self.settings.max_payload()));
        }
        let checked = match self.wire() {
            Wire::Native => frame::check(envelope),
            Wire::Nest | Wire::NestText => packet::check(envelope),
        };
        checked.map_err(|what| Error::new(ErrorKind::TooLarge, what))
    }

    /// Writes an envelope to whatever connection is best.
    async fn send<T>(
        &self,
        envelope: &Envelope,
        write: impl Fn(&Link, &mut Outgoing) -> T,
    ) -> Result<T, Error> {
        self.check(envelope)?;
        let deadline = envelope.deadline;
        // A peer that drains sends us elsewhere, and while it shuts down perhaps more than once.
        for _ in 0..=self.peers.len() + 1 {
            let connection = self.connection(deadline).await?;
            let link = &connection.link;
            let length = envelope.payload.len();
            if length > link.max_payload() {
                return Err(Error::too_large(length, link.max_payload()));
            }
            let mut push = pin!(poll_fn(|cx| {
                link.outbox().poll_push(cx, |out| write(link, out))
            }));
            // Mostly there is room, and no timer is needed.
            let pushed = match push.as_mut().now_or_never() {
                Some(pushed) => Ok(pushed),
                None => {
                    let until = deadline.unwrap_or_else(|| Instant::now() + PATIENCE);
                    timeout_at(until, push).await
                }
            };
            match pushed {
                Ok(Ok(sent)) => return Ok(sent),
                Ok(Err(Refused::Draining | Refused::Closed)) => {}
                Err(_) if deadline.is_some() => return Err(late(link.host())),
                Err(_) => {
                    let full = format!("tcp://{} does not read what is sent", link.host());
                    return Err(Error::new(ErrorKind::Full, full));
                }
            }
        }
        Err(Error::new(
            ErrorKind::Closed,
            "every connection was closed while it was chosen",
        ))
    }

    /// A connection to the best of the peers, if there is one.
    fn ready_connection(&self) -> Option<Arc<Connection>> {
        match &self.peers[..] {
            [only] => only.connected(),
            _ => self.peers[self.choose(&[])?].connected(),
        }
    }

    /// A connection to one of the peers: made now, if need be.
    async fn connection(&self, deadline: Option<Instant>) -> Result<Arc<Connection>, Error> {
        if let [only] = &self.peers[..]
            && let Some(connection) = only.connected()
        {
            return Ok(connection);
        }
        let mut failure = None;
        let (mut tried, mut slow) = (Vec::new(), Vec::new());
        for _ in 0..self.peers.len() {
            if self.closed.load(Ordering::Relaxed) {
                return Err(Error::new(ErrorKind::Closed, "the client was closed"));
            }
            let Some(position) = self.choose(&tried) else {
                break;
            };
            let peer = &self.peers[position];
            if let Some(connection) = peer.connected() {
                return Ok(connection);
            }
            let waiting = Waiting::new(peer);
            let connecting = peer.connect();
            // Nobody waits for a peer that may be gone while another can take the call.
            if let Some(connection) = self.least_busy() {
                return Ok(connection);
            }
            match timeout(HEAD_START, connecting.clone()).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => failure = Some(error),
                Err(_) => slow.push((waiting, connecting)),
            }
            tried.push(position);
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Err(late(&peer.host));
            }
        }
        for (waiting, connecting) in slow {
            let connected = match deadline {
                Some(deadline) => timeout_at(deadline, connecting).await,
                None => Ok(connecting.await),
            };
            match connected.map_err(|_| late(&waiting.0.host))? {
                Ok(connection) => return Ok(connection),
                Err(error) => failure = Some(error),
            }
        }
        let known = || {
            self.peers
                .iter()
                .find_map(|peer| lock(&peer.state).failure.clone())
        };
        Err(failure.or_else(known).map_or_else(
            || Error::new(ErrorKind::Connect, "no peer can be reached"),
            Into::into,
        ))
    }

    /// The open connection with the fewest calls in flight, if there is any.
    fn least_busy(&self) -> Option<Arc<Connection>> {
        let open = self.peers.iter().filter_map(|peer| peer.connected());
        open.min_by_key(|connection| connection.link.pending().len())
    }

    /// The one of two peers, taken at random, with fewer calls in flight; peers that were tried
    /// already, or could not be reached a moment ago, are passed over.
    fn choose(&self, tried: &[usize]) -> Option<usize> {
        let now = Instant::now();
        let count = self.peers.len();
        let load = |position: usize| {
            let load = self.peers[position].load(now)?;
            (!tried.contains(&position)).then_some((load, position))
        };
        if count == 1 {
            return load(0).map(|(_, position)| position);
        }
        let one = fastrand::usize(..count);
        let other = (one + fastrand::usize(1..count)) % count;
        let best = match (load(one), load(other)) {
            // Equal ones take turns by chance, as `one` was taken.
            (Some(one), Some(other)) => Some(if other.0 < one.0 { other } else { one }),
            (one, other) => one.or(other),
        };
        let any = || (0..count).find_map(|step| load((one + step) % count));
        best.or_else(any).map(|(_, position)| position)
    }
}

fn late(host: &str) -> Error {
    Error::new(
        ErrorKind::Timeout,
        format!("the deadline passed before tcp://{host} took it"),
    )
}

#[async_trait]
impl ClientTransport for TcpClient {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        self.settings.capabilities()
    }

    fn wire(&self) -> Wire {
        self.settings.wire.unwrap_or(Wire::Native)
    }

    async fn request(&self, envelope: Envelope, expect: Expect) -> Result<Replies, Error> {
        let request = |link: &Link, out: &mut Outgoing| {
            let (call, replies) = link.pending().register(expect);
            link.request(out, call, expect, &envelope);
            replies
        };
        self.send(&envelope, request).await
    }

    fn try_request(
        &self,
        envelope: Envelope,
        expect: Expect,
    ) -> Result<Result<Replies, Error>, Envelope> {
        if let Err(error) = self.check(&envelope) {
            return Ok(Err(error));
        }
        let Some(connection) = self.ready_connection() else {
            return Err(envelope);
        };
        let link = &connection.link;
        if envelope.payload.len() > link.max_payload() {
            return Err(envelope);
        }
        let request = |out: &mut Outgoing| {
            let (call, replies) = link.pending().register(expect);
            link.request(out, call, expect, &envelope);
            replies
        };
        match link.outbox().try_push(request) {
            Some(replies) => Ok(Ok(replies)),
            None => Err(envelope),
        }
    }

    async fn publish(&self, envelope: Envelope) -> Result<(), Error> {
        let event = |link: &Link, out: &mut Outgoing| link.event(out, &envelope);
        self.send(&envelope, event).await
    }

    async fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        let connections: Vec<_> = self.peers.iter().flat_map(|peer| peer.take_all()).collect();
        for connection in &connections {
            connection.link.close_soon();
        }
        let ended = async {
            for connection in &connections {
                connection.link.ended().await;
            }
        };
        if timeout(CLOSE, ended).await.is_err() {
            tracing::warn!("TCP connection closed before everything was written");
        }
    }
}

/// A connection and the task that drives it.
struct Connection {
    link: Arc<Link>,
    _task: Task,
}

type Attempt = BoxFuture<'static, Result<Arc<Connection>, Failure>>;

/// Why a connection could not be made; shared by everybody who waited for it.
#[derive(Clone, Debug)]
struct Failure {
    kind: ErrorKind,
    message: Arc<str>,
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::new(failure.kind, &*failure.message)
    }
}

/// One address.
struct Peer {
    host: String,
    tls: Option<Connector>,
    max_frame: usize,
    wire: Wire,
    /// Calls that wait for a connection.
    waiting: AtomicUsize,
    state: Mutex<State>,
}

/// A call that waits for a connection to its peer: in flight already, when peers are compared.
struct Waiting<'a>(&'a Peer);

impl<'a> Waiting<'a> {
    fn new(peer: &'a Peer) -> Self {
        peer.waiting.fetch_add(1, Ordering::Relaxed);
        Self(peer)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct State {
    connection: Option<Arc<Connection>>,
    /// The attempt to connect that is under way. It goes on when those who waited for it have gone,
    /// so that a peer that does not answer is known for it and passed over.
    connecting: Option<(Shared<Attempt>, Task)>,
    /// Connections that take no new calls and finish those they have.
    leaving: Vec<Arc<Connection>>,
    failures: u32,
    failure: Option<Failure>,
    not_before: Option<Instant>,
    closed: bool,
}

impl Peer {
    fn new(host: &str, tls: Option<&Connector>, settings: &Settings) -> Arc<Self> {
        Arc::new(Self {
            host: host.to_owned(),
            tls: tls.cloned(),
            max_frame: settings.max_frame,
            wire: settings.wire.unwrap_or(Wire::Native),
            waiting: AtomicUsize::new(0),
            state: Mutex::default(),
        })
    }

    /// Calls in flight; `None` while it is better left alone.
    fn load(&self, now: Instant) -> Option<usize> {
        let state = lock(&self.state);
        match &state.connection {
            Some(connection) if connection.link.is_open() => Some(connection.link.pending().len()),
            _ if state.not_before.is_some_and(|then| now < then) => None,
            _ => Some(self.waiting.load(Ordering::Relaxed)),
        }
    }

    fn connected(&self) -> Option<Arc<Connection>> {
        lock(&self.state)
            .connection
            .clone()
            .filter(|connection| connection.link.is_open())
    }

    /// The attempt to connect that is under way, or a new one.
    fn connect(self: &Arc<Self>) -> Shared<Attempt> {
        let mut state = lock(&self.state);
        if let Some((connecting, _)) = &state.connecting {
            return connecting.clone();
        }
        if let Some(connection) = state.connection.take() {
            if connection.link.is_open() {
                state.connection = Some(Arc::clone(&connection));
                let connected: Attempt = Box::pin(async { Ok(connection) });
                return connected.shared();
            }
            state.leave(connection);
        }
        let peer = Arc::clone(self);
        let attempt: Attempt = Box::pin(async move {
            let result = peer.attempt().await;
            peer.connected_with(result)
        });
        let connecting = attempt.shared();
        let task = Task::spawn(connecting.clone().map(drop));
        state.connecting = Some((connecting.clone(), task));
        connecting
    }

    async fn attempt(&self) -> Result<Arc<Connection>, Failure> {
        let opening = link::open(&self.host, self.tls.as_ref(), self.max_frame, self.wire);
        let error = match timeout(CONNECT, opening).await {
            Ok(Ok((link, driver))) => {
                let task = Task::spawn(driver);
                return Ok(Arc::new(Connection { link, _task: task }));
            }
            Ok(Err(error)) => error,
            Err(_) => {
                let message = format!("connect to tcp://{}: no answer in {CONNECT:?}", self.host);
                Error::new(ErrorKind::Connect, message)
            }
        };
        Err(Failure {
            kind: error.kind(),
            message: error.to_string().into(),
        })
    }

    fn connected_with(
        &self,
        result: Result<Arc<Connection>, Failure>,
    ) -> Result<Arc<Connection>, Failure> {
        let mut state = lock(&self.state);
        state.connecting = None;
        match &result {
            Ok(_) if state.closed => {
                return Err(Failure {
                    kind: ErrorKind::Closed,
                    message: "the client was closed".into(),
                });
            }
            Ok(connection) => {
                state.connection = Some(Arc::clone(connection));
                (state.failures, state.failure, state.not_before) = (0, None, None);
            }
            Err(failure) => {
                let pause = FIRST_PAUSE.saturating_mul(1 << state.failures.min(10));
                let jitter = 0.5 + fastrand::f64() / 2.0;
                let pause = pause.min(LONGEST_PAUSE).mul_f64(jitter);
                state.not_before = Some(Instant::now() + pause);
                state.failures += 1;
                state.failure = Some(failure.clone());
            }
        }
        result
    }

    fn take_all(&self) -> Vec<Arc<Connection>> {
        let mut state = lock(&self.state);
        state.closed = true;
        state.connecting = None;
        let mut connections = std::mem::take(&mut state.leaving);
        connections.extend(state.connection.take());
        connections
    }
}

impl State {
    /// Keeps a connection for as long as its calls are in flight.
    fn leave(&mut self, connection: Arc<Connection>) {
        self.leaving
            .retain(|connection| !connection.link.has_ended());
        // One that still has calls stays: they end by their deadlines.
        if self.leaving.len() >= MOST_LEAVING
            && let Some(idle) = self
                .leaving
                .iter()
                .position(|connection| connection.link.pending().is_empty())
        {
            self.leaving.remove(idle);
        }
        if !connection.link.has_ended() {
            self.leaving.push(connection);
        }
    }
}

impl fmt::Debug for TcpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpClient")
            .field("hosts", &self.settings.hosts)
            .finish_non_exhaustive()
    }
}
