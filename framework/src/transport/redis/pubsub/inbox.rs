//! [`Inbox`]: what has arrived and waits for room in the server.

use std::{collections::VecDeque, mem, sync::Mutex};

use bytes::Bytes;
use tokio::time::Instant;

use super::names::Names;
use crate::transport::{
    nest::{Incoming, Packet, read_packet},
    pending::lock,
    redis::link::Message,
};

/// The most messages that wait for room; what is more is refused. Redis would cut off a subscriber
/// that did not read on.
const MOST_WAITING: usize = 16 * 1024;
/// The same in bytes.
const MOST_WAITING_BYTES: usize = 64 << 20;
/// The longest id that a refusal remembers.
const LONGEST_ID: usize = 1024;

/// A bounded queue between the task that reads the connection and the one that works.
pub(super) struct Inbox {
    most: usize,
    most_bytes: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Received>,
    bytes: usize,
    refused: Vec<Refused>,
    lost: u64,
}

/// A message and when it came.
pub(super) struct Received {
    pub(super) message: Message,
    pub(super) at: Instant,
}

/// A request that there was no room for.
pub(super) struct Refused {
    pub(super) reply: Bytes,
    pub(super) id: Bytes,
}

impl Inbox {
    pub(super) fn new() -> Self {
        Self::with_room(MOST_WAITING, MOST_WAITING_BYTES)
    }

    fn with_room(most: usize, most_bytes: usize) -> Self {
        Self {
            most,
            most_bytes,
            state: Mutex::default(),
        }
    }

    /// Takes in a message; whether whoever works here has to be told.
    pub(super) fn push(&self, message: Message) -> bool {
        let size = message.size();
        let mut state = lock(&self.state);
        let fits = state.bytes + size <= self.most_bytes || state.waiting.is_empty();
        if fits && state.waiting.len() < self.most {
            state.bytes += size;
            state.waiting.push_back(Received {
                message,
                at: Instant::now(),
            });
            return state.waiting.len() == 1;
        }
        drop(state);
        let refused = Refused::new(message);
        let mut state = lock(&self.state);
        let Some(refused) = refused.filter(|_| state.refused.len() < self.most) else {
            state.lost += 1;
            return false;
        };
        state.refused.push(refused);
        state.refused.len() == 1
    }

    /// Counts a message that nobody will handle.
    pub(super) fn lose(&self) {
        lock(&self.state).lost += 1;
    }

    /// Moves up to `room` messages to the end of `taken`.
    pub(super) fn take(&self, room: usize, taken: &mut Vec<Received>) {
        let mut state = lock(&self.state);
        let count = room.min(state.waiting.len());
        let before = taken.len();
        taken.extend(state.waiting.drain(..count));
        let sizes = taken[before..].iter().map(|one| one.message.size());
        state.bytes -= sizes.sum::<usize>();
    }

    pub(super) fn is_empty(&self) -> bool {
        lock(&self.state).waiting.is_empty()
    }

    /// The requests that were refused, to be answered.
    pub(super) fn take_refused(&self) -> Vec<Refused> {
        mem::take(&mut lock(&self.state).refused)
    }

    /// How many messages were lost since this was asked last.
    pub(super) fn take_lost(&self) -> u64 {
        mem::take(&mut lock(&self.state).lost)
    }
}

impl Refused {
    /// `None` for an event, which nobody waits for.
    fn new(mut message: Message) -> Option<Self> {
        let payload = Bytes::from(mem::take(&mut message.payload));
        match read_packet(&payload) {
            Ok(Incoming::Packet(Packet { id: Some(id), .. })) if id.len() <= LONGEST_ID => {
                Some(Self {
                    reply: Names::reply_channel(message),
                    // Not a slice, which would keep the whole message.
                    id: Bytes::copy_from_slice(&id),
                })
            }
            _ => None,
        }
    }
}

impl Message {
    fn size(&self) -> usize {
        self.channel.len() + self.payload.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(payload: &str) -> Message {
        Message {
            glob: None,
            channel: b"c".to_vec(),
            payload: payload.into(),
        }
    }

    #[test]
    fn what_there_is_no_room_for_is_refused_or_counted() {
        let inbox = Inbox::with_room(2, 100);
        assert!(inbox.push(message(r#"{"data":1,"id":1}"#)));
        assert!(!inbox.push(message(r#"{"data":2}"#)));
        assert!(inbox.push(message(r#"{"data":3,"id":"three"}"#)));
        assert!(!inbox.push(message(r#"{"data":4}"#)));
        inbox.lose();
        let refused = inbox.take_refused();
        assert_eq!(refused.len(), 1);
        assert_eq!(
            (&*refused[0].reply, &*refused[0].id),
            (&b"c.reply"[..], &b"\"three\""[..])
        );
        assert_eq!((inbox.take_lost(), inbox.take_lost()), (2, 0));

        let mut taken = Vec::new();
        inbox.take(1, &mut taken);
        inbox.take(5, &mut taken);
        assert_eq!(taken.len(), 2);
        assert!(inbox.is_empty());
        assert!(inbox.push(message("again")));
    }

    #[test]
    fn bytes_are_bounded_too_but_one_message_always_fits() {
        let inbox = Inbox::with_room(10, 100);
        let large = "x".repeat(1000);
        assert!(inbox.push(message(&large)));
        assert!(!inbox.push(message("small")));
        assert_eq!(inbox.take_lost(), 1);
        inbox.take(10, &mut Vec::new());
        for _ in 0..10 {
            inbox.push(message(&"x".repeat(49)));
        }
        let mut taken = Vec::new();
        inbox.take(10, &mut taken);
        assert_eq!(taken.len(), 2);
    }
}
