//! [`Writer`]: publishes without waiting.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::pin,
    sync::Mutex,
    task::{self, Poll, Waker},
};

use async_nats::{Client, PublishErrorKind, message::OutboundMessage};
use futures_util::{FutureExt, SinkExt};
use tokio::task::coop::unconstrained;

use super::super::{Gone, pending::lock};

/// The most answers kept beside those to calls in flight.
const MOST_BACKLOG: usize = 16 * 1024;

/// Hands messages to the connection at once, and keeps in order what it has no room for.
///
/// What is kept is bounded by the calls in flight: a call has one reply, or a window of values, and
/// other answers are only kept up to a limit.
pub(super) struct Writer {
    state: Mutex<State>,
}

struct State {
    connection: Client,
    backlog: VecDeque<OutboundMessage>,
    /// The task that drains the backlog.
    waker: Option<Waker>,
    /// Those who wait until there is none.
    waiting: Vec<Waker>,
    /// The connection is gone for good.
    closed: bool,
}

impl Writer {
    pub(super) fn new(connection: Client) -> Self {
        Self {
            state: Mutex::new(State {
                connection,
                backlog: VecDeque::new(),
                waker: None,
                waiting: Vec::new(),
                closed: false,
            }),
        }
    }

    pub(super) fn send(&self, message: OutboundMessage) {
        let mut state = lock(&self.state);
        if state.backlog.is_empty() && state.poll_once() {
            state.start(message);
            return;
        }
        state.backlog.push_back(message);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The same for an answer to what never became a call; false when too many wait already.
    pub(super) fn offer(&self, message: OutboundMessage) -> bool {
        let fits = lock(&self.state).backlog.len() < MOST_BACKLOG;
        if fits {
            self.send(message);
        }
        fits
    }

    /// Ready while nothing has to be kept: for those who could go on making messages.
    pub(super) fn poll_room(&self, cx: &mut task::Context<'_>) -> Poll<Result<(), Gone>> {
        let mut state = lock(&self.state);
        if state.closed {
            return Poll::Ready(Err(Gone));
        }
        if state.backlog.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let waker = cx.waker();
        if !state.waiting.iter().any(|other| other.will_wake(waker)) {
            state.waiting.push(waker.clone());
        }
        Poll::Pending
    }

    /// Hands over what was kept; wakes the task that asked last when there is more.
    pub(super) fn poll_drain(&self, cx: &mut task::Context<'_>) -> Poll<()> {
        let mut state = lock(&self.state);
        while !state.backlog.is_empty() {
            let ready = state.connection.poll_ready_unpin(cx);
            if ready.is_pending() {
                break;
            }
            if let Some(message) = state.backlog.pop_front() {
                state.start(message);
            }
        }
        if !state
            .waker
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            state.waker = Some(cx.waker().clone());
        }
        if !state.backlog.is_empty() {
            return Poll::Pending;
        }
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
        Poll::Ready(())
    }
}

impl State {
    /// Whether the connection takes a message now. Not subject to the task's budget: running out
    /// of it would look like a full connection.
    fn poll_once(&mut self) -> bool {
        let connection = &mut self.connection;
        let ready = pin!(poll_fn(|cx| connection.poll_ready_unpin(cx)));
        unconstrained(ready).now_or_never().is_some()
    }

    /// After the connection said it has room, or that it is closed.
    fn start(&mut self, message: OutboundMessage) {
        if let Err(error) = self.connection.start_send_unpin(message) {
            self.closed |= error.kind() == PublishErrorKind::Send;
            tracing::warn!(%error, "not published");
        }
    }
}
