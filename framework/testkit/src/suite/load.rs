//! Callers and emitters that keep at it while servers and brokers come and go.

use std::{
    cell::Cell,
    future::IntoFuture,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use nestling::{Client, Code, RpcError};

use super::witness::{Gate, Record};

/// How long one try may take where somebody may be away.
pub(super) const TRY: Duration = Duration::from_secs(2);
/// How long an emitter rests between two events of a key: without a broker nothing else slows it.
const PACE: Duration = Duration::from_millis(1);
/// How long somebody rests who has been refused.
const REST: Duration = Duration::from_millis(20);

/// Says of an error that it is one of those that pass.
///
/// # Panics
///
/// When it is another.
pub(super) fn must_pass(error: &RpcError) {
    let passing = [
        Code::Unavailable,
        Code::DeadlineExceeded,
        Code::ResourceExhausted,
    ];
    assert!(passing.contains(&error.code), "{error:?}");
}

/// Sends an idempotent request until it is answered, with what it carries.
pub(super) async fn ask(client: &Client, pattern: &'static str, n: u64) {
    loop {
        let call = client.send_at::<u64>(pattern, &n).timeout(TRY);
        match call.await {
            Ok(reply) => return assert_eq!(reply, n, "somebody else's reply"),
            Err(error) => must_pass(&error),
        }
        tokio::time::sleep(REST).await;
    }
}

/// Emits an event until that is acknowledged, and returns how often it took.
pub(super) async fn emit(client: &Client, pattern: &'static str, key: u64, n: u64) -> usize {
    let mut tries = 0;
    loop {
        tries += 1;
        let call = client
            .emit_at(pattern, &(key, n))
            .header("key", format!("key {key}"));
        match call.timeout(TRY).await {
            Ok(()) => return tries,
            Err(error) => must_pass(&error),
        }
        tokio::time::sleep(REST).await;
    }
}

/// What many callers have sent, each as fast as it is answered, and what became of it. None of it is
/// idempotent, so nobody sends anything twice.
#[derive(Clone, Copy)]
pub(super) struct Calls {
    pub(super) answered: &'static Record<u64>,
    pub(super) refused: &'static Record<(u64, RpcError)>,
    enough: &'static Gate,
}

impl Calls {
    pub(super) fn new(enough: &'static Gate) -> Self {
        Self {
            answered: Record::new(),
            refused: Record::new(),
            enough,
        }
    }

    /// Calls until it is enough.
    pub(super) async fn run(self, client: &Client, pattern: &'static str, callers: usize) {
        let next = AtomicU64::new(0);
        join_all((0..callers).map(|_| async {
            while !self.enough.is_open() {
                let n = next.fetch_add(1, Ordering::Relaxed);
                match client.send_at::<u64>(pattern, &n).into_future().await {
                    Ok(reply) => {
                        assert_eq!(reply, n, "somebody else's reply");
                        self.answered.push(n);
                    }
                    Err(error) => {
                        must_pass(&error);
                        self.refused.push((n, error));
                        tokio::time::sleep(REST).await;
                    }
                }
            }
        }))
        .await;
    }
}

/// The events that were acknowledged, by key and number, in the order of each key.
#[derive(Clone, Copy)]
pub(super) struct Events {
    pub(super) emitted: &'static Record<(u64, u64)>,
    enough: &'static Gate,
}

impl Events {
    pub(super) fn new(enough: &'static Gate) -> Self {
        Self {
            emitted: Record::new(),
            enough,
        }
    }

    /// Emits until it is enough, the next event of a key once the one before is acknowledged; returns
    /// how many were emitted more than once.
    pub(super) async fn run(self, client: &Client, pattern: &'static str, keys: u64) -> usize {
        let again = Cell::new(0);
        join_all((0..keys).map(|key| {
            let again = &again;
            async move {
                let mut n = 0;
                while !self.enough.is_open() {
                    if emit(client, pattern, key, n).await > 1 {
                        again.set(again.get() + 1);
                    }
                    self.emitted.push((key, n));
                    n += 1;
                    tokio::time::sleep(PACE).await;
                }
            }
        }))
        .await;
        again.get()
    }
}
