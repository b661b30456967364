//! [`Error`]: a failure of a transport.

use std::{error, fmt, io, iter};

use crate::error::{Code, RpcError};

/// A failure of a transport.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn error::Error + Send + Sync>>,
}

/// The kinds of [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The URL, or what is asked of the transport, makes no sense.
    Config,
    /// The peer or broker cannot be reached.
    Connect,
    /// The broker does not take our name and password, or our certificate. Trying again is no use.
    Refused,
    /// The connection was lost or closed while somebody waited.
    Closed,
    /// Nobody answers this pattern.
    NoResponders,
    /// The payload is above the transport's limit; nothing was sent.
    TooLarge,
    /// A queue is full.
    Full,
    /// The deadline passed.
    Timeout,
    /// The peer does not keep to the protocol.
    Protocol,
    /// The client's circuit breaker is open; nothing was sent.
    CircuitOpen,
}

impl Error {
    /// An error of the given kind; the message says what was being done.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
        }
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The payload of `length` bytes is above `limit`.
    pub fn too_large(length: usize, limit: usize) -> Self {
        let message = format!("payload of {length} bytes is above the limit of {limit}");
        Self::new(ErrorKind::TooLarge, message)
    }

    /// The failure of the transport on this side that `error` tells of, if it does: what a service
    /// has answered has none, even with the same code.
    ///
    /// ```
    /// use nestling::{RpcError, transport};
    ///
    /// fn was_sent(error: &RpcError) -> bool {
    ///     use transport::ErrorKind::{CircuitOpen, Config, Connect, Full, Refused, TooLarge};
    ///     let kind = transport::Error::behind(error).map(transport::Error::kind);
    ///     !matches!(kind, Some(CircuitOpen | Config | Connect | Full | Refused | TooLarge))
    /// }
    /// ```
    pub fn behind(error: &RpcError) -> Option<&Self> {
        error::Error::source(error)?.downcast_ref()
    }

    /// Whether opening the transport may succeed later: the other end is away, and it is not that an
    /// address of this machine cannot be had.
    pub(crate) fn may_pass(&self) -> bool {
        let mut causes = iter::successors(Some(self as &dyn error::Error), |error| error.source());
        let is_ours = causes.any(|cause| {
            let kind = cause.downcast_ref().map(io::Error::kind);
            matches!(
                kind,
                Some(
                    io::ErrorKind::AddrInUse
                        | io::ErrorKind::AddrNotAvailable
                        | io::ErrorKind::PermissionDenied
                )
            )
        });
        let is_away = matches!(
            self.kind,
            ErrorKind::Connect | ErrorKind::Closed | ErrorKind::Timeout
        );
        is_away && !is_ours
    }

    /// Its kind.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn error::Error + 'static))
    }
}

impl From<Error> for RpcError {
    fn from(error: Error) -> Self {
        let code = match error.kind {
            // Not `Unauthenticated`: the caller's own caller is who he says he is.
            ErrorKind::Config | ErrorKind::Refused => Code::FailedPrecondition,
            ErrorKind::Connect
            | ErrorKind::Closed
            | ErrorKind::NoResponders
            | ErrorKind::CircuitOpen => Code::Unavailable,
            ErrorKind::TooLarge | ErrorKind::Full => Code::ResourceExhausted,
            ErrorKind::Timeout => Code::DeadlineExceeded,
            ErrorKind::Protocol => Code::Internal,
        };
        Self::new(code, error.message.clone()).with_source(error)
    }
}
