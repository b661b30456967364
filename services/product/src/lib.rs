//! The product service: the catalogue, prices, and what is in the warehouse.

mod catalogue;
mod controller;
mod stock;
mod store;

use nestling::{
    Client, Introspection, Router, RpcError,
    sqlite::{Outbox, Relay},
    transport::Task,
};
use sqlx::SqlitePool;

pub use self::catalogue::slug;
use self::{controller::ProductController, stock::StockStore, store::ProductStore};

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
    pub background: (Relay, Task),
}

/// Puts the service together.
///
/// # Errors
/// When the database cannot be prepared.
pub async fn start(deps: Deps) -> Result<App, RpcError> {
    let Deps { pool, bus } = deps;
    let outbox = Outbox::open(pool.clone()).await?;
    let products = ProductStore::open(pool.clone(), outbox.clone()).await?;
    let stock = StockStore::new(pool.clone(), outbox.clone());
    let sweeper = Task::spawn(stock.clone().sweep());
    let ready = move || {
        let pool = pool.clone();
        async move { Ok(sqlx::query("SELECT 1").execute(&pool).await.map(drop)?) }
    };
    let introspection = Introspection::new("product", env!("CARGO_PKG_VERSION"))
        .check("database", ready)
        .gauges(outbox.gauges());
    let router = Router::new()
        .controller(ProductController { products, stock })
        .merge(introspection.router());
    Ok(App {
        router,
        background: (outbox.relay(bus), sweeper),
    })
}
