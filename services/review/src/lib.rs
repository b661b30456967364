//! The review service: what buyers think.

mod controller;
mod rating;
mod store;

use nestling::{
    Client, Introspection, Router, RpcError,
    sqlite::{Outbox, Relay},
};
use sqlx::SqlitePool;

use self::{controller::ReviewController, store::ReviewStore};

/// What the service is made of.
#[derive(Debug)]
pub struct Deps {
    /// Its own database.
    pub pool: SqlitePool,
    /// Where its events go.
    pub bus: Client,
}

/// The service, ready to be served.
#[derive(Debug)]
pub struct App {
    /// Its handlers.
    pub router: Router,
    /// What runs beside them; it ends when dropped.
    pub background: Relay,
}

/// Puts the service together.
///
/// # Errors
/// When the database cannot be prepared.
pub async fn start(deps: Deps) -> Result<App, RpcError> {
    let Deps { pool, bus } = deps;
    let outbox = Outbox::open(pool.clone()).await?;
    let store = ReviewStore::open(pool.clone(), outbox.clone()).await?;
    let ready = move || {
        let pool = pool.clone();
        async move { Ok(sqlx::query("SELECT 1").execute(&pool).await.map(drop)?) }
    };
    let introspection = Introspection::new("review", env!("CARGO_PKG_VERSION"))
        .check("database", ready)
        .gauges(outbox.gauges());
    let router = Router::new()
        .controller(ReviewController { store })
        .merge(introspection.router());
    Ok(App {
        router,
        background: outbox.relay(bus),
    })
}
