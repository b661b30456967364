//! Why the service refuses, and what callers are told.

use contracts::{IdError, MoneyError, ProductId, Reason};
use nestling::RpcError;
use serde_json::json;

/// A refusal of this service.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such order.
    #[error("no such order")]
    NoOrder,
    /// There is no such quote, or it is somebody else's.
    #[error("no such quote")]
    NoQuote,
    /// The quote does not hold any more.
    #[error("the quote has expired: ask for another")]
    QuoteExpired,
    /// Some products are not sold.
    #[error("not sold: {}", list(.0))]
    NotSold(Vec<ProductId>),
    /// There is nothing to buy.
    #[error("the cart is empty")]
    EmptyCart,
    /// No payment is awaited.
    #[error("no payment is awaited")]
    NotPayable,
    /// It is too late.
    #[error("the order can no longer be cancelled")]
    NotCancellable,
    /// The key belongs to another request.
    #[error("the idempotency key was used with another request")]
    KeyReused,
    /// Somebody else appended first.
    #[error("the order has changed meanwhile")]
    Conflict,
    /// The sums cannot be made.
    #[error("the prices do not add up: {0}")]
    Money(#[from] MoneyError),
    /// What is stored cannot be read.
    #[error("a stored row cannot be read")]
    Row(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The database cannot.
    #[error("database")]
    Database(#[from] sqlx::Error),
    /// Somebody else's refusal, or one that is told as it is.
    #[error(transparent)]
    Rpc(#[from] RpcError),
}

fn list(products: &[ProductId]) -> String {
    products
        .iter()
        .map(ProductId::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Self::Row(error.into())
    }
}

impl From<IdError> for Error {
    fn from(error: IdError) -> Self {
        Self::Row(error.into())
    }
}

impl From<Error> for RpcError {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::NoOrder | Error::NoQuote | Error::QuoteExpired => Reason::NotFound.error(text),
            Error::NotSold(products) => {
                Reason::NotFound.error_with(text, "products", json!(products))
            }
            Error::EmptyCart | Error::NotPayable | Error::Money(_) => {
                Reason::StateConflict.error(text)
            }
            Error::NotCancellable => Reason::NotCancellable.error(text),
            Error::KeyReused => Reason::IdempotencyKeyReused.error(text),
            Error::Conflict => Reason::VersionConflict.error(text),
            Error::Row(source) => Self::internal(source),
            Error::Database(source) => source.into(),
            Error::Rpc(error) => error,
        }
    }
}
