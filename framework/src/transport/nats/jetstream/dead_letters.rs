//! What services gave up: a stream in which each has a subject of its own.

use std::{sync::Arc, time::Duration};

use async_nats::{Client, HeaderName, Message, Request, message::OutboundMessage};
use async_trait::async_trait;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::{
    super::{
        super::{Address, DeadLetter, DeadLetters, Error, ErrorKind, Rejection},
        PATIENCE, connect, pause, wire,
    },
    API, DEAD_LETTERS, DEAD_SUBJECT, Failure, api, ask, code, create_streams, publish,
    record::Count,
    token,
};
use crate::envelope::{Envelope, Headers};

const CONNECTION_NAME: &str = "nestling dead letters";
/// More of a reason might not fit beside a payload that just did.
const LONGEST_REASON: usize = 2 * 1024;
/// The number of the message with the event, in a dead letter without it.
const EVENT: &str = "dead-event";
/// The broker's own headers, on what it stores and on what it hands out.
const BROKER_HEADERS: &str = "nats-";

pub(in super::super) async fn open(address: Address) -> Result<Arc<dyn DeadLetters>, Error> {
    let client = connect(&address, CONNECTION_NAME.to_owned()).await?;
    create_streams(&client).await?;
    Ok(Arc::new(Stream { client }))
}

fn subject(service: &str) -> String {
    format!("{DEAD_SUBJECT}{}", token(service))
}

/// The subject of the events of dead letters that were too large for one message.
fn event_subject(service: &str) -> String {
    format!("{}.event", subject(service))
}

/// Stores what `service` gave up, trying for as long as it takes.
pub(super) async fn bury(
    client: &Client,
    service: &str,
    consumer: &str,
    count: Count,
    mut rejection: Rejection,
) {
    shorten(&mut rejection.reason);
    let mut dead = DeadLetter::new(service, rejection);
    dead.rejection.envelope.headers.remove(EVENT);
    // Stored twice after a crash in between, it is kept once, if that was not long ago.
    let id = format!("{consumer}/{}", count.sequence);
    let mut attempt = 1;
    while let Err(error) = store(client, &dead, &id).await {
        tracing::error!(%error, service, consumer, "no dead letter stored, trying again");
        attempt += 1;
        sleep(pause(attempt).max(Duration::from_millis(100))).await;
    }
}

async fn store(client: &Client, dead: &DeadLetter, id: &str) -> Result<(), Error> {
    let subject = subject(&dead.service);
    let whole = publish::message(dead.clone().into_envelope(), subject.clone(), id)?;
    match publish::store(client, &whole, Instant::now() + PATIENCE).await {
        // An event that just fitted, and what is said about it.
        Err(error) if error.kind() == ErrorKind::TooLarge => {}
        result => return result.map(drop),
    }
    let event = store_event(client, dead, id).await?;
    let mut dead = dead.clone();
    let pattern = dead.rejection.envelope.pattern;
    dead.rejection.envelope = Envelope::new(pattern, "");
    let mut envelope = dead.into_envelope();
    envelope.headers.set(EVENT, event.to_string());
    let message = publish::message(envelope, subject, id)?;
    let stored = publish::store(client, &message, Instant::now() + PATIENCE);
    stored.await.map(drop)
}

/// Stores an event as it came, in a message of its own.
async fn store_event(client: &Client, dead: &DeadLetter, id: &str) -> Result<u64, Error> {
    let envelope = &dead.rejection.envelope;
    let bare = OutboundMessage {
        subject: event_subject(&dead.service).into(),
        reply: None,
        headers: wire::headers(envelope, false)?,
        payload: envelope.payload.clone(),
    };
    let mut message = bare.clone();
    publish::identify(&mut message, &format!("{id}/event"))?;
    match publish::store(client, &message, Instant::now() + PATIENCE).await {
        // Without its id it is no larger than it came. After a crash it may be there twice.
        Err(error) if error.kind() == ErrorKind::TooLarge => {
            publish::store(client, &bare, Instant::now() + PATIENCE).await
        }
        result => result,
    }
}

fn shorten(reason: &mut String) {
    if reason.len() > LONGEST_REASON {
        let end = reason.floor_char_boundary(LONGEST_REASON);
        reason.truncate(end);
        reason.push('…');
    }
}

struct Stream {
    client: Client,
}

impl Stream {
    /// The first dead letter of a service at or behind a place in the stream.
    async fn next(&self, service: &str, from: u64) -> Result<Option<(u64, DeadLetter)>, Error> {
        let mut from = from.max(1);
        loop {
            let body = json!({"seq": from, "next_by_subj": subject(service)});
            let Some(message) = self.get(&body).await? else {
                return Ok(None);
            };
            let event = match event_of(&message) {
                Some(event) => self.event(service, event).await?,
                None => None,
            };
            let (sequence, found) = read(message, event, service)?;
            if let Some(found) = found {
                return Ok(Some((sequence, found)));
            }
            tracing::warn!(
                service,
                sequence,
                "no dead letter, although it is kept as one"
            );
            from = sequence + 1;
        }
    }

    /// The event of a dead letter that was too large for one message.
    async fn event(&self, service: &str, sequence: u64) -> Result<Option<Message>, Error> {
        let found = self.get(&json!({"seq": sequence})).await?;
        let subject = event_subject(service);
        Ok(found.filter(|found| header(found, "Nats-Subject") == Some(&subject)))
    }

    async fn delete(&self, sequence: u64) -> Result<bool, Error> {
        let body = json!({"seq": sequence, "no_erase": true});
        let subject = format!("STREAM.MSG.DELETE.{DEAD_LETTERS}");
        match api(&self.client, &subject, &body).await {
            Ok(_) => Ok(true),
            // Somebody was faster.
            Err(Failure::Refused(refused)) if refused.is_gone() => Ok(false),
            Err(failure) => Err(failure.into_error("discard a dead letter")),
        }
    }

