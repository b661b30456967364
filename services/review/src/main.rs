//! The review service: `review --listen nats://localhost --events kafka://localhost`.

use clap::Parser;
use nestling::{
    service::Config,
    sqlite::{self, DeadLetterTable},
};
use review::Deps;

/// What buyers think.
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
    let pool = sqlite::open(service.file("review.db")?).await?;
    let dead_letters = DeadLetterTable::open(pool.clone()).await?;
    let bus = service.bus("review").await?;
    let app = review::start(Deps { pool, bus }).await?;
    service
        .server("review", app.router)
        .dead_letters(dead_letters)
        .run()
        .await?;
    Ok(())
}
