//! From a record to a delivery, and from its outcome to a reply.

use std::{
    sync::Arc,
    task::{self, Poll},
    time::Duration,
};

use bytes::Bytes;
use bytestring::ByteString;
use rdkafka::message::{BorrowedMessage, Message as _};
use tokio::time::Instant;

use super::{
    carries::{Native, Nest},
    clock::waited,
    group::Group,
    nest,
    partition::Partition,
    record::{self, Foreign, Incoming, Record, ReplyAddress},
};
use crate::{
    envelope::{Envelope, header},
    error::RpcError,
    transport::{self, Delivery, Gone, Item, Kind, Outcome, Responder},
};

/// Makes a delivery of a record; `None` when there is nothing to do for it.
pub(super) fn deliver(
    group: &Arc<Group>,
    partition: &Arc<Partition>,
    message: &BorrowedMessage<'_>,
    attempt: u32,
) -> Option<Delivery> {
    let received = Received {
        group,
        partition,
        message,
    };
    let delivery = match Incoming::read(message) {
        Ok(Incoming::Native(record)) => Ok(received.native(record)),
        Ok(Incoming::Nest(record)) => received.nest(record),
        Err(foreign) => Err(foreign),
    };
    match delivery {
        Ok(delivery) => delivery.map(|mut delivery| {
            delivery.attempt = attempt;
            delivery
        }),
        Err(foreign) => {
            group.skip(&partition.topic, message.offset(), foreign);
            None
        }
    }
}

struct Received<'a> {
    group: &'a Arc<Group>,
    partition: &'a Arc<Partition>,
    message: &'a BorrowedMessage<'a>,
}

impl Received<'_> {
    fn native(&self, mut record: Record) -> Option<Delivery> {
        let pattern = match &self.partition.carries.native {
            Native::Requests { pattern, .. } => return self.request(pattern, record),
            Native::Copies => return None,
            Native::Event { pattern } => pattern,
            Native::Events { patterns } => {
                let pattern = record.pattern.as_ref()?;
                patterns.iter().find(|known| *known == pattern)?
            }
        };
        let key = record::key(self.message);
        if let Some(key) = &key {
            record.headers.set(header::KEY, key.clone());
        }
        let envelope = Envelope {
            pattern: pattern.clone(),
            headers: record.headers,
            payload: record::payload(self.message),
            deadline: None,
        };
        Some(self.event(envelope, key))
    }

    fn request(&self, pattern: &ByteString, mut record: Record) -> Option<Delivery> {
        let reply_to = record.reply_address();
        let mut envelope = Envelope {
            pattern: pattern.clone(),
            headers: record.headers,
            payload: record::payload(self.message),
            deadline: None,
        };
        if let Some(remaining) = record.remaining {
            envelope.deadline = Some(self.deadline(pattern, remaining)?);
        }
        Some(self.message(envelope, reply_to))
    }

    /// What a NestJS application sent: whether it is answered is decided by the handler first, and
    /// then by the record.
    fn nest(&self, mut record: nest::Record) -> Result<Option<Delivery>, Foreign> {
        let carries = &self.partition.carries;
        let (route, is_request) = match &carries.nest {
            Nest::Off => return Err(Foreign::Nest),
            Nest::Requests(route) => (route, record.is_request()),
            Nest::Events(route) => (route, false),
            Nest::Nobody if record.is_request() => {
                if let Some(address) = record.reply_address() {
                    self.group.replies.send_no_handler(&Arc::new(address));
                }
                return Ok(None);
            }
            Nest::Nobody => return Err(Foreign::NoHandler),
        };
        let reply_to = match is_request {
            true => record.reply_address(),
            false => None,
        };
        let now = Instant::now();
        let (payload, encoding) = nest::payload(self.message.payload());
        let pattern = carries.topic.clone();
        let mut envelope = transport::nest::envelope(pattern, payload, record.headers, now);
        if let Some(encoding) = encoding {
            envelope.headers.set(header::CONTENT_TYPE, encoding);
        }
        let key = record::key(self.message);
        if let Some(key) = &key {
            envelope.headers.set(header::KEY, key.clone());
        }
        let deadline = envelope.deadline.take().filter(|_| is_request);
        if let Some(deadline) = deadline {
            let remaining = deadline.saturating_duration_since(now);
            let Some(deadline) = self.deadline(route, remaining) else {
                return Ok(None);
            };
            envelope.deadline = Some(deadline);
        }
        let mut delivery = match is_request {
            true => self.message(envelope, reply_to),
            false => self.event(envelope, key),
        };
        if *route != carries.topic {
            delivery.subscription = Some(route.clone());
        }
        Ok(Some(delivery))
    }

    /// When its caller stops waiting, of whose time so much remained when it was sent; `None` if
    /// that is over.
    fn deadline(&self, pattern: &str, remaining: Duration) -> Option<Instant> {
        let now = Instant::now();
        match remaining.checked_sub(waited(self.message, &self.group.clock, now)) {
            Some(left) if !left.is_zero() => now.checked_add(left),
            _ => {
                tracing::debug!(%pattern, "a request waited beyond its deadline");
                None
            }
        }
    }

    fn message(&self, envelope: Envelope, reply_to: Option<ReplyAddress>) -> Delivery {
        let responder = self.responder(reply_to);
        Delivery::new(Kind::Message, envelope, responder)
    }

    fn event(&self, envelope: Envelope, key: Option<ByteString>) -> Delivery {
        let mut delivery = Delivery::new(Kind::Event, envelope, self.responder(None));
        delivery.lane = key;
        delivery
    }

    fn responder(&self, reply_to: Option<ReplyAddress>) -> Box<dyn Responder> {
        Box::new(KafkaResponder {
            group: Arc::clone(self.group),
            partition: Arc::clone(self.partition),
            offset: self.message.offset(),
            reply_to: reply_to.map(Arc::new),
            ended: false,
        })
    }
}

