//! The loop seen from the other side: a transport of the test's own hands out deliveries and looks at their outcomes.

use std::task::{self, Poll};

use futures_util::StreamExt;
use nestling::{
    Envelope,
    transport::{
        Capabilities, Delivery, Error, Gone, Kind, Order, Outcome, Responder, ServerTransport,
        Source, Sources, Subscription,
    },
};
use tokio::sync::mpsc;

use super::*;

pub(super) type Outcomes = Log<Outcome>;

/// Hands out what it was made with, has always room, and never hears of a caller again.
struct Script {
    deliveries: Mutex<Option<mpsc::UnboundedReceiver<Delivery>>>,
}

struct ScriptSource {
    deliveries: mpsc::UnboundedReceiver<Delivery>,
}

pub(super) struct Witness {
    pub(super) outcomes: Outcomes,
    values: Arc<AtomicUsize>,
}

pub(super) fn script() -> (Arc<dyn ServerTransport>, mpsc::UnboundedSender<Delivery>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (
        Arc::new(Script {
            deliveries: Mutex::new(Some(receiver)),
        }),
        sender,
    )
}

impl Witness {
    pub(super) fn new() -> Self {
        Self {
            outcomes: Log::new(),
            values: Arc::default(),
        }
    }

    pub(super) fn delivery(
        &self,
        kind: Kind,
        pattern: &'static str,
        payload: &'static str,
    ) -> Delivery {
        let responder = Self {
            outcomes: self.outcomes.clone(),
            values: Arc::clone(&self.values),
        };
        Delivery::new(kind, Envelope::new(pattern, payload), Box::new(responder))
    }
}

#[async_trait::async_trait]
impl ServerTransport for Script {
    fn name(&self) -> &'static str {
        "script"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            events: Guarantee::AtLeastOnce,
            replicas_share: false,
            fan_out: false,
            durable: false,
            order: Order::None,
            redelivers: true,
            dead_letters: false,
            cancels: false,
            stream_credit: false,
            detects_absence: false,
            max_payload: 1024,
        }
    }

    async fn subscribe(&self, _: Subscription) -> Result<Sources, Error> {
        let deliveries = self.deliveries.lock().unwrap().take().unwrap();
        let source: Box<dyn Source> = Box::new(ScriptSource { deliveries });
        Ok(Box::pin(stream::iter([source])))
    }
}

impl Source for ScriptSource {
    fn poll_deliveries(
        &mut self,
        cx: &mut task::Context<'_>,
        room: usize,
        batch: &mut Vec<Delivery>,
    ) -> Poll<Option<usize>> {
        if room == 0 {
            return Poll::Pending;
        }
        self.deliveries.poll_recv(cx).map(|delivery| {
            batch.push(delivery?);
            Some(1)
        })
    }

    fn stop(&mut self) {
        self.deliveries.close();
    }

    fn poll_close(&mut self, _: &mut task::Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }
}

impl Responder for Witness {
    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> Poll<Result<(), Gone>> {
        Poll::Ready(Ok(()))
    }

    fn value(&mut self, _: bytes::Bytes) {
        self.values.fetch_add(1, Ordering::Relaxed);
    }

    fn poll_cancelled(&mut self, _: &mut task::Context<'_>) -> Poll<()> {
        Poll::Pending
    }

    fn settle(self: Box<Self>, outcome: Outcome) {
        self.outcomes.push(outcome);
    }
}

pub(super) fn code(outcome: &Outcome) -> Option<Code> {
    match outcome {
        Outcome::Fail(error) => Some(error.code),
        _ => None,
    }
}

#[tokio::test(start_paused = true)]
async fn every_delivery_is_settled_once() {
    let (transport, deliveries) = script();
    let later = || async {
        sleep(SECOND).await;
        Ok::<_, RpcError>(7)
    };
    let refuse = || async { Err::<(), _>(RpcError::invalid_argument("never")) };
    let router = Router::new()
        .message_at("echo", echo)
        .message_at("later", later)
        .event_with("refused", Guarantee::AtLeastOnce, refuse)
        .event_with("fine", Guarantee::AtLeastOnce, || async {
            Ok::<_, RpcError>(())
        });
    let server = Server::new("x", router)
        .listen(transport)
        .start()
        .await
        .unwrap();

    let witness = Witness::new();
    let mut expired = witness.delivery(Kind::Message, "echo", "1");
    expired.envelope.deadline = Some(Instant::now());
    deliveries.send(expired).unwrap();
    for (kind, pattern, payload) in [
        (Kind::Message, "later", "null"),
        (Kind::Message, "echo", "1"),
        (Kind::Message, "nobody", "1"),
        (Kind::Event, "refused", "null"),
        (Kind::Event, "fine", "null"),
    ] {
        deliveries
            .send(witness.delivery(kind, pattern, payload))
            .unwrap();
    }
    sleep(SECOND * 2).await;
    let outcomes = witness.outcomes.all();
    assert_eq!(outcomes.len(), 6, "{outcomes:?}");
    assert_eq!(code(&outcomes[0]), Some(Code::DeadlineExceeded));
    assert_eq!(outcomes[1], Outcome::Reply("1".into()));
    assert_eq!(code(&outcomes[2]), Some(Code::Unimplemented));
    assert!(outcomes[3..5].contains(&Outcome::Ack), "{outcomes:?}");
    assert!(
        outcomes[3..5]
            .iter()
            .any(|outcome| matches!(outcome, Outcome::Reject(_)))
    );
    assert_eq!(outcomes[5], Outcome::Reply("7".into()));
    server.shutdown().await;
    assert_eq!(witness.outcomes.all().len(), 6);
}

