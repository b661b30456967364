//! What goes wrong, as HTTP tells it (RFC 9457): the only table from reasons and codes to statuses.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use contracts::Reason;
use nestling::{
    Code, RpcError,
    transport::{self, ErrorKind},
};
use serde_json::{Map, Value, json};

/// A refusal or a failure. The edge adds which request it belongs to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: Option<String>,
    /// Members beside the usual ones, `errors` among them.
    more: Map<String, Value>,
}

/// What `Retry-After` says, in seconds: about as long as a service needs to start, or a circuit breaker
/// to try again.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// The status of a reason, and its name.
fn of_reason(reason: Reason) -> (u16, &'static str) {
    match reason {
        Reason::Malformed => (400, "malformed"),
        Reason::IdempotencyKeyMissing => (400, "idempotency_key_missing"),
        Reason::IdempotencyKeyReused => (422, "idempotency_key_reused"),
        Reason::PayloadTooLarge => (413, "payload_too_large"),
        Reason::UnsupportedMedia => (415, "unsupported_media"),
        Reason::Validation => (422, "validation"),
        Reason::Unauthenticated => (401, "unauthenticated"),
        Reason::Forbidden => (403, "forbidden"),
        Reason::NotFound => (404, "not_found"),
        Reason::EmailTaken => (409, "email_taken"),
        Reason::AlreadyReviewed => (409, "already_reviewed"),
        Reason::PaymentDeclined => (402, "payment_declined"),
        Reason::InsufficientCredit => (402, "insufficient_credit"),
        Reason::StateConflict => (409, "state_conflict"),
        Reason::OutOfStock => (409, "out_of_stock"),
        Reason::PriceChanged => (409, "price_changed"),
        Reason::NotCancellable => (409, "not_cancellable"),
        Reason::PreconditionRequired => (428, "precondition_required"),
        Reason::InProgress => (409, "in_progress"),
        Reason::VersionConflict => (412, "version_conflict"),
        Reason::RateLimited => (429, "rate_limited"),
        Reason::Unavailable => (503, "unavailable"),
        Reason::CircuitOpen => (503, "circuit_open"),
        Reason::Timeout => (504, "timeout"),
        // A reason that this gateway does not know yet is a fault of its own.
        _ => (500, "internal"),
    }
}

/// The reason that stands for an error without one.
fn of_code(code: Code) -> Reason {
    match code {
        Code::InvalidArgument => Reason::Malformed,
        Code::Unauthenticated => Reason::Unauthenticated,
        Code::PermissionDenied => Reason::Forbidden,
        Code::NotFound => Reason::NotFound,
        Code::AlreadyExists | Code::FailedPrecondition => Reason::StateConflict,
        Code::Aborted => Reason::InProgress,
        Code::ResourceExhausted => Reason::RateLimited,
        Code::Unavailable => Reason::Unavailable,
        Code::DeadlineExceeded => Reason::Timeout,
        _ => Reason::Internal,
    }
}

/// What HTTP itself refuses, before a route has its say.
fn of_status(status: StatusCode) -> &'static str {
    match status {
        StatusCode::BAD_REQUEST => "malformed",
        StatusCode::NOT_FOUND => "not_found",
        StatusCode::METHOD_NOT_ALLOWED => "method_not_allowed",
        StatusCode::REQUEST_TIMEOUT => "timeout",
        StatusCode::PAYLOAD_TOO_LARGE => "payload_too_large",
        StatusCode::UNSUPPORTED_MEDIA_TYPE => "unsupported_media",
        StatusCode::UNPROCESSABLE_ENTITY => "validation",
        status if status.is_client_error() => "malformed",
        _ => "internal",
    }
}

