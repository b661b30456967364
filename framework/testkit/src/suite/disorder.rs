//! Events that come twice or fail when others are behind them, and clocks that are wrong: what may be out of order, and
//! what may not.

use std::time::Duration;

use nestling::{
    Context, Payload, Router, RpcError,
    sqlite::{self, Inbox, Outbox},
};
use tokio::task::yield_now;

use super::{
    child::{Child, HELD, Job, Patterns},
    fixture::Stage,
    load::must_pass,
    witness::{Gate, Record, eventually},
};
use crate::Kind;

/// More than any case makes.
const TRIES: u32 = 1000;
const FIRST_DELAY: Duration = Duration::from_millis(10);

/// What one client emits, one event after the other, one replica begins in that order, however long each takes.
pub async fn events_are_begun_in_the_order_they_were_emitted(stage: Stage) {
    const EVENTS: u64 = 100;

    let pattern = stage.pattern("happened");
    let begun = Record::new();
    let handler = move |Payload(n): Payload<u64>| async move {
        begun.push(n);
        for _ in 0..(EVENTS - n) % 4 {
            yield_now().await;
        }
        Ok::<_, RpcError>(())
    };
    let router = Router::new().event_with(pattern, stage.guarantee(), handler);
    let server = stage.start(router).await;
    let client = stage.client(&[&server]).await;

    for n in 0..EVENTS {
        client
            .emit_at(pattern, &n)
            .header("key", "k")
            .await
            .unwrap();
    }
    let begun = begun.at_least(EVENTS as usize).await;
    assert_eq!(begun, (0..EVENTS).collect::<Vec<_>>());
}

/// An event that fails for a while is not overtaken by what is behind it with its key; what has another goes on.
pub async fn a_failing_event_is_not_overtaken_by_others_of_its_key(stage: Stage) {
    const EVENTS: u64 = 30;
    const KEYS: u64 = 10;

    let pattern = stage.pattern("happened");
    let (handled, mended) = (Record::new(), Gate::new());
    let tries = Record::new();
    let handler = move |Payload(n): Payload<u64>| async move {
        if n == 0 && !mended.is_open() {
            tries.push(n);
            return Err(RpcError::unavailable("not now"));
        }
        handled.push(n);
        Ok(())
    };
    let router = Router::new().event_with(pattern, stage.guarantee(), handler);
    let server = stage.server("service", router).retry(TRIES, FIRST_DELAY);
    let server = stage.start_server(server).await;
    let client = stage.client(&[&server]).await;

    for n in 0..EVENTS {
        client
            .emit_at(pattern, &n)
            .header("key", format!("key {}", n % KEYS))
            .await
            .unwrap();
    }
    let others = handled.at_least((EVENTS - EVENTS / KEYS) as usize).await;
    assert!(others.iter().all(|n| n % KEYS != 0), "{others:?}");
    // It has been tried again with all the others behind it.
    let before = tries.count();
    tries.at_least(before + 1).await;
    mended.open();
    let mut handled = handled.at_least(EVENTS as usize).await;
    handled.retain(|n| n % KEYS == 0);
    assert_eq!(
        handled,
        (0..EVENTS).step_by(KEYS as usize).collect::<Vec<_>>()
    );
}

/// An event that is published twice, and one whose handler fails when its effect is there already, come again; the inbox
/// lets the effect happen once.
pub async fn an_event_that_comes_twice_has_one_effect(stage: Stage) {
    let pattern = stage.pattern("happened");
    let pool = sqlite::open_in_memory().await.unwrap();
    // It makes the inbox's table too.
    Outbox::open(pool.clone()).await.unwrap();
    let (came, effects) = (Record::new(), Record::new());
    let handler = move |Payload(n): Payload<u64>, cx: Context| {
        let pool = pool.clone();
        async move {
            came.push(n);
            let mut tx = pool.begin().await?;
            if Inbox::is_new(&mut tx, "handler", &cx).await? {
                effects.push(n);
            }
            tx.commit().await?;
            if n == 1 && cx.attempt() == 1 {
                return Err(RpcError::unavailable("after it was done"));
            }
            Ok(())
        }
    };
    let router = Router::new().event_with(pattern, stage.guarantee(), handler);
    let server = stage.server("service", router).retry(TRIES, FIRST_DELAY);
    let server = stage.start_server(server).await;
    let client = stage.client(&[&server]).await;

    for (n, id) in [(0, "a"), (0, "a"), (1, "b"), (2, "c")] {
        let event = client.emit_at(pattern, &n).header("key", "k");
        event.header("event-id", stage.service(id)).await.unwrap();
    }
    eventually("the last one", async || {
        effects.all().contains(&2).then_some(())
    })
    .await;
    assert_eq!(effects.all(), [0, 1, 2]);
    assert_eq!(came.count_of(|n| **n == 1), 2, "it failed once");
}

/// A service whose clock is an hour ahead of the broker's, or behind, still knows how long a request has waited: it
/// answers one that has time left, and leaves one alone whose caller has gone.
pub async fn a_clock_may_be_wrong(stage: Stage) {
    const HOUR: i64 = 3600;
    const LONG: Duration = Duration::from_secs(25);
    const SHORT: Duration = Duration::from_millis(300);

    if stage.broker() == Some(Kind::Kafka) {
        // Its library waits by that clock, and would for an hour: the transport's own tests have the case.
        eprintln!("off: a process that speaks to Kafka cannot be given a wrong clock");
        return;
    }
    for ahead in [HOUR, -HOUR] {
        let patterns = Patterns::of(&stage);
        // So that there is a place where requests wait.
        let right = stage.start(patterns.router(|_, _| {}, false)).await;
        let early = stage.client(&[&right]).await;
        right.shutdown().await;
        let late = 1 + ahead.unsigned_abs() * HELD;
        let call = early.send_at::<u64>(patterns.careless, &late);
        must_pass(&call.timeout(SHORT).await.unwrap_err());

        let Some(wrong) = Child::start_ahead(&stage, patterns, ahead).await else {
            eprintln!("off: there is no process whose clock could be wrong");
            return;
        };
        let client = stage.client_builder_of(&[&wrong.address]);
        let client = stage.connect(client).await;
        for n in (1..30).filter(|n| n % HELD != 0) {
            let call = client.send_at::<u64>(patterns.careless, &n);
            assert_eq!(call.timeout(LONG).await, Ok(n), "{ahead} seconds ahead");
        }
        let begun = wrong.begun.all();
        assert!(
            !begun.contains(&(Job::Careless, late)),
            "{ahead} seconds ahead"
        );
    }
}
