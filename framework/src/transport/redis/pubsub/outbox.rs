//! [`Outbox`] and [`Writer`]: replies on their way, all that are ready in one write.

use std::{
    mem,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use redis::{Cmd, Pipeline};
use tokio::sync::OwnedSemaphorePermit;

use crate::{
    error::RpcError,
    transport::{
        Item,
        nest::{write_item, write_no_handler},
        pending::lock,
        redis::{MOST_BYTES, link::Link},
    },
};

/// How many replies one write has at most.
const BATCH: usize = 4096;
/// With so much to be written nothing new is taken.
const FULL: usize = 16 * 1024;
const FULL_BYTES: usize = 64 << 20;
/// What a reply costs beside its payload, about.
const FRAME: usize = 64;

/// A packet for a caller.
pub(super) struct Reply {
    pub(super) channel: Bytes,
    /// That of the request, in JSON.
    pub(super) id: Bytes,
    pub(super) packet: Packet,
}

pub(super) enum Packet {
    /// The only packet of a call, or its last.
    End {
        item: Item,
        /// The stream that it ends.
        stream: Option<Arc<Streamed>>,
    },
    /// A value of a stream, and the room that it takes until it is written.
    Value {
        payload: Bytes,
        stream: Arc<Streamed>,
        _room: Option<OwnedSemaphorePermit>,
    },
    NoHandler,
}

/// What is known of a streamed reply: whether values of it may have been lost.
#[derive(Debug, Default)]
pub(super) struct Streamed {
    torn: AtomicBool,
}

impl Streamed {
    pub(super) fn is_torn(&self) -> bool {
        self.torn.load(Ordering::Acquire)
    }

    /// Whether it was whole until now.
    fn tear(&self) -> bool {
        !self.torn.swap(true, Ordering::AcqRel)
    }
}

impl Reply {
    fn size(&self) -> usize {
        let payload = match &self.packet {
            Packet::Value { payload, .. } => payload.len(),
            Packet::End { item, .. } => match item {
                Item::Value(payload) | Item::Last(payload) => payload.len(),
                Item::End | Item::Fail(_) => 0,
            },
            Packet::NoHandler => 0,
        };
        payload + self.channel.len() + self.id.len() + FRAME
    }

    fn is_torn(&self) -> bool {
        match &self.packet {
            Packet::Value { stream, .. } => stream.is_torn(),
            Packet::End { stream, .. } => stream.as_ref().is_some_and(|stream| stream.is_torn()),
            Packet::NoHandler => false,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        match &self.packet {
            Packet::End { item, .. } => write_item(out, Some(&self.id), item),
            Packet::Value { payload, .. } => {
                write_item(out, Some(&self.id), &Item::Value(payload.clone()));
            }
            Packet::NoHandler => write_no_handler(out, &self.id),
        }
    }
}

/// Replies that wait to be written.
#[derive(Default)]
pub(super) struct Outbox {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    replies: Vec<Reply>,
    bytes: usize,
}

impl Outbox {
    /// Whether whoever writes has to be told.
    pub(super) fn push(&self, reply: Reply) -> bool {
        let mut state = lock(&self.state);
        state.bytes += reply.size();
        state.replies.push(reply);
        state.replies.len() == 1
    }

    pub(super) fn is_full(&self) -> bool {
        let state = lock(&self.state);
        state.replies.len() >= FULL || state.bytes >= FULL_BYTES
    }

    /// What the next write carries.
    pub(super) fn take(&self) -> Vec<Reply> {
        let mut state = lock(&self.state);
        let mut bytes = 0;
        let fits = |reply: &&Reply| {
            let first = bytes == 0;
            bytes += reply.size();
            first || bytes <= MOST_BYTES
        };
        let count = state.replies.iter().take(BATCH).take_while(fits).count();
        if count == state.replies.len() {
            state.bytes = 0;
            return mem::take(&mut state.replies);
        }
        let rest = state.replies.split_off(count);
        let taken = mem::replace(&mut state.replies, rest);
        state.bytes -= taken.iter().map(Reply::size).sum::<usize>();
        taken
    }
}

/// Owns the connection, on which it also hears.
pub(super) struct Writer {
    link: Link,
    packet: Vec<u8>,
}

impl Writer {
    pub(super) fn new(link: Link) -> Self {
        let packet = Vec::new();
        Self { link, packet }
    }

    /// Publishes the replies, and returns when Redis has them, however long that takes. A lost
    /// connection is made again, also when there are none; `ask` finds out whether it is lost.
    pub(super) async fn write(&mut self, mut replies: Vec<Reply>, ask: bool) {
        loop {
            replies.retain(|reply| !reply.is_torn());
            let mut pipeline = self.pipeline(&replies);
            if ask {
                pipeline.cmd("PING");
            }
            let written = match self.link.connect().await {
                Ok(()) if pipeline.is_empty() => return,
                Ok(()) => self.link.run_all_here(&pipeline).await,
                Err(error) => Err(error),
            };
            match written {
                Ok(answers) => {
                    let refused = |answer: redis::Value| answer.extract_error().err();
                    if let Some(error) = answers.into_iter().find_map(refused) {
                        tracing::warn!(%error, "redis refused replies");
                    }
                    return;
                }
                Err(error) => {
                    replies = after_loss(replies);
                    self.link.pause(&error).await;
                }
            }
        }
    }

    fn pipeline(&mut self, replies: &[Reply]) -> Pipeline {
        let mut pipeline = Pipeline::with_capacity(replies.len() + 1);
        for reply in replies {
            self.packet.clear();
            reply.write(&mut self.packet);
            let size = reply.channel.len() + self.packet.len() + FRAME;
            let mut publish = Cmd::with_capacity(3, size);
            publish
                .arg("PUBLISH")
                .arg(&*reply.channel)
                .arg(&self.packet[..]);
            pipeline.add_command(publish);
        }
        // One large reply need not cost memory for ever.
        self.packet.shrink_to(1 << 20);
        pipeline
    }

    /// Hears nothing more. What was published before has arrived by then.
    pub(super) async fn leave(&mut self) {
        if let Err(error) = self.link.stop_listening().await {
            tracing::debug!(%error, "the connection was lost before the subscriptions were ended");
        }
    }
}

/// What is to be written again when nobody knows which of `replies` have arrived.
///
/// The end of a call does no harm twice, since its caller has forgotten the call by then. A value
/// would: so its stream ends here, with an error.
fn after_loss(replies: Vec<Reply>) -> Vec<Reply> {
    let again = |mut reply: Reply| {
        if let Packet::Value { stream, .. } = &reply.packet {
            if !stream.tear() {
                return None;
            }
            let lost = "the connection to redis was lost during the stream";
            reply.packet = Packet::End {
                item: Item::Fail(RpcError::unavailable(lost)),
                stream: None,
            };
        }
        Some(reply)
    };
    replies.into_iter().filter_map(again).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(id: &'static str, packet: Packet) -> Reply {
        Reply {
            channel: Bytes::from_static(b"c.reply"),
            id: Bytes::from_static(id.as_bytes()),
            packet,
        }
    }

    fn value(id: &'static str, stream: &Arc<Streamed>) -> Reply {
        let packet = Packet::Value {
            payload: "1".into(),
            stream: Arc::clone(stream),
            _room: None,
        };
        reply(id, packet)
    }

    fn end(id: &'static str, stream: Option<&Arc<Streamed>>) -> Reply {
        let packet = Packet::End {
            item: Item::Last("2".into()),
            stream: stream.cloned(),
        };
        reply(id, packet)
    }

    fn texts(replies: &[Reply]) -> Vec<String> {
        let text = |reply: &Reply| {
            let mut out = Vec::new();
            reply.write(&mut out);
            String::from_utf8(out).unwrap()
        };
        replies.iter().map(text).collect()
    }

    #[test]
    fn after_a_loss_ends_are_sent_again_and_torn_streams_fail() {
        let (torn, whole) = (Arc::<Streamed>::default(), Arc::<Streamed>::default());
        let replies = vec![
            end("1", None),
            value("2", &torn),
            value("2", &torn),
            end("3", Some(&whole)),
            end("2", Some(&torn)),
            reply("4", Packet::NoHandler),
        ];
        let mut again = after_loss(replies);
        again.retain(|reply| !reply.is_torn());
        let texts_once = texts(&again);
        assert_eq!(texts_once.len(), 4, "{texts_once:?}");
        assert_eq!(texts_once[0], r#"{"response":2,"isDisposed":true,"id":1}"#);
        assert!(texts_once[1].contains("UNAVAILABLE") && texts_once[1].ends_with(r#""id":2}"#));
        assert_eq!(texts_once[2], r#"{"response":2,"isDisposed":true,"id":3}"#);
        assert!(texts_once[3].starts_with(r#"{"id":4,"status":"error""#));
        let mut twice = after_loss(again);
        twice.retain(|reply| !reply.is_torn());
        assert_eq!(texts(&twice), texts_once);
    }

    #[test]
    fn a_write_has_a_bound_and_keeps_the_order() {
        let outbox = Outbox::default();
        for _ in 0..BATCH + 1 {
            outbox.push(end("1", None));
        }
        assert!(!outbox.is_full());
        assert_eq!(outbox.take().len(), BATCH);
        assert_eq!(outbox.take().len(), 1);
        assert_eq!(lock(&outbox.state).bytes, 0);
        for _ in 0..5 {
            let item = Item::Last(vec![b'1'; FULL_BYTES / 4].into());
            outbox.push(reply("1", Packet::End { item, stream: None }));
        }
        assert!(outbox.is_full());
        assert_eq!(outbox.take().len(), 1);
        assert_eq!(outbox.take().len(), 1);
        assert!(!outbox.is_full());
    }
}
