//! What happens to every request and response, whatever its route.

use std::{any::Any, time::Instant};

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use tracing::Instrument;
use uuid::Uuid;

use crate::{calls::Calls, error};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
const REFERRER_POLICY: HeaderName = HeaderName::from_static("referrer-policy");
/// The longest id of a request that is taken over from its sender.
const LONGEST_ID: usize = 64;

/// Names the request, measures it, explains errors and adds the headers all responses have.
pub(crate) async fn edge(mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let request_id = request_id(request.headers());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let calls = Calls::new(&method, request.headers());
    request.extensions_mut().insert(calls.clone());
    let span = tracing::info_span!("request", id = request_id, trace = calls.traceparent());
    let response = next.run(request).instrument(span.clone()).await;

    let mut response = error::explain(response, &request_id);
    let status = response.status();
    let millis = started.elapsed().as_millis();
    span.in_scope(|| tracing::info!(%method, path, status = status.as_u16(), millis, "answered"));
    let headers = response.headers_mut();
    for (name, value) in [
        (REQUEST_ID, HeaderValue::try_from(request_id).ok()),
        (TRACEPARENT, HeaderValue::try_from(calls.traceparent()).ok()),
        (SERVER_TIMING, calls.server_timing()),
    ] {
        if let Some(value) = value {
            headers.insert(name, value);
        }
    }
    secure(headers);
    response
}

fn secure(headers: &mut HeaderMap) {
    let policy = "default-src 'none'; frame-ancestors 'none'";
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    // Personal unless its route says otherwise.
    let cache = headers.entry(header::CACHE_CONTROL);
    cache.or_insert(HeaderValue::from_static("private, no-store"));
}

/// The sender's id of the request if it is harmless, else a new one.
fn request_id(headers: &HeaderMap) -> String {
    let given = headers
        .get(REQUEST_ID)
        .and_then(|value| value.to_str().ok());
    let harmless = |id: &&str| {
        (1..=LONGEST_ID).contains(&id.len())
            && id
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    match given.filter(harmless) {
        Some(given) => given.to_owned(),
        None => Uuid::now_v7().to_string(),
    }
}

/// The answer when a handler panicked, which is our fault and nobody's business.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the layer that calls it gives it away"
)]
pub(crate) fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    tracing::error!(panic = text.unwrap_or("no text"), "a handler panicked");
    StatusCode::INTERNAL_SERVER_ERROR.into_response()
}
