//! The sending side of the native wire.

use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use rdkafka::message::BorrowedMessage;
use tokio::sync::OnceCell;

use super::{
    CAPABILITIES, NAME, Settings,
    nest::NestClient,
    reader::Reader,
    record::{self, Incoming, ReplyAddress},
    sender::{Sender, deadline, within},
    topics::{self, EventTopics},
};
use crate::{
    envelope::Envelope,
    transport::{
        Address, Capabilities, ClientIdentity, ClientTransport, Error, Expect, Pending, Replies,
        Wire,
    },
};

pub(super) async fn open(
    address: Address,
    identity: ClientIdentity,
) -> Result<Arc<dyn ClientTransport>, Error> {
    let settings = Settings::of_client(&address)?;
    let wire = settings.wire;
    let sender = Sender::open(settings, identity).await?;
    if wire == Some(Wire::NestText) {
        return Ok(Arc::new(NestClient::new(sender)));
    }
    Ok(Arc::new(KafkaClient {
        sender,
        replies: RwLock::default(),
        prefix: format!("{:016x}-", fastrand::u64(..)),
    }))
}

struct KafkaClient {
    sender: Sender,
    /// Made with the first request, and again when the broker has lost the topic.
    replies: RwLock<Arc<OnceCell<ReplyReader>>>,
    /// What tells this client's calls from those of others that share its reply partition.
    prefix: String,
}

/// Where replies are read.
struct ReplyReader {
    topic: String,
    partition: i32,
    reader: Reader,
}

#[async_trait]
impl ClientTransport for KafkaClient {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    async fn request(&self, envelope: Envelope, expect: Expect) -> Result<Replies, Error> {
        record::check_size(&envelope)?;
        let topic = &*envelope.pattern;
        topics::check(topic)?;
        let deadline = deadline(&envelope);
        let replies = self.replies();
        let reader = match replies.get() {
            Some(reader) => reader,
            None => {
                let reading = replies.get_or_try_init(|| self.read_replies());
                within(deadline, reading).await?
            }
        };
        self.sender.expect_topic(topic, deadline).await?;
        let (call, replies) = self.sender.pending.register(expect);
        let address = ReplyAddress {
            wire: Wire::Native,
            topic: reader.topic.as_str().into(),
            partition: Some(reader.partition),
            correlation: format!("{}{call}", self.prefix).into(),
        };
        let request = record::request(&envelope, &address);
        self.sender
            .send(call, topic, &envelope, request, deadline)
            .await?;
        Ok(replies)
    }

    async fn publish(&self, envelope: Envelope) -> Result<(), Error> {
        record::check_size(&envelope)?;
        let pattern = &*envelope.pattern;
        let event_topics = self.sender.settings.event_topics;
        let mut records = vec![(event_topics.topic(pattern)?, record::event(&envelope))];
        if event_topics == EventTopics::Both {
            topics::check(pattern)?;
            records.push((pattern.to_owned(), record::copy(&envelope)));
        }
        self.sender.events.publish(&envelope, records).await
    }

    async fn close(&self) {
        self.sender.close().await;
    }
}

impl KafkaClient {
    /// Where replies are read now, or will be.
    fn replies(&self) -> Arc<OnceCell<ReplyReader>> {
        let is_lost = |replies: &OnceCell<ReplyReader>| {
            replies
                .get()
                .is_some_and(|replies| replies.reader.is_lost())
        };
        let replies = Arc::clone(&self.replies.read().unwrap_or_else(PoisonError::into_inner));
        if !is_lost(&replies) {
            return replies;
        }
        let mut current = self.replies.write().unwrap_or_else(PoisonError::into_inner);
        if is_lost(&current) {
            tracing::error!("Kafka has lost the topic of replies; it is made again");
            *current = Arc::default();
        }
        Arc::clone(&current)
    }

    /// Done before any request is sent.
    async fn read_replies(&self) -> Result<ReplyReader, Error> {
        let topic = topics::replies(&self.sender.identity.service)?;
        let (pending, prefix) = (Arc::clone(&self.sender.pending), self.prefix.clone());
        let each = move |message: &BorrowedMessage<'_>| complete(message, &pending, &prefix);
        // It connects while the topic is looked up.
        let reader = Reader::open(&self.sender.settings, &topic, each)?;
        let partition = self.sender.read_replies(&reader, &topic).await?;
        Ok(ReplyReader {
            topic,
            partition,
            reader,
        })
    }
}

/// Hands a reply to its caller. Others read this partition too, and callers give up.
fn complete(message: &BorrowedMessage<'_>, pending: &Pending, prefix: &str) {
    let record = match Incoming::read(message) {
        Ok(Incoming::Native(record)) => record,
        other => return tracing::debug!(?other, "a record is not a reply"),
    };
    let Some(call) = record.call(prefix) else {
        return;
    };
    if let Some(item) = record.reply(record::payload(message)) {
        pending.complete(call, item);
    }
}
