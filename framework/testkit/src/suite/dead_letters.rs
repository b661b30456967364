//! Dead letters: what is kept of an event that a service gave up, and what can be done with it.

use std::time::Duration;

use nestling::{
    Context, Guarantee, Payload, Router, RpcError, Running, Server,
    transport::{DeadLetter, DeadLetters},
};

use super::{
    fixture::Stage,
    witness::{Gate, Record, eventually},
};

const FIRST_DELAY: Duration = Duration::from_millis(10);
const TRIES: u32 = 3;
/// A pause that no case waits for.
const FOR_EVER: Duration = Duration::from_secs(600);

async fn refuse() -> Result<(), RpcError> {
    Err(RpcError::invalid_argument("never"))
}

async fn fail() -> Result<(), RpcError> {
    Err(RpcError::unavailable("not now"))
}

fn retrying(stage: &Stage, service: &str, router: Router) -> Server {
    stage.server(service, router).retry(TRIES, FIRST_DELAY)
}

/// All of a service's dead letters, as soon as there are `count`.
async fn until(dead: &dyn DeadLetters, service: &str, count: usize) -> Vec<(String, DeadLetter)> {
    eventually("the dead letters", async || {
        let all = dead.list(service, None, 100).await.unwrap();
        (all.len() >= count).then_some(all)
    })
    .await
}

/// The event is kept with its pattern, headers and bytes, and with why and after how many tries.
pub async fn an_event_that_cannot_pass_is_kept_with_all_it_had(stage: Stage) {
    let pattern = stage.pattern("refused");
    let router = Router::new().event_with(pattern, stage.guarantee(), refuse);
    let server = stage
        .start_server(retrying(&stage, "service", router))
        .await;
    let client = stage.client(&[&server]).await;
    let dead = stage.dead_letters().await;

    let event = client.emit_at(pattern, &("ü", 7));
    let event = event.header("x-one", "1").header("key", "k");
    event.await.unwrap();
    let service = stage.service("service");
    let all = until(&*dead, &service, 1).await;
    let [(id, letter)] = &all[..] else {
        panic!("one event, one dead letter: {all:?}")
    };
    let rejection = &letter.rejection;
    assert_eq!(letter.service, service);
    assert_eq!((rejection.attempts, &rejection.handlers[..]), (1, &[0][..]));
    assert!(rejection.reason.contains("never"), "{rejection:?}");
    let envelope = &rejection.envelope;
    assert_eq!(&*envelope.pattern, pattern);
    assert_eq!(envelope.payload, "[\"ü\",7]");
    assert_eq!(envelope.headers.get("x-one"), Some("1"));
    assert_eq!(envelope.headers.get("key"), Some("k"));
    assert!(letter.at.elapsed().is_ok_and(|age| age < FOR_EVER));
    let found = dead.find(&service, id).await.unwrap();
    assert_eq!(
        found.map(|letter| letter.rejection),
        Some(rejection.clone())
    );
}

/// The limit of tries is what the server says.
pub async fn an_event_tried_in_vain_is_kept(stage: Stage) {
    let (pattern, next) = (stage.pattern("failing"), stage.pattern("next"));
    let passed = Gate::new();
    let router = Router::new()
        .event_with(pattern, stage.guarantee(), fail)
        .event_with(next, stage.guarantee(), move || async move {
            passed.open();
            Ok::<_, RpcError>(())
        });
    let server = stage
        .start_server(retrying(&stage, "service", router))
        .await;
    let client = stage.client(&[&server]).await;
    let dead = stage.dead_letters().await;

    for pattern in [pattern, next] {
        client
            .emit_at(pattern, &1)
            .header("key", "k")
            .await
            .unwrap();
    }
    let all = until(&*dead, &stage.service("service"), 1).await;
    assert_eq!(all[0].1.rejection.attempts, stage.tries(TRIES));
    assert!(all[0].1.rejection.reason.contains("not now"), "{all:?}");
    passed.opened("the event behind it").await;
}

/// Neither the handler that had succeeded nor another service sees it again.
pub async fn a_replayed_event_reaches_only_the_handlers_that_failed(stage: Stage) {
    let (pattern, last) = (stage.pattern("half"), stage.pattern("last"));
    let (seen, mended) = (Record::new(), Gate::new());
    let watch = move |who: &'static str| {
        move |Payload(n): Payload<u64>| async move {
            seen.push((who, n));
            Ok::<_, RpcError>(())
        }
    };
    let broken = move |Payload(n): Payload<u64>| async move {
        if !mended.is_open() {
            return Err(RpcError::invalid_argument("broken"));
        }
        seen.push(("broken", n));
        Ok(())
    };
    let router = Router::new()
        .event_with(pattern, stage.guarantee(), watch("whole"))
        .event_with(pattern, stage.guarantee(), broken)
        .event_with(last, stage.guarantee(), watch("last"));
    let one = stage.start_server(retrying(&stage, "one", router)).await;
    let router = Router::new()
        .event_with(pattern, stage.guarantee(), watch("other"))
        .event_with(last, stage.guarantee(), watch("last"));
    let other = stage.start_server(retrying(&stage, "other", router)).await;
    let client = stage.client(&[&one, &other]).await;
    let dead = stage.dead_letters().await;

    client
        .emit_at(pattern, &7)
        .header("key", "k")
        .await
        .unwrap();
    let service = stage.service("one");
    let (id, letter) = until(&*dead, &service, 1).await.remove(0);
    assert_eq!(letter.rejection.handlers, [1]);
    seen.at_least(2).await;

    mended.open();
    assert_eq!(client.replay(&*dead, &service, &id).await, Ok(true));
    client.emit_at(last, &7).header("key", "k").await.unwrap();
    // With one key, what comes last is seen last.
    let mut all = seen.at_least(5).await;
    all.sort_unstable();
    let once = ["broken", "last", "last", "other", "whole"].map(|who| (who, 7));
    assert_eq!(all, once);
    assert_eq!(dead.list(&service, None, 100).await.unwrap().len(), 0);
    assert_eq!(client.replay(&*dead, &service, &id).await, Ok(false));
}

