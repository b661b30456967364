//! What handlers leave behind and tests wait for. Everything here is leaked, so that handlers can copy a reference: a
//! test process is short.

use std::{future::Future, time::Duration};

use tokio::sync::watch;

/// How long any condition may take to come true. Far above what is normal, so that it only ends what hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for `future`, and panics with `what` when it takes too long.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {PATIENCE:?} for {what}"),
    }
}

/// Asks `probe` again and again until it has an answer.
pub async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    const PAUSE: Duration = Duration::from_millis(10);
    within(what, async {
        loop {
            if let Some(answer) = probe().await {
                return answer;
            }
            tokio::time::sleep(PAUSE).await;
        }
    })
    .await
}

/// A list that handlers write and a test reads.
#[derive(Debug)]
pub struct Record<T> {
    entries: watch::Sender<Vec<T>>,
}

impl<T: Clone + Send + Sync + 'static> Record<T> {
    /// An empty list.
    pub fn new() -> &'static Self {
        Box::leak(Box::new(Self {
            entries: watch::Sender::new(Vec::new()),
        }))
    }

    /// Adds an entry.
    pub fn push(&self, entry: T) {
        self.entries.send_modify(|entries| entries.push(entry));
    }

    /// What is there now.
    pub fn all(&self) -> Vec<T> {
        self.entries.borrow().clone()
    }

    /// How many entries there are.
    pub fn count(&self) -> usize {
        self.entries.borrow().len()
    }

    /// How many entries are like this.
    pub fn count_of(&self, is_one: impl FnMut(&&T) -> bool) -> usize {
        self.entries.borrow().iter().filter(is_one).count()
    }

    /// Everything, once there are at least `count` entries.
    pub async fn at_least(&self, count: usize) -> Vec<T> {
        let mut entries = self.entries.subscribe();
        let wait = async {
            let enough = entries.wait_for(|entries| entries.len() >= count).await;
            enough.expect("the sender is leaked").clone()
        };
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(entries) => entries,
            Err(_) => panic!(
                "waited {PATIENCE:?} for {count} entries, there are {}",
                self.count()
            ),
        }
    }

    /// Waits until there are so many entries, as long as the case may last: for work that takes its time.
    pub async fn reaches(&self, count: usize) {
        let mut entries = self.entries.subscribe();
        let reached = entries.wait_for(|entries| entries.len() >= count).await;
        assert!(reached.is_ok(), "the sender is leaked");
    }

    /// The first entry, once it is there.
    pub async fn first(&self) -> T {
        self.at_least(1).await.swap_remove(0)
    }
}

/// A door that is closed until somebody opens it.
#[derive(Debug)]
pub struct Gate {
    open: watch::Sender<bool>,
}

impl Gate {
    /// A closed gate.
    pub fn new() -> &'static Self {
        Box::leak(Box::new(Self {
            open: watch::Sender::new(false),
        }))
    }

    /// Lets everybody through from now on.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// Whether it is open.
    pub fn is_open(&self) -> bool {
        *self.open.borrow()
    }

    /// Waits until it is open, for ever if need be: for handlers.
    pub async fn pass(&self) {
        let opened = self.open.subscribe().wait_for(|open| *open).await.is_ok();
        assert!(opened, "the sender is leaked");
    }

    /// Waits until it is open, with a deadline: for tests.
    pub async fn opened(&self, what: &str) {
        within(what, self.pass()).await;
    }

    /// Opens the gate when it is dropped.
    pub fn on_drop(&'static self) -> OnDrop {
        OnDrop(self)
    }
}

/// Opens its gate when it is dropped: a handler holds it to show its end.
#[derive(Debug)]
pub struct OnDrop(&'static Gate);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.open();
    }
}

/// How many are in a place now, and how many there ever were at once.
#[derive(Debug)]
pub struct Crowd {
    count: watch::Sender<(usize, usize)>,
}

impl Crowd {
    /// Nobody.
    pub fn new() -> &'static Self {
        Box::leak(Box::new(Self {
            count: watch::Sender::new((0, 0)),
        }))
    }

    /// One more.
    pub fn enter(&self) {
        self.count.send_modify(|(now, most)| {
            *now += 1;
            *most = (*most).max(*now);
        });
    }

    /// One less.
    pub fn leave(&self) {
        self.count.send_modify(|(now, _)| *now -= 1);
    }

    /// The most there ever were at once.
    pub fn most(&self) -> usize {
        self.count.borrow().1
    }

    /// Waits until at least `count` are there.
    pub async fn reaches(&self, count: usize) {
        let mut seen = self.count.subscribe();
        let reached = within("a crowd", seen.wait_for(|(now, _)| *now >= count))
            .await
            .is_ok();
        assert!(reached, "the sender is leaked");
    }
}
