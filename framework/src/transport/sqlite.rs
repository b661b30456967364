//! [`DeadLetterTable`]: dead letters in a service's own database, for transports that have no place for
//! them.

use std::{
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use async_trait::async_trait;
use sqlx::{
    Row, SqlitePool,
    sqlite::{SqliteConnectOptions, SqlitePoolOptions, SqliteRow},
};

use super::{DeadLetter, DeadLetterStore, DeadLetters, Error, ErrorKind, Rejection};
use crate::envelope::{Envelope, Headers};

const SCHEMA: [&str; 2] = [
    "CREATE TABLE IF NOT EXISTS dead_letters (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        service TEXT NOT NULL,
        at INTEGER NOT NULL,
        reason TEXT NOT NULL,
        attempts INTEGER NOT NULL,
        handlers TEXT NOT NULL,
        pattern TEXT NOT NULL,
        headers TEXT NOT NULL,
        payload BLOB NOT NULL
    )",
    "CREATE INDEX IF NOT EXISTS dead_letters_by_service ON dead_letters (service, id)",
];

/// Dead letters in a table of the service's own database, for
/// [`Server::dead_letters`](crate::Server::dead_letters).
///
/// Nothing in it is ever removed but by [`DeadLetters::discard`] and by a replay. From elsewhere it is
/// the endpoint `sqlite:PATH`, which has dead letters and nothing else.
#[derive(Clone, Debug)]
pub struct DeadLetterTable {
    pool: SqlitePool,
}

impl DeadLetterTable {
    /// The table in this database, which is made if it is not there.
    ///
    /// # Errors
    /// When the database cannot.
    pub async fn open(pool: SqlitePool) -> Result<Self, sqlx::Error> {
        for statement in SCHEMA {
            sqlx::query(statement).execute(&pool).await?;
        }
        Ok(Self { pool })
    }

    /// The table in a database that some service has made.
    pub(super) async fn find_in(path: &Path) -> Result<Self, Error> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .busy_timeout(Duration::from_secs(5));
        let cannot = |error| {
            let message = format!("open the database {}", path.display());
            Error::new(ErrorKind::Connect, message).with_source(error)
        };
        let pool = SqlitePoolOptions::new().max_connections(1);
        let pool = pool.connect_with(options).await.map_err(cannot)?;
        let table = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'dead_letters'";
        let found = sqlx::query(table).fetch_optional(&pool).await;
        if found.map_err(cannot)?.is_some() {
            return Ok(Self { pool });
        }
        let message = format!("{} has no table of dead letters", path.display());
        Err(Error::new(ErrorKind::Config, message))
    }
}

fn failed(error: sqlx::Error) -> Error {
    Error::new(ErrorKind::Connect, "reach the table of dead letters").with_source(error)
}

fn unreadable(what: &'static str) -> Error {
    let message = format!("a dead letter has unreadable {what}");
    Error::new(ErrorKind::Protocol, message)
}

#[async_trait]
impl DeadLetterStore for DeadLetterTable {
    async fn keep(&self, dead_letter: DeadLetter) -> Result<(), Error> {
        let DeadLetter {
            service,
            at,
            rejection,
        } = dead_letter;
        let envelope = rejection.envelope;
        let headers: Vec<(&str, &str)> = envelope
            .headers
            .iter()
            .map(|(name, value)| (&**name, &**value))
            .collect();
        let text = |json: Result<String, _>| json.map_err(|_| unreadable("headers or handlers"));
        let at = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        sqlx::query(
            "INSERT INTO dead_letters
                (service, at, reason, attempts, handlers, pattern, headers, payload)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(service)
        .bind(i64::try_from(at.as_millis()).unwrap_or(i64::MAX))
        .bind(rejection.reason)
        .bind(rejection.attempts)
        .bind(text(serde_json::to_string(&rejection.handlers))?)
        .bind(&*envelope.pattern)
        .bind(text(serde_json::to_string(&headers))?)
        .bind(&*envelope.payload)
        .execute(&self.pool)
        .await
        .map_err(failed)?;
        Ok(())
    }
}

#[async_trait]
impl DeadLetters for DeadLetterTable {
    async fn list(
        &self,
        service: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, DeadLetter)>, Error> {
        let after = after.and_then(|id| id.parse::<i64>().ok());
        let rows = sqlx::query(
            "SELECT * FROM dead_letters WHERE service = ? AND id > ? ORDER BY id LIMIT ?",
        )
        .bind(service)
        .bind(after.unwrap_or(0))
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&self.pool)
        .await
        .map_err(failed)?;
        rows.iter()
            .map(|row| {
                Ok((
                    row.try_get::<i64, _>("id").map_err(failed)?.to_string(),
                    read(row)?,
                ))
            })
            .collect()
    }

    async fn find(&self, service: &str, id: &str) -> Result<Option<DeadLetter>, Error> {
        let Ok(id) = id.parse::<i64>() else {
            return Ok(None);
        };
        let row = sqlx::query("SELECT * FROM dead_letters WHERE service = ? AND id = ?")
            .bind(service)
            .bind(id)
            .fetch_optional(&self.pool)
            .await
            .map_err(failed)?;
        row.as_ref().map(read).transpose()
    }

    async fn discard(&self, service: &str, id: &str) -> Result<bool, Error> {
        let Ok(id) = id.parse::<i64>() else {
            return Ok(false);
        };
        let removed = sqlx::query("DELETE FROM dead_letters WHERE service = ? AND id = ?")
            .bind(service)
            .bind(id)
            .execute(&self.pool)
            .await
            .map_err(failed)?;
        Ok(removed.rows_affected() == 1)
    }
}

fn read(row: &SqliteRow) -> Result<DeadLetter, Error> {
    let text = |column| row.try_get::<String, _>(column).map_err(failed);
    let payload: Vec<u8> = row.try_get("payload").map_err(failed)?;
    let named: Vec<(String, String)> =
        serde_json::from_str(&text("headers")?).map_err(|_| unreadable("headers"))?;
    let mut headers = Headers::new();
    for (name, value) in named {
        headers.insert(name, value);
    }
    let mut envelope = Envelope::new(text("pattern")?, payload);
    envelope.headers = headers;
    let millis: i64 = row.try_get("at").map_err(failed)?;
    let millis = u64::try_from(millis).unwrap_or_default();
    Ok(DeadLetter {
        service: text("service")?,
        at: UNIX_EPOCH + Duration::from_millis(millis),
        rejection: Rejection {
            reason: text("reason")?,
            attempts: row.try_get("attempts").map_err(failed)?,
            handlers: serde_json::from_str(&text("handlers")?)
                .map_err(|_| unreadable("handlers"))?,
            envelope,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_without_the_table_is_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("some.db");
        let missing = DeadLetterTable::find_in(&path).await.unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::Connect);
        assert!(!path.exists());
        std::fs::write(&path, "").unwrap();
        let empty = DeadLetterTable::find_in(&path).await.unwrap_err();
        assert_eq!(empty.kind(), ErrorKind::Config);
        assert_eq!(std::fs::read(&path).unwrap(), b"");
    }
}
