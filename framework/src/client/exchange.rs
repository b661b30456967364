//! A message sent, and its one reply: [`Exchange`].

use std::task::{self, Poll, ready};

use tokio::time::{Instant, error::Elapsed, timeout_at};

use super::call::no_reply;
use crate::{
    envelope::Envelope,
    error::{Code, RpcError},
    handler::BoxFuture,
    transport::{ClientTransport, Error, Expect, Item, Replies},
};

/// A message that has been sent, or is about to be, and the wait for its reply.
///
/// Polled by the future that has it rather than one itself, which would need a box: whoever makes a
/// call knows the pattern, and need not keep the envelope, which is the transport's.
pub(super) struct Exchange<'a> {
    deadline: Instant,
    state: State<'a>,
}

enum State<'a> {
    /// The transport waits for something: a connection, or room.
    Sending(BoxFuture<'a, Result<Result<Replies, Error>, Elapsed>>),
    Sent(Replies),
    Failed(Option<Error>),
}

impl<'a> Exchange<'a> {
    pub(super) fn new(
        transport: &'a dyn ClientTransport,
        envelope: Envelope,
        deadline: Instant,
    ) -> Self {
        let state = match transport.try_request(envelope, Expect::Single) {
            Ok(Ok(replies)) => State::Sent(replies),
            Ok(Err(error)) => State::Failed(Some(error)),
            Err(envelope) => {
                let request = transport.request(envelope, Expect::Single);
                State::Sending(Box::pin(timeout_at(deadline, request)))
            }
        };
        Self { deadline, state }
    }

    /// The reply to `pattern`, or why there is none; not to be asked for again.
    pub(super) fn poll(
        &mut self,
        cx: &mut task::Context<'_>,
        pattern: &str,
    ) -> Poll<Result<Item, RpcError>> {
        loop {
            match &mut self.state {
                State::Sending(sending) => {
                    self.state = match ready!(sending.as_mut().poll(cx)) {
                        Ok(Ok(replies)) => State::Sent(replies),
                        Ok(Err(error)) => State::Failed(Some(error)),
                        Err(_) => State::Failed(None),
                    };
                }
                State::Sent(replies) => {
                    let item = ready!(replies.poll_item_until(cx, self.deadline));
                    return Poll::Ready(match item {
                        Some(Item::Fail(error)) if self.is_late(&error) => Err(no_reply(pattern)),
                        Some(Item::Fail(error)) => Err(error),
                        Some(item) => Ok(item),
                        None => Err(no_reply(pattern)),
                    });
                }
                State::Failed(error) => {
                    let error = error.take();
                    return Poll::Ready(Err(error.map_or_else(|| no_reply(pattern), Into::into)));
                }
            }
        }
    }

    /// Whether the time is over here as well as there, where it may be told first: the handler has the
    /// same deadline. Its caller's word for it is the one that counts.
    fn is_late(&self, error: &RpcError) -> bool {
        error.code == Code::DeadlineExceeded && self.deadline <= Instant::now()
    }
}
