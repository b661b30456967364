//! A child process on a leash: it ends when its owner ends, however that happens.

use std::{
    fs::File,
    io::{self, PipeReader, PipeWriter, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

#[cfg(unix)]
use std::os::unix::process::CommandExt;

/// How long a process has to react to `SIGTERM` after its owner died, in tenths of a second.
const GRACE_TENTHS: u32 = 150;
const POLL: Duration = Duration::from_millis(20);

/// Leaves a watchdog behind and becomes the program, so that the program keeps the pid its owner knows.
///
/// The watchdog reads words from the owner's pipe. The end of the pipe means that the owner is gone. It knows the
/// program by `$$`, which a subshell inherits; the owner says `bye` before it reaps the program, so that the number
/// cannot have passed to another process.
///
/// The shell's own input is that pipe, so a program that is talked with has its input at the shell's place for errors.
const LEASH: &str = r#"
remove=$1 grace=$2 log=$3
shift 3
exec 3<&0
(
    trap '' HUP INT TERM
    exec </dev/null >/dev/null 2>&1
    while read -r word <&3; do
        case $word in
            term) kill -TERM $$ ;;
            bye) exit 0 ;;
        esac
    done
    if [ -n "$remove" ]; then
        kill -KILL $$
        rm -rf -- "$remove"
        exit 0
    fi
    kill -TERM $$
    while [ "$grace" -gt 0 ] && kill -0 $$; do
        sleep 0.1
        grace=$((grace - 1))
    done
    kill -KILL $$
) &
[ -z "$log" ] || exec "$@" 0<&2 2>>"$log" 3<&-
exec "$@" </dev/null 3<&-
"#;

/// A child process in a process group of its own (a terminal's Ctrl-C does not reach it) that is ended when this value
/// is dropped or when the owning process dies, by `SIGKILL` too.
#[derive(Debug)]
pub struct Process {
    child: Child,
    leash: Option<ChildStdin>,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts `command` with both outputs going to `log`.
    ///
    /// # Errors
    ///
    /// When no process can be made. A program that cannot be executed shows as an early exit with code 126 or 127 and a
    /// line in the log.
    pub fn spawn(command: &Command, log: File) -> io::Result<Self> {
        Self::spawn_leashed(command, None, Streams::logged(log)?)
    }

    /// As [`Process::spawn`], for a program whose data is worth nothing without its owner: when the owner dies, the
    /// program is killed at once and `scratch` is removed.
    ///
    /// # Errors
    ///
    /// As [`Process::spawn`].
    pub fn spawn_with_scratch(command: &Command, log: File, scratch: &Path) -> io::Result<Self> {
        Self::spawn_leashed(command, Some(scratch), Streams::logged(log)?)
    }

    /// As [`Process::spawn_with_scratch`], for a program that is talked with: what is written to the first pipe is its
    /// input, what it prints is in the second, and its errors go to the end of the file `log`.
    ///
    /// # Errors
    ///
    /// As [`Process::spawn`].
    pub fn spawn_talking(
        command: &Command,
        log: &Path,
        scratch: &Path,
    ) -> io::Result<(Self, PipeWriter, PipeReader)> {
        let (its_input, input) = io::pipe()?;
        let (output, its_output) = io::pipe()?;
        let streams = Streams {
            first: its_output.into(),
            second: its_input.into(),
            log: log.to_owned(),
        };
        let process = Self::spawn_leashed(command, Some(scratch), streams)?;
        Ok((process, input, output))
    }

    fn spawn_leashed(
        command: &Command,
        scratch: Option<&Path>,
        streams: Streams,
    ) -> io::Result<Self> {
        let mut leashed = Command::new("/bin/sh");
        leashed
            .args(["-c", LEASH, "leash"])
            .arg(scratch.unwrap_or(Path::new("")))
            .arg(GRACE_TENTHS.to_string())
            .arg(&streams.log)
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(Stdio::piped())
            .stdout(streams.first)
            .stderr(streams.second);
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => leashed.env(name, value),
                None => leashed.env_remove(name),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            leashed.current_dir(folder);
        }
        #[cfg(unix)]
        leashed.process_group(0);
        let mut child = leashed.spawn()?;
        let leash = child.stdin.take();
        Ok(Self {
            child,
            leash,
            status: None,
        })
    }

    /// The pid of the program itself.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How the program ended, if it has.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            // An error means that there is nothing left to wait for, which only another reaper could bring about.
            self.status = self.child.try_wait().unwrap_or_default();
            if self.status.is_some() {
                self.release();
            }
        }
        self.status
    }

    /// Sends `SIGTERM` and does not wait.
    pub fn terminate(&mut self) {
        if self.exited().is_none() {
            self.say("term");
        }
    }

    /// Waits for the program to end by itself; `None` when `limit` has passed.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            let status = self.exited();
            if status.is_some() || Instant::now() >= deadline {
                return status;
            }
            thread::sleep(POLL);
        }
    }

    /// Sends `SIGTERM`, waits, and kills what has not ended within `limit`. True when it went by itself.
    pub fn stop(&mut self, limit: Duration) -> bool {
        self.terminate();
        let ended = self.wait(limit).is_some();
        self.kill();
        ended
    }

    /// Sends `SIGKILL` and waits until the process is gone.
    pub fn kill(&mut self) {
        if self.exited().is_some() {
            return;
        }
        // Both fail only for a process that is no longer there, which is what is wanted.
        self.child.kill().unwrap_or_default();
        self.release();
        self.status = self.child.wait().ok();
    }

    fn say(&mut self, word: &str) {
        if let Some(leash) = &mut self.leash {
            // The pipe breaks when someone killed the watchdog; the owner's own signals still work.
            writeln!(leash, "{word}").unwrap_or_default();
        }
    }

    fn release(&mut self) {
        self.say("bye");
        self.leash = None;
    }
}

/// What the shell gets as its outputs, 1 and 2.
struct Streams {
    first: Stdio,
    second: Stdio,
    /// Where the program's errors go when the second is its input; empty otherwise.
    log: PathBuf,
}

impl Streams {
    fn logged(log: File) -> io::Result<Self> {
        Ok(Self {
            first: log.try_clone()?.into(),
            second: log.into(),
            log: PathBuf::new(),
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
