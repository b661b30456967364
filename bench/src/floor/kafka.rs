//! `rdkafka`: `FutureProducer` and `StreamConsumer`, with a topic for requests and one for replies. The settings are
//! those of low latency, as nestling has them.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use bytes::Bytes;
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    consumer::{Consumer, StreamConsumer},
    message::{Header, Headers, OwnedHeaders},
    producer::{FutureProducer, FutureRecord},
    types::RDKafkaErrorCode,
    util::Timeout,
};

use nestling::transport::Task;

use super::{Waiting, echo, host, work};
use crate::{
    caller::Caller,
    payload::Payload,
    serve::{Options, Seen, Serving},
    spec::{Spec, Wire, Workload},
};

const PARTITIONS: i32 = 3;
const PATIENCE: Duration = Duration::from_secs(10);
const NUMBER: &str = "n";

fn config(url: &str) -> Result<ClientConfig> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", host(url)?)
        .set("socket.nagle.disable", "true");
    Ok(config)
}

fn producer(url: &str) -> Result<FutureProducer> {
    let mut config = config(url)?;
    config
        .set("enable.idempotence", "true")
        .set("linger.ms", "0")
        .set("sticky.partitioning.linger.ms", "0");
    Ok(config.create()?)
}

fn consumer(url: &str, group: &str) -> Result<StreamConsumer> {
    let mut config = config(url)?;
    config
        .set("group.id", group)
        .set("enable.auto.commit", "true")
        .set("auto.commit.interval.ms", "100")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "earliest")
        .set("fetch.wait.max.ms", "50");
    Ok(config.create()?)
}

async fn make_topic(url: &str, name: &str, partitions: i32) -> Result<()> {
    let admin: AdminClient<_> = config(url)?.create()?;
    let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
    let made = admin.create_topics([&topic], &AdminOptions::new()).await?;
    for topic in made {
        match topic {
            // Another replica was first.
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((name, code)) => bail!("make topic {name}: {code}"),
        }
    }
    Ok(())
}

pub(super) async fn serve(options: &Options, seen: &'static Seen) -> Result<Serving> {
    make_topic(&options.url, &options.pattern, PARTITIONS).await?;
    let consumer = consumer(&options.url, &options.pattern)?;
    consumer.subscribe(&[&options.pattern])?;
    let producer = producer(&options.url)?;
    let spec = options.spec;
    let handling = work(async move {
        loop {
            let record = consumer.recv().await?;
            let payload = record.payload().context("a record has a value")?;
            match spec.workload {
                Workload::Event => seen.note(&Payload::decode(spec.codec.codec(), payload)?)?,
                Workload::Request | Workload::Yield | Workload::Stream => {
                    answer(&spec, &producer, &record)?
                }
            }
            consumer.store_offset_from_message(&record)?;
        }
    });
    Ok((options.url.clone(), Box::new(handling)))
}

/// Queues the replies to a record.
fn answer<M: Message>(spec: &Spec, producer: &FutureProducer, record: &M) -> Result<()> {
    let headers = record.headers().context("a request has headers")?;
    let header = |name: &str| -> Result<&[u8]> {
        let found = headers.iter().find(|header| header.key == name);
        found
            .and_then(|header| header.value)
            .with_context(|| format!("no header {name}"))
    };
    let payload = record.payload().context("a record has a value")?;
    let (number, topic, partition) = match spec.wire {
        Wire::Native => (NUMBER, "to", "partition"),
        Wire::Nest => (
            "kafka_correlationId",
            "kafka_replyTopic",
            "kafka_replyPartition",
        ),
    };
    let topic = std::str::from_utf8(header(topic)?)?;
    let partition: i32 = std::str::from_utf8(header(partition)?)?.parse()?;
    for _ in 0..spec.values() {
        let mut out = OwnedHeaders::new().insert(Header {
            key: number,
            value: Some(header(number)?),
        });
        if spec.wire == Wire::Nest {
            out = out.insert(Header {
                key: "kafka_nest-is-disposed",
                value: Some("\u{1}"),
            });
        }
        let bytes = echo(spec.codec, payload)?;
        let reply = FutureRecord::<(), _>::to(topic)
            .partition(partition)
            .payload(&bytes)
            .headers(out);
        if let Err((error, _)) = producer.send_result(reply) {
            bail!("send a reply: {error}");
        }
    }
    Ok(())
}

pub(super) async fn connect(spec: &Spec, url: &str, pattern: &str) -> Result<Box<dyn Caller>> {
    let replies = format!("{pattern}.{:016x}", fastrand::u64(..));
    let waiting = Arc::new(Waiting::default());
    let mut reading = None;
    if spec.workload != Workload::Event {
        make_topic(url, &replies, 1).await?;
        let consumer = consumer(url, &replies)?;
        let mut partition = TopicPartitionList::new();
        partition.add_partition_offset(&replies, 0, Offset::Beginning)?;
        consumer.assign(&partition)?;
        let answered = Arc::clone(&waiting);
        let task = work(async move {
            loop {
                let record = consumer.recv().await?;
                let headers = record.headers().context("a reply has headers")?;
                let number = headers.iter().find(|header| header.key == NUMBER);
                let number = number.and_then(|header| header.value?.first_chunk());
                let number = u64::from_be_bytes(*number.context("a reply has a number")?);
                let payload = record.payload().context("a reply has a value")?;
                answered.answer(number, Bytes::copy_from_slice(payload));
            }
        });
        reading = Some(task);
    }
    Ok(Box::new(Kafka {
        producer: producer(url)?,
        waiting,
        replies,
        spec: *spec,
        topic: pattern.to_owned(),
        _reading: reading,
    }))
}

struct Kafka {
    producer: FutureProducer,
    waiting: Arc<Waiting>,
    replies: String,
    spec: Spec,
    topic: String,
    _reading: Option<Task>,
}

#[async_trait]
impl Caller for Kafka {
    async fn act(&self, payload: &Payload) -> Result<u32> {
        let codec = self.spec.codec.codec();
        if self.spec.workload == Workload::Event {
            let bytes = payload.again()?.encode(codec)?;
            let record = FutureRecord::<(), _>::to(&self.topic).payload(&bytes);
            self.send(record).await?;
            return Ok(1);
        }
        let bytes = payload.encode(codec)?;
        let call = self.waiting.open(&self.spec);
        let number = call.0.to_be_bytes();
        let headers = [
            (NUMBER, &number[..]),
            ("to", self.replies.as_bytes()),
            ("partition", b"0"),
        ];
        let headers = headers
            .into_iter()
            .fold(OwnedHeaders::new(), |all, (key, value)| {
                all.insert(Header {
                    key,
                    value: Some(value),
                })
            });
        let record = FutureRecord::<(), _>::to(&self.topic)
            .payload(&bytes)
            .headers(headers);
        self.send(record).await?;
        self.waiting.finish(call, &self.spec, payload).await
    }
}

impl Kafka {
    async fn send(&self, record: FutureRecord<'_, (), Vec<u8>>) -> Result<()> {
        let sent = self.producer.send(record, Timeout::After(PATIENCE)).await;
        sent.map_err(|(error, _)| error).context("send a record")?;
        Ok(())
    }
}
