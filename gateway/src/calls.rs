//! Calls to the services on behalf of one request: what they carry, how long they may take, and
//! how long they took.

use std::{
    convert::Infallible,
    fmt::Write,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, HeaderValue, Method, request::Parts},
};
use contracts::Actor;
use nestling::{Client, Message, RpcError, Single, header};
use tokio::time::Instant;
use uuid::Uuid;

/// A request that only reads may take this long.
const READ: Duration = Duration::from_secs(2);
/// One that writes.
const WRITE: Duration = Duration::from_secs(5);

/// Sends messages for one request.
#[derive(Clone, Debug)]
pub(crate) struct Calls {
    traceparent: String,
    actor: Option<String>,
    idempotency_key: Option<String>,
    deadline: Instant,
    timings: Arc<Mutex<Vec<Timing>>>,
}

#[derive(Debug)]
struct Timing {
    pattern: &'static str,
    transport: &'static str,
    took: Duration,
}

impl Calls {
    pub(crate) fn new(method: &Method, headers: &HeaderMap) -> Self {
        let limit = if method.is_safe() { READ } else { WRITE };
        Self {
            traceparent: traceparent(headers),
            actor: None,
            idempotency_key: None,
            deadline: Instant::now() + limit,
            timings: Arc::default(),
        }
    }

    /// Calls that say who asks.
    pub(crate) fn by(&self, actor: &Actor) -> Self {
        Self {
            actor: Some(actor.to_header()),
            ..self.clone()
        }
    }

    /// Calls that say which request they repeat.
    pub(crate) fn with_key(&self, key: Option<String>) -> Self {
        Self {
            idempotency_key: key,
            ..self.clone()
        }
    }

    /// Calls that end within `limit` from now, whatever the request's own deadline.
    pub(crate) fn within(&self, limit: Duration) -> Self {
        Self {
            deadline: Instant::now() + limit,
            ..self.clone()
        }
    }

    /// Calls that leave time for something else.
    pub(crate) fn at_most(&self, limit: Duration) -> Self {
        Self {
            deadline: self.deadline.min(Instant::now() + limit),
            ..self.clone()
        }
    }

    pub(crate) async fn send<M: Message<Shape = Single>>(
        &self,
        client: &Client,
        message: M,
    ) -> Result<M::Reply, RpcError> {
        let started = Instant::now();
        let mut call = client
            .send(message)
            .timeout(self.deadline.saturating_duration_since(started))
            .header(header::TRACEPARENT, &*self.traceparent);
        if let Some(actor) = &self.actor {
            call = call.header(header::ACTOR, &**actor);
        }
        if let Some(key) = &self.idempotency_key {
            call = call.header(header::IDEMPOTENCY_KEY, &**key);
        }
        let reply = call.await;
        let timing = Timing {
            pattern: M::PATTERN,
            transport: client.transport(),
            took: started.elapsed(),
        };
        self.timings
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(timing);
        reply
    }

    pub(crate) fn traceparent(&self) -> &str {
        &self.traceparent
    }

    /// The value of `Server-Timing`: an entry per call, in the order they ended.
    pub(crate) fn server_timing(&self) -> Option<HeaderValue> {
        let timings = self.timings.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        for Timing {
            pattern,
            transport,
            took,
        } in &*timings
        {
            let separator = if text.is_empty() { "" } else { ", " };
            let millis = took.as_secs_f64() * 1000.0;
            write!(
                text,
                "{separator}{pattern};dur={millis:.2};desc=\"{transport}\""
            )
            .ok()?;
        }
        HeaderValue::try_from(text)
            .ok()
            .filter(|text| !text.is_empty())
    }
}

impl<S: Sync> FromRequestParts<S> for Calls {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let calls = parts.extensions.get::<Self>().cloned();
        Ok(calls.unwrap_or_else(|| Self::new(&parts.method, &parts.headers)))
    }
}

/// The caller's trace, or a new one (W3C Trace Context, version 00).
fn traceparent(headers: &HeaderMap) -> String {
    let given = headers
        .get(header::TRACEPARENT)
        .and_then(|value| value.to_str().ok());
    if let Some(given) = given.filter(|given| is_traceparent(given)) {
        return given.to_owned();
    }
    let (trace, span) = (Uuid::new_v4().simple(), Uuid::new_v4().as_u64_pair().0);
    format!("00-{trace}-{span:016x}-01")
}

fn is_traceparent(text: &str) -> bool {
    let hex = |part: &str, length: usize| {
        part.len() == length
            && part
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let not_zero = |part: &str| part.bytes().any(|byte| byte != b'0');
    let parts: Vec<_> = text.split('-').collect();
    let [version, trace, span, flags] = parts[..] else {
        return false;
    };
    version == "00"
        && hex(trace, 32)
        && not_zero(trace)
        && hex(span, 16)
        && not_zero(span)
        && hex(flags, 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_passed_on_when_it_is_one() {
        let given = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", HeaderValue::from_static(given));
        assert_eq!(traceparent(&headers), given);
        for bad in [
            "",
            "00-0-0-01",
            "zz",
            &given.to_uppercase(),
            &given.replace('b', "x"),
        ] {
            assert!(!is_traceparent(bad), "{bad}");
        }
        assert!(is_traceparent(&traceparent(&HeaderMap::new())));
    }
}
