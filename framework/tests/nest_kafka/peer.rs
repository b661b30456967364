//! A raw peer: what anybody can do who has a Kafka client and nothing of ours.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, CommitMode, Consumer as _},
    message::{BorrowedMessage, Header, Headers as _, Message as _, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer as _},
};

use super::SOON;

/// A record without its place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plain {
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
}

impl Plain {
    pub(crate) fn new(value: impl Into<Vec<u8>>) -> Self {
        Self {
            value: Some(value.into()),
            ..Self::default()
        }
    }

    #[must_use]
    pub(crate) fn header(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// Asks for an answer.
    #[must_use]
    pub(crate) fn asking(self, correlation: &str, reply_topic: &str) -> Self {
        self.header("kafka_correlationId", correlation)
            .header("kafka_replyTopic", reply_topic)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&[u8]> {
        let mut headers = self.headers.iter();
        headers
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_slice())
    }

    pub(crate) fn text(&self) -> Option<&str> {
        self.value
            .as_deref()
            .map(|value| std::str::from_utf8(value).unwrap())
    }
}

/// A record and where it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) partition: i32,
    pub(crate) record: Plain,
}

pub(crate) struct Peer {
    config: ClientConfig,
    producer: BaseProducer,
    consumer: BaseConsumer,
}

impl Peer {
    pub(crate) fn new(url: &str) -> Self {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", url.strip_prefix("kafka://").unwrap())
            .set("group.id", "none")
            .set("fetch.wait.max.ms", "20")
            .set("fetch.error.backoff.ms", "10")
            .set("linger.ms", "0")
            .set("allow.auto.create.topics", "false");
        Self {
            producer: config.create().unwrap(),
            consumer: config.create().unwrap(),
            config,
        }
    }

    pub(crate) async fn make_topics(&self, names: &[String], partitions: i32) {
        let admin: AdminClient<DefaultClientContext> = self.config.create().unwrap();
        let topics: Vec<_> = names
            .iter()
            .map(|name| NewTopic::new(name, partitions, TopicReplication::Fixed(1)))
            .collect();
        let results = admin.create_topics(&topics, &AdminOptions::new()).await;
        results.unwrap().into_iter().for_each(|result| {
            result.unwrap();
        });
        let deadline = Instant::now() + SOON;
        for name in names {
            while self.partitions(name) == 0 {
                assert!(Instant::now() < deadline, "{name} is not there");
            }
        }
    }

    /// Reads a topic of one partition as a member of a group, and leaves once it has committed.
    pub(crate) fn commit_as(&self, group: &str, topic: &str, position: i64) {
        let member: BaseConsumer = self
            .config
            .clone()
            .set("group.id", group)
            .set("partition.assignment.strategy", "roundrobin")
            .create()
            .unwrap();
        member.subscribe(&[topic]).unwrap();
        let deadline = Instant::now() + SOON;
        while member.assignment().unwrap().count() == 0 {
            assert!(Instant::now() < deadline, "{group} has no partition");
            drop(member.poll(Duration::from_millis(10)));
        }
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, 0, Offset::Offset(position))
            .unwrap();
        member.commit(&list, CommitMode::Sync).unwrap();
    }

    fn partitions(&self, topic: &str) -> i32 {
        let client = self.producer.client();
        let metadata = client.fetch_metadata(Some(topic), SOON).unwrap();
        let partitions = metadata.topics()[0].partitions();
        match partitions.iter().all(|partition| partition.leader() >= 0) {
            true => i32::try_from(partitions.len()).unwrap(),
            false => 0,
        }
    }

    pub(crate) fn send(&self, topic: &str, record: &Plain) {
        self.send_to(topic, None, record);
    }

    pub(crate) fn send_to(&self, topic: &str, partition: Option<i32>, record: &Plain) {
        let headers = OwnedHeaders::new();
        let headers = record.headers.iter().fold(headers, |all, (key, value)| {
            let value = Some(value);
            all.insert(Header { key, value })
        });
        let mut sent = BaseRecord::<[u8], [u8]>::to(topic).headers(headers);
        sent.partition = partition;
        sent.payload = record.value.as_deref();
        sent.key = record.key.as_deref();
        self.producer
            .send(sent)
            .map_err(|(error, _)| error)
            .unwrap();
        while self.producer.in_flight_count() > 0 {
            self.producer.poll(Duration::from_millis(1));
        }
    }

    /// Every record that these topics have now, those of a partition in order.
    pub(crate) fn all(&self, topics: &[String]) -> Vec<(String, Found)> {
        let mut left = 0;
        let mut list = TopicPartitionList::new();
        for topic in topics.iter().collect::<HashSet<_>>() {
            for partition in 0..self.partitions(topic) {
                let (low, high) = self.marks(topic, partition);
                left += high - low;
                list.add_partition_offset(topic, partition, Offset::Offset(low))
                    .unwrap();
            }
        }
        self.consumer.assign(&list).unwrap();
        for topic in topics {
            // The library looks for the leaders of new topics once a second otherwise.
            self.consumer.fetch_metadata(Some(topic), SOON).unwrap();
        }
        let mut found = Vec::new();
        let deadline = Instant::now() + SOON;
        while left > 0 {
            assert!(Instant::now() < deadline, "{left} more than {found:?}");
            if let Some(message) = self.consumer.poll(SOON) {
                let message = message.unwrap();
                found.push((message.topic().to_owned(), plain(&message)));
                left -= 1;
            }
        }
        found
    }

    fn count(&self, topic: &str) -> i64 {
        let partitions = 0..self.partitions(topic);
        partitions
            .map(|partition| {
                let (low, high) = self.marks(topic, partition);
                high - low
            })
            .sum()
    }

    fn marks(&self, topic: &str, partition: i32) -> (i64, i64) {
        let deadline = Instant::now() + SOON;
        loop {
            match self
                .producer
                .client()
                .fetch_watermarks(topic, partition, SOON)
            {
                Ok(marks) => return marks,
                // A new topic is known before its leader knows it.
                Err(error) => assert!(Instant::now() < deadline, "{topic}: {error}"),
            }
        }
    }

    /// Waits until a topic has so many records.
    pub(crate) async fn wait_for(&self, topic: &str, count: i64) {
        let deadline = Instant::now() + SOON;
        while self.count(topic) < count {
            assert!(
                Instant::now() < deadline,
                "{topic} has {}",
                self.count(topic)
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits for the last of so many records of a topic with one partition.
    pub(crate) async fn nth(&self, topic: &str, count: i64) -> Plain {
        self.wait_for(topic, count).await;
        self.all(&[topic.to_owned()]).pop().unwrap().1.record
    }
}

fn plain(message: &BorrowedMessage<'_>) -> Found {
    let headers = message
        .headers()
        .map(|headers| {
            let entry = |header: Header<'_, &[u8]>| {
                let value = header.value.unwrap_or_default().to_vec();
                (header.key.to_owned(), value)
            };
            headers.iter().map(entry).collect()
        })
        .unwrap_or_default();
    Found {
        partition: message.partition(),
        record: Plain {
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
            headers,
        },
    }
}