struct KafkaResponder {
    group: Arc<Group>,
    partition: Arc<Partition>,
    offset: i64,
    reply_to: Option<Arc<ReplyAddress>>,
    /// The stream was ended early, by a value that is too large.
    ended: bool,
}

impl KafkaResponder {
    fn reply(&mut self, item: Item) {
        if let Some(address) = &self.reply_to
            && !self.ended
        {
            self.ended = !self.group.replies.send(address, item);
        }
    }
}

impl Responder for KafkaResponder {
    fn poll_ready(&mut self, cx: &mut task::Context<'_>) -> Poll<Result<(), Gone>> {
        if self.ended || self.reply_to.is_none() {
            return Poll::Ready(Err(Gone));
        }
        self.group.replies.poll_ready(cx).map(Ok)
    }

    fn value(&mut self, payload: Bytes) {
        self.reply(Item::Value(payload));
    }

    /// There is no way for a caller to say so; its deadline does.
    fn poll_cancelled(&mut self, _: &mut task::Context<'_>) -> Poll<()> {
        Poll::Pending
    }

    fn tried(&mut self, attempts: u32) {
        // What is committed first is not given to anybody again.
        if !self.partition.commits_first() {
            self.partition.tried(self.offset, attempts);
            self.group.commit_soon();
        }
    }

    fn settle(mut self: Box<Self>, outcome: Outcome) {
        match outcome {
            Outcome::Reply(payload) => self.reply(Item::Last(payload)),
            Outcome::Done => self.reply(Item::End),
            Outcome::Fail(error) => self.reply(Item::Fail(error)),
            Outcome::Ack => {}
            Outcome::Reject(rejection) => {
                return self.group.bury(&self.partition, self.offset, *rejection);
            }
            Outcome::Retry { after } => {
                if !self.partition.commits_first() {
                    return self.partition.give_back(self.offset, after);
                }
                let error = RpcError::unavailable("the service stopped before it replied");
                self.reply(Item::Fail(error));
            }
        }
        self.partition.settle(self.offset);
    }
}
