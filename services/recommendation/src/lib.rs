//! The recommendation service: what goes with what, learned from orders.

mod baskets;
mod controller;
mod learner;
mod model;
mod store;

use nestling::{Introspection, Router, RpcError, sqlite::Inbox, transport::Task};
use sqlx::SqlitePool;

use self::{controller::RecommendationController, learner::Learner, store::BasketStore};

/// What the service is made of.
#[derive(Debug)]
pub struct Deps {
    /// Its own database.
    pub pool: SqlitePool,
}

/// The service, ready to be served.
#[derive(Debug)]
pub struct App {
    /// Its handlers.
    pub router: Router,
    /// What runs beside them; it ends when dropped.
    pub background: Task,
}

/// Puts the service together.
///
/// # Errors
/// When the database cannot be prepared or read.
pub async fn start(deps: Deps) -> Result<App, RpcError> {
    let Deps { pool } = deps;
    Inbox::open(&pool).await?;
    let store = BasketStore::open(pool.clone()).await?;
    let learner = Learner::new(store.load().await?);
    let background = Task::spawn(learner.clone().learn());
    let ready = move || {
        let pool = pool.clone();
        async move { Ok(sqlx::query("SELECT 1").execute(&pool).await.map(drop)?) }
    };
    let introspection =
        Introspection::new("recommendation", env!("CARGO_PKG_VERSION")).check("database", ready);
    let controller = RecommendationController { store, learner };
    let router = Router::new()
        .controller(controller)
        .merge(introspection.router());
    Ok(App { router, background })
}
