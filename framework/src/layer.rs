//! The two common forms of middleware: [`guard`] and [`intercept`].

use std::{fmt, future::Future, sync::Arc};

use tower::Layer;

use crate::{context::Context, error::RpcError, handler::Reply, router::Route};

/// A layer that may refuse a message before its handler sees it.
///
/// The function gets the [`Context`] and may attach what it found out with [`Context::insert`].
///
/// ```
/// use nestling::{Context, Router, RpcError, guard};
///
/// async fn signed_in(cx: Context) -> Result<Context, RpcError> {
///     match cx.header("actor") {
///         Some(_) => Ok(cx),
///         None => Err(RpcError::unauthenticated("sign in first")),
///     }
/// }
///
/// let router = Router::new().layer(guard(signed_in));
/// ```
pub fn guard<F, Fut>(function: F) -> Intercept
where
    F: Fn(Context) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Context, RpcError>> + Send + 'static,
{
    let function = Arc::new(function);
    intercept(move |cx, next| {
        let function = Arc::clone(&function);
        async move { next.run(function(cx).await?).await }
    })
}

/// A layer that acts around the handler: before it, after it, or instead of it.
///
/// ```
/// use nestling::{Router, intercept};
///
/// let router = Router::new().layer(intercept(async |cx, next| {
///     let started = std::time::Instant::now();
///     let reply = next.run(cx).await;
///     println!("took {:?}", started.elapsed());
///     reply
/// }));
/// ```
pub fn intercept<F, Fut>(function: F) -> Intercept
where
    F: Fn(Context, Next) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Reply, RpcError>> + Send + 'static,
{
    Intercept {
        wrap: Arc::new(move |cx, next| Box::pin(function(cx, next))),
    }
}

type Wrap = dyn Fn(Context, Next) -> crate::handler::BoxFuture<'static, Result<Reply, RpcError>>
    + Send
    + Sync;

/// What [`guard`] and [`intercept`] make: a `tower` layer around a [`Route`].
#[derive(Clone)]
pub struct Intercept {
    wrap: Arc<Wrap>,
}

impl Layer<Route> for Intercept {
    type Service = Route;

    fn layer(&self, inner: Route) -> Route {
        let wrap = Arc::clone(&self.wrap);
        Route::new(move |cx| {
            wrap(
                cx,
                Next {
                    route: inner.clone(),
                },
            )
        })
    }
}

impl fmt::Debug for Intercept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Intercept")
    }
}

/// The rest of the way to the handler.
#[derive(Clone, Debug)]
pub struct Next {
    route: Route,
}

impl Next {
    /// Goes on to the layers and the handler behind this one.
    ///
    /// # Errors
    /// Theirs.
    pub async fn run(self, cx: Context) -> Result<Reply, RpcError> {
        self.route.run(cx).await
    }
}
