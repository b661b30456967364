//! `cargo xtask lint`: everything that can be said about the code without running it.

use std::process::ExitCode;

use anyhow::Result;
use nestling_testkit::find_program;

use crate::{
    cargo::{self, FEATURES, command, run as call},
    install,
    terminal::loud_step,
};

/// What `cargo xtask lint` takes.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Leave out the check of dependencies, which installs cargo-deny the first time (a few minutes)
    #[arg(long)]
    no_deny: bool,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    install::ensure(&[])?;
    loud_step("format", || {
        call(command().args(["fmt", "--all", "--check"]))
    })?;
    loud_step("clippy", || {
        call(
            command()
                .args(["clippy", "--workspace", "--all-targets"])
                .args(FEATURES)
                .arg("--")
                .args(["-D", "warnings"]),
        )
    })?;
    loud_step("documentation", || {
        call(
            command()
                .args(["doc", "--workspace", "--no-deps"])
                .args(FEATURES)
                .env("RUSTDOCFLAGS", "-D warnings"),
        )
    })?;
    if !options.no_deny {
        deny()?;
    }
    Ok(ExitCode::SUCCESS)
}

fn deny() -> Result<()> {
    let installed = find_program("cargo-deny").is_some() || cargo::home_has("cargo-deny");
    if !installed {
        loud_step("install cargo-deny (a few minutes, once)", || {
            call(command().args(["install", "cargo-deny", "--locked"]))
        })?;
    }
    loud_step("dependencies", || {
        // Offline, cargo-deny wants the sources of every platform at hand; a build has fetched only this one's.
        call(command().args(["fetch", "--locked"]))?;
        // The advisory database lives on a Git host that not every machine reaches.
        call(command().args(["deny", "--offline", "check", "bans", "licenses", "sources"]))
    })
}
