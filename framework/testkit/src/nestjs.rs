//! NestJS applications: the npm project in `nestjs/`, and its programs as child processes.
//!
//! npm puts the packages of the committed lock file into the cache folder of the user once; a program runs in a folder
//! of its own, with a copy of the sources and a link to the packages.

use std::{
    env, fs,
    io::{self, BufRead, BufReader, PipeReader, PipeWriter, Write},
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

#[cfg(unix)]
use std::os::unix::fs::symlink as link;
#[cfg(windows)]
use std::os::windows::fs::symlink_dir as link;

use crate::{
    Process, Unavailable,
    brokers::{find_program, private_folder, tail, unique},
    cache,
};

const MANIFEST: &str = include_str!("../nestjs/package.json");
const LOCK: &str = include_str!("../nestjs/package-lock.json");
const SOURCES: [(&str, &str); 10] = [
    ("application.mjs", include_str!("../nestjs/application.mjs")),
    ("client.mjs", include_str!("../nestjs/client.mjs")),
    ("echo.mjs", include_str!("../nestjs/echo.mjs")),
    ("handlers.mjs", include_str!("../nestjs/handlers.mjs")),
    ("lines.mjs", include_str!("../nestjs/lines.mjs")),
    ("listener.mjs", include_str!("../nestjs/listener.mjs")),
    ("server.mjs", include_str!("../nestjs/server.mjs")),
    ("transports.mjs", include_str!("../nestjs/transports.mjs")),
    ("warehouse.mjs", include_str!("../nestjs/warehouse.mjs")),
    ("warehouse.ts", include_str!("../nestjs/warehouse.ts")),
];
/// What NestJS 12 runs on.
const NODE_MAJOR: u32 = 22;
/// 60 MB through a slow line.
const FETCH_LIMIT: Duration = Duration::from_secs(900);
/// A start takes a second on an idle machine, and many times that beside a build.
const READY_LIMIT: Duration = Duration::from_secs(90);
/// How long a program that has closed its output may take to end.
const EXIT_LIMIT: Duration = Duration::from_secs(1);
const NAME: &str = "NestJS";

/// The programs that would be needed now and are not installed, each with the Debian package that has it: none once the
/// packages are in the cache, as those bring a Node of their own.
#[must_use]
pub fn missing_programs() -> Vec<(&'static str, &'static str)> {
    if cache::has(&cache_name()) {
        return Vec::new();
    }
    let mut programs = vec![("node", "nodejs"), ("npm", "npm")];
    programs.retain(|(program, _)| find_program(program).is_none());
    programs
}

/// The `node_modules` of the project, in the cache folder of the user; made by `npm ci` the first time.
///
/// # Errors
///
/// [`Unavailable`] when they are not there and npm is missing or fails.
pub fn modules() -> Result<PathBuf, Unavailable> {
    if let [(program, package), ..] = missing_programs()[..] {
        return Err(unavailable(
            format!("the program {program} is not installed"),
            &format!(
                "install Debian's package {package}, or run `cargo xtask test`, which installs it"
            ),
        ));
    }
    cache::fetch(&cache_name(), FETCH_LIMIT, install)
        .map(|project| project.join("node_modules"))
        .map_err(|error| {
            unavailable(
                format!("run npm ci: {error}"),
                "see that npm reaches its registry",
            )
        })
}

fn install(scratch: &Path, deadline: Instant) -> io::Result<PathBuf> {
    let npm = find_program("npm").ok_or(io::ErrorKind::NotFound)?;
    let project = scratch.join("project");
    private_folder(&project)?;
    fs::write(project.join("package.json"), MANIFEST)?;
    fs::write(project.join("package-lock.json"), LOCK)?;
    let mut command = Command::new(npm);
    command
        .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
        // npm itself runs on an older Node than what it installs; the Node for that is an optional package.
        .args(["--engine-strict=false", "--include=optional"])
        .current_dir(&project);
    cache::run(&mut command, &scratch.join("npm.log"), deadline)?;
    Ok(project)
}

/// The name has the lock in it, so that another lock means another folder.
fn cache_name() -> String {
    format!("nestjs-{:016x}", fnv(LOCK.as_bytes()))
}

/// FNV-1a, as the standard library promises no hash that stays the same.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// This machine's Node if it is new enough, or else the one among the packages.
fn node(modules: &Path) -> Result<PathBuf, Unavailable> {
    if let Some(own) = find_program("node").filter(|own| major(own) >= Some(NODE_MAJOR)) {
        return Ok(own);
    }
    let architecture = match env::consts::ARCH {
        "x86_64" => "x64",
        "aarch64" => "arm64",
        other => other,
    };
    let packaged = modules.join(format!("node-{}-{architecture}/bin/node", env::consts::OS));
    packaged.is_file().then_some(packaged).ok_or_else(|| {
        unavailable(
            format!("there is no Node {NODE_MAJOR} for this machine among the packages"),
            "install one",
        )
    })
}

/// 22 of `v22.23.3`.
fn major(node: &Path) -> Option<u32> {
    let output = Command::new(node).arg("--version").output().ok()?;
    let version = String::from_utf8(output.stdout).ok()?;
    version.strip_prefix('v')?.split('.').next()?.parse().ok()
}

fn unavailable(reason: String, remedy: &str) -> Unavailable {
    Unavailable {
        what: NAME,
        reason,
        remedy: remedy.to_owned(),
    }
}

/// A running program of the npm project, which is ended when this value is dropped or when the owning process dies.
///
/// It is talked with in lines: what they mean is written in the programs themselves.
#[derive(Debug)]
pub struct App {
    process: Process,
    input: PipeWriter,
    reader: Option<JoinHandle<()>>,
    folder: PathBuf,
    ready: String,
}

impl App {
    /// Starts a program and returns when it has said its first line, which is that it is ready; `on_line` is called with
    /// each one after that.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] when [`modules`] has no packages, or the program does not get ready; the end of its log is part of
    /// the reason.
    pub fn start(
        program: &str,
        arguments: &[&str],
        on_line: impl FnMut(String) + Send + 'static,
    ) -> Result<Self, Unavailable> {
        let modules = modules()?;
        let node = node(&modules)?;
        let folder = env::temp_dir().join(unique("nestling-nestjs"));
        let fail = |error: io::Error| {
            let reason = format!("start {program} in {}: {error}", folder.display());
            unavailable(reason, "see its log")
        };
        lay_out(&folder, &modules).map_err(fail)?;
        let mut command = Command::new(node);
        command
            .arg(program)
            .args(arguments)
            .env("NO_COLOR", "1")
            .env("KAFKAJS_NO_PARTITIONER_WARNING", "1")
            .current_dir(&folder);
        let (process, input, output) =
            Process::spawn_talking(&command, &folder.join("log"), &folder).map_err(fail)?;
        let (first, ready) = mpsc::channel();
        let reader = thread::spawn(move || read(output, &first, on_line));
        let mut app = Self {
            process,
            input,
            reader: Some(reader),
            folder,
            ready: String::new(),
        };
        match ready.recv_timeout(READY_LIMIT) {
            Ok(line) => {
                app.ready = line;
                Ok(app)
            }
            Err(_) => {
                let ended = match app.process.wait(EXIT_LIMIT) {
                    Some(status) => format!("ended with {status}"),
                    None => "did not get ready".to_owned(),
                };
                // Its last words are complete only when it is gone.
                app.process.kill();
                let reason = format!("{program} {ended}; it logged:\n{}", app.log());
                Err(unavailable(reason, "see what it says"))
            }
        }
    }

    /// The pid of the program.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The line with which it said that it is ready.
    #[must_use]
    pub fn ready(&self) -> &str {
        &self.ready
    }

    /// Gives it a line.
    ///
    /// # Errors
    ///
    /// When it has ended.
    pub fn say(&mut self, line: &str) -> io::Result<()> {
        self.input.write_all(format!("{line}\n").as_bytes())
    }

    /// The end of what it logged.
    #[must_use]
    pub fn log(&self) -> String {
        tail(&self.folder.join("log"))
            .unwrap_or_else(|error| format!("its log cannot be read: {error}"))
    }

    /// Ends it with `SIGTERM`, and waits; what does not go within `limit` is killed. True when it went by itself.
    pub fn stop(&mut self, limit: Duration) -> bool {
        self.process.stop(limit)
    }

    /// Ends it with `SIGKILL`, and waits until it is gone.
    pub fn kill(&mut self) {
        self.process.kill();
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.process.kill();
        if let Some(reader) = self.reader.take()
            && reader.join().is_err()
        {
            eprintln!("whoever read the lines of a NestJS application panicked");
        }
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("remove {}: {error}", self.folder.display());
        }
    }
}

/// The folder that a program runs in.
fn lay_out(folder: &Path, modules: &Path) -> io::Result<()> {
    private_folder(folder)?;
    fs::write(folder.join("package.json"), MANIFEST)?;
    for (name, text) in SOURCES {
        fs::write(folder.join(name), text)?;
    }
    link(modules, folder.join("node_modules"))
}

/// Reads lines until the program ends. The first one goes to who waits for it, and is the only one nobody may want.
fn read(output: PipeReader, first: &mpsc::Sender<String>, mut on_line: impl FnMut(String)) {
    let mut lines = BufReader::new(output).lines().map_while(Result::ok);
    if let Some(line) = lines.next()
        && first.send(line).is_ok()
    {
        lines.for_each(&mut on_line);
    }
}

#[cfg(test)]
mod tests {
    use super::LOCK;

    #[test]
    fn the_lock_names_no_registry() {
        assert!(
            !LOCK.contains("\"resolved\""),
            "install with --omit-lockfile-registry-resolved"
        );
    }
}
