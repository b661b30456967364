//! A broker that dies and comes back while everybody is busy.

use std::{future::IntoFuture, time::Duration};

use futures_util::future::join_all;
use nestling::{Code, Payload, Router, RpcError};

use super::{
    fixture::{Stage, echo},
    witness::{Gate, Record, eventually, within},
};

/// A call in these hard times gives up early, so that the next can try.
const IMPATIENCE: Duration = Duration::from_secs(2);
const CALLERS: u64 = 4;
/// How many calls in all are enough to call it working.
const ENOUGH: usize = 50;

/// The broker is killed and started again: calls fail in a way their callers understand, and then server and client go on
/// by themselves.
pub async fn a_killed_broker_comes_back_under_load(stage: Stage) {
    if stage.broker().is_none() {
        eprintln!("off: there is no broker to kill");
        return;
    }
    let Some(mut broker) = stage.own_broker() else {
        return;
    };
    let stage = stage.moved_to(broker.url());
    let (ask, happened) = (stage.pattern("ask"), stage.pattern("happened"));
    let events = Record::new();
    let react = move |Payload(n): Payload<u64>| async move {
        events.push(n);
        Ok::<_, RpcError>(())
    };
    let router = Router::new()
        .message_with(ask, true, echo::<u64>)
        .event_with(happened, stage.guarantee(), react);
    let server = stage.start(router).await;
    let client = stage.client(&[&server]).await;

    let (answered, enough) = (Record::new(), Gate::new());
    let callers = join_all((0..CALLERS).map(|caller| {
        let client = &client;
        async move {
            let mut n = caller;
            while !enough.is_open() {
                let call = client
                    .send_at::<u64>(ask, &n)
                    .timeout(IMPATIENCE)
                    .into_future();
                match within("a call to end", call).await {
                    Ok(reply) => {
                        assert_eq!(reply, n);
                        answered.push(n);
                    }
                    Err(error) => {
                        let expected = [
                            Code::Unavailable,
                            Code::DeadlineExceeded,
                            Code::ResourceExhausted,
                        ];
                        assert!(expected.contains(&error.code), "{error:?}");
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
                n += CALLERS;
            }
        }
    }));
    let trouble = async {
        answered.at_least(ENOUGH).await;
        client.emit_at(happened, &1).await.unwrap();
        events.at_least(1).await;

        broker.kill();
        let restarted = tokio::task::spawn_blocking(move || broker.restart().map(|()| broker));
        let _broker = restarted
            .await
            .expect("no panic")
            .expect("the broker starts again");
        answered.at_least(answered.count() + ENOUGH).await;
        eventually("the event to arrive", async || {
            let emitted = client.emit_at(happened, &2).timeout(IMPATIENCE).await;
            (emitted.is_ok() && events.all().contains(&2)).then_some(())
        })
        .await;
        enough.open();
        answered.count()
    };
    let (_, answered) = tokio::join!(callers, trouble);
    assert!(answered >= 2 * ENOUGH);
}
