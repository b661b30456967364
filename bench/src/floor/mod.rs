//! The floor: the same work with the client library of each transport, by the same commands of the same broker, and no
//! framework. What a row of nestling costs above its floor is what the framework costs.
//!
//! A server decodes the payload into its type and encodes what it answers, as a handler does.

mod kafka;
mod memory;
mod nats;
mod redis;
mod tcp;
mod tcp_nest;

use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use nestling::transport::Task;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use crate::{
    caller::Caller,
    payload::Payload,
    serve::{Options, Seen, Serving},
    spec::{Encoding, Spec, Transport, Wire},
};

pub(crate) use memory::in_memory;

pub(crate) async fn serve(options: &Options, seen: &'static Seen) -> Result<Serving> {
    match (options.spec.transport, options.spec.wire) {
        (Transport::Tcp, Wire::Native) => tcp::serve(options).await,
        (Transport::Tcp, Wire::Nest) => tcp_nest::serve(options).await,
        (Transport::Nats, _) => nats::serve(options, seen).await,
        (Transport::Jetstream, _) => nats::serve_durable(options, seen).await,
        (Transport::Redis, _) => redis::serve(options, seen).await,
        (Transport::Pubsub, _) => redis::serve_channels(options).await,
        (Transport::Kafka, _) => kafka::serve(options, seen).await,
        (Transport::Memory, _) => bail!("memory has no other side"),
    }
}

pub(crate) async fn connect(spec: &Spec, url: &str, pattern: &str) -> Result<Box<dyn Caller>> {
    match spec.transport {
        Transport::Tcp => tcp::connect(spec, url).await,
        Transport::Nats | Transport::Jetstream => nats::connect(spec, url, pattern).await,
        Transport::Redis => redis::connect(spec, url, pattern).await,
        Transport::Kafka => kafka::connect(spec, url, pattern).await,
        Transport::Memory | Transport::Pubsub => bail!("it is called by another's client"),
    }
}

/// A part of a floor that runs by itself, until its owner has gone.
fn work(part: impl Future<Output = Result<()>> + Send + 'static) -> Task {
    Task::spawn(async move {
        if let Err(error) = part.await {
            eprintln!("floor: {error:#}");
        }
    })
}

/// What a handler does: bytes become the payload, and the payload bytes.
fn echo(codec: Encoding, bytes: &[u8]) -> Result<Vec<u8>> {
    Payload::decode(codec.codec(), bytes)?.encode(codec.codec())
}

/// `scheme://host:port` without its scheme.
fn host(url: &str) -> Result<&str> {
    let (_, host) = url.split_once("://").context("a URL has a scheme")?;
    Ok(host)
}

/// The calls that wait for their replies, by number.
#[derive(Debug, Default)]
struct Waiting {
    next: AtomicU64,
    calls: Mutex<HashMap<u64, mpsc::UnboundedSender<Bytes>>>,
}

impl Waiting {
    /// A number, and where its replies arrive. As many are sent as were asked for.
    fn open(&self) -> (u64, mpsc::UnboundedReceiver<Bytes>) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = mpsc::unbounded_channel();
        self.lock().insert(number, sender);
        (number, receiver)
    }

    fn answer(&self, number: u64, payload: Bytes) {
        if let Some(call) = self.lock().get(&number) {
            // A caller that has gone is noticed when it closes its number.
            call.send(payload).ok();
        }
    }

    fn close(&self, number: u64) {
        self.lock().remove(&number);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, mpsc::UnboundedSender<Bytes>>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for `values` replies and checks each.
    async fn finish(
        &self,
        (number, mut replies): (u64, mpsc::UnboundedReceiver<Bytes>),
        spec: &Spec,
        sent: &Payload,
    ) -> Result<u32> {
        for _ in 0..spec.values() {
            let bytes = replies.recv().await.context("the connection was lost")?;
            check(spec, sent, &bytes)?;
        }
        self.close(number);
        Ok(spec.values())
    }
}

fn check(spec: &Spec, sent: &Payload, bytes: &[u8]) -> Result<()> {
    let reply = Payload::decode(spec.codec.codec(), bytes)?;
    anyhow::ensure!(reply == *sent, "the reply is another's");
    Ok(())
}

/// A request on NestJS's wire.
#[derive(Deserialize)]
struct Packet<'a> {
    #[serde(borrow)]
    data: &'a RawValue,
    #[serde(borrow)]
    id: &'a RawValue,
}

/// Its reply.
#[derive(Serialize)]
struct Answer<'a> {
    response: Payload,
    #[serde(rename = "isDisposed")]
    is_disposed: bool,
    id: &'a RawValue,
}

/// Writes the reply to a packet behind `out`.
fn answer_packet(packet: &[u8], out: &mut Vec<u8>) -> Result<()> {
    let packet: Packet<'_> = serde_json::from_slice(packet)?;
    let answer = Answer {
        response: serde_json::from_str(packet.data.get())?,
        is_disposed: true,
        id: packet.id,
    };
    serde_json::to_writer(out, &answer)?;
    Ok(())
}
