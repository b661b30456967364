//! A client for commands that talk to a running shop.

use anyhow::Context as _;
use contracts::{Actor, Role, SessionId, UserId};
use nestling::{Client, Endpoint, Message, RpcError, Single, header};

/// A client that speaks as the shop itself.
#[derive(Clone, Debug)]
pub struct Staff {
    client: Client,
    actor: String,
}

impl Staff {
    /// Connects to a service.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn connect(endpoint: impl Into<Endpoint>) -> anyhow::Result<Self> {
        let endpoint = endpoint.into();
        let instance = std::process::id().to_string();
        let client = Client::builder(&endpoint)
            .identity("shop", instance)
            .build()
            .await
            .with_context(|| format!("connect to {endpoint}"))?;
        let (user_id, session) = (UserId::derive("shop"), SessionId::derive("shop"));
        let actor = Actor {
            user_id,
            roles: vec![Role::Manager],
            session,
        }
        .to_header();
        Ok(Self { client, actor })
    }

    /// Sends a message as a manager.
    ///
    /// # Errors
    /// Those of the message.
    pub async fn send<M: Message<Shape = Single>>(&self, message: M) -> Result<M::Reply, RpcError> {
        let patience = std::time::Duration::from_secs(60);
        self.client
            .send(message)
            .header(header::ACTOR, self.actor.clone())
            .timeout(patience)
            .await
    }

    /// Lets go of the connection.
    pub async fn close(self) {
        self.client.close().await;
    }
}
