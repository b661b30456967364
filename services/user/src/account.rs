//! Accounts: what holds of them, without I/O.

use std::time::Duration;

use contracts::{Role, Timestamp, UserId, user::User};

/// So many wrong passwords in a row lock an account.
pub(crate) const ATTEMPTS: u32 = 5;
/// For this long.
pub(crate) const LOCK: Duration = Duration::from_secs(15 * 60);

/// Two addresses that differ in case only are one.
pub(crate) fn normal_email(email: &str) -> String {
    email.trim().to_lowercase()
}

/// A new account, which may buy and nothing else.
pub(crate) fn new_user(email: &str, name: &str, locale: String, now: Timestamp) -> User {
    User {
        id: UserId::new(),
        email: normal_email(email),
        name: name.trim().to_owned(),
        roles: vec![Role::Customer],
        locale,
        verified: false,
        disabled: false,
        version: 1,
        created_at: now,
    }
}

/// What guards an account against guessing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lock {
    /// Wrong passwords since the last right one.
    pub(crate) failures: u32,
    /// No password counts before this time.
    pub(crate) until: Timestamp,
}

impl Lock {
    /// Nothing has happened.
    pub(crate) const OPEN: Self = Self {
        failures: 0,
        until: Timestamp::from_millis(0),
    };

    /// The lock once another password is about to be tried; `None` when it may not be.
    ///
    /// A try counts as wrong until it turns out right, so that many at once get no more chances.
    pub(crate) fn attempt(self, now: Timestamp) -> Option<Self> {
        if now < self.until {
            return None;
        }
        let failures = self.failures + 1;
        Some(if failures >= ATTEMPTS {
            Self {
                failures: 0,
                until: now.plus(LOCK),
            }
        } else {
            Self { failures, ..self }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fifth_wrong_password_locks_for_fifteen_minutes() {
        let now = Timestamp::from_millis(1_000_000);
        let mut lock = Lock::OPEN;
        for _ in 0..ATTEMPTS {
            lock = lock.attempt(now).unwrap();
        }
        assert_eq!(lock.attempt(now), None);
        assert_eq!(
            lock.attempt(now.plus(LOCK - Duration::from_millis(1))),
            None
        );
        assert_eq!(lock.attempt(now.plus(LOCK)).unwrap().failures, 1);
    }

    #[test]
    fn addresses_are_compared_in_lower_case() {
        assert_eq!(normal_email(" Ada@Example.ORG "), "ada@example.org");
    }
}
