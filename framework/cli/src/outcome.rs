//! What a command comes to, for whoever reads standard error or looks at the exit code.

use std::{fmt, io, process::ExitCode};

use nestling::{
    RpcError, StartError,
    transport::{Error, ErrorKind},
};

use crate::target::without_secrets;

/// The codes, for the help text.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    the service answered with an error, which is on standard error as JSON
  2    it did not answer in time
  3    no connection: none could be made, it was lost, or nobody is there to answer
  64   the command line makes no sense; nothing was sent
  130  interrupted";

/// Why a command did not do what it was asked for.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Nothing was sent, and what is wrong is in the command line.
    Usage(String),
    /// The service said so, or its answer makes no sense.
    Answer(RpcError),
    /// We stopped waiting.
    Timeout(RpcError),
    /// Nobody could be reached.
    Connection(RpcError),
    /// Whoever ran it wants it to end.
    Interrupted,
    /// Nobody reads what is printed any more.
    NoReader,
    /// This machine would not do something.
    System(io::Error),
}

impl Failure {
    pub(crate) fn usage(what: impl fmt::Display) -> Self {
        Self::Usage(what.to_string())
    }

    /// Says what went wrong, and returns the exit code that says it too.
    pub(crate) fn report(&self) -> ExitCode {
        match self {
            Self::Usage(text) => {
                eprintln!("error: {}", without_secrets(text));
                ExitCode::from(64)
            }
            Self::Answer(error) => told(error, 1),
            Self::Timeout(error) => told(error, 2),
            Self::Connection(error) => told(error, 3),
            Self::Interrupted => ExitCode::from(130),
            Self::NoReader => ExitCode::SUCCESS,
            Self::System(error) => {
                eprintln!("error: {error}");
                ExitCode::FAILURE
            }
        }
    }

    /// A failure on this side of the transport, with `message` to say for it.
    fn local(kind: ErrorKind, message: String) -> Self {
        let error = RpcError::from(Error::new(kind, message));
        match kind {
            ErrorKind::Config => Self::Usage(error.message),
            ErrorKind::Timeout => Self::Timeout(error),
            ErrorKind::Connect | ErrorKind::Closed | ErrorKind::NoResponders => {
                Self::Connection(error)
            }
            _ => Self::Answer(error),
        }
    }
}

fn told(error: &RpcError, code: u8) -> ExitCode {
    eprintln!("{}", String::from_utf8_lossy(&error.to_bytes()));
    ExitCode::from(code)
}

/// What a service does not see of an error, because it is about this side, is said here.
impl From<RpcError> for Failure {
    fn from(error: RpcError) -> Self {
        match Error::behind(&error) {
            Some(cause) => Self::local(cause.kind(), cause.to_string()),
            None => Self::Answer(error),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::local(error.kind(), error.to_string())
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        match &error {
            StartError::Transport { source, .. } => Self::local(source.kind(), error.to_string()),
            _ => Self::usage(error),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::NoReader,
            _ => Self::System(error),
        }
    }
}

/// What clap has to say instead of a command: help, or what it did not understand.
pub(crate) fn not_parsed(error: &clap::Error) -> ExitCode {
    if error.use_stderr() {
        eprint!("{}", without_secrets(&error.render().to_string()));
        return ExitCode::from(64);
    }
    match error.print() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => Failure::from(error).report(),
    }
}
