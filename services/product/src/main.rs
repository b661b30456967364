//! The product service: `product --listen tcp://127.0.0.1:7002 --events kafka://localhost`.

use clap::Parser;
use nestling::{
    service::Config,
    sqlite::{self, DeadLetterTable},
};
use product::Deps;

/// The catalogue and the stock.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[command(flatten)]
    service: Config,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Args { service } = Args::parse();
    service.init_logging();
    let pool = sqlite::open(service.file("product.db")?).await?;
    let dead_letters = DeadLetterTable::open(pool.clone()).await?;
    let bus = service.bus("product").await?;
    let app = product::start(Deps { pool, bus }).await?;
    service
        .server("product", app.router)
        .dead_letters(dead_letters)
        // Money and stock hang on its events: none is given up before somebody has seen to it.
        .retry(1_000, std::time::Duration::from_millis(100))
        .run()
        .await?;
    Ok(())
}
