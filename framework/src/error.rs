//! [`RpcError`], the one error that crosses a transport, and its [`Code`].

use std::{error, fmt, sync::Arc};

use serde::{Deserialize, Serialize, de::value::StrDeserializer};

/// What kind of failure an [`RpcError`] is, with gRPC's names and meanings.
///
/// On the wire a code is its upper-case name, `NOT_FOUND`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[non_exhaustive]
pub enum Code {
    /// The request cannot be understood or breaks a rule of its own shape.
    InvalidArgument,
    /// Nobody is known to be asking.
    Unauthenticated,
    /// The caller is known and may not.
    PermissionDenied,
    /// What was asked for does not exist.
    NotFound,
    /// What should be made exists.
    AlreadyExists,
    /// The state does not allow it now; repeating does not help.
    FailedPrecondition,
    /// A race was lost; reading again and repeating may help.
    Aborted,
    /// A limit was reached: size, rate, queue.
    ResourceExhausted,
    /// Nobody could be reached; repeating may help.
    Unavailable,
    /// The time for it ran out; it may or may not have happened.
    DeadlineExceeded,
    /// A fault in the service; the details are in its log.
    Internal,
    /// No handler has this pattern.
    Unimplemented,
    /// An error of a foreign service that says no more.
    #[serde(other)]
    Unknown,
}

impl Code {
    /// Whether the same event may succeed when it is handled again later.
    ///
    /// These codes make an event handler's error a retry; any other rejects the event.
    pub fn may_pass(self) -> bool {
        matches!(
            self,
            Self::Unavailable
                | Self::DeadlineExceeded
                | Self::ResourceExhausted
                | Self::Aborted
                | Self::Internal
                | Self::Unknown
        )
    }
}

impl Code {
    /// The code that has this name on the wire, `NOT_FOUND`, if there is one.
    #[cfg_attr(
        not(any(
            feature = "tcp",
            feature = "nats",
            feature = "redis",
            feature = "kafka"
        )),
        allow(dead_code, reason = "only wires have names of codes")
    )]
    pub(crate) fn by_name(name: &str) -> Option<Self> {
        let code = Self::deserialize(StrDeserializer::<serde::de::value::Error>::new(name)).ok();
        code.filter(|code| *code != Self::Unknown || name == "UNKNOWN")
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// A typed failure: what a handler returns and what a caller receives.
///
/// `code`, `message` and `details` travel; the `source` stays in this process, where it is logged.
///
/// ```
/// use nestling::{Code, RpcError};
///
/// let error = RpcError::not_found("no such user").with_details(serde_json::json!({ "id": 7 }));
/// assert_eq!(error.code, Code::NotFound);
/// assert_eq!(error.to_string(), "NOT_FOUND: no such user");
/// ```
#[derive(Clone, Serialize, Deserialize)]
pub struct RpcError {
    /// The kind of failure.
    pub code: Code,
    /// A sentence for the caller's developer, lower case, without a final stop.
    pub message: String,
    /// Whatever else the caller needs to react, in JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<serde_json::Value>,
    #[serde(skip)]
    source: Option<Arc<dyn error::Error + Send + Sync>>,
}

macro_rules! constructors {
    ($($name:ident => $code:ident),* $(,)?) => {
        $(
            #[doc = concat!("An error with [`Code::", stringify!($code), "`].")]
            pub fn $name(message: impl Into<String>) -> Self {
                Self::new(Code::$code, message)
            }
        )*
    };
}

impl RpcError {
    /// An error of the given kind.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            details: None,
            source: None,
        }
    }

    constructors! {
        invalid_argument => InvalidArgument,
        unauthenticated => Unauthenticated,
        permission_denied => PermissionDenied,
        not_found => NotFound,
        already_exists => AlreadyExists,
        failed_precondition => FailedPrecondition,
        aborted => Aborted,
        resource_exhausted => ResourceExhausted,
        unavailable => Unavailable,
        deadline_exceeded => DeadlineExceeded,
        unimplemented => Unimplemented,
        unknown => Unknown,
    }

    /// A fault in this service: the caller learns nothing but the code, the log gets the source.
    pub fn internal(source: impl Into<Box<dyn error::Error + Send + Sync>>) -> Self {
        Self::new(Code::Internal, "internal error").with_source(source)
    }

    /// Adds what the caller needs to react.
    #[must_use]
    pub fn with_details(mut self, details: serde_json::Value) -> Self {
        self.details = Some(details);
        self
    }

    /// Adds the local cause, which is logged and never sent.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn error::Error + Send + Sync>>) -> Self {
        self.source = Some(Arc::from(source.into()));
        self
    }

    /// What the caller is told: the same without the local cause.
    pub(crate) fn without_source(mut self) -> Self {
        self.source = None;
        self
    }

    /// The bytes that cross a transport: always JSON, whatever the payload's codec.
    pub fn to_bytes(&self) -> bytes::Bytes {
        match serde_json::to_vec(self) {
            Ok(bytes) => bytes.into(),
            Err(_) => {
                bytes::Bytes::from_static(br#"{"code":"INTERNAL","message":"internal error"}"#)
            }
        }
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote; anything else becomes [`Code::Unknown`].
    pub fn from_bytes(bytes: &[u8]) -> Self {
        serde_json::from_slice(bytes).unwrap_or_else(|error| {
            Self::unknown("the error of the remote service cannot be read").with_source(error)
        })
    }
}

impl fmt::Display for RpcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl fmt::Debug for RpcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("RpcError");
        debug
            .field("code", &self.code)
            .field("message", &self.message);
        if let Some(details) = &self.details {
            debug.field("details", details);
        }
        if let Some(source) = &self.source {
            debug.field("source", &format_args!("{source}"));
        }
        debug.finish()
    }
}

impl error::Error for RpcError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn error::Error + 'static))
    }
}

/// Equal when callers could not tell them apart: the source does not count.
impl PartialEq for RpcError {
    fn eq(&self, other: &Self) -> bool {
        self.code == other.code && self.message == other.message && self.details == other.details
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_survives_the_wire_without_its_source() {
        let error = RpcError::aborted("version conflict")
            .with_details(serde_json::json!({ "reason": "version_conflict" }))
            .with_source("secret");
        let bytes = error.to_bytes();
        assert!(!bytes.windows(6).any(|window| window == b"secret"));
        assert_eq!(RpcError::from_bytes(&bytes), error);
    }

    #[test]
    fn an_unknown_code_and_garbage_become_unknown() {
        let foreign = RpcError::from_bytes(br#"{"code":"TEAPOT","message":"short and stout"}"#);
        assert_eq!(foreign, RpcError::unknown("short and stout"));
        assert_eq!(RpcError::from_bytes(b"\xff").code, Code::Unknown);
    }
}
