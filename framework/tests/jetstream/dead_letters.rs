//! Events that fail: their tries, and what is kept of them.

use super::*;

/// Bytes are bytes, a service's name is any text, and there may be many.
#[tokio::test]
async fn many_dead_letters_of_an_odd_service_are_paged() {
    const MANY: u32 = 1500;

    let Some(url) = broker_or_skip(Kind::Nats) else {
        return;
    };
    let pattern: &'static str = unique("odd").leak();
    let service = format!("{pattern}.ü/*{{}}>");
    let refuse = || async { Err::<(), _>(RpcError::invalid_argument("no")) };
    let router = Router::new().event_with(pattern, Guarantee::AtLeastOnce, refuse);
    let _server = start(&url, &service, router).await;
    let client = Client::connect(durable(&url)).await.unwrap();
    for n in 0..MANY {
        let [high, low] = (n as u16).to_be_bytes();
        let payload = Bytes::from(vec![0, 0xff, b'\n', high, low]);
        client.emit_at(pattern, &()).payload(payload).await.unwrap();
    }
    let dead = Endpoint::from(durable(&url)).dead_letters().await.unwrap();
    let all = eventually("all dead letters", async || {
        let all = dead.list(&service, None, 5000).await.unwrap();
        (all.len() == MANY as usize).then_some(all)
    })
    .await;
    let page = dead.list(&service, Some(&all[699].0), 10).await.unwrap();
    let ids = |page: &[(String, _)]| page.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&page), ids(&all[700..710]));
    let mut payloads: Vec<_> = all
        .iter()
        .map(|(_, letter)| letter.rejection.envelope.payload.to_vec())
        .collect();
    payloads.sort_unstable();
    payloads.dedup();
    assert_eq!(payloads.len(), MANY as usize);
    assert!(
        payloads
            .iter()
            .all(|payload| payload.starts_with(&[0, 0xff, b'\n']))
    );
}

/// The connection breaks between storing a dead letter and acknowledging its event: the event comes
/// again, and is one dead letter all the same.
#[tokio::test]
async fn a_dead_letter_whose_event_is_not_acknowledged_in_time_is_one() {
    if broker_or_skip(Kind::Nats).is_none() {
        return;
    }
    let broker = Broker::start(Kind::Nats, Options::default()).unwrap();
    let url = broker.url();
    let (way, connections) = way(broker.port(), "+TERM").await;
    let seen = Record::new();
    let refuse = move || async move {
        seen.push(());
        Err::<(), _>(RpcError::invalid_argument("never"))
    };
    let router = Router::new().event_with("a.b", Guarantee::AtLeastOnce, refuse);
    let server = start(&way, "one", router).await;
    let client = Client::connect(durable(&url)).await.unwrap();
    client.emit_at("a.b", &1).await.unwrap();
    let nats = async_nats::connect(&url).await.unwrap();
    connections.at_least(2).await;
    assert_eq!(kept(&nats, "nestling-dead-letters").await, 1);
    assert_eq!(kept(&nats, "nestling-events").await, 1);
    seen.at_least(2).await;
    eventually("the event to be settled", async || {
        (kept(&nats, "nestling-events").await == 0).then_some(())
    })
    .await;
    assert_eq!(kept(&nats, "nestling-dead-letters").await, 1);
    assert_eq!(seen.count(), 2);
    server.shutdown().await;
}

