//! A link between two programs that can fail in the ways of a network.

use std::{fmt, io, net::Ipv4Addr, sync::Arc};

use nestling::transport::Task;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
};

/// What one direction of a connection holds at most, beside the buffers of the system.
const BUFFER: usize = 16 * 1024;

/// Forwards connections from a port of its own to another on 127.0.0.1, until it is told to behave otherwise. Dropping
/// it closes them all.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    _accepting: Task,
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From whoever connected to whom it wants.
    There,
    /// And back.
    Back,
}

struct Shared {
    target: watch::Sender<Option<u16>>,
    made: watch::Sender<u64>,
    state: watch::Sender<State>,
}

/// What is done to connections. They are numbered by the generation in which they were made.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    there_frozen: bool,
    back_frozen: bool,
    generation: u64,
    /// Older ones are closed…
    cut: u64,
    /// …or carry nothing ever again.
    abandoned: u64,
}

impl State {
    fn is_frozen(&self, way: Way, generation: u64) -> bool {
        let frozen = match way {
            Way::There => self.there_frozen,
            Way::Back => self.back_frozen,
        };
        frozen || generation < self.abandoned
    }
}

impl Proxy {
    /// A proxy on a free port. Who connects before it knows [where to](Self::forward_to) is sent away.
    ///
    /// # Errors
    ///
    /// When there is no port.
    pub async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            target: watch::Sender::new(None),
            made: watch::Sender::new(0),
            state: watch::Sender::new(State::default()),
        });
        let accepting = Task::spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self {
            port,
            shared,
            _accepting: accepting,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Waits until `count` connections have been made since it started.
    pub async fn has_made(&self, count: u64) {
        let mut made = self.shared.made.subscribe();
        let reached = made.wait_for(|made| *made >= count).await.is_ok();
        assert!(reached, "the proxy owns the sender");
    }

    /// How many connections have been made since it started.
    #[must_use]
    pub fn made(&self) -> u64 {
        *self.shared.made.borrow()
    }

    /// Forwards what connects from now on to this port.
    pub fn forward_to(&self, port: u16) {
        self.shared.target.send_replace(Some(port));
    }

    /// Lets no byte through in either direction, of connections old and new, and keeps them open: each end sees an other
    /// one that is silent.
    pub fn freeze(&self) {
        self.shared.state.send_modify(|state| {
            (state.there_frozen, state.back_frozen) = (true, true);
        });
    }

    /// The same for one direction.
    pub fn freeze_way(&self, way: Way) {
        self.shared.state.send_modify(|state| match way {
            Way::There => state.there_frozen = true,
            Way::Back => state.back_frozen = true,
        });
    }

    /// Ends a freeze: what was held up goes on.
    pub fn thaw(&self) {
        self.shared.state.send_modify(|state| {
            (state.there_frozen, state.back_frozen) = (false, false);
        });
    }

    /// Closes the connections there are, whatever is on its way.
    pub fn cut(&self) {
        self.shared.state.send_modify(|state| {
            state.generation += 1;
            state.cut = state.generation;
        });
    }

    /// Lets no byte of the connections there are through ever again, and keeps them open; new ones work. So does a
    /// firewall that has forgotten them.
    pub fn abandon(&self) {
        self.shared.state.send_modify(|state| {
            state.generation += 1;
            state.abandoned = state.generation;
        });
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy")
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let near = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let (near, target) = match (near, *shared.target.borrow()) {
            (Ok((near, _)), Some(target)) => (near, target),
            (Ok(_), None) => continue,
            (Err(error), _) => {
                eprintln!("the proxy accepts no more: {error}");
                return;
            }
        };
        let state = shared.state.subscribe();
        let generation = state.borrow().generation;
        shared.made.send_modify(|made| *made += 1);
        connections.spawn(carry(near, target, state, generation));
    }
}

/// One connection, until an end closes it or it is cut.
async fn carry(near: TcpStream, target: u16, state: watch::Receiver<State>, generation: u64) {
    // Whoever connected sees the same as without a proxy, a little later: a connection that is closed.
    let Ok(far) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await else {
        return;
    };
    if near.set_nodelay(true).and(far.set_nodelay(true)).is_err() {
        return;
    }
    let mut cutting = state.clone();
    let cut = cutting.wait_for(|state| generation < state.cut);
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    let both = async {
        tokio::try_join!(
            pump(near_read, far_write, state.clone(), Way::There, generation),
            pump(far_read, near_write, state.clone(), Way::Back, generation),
        )
    };
    // An error of either half, or the cut, drops both ends.
    tokio::select! {
        _ = both => {}
        _ = cut => {}
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut state: watch::Receiver<State>,
    way: Way,
    generation: u64,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = from.read(&mut buffer).await?;
        // Nor is the end seen through a frozen link.
        let flowing = state.wait_for(|state| !state.is_frozen(way, generation));
        flowing.await.map(drop).map_err(io::Error::other)?;
        if count == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..count]).await?;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{runtime, time::timeout};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);
    /// For what must not happen.
    const MOMENT: Duration = Duration::from_millis(50);

    /// A connection by the proxy to a server that sends everything back.
    async fn echo() -> (Proxy, TcpStream, JoinSet<()>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let proxy = Proxy::start().await.unwrap();
        proxy.forward_to(listener.local_addr().unwrap().port());
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut socket, _)) = listener.accept().await {
                connections.spawn(async move {
                    let (mut read, mut write) = socket.split();
                    drop(tokio::io::copy(&mut read, &mut write).await);
                });
            }
        });
        let client = connect(&proxy).await;
        (proxy, client, server)
    }

    async fn connect(proxy: &Proxy) -> TcpStream {
        let address = (Ipv4Addr::LOCALHOST, proxy.port());
        TcpStream::connect(address).await.unwrap()
    }

    async fn say(client: &mut TcpStream, byte: u8) {
        client.write_all(&[byte]).await.unwrap();
    }

    async fn hear(client: &mut TcpStream) -> Option<u8> {
        let mut byte = [0];
        let read = timeout(LIMIT, client.read(&mut byte)).await.unwrap();
        matches!(read, Ok(1)).then_some(byte[0])
    }

    async fn is_silent(client: &mut TcpStream) -> bool {
        let mut byte = [0];
        timeout(MOMENT, client.read(&mut byte)).await.is_err()
    }

    fn run(test: impl Future<Output = ()>) {
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(test);
    }

    #[test]
    fn what_is_frozen_goes_on_after_the_thaw() {
        run(async {
            let (proxy, mut client, _server) = echo().await;
            say(&mut client, 1).await;
            assert_eq!(hear(&mut client).await, Some(1));
            for freeze in [Proxy::freeze, |proxy: &Proxy| proxy.freeze_way(Way::Back)] {
                freeze(&proxy);
                say(&mut client, 2).await;
                assert!(is_silent(&mut client).await);
                proxy.thaw();
                assert_eq!(hear(&mut client).await, Some(2));
            }
        });
    }

    #[test]
    fn what_is_cut_is_closed_and_what_is_abandoned_is_not() {
        run(async {
            let (proxy, mut old, _server) = echo().await;
            say(&mut old, 1).await;
            assert_eq!(hear(&mut old).await, Some(1));
            proxy.abandon();
            say(&mut old, 2).await;
            let mut new = connect(&proxy).await;
            say(&mut new, 3).await;
            assert_eq!(hear(&mut new).await, Some(3));
            assert!(is_silent(&mut old).await);
            proxy.cut();
            assert_eq!(hear(&mut old).await, None);
            assert_eq!(hear(&mut new).await, None);
        });
    }
}
