//! Load: the same operation again and again, and how long each took.
//!
//! A **closed loop** keeps a number of operations in flight and begins the next when one ends: it finds the throughput.
//! An **open loop** begins operations at a fixed rate, whatever becomes of those before, and counts from the moment an
//! operation *should* have begun: it finds the latencies that users see, without the coordinated omission of a closed
//! loop, which waits exactly when the other side is slow.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use tokio::{sync::mpsc, task::JoinSet};

/// Latencies are told from a microsecond, in steps of a thousandth.
const DIGITS: u8 = 3;
const LONGEST: Duration = Duration::from_secs(60);
/// How many operations of an open loop may be in flight; more than that are counted as errors.
const MOST_IN_FLIGHT: usize = 20_000;
/// How long what is in flight at the end may take.
const LAST_ORDERS: Duration = Duration::from_secs(10);

/// What a loop has seen.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Messages moved, by operations that succeeded.
    pub messages: u64,
    /// Operations that failed, or never ended.
    pub errors: u64,
    /// What the first of them said.
    pub first_error: Option<String>,
    /// From the first operation's begin to the last one's end.
    pub elapsed: Duration,
    /// Nanoseconds for each operation that succeeded.
    pub latency: Histogram<u64>,
}

impl Measured {
    fn empty() -> Self {
        Self {
            messages: 0,
            errors: 0,
            first_error: None,
            elapsed: Duration::ZERO,
            latency: latencies(),
        }
    }

    /// Messages a second.
    #[must_use]
    pub fn throughput(&self) -> f64 {
        self.messages as f64 / self.elapsed.as_secs_f64().max(f64::EPSILON)
    }

    fn note(&mut self, took: Duration, outcome: Result<u32, String>) {
        match outcome {
            Ok(messages) => {
                self.messages += u64::from(messages);
                self.latency.saturating_record(nanos(took));
            }
            Err(error) => {
                self.errors += 1;
                self.first_error.get_or_insert(error);
            }
        }
    }

    fn join(&mut self, other: &Self) {
        self.messages += other.messages;
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error.clone());
        self.latency += &other.latency;
    }
}

