//! The TLS handshakes of connections that have just been made, side by side: whoever is slow about it,
//! or says nothing, holds nobody up.

use std::{
    collections::VecDeque,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    task::{self, Poll, ready},
    time::Duration,
};

use tokio::{
    net::TcpStream,
    sync::mpsc,
    time::{Instant, Sleep, sleep_until, timeout},
};

use crate::transport::{
    Task,
    tls::{Acceptor, Stream},
};

/// How long one may take.
const LIMIT: Duration = Duration::from_secs(10);
/// How many there are at once.
const MOST: usize = 256;
/// How long one may take when others have no place.
const LIMIT_WHEN_FULL: Duration = Duration::from_secs(1);

type Done = (Stream, SocketAddr);

/// Connections that are not known to be anybody's yet.
pub(super) struct Handshakes {
    acceptor: Acceptor,
    /// The oldest first.
    running: VecDeque<Handshake>,
    give_way: Option<Pin<Box<Sleep>>>,
    sender: mpsc::Sender<Done>,
    done: mpsc::Receiver<Done>,
}

struct Handshake {
    since: Instant,
    task: Task,
}

impl Handshakes {
    pub(super) fn new(acceptor: Acceptor) -> Self {
        let (sender, done) = mpsc::channel(MOST);
        Self {
            acceptor,
            running: VecDeque::new(),
            give_way: None,
            sender,
            done,
        }
    }

    /// A connection that has proved itself.
    pub(super) fn poll_done(&mut self, cx: &mut task::Context<'_>) -> Poll<Done> {
        match ready!(self.done.poll_recv(cx)) {
            Some(done) => Poll::Ready(done),
            // There is always a sender: ours.
            None => Poll::Pending,
        }
    }

    /// Ready when there is room for one more. Where there is none, the oldest gives way if it has had
    /// the time that an honest one needs.
    pub(super) fn poll_room(&mut self, cx: &mut task::Context<'_>) -> Poll<()> {
        if self.running.len() < MOST {
            return Poll::Ready(());
        }
        self.running
            .retain(|handshake| !handshake.task.is_finished());
        let Some(oldest) = self.running.front() else {
            return Poll::Ready(());
        };
        if self.running.len() < MOST {
            return Poll::Ready(());
        }
        let until = oldest.since + LIMIT_WHEN_FULL;
        let give_way = self
            .give_way
            .get_or_insert_with(|| Box::pin(sleep_until(until)));
        ready!(give_way.as_mut().poll(cx));
        self.give_way = None;
        if oldest.since.elapsed() >= LIMIT_WHEN_FULL {
            tracing::warn!("a slow TLS handshake gives way to others");
            self.running.pop_front();
        }
        Poll::Ready(())
    }

    pub(super) fn start(&mut self, socket: TcpStream, peer: SocketAddr) {
        let (acceptor, sender) = (self.acceptor.clone(), self.sender.clone());
        let task = Task::spawn(async move {
            match timeout(LIMIT, Stream::accept(socket, &acceptor)).await {
                Ok(Ok(stream)) => {
                    if sender.send((stream, peer)).await.is_err() {
                        tracing::debug!(%peer, "a connection came too late");
                    }
                }
                Ok(Err(error)) => tracing::warn!(%peer, %error, "TLS handshake failed"),
                Err(_) => tracing::warn!(%peer, "no TLS handshake within {} s", LIMIT.as_secs()),
            }
        });
        self.running.push_back(Handshake {
            since: Instant::now(),
            task,
        });
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::{io::AsyncWriteExt, net::TcpListener};

    use super::*;

    /// Somebody who begins and then says nothing.
    async fn begin(handshakes: &mut Handshakes, listener: &TcpListener) -> TcpStream {
        let address = listener.local_addr().unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (socket, peer) = accepted.unwrap();
        let mut client = client.unwrap();
        client.write_all(&[0x16, 3, 1]).await.unwrap();
        poll_fn(|cx| handshakes.poll_room(cx)).await;
        handshakes.start(socket, peer);
        client
    }

    fn full(handshakes: &Handshakes) -> bool {
        let running = handshakes.running.iter();
        running.filter(|it| !it.task.is_finished()).count() == MOST
    }

    #[tokio::test]
    async fn when_there_are_too_many_the_oldest_gives_way() {
        let mut handshakes = Handshakes::new(Acceptor::for_tests());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut clients = Vec::new();
        for _ in 0..MOST {
            clients.push(begin(&mut handshakes, &listener).await);
        }
        tokio::time::pause();
        assert!(full(&handshakes));
        let first = handshakes.running[0].since;
        poll_fn(|cx| handshakes.poll_room(cx)).await;
        assert!(first.elapsed() >= LIMIT_WHEN_FULL && first.elapsed() < LIMIT);
        assert!(!full(&handshakes) && handshakes.running[0].since > first);
        tokio::time::advance(LIMIT).await;
        poll_fn(|cx| handshakes.poll_room(cx)).await;
    }
}
