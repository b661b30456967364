//! TCP with `LengthDelimitedCodec`: a frame is a number of eight bytes and a payload. Frames that are ready leave in one
//! write.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use tokio::{
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    task::JoinSet,
};
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};

use nestling::transport::Task;

use super::{Waiting, echo, host, work};
use crate::{
    caller::Caller,
    payload::Payload,
    serve::{Options, Serving},
    spec::Spec,
};

/// How many frames are read, or written, before the others get their turn.
const ROUND: usize = 256;
const NUMBER: usize = size_of::<u64>();

type Reading = FramedRead<OwnedReadHalf, LengthDelimitedCodec>;
type Writing = FramedWrite<OwnedWriteHalf, LengthDelimitedCodec>;

fn framed(stream: TcpStream) -> Result<(Writing, Reading)> {
    stream.set_nodelay(true)?;
    let mut codec = LengthDelimitedCodec::builder();
    let codec = codec.max_frame_length(32 << 20);
    let (read, write) = stream.into_split();
    let mut writing = codec.new_write(write);
    writing.set_backpressure_boundary(64 << 10);
    Ok((writing, codec.new_read(read)))
}

pub(super) async fn serve(options: &Options) -> Result<Serving> {
    let listener = TcpListener::bind(host(&options.url)?).await?;
    let url = format!("tcp://{}", listener.local_addr()?);
    let spec = options.spec;
    let accepting = work(async move {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let (stream, _) = accepted?;
                    connections.spawn(answer(stream, spec));
                }
                Some(ended) = connections.join_next() => ended??,
            }
        }
    });
    Ok((url, Box::new(accepting)))
}

async fn answer(stream: TcpStream, spec: Spec) -> Result<()> {
    let (mut sink, stream) = framed(stream)?;
    let mut rounds = stream.ready_chunks(ROUND);
    while let Some(round) = rounds.next().await {
        for frame in round {
            let mut frame = frame?;
            if frame.len() < NUMBER {
                bail!("a frame has no number");
            }
            let number = frame.get_u64();
            for _ in 0..spec.values() {
                sink.feed(numbered(number, &echo(spec.codec, &frame)?))
                    .await?;
            }
        }
        SinkExt::<Bytes>::flush(&mut sink).await?;
    }
    Ok(())
}

fn numbered(number: u64, payload: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(NUMBER + payload.len());
    frame.put_u64(number);
    frame.put_slice(payload);
    frame.freeze()
}

pub(super) async fn connect(spec: &Spec, url: &str) -> Result<Box<dyn Caller>> {
    let (mut sink, mut stream) = framed(TcpStream::connect(host(url)?).await?)?;
    let (frames, mut outgoing) = mpsc::channel::<Bytes>(ROUND);
    let writing = work(async move {
        let mut round = Vec::with_capacity(ROUND);
        while outgoing.recv_many(&mut round, ROUND).await > 0 {
            for frame in round.drain(..) {
                sink.feed(frame).await?;
            }
            SinkExt::<Bytes>::flush(&mut sink).await?;
        }
        Ok(())
    });
    let waiting = Arc::new(Waiting::default());
    let answered = Arc::clone(&waiting);
    let reading = work(async move {
        while let Some(frame) = stream.next().await {
            let mut frame = frame?;
            if frame.len() < NUMBER {
                bail!("a frame has no number");
            }
            let number = frame.get_u64();
            answered.answer(number, frame.freeze());
        }
        Ok(())
    });
    Ok(Box::new(Tcp {
        frames,
        waiting,
        spec: *spec,
        _tasks: (writing, reading),
    }))
}

struct Tcp {
    frames: mpsc::Sender<Bytes>,
    waiting: Arc<Waiting>,
    spec: Spec,
    _tasks: (Task, Task),
}

#[async_trait]
impl Caller for Tcp {
    async fn act(&self, payload: &Payload) -> Result<u32> {
        let bytes = payload.encode(self.spec.codec.codec())?;
        let call = self.waiting.open(&self.spec);
        let frame = numbered(call.0, &bytes);
        self.frames
            .send(frame)
            .await
            .context("the connection was lost")?;
        self.waiting.finish(call, &self.spec, payload).await
    }
}
