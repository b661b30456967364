//! What routes read from a request: its body, its query, its ids and its keys.

use std::str::FromStr;

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Query, Request},
    http::{HeaderMap, StatusCode, header, request::Parts},
    response::IntoResponse,
};
use contracts::Reason;
use serde::de::DeserializeOwned;
use serde_json::error::Category;

use crate::error::Problem;

const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// The longest key of a request.
const LONGEST_KEY: usize = 200;

/// A JSON body.
pub(crate) struct Body<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        if !is_json(request.headers()) {
            let detail = "the body must be application/json";
            return Err(Problem::new(Reason::UnsupportedMedia, detail));
        }
        let bytes =
            Bytes::from_request(request, state)
                .await
                .map_err(|rejection| match rejection.into_response().status() {
                    StatusCode::PAYLOAD_TOO_LARGE => {
                        Problem::new(Reason::PayloadTooLarge, "the body is larger than 256 KiB")
                    }
                    _ => Problem::new(Reason::Malformed, "the body could not be read"),
                })?;
        serde_json::from_slice(&bytes)
            .map(Self)
            .map_err(|error| unfit(&error))
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let given = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let kind = given.and_then(|given| given.split(';').next());
    kind.is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

/// Says what was expected, and repeats nothing that was sent: it may be a card's number.
fn unfit(error: &serde_json::Error) -> Problem {
    let (line, column) = (error.line(), error.column());
    if error.classify() != Category::Data {
        let detail = format!("the body is not JSON: line {line}, column {column}");
        return Problem::new(Reason::Malformed, detail);
    }
    let text = error.to_string();
    let missing = text
        .strip_prefix("missing field `")
        .and_then(|rest| rest.split('`').next());
    if let Some(field) = missing {
        return Problem::field(&format!("/{field}"), "required", "must be given");
    }
    let expected = text
        .split_once("expected ")
        .and_then(|(_, rest)| rest.split(" at line").next());
    let message = match expected {
        Some(expected) => format!("line {line}, column {column}: expected {expected}"),
        None => format!("line {line}, column {column}: not of the expected form"),
    };
    Problem::field("", "type", &message)
}

/// What is behind the `?`.
pub(crate) struct Search<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Search<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(query)) => Ok(Self(query)),
            Err(_) => {
                let detail = "a parameter of the query is not valid; /openapi.json lists them";
                Err(Problem::new(Reason::Validation, detail))
            }
        }
    }
}

/// Reads an id from a path or a query.
pub(crate) fn id<T: FromStr>(text: &str, name: &str) -> Result<T, Problem> {
    let pointer = format!("/{name}");
    text.parse()
        .map_err(|_| Problem::field(&pointer, "id", "not an id of this kind"))
}

/// The sender's word that two requests are one, where the request has it.
pub(crate) struct OptionalKey(pub(crate) Option<String>);

impl<S: Sync> FromRequestParts<S> for OptionalKey {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let Some(given) = parts.headers.get(IDEMPOTENCY_KEY) else {
            return Ok(Self(None));
        };
        let key = given
            .to_str()
            .ok()
            .filter(|key| (1..=LONGEST_KEY).contains(&key.len()));
        let key = key.ok_or_else(|| {
            Problem::new(
                Reason::Malformed,
                "Idempotency-Key: 1 to 200 ASCII characters",
            )
        })?;
        Ok(Self(Some(key.to_owned())))
    }
}

/// The same where it must be there.
pub(crate) struct IdempotencyKey(pub(crate) String);

impl<S: Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let OptionalKey(key) = OptionalKey::from_request_parts(parts, state).await?;
        key.map(Self).ok_or_else(|| {
            Problem::new(
                Reason::IdempotencyKeyMissing,
                "the Idempotency-Key header is required",
            )
        })
    }
}
