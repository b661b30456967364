//! Where the services of a [`Shop`](crate::Shop) listen and keep their data.

use std::{fs, io, path::PathBuf, time::Duration};

use anyhow::Context as _;
use contracts::Secret;
use nestling::{Client, Endpoint, Policy, Router, Server, sqlite};
use sqlx::SqlitePool;

use crate::Started;

/// An endpoint for each service, the bus, and a folder.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The user service.
    pub user: Endpoint,
    /// The product service.
    pub product: Endpoint,
    /// The order service.
    pub order: Endpoint,
    /// The payment service.
    pub payment: Endpoint,
    /// The review service.
    pub review: Endpoint,
    /// The recommendation service.
    pub recommendation: Endpoint,
    /// What carries the domain events.
    pub events: Endpoint,
    /// Where databases are; in memory when there is none.
    pub data: Option<PathBuf>,
}

impl Layout {
    /// Every service at `services`, events over `events`.
    pub fn new(services: impl Into<Endpoint>, events: impl Into<Endpoint>) -> Self {
        let services = services.into();
        Self {
            user: services.clone(),
            product: services.clone(),
            order: services.clone(),
            payment: services.clone(),
            review: services.clone(),
            recommendation: services,
            events: events.into(),
            data: None,
        }
    }

    pub(crate) async fn client(
        &self,
        endpoint: &Endpoint,
        policy: Policy,
    ) -> anyhow::Result<Client> {
        let instance = uuid::Uuid::new_v4().simple().to_string();
        let client = Client::builder(endpoint)
            .identity("shop", instance)
            .policy(policy)
            .build()
            .await;
        client.with_context(|| format!("connect to {endpoint}"))
    }

    pub(crate) async fn database(&self, name: &str) -> anyhow::Result<SqlitePool> {
        let pool = match &self.data {
            None => sqlite::open_in_memory().await,
            Some(folder) => {
                fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
                let file = folder.join(format!("{name}.db"));
                // It holds the signing key: nobody else may read it.
                if name == "user" {
                    user::open(&file).await
                } else {
                    sqlite::open(file).await
                }
            }
        };
        pool.with_context(|| format!("open the database of {name}"))
    }

    pub(crate) async fn serve(
        &self,
        name: &str,
        router: Router,
        endpoint: &Endpoint,
    ) -> anyhow::Result<Started> {
        let running = Server::new(name, router)
            .listen(endpoint)
            .events(&self.events)
            .retry(1_000, Duration::from_millis(100))
            .start()
            .await?;
        // A port of its own choice is known only now.
        let is_peer = running.address().starts_with("tcp:");
        let endpoint = if is_peer {
            running.address().into()
        } else {
            endpoint.clone()
        };
        Ok(Started { running, endpoint })
    }

    /// The key that card tokens are sealed with: kept beside the data, or made for this run.
    pub(crate) fn seal_key(&self) -> anyhow::Result<Secret> {
        let Some(folder) = &self.data else {
            return Ok(new_key());
        };
        let path = folder.join("seal.key");
        match fs::read_to_string(&path) {
            Ok(key) => Ok(Secret::new(key.trim())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = new_key();
                write_private(&path, key.expose())
                    .with_context(|| format!("write {}", path.display()))?;
                Ok(key)
            }
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }
}

/// 32 bytes from the system's random numbers, in hexadecimal.
fn new_key() -> Secret {
    let half = || uuid::Uuid::new_v4().simple().to_string();
    Secret::new(half() + &half())
}

fn write_private(path: &std::path::Path, text: &str) -> io::Result<()> {
    use std::io::Write as _;
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)?.write_all(text.as_bytes())
}
