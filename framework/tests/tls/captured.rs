//! What this process logs, from the finest level on, the libraries included: searched as it is written.

use std::{
    collections::BTreeSet,
    io,
    sync::{LazyLock, Mutex, PoisonError},
};

use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

/// What must not be written, and what has been written of it.
#[derive(Default)]
struct Watch {
    secrets: Vec<String>,
    leaks: Vec<String>,
    /// The crates that have logged something.
    heard: BTreeSet<String>,
}

static WATCH: LazyLock<Mutex<Watch>> = LazyLock::new(|| {
    let filter = EnvFilter::new("trace");
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(Searched)
        .init();
    Mutex::default()
});

/// From here on these texts are looked for.
pub(crate) fn watch_for(secrets: &[&str]) {
    let mut watch = WATCH.lock().unwrap_or_else(PoisonError::into_inner);
    watch
        .secrets
        .extend(secrets.iter().map(|&it| it.to_owned()));
}

/// Looks for them in a text.
pub(crate) fn search(text: &str) {
    WATCH
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .search(text);
}

/// The lines they were found in.
pub(crate) fn leaks() -> Vec<String> {
    let watch = WATCH.lock().unwrap_or_else(PoisonError::into_inner);
    watch.leaks.clone()
}

/// Whether something of a crate has been logged.
pub(crate) fn has_heard(name: &str) -> bool {
    let watch = WATCH.lock().unwrap_or_else(PoisonError::into_inner);
    watch.heard.contains(name)
}

impl Watch {
    fn search(&mut self, text: &str) {
        if self.secrets.iter().any(|secret| text.contains(secret)) && self.leaks.len() < 20 {
            self.leaks.push(text.to_owned());
        }
    }
}

struct Searched;

impl<'a> MakeWriter<'a> for Searched {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        Self
    }
}

impl io::Write for Searched {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        // Time, level, spans, then the module.
        let module = text
            .split_whitespace()
            .find_map(|word| word.split_once("::"));
        let mut watch = WATCH.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((name, _)) = module {
            watch.heard.insert(name.to_owned());
        }
        watch.search(&text);
        drop(watch);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
