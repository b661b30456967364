//! The services the gateway talks to.

use std::{fmt, time::Duration};

use nestling::{Breaker, Client, Policy, Retry, transport};
use uuid::Uuid;

/// How often an idempotent call is made at most, and the limits of the pauses between.
const TRIES: u32 = 5;
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(1);

/// One client for each service.
#[derive(Clone, Debug)]
pub struct Clients {
    /// Accounts.
    pub user: Client,
    /// Catalogue and stock.
    pub product: Client,
    /// Carts and orders.
    pub order: Client,
    /// Cards and charges.
    pub payment: Client,
    /// Reviews.
    pub review: Client,
    /// Recommendations.
    pub recommendation: Client,
}

/// Where the services are.
#[derive(Clone, clap::Args)]
pub struct Urls {
    /// The user service.
    #[arg(long, env = "USER_URL", hide_env_values = true, value_name = "URL")]
    pub user: String,
    /// The product service.
    #[arg(long, env = "PRODUCT_URL", hide_env_values = true, value_name = "URL")]
    pub product: String,
    /// The order service.
    #[arg(long, env = "ORDER_URL", hide_env_values = true, value_name = "URL")]
    pub order: String,
    /// The payment service.
    #[arg(long, env = "PAYMENT_URL", hide_env_values = true, value_name = "URL")]
    pub payment: String,
    /// The review service.
    #[arg(long, env = "REVIEW_URL", hide_env_values = true, value_name = "URL")]
    pub review: String,
    /// The recommendation service.
    #[arg(
        long,
        env = "RECOMMENDATION_URL",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub recommendation: String,
}

/// They may have passwords in them.
impl fmt::Debug for Urls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Urls").finish_non_exhaustive()
    }
}

/// A service that could not be connected to.
#[derive(Debug)]
pub struct ConnectError {
    service: &'static str,
    source: transport::Error,
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connect to the {} service", self.service)
    }
}

impl std::error::Error for ConnectError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// What the gateway's clients do when calls fail.
///
/// Retries are made here and nowhere behind it. The gateway alone knows how long somebody waits for
/// the answer, and what reaches it as `Unavailable` may come from two services on; if the order
/// service retried its calls to the product service as well, five tries of five would fall upon a
/// service in trouble. Only idempotent calls are repeated, and no try has a limit of its own: what
/// waits in a broker for a service that is being restarted is answered when it is back.
pub fn policy() -> Policy {
    let retry = Retry::new()
        .tries(TRIES)
        .backoff(FIRST_RETRY, LONGEST_RETRY);
    Policy::new().retry(retry).breaker(Breaker::new())
}

impl Clients {
    /// Connects to all, again and again for as long as `patience`, since they may be starting too.
    ///
    /// # Errors
    /// The first that could not be reached in time.
    pub async fn connect(urls: &Urls, patience: Duration) -> Result<Self, ConnectError> {
        let instance = Uuid::new_v4().simple().to_string();
        let connect = |service, url| connect(service, url, &instance, patience);
        let (user, product, order, payment, review, recommendation) = tokio::try_join!(
            connect("user", &urls.user),
            connect("product", &urls.product),
            connect("order", &urls.order),
            connect("payment", &urls.payment),
            connect("review", &urls.review),
            connect("recommendation", &urls.recommendation),
        )?;
        Ok(Self {
            user,
            product,
            order,
            payment,
            review,
            recommendation,
        })
    }
}

async fn connect(
    service: &'static str,
    url: &str,
    instance: &str,
    patience: Duration,
) -> Result<Client, ConnectError> {
    // Two services may share a broker, on which a client's name must be its own.
    let client = Client::builder(url)
        .identity("gateway", format!("{instance}-{service}"))
        .policy(policy())
        .patience(patience);
    let connected = client.build().await;
    connected.map_err(|source| ConnectError { service, source })
}