impl Problem {
    pub(crate) fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            detail: Some(detail.into()),
            ..Self::plain(reason)
        }
    }

    fn plain(reason: Reason) -> Self {
        let (status, code) = of_reason(reason);
        Self {
            status: StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            code,
            detail: None,
            more: Map::new(),
        }
    }

    /// One field that is wrong.
    pub(crate) fn field(pointer: &str, code: &str, message: &str) -> Self {
        let error = json!({ "pointer": pointer, "code": code, "message": message });
        Self::new(Reason::Validation, "fields are not valid").with("errors", json!([error]))
    }

    /// For a response that has a status and nothing that explains it.
    pub(crate) fn of_status(status: StatusCode) -> Self {
        Self {
            status,
            code: of_status(status),
            detail: None,
            more: Map::new(),
        }
    }

    #[must_use]
    pub(crate) fn with(mut self, name: &str, value: Value) -> Self {
        self.more.insert(name.to_owned(), value);
        self
    }

    /// The same, with pointers that start where the request's body starts: services point into
    /// their message, which holds the body under `prefix`.
    #[must_use]
    pub(crate) fn without_prefix(mut self, prefix: &str) -> Self {
        let errors = self.more.get_mut("errors").and_then(Value::as_array_mut);
        for error in errors.into_iter().flatten() {
            let Some(Value::String(pointer)) = error.get_mut("pointer") else {
                continue;
            };
            if let Some(rest) = pointer.strip_prefix(prefix) {
                *pointer = rest.to_owned();
            }
        }
        self
    }

    /// The body, as the answer to the request of this id.
    pub(crate) fn body(&self, request_id: &str) -> Value {
        let title = self.status.canonical_reason().unwrap_or("Error");
        let mut body = json!({
            "type": format!("/problems/{}", self.code),
            "title": title,
            "status": self.status.as_u16(),
            "detail": self.detail.as_deref().unwrap_or(title),
            "instance": request_id,
            "code": self.code,
            "errors": [],
        });
        for (name, value) in &self.more {
            body[name] = value.clone();
        }
        body
    }
}

/// A reason of the shop is told with its words; of anything else only the kind.
impl From<RpcError> for Problem {
    fn from(error: RpcError) -> Self {
        let kind = transport::Error::behind(&error).map(transport::Error::kind);
        let is_open = kind == Some(ErrorKind::CircuitOpen);
        let reason = is_open
            .then_some(Reason::CircuitOpen)
            .or_else(|| Reason::of(&error));
        let mut problem = Self::plain(reason.unwrap_or_else(|| of_code(error.code)));
        if is_open {
            // The breaker has said so when it opened.
            tracing::debug!(%error, "not asked");
        } else if problem.status.is_server_error() {
            tracing::warn!(?error, "a service failed");
        } else if reason.is_some() {
            problem.detail = Some(error.message);
            if let Some(Value::Object(details)) = error.details {
                let taken = [
                    "type", "title", "status", "detail", "instance", "code", "reason",
                ];
                let free = details
                    .into_iter()
                    .filter(|(name, _)| !taken.contains(&&**name));
                problem.more.extend(free);
            }
        }
        problem
    }
}

/// The body is written by the edge, which knows the request's id.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        let may_pass = [
            StatusCode::SERVICE_UNAVAILABLE,
            StatusCode::TOO_MANY_REQUESTS,
        ];
        if may_pass.contains(&self.status) {
            let headers = response.headers_mut();
            headers.insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// Gives a response that is an error the body that says so.
pub(crate) fn explain(response: Response, request_id: &str) -> Response {
    let status = response.status();
    let problem = match response.extensions().get::<Problem>() {
        Some(problem) => problem.clone(),
        None if is_bare(&response) => Problem::of_status(status),
        None => return response,
    };
    let mut explained = (status, Json(problem.body(request_id))).into_response();
    let headers = explained.headers_mut();
    // What the route or axum said besides, such as `Allow` or `Location`, stays.
    for (name, value) in response.headers() {
        if name != header::CONTENT_TYPE && name != header::CONTENT_LENGTH {
            headers.append(name, value.clone());
        }
    }
    let problem_json = HeaderValue::from_static("application/problem+json");
    headers.insert(header::CONTENT_TYPE, problem_json);
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    explained
}

/// Whether it is an error that no route has written: its own ones are JSON.
fn is_bare(response: &Response) -> bool {
    let status = response.status();
    let json = HeaderValue::from_static("application/json");
    (status.is_client_error() || status.is_server_error())
        && response.headers().get(header::CONTENT_TYPE) != Some(&json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_reasons_are_told_and_foreign_texts_are_not() {
        let problem = Problem::from(Reason::OutOfStock.error_with("too few", "short", json!([1])));
        let body = problem.body("r1");
        assert_eq!(body["type"], "/problems/out_of_stock");
        assert_eq!(
            (&body["status"], &body["code"]),
            (&json!(409), &json!("out_of_stock"))
        );
        assert_eq!(
            (&body["detail"], &body["short"]),
            (&json!("too few"), &json!([1]))
        );
        assert_eq!(body["instance"], "r1");

        for error in [
            RpcError::internal("secret"),
            RpcError::unknown("secret"),
            RpcError::invalid_argument("secret"),
            Reason::Internal.error("secret"),
            RpcError::unavailable("secret"),
        ] {
            assert!(
                !Problem::from(error)
                    .body("r1")
                    .to_string()
                    .contains("secret")
            );
        }
    }

    #[test]
    fn pointers_are_into_the_body() {
        let problem = Problem::field("/card/pan", "luhn", "a card number").without_prefix("/card");
        assert_eq!(problem.body("r1")["errors"][0]["pointer"], "/pan");
    }
}
