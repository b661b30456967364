//! A handler at work: polled in its context, its panics caught.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    task::{self, Poll},
};

use crate::{
    context::Context,
    error::{Code, RpcError},
    handler::{BoxFuture, ByteStream, Reply},
    router::Route,
    transport::Outcome,
};

/// A handler at work, with the context it runs in.
pub(super) struct Work {
    cx: Context,
    future: BoxFuture<'static, Result<Reply, RpcError>>,
}

impl Work {
    pub(super) fn new(route: &Route, cx: Context) -> Self {
        let calling = AssertUnwindSafe(|| route.run(cx.clone()));
        let future = catch_unwind(calling)
            .unwrap_or_else(|panic| Box::pin(std::future::ready(Err(panicked(&*panic)))));
        Self { cx, future }
    }

    /// Polls the handler in its context; a panic becomes an error.
    pub(super) fn poll(&mut self, task: &mut task::Context<'_>) -> Poll<Result<Reply, RpcError>> {
        let Self { cx, future } = self;
        let polling = AssertUnwindSafe(|| cx.poll_scoped(|| future.as_mut().poll(task)));
        catch_unwind(polling).unwrap_or_else(|panic| Poll::Ready(Err(panicked(&*panic))))
    }

    pub(super) fn context(&self) -> &Context {
        &self.cx
    }

    /// What answers a message, or the stream that does.
    pub(super) fn outcome(&self, result: Result<Reply, RpcError>) -> Result<Outcome, ByteStream> {
        match result {
            Ok(Reply::Value(payload)) => Ok(Outcome::Reply(payload)),
            Ok(Reply::None) => Ok(Outcome::Done),
            Ok(Reply::Stream(stream)) => Err(stream),
            Err(error) => Ok(Outcome::Fail(report(&self.cx, error))),
        }
    }
}

/// Logs what the caller is not told, and returns what it is.
pub(super) fn report(cx: &Context, error: RpcError) -> RpcError {
    let trace = cx
        .header(crate::envelope::header::TRACEPARENT)
        .unwrap_or_default();
    match error.code {
        Code::Internal | Code::Unknown => {
            tracing::error!(pattern = cx.pattern(), trace, ?error, "handler failed");
        }
        _ => tracing::debug!(pattern = cx.pattern(), trace, %error, "handler refused"),
    }
    error.without_source()
}

pub(super) fn panicked(panic: &(dyn Any + Send)) -> RpcError {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a text".to_owned());
    RpcError::internal(format!("handler panicked: {text}"))
}
