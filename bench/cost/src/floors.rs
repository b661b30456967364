//! What serde_json alone costs for the same payloads, and with tokio on the same wire: nothing that uses
//! them can be cheaper.

use std::{hint::black_box, io};

use bytes::{Buf, BytesMut};
use nestling::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::{Answer, Ask, Bench, CENTS, ORDER, Placed, Work, answer, ask, events, tcp::Peer};

/// An event, read.
pub(crate) fn event(_: Bench) -> Work {
    Box::new(|messages| {
        for _ in 0..messages {
            let event = serde_json::from_slice::<Placed>(black_box(events::JSON.as_bytes()));
            let event = event.expect("it is one");
            assert_eq!((event.order, event.cents), (ORDER, CENTS));
        }
    })
}

/// A request and its reply, each written and read.
pub(crate) fn request(_: Bench) -> Work {
    Box::new(|messages| {
        for _ in 0..messages {
            let request = serde_json::to_vec(&black_box(ask())).expect("it is plain");
            let read: Ask = serde_json::from_slice(&black_box(request)).expect("it is one");
            let reply = serde_json::to_vec(&answer(read.order, read.cents)).expect("it is plain");
            let read: Answer = serde_json::from_slice(&black_box(reply)).expect("it is one");
            assert_eq!(read, answer(ORDER, CENTS));
        }
    })
}

/// A task that reads requests, decodes and answers them, and writes all replies of a read at once.
pub(crate) fn tcp_server(bench: &Bench) -> Peer {
    let listener = bench.wait(TcpListener::bind("127.0.0.1:0"));
    let listener = listener.expect("a free port, at most");
    let address = listener.local_addr().expect("it is bound").to_string();
    let running = bench.runtime.spawn(async move {
        let (stream, _) = listener.accept().await?;
        tcp_connection(stream).await
    });
    Peer {
        address,
        running: Box::new(running),
    }
}

async fn tcp_connection(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut preface = [0; 9];
    stream.read_exact(&mut preface).await?;
    stream.write_all(&preface).await?;
    let (mut input, mut output) = (BytesMut::new(), Vec::new());
    loop {
        // Where there is room already, or nothing is left to be read, that costs next to nothing.
        input.reserve(8 << 10);
        if stream.read_buf(&mut input).await? == 0 {
            return Ok(());
        }
        while let Some((length, rest)) = input.split_first_chunk() {
            let length = u32::from_le_bytes(*length) as usize;
            let Some(frame) = rest.get(..length) else {
                break;
            };
            tcp_reply(frame, &mut output)?;
            input.advance(4 + length);
        }
        stream.write_all(&output).await?;
        output.clear();
    }
}

/// Type, id, flags, deadline, pattern, number of headers, payload.
fn tcp_reply(frame: &[u8], output: &mut Vec<u8>) -> io::Result<()> {
    let bad = || io::Error::from(io::ErrorKind::InvalidData);
    let [1, id, 0, 0, length, rest @ ..] = frame else {
        return Err(bad());
    };
    let (pattern, rest) = rest
        .split_at_checked(usize::from(*length))
        .ok_or_else(bad)?;
    let ([0, payload @ ..], true) = (rest, pattern == Ask::PATTERN.as_bytes()) else {
        return Err(bad());
    };
    let ask: Ask = serde_json::from_slice(payload)?;
    let start = output.len();
    output.extend_from_slice(&[0, 0, 0, 0, 3, *id, 1]);
    serde_json::to_writer(&mut *output, &answer(ask.order, ask.cents))?;
    let length = u32::try_from(output.len() - start - 4).map_err(|_| bad())?;
    output[start..start + 4].copy_from_slice(&length.to_le_bytes());
    Ok(())
}
