//! The run loop and its limits, the pending table, a client's retries, breaker and limit, events' retries, dead letters
//! and drain under faults, in simulated time: thousands of schedules, each from a seed.
//!
//! A seed that fails is named, and `SIMULATION_SEED=N cargo test -p nestling --test simulation` replays it.
//! `SIMULATION_SEEDS=N` runs another number of them.

#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers too"
)]

mod calm;
mod faults;
mod handlers;
mod lossy;
mod shared;
mod world;

use std::{env, panic, thread};

use world::simulate;

const SEEDS: u64 = 10_000;

#[test]
fn no_schedule_of_faults_breaks_a_promise() {
    if let Some(seed) = number("SIMULATION_SEED") {
        let story = simulate(seed);
        println!("{}", story.join("\n"));
        return;
    }
    let seeds = number("SIMULATION_SEEDS").unwrap_or(SEEDS);
    let workers = thread::available_parallelism().map_or(2, usize::from) as u64;
    thread::scope(|scope| {
        for worker in 0..workers {
            scope.spawn(move || {
                for seed in (worker..seeds).step_by(usize::try_from(workers).unwrap()) {
                    let ran = panic::catch_unwind(|| simulate(seed));
                    assert!(
                        ran.is_ok(),
                        "seed {seed} fails: SIMULATION_SEED={seed} replays it"
                    );
                }
            });
        }
    });
}

#[test]
fn a_seed_tells_the_same_story_every_time() {
    for seed in 0..50 {
        let (once, again) = (simulate(seed), simulate(seed));
        assert!(once.len() > 10, "{once:?}");
        assert_eq!(once, again, "seed {seed}");
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(text.parse().expect("a number"))
}