    async fn get(&self, body: &serde_json::Value) -> Result<Option<Message>, Error> {
        let request = Request::new().payload(body.to_string().into());
        let subject = format!("{API}DIRECT.GET.{DEAD_LETTERS}");
        let limit = Instant::now() + PATIENCE;
        let answer = ask(&self.client, subject, request, limit).await;
        let answer = answer.map_err(|failure| failure.into_error("read a dead letter"))?;
        match answer.status {
            None => Ok(Some(answer)),
            Some(status) if status.as_u16() == 404 => Ok(None),
            Some(status) => {
                let text = format!("read a dead letter: status {status}");
                Err(Error::new(ErrorKind::Protocol, text))
            }
        }
    }
}

#[async_trait]
impl DeadLetters for Stream {
    async fn list(
        &self,
        service: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, DeadLetter)>, Error> {
        let mut from = match after {
            None => 1,
            Some(id) => sequence(id)
                .ok_or_else(|| Error::new(ErrorKind::Config, format!("no id: {id:?}")))?
                .saturating_add(1),
        };
        let mut found = Vec::new();
        while found.len() < limit {
            let Some((sequence, letter)) = self.next(service, from).await? else {
                break;
            };
            from = sequence.saturating_add(1);
            found.push((id(sequence), letter));
        }
        Ok(found)
    }

    async fn find(&self, service: &str, id: &str) -> Result<Option<DeadLetter>, Error> {
        let Some(sequence) = sequence(id) else {
            return Ok(None);
        };
        let found = self.next(service, sequence).await?;
        Ok(found.and_then(|(at, letter)| (at == sequence).then_some(letter)))
    }

    async fn discard(&self, service: &str, id: &str) -> Result<bool, Error> {
        let Some(sequence) = sequence(id) else {
            return Ok(false);
        };
        let body = json!({"seq": sequence});
        let Some(message) = self.get(&body).await? else {
            return Ok(false);
        };
        if header(&message, "Nats-Subject") != Some(&subject(service)) {
            return Ok(false);
        }
        let is_first = self.delete(sequence).await?;
        if let Some(event) = event_of(&message)
            && self.event(service, event).await?.is_some()
        {
            self.delete(event).await?;
        }
        Ok(is_first)
    }
}

impl super::Refused {
    fn is_gone(&self) -> bool {
        // Servers before 2.10 have no code of their own for it.
        self.err_code == code::NO_MESSAGE || self.description.contains("no message found")
    }
}

/// Padded, so that ids sort as text.
fn id(sequence: u64) -> String {
    format!("{sequence:020}")
}

fn sequence(id: &str) -> Option<u64> {
    let digits = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| id.parse().ok()).flatten()
}

fn header<'a>(message: &'a Message, name: &'static str) -> Option<&'a str> {
    let headers = message.headers.as_ref()?;
    Some(headers.get(HeaderName::from_static(name))?.as_str())
}

/// Where the event of a dead letter is, if it is not in the same message.
fn event_of(message: &Message) -> Option<u64> {
    header(message, EVENT)?.parse().ok()
}

/// A stored message, and what it is. Its event may have been read apart.
fn read(
    message: Message,
    event: Option<Message>,
    service: &str,
) -> Result<(u64, Option<DeadLetter>), Error> {
    let place = header(&message, "Nats-Sequence").and_then(|place| place.parse().ok());
    let Some(place) = place else {
        let text = "read a dead letter: the broker does not say which it is";
        return Err(Error::new(ErrorKind::Protocol, text));
    };
    if event_of(&message).is_some() && event.is_none() {
        return Ok((place, None));
    }
    let letter = DeadLetter::from_envelope(envelope(message, Default::default()));
    let letter = letter.map(|mut letter| {
        // Text of a header may have lost white space at its ends.
        service.clone_into(&mut letter.service);
        if let Some(event) = event {
            let pattern = letter.rejection.envelope.pattern;
            letter.rejection.envelope = envelope(event, pattern);
        }
        letter
    });
    Ok((place, letter))
}

/// The envelope of a message that was stored, without what the broker has added.
pub(super) fn envelope(message: Message, pattern: bytestring::ByteString) -> Envelope {
    let (received, _) = wire::received_headers(&message);
    let own = received.iter().filter(|(name, _)| !is_of_broker(name));
    // The client library keeps them in no order; two reads of one message shall be equal.
    let mut own: Vec<_> = own.collect();
    own.sort();
    let mut headers = Headers::new();
    for (name, value) in own {
        headers.insert(name.clone(), value.clone());
    }
    Envelope {
        pattern,
        headers,
        payload: message.payload,
        deadline: None,
    }
}

fn is_of_broker(name: &str) -> bool {
    let start = name.get(..BROKER_HEADERS.len());
    start.is_some_and(|start| start.eq_ignore_ascii_case(BROKER_HEADERS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_as_text_and_nothing_else_is_one() {
        assert!(id(9) < id(10));
        assert_eq!(sequence(&id(10)), Some(10));
        for strange in ["", "x", "-1", "+1", "99999999999999999999999"] {
            assert_eq!(sequence(strange), None, "{strange}");
        }
    }

    #[test]
    fn a_long_reason_is_cut_between_letters() {
        let mut reason = "ü".repeat(LONGEST_REASON);
        reason.insert(0, 'x');
        shorten(&mut reason);
        assert!(reason.len() <= LONGEST_REASON + '…'.len_utf8());
        assert!(reason.ends_with("ü…"));
    }
}
