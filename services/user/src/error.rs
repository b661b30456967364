//! What can go wrong with accounts, and the codes it becomes.

use contracts::Reason;
use nestling::RpcError;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the address belongs to another account")]
    EmailTaken,
    /// Unknown address, wrong password, locked or closed account: a caller cannot tell them apart.
    #[error("the address or the password is wrong, or there were too many tries")]
    WrongCredentials,
    #[error("no such user")]
    NotFound,
    #[error("the account was changed in the meantime")]
    VersionConflict,
    #[error("too many sign-ins at once")]
    Busy,
    #[error(transparent)]
    Other(#[from] RpcError),
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Self::Other(error.into())
    }
}

impl From<Error> for RpcError {
    fn from(error: Error) -> Self {
        let reason = match error {
            Error::EmailTaken => Reason::EmailTaken,
            Error::WrongCredentials => Reason::Unauthenticated,
            Error::NotFound => Reason::NotFound,
            Error::VersionConflict => Reason::VersionConflict,
            Error::Busy => Reason::RateLimited,
            Error::Other(error) => return error,
        };
        reason.error(error.to_string())
    }
}
