//! The recommendation service: `recommendation --listen tcp://127.0.0.1:7006 --events kafka://localhost`.

use clap::Parser;
use nestling::{
    service::Config,
    sqlite::{self, DeadLetterTable},
};
use recommendation::Deps;

/// What goes with what.
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
    let pool = sqlite::open(service.file("recommendation.db")?).await?;
    let dead_letters = DeadLetterTable::open(pool.clone()).await?;
    let app = recommendation::start(Deps { pool }).await?;
    service
        .server("recommendation", app.router)
        .dead_letters(dead_letters)
        .run()
        .await?;
    Ok(())
}
