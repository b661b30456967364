//! The sending side of NestJS's wire.
//!
//! NestJS clients have their reply partitions from a consumer group whose assignment they compute
//! themselves. Joining it would need that assignor, which the library has no place for, and gain
//! nothing: a partition that is assigned by hand is read beside the group, whose members pass over
//! ids that are not theirs, as this client does.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use bytes::Bytes;
use rdkafka::message::{BorrowedMessage, Message as _};
use tokio::sync::OnceCell;

use crate::{
    envelope::Envelope,
    pattern,
    transport::{
        Capabilities, ClientTransport, Error, Expect, Pending, Replies, Wire,
        kafka::{
            CAPABILITIES, NAME,
            reader::Reader,
            record::{self, Incoming, ReplyAddress},
            sender::{Sender, deadline, within},
            topics,
        },
        nest::CallIds,
        pending::lock,
    },
};

/// A client of NestJS services.
pub(in super::super) struct NestClient {
    sender: Sender,
    /// Made with the first request.
    reader: OnceCell<Reader>,
    /// The partitions in which replies are read, by the topics of requests.
    partitions: Mutex<HashMap<String, Arc<OnceCell<ReplyTopic>>>>,
    ids: Arc<CallIds>,
}

/// Where the replies to one pattern are read.
struct ReplyTopic {
    name: String,
    partition: i32,
}

#[async_trait]
impl ClientTransport for NestClient {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    fn wire(&self) -> Wire {
        Wire::NestText
    }

    async fn request(&self, envelope: Envelope, expect: Expect) -> Result<Replies, Error> {
        record::check_size(&envelope)?;
        let topic = pattern::route(envelope.pattern.clone());
        topics::check(&topic)?;
        let deadline = deadline(&envelope);
        self.sender.expect_topic(&topic, deadline).await?;
        let replies_by = self.replies_by(&topic);
        let reply_topic = match replies_by.get() {
            Some(reply_topic) => reply_topic,
            None => {
                let reading = replies_by.get_or_try_init(|| self.read_replies(&topic));
                within(deadline, reading).await?
            }
        };
        let (call, replies) = self.sender.pending.register(expect);
        let address = ReplyAddress {
            wire: Wire::NestText,
            topic: reply_topic.name.as_str().into(),
            partition: Some(reply_topic.partition),
            correlation: Bytes::copy_from_slice(self.ids.text(call).as_bytes()),
        };
        let request = super::request(&envelope, &address);
        self.sender
            .send(call, &topic, &envelope, request, deadline)
            .await?;
        Ok(replies)
    }

    async fn publish(&self, envelope: Envelope) -> Result<(), Error> {
        record::check_size(&envelope)?;
        let topic = pattern::route(envelope.pattern.clone());
        topics::check(&topic)?;
        let records = vec![(topic.to_string(), super::event(&envelope))];
        self.sender.events.publish(&envelope, records).await
    }

    async fn close(&self) {
        self.sender.close().await;
    }
}

impl NestClient {
    pub(in super::super) fn new(sender: Sender) -> Self {
        Self {
            sender,
            reader: OnceCell::new(),
            partitions: Mutex::default(),
            ids: Arc::new(CallIds::new()),
        }
    }

    fn replies_by(&self, topic: &str) -> Arc<OnceCell<ReplyTopic>> {
        let mut partitions = lock(&self.partitions);
        if let Some(known) = partitions.get(topic) {
            return Arc::clone(known);
        }
        let new = Arc::default();
        partitions.insert(topic.to_owned(), Arc::clone(&new));
        new
    }

    /// Done before the first request of a pattern is sent.
    async fn read_replies(&self, topic: &str) -> Result<ReplyTopic, Error> {
        let name = topics::nest_replies(topic)?;
        let reader = self
            .reader
            .get_or_try_init(|| async { self.open_reader() })
            .await?;
        let partition = self.sender.read_replies(reader, &name).await?;
        Ok(ReplyTopic { name, partition })
    }

    fn open_reader(&self) -> Result<Reader, Error> {
        let (pending, ids) = (Arc::clone(&self.sender.pending), Arc::clone(&self.ids));
        let each = move |message: &BorrowedMessage<'_>| complete(message, &pending, &ids);
        let name = format!("{}.replies", self.sender.identity.service);
        Reader::open(&self.sender.settings, &name, each)
    }
}

/// Hands a reply to its caller. Others read this partition too, and callers give up.
fn complete(message: &BorrowedMessage<'_>, pending: &Pending, ids: &CallIds) {
    let record = match Incoming::read(message) {
        Ok(Incoming::Nest(record)) => record,
        other => return tracing::debug!(?other, "a record is not a reply"),
    };
    if let Some(call) = record.call(ids) {
        pending.complete(call, record.item(message.payload()));
    }
}
