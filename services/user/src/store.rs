//! Persistence: the one file that knows SQL.

use std::{fs::OpenOptions, os::unix::fs::OpenOptionsExt, path::Path, str::FromStr};

use contracts::{
    Meta, Role, SessionId, Timestamp, UserId,
    user::{User, UserRegistered},
};
use nestling::{RpcError, sqlite::Outbox};
use sqlx::{Row, SqliteConnection, SqlitePool, sqlite::SqliteRow};

use crate::{account::Lock, error::Error, token::StoredKey};

/// How long a session lasts.
const SESSION_MS: i64 = 30 * 24 * 3600 * 1000;

/// Opens the service's database file. It holds the signing key, so nobody else may read it.
///
/// # Errors
/// When the file cannot be made or opened.
pub async fn open(path: &Path) -> Result<SqlitePool, sqlx::Error> {
    // SQLite gives its other files the mode of this one.
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)?;
    nestling::sqlite::open(path).await
}

pub(crate) async fn create_tables(pool: &SqlitePool) -> Result<(), sqlx::Error> {
    for statement in [
        "CREATE TABLE IF NOT EXISTS users (
            id TEXT PRIMARY KEY,
            email TEXT NOT NULL UNIQUE,
            password TEXT NOT NULL,
            name TEXT NOT NULL,
            roles TEXT NOT NULL,
            locale TEXT NOT NULL,
            verified INTEGER NOT NULL,
            disabled INTEGER NOT NULL,
            version INTEGER NOT NULL,
            created_at INTEGER NOT NULL,
            failures INTEGER NOT NULL DEFAULT 0,
            locked_until INTEGER NOT NULL DEFAULT 0
        ) WITHOUT ROWID",
        "CREATE TABLE IF NOT EXISTS sessions (
            id TEXT PRIMARY KEY,
            user_id TEXT NOT NULL REFERENCES users (id),
            device TEXT NOT NULL,
            created_at INTEGER NOT NULL,
            expires_at INTEGER NOT NULL
        ) WITHOUT ROWID",
        "CREATE INDEX IF NOT EXISTS sessions_by_user ON sessions (user_id)",
        "CREATE TABLE IF NOT EXISTS signing_keys (
            position INTEGER PRIMARY KEY AUTOINCREMENT,
            pkcs8 BLOB NOT NULL,
            created_at INTEGER NOT NULL
        )",
        "CREATE TABLE IF NOT EXISTS cursor_key (
            only INTEGER PRIMARY KEY CHECK (only = 1),
            key BLOB NOT NULL
        )",
    ] {
        sqlx::query(statement).execute(pool).await?;
    }
    Ok(())
}

/// The private keys, newest first; makes one when there is none.
pub(crate) async fn signing_keys(
    pool: &SqlitePool,
    now: Timestamp,
) -> Result<Vec<StoredKey>, RpcError> {
    let mut tx = pool.begin_with("BEGIN IMMEDIATE").await?;
    let rows = sqlx::query("SELECT pkcs8 FROM signing_keys ORDER BY position DESC")
        .fetch_all(&mut *tx)
        .await?;
    let mut keys = Vec::new();
    for row in rows {
        keys.push(StoredKey(row.try_get(0)?));
    }
    if keys.is_empty() {
        let key = StoredKey::generate()?;
        sqlx::query("INSERT INTO signing_keys (pkcs8, created_at) VALUES (?, ?)")
            .bind(&key.0)
            .bind(now.millis())
            .execute(&mut *tx)
            .await?;
        keys.push(key);
    }
    tx.commit().await?;
    Ok(keys)
}

/// The key of the cursors' checks, made when there is none.
pub(crate) async fn cursor_key(pool: &SqlitePool) -> Result<Vec<u8>, sqlx::Error> {
    sqlx::query("INSERT OR IGNORE INTO cursor_key (only, key) VALUES (1, randomblob(32))")
        .execute(pool)
        .await?;
    let row = sqlx::query("SELECT key FROM cursor_key")
        .fetch_one(pool)
        .await?;
    row.try_get(0)
}

pub(crate) async fn id_of(pool: &SqlitePool, email: &str) -> Result<Option<UserId>, RpcError> {
    let row = sqlx::query("SELECT id FROM users WHERE email = ?")
        .bind(email)
        .fetch_optional(pool)
        .await?;
    row.map(|row| read_id(&row, "id")).transpose()
}

