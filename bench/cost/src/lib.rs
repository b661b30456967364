//! What one message costs, in figures that do not depend on how busy the machine is.
//!
//! Each [`Scenario`] is one way of a message through the framework, in a steady state and on one
//! thread. Two programs run it: `cost-allocations`, whose allocator counts, and `cost-instructions`,
//! which valgrind watches. `cargo xtask cost` runs both and compares with `costs.json`.
//!
//! A figure is the difference between a run of some messages and one of twice as many, so neither
//! starting nor the first growth of a buffer counts.

mod events;
mod floors;
mod memory;
mod tcp;

use std::{env, future::Future};

use nestling::{Endpoint, Event, Message, Router, RpcError, Running, Server};
use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, Runtime};

/// How many messages the shorter of two runs has: whole batches, for scenarios that send some at once.
pub const MESSAGES: u64 = 10 * BATCH;

/// How many messages travel at once where that is more than one: as many as the run loop takes in a
/// round.
const BATCH: u64 = 64;

/// Sends as many messages as it is told, and returns when all of them have been dealt with.
pub type Work = Box<dyn FnMut(u64)>;

/// One way of a message through the framework.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// What it is called in `costs.json`.
    pub name: &'static str,
    start: fn(Bench) -> Work,
}

impl Scenario {
    /// Makes all that it needs, and sends messages until buffers and tables have their size.
    pub fn start(&self) -> Work {
        let mut work = (self.start)(Bench::new());
        work(2 * MESSAGES);
        work
    }
}

/// All there are.
pub const SCENARIOS: &[Scenario] = &[
    scenario("floor: event decoded", floors::event),
    scenario("event handled", events::handled),
    scenario("event without fields handled", events::handled_empty),
    scenario("event over memory, both sides", memory::event),
    scenario(
        "floor: request and reply encoded and decoded",
        floors::request,
    ),
    scenario("request over memory, both sides", memory::request),
    scenario(
        "request over memory, both sides, bincode",
        memory::request_bincode,
    ),
    scenario(
        "request over memory, both sides, with context",
        memory::request_with_context,
    ),
    scenario(
        "request over memory, both sides, with 5 headers",
        memory::request_with_headers,
    ),
    scenario("streamed value over memory, both sides", memory::stream),
    scenario("floor: request over tcp, server", tcp::server_floor),
    scenario("request over tcp, server", tcp::server),
    scenario("request over tcp, server, nest wire", tcp::server_nest),
    scenario(
        "request over tcp, server, handler waits once",
        tcp::server_waiting,
    ),
    scenario("request over tcp, both sides", tcp::both_sides),
    scenario(
        "request over tcp, both sides, nest wire",
        tcp::both_sides_nest,
    ),
];

const fn scenario(name: &'static str, start: fn(Bench) -> Work) -> Scenario {
    Scenario { name, start }
}

/// The scenarios that the command line names; all of them if it names none.
///
/// # Errors
/// The name that is none.
pub fn chosen() -> Result<Vec<Scenario>, String> {
    let names: Vec<String> = env::args().skip(1).collect();
    if names.is_empty() {
        return Ok(SCENARIOS.to_vec());
    }
    let find = |name: &String| {
        let found = SCENARIOS.iter().find(|scenario| scenario.name == name);
        found
            .copied()
            .ok_or_else(|| format!("no scenario {name:?}"))
    };
    names.iter().map(find).collect()
}

/// The one thread that everything runs on.
struct Bench {
    runtime: Runtime,
}

impl Bench {
    fn new() -> Self {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a machine that runs this has room for one runtime");
        Self { runtime }
    }

    fn wait<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// As a task of its own, which is where calls are made in a service.
    fn run(&self, task: impl Future<Output = ()> + Send + 'static) {
        let task = self.runtime.spawn(task);
        self.wait(task).expect("it has not panicked");
    }

    fn serve(&self, router: Router, listen: impl Into<Endpoint>) -> Running {
        let server = Server::new("cost", router).listen(listen);
        self.wait(server.start()).expect("a free port, at most")
    }
}

/// Some 64 bytes of JSON whose fields need no allocation.
#[derive(Serialize, Deserialize, Message)]
#[message(pattern = "cost.ask", reply = Answer)]
struct Ask {
    order: u64,
    user: u64,
    cents: u64,
}

/// The same message to another handler.
#[derive(Serialize, Deserialize, Message)]
#[message(pattern = "cost.ask_with_context", reply = Answer)]
struct AskWithContext {
    order: u64,
    user: u64,
    cents: u64,
}

/// The same message to a handler that is not done when it is polled first.
#[derive(Serialize, Deserialize, Message)]
#[message(pattern = "cost.ask_waiting", reply = Answer)]
struct AskWaiting {
    order: u64,
    user: u64,
    cents: u64,
}

/// Asks for so many answers.
#[derive(Serialize, Deserialize, Message)]
#[message(pattern = "cost.list", stream = Answer)]
struct List {
    count: u64,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Answer {
    order: u64,
    cents: u64,
    paid: bool,
}

#[derive(Serialize, Deserialize, Event)]
#[event(pattern = "cost.placed")]
struct Placed {
    order: u64,
    user: u64,
    cents: u64,
}

/// Nothing to decode.
#[derive(Serialize, Deserialize, Event)]
#[event(pattern = "cost.rung")]
struct Rung;

const ORDER: u64 = 1_234_567_890;
const USER: u64 = 98_765;
const CENTS: u64 = 12_345;

fn ask() -> Ask {
    Ask {
        order: ORDER,
        user: USER,
        cents: CENTS,
    }
}

fn answer(order: u64, cents: u64) -> Answer {
    Answer {
        order,
        cents,
        paid: true,
    }
}

fn messages() -> Router {
    Router::new()
        .message(async |ask: Ask| Ok::<_, RpcError>(answer(ask.order, ask.cents)))
        .message(memory::with_context)
        .message(tcp::waiting)
        .message(memory::list)
}