/// Once.
pub async fn a_discarded_dead_letter_is_gone(stage: Stage) {
    let (server, pattern) = refusing(&stage, "service").await;
    let client = stage.client(&[&server]).await;
    let dead = stage.dead_letters().await;
    for n in 0..2 {
        client.emit_at(pattern, &n).await.unwrap();
    }
    let service = stage.service("service");
    let all = until(&*dead, &service, 2).await;
    let id = &all[0].0;
    assert!(dead.discard(&service, id).await.unwrap());
    assert!(!dead.discard(&service, id).await.unwrap());
    assert!(dead.find(&service, id).await.unwrap().is_none());
    let left = dead.list(&service, None, 100).await.unwrap();
    assert_eq!((left.len(), &left[0].0), (1, &all[1].0));
}

/// Each service has its own, each of them once.
pub async fn dead_letters_are_listed_page_by_page_and_by_service(stage: Stage) {
    let (one, pattern) = refusing(&stage, "one").await;
    let (other, other_pattern) = refusing(&stage, "other").await;
    let client = stage.client(&[&one]).await;
    let other_client = stage.client(&[&other]).await;
    let dead = stage.dead_letters().await;
    for n in 0..5 {
        client
            .emit_at(pattern, &n)
            .header("key", "k")
            .await
            .unwrap();
    }
    other_client.emit_at(other_pattern, &7).await.unwrap();
    let service = stage.service("one");
    let whole = until(&*dead, &service, 5).await;
    let mut pages = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = dead.list(&service, after.as_deref(), 2).await.unwrap();
        assert!(page.len() <= 2);
        let Some((id, _)) = page.last() else { break };
        after = Some(id.clone());
        pages.extend(page);
    }
    let payloads = |letters: &[(String, DeadLetter)]| {
        let payload =
            |(_, letter): &(String, DeadLetter)| letter.rejection.envelope.payload.clone();
        letters.iter().map(payload).collect::<Vec<_>>()
    };
    assert_eq!(
        payloads(&pages),
        payloads(&whole),
        "the order is that of the list"
    );
    // One that could not be stored at once is stored later, and then comes later.
    let mut found = payloads(&pages);
    found.sort_unstable();
    assert_eq!(found, ["0", "1", "2", "3", "4"]);
    until(&*dead, &stage.service("other"), 1).await;
}

async fn refusing(stage: &Stage, service: &str) -> (Running, &'static str) {
    let pattern = stage.pattern(&format!("refused-by-{service}"));
    let router = Router::new().event_with(pattern, stage.guarantee(), refuse);
    let server = stage.start_server(retrying(stage, service, router)).await;
    (server, pattern)
}

/// A replica that dies between two tries leaves their number to the one that takes over.
pub async fn tries_are_counted_on_by_the_next_replica(stage: Stage) {
    let pattern = stage.pattern("failing");
    let tries = Record::new();
    let router = Router::new().event_with(
        pattern,
        Guarantee::AtLeastOnce,
        move |cx: Context| async move {
            tries.push(cx.attempt());
            Err::<(), _>(RpcError::unavailable("not now"))
        },
    );
    let patient = stage
        .server("service", router.clone())
        .retry(TRIES, FOR_EVER);
    let first = stage.start_server(patient).await;
    let client = stage.client(&[&first]).await;
    client.emit_at(pattern, &1).await.unwrap();
    assert_eq!(tries.first().await, 1);
    let dead = stage.dead_letters().await;

    // Memory keeps an event only as long as there is somebody to handle it.
    let second = stage
        .start_server(retrying(&stage, "service", router))
        .await;
    drop(first);
    let all = until(&*dead, &stage.service("service"), 1).await;
    assert_eq!(all[0].1.rejection.attempts, TRIES);
    let tries = tries.all();
    assert_eq!(tries.last(), Some(&TRIES), "{tries:?}");
    // One try may have been under way, and uncounted, when the first replica died.
    assert!(tries.len() <= TRIES as usize + 1, "{tries:?}");
    second.shutdown().await;
}
