//! The whole shop on its real transports, while services and brokers are killed at moments drawn from a seed.
//!
//! `cargo xtask chaos --orders 10000 --seed 7` runs it at length.
#![allow(
    clippy::unwrap_used,
    reason = "a failed test panics, in its helpers too"
)]
#![allow(
    dead_code,
    reason = "what other tests need too, each of which uses a part"
)]

mod buyer;
mod fleet;
mod ordeal;

use std::{collections::BTreeMap, env};

use nestling_testkit::Kind;

use crate::ordeal::{Blow, endure};

const ORDERS: u32 = 1000;
const SEED: u64 = 1;
/// After so many orders something happens, on average.
const BETWEEN: u32 = 25;

/// Those that are killed, and whether orders can be placed meanwhile.
const VICTIMS: [(&str, bool); 6] = [
    ("order", false),
    ("product", false),
    ("payment", true),
    ("user", true),
    ("review", true),
    ("recommendation", true),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_order_is_lost_stuck_or_charged_twice_whatever_dies() {
    let orders = number("CHAOS_ORDERS").map_or(ORDERS, |orders| u32::try_from(orders).unwrap());
    let seed = number("CHAOS_SEED").unwrap_or(SEED);
    let blows = blows(orders, seed);
    println!("{orders} orders, seed {seed}, kills: {}", counted(&blows));
    if let Some(summary) = endure(orders, &blows).await {
        println!("{summary}");
    }
}

/// How often each is killed.
fn counted(blows: &[(u32, Blow)]) -> String {
    let mut counts = BTreeMap::new();
    for (_, blow) in blows {
        let victim = match blow {
            Blow::Kill(service) => service,
            Blow::Restart(kind) => kind.name(),
            Blow::Start(_) => continue,
        };
        *counts.entry(victim).or_insert(0) += 1;
    }
    let count = |(victim, count)| format!("{victim} {count}");
    counts.into_iter().map(count).collect::<Vec<_>>().join(", ")
}

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(text.parse().expect("a number"))
}

/// What happens after how many orders. The last of them have time to be placed.
fn blows(orders: u32, seed: u64) -> Vec<(u32, Blow)> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut blows = Vec::new();
    let mut placed = 0;
    loop {
        placed += random.u32(1..2 * BETWEEN);
        if placed + BETWEEN > orders {
            return blows;
        }
        if random.u32(..4) == 0 {
            let kind = Kind::ALL[random.usize(..Kind::ALL.len())];
            blows.push((placed, Blow::Restart(kind)));
            continue;
        }
        let (service, goes_on) = VICTIMS[random.usize(..VICTIMS.len())];
        blows.push((placed, Blow::Kill(service)));
        if goes_on {
            placed += random.u32(..BETWEEN / 2);
        }
        blows.push((placed, Blow::Start(service)));
    }
}

#[test]
fn a_seed_is_a_schedule() {
    let schedule = blows(1000, 1);
    assert_eq!(schedule, blows(1000, 1));
    assert_ne!(schedule, blows(1000, 2));
    assert!(schedule.is_sorted_by_key(|(placed, _)| *placed));
    let count =
        |wanted: fn(&Blow) -> bool| schedule.iter().filter(|(_, blow)| wanted(blow)).count();
    assert!(count(|blow| matches!(blow, Blow::Restart(_))) >= 3);
    let kills = count(|blow| matches!(blow, Blow::Kill(_)));
    assert!(kills >= 10);
    assert_eq!(kills, count(|blow| matches!(blow, Blow::Start(_))));
}
