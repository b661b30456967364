//! The gateway: HTTP in front of the shop's messages.
//!
//! [`app`] is the whole of it as an [`axum::Router`]; [`serve`] runs one until it is told to stop.
//! Routes translate a request into messages and their replies into a response, and decide nothing
//! else: the services check ownership and values themselves.
#![warn(missing_docs)]

mod auth;
mod body;
mod calls;
mod clients;
mod docs;
mod edge;
mod error;
mod routes;
mod version;

use std::{io, sync::Arc, time::Duration};

use axum::{Router, extract::DefaultBodyLimit, middleware};
use tokio::{net::TcpListener, sync::oneshot};
use tower_http::catch_panic::CatchPanicLayer;

use self::auth::Keyring;
pub use self::clients::{Clients, ConnectError, Urls, policy};

/// The largest body of a request.
const MAX_BODY: usize = 256 * 1024;

/// What every handler can reach.
#[derive(Clone)]
pub(crate) struct Gateway(Arc<Shared>);

pub(crate) struct Shared {
    pub(crate) clients: Clients,
    pub(crate) keyring: Keyring,
    pub(crate) document: String,
}

impl std::ops::Deref for Gateway {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

/// All routes, over these clients.
pub fn app(clients: Clients) -> Router {
    let (router, document) = routes::all().split_for_parts();
    let keyring = Keyring::new(clients.user.clone());
    let document = docs::complete(document);
    let gateway = Gateway(Arc::new(Shared {
        clients,
        keyring,
        document,
    }));
    router
        .with_state(gateway)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(CatchPanicLayer::custom(edge::panicked))
        .layer(middleware::from_fn(edge::edge))
}

/// Answers requests until `stop` ends, and then those that have begun, which may take as long as
/// `drain`.
///
/// # Errors
/// When connections can no longer be accepted.
pub async fn serve(
    listener: TcpListener,
    app: Router,
    stop: impl Future<Output = ()> + Send + 'static,
    drain: Duration,
) -> io::Result<()> {
    let address = listener.local_addr()?;
    tracing::info!(%address, "listening for http");
    let (stopped, draining) = oneshot::channel();
    let stop = async move {
        stop.await;
        tracing::info!("draining");
        // The other end is gone only when nothing is served any more.
        stopped.send(()).ok();
    };
    let overdue = async move {
        match draining.await {
            Ok(()) => tokio::time::sleep(drain).await,
            Err(_) => std::future::pending().await,
        }
    };
    let served = axum::serve(listener, app).with_graceful_shutdown(stop);
    tokio::select! {
        result = served => result,
        () = overdue => {
            tracing::warn!("requests were cut off that did not end in time");
            Ok(())
        }
    }
}
