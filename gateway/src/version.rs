//! Versions of what is read and changed: `ETag`, `If-None-Match`, `If-Match`.

use axum::{
    Json,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use contracts::Reason;
use serde::Serialize;

use crate::error::Problem;

fn tag(version: u64) -> String {
    format!("\"{version}\"")
}

/// A body with its version, or 304 to a reader who has that version.
pub(crate) fn tagged(version: u64, body: impl Serialize, request: &HeaderMap) -> Response {
    let tag = tag(version);
    let known = request
        .get(header::IF_NONE_MATCH)
        .and_then(|value| value.to_str().ok());
    let is_known = known.is_some_and(|known| {
        known == "*"
            || known
                .split(',')
                .any(|one| one.trim().trim_start_matches("W/") == tag)
    });
    let mut response = if is_known {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        Json(body).into_response()
    };
    if let Ok(tag) = HeaderValue::try_from(tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

/// The version a writer has read: from `If-Match`, else from the body's `expected_version`.
///
/// # Errors
/// `precondition_required` when it is in neither, `version_conflict` for a tag that is not ours.
pub(crate) fn expected(request: &HeaderMap, in_body: Option<u64>) -> Result<u64, Problem> {
    let Some(tag) = request.get(header::IF_MATCH) else {
        return in_body.ok_or_else(|| {
            Problem::new(
                Reason::PreconditionRequired,
                "say which version is changed: If-Match",
            )
        });
    };
    let version = tag.to_str().ok().and_then(|tag| {
        let version = tag.strip_prefix('"')?.strip_suffix('"')?;
        version.parse().ok()
    });
    version.ok_or_else(|| Problem::new(Reason::VersionConflict, "If-Match names no known version"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_says_what_was_read() {
        let mut headers = HeaderMap::new();
        assert!(expected(&headers, None).is_err());
        assert_eq!(expected(&headers, Some(3)), Ok(3));
        headers.insert(header::IF_MATCH, HeaderValue::from_static("\"7\""));
        assert_eq!(expected(&headers, Some(3)), Ok(7));
        headers.insert(header::IF_MATCH, HeaderValue::from_static("7"));
        assert!(expected(&headers, None).is_err());
    }

    #[test]
    fn a_reader_who_has_the_version_gets_no_body() {
        let mut headers = HeaderMap::new();
        headers.insert(
            header::IF_NONE_MATCH,
            HeaderValue::from_static("\"1\", \"2\""),
        );
        assert_eq!(tagged(2, 0, &headers).status(), StatusCode::NOT_MODIFIED);
        assert_eq!(tagged(3, 0, &headers).status(), StatusCode::OK);
    }
}
