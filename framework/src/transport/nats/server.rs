//! The receiving side: a source per pattern.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
};

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
        Address, Capabilities, Error, ErrorKind, ServerTransport, Source, Sources, Subscription,
        nest::Routes, pending::lock,
    },
    NAME, NO_SUBJECT, PATIENCE, answers_nest, capabilities, connect, jetstream,
    nest::Target,
    pause, round_trip,
    source::{Handlers, NatsSource},
    wire,
};

const CONNECTION_NAME: &str = "nestling";

pub(super) async fn open(address: Address) -> Result<Arc<dyn ServerTransport>, Error> {
    let nest = answers_nest(&address)?;
    let durable = jetstream::wanted(&address)?;
    let client = connect(&address, CONNECTION_NAME.to_owned()).await?;
    let connection = Arc::new(Connection {
        address,
        nest,
        durable,
        client: Mutex::new(client),
    });
    Ok(Arc::new(NatsServer { connection }))
}

struct NatsServer {
    connection: Arc<Connection>,
}

struct Connection {
    address: Address,
    /// Whether NestJS applications are answered too.
    nest: bool,
    /// Whether events come from JetStream too.
    durable: bool,
    client: Mutex<Client>,
}

#[async_trait]
impl ServerTransport for NatsServer {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        capabilities(&self.connection.client(), self.connection.durable)
    }

    async fn subscribe(&self, subscription: Subscription) -> Result<Sources, Error> {
        let connection = Arc::clone(&self.connection);
        let first = connection
            .subscribe(&connection.client(), &subscription)
            .await?;
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
                let subscribed = self.subscribe(&client, subscription).await?;
                *lock(&self.client) = client;
                Ok::<_, Error>(subscribed)
            };
            match again.await {
                Ok(subscribed) => return subscribed,
                Err(error) => tracing::warn!(%error, "not subscribed again"),
            }
        }
    }

    async fn subscribe(
        &self,
        client: &Client,
        subscription: &Subscription,
    ) -> Result<Subscribed, Error> {
        let lost = Arc::new(Notify::new());
        let routes = self.nest.then(|| Routes::new(subscription));
        let subscribing = async {
            let mut sources: Vec<Box<dyn Source>> = Vec::new();
            for (pattern, handlers) in patterns(subscription) {
                let control = match handlers {
                    Handlers::Events => None,
                    // Before the pattern's own subscription: no cancel may find nobody.
                    Handlers::Message | Handlers::Both => {
                        let control = client.subscribe(wire::control_subject(&pattern)).await;
                        Some(control.map_err(|error| refused(error, &pattern))?)
                    }
                };
                let messages = queue(client, &pattern, &subscription.service).await?;
                let target = Target::of(&pattern, routes.as_ref());
                let subscribed = (messages, control);
                let source = NatsSource::new(client, &lost, pattern, handlers, target, subscribed);
                sources.push(Box::new(source));
            }
            round_trip(client).await?;
            Ok::<_, Error>(sources)
        };
        let too_late = |_| Error::new(ErrorKind::Timeout, "not subscribed in time");
        let mut sources = timeout(PATIENCE, subscribing).await.map_err(too_late)??;
        if self.durable {
            sources.extend(jetstream::subscribe(client, &lost, subscription).await?);
        }
        Ok(Subscribed { sources, lost })
    }
}

/// Every pattern once, messages first: two subscriptions to one would share what is sent to it.
fn patterns(subscription: &Subscription) -> Vec<(ByteString, Handlers)> {
    let events: HashSet<_> = subscription
        .events
        .iter()
        .map(|event| &event.pattern)
        .collect();
    let mut all = Vec::new();
    let mut messages = HashSet::new();
    for message in &subscription.messages {
        let handlers = match events.contains(&message.pattern) {
            true => Handlers::Both,
            false => Handlers::Message,
        };
        messages.insert(&message.pattern);
        all.push((message.pattern.clone(), handlers));
    }
    for event in &subscription.events {
        if messages.insert(&event.pattern) {
            all.push((event.pattern.clone(), Handlers::Events));
        }
    }
    all
}

/// The queue group of a pattern. The broker hands what fits several subscriptions of one group to
/// one of them, so a pattern with wildcards has a group of its own.
fn group(service: &str, pattern: &str) -> String {
    match wire::has_wildcard(pattern) {
        true => format!("{service}:{pattern}"),
        false => service.to_owned(),
    }
}

async fn queue(client: &Client, pattern: &ByteString, service: &str) -> Result<Subscriber, Error> {
    let subscriber = client.queue_subscribe(wire::subject(pattern), group(service, pattern));
    subscriber.await.map_err(|error| refused(error, pattern))
}

fn refused(error: SubscribeError, pattern: &str) -> Error {
    let (kind, why) = match error.kind() {
        SubscribeErrorKind::InvalidSubject => (ErrorKind::Config, format!(", which {NO_SUBJECT}")),
        SubscribeErrorKind::InvalidQueueName => (ErrorKind::Config, String::new()),
        SubscribeErrorKind::Other => (ErrorKind::Closed, String::new()),
    };
    Error::new(kind, format!("subscribe to {pattern:?}{why}")).with_source(error)
}
