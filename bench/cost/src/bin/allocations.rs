//! Counts what the scenarios named on the command line allocate: a line of `allocations bytes name`
//! for each, for so many messages as [`cost::MESSAGES`] says.

use std::alloc::System;

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, Stats, StatsAlloc};

#[global_allocator]
static GLOBAL: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn main() -> Result<(), String> {
    for scenario in cost::chosen()? {
        let mut work = scenario.start();
        let once = count(&mut work, cost::MESSAGES);
        let twice = count(&mut work, 2 * cost::MESSAGES);
        let change = |of: fn(&Stats) -> usize| of(&twice).saturating_sub(of(&once));
        let allocations = change(|stats| stats.allocations + stats.reallocations);
        let bytes = change(|stats| stats.bytes_allocated);
        println!("{allocations} {bytes} {}", scenario.name);
    }
    Ok(())
}

fn count(work: &mut cost::Work, messages: u64) -> Stats {
    let region = Region::new(GLOBAL);
    work(messages);
    region.change()
}
