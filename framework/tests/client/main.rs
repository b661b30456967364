//! What a client does when calls fail, on the memory transport under paused time.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers too"
)]

mod breaker;
mod limit;
mod policy;
mod retry;
mod storm;

use std::{
    future::{Future, IntoFuture, pending},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, future::join_all, stream};
use nestling::{
    Breaker, Client, Code, Many, Message, Policy, Retry, Router, RpcError, Running, Server, Single,
    Streaming,
    transport::{Error, ErrorKind, Memory},
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Notify, Semaphore},
    time::{Instant, advance, sleep, timeout},
};

const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

#[derive(Serialize, Deserialize)]
struct GetUser;

impl Message for GetUser {
    const PATTERN: &'static str = "user.get";
    const IDEMPOTENT: bool = true;
    type Reply = usize;
    type Shape = Single;
}

#[derive(Serialize, Deserialize)]
struct Charge;

impl Message for Charge {
    const PATTERN: &'static str = "payment.charge";
    type Reply = usize;
    type Shape = Single;
}

#[derive(Serialize, Deserialize)]
struct WatchStock;

impl Message for WatchStock {
    const PATTERN: &'static str = "stock.watch";
    const IDEMPOTENT: bool = true;
    type Reply = usize;
    type Shape = Many;
}

/// A service that counts its calls, from 1, and answers each as a test says.
struct Service {
    memory: Memory,
    calls: Arc<AtomicUsize>,
    _running: Running,
}

impl Service {
    async fn start<F, Fut>(answer: F) -> Self
    where
        F: Fn(usize) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = Result<usize, RpcError>> + Send + 'static,
    {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = {
            let calls = Arc::clone(&calls);
            move || answer(calls.fetch_add(1, Ordering::Relaxed) + 1)
        };
        let router = Router::new()
            .message_at(GetUser::PATTERN, counted.clone())
            .message_at(Charge::PATTERN, counted);
        Self::with(router, calls).await
    }

    async fn with(router: Router, calls: Arc<AtomicUsize>) -> Self {
        let memory = Memory::new();
        let server = Server::new("x", router).listen(&memory);
        Self {
            _running: server.start().await.unwrap(),
            memory,
            calls,
        }
    }

    async fn client(&self, policy: Policy) -> Client {
        let builder = Client::builder(&self.memory).policy(policy);
        builder.build().await.unwrap()
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }
}

fn away() -> RpcError {
    RpcError::unavailable("the database is away")
}

fn kind(error: &RpcError) -> Option<ErrorKind> {
    Error::behind(error).map(Error::kind)
}

/// Lets everything happen that can happen now.
async fn settle() {
    sleep(MILLI).await;
}
