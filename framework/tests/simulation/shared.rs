//! What all parts of a world have in common: its dice, its clock and its story.

use std::{
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use tokio::time::Instant;

#[derive(Clone)]
pub(crate) struct Shared {
    random: Arc<Mutex<fastrand::Rng>>,
    calm: Arc<AtomicBool>,
    began: Instant,
    story: Arc<Mutex<Vec<String>>>,
    violations: Arc<Mutex<Vec<String>>>,
}

impl Shared {
    pub(crate) fn new(random: fastrand::Rng) -> Self {
        Self {
            random: Arc::new(Mutex::new(random)),
            calm: Arc::default(),
            began: Instant::now(),
            story: Arc::default(),
            violations: Arc::default(),
        }
    }

    pub(crate) fn pick(&self, range: std::ops::Range<u64>) -> u64 {
        self.random.lock().unwrap().u64(range)
    }

    /// Whether something goes wrong that does so `odds` times in a thousand.
    pub(crate) fn happens(&self, odds: u32) -> bool {
        !self.is_calm() && self.pick(0..1000) < u64::from(odds)
    }

    /// From now on nothing goes wrong any more.
    pub(crate) fn calm_down(&self) {
        self.calm.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_calm(&self) -> bool {
        self.calm.load(Ordering::Relaxed)
    }

    /// Adds what was seen to happen.
    pub(crate) fn tell(&self, what: fmt::Arguments<'_>) {
        let millis = self.began.elapsed().as_millis();
        let line = format!("{millis:>6} ms  {what}");
        self.story.lock().unwrap().push(line);
    }

    /// Notes what must not happen, where a panic would only be caught.
    pub(crate) fn violation(&self, what: fmt::Arguments<'_>) {
        self.violations.lock().unwrap().push(what.to_string());
    }

    pub(crate) fn check_violations(&self) {
        let violations = self.violations.lock().unwrap();
        assert!(violations.is_empty(), "{violations:?}\n{}", self.so_far());
    }

    /// Whether there was a line that ends like this.
    pub(crate) fn tells_of(&self, end: &str) -> bool {
        let story = self.story.lock().unwrap();
        story.iter().any(|line| line.ends_with(end))
    }

    pub(crate) fn so_far(&self) -> String {
        self.story.lock().unwrap().join("\n")
    }

    pub(crate) fn take_story(&self) -> Vec<String> {
        std::mem::take(&mut *self.story.lock().unwrap())
    }
}

/// Counts what is in work, and notes when it is more than may be.
pub(crate) struct Gauge {
    name: &'static str,
    most: usize,
    count: AtomicUsize,
    shared: Shared,
}

/// One that is in work.
pub(crate) struct Counted(Arc<Gauge>);

impl Gauge {
    pub(crate) fn new(name: &'static str, most: usize, shared: &Shared) -> Arc<Self> {
        Arc::new(Self {
            name,
            most,
            count: AtomicUsize::new(0),
            shared: shared.clone(),
        })
    }

    pub(crate) fn enter(self: &Arc<Self>) -> Counted {
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        if count > self.most {
            let name = self.name;
            self.shared
                .violation(format_args!("{count} of {name} are in work"));
        }
        Counted(Arc::clone(self))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
    }
}
