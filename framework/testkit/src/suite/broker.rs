//! A broker that dies and comes back while everybody is busy.

use std::{collections::HashMap, future::IntoFuture};

use futures_util::{StreamExt, stream};
use nestling::{Client, Guarantee, Payload, Router, RpcError};

use super::{
    fixture::{Stage, echo},
    load::{TRY, ask, emit, must_pass},
    witness::{Record, eventually},
};

/// How many requests there are, and how many events.
const EACH: u64 = 5_000;
/// One in so many requests must not run twice.
const CAREFUL: u64 = 5;
const KEYS: u64 = 16;
const AT_ONCE: usize = 64;

/// The broker is killed when half of five thousand requests and of as many events are through, and started again: server
/// and client go on by themselves. Whoever may ask again is answered, what must not run twice does not, and no event
/// that was acknowledged is lost.
pub async fn a_broker_killed_amid_five_thousand_of_each_comes_back(stage: Stage) {
    if stage.broker().is_none() {
        eprintln!("off: there is no broker to kill");
        return;
    }
    let Some(mut broker) = stage.own_broker(None) else {
        return;
    };
    let stage = stage.moved_to(broker.url());
    let load = Load {
        careless: stage.pattern("careless"),
        careful: stage.pattern("careful"),
        happened: stage.pattern("happened"),
        ran: Record::new(),
        answered: Record::new(),
        handled: Record::new(),
        through: Record::new(),
    };
    let server = stage.start(load.router(stage.guarantee())).await;
    let client = stage.client(&[&server]).await;

    let all = stream::iter(0..EACH).for_each_concurrent(AT_ONCE, |n| load.work(&client, n));
    let trouble = async {
        load.through.reaches(EACH as usize / 2).await;
        let restarted = tokio::task::spawn_blocking(move || {
            broker.kill();
            broker.restart().map(|()| broker)
        });
        restarted
            .await
            .expect("no panic")
            .expect("the broker starts again")
    };
    let ((), _broker) = tokio::join!(all, trouble);

    let mut runs = HashMap::new();
    for n in load.ran.all() {
        *runs.entry(n).or_insert(0) += 1;
    }
    assert!(runs.values().all(|runs| *runs == 1), "some ran twice");
    let answered = load.answered.all();
    assert!(answered.iter().all(|n| runs.contains_key(n)));
    if stage.guarantee() == Guarantee::AtLeastOnce {
        eventually("all events to be handled", async || {
            let handled = load.handled.all();
            let is_missing = |n: &u64| !handled.contains(n);
            (handled.len() >= EACH as usize && !(0..EACH).any(|n| is_missing(&n))).then_some(())
        })
        .await;
    }
    eventually("another event to arrive", async || {
        emit(&client, load.happened, 0, EACH).await;
        load.handled.all().contains(&EACH).then_some(())
    })
    .await;
}

/// What everybody does, and what is known of it.
struct Load {
    careless: &'static str,
    careful: &'static str,
    happened: &'static str,
    /// The requests of which each may run once.
    ran: &'static Record<u64>,
    answered: &'static Record<u64>,
    handled: &'static Record<u64>,
    /// A request and an event each.
    through: &'static Record<u64>,
}

impl Load {
    fn router(&self, guarantee: Guarantee) -> Router {
        let (ran, handled) = (self.ran, self.handled);
        let run = move |Payload(n): Payload<u64>| async move {
            ran.push(n);
            Ok::<_, RpcError>(n)
        };
        let handle = move |Payload((_, n)): Payload<(u64, u64)>| async move {
            handled.push(n);
            Ok::<_, RpcError>(())
        };
        Router::new()
            .message_with(self.careless, true, echo::<u64>)
            .message_at(self.careful, run)
            .event_with(self.happened, guarantee, handle)
    }

    async fn work(&self, client: &Client, n: u64) {
        if n.is_multiple_of(CAREFUL) {
            let call = client.send_at::<u64>(self.careful, &n).timeout(TRY);
            match call.into_future().await {
                Ok(reply) => {
                    assert_eq!(reply, n, "somebody else's reply");
                    self.answered.push(n);
                }
                Err(error) => must_pass(&error),
            }
        } else {
            ask(client, self.careless, n).await;
        }
        emit(client, self.happened, n % KEYS, n).await;
        self.through.push(n);
    }
}
