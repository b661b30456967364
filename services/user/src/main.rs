//! The user service as a process of its own.

use anyhow::Context;
use clap::{Parser, builder::FalseyValueParser};
use nestling::service::Config;

#[derive(Parser)]
#[command(version, about = "Accounts and sessions")]
struct Options {
    #[command(flatten)]
    config: Config,
    /// Make the demo logins, whose passwords everybody knows, when they are not there.
    #[arg(long, env = "SEED_DEMO", value_parser = FalseyValueParser::new())]
    seed_demo: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Options { config, seed_demo } = Options::parse();
    config.init_logging();
    let pool = user::open(&config.file("user.db")?)
        .await
        .context("open the database")?;
    if seed_demo {
        user::seed_demo(&pool)
            .await
            .context("make the demo logins")?;
    }
    let bus = config.bus("user").await.context("connect to the bus")?;
    let app = user::start(user::Deps::new(pool, bus)).await?;
    config.server("user", app.router).run().await?;
    Ok(())
}
