//! Connections that break without a word, readers that do not read, and consumers that take their time.

use std::{
    collections::HashSet,
    future::{Ready, ready},
    ops::Range,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, future::join_all, stream};
use nestling::{Client, Code, Guarantee, Payload, Router, RpcError, Running};

use super::{
    fixture::{Stage, echo},
    witness::{Crowd, Gate, Record, within},
};
use crate::{Broker, Proxy, Way};

/// What no transport needs to notice that a link is dead and to be where it was before: heartbeats that go unanswered,
/// sessions that run out, and a machine with other things to do.
const LONG: Duration = Duration::from_secs(90);
/// A call over a dead link gives up early.
const IMPATIENCE: Duration = Duration::from_millis(500);
/// A call that shows that all is well is given time.
const PATIENT: Duration = Duration::from_secs(10);
/// What a caller waits after a failure: NATS takes a consumer for alive for as long as it sends it something, answered or
/// not, and asks only then.
const BREATHER: Duration = Duration::from_secs(6);
/// What a server has in work at most, and many more calls than that.
const LIMIT: usize = 8;
const MANY: u64 = 100;

/// A place with one link in it that can fail.
struct Linked {
    /// Behind the link, where there is a broker.
    behind: Stage,
    /// Not behind it.
    direct: Stage,
    link: Proxy,
    _broker: Option<Broker>,
}

impl Linked {
    /// `None` where nothing can fail, or there is no broker.
    async fn new(stage: Stage) -> Option<Self> {
        if !stage.has_links() {
            eprintln!("off: there is no link to cut");
            return None;
        }
        let link = Proxy::start().await.expect("a proxy starts");
        if stage.broker().is_none() {
            return Some(Self {
                behind: stage.clone(),
                direct: stage,
                link,
                _broker: None,
            });
        }
        let (own, proxy) = (stage.clone(), link.port());
        let started = tokio::task::spawn_blocking(move || own.own_broker(Some(proxy)));
        let broker = started.await.expect("no panic")?;
        link.forward_to(broker.link_port());
        let port = |port: u16| format!("127.0.0.1:{port}");
        let url = broker.url().replace(&port(broker.port()), &port(proxy));
        Some(Self {
            behind: stage.clone().moved_to(url),
            direct: stage.moved_to(broker.url()),
            link,
            _broker: Some(broker),
        })
    }

    /// A server that does little at once. Without a broker, `is_behind` means that clients reach it by the link.
    async fn start(&self, replica: &str, router: Router, is_behind: bool) -> Running {
        let stage = match is_behind {
            true => &self.behind,
            false => &self.direct,
        };
        let server = stage.server("service", router).max_in_flight(LIMIT);
        let server = stage
            .start_server(server.instance(stage.service(replica)))
            .await;
        if is_behind && stage.broker().is_none() {
            self.link.forward_to(port(server.address()));
        }
        server
    }

    /// A client behind the link, on the way to a server that is not.
    async fn client_behind(&self, server: &Running) -> Client {
        if self.behind.broker().is_some() {
            return self.behind.client(&[server]).await;
        }
        self.link.forward_to(port(server.address()));
        self.client_of_link(&[]).await
    }

    /// A client of the server behind the link, and of others.
    async fn client_of_link(&self, others: &[&Running]) -> Client {
        let builder = match self.direct.broker() {
            Some(_) => self.direct.client_builder(&[]),
            None => {
                let mut url = format!("tcp://127.0.0.1:{}", self.link.port());
                for other in others {
                    url += &format!(",127.0.0.1:{}", port(other.address()));
                }
                self.direct.client_builder_at(&url)
            }
        };
        self.direct.connect(builder).await
    }
}

fn port(address: &str) -> u16 {
    let (_, port) = address.rsplit_once(':').expect("an address has a port");
    let digits = port.split('?').next().unwrap_or(port);
    digits.parse().expect("a port is a number")
}

/// A handler that writes its events down.
fn recording(
    events: &'static Record<u64>,
) -> impl Fn(Payload<u64>) -> Ready<Result<(), RpcError>> + Copy + Send + Sync + 'static {
    move |Payload(n)| {
        events.push(n);
        ready(Ok(()))
    }
}

fn echoing(stage: &Stage) -> (&'static str, Router) {
    let ask = stage.pattern("ask");
    (ask, Router::new().message_with(ask, true, echo::<u64>))
}

/// Many calls at once over a dead link: each ends soon, with an error that says what its caller may make of it.
async fn all_fail(client: &Client, ask: &'static str) {
    let calls = (0..MANY).map(|n| {
        let call = client.send_at::<u64>(ask, &n).timeout(IMPATIENCE);
        async move {
            let error = call.await.unwrap_err();
            let expected = [
                Code::Unavailable,
                Code::DeadlineExceeded,
                Code::ResourceExhausted,
            ];
            assert!(expected.contains(&error.code), "{error:?}");
        }
    });
    within("calls to end at their deadline", join_all(calls)).await;
}

