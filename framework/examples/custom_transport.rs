//! A transport of one's own: requests and replies as datagrams on Unix sockets.
//!
//! It shows the seam and leaves out what a real one has beside it: events, headers, deadlines,
//! cancellation, credit. `src/transport/tcp` has them.

use std::{error::Error as StdError, path::PathBuf, sync::Arc, task, task::Poll};

use async_trait::async_trait;
use bytes::Bytes;
use nestling::{Client, Envelope, Guarantee, Payload, Router, RpcError, Server, transport::*};
use tokio::{io::ReadBuf, net::UnixDatagram, sync::mpsc};

const MAX: usize = 16 * 1024;
const CAPABILITIES: Capabilities = Capabilities {
    events: Guarantee::BestEffort,
    replicas_share: false,
    fan_out: false,
    durable: false,
    order: Order::Connection,
    redelivers: false,
    dead_letters: false,
    cancels: false,
    stream_credit: false,
    detects_absence: true,
    max_payload: MAX - 1024,
};

struct UnixServer(PathBuf);

#[async_trait]
impl ServerTransport for UnixServer {
    fn name(&self) -> &'static str {
        "unix"
    }

    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    async fn subscribe(&self, _: Subscription) -> Result<Sources, Error> {
        let socket = UnixDatagram::bind(&self.0).map_err(failed)?;
        let (replies, settled) = mpsc::unbounded_channel();
        let source = Inbox {
            socket,
            replies,
            settled,
            next: None,
            stopped: false,
        };
        Ok(Box::pin(futures_util::stream::iter([
            Box::new(source) as Box<dyn Source>
        ])))
    }
}

type Reply = (PathBuf, Vec<u8>);

/// All requests and replies of a server: what its one task owns.
struct Inbox {
    socket: UnixDatagram,
    replies: mpsc::UnboundedSender<Reply>, // As many at most as are in flight.
    settled: mpsc::UnboundedReceiver<Reply>,
    next: Option<Reply>,
    stopped: bool,
}

impl Source for Inbox {
    fn poll_deliveries(
        &mut self,
        cx: &mut task::Context<'_>,
        room: usize,
        batch: &mut Vec<Delivery>,
    ) -> Poll<Option<usize>> {
        let _written = self.poll_close(cx);
        let before = batch.len();
        while batch.len() < before + room && !self.stopped {
            let mut buffer = [0; MAX];
            let mut datagram = ReadBuf::new(&mut buffer);
            let from = self.socket.poll_recv_from(cx, &mut datagram);
            let Poll::Ready(Ok(from)) = from else { break };
            let client = from.as_pathname().map(PathBuf::from);
            let (Some(client), Some((call, envelope))) = (client, parse(datagram.filled())) else {
                continue;
            };
            let answer = Answer {
                client,
                call,
                replies: self.replies.clone(),
            };
            batch.push(Delivery::new(Kind::Message, envelope, Box::new(answer)));
        }
        match batch.len() - before {
            0 if self.stopped => Poll::Ready(None),
            0 => Poll::Pending,
            count => Poll::Ready(Some(count)),
        }
    }

    fn stop(&mut self) {
        self.stopped = true;
    }

    fn poll_close(&mut self, cx: &mut task::Context<'_>) -> Poll<()> {
        loop {
            if self.next.is_none() {
                let Poll::Ready(reply) = self.settled.poll_recv(cx) else {
                    return Poll::Ready(());
                };
                self.next = reply;
            }
            if let Some((client, datagram)) = &self.next {
                let sent = task::ready!(self.socket.poll_send_to(cx, datagram, client));
                sent.map_or_else(|error| eprintln!("reply to {client:?}: {error}"), drop);
            }
            self.next = None;
        }
    }
}

fn parse(datagram: &[u8]) -> Option<([u8; 8], Envelope)> {
    let (call, rest) = datagram.split_first_chunk()?;
    let length = rest.iter().position(|byte| *byte == 0)?;
    let pattern = std::str::from_utf8(&rest[..length]).ok()?;
    Some((*call, Envelope::new(pattern, rest[length + 1..].to_vec())))
}

