//! The receiving side.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{sync::mpsc, time::timeout};

use super::{
    CAPABILITIES, NAME, Settings, blocking,
    burial::Burial,
    carries::carried,
    clock::Watch,
    group::{Group, Phase},
    mender::Mender,
    replies::ReplyWriter,
    topics::Topics,
};
use crate::transport::{
    Address, Capabilities, Error, ErrorKind, ServerTransport, Sources, Subscription, pending::lock,
};

/// How long joining the group may take: members that are gone without a word are waited for.
const JOIN: Duration = Duration::from_secs(30);
/// How long closing may take where no source waits for it.
const CLOSE: Duration = Duration::from_secs(5);

pub(super) async fn open(address: Address) -> Result<Arc<dyn ServerTransport>, Error> {
    let settings = Settings::of_server(&address)?;
    let replies = ReplyWriter::new(&settings)?;
    let topics = Arc::new(Topics::new(settings.clone(), replies.lookup()));
    topics.connect().await?;
    let replies = Mutex::new(Some(replies));
    Ok(Arc::new(KafkaServer {
        settings,
        topics,
        replies,
        group: OnceLock::new(),
        clock: OnceLock::new(),
    }))
}

struct KafkaServer {
    settings: Settings,
    topics: Arc<Topics>,
    /// Until the subscription takes it.
    replies: Mutex<Option<ReplyWriter>>,
    group: OnceLock<Arc<Group>>,
    clock: OnceLock<Watch>,
}

#[async_trait]
impl ServerTransport for KafkaServer {
    fn name(&self) -> &'static str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    async fn subscribe(&self, subscription: Subscription) -> Result<Sources, Error> {
        let settings = &self.settings;
        let replies = lock(&self.replies).take();
        let Some(replies) = replies else {
            return Err(settings.error(ErrorKind::Config, "subscribe a second time"));
        };
        let carried = carried(&subscription, settings)?;
        let wanted: Vec<_> = carried
            .iter()
            .map(|(topic, carries)| (topic.clone(), carries.purpose()))
            .collect();

        let (sender, mut sources) = mpsc::unbounded_channel();
        let burial = Burial::new(settings, &self.topics, &subscription.service);
        let mender = Mender::new(&self.topics, wanted.clone());
        let helpers = (replies, burial, mender);
        let group = Group::new(helpers, carried, &subscription, sender);
        // Its connections are made while topics are looked up.
        let config = config(settings, &subscription, &group.client_id);
        let consumer = group
            .connect(&config)
            .map_err(|error| settings.failed("make a Kafka consumer", error))?;
        let partitions = if wanted.is_empty() {
            HashMap::new()
        } else {
            self.topics.ensure(wanted).await?
        };
        // From here on whoever drops the transport ends the group's thread.
        if self.group.set(Arc::clone(&group)).is_err() {
            tracing::error!("a Kafka subscription was replaced");
        }
        let starting = (Arc::clone(&group), settings.clone());
        blocking(move || {
            let (group, settings) = starting;
            group
                .find_ends(&consumer, &partitions)
                .map_err(|error| settings.failed("find the ends of topics", error))?;
            group.start(consumer, config).map_err(|error| {
                settings
                    .error(ErrorKind::Connect, "start a thread")
                    .with_source(error)
            })
        })
        .await?;
        let joined = timeout(JOIN, group.reached(Phase::Placed));
        match self.watch_clock(&group, &subscription, joined).await {
            Ok(Phase::Ended) => Err(settings.error(ErrorKind::Connect, "join the consumer group")),
            Ok(_) => Ok(Box::pin(futures_util::stream::poll_fn(move |cx| {
                sources.poll_recv(cx)
            }))),
            Err(_) => {
                group.close();
                Err(settings.error(ErrorKind::Timeout, "join the consumer group"))
            }
        }
    }

    async fn close(&self) {
        if let Some(group) = self.group.get() {
            group.close();
            // Otherwise the last source waits, when it has drained.
            if group.is_idle() && timeout(CLOSE, group.closed()).await.is_err() {
                tracing::warn!("the Kafka consumer did not close in time");
            }
        }
    }
}

impl KafkaServer {
    /// Learns what time it is at the brokers while something else goes on, if there are requests whose
    /// time runs out.
    async fn watch_clock<T>(
        &self,
        group: &Group,
        subscription: &Subscription,
        meanwhile: impl Future<Output = T>,
    ) -> T {
        if subscription.messages.is_empty() {
            return meanwhile.await;
        }
        let watch = Watch::start(&self.settings, &self.topics, &group.clock);
        let (watch, result) = tokio::join!(watch, meanwhile);
        if self.clock.set(watch).is_err() {
            tracing::error!("a Kafka subscription was replaced");
        }
        result
    }
}

impl Drop for KafkaServer {
    fn drop(&mut self) {
        if let Some(group) = self.group.get() {
            group.close();
        }
    }
}

fn config(
    settings: &Settings,
    subscription: &Subscription,
    client_id: &str,
) -> rdkafka::ClientConfig {
    let Subscription {
        service,
        instance,
        messages,
        events,
        ..
    } = subscription;
    // A service may listen to one cluster by two URLs: for messages, and for events.
    let part = match (messages.is_empty(), events.is_empty()) {
        (false, true) => "messages",
        (true, _) => "events",
        (false, false) => "all",
    };
    let mut config = settings.consumer_config(service);
    config
        .set("client.id", client_id)
        .set("group.instance.id", format!("{service}.{instance}.{part}"))
        .set("session.timeout.ms", "6000")
        // How soon members hear of each other.
        .set("heartbeat.interval.ms", "500")
        .set("partition.assignment.strategy", "cooperative-sticky");
    config
}