/// Waits until calls succeed again, by themselves.
async fn one_succeeds(client: &Client, ask: &'static str) {
    let started = Instant::now();
    let retried = async {
        while client.send_at::<u64>(ask, &1).timeout(4 * IMPATIENCE).await != Ok(1) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let succeeded = tokio::time::timeout(LONG, retried).await;
    assert!(succeeded.is_ok(), "no call succeeded for {LONG:?}");
    eprintln!("calls succeed again after {:?}", started.elapsed());
}

/// Waits until whoever does not answer is not asked any more.
async fn many_succeed_in_a_row(client: &Client, ask: &'static str) {
    const MANY: u64 = 20;

    let started = Instant::now();
    let in_a_row = async {
        let mut count = 0;
        while count < MANY {
            if client
                .send_at::<u64>(ask, &count)
                .timeout(BREATHER / 2)
                .await
                == Ok(count)
            {
                count += 1;
            } else {
                count = 0;
                tokio::time::sleep(BREATHER).await;
            }
        }
    };
    let succeeded = tokio::time::timeout(LONG, in_a_row).await;
    assert!(succeeded.is_ok(), "calls still fail after {LONG:?}");
    eprintln!("all calls succeed after {:?}", started.elapsed());
}

/// Nothing is left of the calls that failed: many more than may be in work at once succeed.
async fn all_succeed(client: &Client, ask: &'static str) {
    let calls = (0..MANY).map(|n| async move {
        assert_eq!(client.send_at::<u64>(ask, &n).await, Ok(n));
    });
    within("many calls to succeed", join_all(calls)).await;
}

/// A caller's link falls silent and goes on where it was, or is cut and made again: calls end in time, and later ones
/// succeed with the same client.
pub async fn a_caller_survives_a_frozen_link_and_a_cut_one(stage: Stage) {
    let (ask, router) = echoing(&stage);
    let Some(linked) = Linked::new(stage).await else {
        return;
    };
    let server = linked.start("a", router, false).await;
    let client = linked.client_behind(&server).await;
    one_succeeds(&client, ask).await;
    all_succeed(&client, ask).await;

    linked.link.freeze();
    all_fail(&client, ask).await;
    linked.link.thaw();
    one_succeeds(&client, ask).await;
    all_succeed(&client, ask).await;

    linked.link.freeze();
    all_fail(&client, ask).await;
    linked.link.cut();
    linked.link.thaw();
    one_succeeds(&client, ask).await;
    all_succeed(&client, ask).await;
}

/// A caller's link falls silent for ever, without being closed: that is noticed, and another one made.
pub async fn a_caller_notices_a_link_that_is_dead(stage: Stage) {
    let (ask, router) = echoing(&stage);
    let Some(linked) = Linked::new(stage).await else {
        return;
    };
    let server = linked.start("a", router, false).await;
    let client = linked.client_behind(&server).await;
    one_succeeds(&client, ask).await;
    all_succeed(&client, ask).await;

    linked.link.abandon();
    all_fail(&client, ask).await;
    one_succeeds(&client, ask).await;
    all_succeed(&client, ask).await;
}

/// A service's link falls silent for ever: the service notices and is there again, and no event is lost that was
/// promised to arrive.
pub async fn a_service_notices_a_link_that_is_dead(stage: Stage) {
    const BEFORE: u64 = 20;
    const AFTER: u64 = 60;

    let (ask, router) = echoing(&stage);
    let happened = stage.pattern("happened");
    let events = Record::new();
    let guarantee = stage.guarantee();
    let router = router.event_with(happened, guarantee, recording(events));
    let Some(linked) = Linked::new(stage).await else {
        return;
    };
    let _server = linked.start("a", router, true).await;
    let client = linked.client_of_link(&[]).await;
    one_succeeds(&client, ask).await;
    all_succeed(&client, ask).await;
    let is_certain = guarantee == Guarantee::AtLeastOnce;
    if is_certain {
        emit(&client, happened, 0..BEFORE).await;
        events.at_least(BEFORE as usize).await;
    }

    linked.link.abandon();
    if is_certain {
        emit(&client, happened, BEFORE..AFTER).await;
    }
    many_succeed_in_a_row(&client, ask).await;
    all_succeed(&client, ask).await;
    if is_certain {
        all_arrive(events, AFTER).await;
    }
}

/// Emits until each is taken: one that is not acknowledged in time may be there twice.
async fn emit(client: &Client, happened: &'static str, numbers: Range<u64>) {
    let emitted = stream::iter(numbers)
        .map(|n| async move {
            while let Err(error) = client.emit_at(happened, &n).timeout(PATIENT).await {
                let expected = [Code::Unavailable, Code::DeadlineExceeded];
                assert!(expected.contains(&error.code), "{error:?}");
            }
        })
        .buffer_unordered(64)
        .for_each(async |()| {});
    let emitted = tokio::time::timeout(LONG, emitted).await;
    assert!(emitted.is_ok(), "events were not taken for {LONG:?}");
}

/// Waits until each of so many events has been seen at least once.
async fn all_arrive(events: &'static Record<u64>, count: u64) {
    let seen = || events.all().into_iter().collect::<HashSet<_>>().len() as u64;
    let arrived = async {
        while seen() < count {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let arrived = tokio::time::timeout(LONG, arrived).await;
    assert!(arrived.is_ok(), "{} of {count} events arrived", seen());
}

/// One of two replicas is cut off by a silent link, old and new connections alike: soon the other has all the work, and
/// what had been given to the first is not lost where that is promised.
pub async fn another_replica_answers_for_one_behind_a_dead_link(stage: Stage) {
    const EVENTS: u64 = 40;

    if !stage.asks_whether_peers_live() {
        eprintln!("off: nothing on this wire asks whether the other end is there");
        return;
    }
    let (ask, router) = echoing(&stage);
    let (events, guarantee) = (Record::new(), stage.guarantee());
    let happened = stage.pattern("happened");
    let router = router.event_with(happened, guarantee, recording(events));
    let Some(linked) = Linked::new(stage).await else {
        return;
    };
    let _cut_off = linked.start("a", router.clone(), true).await;
    let other = linked.start("b", router, false).await;
    let client = linked.client_of_link(&[&other]).await;
    one_succeeds(&client, ask).await;
    all_succeed(&client, ask).await;

    linked.link.freeze();
    let is_certain = guarantee == Guarantee::AtLeastOnce;
    if is_certain {
        emit(&client, happened, 0..EVENTS).await;
    }
    many_succeed_in_a_row(&client, ask).await;
    if is_certain {
        all_arrive(events, EVENTS).await;
    }
}

/// Somebody who does not read the replies to many calls: others get theirs meanwhile, and what waits is bounded.
pub async fn a_caller_that_does_not_read_holds_up_nobody_else(stage: Stage) {
    const LARGE: usize = 100_000;

    let (ask, router) = echoing(&stage);
    let large = stage.pattern("large");
    let repeat =
        |Payload(length): Payload<usize>| async move { Ok::<_, RpcError>("x".repeat(length)) };
    let router = router.message_with(large, true, repeat);
    let Some(linked) = Linked::new(stage).await else {
        return;
    };
    let server = linked.start("a", router, false).await;
    let deaf = linked.client_behind(&server).await;
    let other = linked.direct.client(&[&server]).await;
    for client in [&deaf, &other] {
        one_succeeds(client, ask).await;
        all_succeed(client, ask).await;
    }

    linked.link.freeze_way(Way::Back);
    let calls = join_all((0..32).map(|_| {
        let call = deaf.send_at::<String>(large, &LARGE);
        async move { call.timeout(2 * PATIENT).await }
    }));
    let others = async {
        for _ in 0..3 {
            all_succeed(&other, ask).await;
        }
        linked.link.thaw();
    };
    let (replies, ()) = tokio::join!(calls, others);
    for reply in replies {
        match reply {
            Ok(text) => assert_eq!(text.len(), LARGE),
            Err(error) => {
                let expected = [Code::Unavailable, Code::DeadlineExceeded];
                assert!(expected.contains(&error.code), "{error:?}");
            }
        }
    }
    one_succeeds(&deaf, ask).await;
    all_succeed(&deaf, ask).await;
}

/// A service takes its time over thousands of events: it never has more of them in work than it may, another service of
/// the same broker keeps pace, and none is lost, on wires that promise little no more than on others: so many find room.
pub async fn a_slow_consumer_loses_nothing_and_holds_up_no_other(stage: Stage) {
    // Where nothing is stored, more than a queue holds is refused by its sender.
    let count = if stage.has_links() { 3000 } else { 500 };
    let happened = stage.pattern("happened");
    let (crowd, gate) = (Crowd::new(), Gate::new());
    let (late, prompt) = (Record::new(), Record::new());
    let wait = move |Payload(n): Payload<u64>| async move {
        crowd.enter();
        gate.pass().await;
        crowd.leave();
        late.push(n);
        Ok::<_, RpcError>(())
    };
    let guarantee = stage.guarantee();
    let slow = stage
        .server("slow", Router::new().event_with(happened, guarantee, wait))
        .max_in_flight(LIMIT);
    let slow = stage.start_server(slow).await;
    let quick = Router::new().event_with(happened, guarantee, recording(prompt));
    let quick = stage.start_server(stage.server("quick", quick)).await;
    let client = stage.client(&[&slow, &quick]).await;

    emit(&client, happened, 0..count).await;
    all_arrive(prompt, count).await;
    crowd.reaches(1).await;
    assert!(crowd.most() <= LIMIT, "{} are in work", crowd.most());
    assert_eq!(late.count(), 0);
    gate.open();
    all_arrive(late, count).await;
    assert!(crowd.most() <= LIMIT, "{} were in work", crowd.most());
}
