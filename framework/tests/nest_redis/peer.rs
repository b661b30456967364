//! A Redis connection of the test's own, which writes and reads the protocol's bytes.

use std::{collections::VecDeque, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

/// How long anything may take that is to happen.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// An answer of Redis, as RESP2 has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Line(String),
    Number(i64),
    Bytes(Option<Vec<u8>>),
    List(Vec<Self>),
}

impl Answer {
    fn text(&self) -> &str {
        match self {
            Self::Line(text) => text,
            Self::Bytes(Some(bytes)) => std::str::from_utf8(bytes).unwrap(),
            other => panic!("{other:?} is no text"),
        }
    }
}

/// A message of a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Heard {
    pub(crate) channel: String,
    pub(crate) payload: String,
}

pub(crate) struct Peer {
    stream: BufStream<TcpStream>,
    /// What arrived while something else was waited for.
    heard: VecDeque<Heard>,
}

impl Peer {
    pub(crate) async fn connect(url: &str) -> Self {
        let host = url.strip_prefix("redis://").unwrap();
        let stream = TcpStream::connect(host).await.unwrap();
        Self {
            stream: BufStream::new(stream),
            heard: VecDeque::new(),
        }
    }

    /// One that is subscribed to the replies of all channels.
    pub(crate) async fn of_all_replies(url: &str) -> Self {
        let mut peer = Self::connect(url).await;
        peer.command(&["PSUBSCRIBE", "*.reply"]).await;
        peer
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    pub(crate) async fn command(&mut self, words: &[&str]) -> Answer {
        let words: Vec<_> = words.iter().map(|word| word.as_bytes()).collect();
        self.write(&command(&words)).await;
        self.answer().await
    }

    /// How many have heard it.
    pub(crate) async fn publish(&mut self, channel: &str, payload: impl AsRef<[u8]>) -> i64 {
        let words = [b"PUBLISH", channel.as_bytes(), payload.as_ref()];
        self.write(&command(&words)).await;
        self.number().await
    }

    pub(crate) async fn number(&mut self) -> i64 {
        match self.answer().await {
            Answer::Number(number) => number,
            other => panic!("{other:?} is no number"),
        }
    }

    /// Publishes, and has Redis keep everything waiting then that is published by others; returns
    /// when somebody waits.
    pub(crate) async fn publish_and_pause(&mut self, channel: &str, payload: &str) {
        let both = [
            command(&[b"PUBLISH", channel.as_bytes(), payload.as_bytes()]),
            command(&[b"CLIENT", b"PAUSE", b"60000", b"WRITE"]),
        ];
        self.write(&both.concat()).await;
        assert_eq!(self.number().await, 1);
        assert_eq!(self.answer().await, Answer::Line("OK".to_owned()));
        let begun = Instant::now();
        let waits = |word: &str| word.starts_with("flags=") && word.contains('b');
        loop {
            let clients = self.command(&["CLIENT", "LIST", "TYPE", "pubsub"]).await;
            if clients.text().split_whitespace().any(waits) {
                return;
            }
            assert!(begun.elapsed() < SOON, "nothing is published");
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// The answer to the oldest command that has none.
    pub(crate) async fn answer(&mut self) -> Answer {
        let answer = async {
            loop {
                let answer = self.read().await;
                match heard(&answer) {
                    Some(heard) => self.heard.push_back(heard),
                    None => return answer,
                }
            }
        };
        timeout(SOON, answer).await.expect("no answer")
    }

    /// The next message of its channels.
    pub(crate) async fn heard(&mut self) -> Heard {
        if let Some(heard) = self.heard.pop_front() {
            return heard;
        }
        let answer = timeout(SOON, self.read()).await;
        let answer = answer.expect("nothing is published");
        heard(&answer).unwrap_or_else(|| panic!("{answer:?} is no message"))
    }

    /// What has been published so far.
    pub(crate) async fn all_heard(&mut self) -> Vec<Heard> {
        self.command(&["PING"]).await;
        self.heard.drain(..).collect()
    }

    /// The next line of a connection that monitors, with its command in it.
    pub(crate) async fn monitored(&mut self) -> String {
        let line = timeout(SOON, self.read()).await.expect("nothing happens");
        let line = line.text();
        let (_, command) = line.split_once("] ").unwrap();
        command.to_owned()
    }

    async fn read(&mut self) -> Answer {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line).await.unwrap();
        assert!(read > 0, "redis closed the connection");
        let (kind, rest) = line.trim_end().split_at(1);
        match kind {
            "+" => Answer::Line(rest.to_owned()),
            ":" => Answer::Number(rest.parse().unwrap()),
            "$" => self.bytes(rest.parse().ok()).await,
            "*" => {
                let mut list = Vec::new();
                for _ in 0..rest.parse().unwrap() {
                    list.push(Box::pin(self.read()).await);
                }
                Answer::List(list)
            }
            _ => panic!("{line}"),
        }
    }

    async fn bytes(&mut self, length: Option<usize>) -> Answer {
        let Some(length) = length else {
            return Answer::Bytes(None);
        };
        let mut bytes = vec![0; length + 2];
        self.stream.read_exact(&mut bytes).await.unwrap();
        bytes.truncate(length);
        Answer::Bytes(Some(bytes))
    }
}

/// A command as it is written.
pub(crate) fn command(words: &[&[u8]]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        out.extend(format!("${}\r\n", word.len()).as_bytes());
        out.extend(*word);
        out.extend(b"\r\n");
    }
    out
}

fn heard(answer: &Answer) -> Option<Heard> {
    let Answer::List(parts) = answer else {
        return None;
    };
    let (("message", [channel, payload]) | ("pmessage", [_, channel, payload])) =
        (parts.first()?.text(), &parts[1..])
    else {
        return None;
    };
    Some(Heard {
        channel: channel.text().to_owned(),
        payload: payload.text().to_owned(),
    })
}
