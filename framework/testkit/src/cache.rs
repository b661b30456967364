//! What is fetched once and kept in the cache folder of the user.

use std::{
    env,
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::brokers::{private_folder, tail, unique};

const POLL: Duration = Duration::from_millis(50);

/// Where the thing of this name is, or would be; `None` without a home.
pub(crate) fn place(name: &str) -> Option<PathBuf> {
    folder().map(|cache| cache.join(name))
}

/// True when [`fetch`] would have nothing to do.
pub(crate) fn has(name: &str) -> bool {
    place(name).is_some_and(|place| place.is_dir())
}

/// The folder of this name, made the first time. One process makes it at a time, in a scratch folder; what `make` says
/// is the result in there gets its name only when it is complete.
pub(crate) fn fetch(
    name: &str,
    limit: Duration,
    make: impl FnOnce(&Path, Instant) -> io::Result<PathBuf>,
) -> io::Result<PathBuf> {
    let cache =
        folder().ok_or_else(|| io::Error::other("neither XDG_CACHE_HOME nor HOME is set"))?;
    let place = cache.join(name);
    if place.is_dir() {
        return Ok(place);
    }
    private_folder(&cache)?;
    let deadline = Instant::now() + limit;
    let lock = File::create(cache.join(format!("{name}.lock")))?;
    loop {
        match lock.try_lock() {
            Ok(()) => break,
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                return Err(io::Error::other("another process is at it"));
            }
            Err(TryLockError::WouldBlock) => thread::sleep(POLL),
        }
    }
    if place.is_dir() {
        return Ok(place);
    }
    let scratch = cache.join(unique("fetch"));
    private_folder(&scratch)?;
    let outcome = make(&scratch, deadline).and_then(|made| fs::rename(made, &place));
    let cleared = fs::remove_dir_all(&scratch);
    outcome.and(cleared)?;
    Ok(place)
}

/// Runs a command to its end; a failure shows the end of its log.
pub(crate) fn run(command: &mut Command, log: &Path, deadline: Instant) -> io::Result<()> {
    let output = File::create(log)?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()?;
    let reason = loop {
        match child.try_wait()? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => break format!("it ended with {status}"),
            None if Instant::now() >= deadline => {
                child.kill()?;
                child.wait()?;
                break "it took too long".to_owned();
            }
            None => thread::sleep(POLL),
        }
    };
    Err(io::Error::other(format!("{reason}:\n{}", tail(log)?)))
}

fn folder() -> Option<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty());
    set("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|folder| folder.is_absolute())
        .or_else(|| set("HOME").map(|home| Path::new(&home).join(".cache")))
        .map(|folder| folder.join("nestling"))
}
