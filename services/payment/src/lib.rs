//! The payment service: cards, charges and the ledger.
//!
//! Card numbers are shown to the provider and to nothing else; what is kept is the provider's token,
//! sealed.

mod cashier;
mod controller;
mod ledger;
mod payment;
mod provider;
mod seal;
mod simulator;
mod store;

use std::sync::Arc;

use nestling::{
    Client, Introspection, Router, RpcError,
    sqlite::{Outbox, Relay},
    transport::Task,
};
use sqlx::SqlitePool;

use self::{cashier::Cashier, controller::PaymentController, store::PaymentStore};
pub use self::{
    provider::{Answer, Charge, ChargeState, Provider, ProviderError, StoredCard},
    seal::{NotAKey, SealKey},
    simulator::Simulator,
};

/// What the service is made of.
#[derive(Debug)]
pub struct Deps {
    /// Its own database.
    pub pool: SqlitePool,
    /// Where its events go.
    pub bus: Client,
    /// What tokens and provider references are sealed with.
    pub seal_key: SealKey,
}

/// The service, ready to be served.
#[derive(Debug)]
pub struct App {
    /// Its handlers.
    pub router: Router,
    /// What runs beside them; it ends when dropped.
    pub background: (Relay, Task, Option<Task>),
}

/// Puts the service together with the simulated provider.
///
/// # Errors
/// When the database cannot be prepared.
pub async fn start(deps: Deps) -> Result<App, RpcError> {
    let (simulator, task) = Simulator::start(deps.pool.clone()).await?;
    let mut app = start_with(deps, Arc::new(simulator)).await?;
    app.background.2 = Some(task);
    Ok(app)
}

/// Puts the service together with another provider.
///
/// # Errors
/// When the database cannot be prepared.
pub async fn start_with(deps: Deps, provider: Arc<dyn Provider>) -> Result<App, RpcError> {
    let Deps {
        pool,
        bus,
        seal_key,
    } = deps;
    let outbox = Outbox::open(pool.clone()).await?;
    let store = PaymentStore::open(pool.clone(), outbox.clone(), seal_key).await?;
    let cashier = Cashier { store, provider };
    let resumer = Task::spawn(cashier.clone().resume_all());
    let ready = move || {
        let pool = pool.clone();
        async move { Ok(sqlx::query("SELECT 1").execute(&pool).await.map(drop)?) }
    };
    let introspection = Introspection::new("payment", env!("CARGO_PKG_VERSION"))
        .check("database", ready)
        .gauges(outbox.gauges());
    let router = Router::new()
        .controller(PaymentController { cashier })
        .merge(introspection.router());
    Ok(App {
        router,
        background: (outbox.relay(bus), resumer, None),
    })
}
