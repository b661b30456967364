//! The stages in which a connection of a server ends.

use std::{
    pin::Pin,
    task::{self, Poll},
    time::Duration,
};

use tokio::time::{Sleep, sleep};

/// How long a client has for saying that it sends no more, when we drain.
const GRACE: Duration = Duration::from_secs(1);
/// How long the last replies may take to be written…
const LAST_WRITES: Duration = Duration::from_secs(5);
/// …and how long the client then has for closing its side.
const LINGER: Duration = Duration::from_secs(1);
/// How long replies are still made for a client that sends no more.
const PARTING: Duration = Duration::from_secs(1);

type Timer = Pin<Box<Sleep>>;

/// The server shuts down.
pub(super) struct Draining {
    /// The client sends no more, or has had its time to say so.
    pub(super) silent: bool,
    grace: Timer,
}

impl Draining {
    pub(super) fn new() -> Self {
        Self {
            silent: false,
            grace: Box::pin(sleep(GRACE)),
        }
    }

    pub(super) fn poll(&mut self, cx: &mut task::Context<'_>) {
        self.silent = self.silent || self.grace.as_mut().poll(cx).is_ready();
    }
}

/// A NestJS application has closed its half of the connection, or all of it, which looks the same.
pub(super) struct Parting(Timer);

impl Parting {
    pub(super) fn new() -> Self {
        Self(Box::pin(sleep(PARTING)))
    }

    /// Ready when nobody is made to wait any longer for one who has probably gone.
    pub(super) fn poll(&mut self, cx: &mut task::Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(cx)
    }
}

/// Nothing will come any more.
pub(super) struct Closing {
    /// The last reply has been written, and our half closed.
    pub(super) lingering: bool,
    limit: Timer,
}

impl Closing {
    pub(super) fn writing() -> Self {
        Self {
            lingering: false,
            limit: Box::pin(sleep(LAST_WRITES)),
        }
    }

    pub(super) fn lingering() -> Self {
        Self {
            lingering: true,
            limit: Box::pin(sleep(LINGER)),
        }
    }

    /// Ready when this has taken too long.
    pub(super) fn poll_late(&mut self, cx: &mut task::Context<'_>) -> Poll<()> {
        self.limit.as_mut().poll(cx)
    }
}
