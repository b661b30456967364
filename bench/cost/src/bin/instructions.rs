//! Runs the scenarios named on the command line under callgrind, which is told to write what
//! [`measured_messages`] has cost each time it returns: for so many messages as [`cost::MESSAGES`]
//! says, and for twice as many.

fn main() -> Result<(), String> {
    for scenario in cost::chosen()? {
        let mut work = scenario.start();
        measured_messages(&mut work, cost::MESSAGES);
        measured_messages(&mut work, 2 * cost::MESSAGES);
    }
    Ok(())
}

/// Callgrind knows it by its name.
#[inline(never)]
fn measured_messages(work: &mut cost::Work, messages: u64) {
    work(messages);
}
