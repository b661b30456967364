//! Calls of cargo.

use std::{
    collections::BTreeMap,
    env,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// What all builds have in common, so that none undoes what another has compiled: Kafka with TLS, which is not among the
/// features that a build by hand has.
pub(crate) const FEATURES: [&str; 2] = ["--features", "nestling/kafka-tls"];

/// The root of the workspace.
pub(crate) fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// The cargo that runs this program, in the root of the workspace.
pub(crate) fn command() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Runs a command to its end, with its output on the terminal.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let name = format!(
        "{} {}",
        Path::new(command.get_program())
            .file_name()
            .unwrap_or_default()
            .display(),
        command
            .get_args()
            .map(|argument| argument.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ")
    );
    let status = command.status().with_context(|| format!("run {name}"))?;
    if !status.success() {
        bail!("{name}: {status}");
    }
    Ok(())
}

/// Builds the binaries of some packages with these features, with cargo's own progress on the terminal, and says where they are. Cargo is
/// asked, because target folder and target triple are the user's to configure.
pub(crate) fn build(packages: &[&str], features: &[&str]) -> Result<BTreeMap<String, PathBuf>> {
    build_as("dev", packages, features)
}

/// The same in another profile.
pub(crate) fn build_as(
    profile: &str,
    packages: &[&str],
    features: &[&str],
) -> Result<BTreeMap<String, PathBuf>> {
    let mut command = command();
    command
        .args(["build", "--bins", "--profile", profile])
        .args(["--message-format", "json-render-diagnostics"])
        .args(features)
        .stdout(Stdio::piped());
    for package in packages {
        command.args(["--package", package]);
    }
    let mut child = command.spawn().context("run cargo build")?;
    let output = child.stdout.take().context("read cargo's output")?;
    let mut binaries = BTreeMap::new();
    for line in BufReader::new(output).lines() {
        let line = line.context("read cargo's output")?;
        let Ok(message) = serde_json::from_str::<Value>(&line) else {
            continue; // build scripts may print lines of their own
        };
        let name = message["target"]["name"].as_str();
        if let (Some(name), Some(path)) = (name, message["executable"].as_str()) {
            binaries.insert(name.to_owned(), PathBuf::from(path));
        }
    }
    let status = child.wait().context("wait for cargo build")?;
    if !status.success() {
        bail!("cargo build: {status}");
    }
    Ok(binaries)
}

/// Whether a command of cargo is installed where cargo installs them, which need not be in `PATH`.
pub(crate) fn home_has(program: &str) -> bool {
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cargo")));
    home.is_some_and(|home| home.join("bin").join(program).is_file())
}
