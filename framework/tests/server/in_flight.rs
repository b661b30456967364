//! Limits of single handlers, and what waits without a permit.

use std::future::{Ready, ready};

use futures_util::future::join_all;
use nestling::{
    Running,
    transport::{Kind, Outcome},
};

use super::{
    seam::{Witness, code, script},
    *,
};

const HOUR: Duration = Duration::from_secs(3600);

/// A server with few permits, and a client that waits as long as it takes.
async fn served(router: Router, permits: usize) -> (Running, Client) {
    let memory = Memory::new();
    let server = Server::new("x", router)
        .listen(&memory)
        .max_in_flight(permits)
        .handler_timeout(HOUR)
        .retry(3, SECOND * 100);
    let server = server.start().await.unwrap();
    let client = Client::builder(&memory).timeout(HOUR).build().await;
    (server, client.unwrap())
}

/// A handler that holds what it gets until its turn, and has one place.
fn one_held() -> (Log<u64>, Arc<Notify>, Router) {
    let (log, turn) = (Log::new(), Arc::new(Notify::new()));
    let router = Router::new()
        .message_at("held", held(&log, &turn))
        .max_in_flight(1);
    (log, turn, router)
}

/// Fails at once, every time, and says with what.
fn failing(
    log: &Log<u64>,
) -> impl Fn(Payload<u64>) -> Ready<Result<(), RpcError>> + Clone + Send + Sync + 'static {
    let log = log.clone();
    move |Payload(n)| {
        log.push(n);
        ready(Err(RpcError::unavailable("not now")))
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_has_no_more_in_work_than_it_may_and_holds_up_no_other() {
    let (log, turn) = (Log::new(), Arc::new(Notify::new()));
    let router = Router::new()
        .message_at("held", held(&log, &turn))
        .max_in_flight(2)
        .message_at("echo", echo);
    // One permit more than the limited handler may have.
    let (server, client) = served(router, 3).await;
    let calls = (0..6_u64).map(|n| {
        let client = client.clone();
        async move { client.send_at::<u64>("held", &n).await }
    });
    let watch = async {
        sleep(SECOND).await;
        assert_eq!(log.all(), [0, 1]);
        assert_eq!(client.send_at::<u64>("echo", &7).await, Ok(7));
        for done in 1..=6 {
            turn.notify_one();
            sleep(SECOND).await;
            let begun = (done + 2).min(6);
            assert_eq!(log.all(), (0..begun).collect::<Vec<_>>(), "in their order");
        }
    };
    let (replies, ()) = tokio::join!(join_all(calls), watch);
    assert_eq!(replies, (0..6).map(Ok).collect::<Vec<_>>());
    server.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_limit_of_a_handlers_own_stays_and_a_router_has_one_for_each() {
    let (log, turn) = (Log::new(), Arc::new(Notify::new()));
    let narrow = Router::new()
        .message_at("narrow", held(&log, &turn))
        .max_in_flight(1);
    let router = Router::new()
        .message_at("one", held(&log, &turn))
        .message_at("two", held(&log, &turn))
        .merge(narrow)
        .max_in_flight(2);
    let (server, client) = served(router, 100).await;
    let calls = ["one", "two", "narrow"].into_iter().flat_map(|pattern| {
        let client = &client;
        (0..3_u64).map(move |n| async move { client.send_at::<u64>(pattern, &n).await })
    });
    let watch = async {
        sleep(SECOND).await;
        assert_eq!(log.all().len(), 2 + 2 + 1);
        for _ in 0..9 {
            turn.notify_one();
            sleep(SECOND).await;
        }
    };
    tokio::join!(join_all(calls), watch);
    server.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_beyond_the_queue_of_a_handler_is_refused_at_once() {
    let (_, turn, router) = one_held();
    let (server, client) = served(router, 100).await;
    let began = Instant::now();
    let calls = (0..20_u64).map(|n| {
        let client = client.clone();
        async move {
            let result = client.send_at::<u64>("held", &n).await;
            (result, began.elapsed() < SECOND)
        }
    });
    let release = async {
        for _ in 0..20 {
            sleep(SECOND).await;
            turn.notify_one();
        }
    };
    let (ends, ()) = tokio::join!(join_all(calls), release);
    let refused = ends
        .iter()
        .filter(|(result, at_once)| match result {
            Ok(_) => false,
            Err(error) => {
                assert_eq!(error.code, Code::ResourceExhausted);
                assert!(at_once);
                true
            }
        })
        .count();
    assert_eq!(refused, 20 - 17, "one runs and sixteen wait: {ends:?}");
    server.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_message_that_has_waited_until_its_deadline_is_refused_without_having_run() {
    let (transport, deliveries) = script();
    let (log, turn, router) = one_held();
    let server = Server::new("x", router)
        .listen(transport)
        .handler_timeout(SECOND * 50);
    let server = server.start().await.unwrap();
    let (runs, late, patient) = (Witness::new(), Witness::new(), Witness::new());
    deliveries
        .send(runs.delivery(Kind::Message, "held", "1"))
        .unwrap();
    let mut delivery = late.delivery(Kind::Message, "held", "2");
    delivery.envelope.deadline = Some(Instant::now() + SECOND * 10);
    deliveries.send(delivery).unwrap();
    sleep(SECOND * 9).await;
    // Its caller set no deadline.
    deliveries
        .send(patient.delivery(Kind::Message, "held", "3"))
        .unwrap();
    assert_eq!(late.outcomes.all(), []);
    sleep(SECOND * 2).await;
    let outcomes = late.outcomes.all();
    assert_eq!(code(&outcomes[0]), Some(Code::ResourceExhausted));
    sleep(SECOND * 40).await;
    let outcomes = runs.outcomes.all();
    assert_eq!(code(&outcomes[0]), Some(Code::DeadlineExceeded));
    sleep(SECOND).await;
    turn.notify_one();
    sleep(SECOND).await;
    assert_eq!(patient.outcomes.all(), [Outcome::Reply("3".into())]);
    assert_eq!(log.all(), [1, 3]);
    server.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_message_whose_caller_goes_while_it_waits_never_runs() {
    let (log, turn, router) = one_held();
    let (server, client) = served(router, 100).await;
    let first = client.send_at::<u64>("held", &0).into_future();
    let watch = async {
        sleep(SECOND).await;
        // More than have room: who leaves makes room.
        for n in 1..40 {
            let call = client.send_at::<u64>("held", &n).into_future();
            assert!(tokio::time::timeout(SECOND, call).await.is_err());
            sleep(SECOND).await;
        }
        let last = client.send_at::<u64>("held", &40).into_future();
        let release = async {
            turn.notify_one();
            sleep(SECOND).await;
            turn.notify_one();
        };
        tokio::join!(last, release).0
    };
    let (first, last) = tokio::join!(first, watch);
    assert_eq!((first, last), (Ok(0), Ok(40)));
    assert_eq!(log.all(), [0, 40]);
    server.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_has_its_place_until_it_ends() {
    let endless = || async { Streaming::new(stream::iter(0_u64..).map_ok()) };
    let router = Router::new()
        .message_at("endless", endless)
        .max_in_flight(1);
    let (server, client) = served(router, 100).await;
    let mut first = client.stream_at::<u64>("endless", &()).await.unwrap();
    assert_eq!(first.try_next().await, Ok(Some(0)));
    let mut second = client.stream_at::<u64>("endless", &()).await.unwrap();
    let next = tokio::time::timeout(SECOND * 5, second.try_next()).await;
    assert!(next.is_err(), "{next:?}");
    drop(first);
    assert_eq!(second.try_next().await, Ok(Some(0)));
    server.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn events_beyond_a_handlers_limit_wait_in_the_order_of_their_keys() {
    let (log, turn) = (Log::new(), Arc::new(Notify::new()));
    let seen = Log::new();
    let see = {
        let seen = seen.clone();
        move |Payload(n): Payload<u64>| {
            seen.push(n);
            ready(Ok::<_, RpcError>(()))
        }
    };
    let router = Router::new()
        .event_with("held", Guarantee::AtLeastOnce, held(&log, &turn))
        .max_in_flight(2)
        .event_with("seen", Guarantee::AtLeastOnce, see)
        .message_at("echo", echo);
    let (server, client) = served(router, 3).await;
    // More than would have room as messages.
    for n in 0..60_u64 {
        let key = format!("k{}", n % 3);
        client.emit_at("held", &n).header("key", key).await.unwrap();
    }
    client.emit_at("seen", &1_u64).await.unwrap();
    assert_eq!(client.send_at::<u64>("echo", &1).await, Ok(1));
    sleep(SECOND).await;
    assert_eq!((log.all().len(), seen.all().len()), (2, 1));
    for _ in 0..60 {
        turn.notify_one();
        sleep(SECOND).await;
    }
    for key in 0..3 {
        let of_key: Vec<_> = log.all().into_iter().filter(|n| n % 3 == key).collect();
        assert_eq!(of_key, (0..20).map(|n| 3 * n + key).collect::<Vec<_>>());
    }
    server.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn an_event_that_a_message_handler_takes_is_not_refused_either() {
    let (transport, deliveries) = script();
    let (log, turn, router) = one_held();
    let server = Server::new("x", router)
        .listen(transport)
        .handler_timeout(HOUR);
    let server = server.start().await.unwrap();
    let witness = Witness::new();
    for _ in 0..30 {
        let event = witness.delivery(Kind::Event, "held", "1");
        deliveries.send(event).unwrap();
    }
    for _ in 0..30 {
        sleep(SECOND).await;
        turn.notify_one();
    }
    sleep(SECOND).await;
    assert_eq!(log.all().len(), 30);
    assert_eq!(witness.outcomes.all(), vec![Outcome::Ack; 30]);
    server.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_message_that_waits_when_the_server_is_torn_down_is_given_back() {
    let (transport, deliveries) = script();
    let hang = || pending::<Result<(), RpcError>>();
    let router = Router::new().message_at("hang", hang).max_in_flight(1);
    let server = Server::new("x", router).listen(transport);
    let server = server.start().await.unwrap();
    let witness = Witness::new();
    for _ in 0..2 {
        let message = witness.delivery(Kind::Message, "hang", "null");
        deliveries.send(message).unwrap();
    }
    sleep(SECOND).await;
    drop(server);
    sleep(SECOND).await;
    let given_back = Outcome::Retry {
        after: Duration::ZERO,
    };
    assert_eq!(witness.outcomes.all(), [given_back.clone(), given_back]);
}

#[tokio::test(start_paused = true)]
async fn events_that_wait_for_their_next_try_hold_no_permit() {
    let log = Log::new();
    let router = Router::new()
        .event_with("failing", Guarantee::AtLeastOnce, failing(&log))
        .message_at("echo", echo);
    let (server, client) = served(router, 2).await;
    for n in 0..50 {
        client.emit_at("failing", &n).await.unwrap();
    }
    let reply = client.send_at::<u64>("echo", &1).timeout(SECOND).await;
    assert_eq!(reply, Ok(1));
    assert_eq!(log.all().len(), 50);
    sleep(HOUR).await;
    assert_eq!(log.all().len(), 3 * 50);
    server.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn events_that_wait_for_their_turn_hold_no_permit() {
    let (log, turn) = (Log::new(), Arc::new(Notify::new()));
    let router = Router::new()
        .event_with("held", Guarantee::AtLeastOnce, held(&log, &turn))
        .message_at("echo", echo);
    let (server, client) = served(router, 2).await;
    for n in 0..50_u64 {
        client.emit_at("held", &n).header("key", "k").await.unwrap();
    }
    let reply = client.send_at::<u64>("echo", &1).timeout(SECOND).await;
    assert_eq!(reply, Ok(1));
    for _ in 0..50 {
        turn.notify_one();
        sleep(SECOND).await;
    }
    assert_eq!(log.all(), (0..50).collect::<Vec<_>>());
    server.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_try_has_a_permit() {
    let (log, turn) = (Log::new(), Arc::new(Notify::new()));
    let first_fails = {
        let held = held(&log, &turn);
        move |payload: Payload<u64>, cx: Context| {
            let held = held.clone();
            async move {
                match cx.attempt() {
                    1 => Err(RpcError::unavailable("not now")),
                    _ => held(payload).await.map(drop),
                }
            }
        }
    };
    let router = Router::new()
        .event_with("e", Guarantee::AtLeastOnce, first_fails)
        .message_at("echo", echo);
    let (server, client) = served(router, 2).await;
    for n in 0..5_u64 {
        client.emit_at("e", &n).await.unwrap();
    }
    sleep(SECOND * 101).await;
    assert_eq!(log.all().len(), 2);
    let late = client.send_at::<u64>("echo", &1).timeout(SECOND).await;
    assert_eq!(late.unwrap_err().code, Code::DeadlineExceeded);
    for _ in 0..5 {
        turn.notify_one();
        sleep(SECOND).await;
    }
    assert_eq!(log.all().len(), 5);
    assert_eq!(client.send_at::<u64>("echo", &1).await, Ok(1));
    server.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_source_with_too_many_unsettled_events_is_not_asked_for_more() {
    let (transport, deliveries) = script();
    let log = Log::new();
    let router = Router::new().event_with("failing", Guarantee::AtLeastOnce, failing(&log));
    let server = Server::new("x", router)
        .listen(transport)
        .max_in_flight(2)
        .retry(2, SECOND * 10);
    let server = server.start().await.unwrap();
    let witness = Witness::new();
    for _ in 0..1500 {
        let event = witness.delivery(Kind::Event, "failing", "1");
        deliveries.send(event).unwrap();
    }
    sleep(SECOND).await;
    assert_eq!(log.all().len(), 1024);
    // Those that are given up make room.
    sleep(HOUR).await;
    assert_eq!(witness.outcomes.all().len(), 1500);
    assert_eq!(log.all().len(), 2 * 1500);
    server.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_source_has_its_turn_among_many_that_try_again() {
    let (bus, memory) = (Memory::new(), Memory::new());
    let slow = |cx: Context| async move {
        if cx.attempt() > 1 {
            sleep(SECOND * 10).await;
        }
        Err::<(), _>(RpcError::unavailable("not now"))
    };
    let router = Router::new()
        .event_with("slow", Guarantee::AtLeastOnce, slow)
        .message_at("echo", echo);
    let server = Server::new("x", router)
        .listen(&memory)
        .events(&bus)
        .max_in_flight(1)
        .retry(2, SECOND);
    let server = server.start().await.unwrap();
    let events = Client::connect(&bus).await.unwrap();
    for n in 0..50_u64 {
        events.emit_at("slow", &n).await.unwrap();
    }
    sleep(SECOND * 15).await;
    let began = Instant::now();
    let client = Client::builder(&memory).timeout(HOUR).build().await;
    let reply = client.unwrap().send_at::<u64>("echo", &1).await;
    assert_eq!(reply, Ok(1));
    assert!(began.elapsed() <= SECOND * 20, "{:?}", began.elapsed());
    server.shutdown().await;
}
