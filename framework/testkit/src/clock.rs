//! Clocks that are wrong, for a process of one's own: Debian's `libfaketime`, loaded before the program's own libraries.

use std::{fs, path::PathBuf, process::Command};

use crate::{Unavailable, find_program};

/// The programs that are needed and not installed, each with the Debian package that has it.
#[must_use]
pub fn missing_programs() -> Vec<(&'static str, &'static str)> {
    let mut programs = vec![("faketime", "faketime")];
    programs.retain(|(program, _)| find_program(program).is_none());
    programs
}

/// Has `command` run with a clock that is so many seconds ahead of this machine's, or behind.
///
/// # Errors
///
/// [`Unavailable`] when the library is not installed.
pub fn set_wrong(command: &mut Command, seconds: i64) -> Result<(), Unavailable> {
    let library = library().ok_or_else(|| Unavailable {
        what: "a wrong clock",
        reason: "libfaketime is not installed".to_owned(),
        remedy: "install Debian's package faketime, or run `cargo xtask test`, which installs it"
            .to_owned(),
    })?;
    command
        .env("LD_PRELOAD", library)
        .env("FAKETIME", format!("{seconds:+}s"))
        // Only what time it is is wrong: how long something takes is not.
        .env("DONT_FAKE_MONOTONIC", "1");
    Ok(())
}

/// The one of the two libraries that is for programs with threads.
fn library() -> Option<PathBuf> {
    let folders = fs::read_dir("/usr/lib").ok()?;
    folders
        .filter_map(Result::ok)
        .map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"))
        .find(|library| library.is_file())
}
