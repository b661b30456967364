//! One line per step: its name, signs of life, how it ended and how long it took.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

const HEARTBEAT: Duration = Duration::from_secs(3);
const NAME_WIDTH: usize = 44;
/// How much of the end of a log may hold its last lines.
const LOG_TAIL: u64 = 16 * 1024;

/// Runs one step and prints `name … ok 2.1 s`.
pub(crate) fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    print!("  {name:<NAME_WIDTH$} ");
    flush();
    let start = Instant::now();
    let (done, running) = mpsc::channel::<()>();
    let outcome = thread::scope(|scope| {
        scope.spawn(move || {
            while running.recv_timeout(HEARTBEAT) == Err(RecvTimeoutError::Timeout) {
                print!(".");
                flush();
            }
        });
        let outcome = work();
        drop(done);
        outcome
    });
    print_end(outcome.is_ok(), start);
    outcome
}

/// As [`step`], for work that prints its own progress.
pub(crate) fn loud_step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("  {name}");
    flush();
    let start = Instant::now();
    let outcome = work();
    print!("  {name:<NAME_WIDTH$} ");
    print_end(outcome.is_ok(), start);
    outcome
}

fn print_end(ok: bool, start: Instant) {
    let word = if ok { "ok" } else { "failed" };
    println!(" {word} {:.1} s", start.elapsed().as_secs_f64());
    flush();
}

fn flush() {
    // A closed terminal is no reason to stop: the work goes on, and its result is the exit code.
    io::stdout().flush().unwrap_or_default();
}

/// The last lines of a log, indented; or why they cannot be had.
pub(crate) fn last_lines(path: &Path, count: usize) -> String {
    let text = match read_tail(path) {
        Ok(text) => text,
        Err(error) => return format!("    ({}: {error})", path.display()),
    };
    let lines: Vec<&str> = text.lines().collect();
    let skipped = lines.len().saturating_sub(count);
    lines[skipped..]
        .iter()
        .map(|line| format!("    {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}

fn read_tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