#[tokio::test(start_paused = true)]
async fn work_that_is_torn_down_is_given_back() {
    let (transport, deliveries) = script();
    let hang = || pending::<Result<(), RpcError>>();
    let router = Router::new()
        .event_with("hang", Guarantee::AtLeastOnce, hang)
        .message_at("hang", hang);
    let server = Server::new("x", router)
        .listen(transport)
        .start()
        .await
        .unwrap();
    let witness = Witness::new();
    for kind in [Kind::Event, Kind::Message] {
        deliveries
            .send(witness.delivery(kind, "hang", "null"))
            .unwrap();
    }
    sleep(SECOND).await;
    assert_eq!(witness.outcomes.all(), []);
    drop(server);
    sleep(SECOND).await;
    let given_back = Outcome::Retry {
        after: Duration::ZERO,
    };
    assert_eq!(witness.outcomes.all(), [given_back.clone(), given_back]);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_torn_down_ends_because_its_reader_has_seen_values() {
    let (transport, deliveries) = script();
    let begun = || async { Streaming::new(stream::iter([Ok(1_u64)]).chain(stream::pending())) };
    let router = Router::new().message_with("begun", true, begun);
    let server = Server::new("x", router)
        .listen(transport)
        .start()
        .await
        .unwrap();
    let witness = Witness::new();
    deliveries
        .send(witness.delivery(Kind::Message, "begun", "null"))
        .unwrap();
    sleep(SECOND).await;
    assert_eq!(witness.values.load(Ordering::Relaxed), 1);
    drop(server);
    sleep(SECOND).await;
    let outcomes = witness.outcomes.all();
    assert_eq!(outcomes.len(), 1);
    assert_eq!(code(&outcomes[0]), Some(Code::Unavailable));
}

#[tokio::test]
async fn an_endless_stream_leaves_room_for_others_and_ends_with_its_deadline() {
    let (transport, deliveries) = script();
    let endless = || async { Streaming::new(stream::iter(0_u64..).map_ok()) };
    let router = Router::new()
        .message_at("endless", endless)
        .message_at("echo", echo);
    let server = Server::new("x", router)
        .listen(transport)
        .start()
        .await
        .unwrap();

    let (witness, other) = (Witness::new(), Witness::new());
    let mut delivery = witness.delivery(Kind::Message, "endless", "null");
    delivery.envelope.deadline = Some(Instant::now() + Duration::from_millis(50));
    deliveries.send(delivery).unwrap();
    deliveries
        .send(other.delivery(Kind::Message, "echo", "1"))
        .unwrap();
    // All of this happens on one thread: without a pause in the stream it would never end.
    while witness.outcomes.all().is_empty() || other.outcomes.all().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(
        code(&witness.outcomes.all()[0]),
        Some(Code::DeadlineExceeded)
    );
    assert_eq!(other.outcomes.all(), [Outcome::Reply("1".into())]);
    assert!(witness.values.load(Ordering::Relaxed) > 0);
    server.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn the_sender_decides_whether_it_is_answered() {
    let (transport, deliveries) = script();
    let heard = Log::new();
    let hear = {
        let heard = heard.clone();
        move || {
            heard.push("event");
            async { Ok::<_, RpcError>(()) }
        }
    };
    let answer = {
        let heard = heard.clone();
        move |Payload(n): Payload<u64>| {
            heard.push("message");
            async move {
                match n {
                    0 => Err(RpcError::not_found("none")),
                    n => Ok(n),
                }
            }
        }
    };
    let router = Router::new()
        .event_with("happened", Guarantee::AtLeastOnce, hear)
        .message_at("ask", answer);
    let server = Server::new("x", router).listen(transport);
    let server = server.start().await.unwrap();

    let check = async |kind, pattern, payload, expected| {
        let witness = Witness::new();
        deliveries
            .send(witness.delivery(kind, pattern, payload))
            .unwrap();
        sleep(SECOND).await;
        assert_eq!(witness.outcomes.all(), [expected], "{kind:?} {pattern}");
    };
    check(Kind::Message, "happened", "null", Outcome::Done).await;
    check(Kind::Event, "happened", "null", Outcome::Ack).await;
    check(Kind::Event, "ask", "1", Outcome::Ack).await;
    check(Kind::Event, "ask", "0", Outcome::Ack).await;
    check(Kind::Event, "nobody", "1", Outcome::Ack).await;
    assert_eq!(heard.all(), ["event", "event", "message", "message"]);
    server.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_stream_travels_with_its_last_value_if_it_is_known() {
    let (transport, deliveries) = script();
    let now = || async { Streaming::of([1_u64, 2, 3]) };
    let later = || async {
        let end = stream::once(sleep(SECOND)).filter_map(async |()| None);
        Streaming::new(stream::iter([Ok(1_u64)]).chain(end))
    };
    let router = Router::new()
        .message_at("now", now)
        .message_at("later", later)
        .message_at("empty", || async { Streaming::<u64>::of([]) });
    let server = Server::new("x", router).listen(transport);
    let server = server.start().await.unwrap();

    let check = async |pattern, values, end| {
        let witness = Witness::new();
        deliveries
            .send(witness.delivery(Kind::Message, pattern, "null"))
            .unwrap();
        sleep(SECOND * 2).await;
        assert_eq!(witness.values.load(Ordering::Relaxed), values, "{pattern}");
        assert_eq!(witness.outcomes.all(), [end], "{pattern}");
    };
    check("now", 2, Outcome::Reply("3".into())).await;
    check("later", 1, Outcome::Done).await;
    check("empty", 0, Outcome::Done).await;
    server.shutdown().await;
}
