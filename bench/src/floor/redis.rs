//! The `redis` crate: requests and events through streams with a consumer group, replies through a list; and NestJS's
//! channels.

use std::sync::Arc;

use anyhow::{Context, Result};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use redis::{
    AsyncConnectionConfig, Client, Pipeline, RedisError, Value,
    aio::MultiplexedConnection,
    from_redis_value,
    streams::{StreamId, StreamReadReply},
};
use tokio::sync::mpsc;

use nestling::transport::Task;

use super::{Waiting, answer_packet, echo, work};
use crate::{
    caller::Caller,
    payload::Payload,
    serve::{Options, Seen, Serving},
    spec::{Spec, Workload},
};

const GROUP: &str = "bench";
/// How many entries or replies one read takes.
const ROUND: usize = 256;
const BLOCK_MILLIS: usize = 1000;

async fn open(url: &str) -> Result<MultiplexedConnection> {
    // A read that blocks takes longer than the default allows.
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    let client = Client::open(url)?;
    client
        .get_multiplexed_async_connection_with_config(&config)
        .await
        .context("connect to Redis")
}

pub(super) async fn serve(options: &Options, seen: &'static Seen) -> Result<Serving> {
    let (mut reads, mut writes) = (open(&options.url).await?, open(&options.url).await?);
    let stream = options.pattern.clone();
    let mut group = redis::cmd("XGROUP");
    group
        .arg("CREATE")
        .arg(&stream)
        .arg(GROUP)
        .arg("$")
        .arg("MKSTREAM");
    match group.query_async::<()>(&mut writes).await {
        // Another replica was first.
        Err(error) if error.code() == Some("BUSYGROUP") => {}
        made => made?,
    }
    let spec = options.spec;
    // Reading and writing beside each other: a round is handled while the next is fetched.
    let (rounds, mut read) = mpsc::channel::<Vec<StreamId>>(4);
    let name = stream.clone();
    let reading = work(async move {
        loop {
            let mut command = redis::cmd("XREADGROUP");
            command
                .arg("GROUP")
                .arg(GROUP)
                .arg(std::process::id())
                .arg("COUNT")
                .arg(ROUND);
            command
                .arg("BLOCK")
                .arg(BLOCK_MILLIS)
                .arg("STREAMS")
                .arg(&name)
                .arg(">");
            let reply: Option<StreamReadReply> = command.query_async(&mut reads).await?;
            for stream in reply.into_iter().flat_map(|reply| reply.keys) {
                rounds.send(stream.ids).await?;
            }
        }
    });
    let handling = work(async move {
        while let Some(round) = read.recv().await {
            let mut pipeline = redis::pipe();
            handle(&spec, seen, &stream, &round, &mut pipeline)?;
            pipeline.query_async::<()>(&mut writes).await?;
        }
        Ok(())
    });
    Ok((options.url.clone(), Box::new((reading, handling))))
}

fn handle(
    spec: &Spec,
    seen: &Seen,
    stream: &str,
    round: &[StreamId],
    pipeline: &mut Pipeline,
) -> Result<()> {
    for entry in round {
        let field = |name: &str| entry.get::<Vec<u8>>(name).context("a field is missing");
        let payload = field("p")?;
        if spec.workload == Workload::Event {
            seen.note(&Payload::decode(spec.codec.codec(), &payload)?)?;
            continue;
        }
        let (to, number) = (field("to")?, field("n")?);
        for _ in 0..spec.values() {
            let mut reply = number.clone();
            reply.extend(echo(spec.codec, &payload)?);
            pipeline.cmd("RPUSH").arg(&to).arg(reply).ignore();
        }
        pipeline.cmd("PEXPIRE").arg(&to).arg(60_000).ignore();
    }
    let ids: Vec<_> = round.iter().map(|entry| entry.id.as_str()).collect();
    pipeline
        .cmd("XACK")
        .arg(stream)
        .arg(GROUP)
        .arg(&ids)
        .ignore();
    pipeline.cmd("XDEL").arg(stream).arg(&ids).ignore();
    Ok(())
}

pub(super) async fn serve_channels(options: &Options) -> Result<Serving> {
    let client = Client::open(options.url.as_str())?;
    let mut writes = open(&options.url).await?;
    let mut subscriber = client.get_async_pubsub().await?;
    subscriber.subscribe(&options.pattern).await?;
    let to = format!("{}.reply", options.pattern);
    let answering = work(async move {
        let mut rounds = subscriber.into_on_message().ready_chunks(ROUND);
        while let Some(round) = rounds.next().await {
            let mut pipeline = redis::pipe();
            for message in round {
                let mut packet = Vec::new();
                answer_packet(message.get_payload_bytes(), &mut packet)?;
                pipeline.cmd("PUBLISH").arg(&to).arg(packet).ignore();
            }
            pipeline.query_async::<()>(&mut writes).await?;
        }
        Ok(())
    });
    Ok((options.url.clone(), Box::new(answering)))
}

pub(super) async fn connect(spec: &Spec, url: &str, pattern: &str) -> Result<Box<dyn Caller>> {
    let replies = format!("{pattern}.{:016x}", fastrand::u64(..));
    let mut blocking = open(url).await?;
    let waiting = Arc::new(Waiting::default());
    let (answered, list) = (Arc::clone(&waiting), replies.clone());
    let reading = work(async move {
        loop {
            let mut command = redis::cmd("BLMPOP");
            command
                .arg(1)
                .arg(1)
                .arg(&list)
                .arg("LEFT")
                .arg("COUNT")
                .arg(ROUND);
            let popped: Option<(Value, Vec<Value>)> = command.query_async(&mut blocking).await?;
            for reply in popped.into_iter().flat_map(|(_, replies)| replies) {
                let bytes: Vec<u8> = from_redis_value(reply).map_err(RedisError::from)?;
                let bytes = Bytes::from(bytes);
                let number = bytes.first_chunk().context("a reply has a number")?;
                answered.answer(u64::from_be_bytes(*number), bytes.slice(size_of::<u64>()..));
            }
        }
    });
    Ok(Box::new(Redis {
        connection: open(url).await?,
        waiting,
        replies,
        spec: *spec,
        stream: pattern.to_owned(),
        _reading: reading,
    }))
}

struct Redis {
    connection: MultiplexedConnection,
    waiting: Arc<Waiting>,
    replies: String,
    spec: Spec,
    stream: String,
    _reading: Task,
}

#[async_trait]
impl Caller for Redis {
    async fn act(&self, payload: &Payload) -> Result<u32> {
        let codec = self.spec.codec.codec();
        let mut add = redis::cmd("XADD");
        add.arg(&self.stream).arg("*");
        let mut connection = self.connection.clone();
        if self.spec.workload == Workload::Event {
            add.arg("p").arg(payload.again()?.encode(codec)?);
            add.query_async::<()>(&mut connection).await?;
            return Ok(1);
        }
        let call = self.waiting.open(&self.spec);
        add.arg("p").arg(payload.encode(codec)?);
        add.arg("to").arg(&self.replies);
        add.arg("n").arg(&call.0.to_be_bytes());
        add.query_async::<()>(&mut connection).await?;
        self.waiting.finish(call, &self.spec, payload).await
    }
}
