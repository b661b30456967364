//! All policies at once, through seeded schedules of faults.

use std::sync::atomic::AtomicBool;

use super::*;

const CALLS: usize = 1000;
const PLACES: usize = 8;
const LIMIT: Duration = Duration::from_millis(500);

/// A service that answers, refuses, fails and hangs as it pleases, until it is well.
async fn moody(well: &Arc<AtomicBool>) -> Service {
    let well = Arc::clone(well);
    Service::start(move |n| {
        let (mood, pause) = match well.load(Ordering::Relaxed) {
            true => (0, 50),
            false => (fastrand::u8(..10), fastrand::u32(..50)),
        };
        async move {
            sleep(MILLI * pause).await;
            match mood {
                0..5 => Ok(n),
                5..8 => Err(away()),
                8 => Err(RpcError::not_found("no such user")),
                _ => pending().await,
            }
        }
    })
    .await
}

async fn weather(seed: u64) {
    fastrand::seed(seed);
    let well = Arc::new(AtomicBool::new(false));
    let service = moody(&well).await;
    // A breaker leaves so few calls to try again that the budget is hardly needed.
    let breaker = match seed % 2 {
        0 => Breaker::new().cool_down(MILLI * 100),
        _ => Breaker::off(),
    };
    let policy = Policy::new()
        .timeout(LIMIT)
        .retry(Retry::new().per_try(MILLI * 100))
        .breaker(breaker)
        .max_in_flight(PLACES);
    let client = service.client(policy).await;
    let calls = (0..CALLS).map(|_| {
        let (start, client) = (MILLI * fastrand::u32(..10_000), client.clone());
        let is_dropped = fastrand::u8(..5) == 0;
        let patience = if is_dropped {
            MILLI * fastrand::u32(..300)
        } else {
            SECOND * 60
        };
        async move {
            sleep(start).await;
            let started = Instant::now();
            let result = timeout(patience, client.send(GetUser).into_future()).await;
            assert!(started.elapsed() <= LIMIT + MILLI, "seed {seed}");
            result.is_ok_and(|result| result.is_ok())
        }
    });
    let answered = join_all(calls).await.into_iter().filter(|ok| *ok).count();
    assert!(answered > CALLS / 20, "seed {seed}: {answered}");
    let most = CALLS + CALLS / 10 + 10;
    assert!(service.calls() <= most, "seed {seed}: {}", service.calls());

    // Afterwards a probe closes the breaker, and every place is free.
    well.store(true, Ordering::Relaxed);
    sleep(SECOND * 2).await;
    assert!(client.send(GetUser).await.is_ok(), "seed {seed}");
    let started = Instant::now();
    let calls = (0..PLACES).map(|_| client.send(GetUser).into_future());
    assert!(join_all(calls).await.into_iter().all(|reply| reply.is_ok()));
    let elapsed = started.elapsed();
    assert!(elapsed < MILLI * 60, "seed {seed}: {elapsed:?}");
}

#[tokio::test(start_paused = true)]
async fn calls_end_in_time_and_give_everything_back() {
    for seed in 0..10 {
        weather(seed).await;
    }
}
