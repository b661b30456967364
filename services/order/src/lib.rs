//! The order service: carts, checkout, and orders from placed to settled.
//!
//! An order is the fold of its events; a saga drives it over the product and payment services
//! (reserve, authorise, confirm), and undoes by command what has to be undone. [`start`] puts it
//! together for a server, for a whole shop in one process, and for tests.

mod announce;
mod cart;
mod checkout;
pub mod config;
mod controller;
pub mod error;
pub mod fact;
mod input;
pub mod order;
mod orders;
pub mod pricing;
mod saga;
pub mod store;

use std::sync::Arc;

use nestling::{
    Breaker, Client, Introspection, Policy, Router, RpcError, sqlite::Relay, transport::Task,
};
use sqlx::SqlitePool;

pub use self::config::{Clock, Config};
use self::{
    cart::Carts,
    checkout::Checkout,
    controller::OrderController,
    error::Error,
    orders::Orders,
    saga::{Saga, Wake},
    store::Store,
};

/// What the service leans on.
#[derive(Debug)]
pub struct Deps {
    /// Its own database.
    pub pool: SqlitePool,
    /// The product service, called by [`policy`].
    pub product: Client,
    /// The payment service, called by [`policy`].
    pub payment: Client,
    /// Where events go.
    pub bus: Client,
    /// Times and bounds.
    pub config: Config,
    /// What tells the time.
    pub clock: Clock,
}

/// What clients of other services do when calls fail: they fail fast while one is away, and do not
/// retry. The saga asks again by itself, from its table, for as long as an order has time; what a buyer
/// waits for is asked again by the gateway, and retries at two levels multiply.
pub fn policy() -> Policy {
    Policy::new().breaker(Breaker::new())
}

/// The service, about to be served.
#[derive(Debug)]
pub struct App {
    /// What it answers.
    pub router: Router,
    /// What it does meanwhile; keep it for as long as the router is served.
    pub background: Background,
}

/// The service's own tasks: the saga, and the publication of events. They end when it is dropped;
/// what they leave undone is taken up by the next start.
#[derive(Debug)]
#[must_use = "no order is driven once it is dropped"]
pub struct Background {
    _saga: Task,
    _relay: Relay,
}

/// Makes the tables that are not there, puts the handlers together and takes up what was left.
///
/// # Errors
/// When the database cannot.
pub async fn start(deps: Deps) -> Result<App, RpcError> {
    let Deps {
        pool,
        product,
        payment,
        bus,
        config,
        clock,
    } = deps;
    let store = Store::open(pool, config.instance.clone()).await?;
    let (relay, gauges) = (store.outbox().relay(bus), store.outbox().gauges());
    let (wake, woken) = Wake::channel();
    let carts = Carts {
        store: store.clone(),
        product: product.clone(),
        currency: config.currency,
    };
    let checkout = Checkout {
        store: store.clone(),
        product: product.clone(),
        wake: wake.clone(),
        config: config.clone(),
        clock: clock.clone(),
    };
    let orders = Orders {
        store: store.clone(),
        wake,
        clock: clock.clone(),
    };
    let probe = store.clone();
    let saga = Arc::new(Saga {
        store,
        product,
        payment,
        config,
        clock,
    });
    let introspection = Introspection::new("order", env!("CARGO_PKG_VERSION"))
        .check("database", move || {
            let store = probe.clone();
            async move { store.check().await.map_err(Error::into) }
        })
        .gauges(gauges);
    let router = Router::new()
        .controller(OrderController {
            carts,
            checkout,
            orders,
        })
        .merge(introspection.router());
    let background = Background {
        _saga: Task::spawn(saga.run(woken)),
        _relay: relay,
    };
    Ok(App { router, background })
}
