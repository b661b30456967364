//! The receiving side: a source per pattern. One for both, where a pattern names a message and an
//! event: of two subscriptions in one queue group each would get some of either.

use std::sync::{Arc, Mutex};

use async_nats::{Client, SubscribeError, SubscribeErrorKind, Subscriber};
use async_trait::async_trait;
use bytestring::ByteString;
use futures_util::{StreamExt, stream};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

use super::{
    super::{
        Address, Capabilities, Error, ErrorKind, Kind, ServerTransport, Source, Sources,
        Subscription, pending::lock,
    },
    NAME, PATIENCE, capabilities, connect, pause, round_trip,
    source::{Carries, NatsSource},
    wire,
};

const CONNECTION_NAME: &str = "nestling";

pub(super) async fn open(address: Address) -> Result<Arc<dyn ServerTransport>, Error> {
    let client = connect(&address, CONNECTION_NAME.to_owned()).await?;
    let connection = Arc::new(Connection {
        address,
        client: Mutex::new(client),
    });
    Ok(Arc::new(NatsServer { connection }))
}

struct NatsServer {
    connection: Arc<Connection>,
}

struct Connection {
    address: Address,
    client: Mutex<Client>,
}

#[async_trait]
impl ServerTransport for NatsServer {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        capabilities(&self.connection.client())
    }

    async fn subscribe(&self, subscription: Subscription) -> Result<Sources, Error> {
        let connection = Arc::clone(&self.connection);
        let first = subscribe(&connection.client(), &subscription).await?;
        let rest = stream::unfold((connection, subscription, first.lost), |state| async {
            let (connection, subscription, lost) = state;
            lost.notified().await;
            let again = connection.subscribe_again(&subscription).await;
            Some((again.sources, (connection, subscription, again.lost)))
        });
        let all = stream::once(async { first.sources }).chain(rest);
        Ok(Box::pin(all.flat_map(stream::iter)))
    }
}

/// The sources of one connection.
struct Subscribed {
    sources: Vec<Box<dyn Source>>,
    /// Notified when the connection is gone for good.
    lost: Arc<Notify>,
}

impl Connection {
    fn client(&self) -> Client {
        lock(&self.client).clone()
    }

    /// A lost connection is made again by the client library. It gives up by itself only when its
    /// own task panics, as it does on a header that has a lone carriage return.
    async fn subscribe_again(&self, subscription: &Subscription) -> Subscribed {
        tracing::error!(address = %self.address, "the connection broke down, making a new one");
        let mut attempt = 1;
        loop {
            sleep(pause(attempt)).await;
            attempt += 1;
            let again = async {
                let client = connect(&self.address, CONNECTION_NAME.to_owned()).await?;
                let subscribed = subscribe(&client, subscription).await?;
                *lock(&self.client) = client;
                Ok::<_, Error>(subscribed)
            };
            match again.await {
                Ok(subscribed) => return subscribed,
                Err(error) => tracing::warn!(%error, "not subscribed again"),
            }
        }
    }
}

async fn subscribe(client: &Client, subscription: &Subscription) -> Result<Subscribed, Error> {
    let lost = Arc::new(Notify::new());
    let group = &subscription.service;
    let subscribing = async {
        let mut sources: Vec<Box<dyn Source>> = Vec::new();
        for message in &subscription.messages {
            let pattern = message.pattern.clone();
            // The control subject first: no cancel may find nobody.
            let control = client.subscribe(wire::control_subject(&pattern)).await;
            let control = Some(control.map_err(|error| refused(error, &pattern))?);
            let messages = queue(client, &pattern, group).await?;
            let carries = match subscription
                .events
                .iter()
                .any(|event| event.pattern == pattern)
            {
                true => Carries::Both,
                false => Carries::Only(Kind::Message),
            };
            let source = NatsSource::new(client, &lost, carries, pattern, messages, control);
            sources.push(Box::new(source));
        }
        let is_message =
            |pattern: &&ByteString| subscription.messages.iter().any(|m| m.pattern == **pattern);
        let only_events = subscription.events.iter().map(|event| &event.pattern);
        for pattern in only_events.filter(|pattern| !is_message(pattern)) {
            let events = queue(client, pattern, group).await?;
            let (carries, pattern) = (Carries::Only(Kind::Event), pattern.clone());
            let source = NatsSource::new(client, &lost, carries, pattern, events, None);
            sources.push(Box::new(source));
        }
        round_trip(client).await?;
        Ok::<_, Error>(sources)
    };
    let too_late = |_| Error::new(ErrorKind::Timeout, "not subscribed in time");
    let sources = timeout(PATIENCE, subscribing).await.map_err(too_late)??;
    Ok(Subscribed { sources, lost })
}

async fn queue(client: &Client, pattern: &ByteString, group: &str) -> Result<Subscriber, Error> {
    let subscriber = client.queue_subscribe(wire::subject(pattern), group.to_owned());
    subscriber.await.map_err(|error| refused(error, pattern))
}

fn refused(error: SubscribeError, pattern: &str) -> Error {
    let kind = match error.kind() {
        SubscribeErrorKind::InvalidSubject | SubscribeErrorKind::InvalidQueueName => {
            ErrorKind::Config
        }
        SubscribeErrorKind::Other => ErrorKind::Closed,
    };
    Error::new(kind, format!("subscribe to {pattern:?}")).with_source(error)
}
