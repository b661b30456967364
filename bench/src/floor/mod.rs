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
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use nestling::transport::Task;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::{mpsc, oneshot};

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
    calls: Mutex<HashMap<u64, Waiter>>,
}

#[derive(Debug)]
enum Waiter {
    One(oneshot::Sender<Bytes>),
    Many(mpsc::UnboundedSender<Bytes>),
}

/// Where the replies of a call arrive.
#[derive(Debug)]
enum Replies {
    One(oneshot::Receiver<Bytes>),
    Many(mpsc::UnboundedReceiver<Bytes>),
}

impl Waiting {
    /// A number, and where its replies arrive. As many are sent as were asked for.
    fn open(&self, spec: &Spec) -> (u64, Replies) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (waiter, replies) = match spec.values() {
            1 => {
                let (sender, receiver) = oneshot::channel();
                (Waiter::One(sender), Replies::One(receiver))
            }
            _ => {
                let (sender, receiver) = mpsc::unbounded_channel();
                (Waiter::Many(sender), Replies::Many(receiver))
            }
        };
        self.lock().insert(number, waiter);
        (number, replies)
    }

    /// Hands a reply on, unless its caller has gone.
    fn answer(&self, number: u64, payload: Bytes) {
        let mut calls = self.lock();
        let is_gone = match calls.get(&number) {
            Some(Waiter::Many(sender)) => sender.send(payload).is_err(),
            _ => {
                if let Some(Waiter::One(sender)) = calls.remove(&number) {
                    drop(sender.send(payload));
                }
                return;
            }
        };
        if is_gone {
            calls.remove(&number);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Waiter>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for all replies and checks each.
    async fn finish(
        &self,
        (number, replies): (u64, Replies),
        spec: &Spec,
        sent: &Payload,
    ) -> Result<u32> {
        match replies {
            Replies::One(reply) => check(spec, sent, &reply.await.context("no reply")?)?,
            Replies::Many(mut replies) => {
                for _ in 0..spec.values() {
                    let bytes = replies.recv().await.context("the connection was lost")?;
                    check(spec, sent, &bytes)?;
                }
                self.lock().remove(&number);
            }
        }
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
