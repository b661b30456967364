//! The whole shop in one process: every service and the gateway, over whatever transports it is
//! given. `shop dev` and the tests of the whole start it from here.

mod layout;
mod progress;
mod staff;

pub mod import;
pub mod seed;
pub mod verify;

use std::{any::Any, fmt};

use anyhow::Context as _;
use gateway::Clients;
use nestling::{Endpoint, Policy, Running};

pub use self::{layout::Layout, staff::Staff};

/// Every service, running.
pub struct Shop {
    /// A client of each.
    pub clients: Clients,
    /// Where the product service is, for those who seed it.
    pub product: Endpoint,
    servers: Vec<Running>,
    /// What services do besides answering; it ends when dropped.
    background: Vec<Box<dyn Any + Send>>,
}

/// A service that runs, and how to reach it.
struct Started {
    running: Running,
    endpoint: Endpoint,
}

impl Shop {
    /// Starts all services; returns when each receives.
    ///
    /// # Errors
    /// When a database or a transport cannot be opened.
    pub async fn start(layout: &Layout) -> anyhow::Result<Self> {
        let bus = layout
            .client(&layout.events, Policy::new())
            .await
            .context("connect to the bus")?;
        let mut servers = Vec::new();
        let mut background: Vec<Box<dyn Any + Send>> = Vec::new();
        let mut keep = |started: Started, tasks: Box<dyn Any + Send>| {
            servers.push(started.running);
            background.push(tasks);
            started.endpoint
        };

        let deps = product::Deps {
            pool: layout.database("product").await?,
            bus: bus.clone(),
        };
        let app = product::start(deps).await?;
        let started = layout.serve("product", app.router, &layout.product).await?;
        let product = keep(started, Box::new(app.background));

        let deps = payment::Deps {
            pool: layout.database("payment").await?,
            bus: bus.clone(),
            seal_key: payment::SealKey::from_hex(&layout.seal_key()?)?,
        };
        let app = payment::start(deps).await?;
        let started = layout.serve("payment", app.router, &layout.payment).await?;
        let payment = keep(started, Box::new(app.background));

        let deps = order::Deps {
            pool: layout.database("order").await?,
            product: layout.client(&product, order::policy()).await?,
            payment: layout.client(&payment, order::policy()).await?,
            bus: bus.clone(),
            config: order::Config::default(),
            clock: order::Clock::default(),
        };
        let app = order::start(deps).await?;
        let started = layout.serve("order", app.router, &layout.order).await?;
        let order = keep(started, Box::new(app.background));

        let pool = layout.database("user").await?;
        let app = user::start(user::Deps::new(pool.clone(), bus.clone())).await?;
        user::seed_demo(&pool)
            .await
            .context("make the demo logins")?;
        let started = layout.serve("user", app.router, &layout.user).await?;
        let user = keep(started, Box::new(app.background));

        let deps = review::Deps {
            pool: layout.database("review").await?,
            bus: bus.clone(),
        };
        let app = review::start(deps).await?;
        let started = layout.serve("review", app.router, &layout.review).await?;
        let review = keep(started, Box::new(app.background));

        let deps = recommendation::Deps {
            pool: layout.database("recommendation").await?,
        };
        let app = recommendation::start(deps).await?;
        let started = layout
            .serve("recommendation", app.router, &layout.recommendation)
            .await?;
        let recommendation = keep(started, Box::new(app.background));

        let clients = Clients {
            user: layout.client(&user, gateway::policy()).await?,
            product: layout.client(&product, gateway::policy()).await?,
            order: layout.client(&order, gateway::policy()).await?,
            payment: layout.client(&payment, gateway::policy()).await?,
            review: layout.client(&review, gateway::policy()).await?,
            recommendation: layout.client(&recommendation, gateway::policy()).await?,
        };
        Ok(Self {
            clients,
            product,
            servers,
            background,
        })
    }

    /// Drains every service, those that call others first.
    pub async fn shutdown(self) {
        let Self {
            servers,
            background,
            ..
        } = self;
        for server in servers.into_iter().rev() {
            server.shutdown().await;
        }
        drop(background);
    }
}

impl fmt::Debug for Shop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shop")
            .field("servers", &self.servers)
            .finish_non_exhaustive()
    }
}
