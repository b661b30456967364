//! The run loop and what surrounds it, on the memory transport under paused time: a test that waits for a second waits
//! until nothing else can happen.

use std::{
    future::{IntoFuture, pending},
    panic::catch_unwind,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::stream;
use nestling::{
    Client, Code, Context, Event, Guarantee, Payload, Router, RpcError, Server, StartError,
    Streaming, guard, intercept, transport::Memory,
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
) -> impl Fn(Payload<u64>) -> nestling::BoxFuture<'static, Result<u64, RpcError>> + Clone + Send + Sync + 'static
{
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

mod start {
    use super::*;

    #[tokio::test]
    async fn an_event_that_needs_more_than_its_transport_gives_is_refused_with_the_way_out() {
        let router = Router::new().event(on_order);
        let server = Server::new("order", router).listen("tcp://127.0.0.1:0");
        let error = server.start().await.unwrap_err();
        assert!(matches!(error, StartError::Unfit { .. }), "{error:?}");
        let text = error.to_string();
        for part in ["order.placed", file!(), "tcp://127.0.0.1:0", "kafka://", "redis://", "best_effort"] {
            assert!(text.contains(part), "no {part} in: {text}");
        }
    }

    #[tokio::test]
    async fn a_best_effort_event_is_welcome_on_tcp() {
        let router = Router::new().event(on_page);
        let server = Server::new("page", router).listen("tcp://127.0.0.1:0").start().await.unwrap();
        let client = Client::builder(server.address()).emits::<PageSeen>().build().await.unwrap();
        client.emit(PageSeen { page: 1 }).await.unwrap();
        server.shutdown().await;
    }

    #[tokio::test]
    async fn a_client_that_promises_an_event_its_transport_cannot_carry_is_refused() {
        let server = Server::new("order", Router::new()).listen("tcp://127.0.0.1:0").start().await.unwrap();
        let promise = Client::builder(server.address()).emits::<OrderPlaced>().build().await;
        let text = promise.unwrap_err().to_string();
        for part in ["order.placed", "tcp", "kafka://", "best_effort"] {
            assert!(text.contains(part), "no {part} in: {text}");
        }
        let client = Client::connect(server.address()).await.unwrap();
        let error = client.emit(OrderPlaced { order: 1 }).await.unwrap_err();
        assert_eq!(error.code, Code::FailedPrecondition);
        assert!(error.message.contains("order.placed"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_events_url_gives_what_the_listen_url_does_not() {
        let memory = Memory::new();
        let log = Log::new();
        let handler = {
            let log = log.clone();
            move |event: OrderPlaced, cx: Context| {
                log.push((event.order, cx.transport()));
                async { Ok::<_, RpcError>(()) }
            }
        };
        let router = Router::new().event(handler).message_at("echo", echo);
        let server = Server::new("order", router).listen("tcp://127.0.0.1:0").events(&memory);
        let server = server.start().await.unwrap();
        let bus = Client::builder(&memory).emits::<OrderPlaced>().build().await.unwrap();
        bus.emit(OrderPlaced { order: 7 }).await.unwrap();
        sleep(SECOND).await;
        assert_eq!(log.all(), [(7, "memory")]);
        // Messages come by the listen URL alone.
        assert_eq!(bus.send_at::<u64>("echo", &1).await.unwrap_err().code, Code::Unavailable);
        server.shutdown().await;
    }

    #[tokio::test(start_paused = true)]
    async fn one_endpoint_for_messages_and_events_is_subscribed_to_once() {
        let memory = Memory::new();
        let log = Log::new();
        let handler = {
            let log = log.clone();
            move |event: OrderPlaced| {
                log.push(event.order);
                async { Ok::<_, RpcError>(()) }
            }
        };
        let router = Router::new().event(handler);
        let server = Server::new("order", router).listen(&memory).events(&memory).start().await.unwrap();
        let client = Client::connect(&memory).await.unwrap();
        client.emit(OrderPlaced { order: 7 }).await.unwrap();
        sleep(SECOND).await;
        assert_eq!(log.all(), [7]);
        server.shutdown().await;
    }

    #[tokio::test]
    async fn a_url_that_makes_no_sense_is_explained() {
        let without = Server::new("x", Router::new()).start().await.unwrap_err();
        assert!(matches!(without, StartError::NoEndpoint));
        for (url, part) in [
            ("carrier-pigeon://coop", "tcp"),
            ("memory:", "hand it to both sides"),
            ("tcp://127.0.0.1:0?colour=red", "colour"),
            ("tcp://ada:secret@127.0.0.1:0?colour=red", "***"),
        ] {
            let text = Server::new("x", Router::new()).listen(url).start().await.unwrap_err().to_string();
            assert!(text.contains(part), "no {part} in: {text}");
            assert!(!text.contains("secret"), "{text}");
        }
    }

    #[test]
    fn two_handlers_of_one_message_are_refused_naming_both_places() {
        let first_line = line!() + 1;
        let one = Router::new().message_at("a", echo);
        let other = Router::new().message_at("a", echo);
        let panic = catch_unwind(|| drop(one.merge(other))).unwrap_err();
        let text = panic.downcast_ref::<String>().unwrap();
        for line in [first_line, first_line + 1] {
            let place = format!("{}:{line}", file!());
            assert!(text.contains(&place), "no {place} in: {text}");
        }
    }
}

mod layers {
    use super::*;

    /// A layer that logs on the way in and on the way out.
    fn around(name: &'static str, log: &Log<String>) -> nestling::Intercept {
        let log = log.clone();
        intercept(move |cx, next| {
            let log = log.clone();
            async move {
                log.push(format!("{name} in"));
                let reply = next.run(cx).await;
                log.push(format!("{name} {}", if reply.is_ok() { "out" } else { "sees an error" }));
                reply
            }
        })
    }

    fn logged_echo(log: &Log<String>) -> impl Fn(Payload<u64>) -> nestling::BoxFuture<'static, Result<u64, RpcError>> + Clone + Send + Sync + 'static {
        let log = log.clone();
        move |Payload(n)| {
            log.push("handler".to_owned());
            Box::pin(async move { Ok(n) })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_layer_added_last_is_the_outermost_and_wraps_only_what_was_there() {
        let (memory, log) = (Memory::new(), Log::new());
        let router = Router::new()
            .message_at("early", logged_echo(&log))
            .layer(around("inner", &log))
            .message_at("late", logged_echo(&log))
            .layer(around("outer", &log));
        let server = Server::new("x", router).listen(&memory).start().await.unwrap();
        let client = Client::connect(&memory).await.unwrap();

        client.send_at::<u64>("early", &1).await.unwrap();
        assert_eq!(log.all(), ["outer in", "inner in", "handler", "inner out", "outer out"]);
        client.send_at::<u64>("late", &1).await.unwrap();
        assert_eq!(log.all()[5..], ["outer in", "handler", "outer out"]);
        server.shutdown().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_guard_refuses_before_the_handler_or_hands_on_what_it_found() {
        struct Actor(String);
        async fn signed_in(mut cx: Context) -> Result<Context, RpcError> {
            let actor = cx.header("actor").ok_or_else(|| RpcError::unauthenticated("sign in first"))?;
            let actor = Actor(actor.to_owned());
            cx.insert(actor);
            Ok(cx)
        }
        let (memory, log) = (Memory::new(), Log::new());
        let who = {
            let log = log.clone();
            move |cx: Context| {
                log.push("handler".to_owned());
                async move { Ok::<_, RpcError>(cx.get::<Actor>().map(|actor| actor.0.clone())) }
            }
        };
        let router =
            Router::new().message_at("who", who).layer(guard(signed_in)).layer(around("outer", &log));
        let server = Server::new("x", router).listen(&memory).start().await.unwrap();
        let client = Client::connect(&memory).await.unwrap();

        let refused = client.send_at::<Option<String>>("who", &()).await;
        assert_eq!(refused, Err(RpcError::unauthenticated("sign in first")));
        assert_eq!(log.all(), ["outer in", "outer sees an error"]);
        let known = client.send_at::<Option<String>>("who", &()).header("actor", "ada").await;
        assert_eq!(known, Ok(Some("ada".to_owned())));
        server.shutdown().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_in_a_layer_is_internal_and_the_server_goes_on() {
        let memory = Memory::new();
        let on_call = intercept(|cx: Context, next: nestling::Next| {
            assert!(cx.header("x-panic") != Some("called"), "on purpose");
            async move {
                assert!(cx.header("x-panic") != Some("polled"), "on purpose");
                next.run(cx).await
            }
        });
        let router = Router::new().message_at("echo", echo).layer(on_call);
        let server = Server::new("x", router).listen(&memory).start().await.unwrap();
        let client = Client::connect(&memory).await.unwrap();
        for panic in ["called", "polled"] {
            let error = client.send_at::<u64>("echo", &1).header("x-panic", panic).await.unwrap_err();
            assert_eq!(error.code, Code::Internal);
            assert_eq!(client.send_at::<u64>("echo", &1).await, Ok(1));
        }
        server.shutdown().await;
    }
}

mod limits {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_permit_is_held_while_work_is_pending() {
        let (memory, log, turn) = (Memory::new(), Log::new(), Arc::new(Notify::new()));
        let router = Router::new().message_at("held", held(&log, &turn));
        let server = Server::new("x", router).listen(&memory).max_in_flight(1).start().await.unwrap();
        let client = Client::builder(&memory).timeout(SECOND * 600).build().await.unwrap();

        let calls = async {
            tokio::join!(client.send_at::<u64>("held", &1), client.send_at::<u64>("held", &2).into_future())
        };
        let watch = async {
            sleep(SECOND).await;
            assert_eq!(log.all(), [1], "the second waits for the permit of the first");
            turn.notify_one();
            sleep(SECOND).await;
            assert_eq!(log.all(), [1, 2]);
            turn.notify_one();
        };
        let (replies, ()) = tokio::join!(calls, watch);
        assert_eq!(replies, (Ok(1), Ok(2)));
        server.shutdown().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_holds_its_permit_until_it_ends() {
        let memory = Memory::new();
        let endless = || async { Streaming::new(stream::iter(0_u64..).map_ok()) };
        let router = Router::new().message_at("endless", endless).message_at("echo", echo);
        let server = Server::new("x", router).listen(&memory).max_in_flight(1).start().await.unwrap();
        let client = Client::connect(&memory).await.unwrap();

        let mut values = client.stream_at::<u64>("endless", &()).await.unwrap();
        assert_eq!(values.try_next().await, Ok(Some(0)));
        let error = client.send_at::<u64>("echo", &1).timeout(SECOND).await.unwrap_err();
        assert_eq!(error.code, Code::DeadlineExceeded);
        drop(values);
        assert_eq!(client.send_at::<u64>("echo", &1).await, Ok(1));
        server.shutdown().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_whose_caller_has_given_up_in_the_queue_is_not_begun() {
        let (memory, log, turn) = (Memory::new(), Log::new(), Arc::new(Notify::new()));
        let router = Router::new().message_at("held", held(&log, &turn));
        let server = Server::new("x", router).listen(&memory).max_in_flight(1).start().await.unwrap();
        let client = Client::builder(&memory).timeout(SECOND * 600).build().await.unwrap();

        let first = client.send_at::<u64>("held", &1).into_future();
        let impatient = async {
            sleep(SECOND).await;
            let late = client.send_at::<u64>("held", &2).timeout(SECOND).await;
            assert_eq!(late.unwrap_err().code, Code::DeadlineExceeded);
            turn.notify_one();
        };
        let (first, ()) = tokio::join!(first, impatient);
        assert_eq!(first, Ok(1));
        sleep(SECOND).await;
        assert_eq!(log.all(), [1]);
        server.shutdown().await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_handler_that_hangs_is_tried_again() {
        let (memory, log) = (Memory::new(), Log::new());
        let started = Instant::now();
        let handler = {
            let log = log.clone();
            move |_: OrderPlaced, cx: Context| {
                log.push((cx.attempt(), started.elapsed().as_secs()));
                async move {
                    if cx.attempt() == 1 {
                        pending::<()>().await;
                    }
                    Ok::<_, RpcError>(())
                }
            }
        };
        let router = Router::new().event(handler);
        let server = Server::new("x", router).listen(&memory).handler_timeout(SECOND * 7);
        let server = server.start().await.unwrap();
        Client::connect(&memory).await.unwrap().emit(OrderPlaced { order: 1 }).await.unwrap();
        sleep(SECOND * 60).await;
        assert_eq!(log.all(), [(1, 0), (2, 7)]);
        server.shutdown().await;
    }
}

mod events {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_pause_between_two_tries_grows() {
        let (memory, log) = (Memory::new(), Log::new());
        let handler = {
            let log = log.clone();
            move |_: OrderPlaced| {
                log.push(Instant::now());
                async { Err::<(), _>(RpcError::unavailable("not now")) }
            }
        };
        let server = Server::new("x", Router::new().event(handler)).listen(&memory).retry(4, SECOND);
        let server = server.start().await.unwrap();
        Client::connect(&memory).await.unwrap().emit(OrderPlaced { order: 1 }).await.unwrap();
        sleep(SECOND * 1000).await;
        let tries = log.all();
        assert_eq!(tries.len(), 4);
        for (pair, longest) in tries.windows(2).zip([1, 4, 16]) {
            let pause = pair[1] - pair[0];
            let longest = SECOND * longest;
            let rounding = Duration::from_millis(2);
            assert!(pause >= longest / 2 && pause <= longest + rounding, "{pause:?} of {longest:?}");
        }
        server.shutdown().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_event_holds_up_its_own_key_only() {
        let (memory, log) = (Memory::new(), Log::new());
        let handler = {
            let log = log.clone();
            move |Payload(n): Payload<u64>| {
                log.push(n);
                async move { if n == 1 { Err(RpcError::unavailable("not now")) } else { Ok(()) } }
            }
        };
        let router = Router::new().event_with("e", Guarantee::AtLeastOnce, handler);
        let server = Server::new("x", router).listen(&memory).retry(2, SECOND * 10).start().await.unwrap();
        let client = Client::connect(&memory).await.unwrap();
        for (n, key) in [(1, "a"), (2, "a"), (3, "b")] {
            client.emit_at("e", &n).header("key", key).await.unwrap();
        }
        sleep(SECOND).await;
        assert_eq!(log.all(), [1, 3]);
        sleep(SECOND * 30).await;
        assert_eq!(log.all(), [1, 3, 1, 2]);
        server.shutdown().await;
    }
}

mod shutdown {
    use super::*;

    /// Two replicas; the one that is drained never finishes.
    async fn drain_with(idempotent: bool) -> (Result<u64, RpcError>, usize) {
        let memory = Memory::new();
        let runs = Arc::new(AtomicUsize::new(0));
        let handler = {
            let runs = Arc::clone(&runs);
            move |Payload(n): Payload<u64>| {
                let first = runs.fetch_add(1, Ordering::Relaxed) == 0;
                async move {
                    if first {
                        pending::<()>().await;
                    }
                    Ok::<_, RpcError>(n)
                }
            }
        };
        let router = Router::new().message_with("hang", idempotent, handler);
        let server = || Server::new("x", router.clone()).listen(&memory).drain_timeout(SECOND * 3);
        let draining = server().start().await.unwrap();
        let client = Client::builder(&memory).timeout(SECOND * 600).build().await.unwrap();
        let stop = async {
            sleep(SECOND).await;
            let other = server().start().await.unwrap();
            let began = Instant::now();
            draining.shutdown().await;
            let took = began.elapsed();
            assert!(took >= SECOND * 3 && took < SECOND * 4, "{took:?}");
            other
        };
        let (reply, other) = tokio::join!(client.send_at::<u64>("hang", &7), stop);
        other.shutdown().await;
        (reply, runs.load(Ordering::Relaxed))
    }

    #[tokio::test(start_paused = true)]
    async fn what_exceeds_the_drain_timeout_goes_to_another() {
        assert_eq!(drain_with(true).await, (Ok(7), 2));
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_not_run_twice_ends_with_an_error_instead() {
        let (reply, runs) = drain_with(false).await;
        assert_eq!(reply.unwrap_err().code, Code::Unavailable);
        assert_eq!(runs, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_exceeds_the_drain_timeout_ends_with_an_error() {
        let memory = Memory::new();
        let endless = || async { Streaming::new(stream::iter(0_u64..).map_ok()) };
        let router = Router::new().message_at("endless", endless);
        let server = Server::new("x", router).listen(&memory).drain_timeout(SECOND).start().await.unwrap();
        let client = Client::connect(&memory).await.unwrap();
        let mut values = client.stream_at::<u64>("endless", &()).await.unwrap();
        assert_eq!(values.try_next().await, Ok(Some(0)));
        server.shutdown().await;
        let end = loop {
            match values.try_next().await {
                Ok(Some(_)) => {}
                other => break other,
            }
        };
        assert_eq!(end.unwrap_err().code, Code::Unavailable);
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_server_stops_at_once() {
        let memory = Memory::new();
        let server = Server::new("x", Router::new().message_at("echo", echo)).listen(&memory);
        let server = server.start().await.unwrap();
        let client = Client::connect(&memory).await.unwrap();
        assert_eq!(client.send_at::<u64>("echo", &1).await, Ok(1));
        let began = Instant::now();
        server.shutdown().await;
        assert!(began.elapsed() < Duration::from_millis(100));
        assert_eq!(client.send_at::<u64>("echo", &1).await.unwrap_err().code, Code::Unavailable);
    }
}

/// Values of a stream that never fails.
trait MapOk: futures_util::Stream + Sized {
    fn map_ok(self) -> impl futures_util::Stream<Item = Result<Self::Item, RpcError>> + Send + 'static
    where
        Self: Send + 'static,
    {
        futures_util::StreamExt::map(self, Ok)
    }
}

impl<S: futures_util::Stream> MapOk for S {}
