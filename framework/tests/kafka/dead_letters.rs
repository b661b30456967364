//! Where dead letters are kept on Kafka, and when their events are acknowledged.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::future::join_all;
use nestling::{
    Context, Endpoint, Guarantee, Payload, Router, RpcError, Server, header,
    transport::{DeadLetter, DeadLetters},
};
use nestling_testkit::{Broker, Kind, Options, broker_or_skip, suite::witness::Record, unique};
use rdkafka::{
    Offset, TopicPartitionList,
    admin::{
        AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication,
    },
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer as _},
    message::{Headers as _, Message as _},
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use super::{SOON, client, config, kafka, next, pattern, send_raw, start, start_as, telling};

async fn refuse() -> Result<(), RpcError> {
    Err(RpcError::invalid_argument("never"))
}

async fn open(url: &str) -> Arc<dyn DeadLetters> {
    Endpoint::from(url).dead_letters().await.unwrap()
}

async fn eventually<T>(mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(Instant::now() < deadline, "it did not come true");
        sleep(Duration::from_millis(20)).await;
    }
}

/// All there are, as soon as there are `count`.
async fn until(dead: &dyn DeadLetters, service: &str, count: usize) -> Vec<(String, DeadLetter)> {
    eventually(async || {
        let all = dead.list(service, None, usize::MAX).await.unwrap();
        (all.len() >= count).then_some(all)
    })
    .await
}

/// Two patterns that share a topic.
fn pair(one: &str, other: &str) -> [&'static str; 2] {
    let domain = unique("t");
    [one, other].map(|name| &*format!("{domain}.{name}").leak())
}

/// The topic that events of this pattern share.
fn topic_of(pattern: &str) -> String {
    format!("{}.events", pattern.split_once('.').unwrap().0)
}

async fn committed(url: &str, group: &str, topic: &str) -> (Offset, String) {
    let mut config = config(url);
    let (topic, config) = (topic.to_owned(), config.set("group.id", group).clone());
    let asked = tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = config.create().unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition(&topic, 0);
        let found = consumer.committed_offsets(list, SOON).unwrap();
        let elements = found.elements();
        (elements[0].offset(), elements[0].metadata().to_owned())
    });
    asked.await.unwrap()
}

