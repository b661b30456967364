//! Work that is done in batches, and goes on where it was stopped.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use futures_util::{StreamExt, TryStreamExt, stream};
use nestling::RpcError;

/// How many batches are on their way at once.
const AT_ONCE: usize = 4;

/// How many batches of each kind have been taken over.
pub(crate) struct Done {
    path: PathBuf,
    counts: BTreeMap<String, usize>,
}

impl Done {
    pub(crate) fn load(path: &Path) -> anyhow::Result<Self> {
        let counts = match fs::read(path) {
            Ok(text) => serde_json::from_slice(&text)
                .with_context(|| format!("{} is not an import's state", path.display()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        Ok(Self {
            path: path.to_owned(),
            counts,
        })
    }

    fn save(&self) -> anyhow::Result<()> {
        let text = serde_json::to_vec(&self.counts)?;
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder)?;
        }
        // Replaced as a whole, so that a crash leaves the old or the new.
        let new = self.path.with_extension("new");
        fs::write(&new, text)?;
        fs::rename(&new, &self.path).with_context(|| format!("write {}", self.path.display()))
    }

    /// Sends the batches that were not taken over before, several at once, and counts those that
    /// are in order.
    pub(crate) async fn run<B: Clone, R>(
        &mut self,
        what: &str,
        batches: Vec<B>,
        send: impl AsyncFn(B) -> Result<R, RpcError>,
    ) -> anyhow::Result<()> {
        let total = batches.len();
        let skipped = self.counts.get(what).copied().unwrap_or(0).min(total);
        let name = what.split(' ').next().unwrap_or(what);
        let started = Instant::now();
        let attempts = batches
            .into_iter()
            .skip(skipped)
            .map(|batch| persist(batch, &send));
        let mut sent = stream::iter(attempts).buffered(AT_ONCE);
        let mut count = skipped;
        while sent
            .try_next()
            .await
            .with_context(|| format!("import {name}"))?
            .is_some()
        {
            count += 1;
            self.counts.insert(what.to_owned(), count);
            self.save()?;
            if count % 10 == 0 || count == total {
                let seconds = started.elapsed().as_secs_f64();
                eprintln!("{name}: {count} of {total} batches, {seconds:.0} s");
            }
        }
        if skipped == total {
            eprintln!("{name}: all {total} batches were there already");
        }
        Ok(())
    }
}

/// Batches may be repeated, so a failure that may pass is waited out for a while.
async fn persist<B: Clone, R>(
    batch: B,
    send: &impl AsyncFn(B) -> Result<R, RpcError>,
) -> Result<R, RpcError> {
    let mut pause = Duration::from_millis(200);
    for _ in 0..6 {
        match send(batch.clone()).await {
            Err(error) if error.code.may_pass() => {
                tracing::warn!(%error, "trying again");
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            settled => return settled,
        }
    }
    send(batch).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_import_goes_on_where_it_was_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        let mut done = Done::load(&path).unwrap();
        let first = done.run(
            "things",
            vec![1, 2, 3, 4, 5, 6],
            async |batch| match batch {
                4 => Err(RpcError::invalid_argument("no")),
                other => Ok(other),
            },
        );
        assert!(first.await.is_err());
        let seen = std::sync::Mutex::new(Vec::new());
        let mut done = Done::load(&path).unwrap();
        done.run("things", vec![1, 2, 3, 4, 5, 6], async |batch| {
            seen.lock().unwrap().push(batch);
            Ok(())
        })
        .await
        .unwrap();
        assert_eq!(*seen.lock().unwrap(), [4, 5, 6]);
    }
}
