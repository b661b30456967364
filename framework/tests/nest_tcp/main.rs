//! NestJS's wire on TCP: the captured conversations of `@nestjs/microservices`, with nestling in
//! either role, and what the captures do not show.
#![cfg(feature = "tcp")]
#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

mod beside;
mod client;
mod handlers;
mod server;

use std::{collections::BTreeMap, fs, time::Duration};

use nestling::{Router, Running, Server};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

const LIMIT: Duration = Duration::from_secs(30);
const ANY_PORT: &str = "tcp://127.0.0.1:0";

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(LIMIT, future).await.expect("in time")
}

async fn serve(router: Router) -> Running {
    let server = Server::new("test", router).listen(ANY_PORT);
    server.start().await.expect("a free port")
}

/// A file of captured vectors.
fn vectors(name: &str) -> Value {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/nest/vectors");
    let text = fs::read_to_string(format!("{folder}/{name}.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The frames of one case.
#[derive(Default)]
struct Case {
    sent: Vec<String>,
    replies: Vec<String>,
}

/// The cases of `tcp.json`: 85 frames.
fn cases() -> BTreeMap<String, Case> {
    let vectors = vectors("tcp");
    let frames = vectors["vectors"].as_array().unwrap();
    assert_eq!(frames.len(), 85);
    let mut cases: BTreeMap<String, Case> = BTreeMap::new();
    for frame in frames {
        let text = |member: &str| frame[member].as_str().unwrap();
        let case = cases.entry(text("name").to_owned()).or_default();
        let frames = match text("direction") {
            "client->server" => &mut case.sent,
            _ => &mut case.replies,
        };
        frames.push(text("bytes_utf8").to_owned());
    }
    assert_eq!(cases.len(), 41);
    cases
}

/// A body with its length before it.
fn framed(body: &str) -> String {
    format!("{}#{body}", body.encode_utf16().count())
}

/// The body of a frame, whose length has to be right.
fn body(frame: &str) -> &str {
    let (_, body) = frame.split_once('#').unwrap();
    assert_eq!(framed(body), frame);
    body
}

/// The id of a packet.
fn id(body: &str) -> String {
    let packet: Value = serde_json::from_str(body).unwrap();
    packet["id"].as_str().unwrap().to_owned()
}

/// The other end of a connection, byte by byte.
struct Raw {
    socket: TcpStream,
}

impl Raw {
    async fn connect(server: &Running) -> Self {
        let address = server.address().strip_prefix("tcp://").unwrap();
        let address = address.split('?').next().unwrap();
        Self {
            socket: TcpStream::connect(address).await.unwrap(),
        }
    }

    async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        within(self.socket.write_all(bytes.as_ref())).await.unwrap();
    }

    /// Writes a packet and reads the one that answers it.
    async fn ask(&mut self, packet: &str) -> String {
        self.write(framed(packet)).await;
        self.read().await
    }

    /// The body of the next frame, of text in which a code unit is a byte.
    async fn read(&mut self) -> String {
        let mut length = 0;
        loop {
            match within(self.socket.read_u8()).await.unwrap() {
                b'#' => break,
                digit => length = 10 * length + usize::from(digit - b'0'),
            }
        }
        let mut body = vec![0; length];
        within(self.socket.read_exact(&mut body)).await.unwrap();
        String::from_utf8(body).unwrap()
    }

    /// The next frames, which have to be these.
    async fn expect(&mut self, frames: &str) {
        let mut read = vec![0; frames.len()];
        within(self.socket.read_exact(&mut read)).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&read), frames);
    }

    /// All that comes until the other end closes; a reset is as good as an end.
    async fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        drop(within(self.socket.read_to_end(&mut rest)).await);
        String::from_utf8(rest).unwrap()
    }
}
