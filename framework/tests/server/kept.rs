//! Where given up events go whose transport has no place for them.

use nestling::{
    Running,
    transport::{
        DeadLetter, DeadLetterStore, DeadLetters, Error, ErrorKind, Kind, Outcome, Rejection,
    },
};
use tokio::sync::mpsc;

use super::{
    seam::{Witness, script},
    *,
};

/// A store that fails as often as it is told to.
#[derive(Clone)]
struct Shelf {
    failures: Arc<AtomicUsize>,
    kept: Log<DeadLetter>,
}

impl Shelf {
    fn failing(times: usize) -> Self {
        Self {
            failures: Arc::new(AtomicUsize::new(times)),
            kept: Log::new(),
        }
    }

    fn rejections(&self) -> Vec<Rejection> {
        let kept = self.kept.all().into_iter();
        kept.map(|dead_letter| dead_letter.rejection).collect()
    }
}

#[async_trait::async_trait]
impl DeadLetterStore for Shelf {
    async fn keep(&self, dead_letter: DeadLetter) -> Result<(), Error> {
        let fewer = |left: usize| left.checked_sub(1);
        let failing = self
            .failures
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, fewer);
        if failing.is_ok() {
            return Err(Error::new(ErrorKind::Connect, "the disk is full"));
        }
        self.kept.push(dead_letter);
        Ok(())
    }
}

#[async_trait::async_trait]
impl DeadLetters for Shelf {
    async fn list(
        &self,
        _: &str,
        _: Option<&str>,
        _: usize,
    ) -> Result<Vec<(String, DeadLetter)>, Error> {
        Ok(Vec::new())
    }

    async fn find(&self, _: &str, _: &str) -> Result<Option<DeadLetter>, Error> {
        Ok(None)
    }

    async fn discard(&self, _: &str, _: &str) -> Result<bool, Error> {
        Ok(false)
    }
}

async fn refusing(
    shelf: &Shelf,
) -> (
    Running,
    mpsc::UnboundedSender<nestling::transport::Delivery>,
) {
    let (transport, deliveries) = script();
    let refuse = || async { Err::<(), _>(RpcError::invalid_argument("never")) };
    let router = Router::new().event_with("refused", Guarantee::AtLeastOnce, refuse);
    let server = Server::new("x", router)
        .listen(transport)
        .dead_letters(shelf.clone())
        .drain_timeout(SECOND);
    (server.start().await.unwrap(), deliveries)
}

#[tokio::test(start_paused = true)]
async fn an_event_is_kept_before_it_is_settled() {
    let shelf = Shelf::failing(3);
    let (server, deliveries) = refusing(&shelf).await;
    let witness = Witness::new();
    let event = witness.delivery(Kind::Event, "refused", "7");
    deliveries.send(event).unwrap();
    while shelf.failures.load(Ordering::SeqCst) > 0 {
        assert_eq!(witness.outcomes.all(), []);
        sleep(Duration::from_millis(1)).await;
    }
    sleep(SECOND * 60).await;
    let outcomes = witness.outcomes.all();
    assert!(
        matches!(&outcomes[..], [Outcome::Reject(_)]),
        "{outcomes:?}"
    );
    let kept = shelf.rejections();
    assert_eq!(kept.len(), 1);
    assert_eq!(
        (kept[0].attempts, &*kept[0].envelope.payload),
        (1, &b"7"[..])
    );
    server.shutdown().await;
}

/// Whoever sends a message is told what became of it.
#[tokio::test(start_paused = true)]
async fn a_refused_message_is_not_kept() {
    let shelf = Shelf::failing(0);
    let (server, deliveries) = refusing(&shelf).await;
    let witness = Witness::new();
    let message = witness.delivery(Kind::Message, "refused", "7");
    deliveries.send(message).unwrap();
    sleep(SECOND * 60).await;
    let outcomes = witness.outcomes.all();
    assert!(matches!(&outcomes[..], [Outcome::Fail(_)]), "{outcomes:?}");
    assert!(shelf.rejections().is_empty());
    server.shutdown().await;
}

/// What is too much to look at reaches no handler, and names those it was for.
#[tokio::test(start_paused = true)]
async fn an_event_without_measure_is_kept_for_its_handlers() {
    let shelf = Shelf::failing(0);
    let (server, deliveries) = refusing(&shelf).await;
    let witness = Witness::new();
    let mut event = witness.delivery(Kind::Event, "refused", "7");
    event.envelope.headers.set("large", "x".repeat(1 << 20));
    deliveries.send(event).unwrap();
    sleep(SECOND * 60).await;
    let kept = shelf.rejections();
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0].handlers, [0]);
    assert!(kept[0].reason.contains("headers"), "{}", kept[0].reason);
    server.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn an_event_that_nobody_settled_is_kept_too() {
    let shelf = Shelf::failing(0);
    let (server, deliveries) = refusing(&shelf).await;
    let witness = Witness::new();
    let mut event = witness.delivery(Kind::Event, "refused", "7");
    event.attempt = 7;
    deliveries.send(event).unwrap();
    sleep(SECOND * 60).await;
    let kept = shelf.rejections();
    assert_eq!(kept.len(), 1);
    assert_eq!((kept[0].attempts, &kept[0].handlers[..]), (6, &[0][..]));
    server.shutdown().await;
}

/// The event is given back, for who may have a better place for it.
#[tokio::test(start_paused = true)]
async fn a_drain_does_not_wait_for_a_store_that_is_broken() {
    let shelf = Shelf::failing(usize::MAX);
    let (server, deliveries) = refusing(&shelf).await;
    let witness = Witness::new();
    let event = witness.delivery(Kind::Event, "refused", "7");
    deliveries.send(event).unwrap();
    sleep(SECOND).await;
    let began = Instant::now();
    server.shutdown().await;
    assert!(began.elapsed() < SECOND * 10);
    let outcomes = witness.outcomes.all();
    assert!(
        matches!(&outcomes[..], [Outcome::Retry { .. }]),
        "{outcomes:?}"
    );
}

/// It has a place of its own.
#[tokio::test(start_paused = true)]
async fn what_the_transport_keeps_is_not_kept_twice() {
    let (memory, shelf) = (Memory::new(), Shelf::failing(0));
    let refuse = |_: OrderPlaced| async { Err::<(), _>(RpcError::invalid_argument("never")) };
    let server = Server::new("x", Router::new().event(refuse))
        .listen(&memory)
        .dead_letters(shelf.clone())
        .start()
        .await
        .unwrap();
    let client = Client::connect(&memory).await.unwrap();
    client.emit(OrderPlaced { order: 1 }).await.unwrap();
    sleep(SECOND * 60).await;
    assert_eq!(memory.list("x", None, 10).await.unwrap().len(), 1);
    assert!(shelf.rejections().is_empty());
    server.shutdown().await;
}