/// An empty histogram of nanoseconds, from a microsecond to a minute.
#[must_use]
pub fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, nanos(LONGEST), DIGITS).expect("the bounds make sense")
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Keeps `concurrency` operations in flight for `duration`. `act(n)` makes the n-th worker's next; it says how many
/// messages it moved.
///
/// # Panics
/// When an operation panics.
pub async fn closed<F, Fut>(concurrency: usize, duration: Duration, act: F) -> Measured
where
    F: Fn(usize) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<u32, String>> + Send,
{
    let begin = Instant::now();
    let end = begin + duration;
    let mut workers = JoinSet::new();
    for worker in 0..concurrency {
        let act = act.clone();
        workers.spawn(async move {
            let mut measured = Measured::empty();
            loop {
                let started = Instant::now();
                if started >= end {
                    return measured;
                }
                let outcome = act(worker).await;
                if outcome.is_err() {
                    // What fails at once must not become a storm.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                measured.note(started.elapsed(), outcome);
            }
        });
    }
    let mut all = Measured::empty();
    while let Some(worker) = workers.join_next().await {
        all.join(&worker.expect("a worker does not panic"));
    }
    all.elapsed = begin.elapsed();
    all
}

/// Begins `rate` operations a second for `duration`, each with its latency counted from when it should have begun.
///
/// # Panics
/// When an operation panics, or no thread can be made.
pub async fn open<F, Fut>(rate: f64, duration: Duration, act: F) -> Measured
where
    F: Fn(usize) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<u32, String>> + Send + 'static,
{
    let (due, mut ticks) = mpsc::channel::<Instant>(MOST_IN_FLIGHT);
    let refused = Arc::new(AtomicU64::new(0));
    let begin = Instant::now();
    let pace = {
        let refused = Arc::clone(&refused);
        move || pace(begin, rate, duration, &due, &refused)
    };
    // A thread of its own, because the runtime's timers are a millisecond wide.
    let pacer = thread::spawn(pace);
    let mut all = Measured::empty();
    let mut flying: JoinSet<(Duration, Result<u32, String>)> = JoinSet::new();
    let mut count = 0;
    loop {
        tokio::select! {
            biased;
            Some(ended) = flying.join_next(), if !flying.is_empty() => {
                let (took, outcome) = ended.expect("an operation does not panic");
                all.note(took, outcome);
            }
            tick = ticks.recv(), if flying.len() < MOST_IN_FLIGHT => {
                let Some(should_begin) = tick else { break };
                let act = act.clone();
                let number = count;
                count += 1;
                flying.spawn(async move {
                    let outcome = act(number).await;
                    (should_begin.elapsed(), outcome)
                });
            }
        }
    }
    let rest = async {
        while let Some(ended) = flying.join_next().await {
            let (took, outcome) = ended.expect("an operation does not panic");
            all.note(took, outcome);
        }
    };
    if tokio::time::timeout(LAST_ORDERS, rest).await.is_err() {
        all.errors += flying.len() as u64;
        all.first_error
            .get_or_insert_with(|| format!("not answered within {LAST_ORDERS:?} of the end"));
    }
    let refused = refused.load(Ordering::Relaxed);
    if refused > 0 {
        all.errors += refused;
        all.first_error
            .get_or_insert_with(|| format!("more than {MOST_IN_FLIGHT} in flight"));
    }
    all.elapsed = begin.elapsed();
    pacer.join().expect("the pacer does not panic");
    all
}

/// Says when each operation is due, at the moment it is.
fn pace(
    begin: Instant,
    rate: f64,
    duration: Duration,
    due: &mpsc::Sender<Instant>,
    refused: &AtomicU64,
) {
    let interval = Duration::from_secs_f64(1.0 / rate);
    let mut next = begin;
    while next < begin + duration {
        let now = Instant::now();
        if next > now {
            thread::sleep(next - now);
        }
        if due.try_send(next).is_err() {
            refused.fetch_add(1, Ordering::Relaxed);
        }
        next += interval;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_closed_loop_keeps_its_number_in_flight() {
        let flying = Arc::new(AtomicU64::new(0));
        let most = Arc::new(AtomicU64::new(0));
        let (flying_now, most_seen) = (Arc::clone(&flying), Arc::clone(&most));
        let act = move |_| {
            let (flying, most) = (Arc::clone(&flying_now), Arc::clone(&most_seen));
            async move {
                let now = flying.fetch_add(1, Ordering::SeqCst) + 1;
                most.fetch_max(now, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(1)).await;
                flying.fetch_sub(1, Ordering::SeqCst);
                Ok(2)
            }
        };
        let measured = closed(8, Duration::from_millis(50), act).await;
        assert_eq!(most.load(Ordering::SeqCst), 8);
        assert_eq!(measured.messages, 2 * measured.latency.len());
        assert_eq!(measured.errors, 0);
    }

    /// The point of an open loop: a stall is seen by everything that should have begun meanwhile.
    #[tokio::test]
    async fn an_open_loop_counts_from_when_an_operation_should_have_begun() {
        let act = |number| async move {
            if number == 0 {
                // The whole runtime stands still.
                thread::sleep(Duration::from_millis(100));
            }
            Ok(1)
        };
        let measured = open(1000.0, Duration::from_millis(200), act).await;
        assert_eq!(measured.messages, 200);
        let slow = measured.latency.count_between(50_000_000, u64::MAX);
        assert!(slow >= 40, "{slow} of about 50");
    }

    #[tokio::test]
    async fn errors_are_counted_and_the_first_is_told() {
        let act = |number: usize| async move {
            match number % 2 {
                0 => Ok(1),
                _ => Err(format!("error {number}")),
            }
        };
        let measured = open(1000.0, Duration::from_millis(20), act).await;
        assert_eq!((measured.messages, measured.errors), (10, 10));
        assert!(measured.first_error.unwrap().starts_with("error "));
    }
}
