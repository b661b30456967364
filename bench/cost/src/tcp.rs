//! Requests over loopback TCP. What the kernel does is not counted.

use std::any::Any;

use nestling::{Client, Message, RpcError};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    Answer, Ask, AskWaiting, BATCH, Bench, Work, answer, ask, floors, memory::requests, messages,
};

const ASK: &str = r#"{"order":1234567890,"user":98765,"cents":12345}"#;
const ANSWER: &str = r#"{"order":1234567890,"cents":12345,"paid":true}"#;

pub(crate) async fn waiting(ask: AskWaiting) -> Result<Answer, RpcError> {
    tokio::task::yield_now().await;
    Ok(answer(ask.order, ask.cents))
}

/// The server alone: frame to envelope, route, handler, reply to frame, a batch at a time.
pub(crate) fn server(bench: Bench) -> Work {
    let peer = Peer::ours(&bench);
    native(bench, peer, Ask::PATTERN)
}

/// The same with a handler that waits, and moves to a task of its own for that.
pub(crate) fn server_waiting(bench: Bench) -> Work {
    let peer = Peer::ours(&bench);
    native(bench, peer, AskWaiting::PATTERN)
}

/// The same without the framework.
pub(crate) fn server_floor(bench: Bench) -> Work {
    let peer = floors::tcp_server(&bench);
    native(bench, peer, Ask::PATTERN)
}

/// The server alone on NestJS's wire.
pub(crate) fn server_nest(bench: Bench) -> Work {
    let peer = Peer::ours(&bench);
    batches(bench, peer, &[], nest_request, nest_reply)
}

/// A server that listens as long as this lives.
pub(crate) struct Peer {
    pub(crate) address: String,
    pub(crate) running: Box<dyn Any>,
}

impl Peer {
    fn ours(bench: &Bench) -> Self {
        let server = bench.serve(messages(), "tcp://127.0.0.1:0");
        Self {
            address: server.address().replace("tcp://", ""),
            running: Box::new(server),
        }
    }
}

fn native(bench: Bench, peer: Peer, pattern: &str) -> Work {
    let preface = [&b"\0NST\x01"[..], &(16_u32 << 20).to_le_bytes()].concat();
    let request = |id| native_request(id, pattern);
    batches(bench, peer, &preface, request, native_reply)
}

fn native_request(id: u8, pattern: &str) -> Vec<u8> {
    let length = u8::try_from(pattern.len()).expect("a short pattern");
    // Type, id, flags, deadline, pattern, number of headers.
    let head = [&[1, id, 0, 0, length], pattern.as_bytes(), &[0]].concat();
    native_frame(&head, ASK)
}

fn native_reply(id: u8) -> Vec<u8> {
    // Type, id, the last value.
    native_frame(&[3, id, 1], ANSWER)
}

fn native_frame(head: &[u8], payload: &str) -> Vec<u8> {
    let length = u32::try_from(head.len() + payload.len()).expect("a short payload");
    [&length.to_le_bytes(), head, payload.as_bytes()].concat()
}

fn nest_request(id: u8) -> Vec<u8> {
    let pattern = Ask::PATTERN;
    nest_frame(&format!(
        r#"{{"pattern":"{pattern}","data":{ASK},"id":"{id:021x}"}}"#
    ))
}

fn nest_reply(id: u8) -> Vec<u8> {
    nest_frame(&format!(
        r#"{{"response":{ANSWER},"isDisposed":true,"id":"{id:021x}"}}"#
    ))
}

fn nest_frame(body: &str) -> Vec<u8> {
    format!("{}#{body}", body.len()).into_bytes()
}

fn batches(
    bench: Bench,
    peer: Peer,
    preface: &[u8],
    request: impl Fn(u8) -> Vec<u8>,
    reply: impl Fn(u8) -> Vec<u8>,
) -> Work {
    let Peer { address, running } = peer;
    let mut stream = bench.wait(async {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        stream.write_all(preface).await.expect("it reads");
        // The other end's is as long.
        let mut answer = vec![0; preface.len()];
        stream.read_exact(&mut answer).await.expect("it answers");
        stream
    });
    let ids = || (0..BATCH).filter_map(|id| u8::try_from(id).ok());
    let sent: Vec<u8> = ids().flat_map(request).collect();
    let expected: Vec<u8> = ids().flat_map(reply).collect();
    let mut received = vec![0; expected.len()];
    Box::new(move |messages| {
        let _running = &running;
        bench.wait(async {
            for _ in 0..messages / BATCH {
                stream.write_all(&sent).await.expect("it reads");
                let answer = stream.read_exact(&mut received);
                answer.await.expect("it answers");
                assert!(received == expected, "other replies than expected");
            }
        });
    })
}

/// Client and server, one request after the other.
pub(crate) fn both_sides(bench: Bench) -> Work {
    calls(bench, "")
}

/// The same on NestJS's wire.
pub(crate) fn both_sides_nest(bench: Bench) -> Work {
    calls(bench, "?wire=nest")
}

fn calls(bench: Bench, options: &str) -> Work {
    let server = bench.serve(messages(), "tcp://127.0.0.1:0");
    let url = format!("{}{options}", server.address());
    let client = Client::connect(url);
    let client = bench.wait(client).expect("a URL that makes sense");
    requests(bench, server, client, |client| client.send(ask()))
}
