//! NestJS's TCP frames, `length#json`: a task for each connection, which answers all that one read brought in one
//! write.

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::{answer_packet, host, work};
use crate::serve::{Options, Serving};

pub(super) async fn serve(options: &Options) -> Result<Serving> {
    let listener = TcpListener::bind(host(&options.url)?).await?;
    let url = format!("tcp://{}", listener.local_addr()?);
    let accepting = work(async move {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let (stream, _) = accepted?;
                    connections.spawn(answer(stream));
                }
                Some(ended) = connections.join_next() => ended??,
            }
        }
    });
    Ok((url, Box::new(accepting)))
}

async fn answer(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let (mut read, mut start) = (Vec::with_capacity(64 << 10), 0);
    let (mut out, mut packet) = (Vec::new(), Vec::new());
    while stream.read_buf(&mut read).await? > 0 {
        while let Some((begin, end)) = frame(&read[start..])? {
            packet.clear();
            answer_packet(&read[start + begin..start + end], &mut packet)?;
            out.extend_from_slice(packet.len().to_string().as_bytes());
            out.push(b'#');
            out.extend_from_slice(&packet);
            start += end;
        }
        read.drain(..start);
        start = 0;
        stream.write_all(&out).await?;
        out.clear();
    }
    Ok(())
}

/// Where the first frame's JSON begins and ends, if all of it is there. The payloads of this comparison are ASCII, so
/// that their length in UTF-16 is that in bytes.
fn frame(bytes: &[u8]) -> Result<Option<(usize, usize)>> {
    let Some(hash) = bytes.iter().position(|byte| *byte == b'#') else {
        return Ok(None);
    };
    let length: usize = std::str::from_utf8(&bytes[..hash])?
        .parse()
        .context("a frame begins with its length")?;
    let end = hash + 1 + length;
    Ok((bytes.len() >= end).then_some((hash + 1, end)))
}
