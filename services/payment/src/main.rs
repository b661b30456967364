//! The payment service: `payment --listen redis://localhost --events kafka://localhost`, with a seal
//! key in `PAYMENT_SEAL_KEY`.

use std::convert::Infallible;

use clap::Parser;
use contracts::Secret;
use nestling::{
    service::Config,
    sqlite::{self, DeadLetterTable},
};
use payment::{Deps, SealKey};

/// Cards, charges and the ledger.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[command(flatten)]
    service: Config,
    /// 64 hexadecimal digits that tokens and provider references are sealed with.
    #[arg(long, env = "PAYMENT_SEAL_KEY", hide_env_values = true, value_name = "HEX", value_parser = secret)]
    seal_key: Secret,
}

/// Any text: clap would show a text it refuses.
fn secret(text: &str) -> Result<Secret, Infallible> {
    Ok(Secret::new(text))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Args { service, seal_key } = Args::parse();
    service.init_logging();
    let seal_key = SealKey::from_hex(&seal_key)?;
    let pool = sqlite::open(service.file("payment.db")?).await?;
    let dead_letters = DeadLetterTable::open(pool.clone()).await?;
    let bus = service.bus("payment").await?;
    let app = payment::start(Deps {
        pool,
        bus,
        seal_key,
    })
    .await?;
    service
        .server("payment", app.router)
        .dead_letters(dead_letters)
        // Money and stock hang on its events: none is given up before somebody has seen to it.
        .retry(1_000, std::time::Duration::from_millis(100))
        .run()
        .await?;
    Ok(())
}
