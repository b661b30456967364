//! Events alone: from a transport that only hands them out to their settling.

use std::{
    future::poll_fn,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{self, Poll, Waker},
};

use async_trait::async_trait;
use bytes::Bytes;
use bytestring::ByteString;
use nestling::{
    Envelope, Event, Guarantee, Router, RpcError,
    transport::{
        Capabilities, Delivery, Error, Gone, Kind, Order, Outcome, Responder, ServerTransport,
        Source, Sources, Subscription,
    },
};

use crate::{Bench, CENTS, ORDER, Placed, Rung, USER, Work};

pub(crate) const JSON: &str = r#"{"order":1234567890,"user":98765,"cents":12345}"#;

static HANDLED: AtomicU64 = AtomicU64::new(0);
static ACKNOWLEDGED: AtomicU64 = AtomicU64::new(0);

pub(crate) async fn placed(event: Placed) -> Result<(), RpcError> {
    assert_eq!((event.order, event.user, event.cents), (ORDER, USER, CENTS));
    HANDLED.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

async fn rung(_: Rung) -> Result<(), RpcError> {
    HANDLED.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// How many events have been handled.
pub(crate) fn count() -> u64 {
    HANDLED.load(Ordering::Relaxed)
}

/// Decode, route, handle, settle: what the framework does with an event that has been received.
pub(crate) fn handled(bench: Bench) -> Work {
    let event = Received {
        pattern: Placed::PATTERN,
        payload: JSON,
    };
    handed_out(bench, Router::new().event(placed), event)
}

/// The same with nothing to decode: the framework's part alone, or nearly.
pub(crate) fn handled_empty(bench: Bench) -> Work {
    let event = Received {
        pattern: Rung::PATTERN,
        payload: "",
    };
    handed_out(bench, Router::new().event(rung), event)
}

/// An event as it is received.
#[derive(Clone, Copy)]
struct Received {
    pattern: &'static str,
    payload: &'static str,
}

fn handed_out(bench: Bench, router: Router, event: Received) -> Work {
    let shelf = Arc::new(Mutex::new(Shelf::default()));
    let transport: Arc<dyn ServerTransport> = Arc::new(Handing {
        shelf: Arc::clone(&shelf),
        event,
    });
    let server = bench.serve(router, transport);
    Box::new(move |messages| {
        let _running = &server;
        let (handled, acknowledged) = (count(), ACKNOWLEDGED.load(Ordering::Relaxed));
        bench.wait(async {
            lock(&shelf).put(messages);
            poll_fn(|cx| lock(&shelf).poll_empty(cx)).await;
        });
        assert_eq!(count() - handled, messages);
        let acknowledged = ACKNOWLEDGED.load(Ordering::Relaxed) - acknowledged;
        assert_eq!(acknowledged, messages);
    })
}

/// Events that wait to be handed out.
#[derive(Default)]
struct Shelf {
    left: u64,
    source: Option<Waker>,
    owner: Option<Waker>,
}

impl Shelf {
    fn put(&mut self, messages: u64) {
        self.left = messages;
        if let Some(source) = self.source.take() {
            source.wake();
        }
    }

    fn poll_empty(&mut self, cx: &mut task::Context<'_>) -> Poll<()> {
        // The source asks for more only after it has settled what it was given.
        if self.left == 0 && self.source.is_some() {
            return Poll::Ready(());
        }
        self.owner = Some(cx.waker().clone());
        Poll::Pending
    }
}

fn lock(shelf: &Mutex<Shelf>) -> std::sync::MutexGuard<'_, Shelf> {
    shelf.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Handing {
    shelf: Arc<Mutex<Shelf>>,
    event: Received,
}

#[async_trait]
impl ServerTransport for Handing {
    fn name(&self) -> &'static str {
        "handing"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            events: Guarantee::AtLeastOnce,
            replicas_share: false,
            fan_out: false,
            durable: false,
            order: Order::None,
            redelivers: false,
            dead_letters: false,
            cancels: false,
            stream_credit: false,
            detects_absence: false,
            max_payload: JSON.len(),
        }
    }

    async fn subscribe(&self, _: Subscription) -> Result<Sources, Error> {
        let source: Box<dyn Source> = Box::new(HandingSource {
            shelf: Arc::clone(&self.shelf),
            event: self.event,
        });
        Ok(Box::pin(futures_util::stream::iter([source])))
    }
}

struct HandingSource {
    shelf: Arc<Mutex<Shelf>>,
    event: Received,
}

impl Source for HandingSource {
    fn poll_deliveries(
        &mut self,
        cx: &mut task::Context<'_>,
        room: usize,
        batch: &mut Vec<Delivery>,
    ) -> Poll<Option<usize>> {
        let mut shelf = lock(&self.shelf);
        let count = shelf.left.min(room as u64);
        if count == 0 {
            shelf.source = Some(cx.waker().clone());
            if let Some(owner) = shelf.owner.take() {
                owner.wake();
            }
            return Poll::Pending;
        }
        shelf.left -= count;
        for _ in 0..count {
            let pattern = ByteString::from_static(self.event.pattern);
            let payload = Bytes::from_static(self.event.payload.as_bytes());
            let envelope = Envelope::new(pattern, payload);
            batch.push(Delivery::new(Kind::Event, envelope, Box::new(Counted)));
        }
        Poll::Ready(Some(usize::try_from(count).unwrap_or(room)))
    }

    fn stop(&mut self) {}

    fn poll_close(&mut self, _: &mut task::Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }
}

/// Without a size, so that a box of it is no allocation.
struct Counted;

impl Responder for Counted {
    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> Poll<Result<(), Gone>> {
        Poll::Ready(Err(Gone))
    }

    fn value(&mut self, _: Bytes) {}

    fn poll_cancelled(&mut self, _: &mut task::Context<'_>) -> Poll<()> {
        Poll::Pending
    }

    fn settle(self: Box<Self>, outcome: Outcome) {
        if outcome == Outcome::Ack {
            ACKNOWLEDGED.fetch_add(1, Ordering::Relaxed);
        }
    }
}