pub(crate) async fn insert_unless_there(
    pool: &SqlitePool,
    user: &User,
    password: &str,
) -> Result<(), RpcError> {
    match insert(&mut *pool.acquire().await?, user, password).await {
        Ok(()) | Err(Error::EmailTaken) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn insert(
    connection: &mut SqliteConnection,
    user: &User,
    password: &str,
) -> Result<(), Error> {
    let inserted = sqlx::query(
        "INSERT INTO users (id, email, password, name, roles, locale, verified, disabled, version, created_at)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(user.id.to_string())
    .bind(&user.email)
    .bind(password)
    .bind(&user.name)
    .bind(serde_json::to_string(&user.roles).map_err(RpcError::internal)?)
    .bind(&user.locale)
    .bind(user.verified)
    .bind(user.disabled)
    .bind(number(user.version))
    .bind(user.created_at.millis())
    .execute(connection)
    .await;
    email_taken(inserted)?;
    Ok(())
}

/// The address is the one thing besides the id that must be unique.
fn email_taken<T>(result: Result<T, sqlx::Error>) -> Result<T, Error> {
    result.map_err(|error| match &error {
        sqlx::Error::Database(database) if database.is_unique_violation() => Error::EmailTaken,
        _ => error.into(),
    })
}

/// What signing in looks at.
pub(crate) struct Credentials {
    pub(crate) user: User,
    pub(crate) password: String,
}

/// A change of an account; what is `None` stays.
pub(crate) struct Change {
    pub(crate) user_id: UserId,
    pub(crate) expected_version: u64,
    pub(crate) name: Option<String>,
    pub(crate) email: Option<String>,
    pub(crate) locale: Option<String>,
    /// The hash of a new password, and the one session that stays.
    pub(crate) password: Option<(String, SessionId)>,
}

/// Which accounts a list shows.
pub(crate) struct Filter {
    pub(crate) q: Option<String>,
    pub(crate) role: Option<Role>,
    pub(crate) after: Option<UserId>,
    pub(crate) limit: u32,
}

#[derive(Clone)]
pub(crate) struct Store {
    pool: SqlitePool,
    outbox: Outbox,
}

impl Store {
    pub(crate) fn new(pool: SqlitePool, outbox: Outbox) -> Self {
        Self { pool, outbox }
    }

    pub(crate) async fn register(&self, user: User, password: &str) -> Result<User, Error> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        insert(&mut tx, &user, password).await?;
        let meta = Meta {
            at: user.created_at,
            version: user.version,
        };
        let event = UserRegistered {
            user_id: user.id,
            user,
            meta,
        };
        self.outbox.add(&mut tx, &event).await?;
        self.outbox.commit(tx).await?;
        Ok(event.user)
    }

    pub(crate) async fn is_taken(&self, email: &str) -> Result<bool, Error> {
        Ok(id_of(&self.pool, email).await?.is_some())
    }

    /// The account of an address whose password is about to be tried, with the try counted; `None`
    /// when there is none, or it is locked.
    pub(crate) async fn attempt_by_email(
        &self,
        email: &str,
        now: Timestamp,
    ) -> Result<Option<Credentials>, Error> {
        let id = id_of(&self.pool, email).await?;
        match id {
            Some(id) => self.attempt(id, now).await,
            None => Ok(None),
        }
    }

    pub(crate) async fn attempt(
        &self,
        id: UserId,
        now: Timestamp,
    ) -> Result<Option<Credentials>, Error> {
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let row = sqlx::query("SELECT * FROM users WHERE id = ?")
            .bind(id.to_string())
            .fetch_optional(&mut *tx)
            .await?;
        let Some(row) = row else { return Ok(None) };
        let lock = Lock {
            failures: row.try_get("failures")?,
            until: Timestamp::from_millis(row.try_get("locked_until")?),
        };
        let Some(lock) = lock.attempt(now) else {
            return Ok(None);
        };
        set_lock(&mut tx, id, lock).await?;
        tx.commit().await?;
        let password = row.try_get("password")?;
        Ok(Some(Credentials {
            user: read_user(&row)?,
            password,
        }))
    }

    /// Takes back the try that turned out right.
    pub(crate) async fn unlock(&self, id: UserId) -> Result<(), Error> {
        set_lock(&mut *self.pool.acquire().await?, id, Lock::OPEN).await
    }

    /// Begins a session, and clears away those that have ended.
    pub(crate) async fn begin_session(
        &self,
        user: UserId,
        device: &str,
        now: Timestamp,
    ) -> Result<SessionId, Error> {
        let session = SessionId::new();
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        set_lock(&mut tx, user, Lock::OPEN).await?;
        sqlx::query("DELETE FROM sessions WHERE user_id = ? AND expires_at <= ?")
            .bind(user.to_string())
            .bind(now.millis())
            .execute(&mut *tx)
            .await?;
        sqlx::query(
            "INSERT INTO sessions (id, user_id, device, created_at, expires_at) VALUES (?, ?, ?, ?, ?)",
        )
        .bind(session.to_string())
        .bind(user.to_string())
        .bind(device)
        .bind(now.millis())
        .bind(now.millis().saturating_add(SESSION_MS))
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(session)
    }

    pub(crate) async fn get(&self, id: UserId) -> Result<User, Error> {
        let row = sqlx::query("SELECT * FROM users WHERE id = ?")
            .bind(id.to_string())
            .fetch_optional(&self.pool)
            .await?;
        Ok(read_user(&row.ok_or(Error::NotFound)?)?)
    }

    /// At most one more than the limit, by which the caller sees that there are more.
    pub(crate) async fn list(&self, filter: Filter) -> Result<Vec<User>, Error> {
        let rows = sqlx::query(
            "SELECT * FROM users
             WHERE id > ?1
               AND (?2 IS NULL OR instr(lower(name), ?2) > 0 OR instr(email, ?2) > 0)
               AND (?3 IS NULL OR instr(roles, ?3) > 0)
             ORDER BY id LIMIT ?4",
        )
        .bind(filter.after.map(|id| id.to_string()).unwrap_or_default())
        .bind(filter.q.map(|q| q.to_lowercase()))
        .bind(filter.role.map(|role| format!("\"{}\"", role.as_str())))
        .bind(i64::from(filter.limit) + 1)
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.iter().map(read_user).collect::<Result<_, _>>()?)
    }

    pub(crate) async fn update(&self, change: Change) -> Result<User, Error> {
        let id = change.user_id.to_string();
        let (hash, session) = change.password.unzip();
        let mut tx = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        let row = sqlx::query(
            "UPDATE users SET
                name = coalesce(?3, name),
                verified = verified AND coalesce(?4, email) = email,
                email = coalesce(?4, email),
                locale = coalesce(?5, locale),
                password = coalesce(?6, password),
                version = version + 1
             WHERE id = ?1 AND version = ?2
             RETURNING *",
        )
        .bind(&id)
        .bind(number(change.expected_version))
        .bind(change.name)
        .bind(change.email)
        .bind(change.locale)
        .bind(hash)
        .fetch_optional(&mut *tx)
        .await;
        let Some(row) = email_taken(row)? else {
            tx.rollback().await?;
            // Which of the two it was.
            self.get(change.user_id).await?;
            return Err(Error::VersionConflict);
        };
        let user = read_user(&row)?;
        if let Some(session) = session {
            sqlx::query("DELETE FROM sessions WHERE user_id = ? AND id <> ?")
                .bind(&id)
                .bind(session.to_string())
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        Ok(user)
    }
}

async fn set_lock(connection: &mut SqliteConnection, id: UserId, lock: Lock) -> Result<(), Error> {
    sqlx::query("UPDATE users SET failures = ?, locked_until = ? WHERE id = ?")
        .bind(lock.failures)
        .bind(lock.until.millis())
        .bind(id.to_string())
        .execute(connection)
        .await?;
    Ok(())
}

fn read_user(row: &SqliteRow) -> Result<User, RpcError> {
    let roles: String = row.try_get("roles")?;
    Ok(User {
        id: read_id(row, "id")?,
        email: row.try_get("email")?,
        name: row.try_get("name")?,
        roles: serde_json::from_str(&roles).map_err(RpcError::internal)?,
        locale: row.try_get("locale")?,
        verified: row.try_get("verified")?,
        disabled: row.try_get("disabled")?,
        version: u64::try_from(row.try_get::<i64, _>("version")?).map_err(RpcError::internal)?,
        created_at: Timestamp::from_millis(row.try_get("created_at")?),
    })
}

fn read_id(row: &SqliteRow, column: &str) -> Result<UserId, RpcError> {
    let text: String = row.try_get(column)?;
    UserId::from_str(&text).map_err(RpcError::internal)
}

/// SQLite's integers have a sign; versions beyond them match nothing.
fn number(version: u64) -> i64 {
    i64::try_from(version).unwrap_or(i64::MAX)
}
