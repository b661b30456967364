//! What a process has used, from `/proc`.

use std::fs;

use anyhow::{Context, Result};

/// Of processor time, the kernel counts a hundred ticks a second on every Linux.
const TICK_SECONDS: f64 = 0.01;

/// Processor seconds of a process so far, its threads included, in user space and in the kernel.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("read what process {pid} used"))?;
    // The name, in parentheses, may contain spaces and parentheses.
    let (_, fields) = stat.rsplit_once(')').context("/proc/…/stat has a name")?;
    let ticks = |index: usize| -> Result<f64> {
        let field = fields.split_whitespace().nth(index);
        Ok(field.context("/proc/…/stat has 52 fields")?.parse()?)
    };
    // Fields 14 and 15 of proc(5); two are gone.
    Ok((ticks(11)? + ticks(12)?) * TICK_SECONDS)
}

/// The most memory a process has had, in bytes.
pub(crate) fn peak_memory(pid: u32) -> Result<u64> {
    bytes(pid, "VmHWM:")
}

/// The memory a process has now, in bytes.
pub(crate) fn memory(pid: u32) -> Result<u64> {
    bytes(pid, "VmRSS:")
}

fn bytes(pid: u32, field: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("read what process {pid} used"))?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.split_whitespace().next())
        .with_context(|| format!("/proc/…/status has {field}"))?;
    Ok(kib.parse::<u64>()? * 1024)
}

#[cfg(test)]
mod tests {
    use std::{process, time::Instant};

    use super::*;

    #[test]
    fn a_busy_process_uses_processor_time_and_memory() {
        let before = cpu_seconds(process::id()).unwrap();
        let begin = Instant::now();
        while cpu_seconds(process::id()).unwrap() < before + 0.05 {
            assert!(begin.elapsed().as_secs() < 60, "no time is counted");
        }
        let (now, peak) = (memory(process::id()), peak_memory(process::id()));
        assert!((1 << 20..=peak.unwrap()).contains(&now.unwrap()));
    }
}
