//! The command as its users run it: the real program, against services of the test's own.

#![cfg(unix)]
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers too"
)]

mod bench;
mod brokers;
mod dead_letters;
mod emit;
mod help;
mod listen;
mod send;

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use nestling::{Router, Running, Server};
use serde_json::Value;

/// How long anything may take before a test gives it up.
const SOON: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);

/// A service on TCP.
async fn serve(router: Router) -> Running {
    let server = Server::new("test", router).listen("tcp://127.0.0.1:0");
    server.start().await.unwrap()
}

/// How a command ended.
#[derive(Debug, PartialEq)]
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Ended {
    /// What it says of a failure.
    fn error(&self) -> Value {
        serde_json::from_str(&self.err).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    #[track_caller]
    fn check(&self, code: i32, out: &str) {
        assert_eq!((self.code, &*self.out), (Some(code), out), "{self:?}");
    }
}

/// Runs a command to its end.
fn run<const N: usize>(args: [&str; N]) -> Ended {
    Started::new(args).end()
}

/// The same, with something to read.
fn run_with<const N: usize>(input: &str, args: [&str; N]) -> Ended {
    let mut started = Started::new(args);
    let mut stdin = started.child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    started.end()
}

/// A command that runs; it does not outlive the test.
struct Started {
    child: Child,
    out: Option<BufReader<ChildStdout>>,
    err: Option<thread::JoinHandle<String>>,
    /// What is on standard error, by line, as it comes.
    said: mpsc::Receiver<String>,
}

impl Started {
    fn new<const N: usize>(args: [&str; N]) -> Self {
        Self::with_log(None, args)
    }

    fn with_log<const N: usize>(filter: Option<&str>, args: [&str; N]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nestling"));
        command
            .args(args)
            .envs(filter.map(|filter| ("RUST_LOG", filter)));
        Self::of(command)
    }

    fn of(mut command: Command) -> Self {
        if !command.get_envs().any(|(name, _)| name == "RUST_LOG") {
            command.env_remove("RUST_LOG");
        }
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let out = child.stdout.take().map(BufReader::new);
        let (say, said) = mpsc::channel();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let err = thread::spawn(move || {
            let mut all = String::new();
            let mut start = 0;
            while stderr.read_line(&mut all).unwrap() > 0 {
                // A test that does not listen has gone on.
                say.send(all[start..].trim_end().to_owned()).ok();
                start = all.len();
            }
            all
        });
        Self {
            child,
            out,
            err: Some(err),
            said,
        }
    }

    /// Starts a listener, and returns with where it listens.
    fn listening<const N: usize>(args: [&str; N]) -> (Self, String) {
        Self::new(args).heard()
    }

    /// Waits until a listener says where it listens.
    fn heard(self) -> (Self, String) {
        let said = self.said.recv_timeout(SOON).unwrap();
        let address = said.strip_prefix("listening on ");
        let address = address.unwrap_or_else(|| panic!("{said}")).to_owned();
        (self, address)
    }

    /// The next line that it prints.
    fn line(&mut self) -> String {
        let mut out = self.out.take().unwrap();
        let (give, given) = mpsc::channel();
        thread::spawn(move || {
            let mut line = String::new();
            let read = out.read_line(&mut line);
            // Nobody takes it when it comes too late.
            give.send((out, line, read)).ok();
        });
        let (out, line, read) = given.recv_timeout(SOON).unwrap();
        self.out = Some(out);
        assert!(read.unwrap() > 0, "no more lines");
        line.trim_end().to_owned()
    }

    /// The next line, which is JSON.
    fn json(&mut self) -> Value {
        serde_json::from_str(&self.line()).unwrap()
    }

    /// Sends a signal, such as `INT`.
    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let kill = Command::new("kill").args(["-s", name, &pid]).status();
        assert!(kill.unwrap().success());
    }

    /// Waits for the end, and collects what has not been read yet.
    fn end(mut self) -> Ended {
        let rest = self.out.take();
        let out = thread::spawn(move || {
            let mut out = String::new();
            rest.map(|mut rest| rest.read_to_string(&mut out).unwrap());
            out
        });
        let deadline = Instant::now() + SOON;
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None => assert!(Instant::now() < deadline, "it does not end"),
            }
            thread::sleep(POLL);
        };
        let out = out.join().unwrap();
        let err = self.err.take().unwrap().join().unwrap();
        let code = status.code();
        Ended { code, out, err }
    }

    /// Ends a listener by Ctrl-C, which has to go well.
    fn interrupt(self) -> Ended {
        self.signal("INT");
        let ended = self.end();
        assert_eq!(ended.code, Some(0), "{ended:?}");
        ended
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // Both fail for a process that has ended, which is what is wanted.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
