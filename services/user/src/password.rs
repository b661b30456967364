//! Passwords: hashed with argon2id on blocking threads, a few at a time.

use std::sync::Arc;

use argon2::{
    Algorithm, Argon2, Params, Version,
    password_hash::{PasswordHasher, PasswordVerifier, phc::PasswordHash},
};
use contracts::Secret;
use nestling::RpcError;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::spawn_blocking,
};

use crate::error::Error;

/// OWASP's first choice: 19 MiB, two passes, one lane.
const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
const LANES: u32 = 1;
/// So many may wait for a thread; beyond it the caller is told to come back.
const QUEUE: usize = 128;

#[derive(Clone)]
pub(crate) struct Passwords {
    /// One per processor: each hash keeps one busy, and takes its memory.
    threads: Arc<Semaphore>,
    queue: Arc<Semaphore>,
    /// What unknown users are compared with, so that they take as long as known ones.
    dummy: Arc<str>,
}

impl Passwords {
    pub(crate) async fn new() -> Result<Self, RpcError> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let mut passwords = Self {
            threads: Arc::new(Semaphore::new(threads)),
            queue: Arc::new(Semaphore::new(QUEUE)),
            dummy: "".into(),
        };
        let dummy = passwords
            .hash(&Secret::new("nobody has this password"))
            .await?;
        passwords.dummy = dummy.into();
        Ok(passwords)
    }

    pub(crate) async fn hash(&self, password: &Secret) -> Result<String, Error> {
        let password = password.clone();
        self.run(move || hash(&password))
            .await?
            .map_err(Error::Other)
    }

    /// Whether `password` is the one that `hash` was made from; without a hash it is not, and that
    /// takes as long.
    pub(crate) async fn verify(
        &self,
        password: &Secret,
        hash: Option<String>,
    ) -> Result<bool, Error> {
        let password = password.clone();
        let known = hash.is_some();
        let hash = hash.unwrap_or_else(|| String::from(&*self.dummy));
        let fits = self.run(move || verify(&password, &hash)).await?;
        Ok(fits && known)
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let place = Arc::clone(&self.queue)
            .try_acquire_owned()
            .map_err(|_| Error::Busy)?;
        let thread = Arc::clone(&self.threads)
            .acquire_owned()
            .await
            .map_err(RpcError::internal)?;
        // The permits end with the work, not with a caller that stops waiting for it.
        let held: (OwnedSemaphorePermit, OwnedSemaphorePermit) = (place, thread);
        let result = spawn_blocking(move || {
            let result = work();
            drop(held);
            result
        });
        Ok(result.await.map_err(RpcError::internal)?)
    }
}

fn argon2() -> Result<Argon2<'static>, RpcError> {
    let params = Params::new(MEMORY_KIB, PASSES, LANES, None).map_err(RpcError::internal)?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

fn hash(password: &Secret) -> Result<String, RpcError> {
    let hash: PasswordHash = argon2()?
        .hash_password(password.expose().as_bytes())
        .map_err(RpcError::internal)?;
    Ok(hash.to_string())
}

fn verify(password: &Secret, hash: &str) -> bool {
    // The costs are those in the hash.
    Argon2::default()
        .verify_password(password.expose().as_bytes(), hash)
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_hash_fits_its_password_and_no_other() {
        let passwords = Passwords::new().await.unwrap();
        let password = Secret::new("correct horse");
        let hash = passwords.hash(&password).await.unwrap();
        assert!(
            hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"),
            "{hash}"
        );
        assert!(
            passwords
                .verify(&password, Some(hash.clone()))
                .await
                .unwrap()
        );
        assert!(
            !passwords
                .verify(&Secret::new("wrong horse"), Some(hash))
                .await
                .unwrap()
        );
        let dummy = Secret::new("nobody has this password");
        assert!(!passwords.verify(&dummy, None).await.unwrap());
    }
}
