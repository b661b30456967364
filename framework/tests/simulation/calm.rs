//! What holds once nothing goes wrong any more, and through an outage after that.

use std::time::Duration;

use futures_util::future::join_all;
use nestling::Client;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    handlers::{GATHERED, PLACES, QUICK, SERVICES, SLOW, full},
    world::{CALL_TRIES, COOL_DOWN, IN_FLIGHT, Manners, PROBES, World},
};

const OUTAGE: Duration = Duration::from_secs(3);
/// What a client may make again without having earned it.
const RESERVE: u32 = 10;

impl World {
    pub(crate) async fn check_calm(&self) {
        self.check_that_all_is_free().await;
        self.check_that_calls_succeed(QUICK).await;
        self.check_outage().await;
        // The longest cool-down there is.
        sleep(COOL_DOWN * 16).await;
        // A probe of which nothing is heard holds up none behind it.
        let given_up = timeout(Duration::from_millis(100), self.call("safe", SLOW)).await;
        assert!(given_up.is_err(), "{given_up:?}");
        self.check_that_calls_succeed(QUICK + 1000).await;
        self.check_tries();
        assert_eq!(self.lossy.remembered(), (0, 0), "calls are remembered");
    }

    /// Every replica has all its permits, and every handler all its places.
    async fn check_that_all_is_free(&self) {
        let client = Client::connect(&self.memory).await.unwrap();
        let (client, began) = (&client, Instant::now());
        for service in SERVICES {
            for replica in 0..2 {
                let pattern = full(service, replica);
                let calls = (0..self.permits).map(|_| {
                    let call = client.send_at::<u64>(pattern.clone(), &());
                    async move { call.await }
                });
                let replies = join_all(calls).await;
                assert!(
                    replies.iter().all(Result::is_ok),
                    "not all {} permits of {pattern} are free: {replies:?}",
                    self.permits
                );
            }
        }
        for kind in ["safe", "once"] {
            // The memory transport takes the replicas in turn.
            let calls = (0..2 * PLACES).map(async |_| client.send_at::<u64>(kind, &GATHERED).await);
            let replies = join_all(calls).await;
            assert!(
                replies.iter().all(Result::is_ok),
                "not all places at {kind} are free: {replies:?}"
            );
        }
        assert!(began.elapsed() < Duration::from_secs(1));
    }

    /// Nothing is refused: each breaker is closed after its probes, and every place of the client is free.
    async fn check_that_calls_succeed(&self, first: u64) {
        for kind in ["safe", "once"] {
            let call = async |n| {
                let result = self.call(kind, 7 * n).await;
                assert_eq!(result, Ok(14 * n), "{kind}\n{}", self.shared.so_far());
            };
            for n in first..first + u64::from(PROBES) {
                call(n).await;
            }
            let began = Instant::now();
            let first = first + u64::from(PROBES);
            join_all((first..first + IN_FLIGHT as u64 + 4).map(call)).await;
            let took = began.elapsed();
            assert!(took < Duration::from_millis(20), "{kind}: {took:?}");
        }
    }

    /// Nobody can be reached for a while.
    async fn check_outage(&self) {
        self.lossy.set_down(true);
        let (began, before) = (Instant::now(), self.lossy.requests("safe"));
        let mut calls = 0;
        while began.elapsed() < OUTAGE {
            let result = self.call("safe", 100_000 + u64::from(calls)).await;
            assert!(result.is_err());
            calls += 1;
            sleep(Duration::from_millis(50)).await;
        }
        self.lossy.set_down(false);
        let requests = self.lossy.requests("safe") - before;
        self.tell(format_args!("{calls} calls in an outage: {requests} sent"));
        match self.manners {
            Manners::Plain => assert_eq!(requests, calls),
            Manners::Retrying => {
                // What is earned meanwhile is spent.
                assert!(requests >= calls + calls / 10 - 1, "{requests} of {calls}");
                assert!(
                    requests <= calls + calls / 10 + RESERVE,
                    "{requests} of {calls}"
                );
            }
            // Half of the last six calls have failed, and then a probe fails after each cool-down,
            // of which at least three end in this time, and at most four.
            Manners::Guarded => {
                assert!(calls > 30, "{calls}");
                assert!((6..=7).contains(&requests), "{requests} of {calls}");
            }
        }
    }

    /// Who may be tried again is, and nobody else.
    fn check_tries(&self) {
        let most = match self.manners {
            Manners::Plain => 1,
            Manners::Retrying | Manners::Guarded => CALL_TRIES,
        };
        assert!(self.lossy.most_tries("safe") <= most);
        assert_eq!(self.lossy.most_tries("once"), 1, "sent again");
    }
}