/// What just fitted on its way here fits into no one message with a reason beside it.
#[tokio::test]
async fn an_event_as_large_as_they_come_is_kept_when_it_is_given_up() {
    let Some(url) = broker_or_skip(Kind::Nats) else {
        return;
    };
    let service = unique("large");
    let pattern: &'static str = format!("{service}.happened").leak();
    let refuse = || async { Err::<(), _>(RpcError::invalid_argument("no".repeat(5000))) };
    let seen = Record::new();
    let other = move |cx: Context| async move {
        seen.push(cx.header("n").map(str::to_owned));
        Ok::<_, RpcError>(())
    };
    let next: &'static str = format!("{service}.next").leak();
    let router = Router::new()
        .event_with(pattern, Guarantee::AtLeastOnce, refuse)
        .event_with(next, Guarantee::AtLeastOnce, other);
    let server = start(&url, &service, router).await;
    let client = Client::connect(durable(&url)).await.unwrap();
    let dead = Endpoint::from(durable(&url)).dead_letters().await.unwrap();
    // The largest payload, and the largest headers.
    let mut expected = Vec::new();
    for (payload, header) in [(1_007_600, 16_000), (100, 32_500)] {
        let (payload, header) = (vec![0xff; payload], "h".repeat(header));
        let event = client.emit_at(pattern, &()).payload(payload.clone());
        event.header("large", &*header).await.unwrap();
        expected.push((payload, header));
    }
    let letters = eventually("both", async || {
        let letters = dead.list(&service, None, 10).await.unwrap();
        (letters.len() == 2).then_some(letters)
    })
    .await;
    for (payload, header) in expected {
        let is_it = |(_, letter): &&(String, DeadLetter)| {
            letter.rejection.envelope.payload.len() == payload.len()
        };
        let (id, letter) = letters.iter().find(is_it).unwrap();
        let envelope = &letter.rejection.envelope;
        assert_eq!(envelope.payload, payload);
        assert_eq!(envelope.headers.get("large"), Some(&*header));
        assert_eq!(&*envelope.pattern, pattern);
        assert!(letter.rejection.reason.contains("nono"));
        assert!(envelope.headers.get("dead-event").is_none());
        assert!(dead.discard(&service, id).await.unwrap());
        assert!(!dead.discard(&service, id).await.unwrap());
    }
    assert!(dead.list(&service, None, 10).await.unwrap().is_empty());
    // Nothing is left of them, nor in the way of others.
    let nats = async_nats::connect(&url).await.unwrap();
    let subjects = subjects(&nats, "nestling-dead-letters", &service).await;
    assert!(subjects.is_empty(), "{subjects:?}");
    client.emit_at(next, &1).header("n", "1").await.unwrap();
    seen.at_least(1).await;
    server.shutdown().await;
}

/// The subjects in a stream that are about a service.
async fn subjects(nats: &async_nats::Client, stream: &str, service: &str) -> Vec<String> {
    let body = r#"{"subjects_filter":">"}"#;
    let subject = format!("$JS.API.STREAM.INFO.{stream}");
    let answer = nats.request(subject, body.into()).await.unwrap();
    let info: Value = serde_json::from_slice(&answer.payload).unwrap();
    let subjects = info["state"]["subjects"].as_object();
    let names = subjects.into_iter().flat_map(|subjects| subjects.keys());
    names
        .filter(|name| name.contains(service))
        .cloned()
        .collect()
}

/// A try that failed is written down, and counts for whoever gets the event after a drain, however
/// the broker counts; nothing is left once the event is settled.
#[tokio::test]
async fn tries_are_written_down_for_as_long_as_the_event_is_there() {
    const FOR_EVER: Duration = Duration::from_secs(600);

    let Some(url) = broker_or_skip(Kind::Nats) else {
        return;
    };
    let service = unique("tries");
    let pattern: &'static str = format!("{service}.happened").leak();
    let tries = Record::new();
    let replica = |does: &'static str| {
        let react = move |cx: Context| async move {
            tries.push((does, cx.attempt()));
            match does {
                "fail" => Err(RpcError::unavailable("not now")),
                "hang" => std::future::pending().await,
                _ => Ok(()),
            }
        };
        let router = Router::new().event_with(pattern, Guarantee::AtLeastOnce, react);
        Server::new(&*service, router)
            .listen(durable(&url))
            .retry(3, FOR_EVER)
            .drain_timeout(Duration::from_millis(50))
            .start()
    };
    let nats = async_nats::connect(&url).await.unwrap();
    let written = async || {
        let subjects = subjects(&nats, "nestling-tries", &service).await;
        let body = serde_json::json!({"last_by_subj": subjects.first()?}).to_string();
        let subject = "$JS.API.DIRECT.GET.nestling-tries";
        let found = nats.request(subject, body.into()).await.unwrap();
        Some(String::from_utf8_lossy(&found.payload).into_owned())
    };
    let failing = replica("fail").await.unwrap();
    let client = Client::connect(durable(&url)).await.unwrap();
    client.emit_at(pattern, &1).await.unwrap();
    tries.at_least(1).await;
    eventually("the failure to be written down", async || {
        (written().await? == "1 1").then_some(())
    })
    .await;
    failing.shutdown().await;
    let hanging = replica("hang").await.unwrap();
    tries.at_least(2).await;
    hanging.shutdown().await;
    let passing = replica("pass").await.unwrap();
    let all = tries.at_least(3).await;
    assert_eq!(all, [("fail", 1), ("hang", 2), ("pass", 2)]);
    eventually("nothing to be written any more", async || {
        written().await.is_none().then_some(())
    })
    .await;
    passing.shutdown().await;
}
