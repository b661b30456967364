//! The user service: accounts, passwords, sessions and the tokens that prove them.
//!
//! [`start`] puts it together; `main`, the one-process shop and the tests all call it.
#![warn(missing_docs)]

mod account;
mod controller;
mod cursor;
mod error;
mod password;
mod seed;
mod store;
mod token;

use std::{fmt, sync::Arc};

use contracts::Timestamp;
use nestling::{
    Client, Introspection, Router, RpcError,
    sqlite::{Outbox, Relay},
};
use sqlx::SqlitePool;

use self::{
    controller::UserController, cursor::CursorKey, password::Passwords, store::Store, token::Signer,
};
pub use self::{
    seed::{DEMO_ACCOUNTS, DemoAccount, seed_account, seed_demo},
    store::open,
};

/// Tells the time.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// What the service needs from outside.
#[derive(Clone)]
pub struct Deps {
    /// Its database.
    pub pool: SqlitePool,
    /// Where its events go.
    pub bus: Client,
    /// Its clock.
    pub clock: Clock,
}

impl Deps {
    /// With the clock of this machine.
    pub fn new(pool: SqlitePool, bus: Client) -> Self {
        Self {
            pool,
            bus,
            clock: Arc::new(Timestamp::now),
        }
    }
}

impl fmt::Debug for Deps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deps")
            .field("bus", &self.bus)
            .finish_non_exhaustive()
    }
}

/// The service, ready to be served.
#[derive(Debug)]
pub struct App {
    /// What it answers.
    pub router: Router,
    /// What it does besides; it ends when this is dropped.
    pub background: Background,
}

/// The tasks of the service.
#[derive(Debug)]
pub struct Background {
    _relay: Relay,
}

/// Makes the tables and the signing key where they are missing, and starts to publish events.
///
/// # Errors
/// When the database cannot.
pub async fn start(deps: Deps) -> Result<App, RpcError> {
    let Deps { pool, bus, clock } = deps;
    store::create_tables(&pool).await?;
    let outbox = Outbox::open(pool.clone()).await?;
    let gauges = outbox.gauges();
    let background = Background {
        _relay: outbox.relay(bus),
    };
    let signer = Signer::new(store::signing_keys(&pool, clock()).await?)?;
    let cursors = CursorKey::new(&store::cursor_key(&pool).await?);
    let controller = UserController {
        store: Store::new(pool.clone(), outbox),
        passwords: Passwords::new().await?,
        signer,
        cursors,
        clock,
    };
    let introspection = Introspection::new("user", env!("CARGO_PKG_VERSION"))
        .check("database", move || {
            let pool = pool.clone();
            async move {
                sqlx::query("SELECT 1").execute(&pool).await?;
                Ok(())
            }
        })
        .gauges(gauges);
    let router = Router::new()
        .controller(controller)
        .merge(introspection.router());
    Ok(App { router, background })
}
