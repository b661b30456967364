//! `async-nats`: requests to a queue group, events through a subscription, and through JetStream with a durable pull
//! consumer.

use anyhow::{Context, Result, ensure};
use async_nats::{
    Client,
    jetstream::{self, consumer::pull, stream},
};
use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt};

use super::{answer_packet, check, echo, host, work};
use crate::{
    caller::Caller,
    payload::Payload,
    serve::{Options, Seen, Serving},
    spec::{Spec, Transport, Wire, Workload},
};

/// How many events may wait for their handler; what is beyond it the library would drop.
const WAITING: usize = 1 << 20;

async fn open(url: &str) -> Result<Client> {
    async_nats::ConnectOptions::new()
        .subscription_capacity(WAITING)
        .connect(host(url)?)
        .await
        .context("connect to NATS")
}

pub(super) async fn serve(options: &Options, seen: &'static Seen) -> Result<Serving> {
    let client = open(&options.url).await?;
    let group = "bench".to_owned();
    let mut messages = client
        .queue_subscribe(options.pattern.clone(), group)
        .await?;
    client.flush().await?;
    let spec = options.spec;
    let answering = work(async move {
        while let Some(message) = messages.next().await {
            if spec.workload == Workload::Event {
                seen.note(&Payload::decode(spec.codec.codec(), &message.payload)?)?;
                continue;
            }
            let to = message.reply.context("a request has a reply subject")?;
            for _ in 0..spec.values() {
                let bytes = match spec.wire {
                    Wire::Native => echo(spec.codec, &message.payload)?,
                    Wire::Nest => {
                        let mut packet = Vec::new();
                        answer_packet(&message.payload, &mut packet)?;
                        packet
                    }
                };
                client.publish(to.clone(), bytes.into()).await?;
            }
        }
        Ok(())
    });
    Ok((options.url.clone(), Box::new(answering)))
}

pub(super) async fn serve_durable(options: &Options, seen: &'static Seen) -> Result<Serving> {
    let context = jetstream::new(open(&options.url).await?);
    let stream = context
        .create_stream(stream::Config {
            name: options.pattern.replace('.', "-"),
            subjects: vec![options.pattern.clone()],
            ..stream::Config::default()
        })
        .await?;
    let consumer = stream
        .create_consumer(pull::Config {
            durable_name: Some("bench".to_owned()),
            max_ack_pending: 4096,
            ..pull::Config::default()
        })
        .await?;
    let mut messages = consumer.messages().await?;
    let codec = options.spec.codec.codec();
    let handling = work(async move {
        while let Some(message) = messages.try_next().await? {
            seen.note(&Payload::decode(codec, &message.payload)?)?;
            message.ack().await.map_err(anyhow::Error::from_boxed)?;
        }
        Ok(())
    });
    Ok((options.url.clone(), Box::new(handling)))
}

pub(super) async fn connect(spec: &Spec, url: &str, pattern: &str) -> Result<Box<dyn Caller>> {
    let client = open(url).await?;
    Ok(Box::new(Nats {
        context: jetstream::new(client.clone()),
        client,
        spec: *spec,
        subject: pattern.to_owned(),
    }))
}

struct Nats {
    client: Client,
    context: jetstream::Context,
    spec: Spec,
    subject: String,
}

#[async_trait]
impl Caller for Nats {
    async fn act(&self, payload: &Payload) -> Result<u32> {
        let subject = self.subject.clone();
        let codec = self.spec.codec.codec();
        match (self.spec.workload, self.spec.transport) {
            (Workload::Event, Transport::Jetstream) => {
                let bytes = payload.again()?.encode(codec)?;
                let published = self.context.publish(subject, bytes.into()).await?;
                published.await?;
                Ok(1)
            }
            (Workload::Event, _) => {
                let bytes = payload.again()?.encode(codec)?;
                self.client.publish(subject, bytes.into()).await?;
                // As the framework does: who is told that it was sent knows that it has left.
                self.client.flush().await?;
                Ok(1)
            }
            (Workload::Request | Workload::Yield, _) => {
                let bytes = payload.encode(codec)?;
                let reply = self.client.request(subject, bytes.into()).await?;
                check(&self.spec, payload, &reply.payload)?;
                Ok(1)
            }
            (Workload::Stream, _) => self.stream(payload).await,
        }
    }
}

impl Nats {
    async fn stream(&self, payload: &Payload) -> Result<u32> {
        let inbox = self.client.new_inbox();
        let mut replies = self.client.subscribe(inbox.clone()).await?;
        let bytes = payload.encode(self.spec.codec.codec())?;
        self.client
            .publish_with_reply(self.subject.clone(), inbox, bytes.into())
            .await?;
        let mut count = 0;
        while count < self.spec.values() {
            let reply = replies.next().await.context("the connection was lost")?;
            check(&self.spec, payload, &reply.payload)?;
            count += 1;
        }
        replies.unsubscribe().await?;
        ensure!(count == self.spec.values(), "{count} values");
        Ok(count)
    }
}
