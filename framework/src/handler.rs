//! Handlers: async functions whose signature says what they answer.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{self, Poll},
};

use bytes::Bytes;
use futures_core::Stream;
use futures_util::StreamExt;
use serde::Serialize;

use crate::{
    codec::Codec,
    context::Context,
    contract::{Event, Many, Message, Single},
    error::RpcError,
    extract::FromContext,
};

/// A boxed future, as trait objects need it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
/// A boxed stream of encoded values.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes, RpcError>> + Send>>;

/// What a handler left behind, encoded.
pub enum Reply {
    /// Nothing: the handler of an event.
    None,
    /// One value.
    Value(Bytes),
    /// Many values; each is pulled when there is room for it.
    Stream(ByteStream),
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Value(bytes) => write!(f, "Value({} bytes)", bytes.len()),
            Self::Stream(_) => f.write_str("Stream"),
        }
    }
}

/// A stream of replies: what a handler of a `stream = T` message returns, and what
/// [`Client::stream`](crate::Client::stream) gives its caller.
///
/// Dropping it stops whoever produces it.
///
/// ```
/// use nestling::Streaming;
///
/// let values: Streaming<u32> = Streaming::new(futures_util::stream::iter([Ok(1), Ok(2)]));
/// ```
pub struct Streaming<T> {
    inner: Pin<Box<dyn Stream<Item = Result<T, RpcError>> + Send>>,
}

impl<T> Streaming<T> {
    /// A reply made of the stream's values; an error ends it.
    pub fn new(stream: impl Stream<Item = Result<T, RpcError>> + Send + 'static) -> Self {
        Self {
            inner: Box::pin(stream),
        }
    }

    /// The next value, or `None` after the last.
    ///
    /// # Errors
    /// The error that ended the stream.
    pub async fn try_next(&mut self) -> Result<Option<T>, RpcError> {
        self.inner.next().await.transpose()
    }
}

impl<T: Send + 'static> Streaming<T> {
    /// A reply made of values that are there already.
    pub fn of(values: impl IntoIterator<Item = T, IntoIter: Send + 'static>) -> Self {
        Self::new(futures_util::stream::iter(values.into_iter().map(Ok)))
    }
}

impl<T> Stream for Streaming<T> {
    type Item = Result<T, RpcError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Option<Self::Item>> {
        self.inner.as_mut().poll_next(cx)
    }
}

impl<T> fmt::Debug for Streaming<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Streaming")
    }
}

/// What the handler of message `M` may return: whatever is an [`Answer`] to it.
pub trait IntoReply<M> {
    /// Encodes it.
    ///
    /// # Errors
    /// The handler's own error, or `Internal` when the value cannot be encoded.
    fn into_reply(self, codec: Codec) -> Result<Reply, RpcError>;
}

impl<M, A> IntoReply<M> for A
where
    M: Message,
    A: Answer<M, M::Reply, M::Shape>,
{
    fn into_reply(self, codec: Codec) -> Result<Reply, RpcError> {
        self.encode(codec)
    }
}

/// [`IntoReply`] with the contract's reply `T` and shape `S` taken out of `M`, so that the compiler
/// names both when a handler returns something else.
///
/// | `S` | what a handler returns |
/// |---|---|
/// | [`Single`] | `Result<T, E>` |
/// | [`Many`] | `Streaming<T>`, or `Result<Streaming<T>, E>` to refuse before the first value |
///
/// `E` is `Into<RpcError>`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a reply to `{M}`",
    label = "the contract's reply is `{T}` (`{S}`)",
    note = "a handler returns `Result<T, Error>` for `reply = T`, `Streaming<T>` or `Result<Streaming<T>, Error>` for `stream = T`, with an error that is `Into<RpcError>`"
)]
pub trait Answer<M, T, S> {
    /// Encodes it.
    ///
    /// # Errors
    /// The handler's own error, or `Internal` when the value cannot be encoded.
    fn encode(self, codec: Codec) -> Result<Reply, RpcError>;
}

impl<M, T, E> Answer<M, T, Single> for Result<T, E>
where
    T: Serialize,
    E: Into<RpcError>,
{
    fn encode(self, codec: Codec) -> Result<Reply, RpcError> {
        encode_single(self, codec)
    }
}

impl<M, T> Answer<M, T, Many> for Streaming<T>
where
    T: Serialize + Send + 'static,
{
    fn encode(self, codec: Codec) -> Result<Reply, RpcError> {
        Ok(encode_stream(self, codec))
    }
}

/// A stream that may be refused before its first value.
impl<M, T, E> Answer<M, T, Many> for Result<Streaming<T>, E>
where
    T: Serialize + Send + 'static,
    E: Into<RpcError>,
{
    fn encode(self, codec: Codec) -> Result<Reply, RpcError> {
        Ok(encode_stream(self.map_err(Into::into)?, codec))
    }
}

/// What the handler of a literal pattern may return.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a reply",
    note = "return `Result<T, Error>` with a serializable value and an error that is `Into<RpcError>`, or `Streaming<T>`"
)]
pub trait IntoAnyReply {
    /// Encodes it.
    ///
    /// # Errors
    /// The handler's own error, or `Internal` when the value cannot be encoded.
    fn into_reply(self, codec: Codec) -> Result<Reply, RpcError>;
}

impl<T: Serialize, E: Into<RpcError>> IntoAnyReply for Result<T, E> {
    fn into_reply(self, codec: Codec) -> Result<Reply, RpcError> {
        encode_single(self, codec)
    }
}

