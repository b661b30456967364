//! Publishing: an event is out when the broker has stored it.

use std::time::Duration;

use async_nats::{Client, HeaderMap, HeaderName, HeaderValue, Request, message::OutboundMessage};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{
    super::{
        super::{Error, ErrorKind},
        PATIENCE, pause, unique_token, wire,
    },
    EVENT_SUBJECT, Failure, MESSAGE_ID, ask, create_streams, read_answer,
};
use crate::envelope::{Envelope, header};

/// After so long without an answer it is sent again, under the same id.
const TRY_LIMIT: Duration = Duration::from_secs(2);
/// Between two attempts of who has no limit.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

/// Sends an event until the broker has it, or until `limit`.
pub(in super::super) async fn publish(
    client: &Client,
    mut envelope: Envelope,
    limit: Instant,
) -> Result<(), Error> {
    // It waits as long as it has to.
    envelope.deadline = None;
    let id = id(&envelope);
    let subject = format!("{EVENT_SUBJECT}{}", envelope.pattern);
    store(client, &message(envelope, subject, &id)?, limit)
        .await
        .map(drop)
}

/// What the broker knows an event by, so that one sent twice is stored once.
fn id(envelope: &Envelope) -> String {
    let headers = &envelope.headers;
    match (headers.get(header::EVENT_ID), headers.get(header::ONLY)) {
        // Ids are their senders' choice: two facts about one thing may share one.
        (Some(id), None) => format!("{id}/{}", envelope.pattern),
        // A replay is meant to be seen again.
        _ => unique_token(),
    }
}

pub(super) fn message(
    envelope: Envelope,
    subject: String,
    id: &str,
) -> Result<OutboundMessage, Error> {
    let mut message = wire::event(envelope)?;
    message.subject = subject.into();
    identify(&mut message, id)?;
    Ok(message)
}

/// Has a stream take the message once.
pub(super) fn identify(message: &mut OutboundMessage, id: &str) -> Result<(), Error> {
    let value = id.parse::<HeaderValue>().map_err(|error| {
        Error::new(ErrorKind::Config, "an id that NATS cannot carry").with_source(error)
    })?;
    message
        .headers
        .get_or_insert_with(HeaderMap::new)
        .insert(HeaderName::from_static(MESSAGE_ID), value);
    Ok(())
}

/// Sends a message until a stream has it, or until `limit`; returns its number there.
pub(super) async fn store(
    client: &Client,
    message: &OutboundMessage,
    limit: Instant,
) -> Result<u64, Error> {
    let doing = || format!("store a message on {}", message.subject);
    let mut attempt = 1;
    loop {
        let error = match store_once(client, message, limit).await {
            Ok(sequence) => return Ok(sequence),
            // There was a stream when we connected: the broker has lost its data, or is starting.
            Err(Failure::Absent) => match create_streams(client).await {
                Ok(()) => Failure::Absent.into_error(&doing()),
                Err(error) => error,
            },
            Err(Failure::Transport(error)) if error.kind() == ErrorKind::Timeout => error,
            Err(failure) => return Err(failure.into_error(&doing())),
        };
        attempt += 1;
        let pause = pause(attempt);
        if Instant::now() + pause >= limit {
            return Err(error);
        }
        sleep(pause).await;
    }
}

/// Sends a message until a stream has it, for as long as it takes.
pub(super) async fn store_patiently(client: &Client, message: &OutboundMessage, doing: &str) {
    let mut attempt = 1;
    while let Err(error) = store(client, message, Instant::now() + PATIENCE).await {
        tracing::error!(%error, doing, "not stored, trying again");
        attempt += 1;
        sleep(pause(attempt).max(SHORTEST_PAUSE)).await;
    }
}

async fn store_once(
    client: &Client,
    message: &OutboundMessage,
    limit: Instant,
) -> Result<u64, Failure> {
    let mut request = Request::new().payload(message.payload.clone());
    if let Some(headers) = &message.headers {
        request = request.headers(headers.clone());
    }
    let limit = limit.min(Instant::now() + TRY_LIMIT);
    let subject = message.subject.to_string();
    let answer = ask(client, subject, request, limit).await?;
    let sequence = read_answer(&answer)?.get("seq").and_then(Value::as_u64);
    sequence.ok_or_else(|| {
        let text = "an acknowledgement that does not say of what";
        Failure::Transport(Error::new(ErrorKind::Protocol, text))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_one_id_and_a_replay_another() {
        let mut envelope = Envelope::new("order.placed", "x");
        envelope.headers.set(header::EVENT_ID, "e1");
        assert_eq!(id(&envelope), "e1/order.placed");
        envelope.headers.set(header::ONLY, "user/0");
        assert_ne!(id(&envelope), id(&envelope));
    }
}
