//! What the services of a world do.

use std::{
    collections::BTreeMap,
    future::pending,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use nestling::{BoxFuture, Guarantee, Payload, Router, RpcError, Streaming};
use tokio::{sync::Barrier, time::sleep};

use crate::shared::{Counted, Gauge, Shared};

/// The service that answers messages, and one that only hears of events.
pub(crate) const SERVICES: [&str; 2] = ["one", "two"];
/// How many of one handler's messages and events a replica works on at once.
pub(crate) const PLACES: usize = 2;
/// Calls from here on are answered at once, those from `SLOW` on after a while, and those from `GATHERED` on when
/// `PLACES` of them are there.
pub(crate) const QUICK: u64 = 1000;
pub(crate) const SLOW: u64 = 500_000;
pub(crate) const GATHERED: u64 = 1_000_000;

/// How often each call has run.
pub(crate) type Runs = Arc<Mutex<BTreeMap<(&'static str, u64), u32>>>;

/// The handlers of one replica.
pub(crate) struct Handlers {
    pub(crate) service: &'static str,
    pub(crate) replica: u32,
    /// What its server may have in work.
    pub(crate) permits: usize,
    pub(crate) shared: Shared,
    pub(crate) runs: Runs,
}

impl Handlers {
    pub(crate) fn router(&self) -> Router {
        let all = Gauge::new("all", self.permits, &self.shared);
        let mut limited =
            Router::new().event_with("happened", Guarantee::AtLeastOnce, self.happened(&all));
        let mut router = Router::new();
        if self.service == SERVICES[0] {
            limited = limited
                .message_with("safe", true, self.work("safe", &all))
                .message_with("once", false, self.work("once", &all));
            router = router.message_with("count", true, count);
        }
        router
            .message_at(full(self.service, self.replica), gather(self.permits))
            .merge(limited.max_in_flight(PLACES))
    }

    fn happened(
        &self,
        all: &Arc<Gauge>,
    ) -> impl Fn(Payload<u64>) -> BoxFuture<'static, Result<(), RpcError>> + Clone + Send + Sync + 'static
    {
        let (service, shared, all) = (self.service, self.shared.clone(), Arc::clone(all));
        let own = Gauge::new("happened", PLACES, &self.shared);
        move |Payload(n)| {
            let (shared, all, own) = (shared.clone(), Arc::clone(&all), Arc::clone(&own));
            Box::pin(async move {
                let in_work = [all.enter(), own.enter()];
                let pause = shared.pick(0..200).saturating_sub(100);
                let luck = shared.pick(0..100);
                if luck < 3 {
                    // Until its time is over.
                    pending::<()>().await;
                }
                let fails = luck < 40;
                sleep(Duration::from_millis(pause)).await;
                drop(in_work);
                // Every fifth event is poison.
                if fails || n % 5 == 4 {
                    return Err(RpcError::unavailable("not now"));
                }
                shared.tell(format_args!("{service} handled event {n}"));
                Ok(())
            })
        }
    }

    fn work(
        &self,
        kind: &'static str,
        all: &Arc<Gauge>,
    ) -> impl Fn(Payload<u64>) -> BoxFuture<'static, Result<u64, RpcError>> + Clone + Send + Sync + 'static
    {
        let (runs, shared, all) = (Arc::clone(&self.runs), self.shared.clone(), Arc::clone(all));
        let own = Gauge::new(kind, PLACES, &self.shared);
        let gather = gather(PLACES);
        move |Payload(n)| {
            if n >= GATHERED {
                return Box::pin(gather());
            }
            let in_work = [all.enter(), own.enter()];
            *runs.lock().unwrap().entry((kind, n)).or_default() += 1;
            shared.tell(format_args!("{kind} {n} runs"));
            let pause = match n {
                0..QUICK => shared.pick(0..600),
                SLOW.. => 300,
                _ => 0,
            };
            Box::pin(answer(n, Duration::from_millis(pause), in_work))
        }
    }
}

/// The message that a replica answers when everything it may have in work is one of them.
pub(crate) fn full(service: &str, replica: u32) -> String {
    format!("full.{service}.{replica}")
}

fn gather(
    count: usize,
) -> impl Fn() -> BoxFuture<'static, Result<u64, RpcError>> + Clone + Send + Sync + 'static {
    let barrier = Arc::new(Barrier::new(count));
    move || {
        let barrier = Arc::clone(&barrier);
        Box::pin(async move {
            barrier.wait().await;
            Ok(0)
        })
    }
}

async fn answer(n: u64, pause: Duration, in_work: [Counted; 2]) -> Result<u64, RpcError> {
    if !pause.is_zero() {
        sleep(pause).await;
    }
    drop(in_work);
    match n % 7 {
        6 => Err(RpcError::not_found("none")),
        _ => Ok(2 * n),
    }
}

async fn count(Payload(count): Payload<u64>) -> Streaming<u64> {
    Streaming::new(stream::iter(0..count).then(|value| async move {
        sleep(Duration::from_millis(20)).await;
        Ok(value)
    }))
}
