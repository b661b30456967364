//! The run loop and what surrounds it, on the memory transport under paused time: a test that waits for a second waits
//! until nothing else can happen.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers too"
)]

mod calls;
mod events;
mod in_flight;
mod kept;
mod layers;
mod limits;
mod seam;
mod shutdown;
#[cfg(all(unix, feature = "service"))]
mod signals;
mod start;

use std::{
    future::{IntoFuture, pending},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::stream;
use nestling::{
    Client, Code, Context, Event, Guarantee, Payload, Router, RpcError, Server, StartError,
    Streaming, guard, intercept,
    transport::{self, Capabilities, Memory, ServerTransport, Sources, Subscription},
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};

const SECOND: Duration = Duration::from_secs(1);

#[derive(Serialize, Deserialize)]
struct OrderPlaced {
    order: u64,
}

impl Event for OrderPlaced {
    const PATTERN: &'static str = "order.placed";
}

#[derive(Serialize, Deserialize)]
struct PageSeen {
    page: u64,
}

impl Event for PageSeen {
    const PATTERN: &'static str = "page.seen";
    const DELIVERY: Guarantee = Guarantee::BestEffort;
}

/// A list that handlers write.
#[derive(Clone, Debug)]
struct Log<T>(Arc<Mutex<Vec<T>>>);

impl<T: Clone> Log<T> {
    fn new() -> Self {
        Self(Arc::default())
    }

    fn push(&self, entry: T) {
        self.0.lock().unwrap().push(entry);
    }

    fn all(&self) -> Vec<T> {
        self.0.lock().unwrap().clone()
    }
}

async fn echo(Payload(n): Payload<u64>) -> Result<u64, RpcError> {
    Ok(n)
}

async fn on_order(_: OrderPlaced) -> Result<(), RpcError> {
    Ok(())
}

async fn on_page(_: PageSeen) -> Result<(), RpcError> {
    Ok(())
}

/// A handler that says what it works on and then waits for its turn to go on.
fn held(
    log: &Log<u64>,
    turn: &Arc<Notify>,
) -> impl Fn(Payload<u64>) -> nestling::BoxFuture<'static, Result<u64, RpcError>>
+ Clone
+ Send
+ Sync
+ 'static {
    let (log, turn) = (log.clone(), Arc::clone(turn));
    move |Payload(n)| {
        let (log, turn) = (log.clone(), Arc::clone(&turn));
        Box::pin(async move {
            log.push(n);
            turn.notified().await;
            Ok(n)
        })
    }
}

/// Values of a stream that never fails.
trait MapOk: futures_util::Stream + Sized {
    fn map_ok(
        self,
    ) -> impl futures_util::Stream<Item = Result<Self::Item, RpcError>> + Send + 'static
    where
        Self: Send + 'static,
    {
        futures_util::StreamExt::map(self, Ok)
    }
}

impl<S: futures_util::Stream> MapOk for S {}
