//! Typed messages and events between services, over a transport that is chosen by a URL.
//!
//! A service is a set of async functions that answer **messages** (request and reply, one value or
//! a stream of them) and react to **events** (nobody replies). Each is a Rust type, the
//! **contract**, that carries its pattern and, for messages, its reply. Neither contracts nor
//! handlers know which **transport** moves them: TCP, NATS, Redis, Kafka, or memory.
//!
#![cfg_attr(feature = "macros", doc = "```")]
#![cfg_attr(not(feature = "macros"), doc = "```ignore")]
//! use nestling::{Client, Message, Router, RpcError, Server, controller, transport::Memory};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize, Message)]
//! #[message(pattern = "math.double", reply = u64, idempotent)]
//! struct Double(u64);
//!
//! struct Math;
//!
//! #[controller]
//! impl Math {
//!     #[message_pattern]
//!     async fn double(&self, Double(n): Double) -> Result<u64, RpcError> {
//!         n.checked_mul(2).ok_or_else(|| RpcError::invalid_argument("too large"))
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let memory = Memory::new(); // or a URL on both sides: "tcp://127.0.0.1:7000", "nats://…"
//! let server = Server::new("math", Router::new().controller(Math)).listen(&memory).start().await?;
//!
//! let client = Client::connect(&memory).await?;
//! assert_eq!(client.send(Double(21)).await?, 42);
//! server.shutdown().await;
//! # Ok(())
//! # }
//! ```
#![warn(missing_docs)]

mod client;
mod codec;
mod context;
mod contract;
mod endpoint;
mod envelope;
mod error;
mod extract;
mod handler;
mod introspect;
mod layer;
#[cfg_attr(
    not(all(
        feature = "tcp",
        feature = "nats",
        feature = "redis",
        feature = "kafka"
    )),
    allow(dead_code, unused_imports, reason = "each transport uses a part of it")
)]
mod pattern;
mod router;
mod server;
#[cfg(feature = "service")]
pub mod service;
#[cfg(feature = "sqlx")]
pub mod sqlite;
pub mod transport;

#[cfg(feature = "macros")]
pub use nestling_macros::{Event, Message, controller};

pub use self::{
    client::{Breaker, Builder, Client, EmitCall, Policy, Retry, SendCall, SendFuture, StreamCall},
    codec::Codec,
    context::Context,
    contract::{Event, Guarantee, Many, Message, Shape, Single},
    endpoint::{Endpoint, Endpoints},
    envelope::{Envelope, Headers, MAX_HEADER_BYTES, MAX_HEADERS, MAX_PATTERN, header},
    error::{Code, RpcError},
    extract::{FromContext, Payload},
    handler::{
        Answer, BoxFuture, ByteStream, EventHandler, Handler, IntoAnyReply, IntoReply,
        MessageHandler, Reply, Streaming,
    },
    introspect::{Check, Gauge, Health, Info, Introspection},
    layer::{Intercept, Next, guard, intercept},
    router::{Controller, Route, Router},
    server::{Running, Server, Signals, StartError},
};

/// The code in the README, which is compiled and run like any other example.
#[cfg(all(doctest, feature = "macros"))]
#[doc = include_str!("../../README.md")]
struct Readme;

/// The same of the guide for those who come from NestJS.
#[cfg(all(doctest, feature = "macros"))]
#[doc = include_str!("../../docs/nestjs.md")]
struct FromNestJs;
