//! Extractors: handler arguments that are read from the [`Context`].

use bytes::Bytes;
use serde::de::DeserializeOwned;

use crate::{codec::Codec, context::Context, envelope::Headers, error::RpcError};

/// An argument of a handler, other than its contract.
///
/// Extraction never waits and consumes nothing, so any number of extractors in any order see the
/// same message.
///
/// ```
/// use nestling::{Context, FromContext, RpcError};
///
/// struct Tenant(String);
///
/// impl FromContext for Tenant {
///     fn from_context(cx: &Context) -> Result<Self, RpcError> {
///         let tenant = cx.header("tenant").ok_or_else(|| RpcError::invalid_argument("no tenant"))?;
///         Ok(Self(tenant.to_owned()))
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a handler's argument",
    label = "not read from a message",
    note = "the first argument is the contract; others implement `FromContext`, such as `Context` or `Payload<T>`"
)]
pub trait FromContext: Sized {
    /// Reads the argument.
    ///
    /// # Errors
    /// What the caller is told when the message does not hold it.
    fn from_context(cx: &Context) -> Result<Self, RpcError>;
}

/// The decoded payload, for handlers with a literal pattern.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Payload<T>(pub T);

impl<T: DeserializeOwned> FromContext for Payload<T> {
    fn from_context(cx: &Context) -> Result<Self, RpcError> {
        let envelope = cx.envelope();
        Codec::of(&envelope.headers)?
            .decode(&envelope.payload)
            .map(Self)
    }
}

impl FromContext for Context {
    fn from_context(cx: &Context) -> Result<Self, RpcError> {
        Ok(cx.clone())
    }
}

impl FromContext for Headers {
    fn from_context(cx: &Context) -> Result<Self, RpcError> {
        Ok(cx.headers().clone())
    }
}

/// The payload as it arrived.
impl FromContext for Bytes {
    fn from_context(cx: &Context) -> Result<Self, RpcError> {
        Ok(cx.envelope().payload.clone())
    }
}

/// `None` where the message does not hold it.
impl<T: FromContext> FromContext for Option<T> {
    fn from_context(cx: &Context) -> Result<Self, RpcError> {
        Ok(T::from_context(cx).ok())
    }
}