impl<T: Serialize + Send + 'static> IntoAnyReply for Streaming<T> {
    fn into_reply(self, codec: Codec) -> Result<Reply, RpcError> {
        Ok(encode_stream(self, codec))
    }
}

fn encode_single<T: Serialize, E: Into<RpcError>>(
    result: Result<T, E>,
    codec: Codec,
) -> Result<Reply, RpcError> {
    let value = result.map_err(Into::into)?;
    codec.encode(&value).map(Reply::Value)
}

fn encode_stream<T: Serialize + Send + 'static>(values: Streaming<T>, codec: Codec) -> Reply {
    Reply::Stream(Box::pin(
        values.map(move |item| item.and_then(|value| codec.encode(&value))),
    ))
}

/// A function that answers a message: its contract `M` first, then extractors.
///
/// Implemented for async functions and closures of up to five arguments; `Args` is there for
/// the compiler.
#[diagnostic::on_unimplemented(
    message = "this function cannot handle a message",
    note = "its first argument is the contract, others are extractors, and it is `async` with the contract's reply as its result"
)]
pub trait MessageHandler<Args>: Clone + Send + Sync + 'static {
    /// The contract.
    type Message: Message;
    /// Decodes, runs and encodes.
    fn call(&self, cx: Context) -> BoxFuture<'static, Result<Reply, RpcError>>;
}

/// A function that answers a literal pattern: extractors only, [`Payload`](crate::Payload) among them.
pub trait Handler<Args>: Clone + Send + Sync + 'static {
    /// Extracts, runs and encodes.
    fn call(&self, cx: Context) -> BoxFuture<'static, Result<Reply, RpcError>>;
}

/// A function that reacts to an event: its contract first, then extractors.
#[diagnostic::on_unimplemented(
    message = "this function cannot handle an event",
    note = "its first argument is the contract, others are extractors, and it is `async` with `Result<(), Error>` as its result"
)]
pub trait EventHandler<Args>: Clone + Send + Sync + 'static {
    /// The contract.
    type Event: Event;
    /// Decodes and runs.
    fn call(&self, cx: Context) -> BoxFuture<'static, Result<Reply, RpcError>>;
}

fn decode<T: serde::de::DeserializeOwned>(cx: &Context) -> Result<(T, Codec), RpcError> {
    let envelope = cx.envelope();
    let codec = Codec::of(&envelope.headers)?;
    Ok((codec.decode(&envelope.payload)?, codec))
}

macro_rules! impl_handlers {
    ($($arg:ident),*) => {
        #[allow(non_snake_case, reason = "a type's name serves as its variable's")]
        impl<F, Fut, M, $($arg,)*> MessageHandler<(M, $($arg,)*)> for F
        where
            F: Fn(M, $($arg),*) -> Fut + Clone + Send + Sync + 'static,
            Fut: Future<Output: IntoReply<M>> + Send + 'static,
            M: Message,
            $($arg: FromContext + Send,)*
        {
            type Message = M;

            fn call(&self, cx: Context) -> BoxFuture<'static, Result<Reply, RpcError>> {
                let handler = self.clone();
                Box::pin(async move {
                    let (message, codec) = decode::<M>(&cx)?;
                    $(let $arg = $arg::from_context(&cx)?;)*
                    drop(cx);
                    handler(message, $($arg),*).await.into_reply(codec)
                })
            }
        }

        #[allow(non_snake_case, reason = "a type's name serves as its variable's")]
        impl<F, Fut, M, E, $($arg,)*> EventHandler<(M, $($arg,)*)> for F
        where
            F: Fn(M, $($arg),*) -> Fut + Clone + Send + Sync + 'static,
            Fut: Future<Output = Result<(), E>> + Send + 'static,
            E: Into<RpcError>,
            M: Event,
            $($arg: FromContext + Send,)*
        {
            type Event = M;

            fn call(&self, cx: Context) -> BoxFuture<'static, Result<Reply, RpcError>> {
                let handler = self.clone();
                Box::pin(async move {
                    let (event, _) = decode::<M>(&cx)?;
                    $(let $arg = $arg::from_context(&cx)?;)*
                    drop(cx);
                    handler(event, $($arg),*).await.map_err(Into::into)?;
                    Ok(Reply::None)
                })
            }
        }

        #[allow(non_snake_case, unused_variables, reason = "a type's name serves as its variable's; none without arguments")]
        impl<F, Fut, $($arg,)*> Handler<($($arg,)*)> for F
        where
            F: Fn($($arg),*) -> Fut + Clone + Send + Sync + 'static,
            Fut: Future<Output: IntoAnyReply> + Send + 'static,
            $($arg: FromContext + Send,)*
        {
            fn call(&self, cx: Context) -> BoxFuture<'static, Result<Reply, RpcError>> {
                let handler = self.clone();
                Box::pin(async move {
                    // Who takes the payload as it arrived may know an encoding that we do not.
                    let codec = Codec::of(cx.headers()).unwrap_or_default();
                    $(let $arg = $arg::from_context(&cx)?;)*
                    drop(cx);
                    handler($($arg),*).await.into_reply(codec)
                })
            }
        }
    };
}

impl_handlers!();
impl_handlers!(A1);
impl_handlers!(A1, A2);
impl_handlers!(A1, A2, A3);
impl_handlers!(A1, A2, A3, A4);
