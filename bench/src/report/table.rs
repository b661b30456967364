//! The table on the terminal, and the comparison with an earlier report.

use std::fmt::Write;

use super::{Report, Row};
use crate::matrix::Options;

/// Prints the heading of the table.
pub(crate) fn print_heading(options: &Options) {
    let Options {
        connections,
        replicas,
        ..
    } = options;
    if (*connections, *replicas) != (1, 1) {
        println!("connections: {connections}, replicas: {replicas}");
    }
    println!(
        "{:<22} {:<9} {:>7} {:>5} {:>10} {:>7} {:>8} {:>8} {:>8} {:>8}  {:>22} {:>6}  guarantee",
        "row",
        "who",
        "bytes",
        "in fl",
        "msg/s",
        "÷ floor",
        "p50 µs",
        "p99 µs",
        "p99.9",
        "max",
        "µs client/server/broker",
        "MiB"
    );
}

/// Prints what contestants have come to on one row, each beside its floor.
pub(crate) fn print(contestants: &[Row]) {
    let floor = contestants.iter().find(|row| row.who == "floor");
    for row in contestants {
        println!("{}", line(row, floor.filter(|floor| floor.who != row.who)));
    }
}

fn line(row: &Row, floor: Option<&Row>) -> String {
    let share = floor.map_or(String::new(), |floor| {
        format!(
            "{:.0} %",
            100.0 * row.throughput / floor.throughput.max(f64::EPSILON)
        )
    });
    let usage = format!(
        "{:.2} / {:.2} / {:.2}",
        row.usage.client, row.usage.server, row.usage.broker
    );
    let mut line = format!(
        "{:<22} {:<9} {:>7} {:>5} {:>10.0} {:>7} {:>8.0} {:>8.0} {:>8.0} {:>8.0}  {:>22} {:>6.0}  {}",
        row.name,
        row.who,
        row.payload,
        row.concurrency,
        row.throughput,
        share,
        row.latency.p50,
        row.latency.p99,
        row.latency.p999,
        row.latency.max,
        usage,
        row.peak_memory as f64 / f64::from(1 << 20),
        row.guarantee,
    );
    if row.errors > 0 {
        let why = row.first_error.as_deref().unwrap_or_default();
        write!(line, "  {} ERRORS: {why}", row.errors).expect("a string takes it");
    }
    line
}

/// What has become of each row since `baseline`: a change counts when it is larger than what the turns of both differ by.
pub(crate) fn verdicts(now: &Report, baseline: &Report) -> Vec<String> {
    let mut verdicts = Vec::new();
    for row in &now.rows {
        let before = baseline
            .rows
            .iter()
            .find(|before| before.who == row.who && before.is_beside(row));
        let Some(before) = before else { continue };
        let change = row.throughput / before.throughput.max(f64::EPSILON) - 1.0;
        let noise = spread(&row.turns) + spread(&before.turns);
        let verdict = match change {
            change if change.abs() <= noise => "no difference",
            change if change > 0.0 => "FASTER",
            _ => "SLOWER",
        };
        verdicts.push(format!(
            "{:<22} {:<9} {:>7} {:>5} {:>+7.1} %  (noise {:.1} %)  {verdict}",
            row.name,
            row.who,
            row.payload,
            row.concurrency,
            100.0 * change,
            100.0 * noise
        ));
    }
    verdicts
}

/// How far turns are apart, as a share of the middle one.
fn spread(turns: &[f64]) -> f64 {
    let least = turns.iter().copied().fold(f64::INFINITY, f64::min);
    let most = turns.iter().copied().fold(0.0, f64::max);
    match least.is_finite() && most > 0.0 {
        true => (most - least) / most,
        false => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Encoding, Spec, Transport, Who, Wire, Workload};

    fn report(throughput: f64, turns: [f64; 3]) -> Report {
        let spec = Spec {
            transport: Transport::Tcp,
            wire: Wire::Native,
            codec: Encoding::Json,
            workload: Workload::Request,
        };
        let mut row = Row::new(spec, Who::Nestling, 64, 1, &Options::default());
        row.throughput = throughput;
        row.turns = turns.to_vec();
        Report {
            commit: String::new(),
            machine: String::new(),
            command: String::new(),
            date: String::new(),
            rows: vec![row],
        }
    }

    #[test]
    fn a_change_within_the_noise_is_none() {
        let quiet = report(100.0, [99.0, 100.0, 101.0]);
        let noisy = report(90.0, [70.0, 90.0, 110.0]);
        let faster = report(110.0, [109.0, 110.0, 111.0]);
        assert!(verdicts(&noisy, &quiet)[0].ends_with("no difference"));
        assert!(verdicts(&faster, &quiet)[0].ends_with("FASTER"));
        assert!(verdicts(&quiet, &faster)[0].ends_with("SLOWER"));
    }
}
