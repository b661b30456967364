//! The order service as a process of its own.

use clap::Parser;
use nestling::{
    service::Config,
    sqlite::{self, DeadLetterTable},
};
use order::{Clock, Deps};

/// Carts, checkout and orders.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    service: Config,
    /// Where the product service is.
    #[arg(long, env = "PRODUCT_URL", hide_env_values = true, value_name = "URL")]
    product: String,
    /// Where the payment service is.
    #[arg(long, env = "PAYMENT_URL", hide_env_values = true, value_name = "URL")]
    payment: String,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Arguments {
        service,
        product,
        payment,
    } = Arguments::parse();
    service.init_logging();
    let client = |url: &str| service.client("order", url).policy(order::policy());
    let pool = sqlite::open(service.file("order.db")?).await?;
    let dead_letters = DeadLetterTable::open(pool.clone()).await?;
    let app = order::start(Deps {
        pool,
        product: client(&product).build().await?,
        payment: client(&payment).build().await?,
        bus: service.bus("order").await?,
        config: order::Config {
            instance: service.instance.clone(),
            ..order::Config::default()
        },
        clock: Clock::default(),
    })
    .await?;
    service
        .server("order", app.router)
        .dead_letters(dead_letters)
        // Money and stock hang on its events: none is given up before somebody has seen to it.
        .retry(1_000, std::time::Duration::from_millis(100))
        .run()
        .await?;
    drop(app.background);
    Ok(())
}
