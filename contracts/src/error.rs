//! Why something was refused: the shop's reasons, inside the framework's codes.

use nestling::{Code, RpcError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The shop's reasons for an error; travels as `reason` in an [`RpcError`]'s details.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// Not understood.
    Malformed,
    /// The operation needs an `Idempotency-Key`.
    IdempotencyKeyMissing,
    /// The key was used with another request.
    IdempotencyKeyReused,
    /// The body is too large.
    PayloadTooLarge,
    /// Not JSON.
    UnsupportedMedia,
    /// Fields are wrong; the details list them under `errors`.
    Validation,
    /// Nobody is signed in.
    Unauthenticated,
    /// Signed in, and not allowed.
    Forbidden,
    /// Not there.
    NotFound,
    /// Another user has this address.
    EmailTaken,
    /// One review per user and product.
    AlreadyReviewed,
    /// The card was declined.
    PaymentDeclined,
    /// Too little store credit.
    InsufficientCredit,
    /// The state does not allow it.
    StateConflict,
    /// Too few are left; the details list the short lines.
    OutOfStock,
    /// Prices are not those of the quote.
    PriceChanged,
    /// Too late to cancel.
    NotCancellable,
    /// A version must be given.
    PreconditionRequired,
    /// The same request is still running.
    InProgress,
    /// Somebody else was faster.
    VersionConflict,
    /// Too many requests.
    RateLimited,
    /// A service cannot be reached.
    Unavailable,
    /// A service is not tried for a while.
    CircuitOpen,
    /// It took too long.
    Timeout,
    /// A fault of ours.
    Internal,
}

impl Reason {
    /// The framework's code it belongs to.
    pub fn code(self) -> Code {
        match self {
            Self::Malformed
            | Self::IdempotencyKeyMissing
            | Self::IdempotencyKeyReused
            | Self::PayloadTooLarge
            | Self::UnsupportedMedia
            | Self::Validation => Code::InvalidArgument,
            Self::Unauthenticated => Code::Unauthenticated,
            Self::Forbidden => Code::PermissionDenied,
            Self::NotFound => Code::NotFound,
            Self::EmailTaken | Self::AlreadyReviewed => Code::AlreadyExists,
            Self::PaymentDeclined
            | Self::InsufficientCredit
            | Self::StateConflict
            | Self::OutOfStock
            | Self::PriceChanged
            | Self::NotCancellable
            | Self::PreconditionRequired => Code::FailedPrecondition,
            Self::InProgress | Self::VersionConflict => Code::Aborted,
            Self::RateLimited => Code::ResourceExhausted,
            Self::Unavailable | Self::CircuitOpen => Code::Unavailable,
            Self::Timeout => Code::DeadlineExceeded,
            Self::Internal => Code::Internal,
        }
    }

    /// An error for this reason.
    pub fn error(self, message: impl Into<String>) -> RpcError {
        RpcError::new(self.code(), message).with_details(json!({ "reason": self }))
    }

    /// An error for this reason with more in its details.
    #[expect(clippy::needless_pass_by_value, reason = "the value is given away")]
    pub fn error_with(self, message: impl Into<String>, key: &str, value: Value) -> RpcError {
        RpcError::new(self.code(), message).with_details(json!({ "reason": self, key: value }))
    }

    /// The reason an error gives, if it is one of ours.
    pub fn of(error: &RpcError) -> Option<Self> {
        let reason = error.details.as_ref()?.get("reason")?;
        serde_json::from_value(reason.clone()).ok()
    }
}

/// What is wrong with one field.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FieldError {
    /// JSON pointer to it.
    pub pointer: String,
    /// For programs.
    pub code: String,
    /// For people.
    pub message: String,
}

/// Collects what is wrong with a request, so that all of it is told at once.
#[derive(Clone, Debug, Default)]
pub struct Fields {
    errors: Vec<FieldError>,
}

impl Fields {
    /// Nothing is wrong yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes a field unless `ok`.
    pub fn check(&mut self, ok: bool, pointer: &str, code: &str, message: &str) {
        if !ok {
            let (pointer, code, message) =
                (pointer.to_owned(), code.to_owned(), message.to_owned());
            self.errors.push(FieldError {
                pointer,
                code,
                message,
            });
        }
    }

    /// Notes a text whose length in characters is out of range.
    pub fn length(&mut self, text: &str, range: std::ops::RangeInclusive<usize>, pointer: &str) {
        let message = format!("{} to {} characters", range.start(), range.end());
        self.check(
            range.contains(&text.chars().count()),
            pointer,
            "length",
            &message,
        );
    }

    /// # Errors
    /// `validation` with every field noted, if any was.
    pub fn finish(self) -> Result<(), RpcError> {
        if self.errors.is_empty() {
            return Ok(());
        }
        Err(Reason::Validation.error_with("fields are not valid", "errors", json!(self.errors)))
    }
}