async fn admin(url: &str) -> AdminClient<DefaultClientContext> {
    config(url).create().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_acknowledged_once_its_dead_letter_is_stored_and_not_before() {
    let url = kafka!();
    let url = format!("{url}?partitions=1");
    let plain = url.split_once('?').unwrap().0;
    let service = unique("unstored");
    let [refused, happened] = pair("refused", "happened");
    // As a topic that is too small for a dead letter would be, for the time being.
    let topic = format!("{service}.dead-letters");
    let small = NewTopic::new(&topic, 1, TopicReplication::Fixed(1));
    let small = small.set("max.message.bytes", "100");
    let admin = admin(plain).await;
    let made = admin.create_topics([&small], &AdminOptions::new());
    made.await.unwrap().remove(0).unwrap();

    let (tell, mut told) = mpsc::unbounded_channel();
    let (tries, mut tried) = mpsc::unbounded_channel();
    let router = || {
        let tries = tries.clone();
        let refuse = move |cx: Context| {
            tries.send(cx.attempt()).ok();
            refuse()
        };
        let heard = telling(&tell);
        Router::new()
            .event_with(refused, Guarantee::AtLeastOnce, refuse)
            .event_with(happened, Guarantee::AtLeastOnce, heard)
    };
    let server = start_as(&url, &service, "a", router()).await;
    let client = client(&url).await;
    let event = client.emit_at(refused, &1).header(header::KEY, "k");
    event.await.unwrap();
    assert_eq!(next(&mut tried).await, 1);
    let (start, _) = committed(plain, &service, &topic_of(refused)).await;
    client.emit_at(happened, &2).await.unwrap();
    assert_eq!(next(&mut told).await, 2, "others do not wait for it");
    let dead = open(&url).await;
    assert_eq!(dead.list(&service, None, 9).await.unwrap().len(), 0);
    drop(server);
    let server = start_as(&url, &service, "a", router()).await;
    assert_eq!(next(&mut tried).await, 1, "it is given again");

    let larger = AlterConfig::new(ResourceSpecifier::Topic(&topic));
    let larger = larger.set("max.message.bytes", "1000000");
    let altered = admin.alter_configs([&larger], &AdminOptions::new());
    altered.await.unwrap().remove(0).unwrap();
    let all = until(&*dead, &service, 1).await;
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].1.rejection.envelope.payload, "1");
    eventually(async || {
        let (now, _) = committed(plain, &service, &topic_of(refused)).await;
        (now != start).then_some(())
    })
    .await;
    server.shutdown().await;
    assert!(tried.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_shuts_down_stores_what_it_has_given_up() {
    let url = kafka!();
    let (service, refused) = (unique("drained"), pattern("refused"));
    let (tell, mut told) = mpsc::unbounded_channel();
    let router = || {
        let tell = tell.clone();
        let refuse = move |Payload(n): Payload<u32>| {
            tell.send(n).ok();
            refuse()
        };
        Router::new().event_with(refused, Guarantee::AtLeastOnce, refuse)
    };
    let client = client(&url).await;
    let dead = open(&url).await;
    for n in 1..=2 {
        let server = start(&url, &service, router()).await;
        client.emit_at(refused, &n).await.unwrap();
        assert_eq!(next(&mut told).await, n);
        server.shutdown().await;
        let all = dead.list(&service, None, 9).await.unwrap();
        assert_eq!(all.len(), usize::try_from(n).unwrap());
    }
    assert!(told.try_recv().is_err(), "each is acknowledged");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_has_the_bytes_of_its_event_and_can_be_read_with_any_consumer() {
    let url = kafka!();
    let url = format!("{url}?partitions=1");
    let (service, refused) = (unique("bytes"), pattern("refused"));
    let router = Router::new().event_with(refused, Guarantee::AtLeastOnce, refuse);
    let server = start(&url, &service, router).await;
    let plain = url.split_once('?').unwrap().0;
    let headers = [("nestling", "1"), ("pattern", refused), ("x-own", "ü")];
    let bytes = [0, 0xff, b'\n', 0xc3, 0x28];
    let events = topic_of(refused);
    send_raw(plain, &events, "k", &headers, &bytes);
    send_raw(plain, &events, "k", &headers, b"");
    let dead = open(&url).await;
    let all = until(&*dead, &service, 2).await;
    for ((id, letter), payload) in all.iter().zip([&bytes[..], b""]) {
        let envelope = &letter.rejection.envelope;
        assert_eq!(&envelope.payload[..], payload);
        assert_eq!(&*envelope.pattern, refused);
        assert_eq!(envelope.headers.get("x-own"), Some("ü"));
        assert_eq!(envelope.headers.get(header::KEY), Some("k"));
        let found = dead.find(&service, id).await.unwrap().unwrap();
        assert_eq!(found.rejection, letter.rejection);
    }

    let consumer: BaseConsumer = config(plain)
        .set("group.id", unique("group"))
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    let topic = format!("{service}.dead-letters");
    list.add_partition_offset(&topic, 0, Offset::Beginning)
        .unwrap();
    consumer.assign(&list).unwrap();
    let message = consumer.poll(SOON).unwrap().unwrap();
    assert_eq!(message.payload(), Some(&bytes[..]));
    assert_eq!(message.key(), Some(format!("{events}/0/0").as_bytes()));
    let headers = message.headers().unwrap();
    let text = |name: &str| {
        let header = headers.iter().find(|header| header.key == name);
        header.map(|header| str::from_utf8(header.value.unwrap()).unwrap().to_owned())
    };
    for (name, value) in [
        ("nestling", "1"),
        ("pattern", refused),
        ("key", "k"),
        ("dead-service", &service),
        ("dead-attempts", "1"),
        ("dead-handlers", "0"),
    ] {
        assert_eq!(text(name).as_deref(), Some(value), "{name}");
    }
    assert!(text("dead-reason").unwrap().contains("never"));
    drop(message);

    // Discarded, it is a record without a value; nothing else changes.
    let id = &all[1].0;
    assert!(dead.discard(&service, id).await.unwrap());
    drop(consumer.poll(SOON).unwrap().unwrap());
    let message = consumer.poll(SOON).unwrap().unwrap();
    assert_eq!(message.key(), Some(format!("{events}/0/1").as_bytes()));
    assert_eq!(message.payload(), None);
    assert!(dead.find(&service, id).await.unwrap().is_none());
    assert_eq!(until(&*dead, &service, 1).await.len(), 1);
    server.shutdown().await;
}

/// What two replicas store of one event when the first one dies before it is acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_given_up_twice_has_one_dead_letter() {
    let url = kafka!();
    let (service, refused) = (unique("twice"), pattern("refused"));
    let topic = format!("{service}.dead-letters");
    let router = Router::new().event_with(refused, Guarantee::AtLeastOnce, refuse);
    let server = start(&url, &service, router).await;
    client(&url).await.emit_at(refused, &1).await.unwrap();
    let dead = open(&url).await;
    let first = until(&*dead, &service, 1).await.remove(0).0;
    let key = copy(&url, &topic);
    let second = eventually(async || {
        let all = dead.list(&service, None, 9).await.unwrap();
        assert_eq!(all.len(), 1, "{key}");
        (all[0].0 > first).then(|| all[0].0.clone())
    })
    .await;
    assert!(dead.find(&service, &first).await.unwrap().is_none());
    assert!(!dead.discard(&service, &first).await.unwrap());
    assert!(dead.discard(&service, &second).await.unwrap());
    assert!(dead.list(&service, None, 9).await.unwrap().is_empty());
    server.shutdown().await;
}

/// Writes the first record of a topic once more and returns its key.
fn copy(url: &str, topic: &str) -> String {
    let consumer: BaseConsumer = config(url)
        .set("group.id", unique("group"))
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, Offset::Beginning)
        .unwrap();
    consumer.assign(&list).unwrap();
    let message = consumer.poll(SOON).unwrap().unwrap();
    let text = |bytes| str::from_utf8(bytes).unwrap();
    let headers: Vec<_> = message.headers().unwrap().iter().collect();
    let headers: Vec<_> = headers
        .iter()
        .map(|header| (header.key, text(header.value.unwrap())))
        .collect();
    let key = text(message.key().unwrap());
    send_raw(url, topic, key, &headers, message.payload().unwrap());
    key.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_event_has_a_dead_letter_whatever_its_handler_said() {
    let url = kafka!();
    let (service, refused) = (unique("largest"), pattern("refused"));
    let complain = async || Err::<(), _>(RpcError::invalid_argument("ü".repeat(100_000)));
    let router = Router::new().event_with(refused, Guarantee::AtLeastOnce, complain);
    let server = start(&url, &service, router).await;
    let client = client(&url).await;
    let largest = "x".repeat(client.capabilities().max_payload - 2);
    let event = client.emit_at(refused, &largest);
    let event = event.header("x-own", "y".repeat(32_500));
    event.await.unwrap();
    let dead = open(&url).await;
    let (id, letter) = until(&*dead, &service, 1).await.remove(0);
    let rejection = letter.rejection;
    assert_eq!(rejection.envelope.payload.len(), largest.len() + 2);
    let own = rejection.envelope.headers.get("x-own");
    assert_eq!(own.map(str::len), Some(32_500));
    assert!(rejection.reason.len() <= 4096);
    assert!(dead.discard(&service, &id).await.unwrap());
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_dead_letter_hurts_nobody() {
    let url = kafka!();
    let (service, refused) = (unique("foreign"), pattern("refused"));
    let dead = open(&url).await;
    assert!(dead.list(&service, None, 9).await.unwrap().is_empty());
    assert!(!dead.discard(&service, "nonsense").await.unwrap());
    let router = Router::new().event_with(refused, Guarantee::AtLeastOnce, refuse);
    let server = start(&url, &service, router).await;
    let client = client(&url).await;
    client.emit_at(refused, &1).await.unwrap();
    until(&*dead, &service, 1).await;
    let topic = format!("{service}.dead-letters");
    send_raw(&url, &topic, "a", &[], b"no headers");
    let strange = [("nestling", "1"), ("dead-service", &*service)];
    send_raw(&url, &topic, "b", &strange, b"half");
    send_raw(&url, &topic, "c", &[("nestling", "2")], b"later");
    client.emit_at(refused, &2).await.unwrap();
    let all = until(&*dead, &service, 2).await;
    assert_eq!(all.len(), 2);
    let after = Some(&*all[0].0);
    let page = dead.list(&service, after, 1).await.unwrap();
    assert_eq!(page[0].0, all[1].0);
    let foreign = format!("{:020}", 1);
    assert!(dead.find(&service, &foreign).await.unwrap().is_none());
    assert!(!dead.discard(&service, &foreign).await.unwrap());
    for beyond in [i64::MAX, 99] {
        let beyond = format!("{beyond:020}");
        assert!(dead.find(&service, &beyond).await.unwrap().is_none());
        let page = dead.list(&service, Some(&beyond), 9).await.unwrap();
        assert!(page.is_empty());
    }
    let error = dead.list(&service, Some("nonsense"), 9).await.unwrap_err();
    assert_eq!(error.kind(), nestling::transport::ErrorKind::Config);
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_may_be_called_what_no_topic_is() {
    let url = kafka!();
    let (service, refused) = (format!("größe {}/1", unique("odd")), pattern("refused"));
    let router = Router::new().event_with(refused, Guarantee::AtLeastOnce, refuse);
    let server = start(&url, &service, router).await;
    client(&url).await.emit_at(refused, &1).await.unwrap();
    let dead = open(&url).await;
    let all = until(&*dead, &service, 1).await;
    assert_eq!(all[0].1.service, service);
    assert!(dead.discard(&service, &all[0].0).await.unwrap());
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_dead_letters_are_read_page_by_page() {
    const MANY: u32 = 3000;
    const PAGE: usize = 700;
    let url = kafka!();
    let (service, refused) = (unique("many"), pattern("refused"));
    let router = Router::new().event_with(refused, Guarantee::AtLeastOnce, refuse);
    let server = start(&url, &service, router).await;
    let client = client(&url).await;
    let numbers: Vec<_> = (0..MANY).collect();
    for some in numbers.chunks(500) {
        let events = some
            .iter()
            .map(|n| client.emit_at(refused, n).into_future());
        for emitted in join_all(events).await {
            emitted.unwrap();
        }
    }
    let dead = open(&url).await;
    let all = timeout(SOON, until(&*dead, &service, MANY as usize));
    let all = all.await.unwrap();
    assert_eq!(all.len(), MANY as usize);
    let payload = |letter: &DeadLetter| letter.rejection.envelope.payload.clone();
    let each: BTreeSet<_> = all.iter().map(|(_, letter)| payload(letter)).collect();
    assert_eq!(each.len(), MANY as usize, "each once");
    for (id, _) in &all[..3] {
        assert!(dead.discard(&service, id).await.unwrap());
    }
    let mut paged = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = dead.list(&service, after.as_deref(), PAGE).await.unwrap();
        let Some((last, _)) = page.last() else { break };
        assert!(page.len() == PAGE || paged.len() + page.len() == all.len() - 3);
        after = Some(last.clone());
        paged.extend(page.into_iter().map(|(id, _)| id));
    }
    let left: Vec<_> = all[3..].iter().map(|(id, _)| id.clone()).collect();
    assert_eq!(paged, left);
    assert!(paged.is_sorted());
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_tries_are_committed_with_the_position_and_others_are_not_counted() {
    let url = kafka!();
    let url = format!("{url}?partitions=1");
    let plain = url.split_once('?').unwrap().0;
    let (service, seen) = (unique("tries"), Record::new());
    let [failing, endless] = pair("failing", "endless");
    let never = move |cx: Context| async move {
        seen.push(("endless", cx.attempt()));
        std::future::pending::<Result<(), RpcError>>().await
    };
    let fail = move |Payload(_): Payload<u32>, cx: Context| async move {
        seen.push(("failing", cx.attempt()));
        Err::<(), _>(RpcError::unavailable("not now"))
    };
    let server = |pause: Duration| {
        let router = Router::new()
            .event_with(failing, Guarantee::AtLeastOnce, fail)
            .event_with(endless, Guarantee::AtLeastOnce, never);
        let server = Server::new(&*service, router).instance("a").listen(&*url);
        server.retry(3, pause)
    };
    let first = server(Duration::from_secs(600)).start().await.unwrap();
    let client = client(&url).await;
    client.emit_at(failing, &1).await.unwrap();
    client.emit_at(endless, &1).await.unwrap();
    let events = topic_of(failing);
    eventually(async || {
        let (position, tries) = committed(plain, &service, &events).await;
        (tries == "begun=1;tries=0:1").then(|| assert_eq!(position, Offset::Offset(0)))
    })
    .await;
    seen.at_least(2).await;
    drop(first);

    let second = server(Duration::from_millis(10)).start().await.unwrap();
    let dead = open(&url).await;
    let all = until(&*dead, &service, 1).await;
    assert_eq!(all[0].1.rejection.attempts, 3);
    let mut all = seen.at_least(5).await;
    all.sort_unstable();
    let expected = [
        ("endless", 1),
        ("endless", 1),
        ("failing", 1),
        ("failing", 2),
        ("failing", 3),
    ];
    assert_eq!(all, expected);
    eventually(async || {
        let (position, tries) = committed(plain, &service, &topic_of(failing)).await;
        (position == Offset::Offset(1) && tries.is_empty()).then_some(())
    })
    .await;
    drop(second);
}

/// A broker that has no room for the counts of tries is one all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_takes_no_metadata_keeps_positions() {
    let _there_is_one = kafka!();
    let options = Options {
        properties: vec!["offset.metadata.max.bytes=4".to_owned()],
        ..Options::default()
    };
    let broker = Broker::start(Kind::Kafka, options).unwrap();
    let url = format!("{}?partitions=1", broker.url());
    let [failing, passing] = pair("failing", "passing");
    let service = unique("small");
    let seen = Record::new();
    let fail = move |cx: Context| async move {
        match cx.attempt() {
            1 => Err(RpcError::unavailable("not now")),
            _ => Ok(()),
        }
    };
    let pass = move |Payload(n): Payload<u32>| async move {
        seen.push(n);
        Ok::<_, RpcError>(())
    };
    let router = Router::new()
        .event_with(failing, Guarantee::AtLeastOnce, fail)
        .event_with(passing, Guarantee::AtLeastOnce, pass);
    let server = Server::new(&*service, router)
        .listen(&*url)
        .retry(3, Duration::from_millis(10));
    let server = server.start().await.unwrap();
    let client = client(&url).await;
    for n in 0..10 {
        client.emit_at(failing, &n).await.unwrap();
        client.emit_at(passing, &n).await.unwrap();
    }
    seen.at_least(10).await;
    let found = eventually(async || {
        let found = committed(&broker.url(), &service, &topic_of(failing)).await;
        (found.0 == Offset::Offset(20)).then_some(found)
    });
    assert_eq!(found.await.1, "");
    server.shutdown().await;
}
