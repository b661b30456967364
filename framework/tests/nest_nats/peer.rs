//! A NATS connection of the test's own, which writes and reads the protocol's bytes.

use std::{collections::VecDeque, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream},
    net::TcpStream,
    time::timeout,
};

/// How long anything may take that is to happen.
pub(crate) const SOON: Duration = Duration::from_secs(10);

const CONNECT: &str =
    "CONNECT {\"no_responders\":true,\"verbose\":false,\"pedantic\":false,\"headers\":true}\r\n";

/// What a broker sends to its subscribers: the line, then the rest without its line end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) line: String,
    body: Vec<u8>,
}

impl Frame {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        [self.line.as_bytes(), b"\r\n", &self.body, b"\r\n"].concat()
    }

    /// The line's words: the operation, the subject, the subscription's number, the reply subject if
    /// there is one, the length of headers if there are any, and that of everything.
    fn words(&self) -> Vec<&str> {
        self.line.split(' ').collect()
    }

    fn has_headers(&self) -> bool {
        self.line.starts_with("HMSG ")
    }

    pub(crate) fn subject(&self) -> &str {
        self.words()[1]
    }

    pub(crate) fn subscription(&self) -> u32 {
        self.words()[2].parse().unwrap()
    }

    pub(crate) fn reply(&self) -> Option<&str> {
        let with_reply = 5 + usize::from(self.has_headers());
        let words = self.words();
        (words.len() == with_reply).then(|| words[3])
    }

    fn header_length(&self) -> usize {
        let words = self.words();
        match self.has_headers() {
            true => words[words.len() - 2].parse().unwrap(),
            false => 0,
        }
    }

    /// What the broker itself says, in the first line of the header block.
    pub(crate) fn status(&self) -> Option<&str> {
        let block = std::str::from_utf8(&self.body[..self.header_length()]).unwrap();
        block.lines().next()?.strip_prefix("NATS/1.0 ")
    }

    /// The lines of the header block, without the one that names the version.
    pub(crate) fn headers(&self) -> Vec<&str> {
        let block = std::str::from_utf8(&self.body[..self.header_length()]).unwrap();
        let mut lines: Vec<_> = block.lines().filter(|line| !line.is_empty()).collect();
        if !lines.is_empty() {
            assert!(lines.remove(0).starts_with("NATS/1.0"));
        }
        lines
    }

    pub(crate) fn payload(&self) -> &str {
        std::str::from_utf8(&self.body[self.header_length()..]).unwrap()
    }
}

pub(crate) struct Peer {
    stream: BufStream<TcpStream>,
    /// What arrived while something else was waited for.
    arrived: VecDeque<Frame>,
    subscriptions: u32,
}

impl Peer {
    /// Its first own subscription has the number 1000, above those of the vectors.
    pub(crate) async fn connect(url: &str) -> Self {
        let host = url.strip_prefix("nats://").unwrap();
        let stream = BufStream::new(TcpStream::connect(host).await.unwrap());
        let mut peer = Self {
            stream,
            arrived: VecDeque::new(),
            subscriptions: 999,
        };
        peer.write(CONNECT.as_bytes()).await;
        peer.round_trip().await;
        peer
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// The number of the new subscription.
    pub(crate) async fn subscribe(&mut self, subject: &str) -> u32 {
        self.subscriptions += 1;
        let line = format!("SUB {subject} {}\r\n", self.subscriptions);
        self.write(line.as_bytes()).await;
        self.subscriptions
    }

    pub(crate) async fn publish(&mut self, subject: &str, reply: Option<&str>, payload: &str) {
        self.publish_bytes(subject, reply, payload.as_bytes()).await;
    }

    pub(crate) async fn publish_bytes(&mut self, subject: &str, reply: Option<&str>, body: &[u8]) {
        let reply = reply.map(|reply| format!(" {reply}")).unwrap_or_default();
        let line = format!("PUB {subject}{reply} {}\r\n", body.len());
        self.write(&[line.as_bytes(), body, b"\r\n"].concat()).await;
    }

    pub(crate) async fn publish_with_headers(
        &mut self,
        subject: &str,
        reply: Option<&str>,
        headers: &str,
        payload: &str,
    ) {
        let reply = reply.map(|reply| format!(" {reply}")).unwrap_or_default();
        let block = format!("NATS/1.0\r\n{headers}\r\n");
        let (head, all) = (block.len(), block.len() + payload.len());
        let text = format!("HPUB {subject}{reply} {head} {all}\r\n{block}{payload}\r\n");
        self.write(text.as_bytes()).await;
    }

    /// The next message for one of its subscriptions.
    pub(crate) async fn frame(&mut self) -> Frame {
        if let Some(frame) = self.arrived.pop_front() {
            return frame;
        }
        let next = async {
            loop {
                if let Some(frame) = self.read().await {
                    return frame;
                }
            }
        };
        timeout(SOON, next).await.expect("nothing arrives")
    }

    /// What has arrived when the broker has worked off everything sent before.
    pub(crate) async fn frames(&mut self) -> Vec<Frame> {
        self.round_trip().await;
        self.arrived.drain(..).collect()
    }

    pub(crate) async fn round_trip(&mut self) {
        self.write(b"PING\r\n").await;
        let pong = async {
            loop {
                let line = self.line().await;
                match &*line {
                    "PONG" => return,
                    _ => {
                        let frame = self.rest(line).await;
                        self.arrived.extend(frame);
                    }
                }
            }
        };
        timeout(SOON, pong).await.expect("the broker is silent");
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line).await.unwrap();
        assert!(read > 0, "the broker closed the connection");
        line.truncate(line.trim_end().len());
        line
    }

    async fn read(&mut self) -> Option<Frame> {
        let line = self.line().await;
        self.rest(line).await
    }

    /// The message that begins with this line, if one does.
    async fn rest(&mut self, line: String) -> Option<Frame> {
        assert!(!line.starts_with("-ERR"), "{line}");
        if line == "PING" {
            self.write(b"PONG\r\n").await;
        }
        if !line.starts_with("MSG ") && !line.starts_with("HMSG ") {
            return None;
        }
        let length: usize = line.rsplit(' ').next().unwrap().parse().unwrap();
        let mut body = vec![0; length + 2];
        self.stream.read_exact(&mut body).await.unwrap();
        body.truncate(length);
        Some(Frame { line, body })
    }
}