struct Answer {
    client: PathBuf,
    call: [u8; 8],
    replies: mpsc::UnboundedSender<Reply>,
}

impl Answer {
    fn send(&self, kind: u8, payload: &[u8]) {
        let datagram = [&self.call, &[kind][..], payload].concat();
        drop(self.replies.send((self.client.clone(), datagram))); // Too late when it fails.
    }
}

impl Responder for Answer {
    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> Poll<Result<(), Gone>> {
        Poll::Ready(Ok(()))
    }

    fn value(&mut self, payload: Bytes) {
        self.send(b'v', &payload);
    }

    fn poll_cancelled(&mut self, _: &mut task::Context<'_>) -> Poll<()> {
        Poll::Pending
    }

    fn settle(self: Box<Self>, outcome: Outcome) {
        match outcome {
            Outcome::Reply(payload) => self.send(b'l', &payload),
            Outcome::Fail(error) => self.send(b'f', &error.to_bytes()),
            _ => self.send(b'e', b""),
        }
    }
}

struct UnixClient {
    socket: Arc<UnixDatagram>,
    pending: Arc<Pending>,
    _reader: Task,
}

impl UnixClient {
    fn connect(server: &PathBuf) -> Result<Self, Error> {
        let socket = Arc::new(UnixDatagram::bind(server.with_extension("client")).map_err(failed)?);
        socket.connect(server).map_err(failed)?;
        let pending = Pending::new();
        let (reading, waiting) = (Arc::clone(&socket), Arc::clone(&pending));
        let reader = Task::spawn(async move {
            let mut buffer = [0; MAX];
            while let Ok(length) = reading.recv(&mut buffer).await {
                let Some((call, [kind, payload @ ..])) = buffer[..length].split_first_chunk()
                else {
                    continue;
                };
                let payload = payload.to_vec();
                let item = match kind {
                    b'v' => Item::Value(payload.into()),
                    b'l' => Item::Last(payload.into()),
                    b'f' => Item::Fail(RpcError::from_bytes(&payload)),
                    _ => Item::End,
                };
                waiting.complete(u64::from_le_bytes(*call), item);
            }
        });
        Ok(Self {
            socket,
            pending,
            _reader: reader,
        })
    }
}

#[async_trait]
impl ClientTransport for UnixClient {
    fn name(&self) -> &'static str {
        "unix"
    }

    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    async fn request(&self, envelope: Envelope, expect: Expect) -> Result<Replies, Error> {
        let (call, replies) = self.pending.register(expect);
        let Envelope {
            pattern, payload, ..
        } = envelope;
        let datagram = [&call.to_le_bytes()[..], pattern.as_bytes(), &[0], &payload].concat();
        self.socket
            .send(&datagram)
            .await
            .map(|_| replies)
            .map_err(failed)
    }

    async fn publish(&self, _: Envelope) -> Result<(), Error> {
        Err(Error::new(
            ErrorKind::Config,
            "this transport has no events",
        ))
    }

    async fn close(&self) {}
}

fn failed(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Connect, "unix socket").with_source(error)
}

/// Both sides in one process, as a demonstration.
#[tokio::main(flavor = "current_thread")]
pub(crate) async fn main() -> Result<(), Box<dyn StdError>> {
    let folder = std::env::temp_dir().join(format!("nestling-{}", std::process::id()));
    std::fs::create_dir(&folder)?;
    let path = folder.join("math");
    let router = Router::new().message_at("double", async |Payload(n): Payload<u64>| {
        Ok::<_, RpcError>(2 * n)
    });
    let transport: Arc<dyn ServerTransport> = Arc::new(UnixServer(path.clone()));
    let server = Server::new("math", router)
        .listen(transport)
        .start()
        .await?;

    let transport: Arc<dyn ClientTransport> = Arc::new(UnixClient::connect(&path)?);
    let client = Client::connect(transport).await?;
    println!(
        "21 doubled is {}",
        client.send_at::<u64>("double", &21).await?
    );

    server.shutdown().await;
    std::fs::remove_dir_all(folder)?;
    Ok(())
}
