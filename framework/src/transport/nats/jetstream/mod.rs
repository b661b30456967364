//! Durable events: `nats://…?events=jetstream`.
//!
//! Events are stored in one stream until every service that wants them has settled them; each
//! pattern of a service has a durable consumer that its replicas share. The parts of JetStream's API
//! that this needs are few requests in JSON, written here for servers from 2.9 on.

mod dead_letters;
mod publish;
mod record;
mod settle;
mod source;

use std::{fmt::Write, time::Duration};

use async_nats::{Client, Message, Request, RequestError, RequestErrorKind};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

pub(super) use self::{
    dead_letters::open as open_dead_letters, publish::publish, source::subscribe,
};
use super::{
    super::{Address, Error, ErrorKind},
    EVENTS_OPTION, NO_SUBJECT, PATIENCE, closed,
};

/// Where all events are kept until they are settled.
const EVENTS: &str = "nestling-events";
/// In front of the pattern. Best-effort events travel on the pattern itself, so nobody sees one twice.
const EVENT_SUBJECT: &str = "_nestling.ev.";
/// How often events that were given back or failed have been tried.
const TRIES: &str = "nestling-tries";
const TRIES_SUBJECT: &str = "_nestling.tries.";
const DEAD_LETTERS: &str = "nestling-dead-letters";
const DEAD_SUBJECT: &str = "_nestling.dead.";
const API: &str = "$JS.API.";
/// Makes a stream take a message once, however often it is sent.
const MESSAGE_ID: &str = "Nats-Msg-Id";
/// The broker remembers ids so long.
const REMEMBERED: Duration = Duration::from_secs(120);
/// Records of tries whose events are long gone.
const OLDEST_TRIES: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// How long an event may be in work without a sign of life before somebody else gets it.
const ACK_WAIT: Duration = Duration::from_secs(10);
/// What is kept of a consumer that nobody asks and that is not to outlive its service.
const TEMPORARY: Duration = Duration::from_secs(60);
/// A consumer hands out no more unsettled events than this many times what one replica works on.
const MOST_REPLICAS: usize = 32;
/// The longest name that is written out; longer ones are cut and get a hash.
const LONGEST_NAME: usize = 180;

/// Codes of JetStream's errors.
mod code {
    pub(super) const STREAM_EXISTS: u32 = 10058;
    pub(super) const NO_MESSAGE: u32 = 10037;
    /// Of a consumer, or of its stream.
    pub(super) const MISSING: [u32; 2] = [10014, 10059];
    /// A stream's messages have a largest size, and never more than 64 KiB of headers.
    pub(super) const TOO_LARGE: [u32; 2] = [10054, 10097];
    /// Memory, storage or a limit of the stream is used up.
    pub(super) const EXHAUSTED: [u32; 4] = [10023, 10028, 10047, 10077];
}

/// Whether a URL asks for durable events.
pub(super) fn wanted(address: &Address) -> Result<bool, Error> {
    match address.option(EVENTS_OPTION) {
        None => Ok(false),
        Some("jetstream") => Ok(true),
        Some(other) => {
            let message = format!("{address}: events cannot be {other:?}, only jetstream");
            Err(Error::new(ErrorKind::Config, message))
        }
    }
}

/// Why JetStream did not do what it was asked.
#[derive(Debug)]
enum Failure {
    /// Nobody is there to do it.
    Absent,
    Refused(Refused),
    Transport(Error),
}

/// An error as JetStream says it.
#[derive(Debug, Deserialize)]
struct Refused {
    #[serde(default)]
    err_code: u32,
    #[serde(default)]
    description: String,
}

impl Failure {
    fn is(&self, code: u32) -> bool {
        matches!(self, Self::Refused(refused) if refused.err_code == code)
    }

    fn into_error(self, doing: &str) -> Error {
        match self {
            Self::Absent => {
                let text = format!("{doing}: the broker has no JetStream (nats-server -js)");
                Error::new(ErrorKind::Config, text)
            }
            Self::Refused(refused) => {
                let kind = match refused.err_code {
                    code if code::EXHAUSTED.contains(&code) => ErrorKind::Full,
                    code if code::TOO_LARGE.contains(&code) => ErrorKind::TooLarge,
                    _ => ErrorKind::Protocol,
                };
                let Refused {
                    err_code,
                    description,
                } = refused;
                Error::new(kind, format!("{doing}: {description} ({err_code})"))
            }
            Self::Transport(error) => error,
        }
    }
}

/// Makes the streams, if nobody has yet. What an operator has made or changed stays as it is.
pub(super) async fn create_streams(client: &Client) -> Result<(), Error> {
    let kept_until_settled = json!({
        "retention": "interest",
        "discard": "new",
        "duplicate_window": nanos(REMEMBERED),
    });
    let last_of_each = json!({
        "max_msgs_per_subject": 1,
        "max_age": nanos(OLDEST_TRIES),
        "allow_direct": true,
    });
    let kept = json!({"discard": "new", "allow_direct": true});
    for (name, subject, own) in [
        (EVENTS, EVENT_SUBJECT, kept_until_settled),
        (TRIES, TRIES_SUBJECT, last_of_each),
        (DEAD_LETTERS, DEAD_SUBJECT, kept),
    ] {
        let mut config = json!({
            "name": name,
            "subjects": [format!("{subject}>")],
            "retention": "limits",
            "storage": "file",
            "discard": "old",
            "max_consumers": -1,
            "max_msgs": -1,
            "max_bytes": -1,
            "max_age": 0,
            "num_replicas": 1,
        });
        if let (Some(config), Value::Object(own)) = (config.as_object_mut(), own) {
            config.extend(own);
        }
        match api(client, &format!("STREAM.CREATE.{name}"), &config).await {
            Ok(_) => {}
            Err(failure) if failure.is(code::STREAM_EXISTS) => {}
            Err(failure) => return Err(failure.into_error(&format!("create the stream {name}"))),
        }
    }
    Ok(())
}

/// The durable consumer of one pattern of a service.
#[derive(Clone, Debug)]
struct Consumer {
    name: String,
    filter: String,
    max_in_flight: usize,
    temporary: bool,
}

impl Consumer {
    fn new(service: &str, pattern: &str, max_in_flight: usize, temporary: bool) -> Self {
        Self {
            name: bounded(format!("{}={}", token(service), token(pattern))),
            filter: format!("{EVENT_SUBJECT}{pattern}"),
            max_in_flight,
            temporary,
        }
    }

    /// Makes it, if no other replica has yet.
    async fn create(&self, client: &Client) -> Result<(), Error> {
        self.create_from(client, "new").await
    }

    /// Makes it again: whatever is there may have come since it was lost.
    async fn create_again(&self, client: &Client) -> Result<(), Error> {
        self.create_from(client, "all").await
    }

    async fn create_from(&self, client: &Client, begin: &str) -> Result<(), Error> {
        let found = self.find(client).await?;
        // It cannot be changed; the rest can.
        let begin = found
            .as_ref()
            .and_then(|found| found.pointer("/config/deliver_policy")?.as_str())
            .unwrap_or(begin);
        let mut config = json!({
            "durable_name": self.name,
            "deliver_policy": begin,
            "ack_policy": "explicit",
            "ack_wait": nanos(ACK_WAIT),
            "max_deliver": -1,
            "filter_subject": self.filter,
            "max_ack_pending": self.max_in_flight.saturating_mul(MOST_REPLICAS).min(1 << 20),
        });
        if self.temporary {
            config["inactive_threshold"] = json!(nanos(TEMPORARY));
        }
        let body = json!({"stream_name": EVENTS, "config": config});
        let subject = format!("CONSUMER.DURABLE.CREATE.{EVENTS}.{}", self.name);
        let created = api(client, &subject, &body).await;
        created
            .map_err(|failure| failure.into_error(&format!("create the consumer {}", self.name)))?;
        Ok(())
    }

    /// What the broker knows of it, if it does.
    async fn find(&self, client: &Client) -> Result<Option<Value>, Error> {
        let subject = format!("CONSUMER.INFO.{EVENTS}.{}", self.name);
        match api(client, &subject, &Value::Null).await {
            Ok(found) => Ok(Some(found)),
            Err(failure) if code::MISSING.iter().any(|code| failure.is(*code)) => Ok(None),
            Err(failure) => {
                Err(failure.into_error(&format!("look for the consumer {}", self.name)))
            }
        }
    }

    async fn delete(&self, client: &Client) -> Result<(), Error> {
        let subject = format!("CONSUMER.DELETE.{EVENTS}.{}", self.name);
        let deleted = api(client, &subject, &Value::Null).await;
        deleted
            .map_err(|failure| failure.into_error(&format!("delete the consumer {}", self.name)))?;
        Ok(())
    }
}

/// Asks JetStream's API.
async fn api(client: &Client, subject: &str, body: &Value) -> Result<Value, Failure> {
    let body = match body {
        Value::Null => Bytes::new(),
        body => body.to_string().into(),
    };
    let request = Request::new().payload(body);
    let answer = ask(
        client,
        format!("{API}{subject}"),
        request,
        Instant::now() + PATIENCE,
    )
    .await?;
    read_answer(&answer)
}

fn read_answer(answer: &Message) -> Result<Value, Failure> {
    let unreadable = |error: serde_json::Error| {
        let text = "an answer of JetStream that is no JSON";
        Failure::Transport(Error::new(ErrorKind::Protocol, text).with_source(error))
    };
    let mut value: Value = serde_json::from_slice(&answer.payload).map_err(unreadable)?;
    match value.get_mut("error").map(Value::take) {
        None | Some(Value::Null) => Ok(value),
        Some(error) => Err(Failure::Refused(
            serde_json::from_value(error).map_err(unreadable)?,
        )),
    }
}

async fn ask(
    client: &Client,
    subject: String,
    request: Request,
    limit: Instant,
) -> Result<Message, Failure> {
    let too_late = || Failure::Transport(Error::new(ErrorKind::Timeout, "no answer of JetStream"));
    let length = request.payload.as_ref().map_or(0, Bytes::len);
    let asking = client.send_request(subject, request.timeout(None));
    match timeout_at(limit, asking).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(unanswered(error, length, client)),
        Err(_) => Err(too_late()),
    }
}

fn unanswered(error: RequestError, length: usize, client: &Client) -> Failure {
    Failure::Transport(match error.kind() {
        RequestErrorKind::NoResponders => return Failure::Absent,
        RequestErrorKind::MaxPayloadExceeded => {
            Error::too_large(length, super::max_payload(client)).with_source(error)
        }
        RequestErrorKind::InvalidSubject => {
            Error::new(ErrorKind::Config, format!("the pattern {NO_SUBJECT}")).with_source(error)
        }
        RequestErrorKind::TimedOut => {
            Error::new(ErrorKind::Timeout, "no answer of JetStream").with_source(error)
        }
        RequestErrorKind::Other => closed(error),
    })
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Any text as one token of a subject or of a name: letters, digits and `-` stay, other bytes
/// become `_` and two digits.
fn token(text: &str) -> String {
    let mut token = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' => token.push(char::from(byte)),
            _ => write!(token, "_{byte:02X}").expect("writing to a string does not fail"),
        }
    }
    token
}

/// Names are folders on the broker's disk and end at 255 bytes.
fn bounded(mut name: String) -> String {
    if name.len() > LONGEST_NAME {
        // FNV-1a: the same everywhere and always.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        name.truncate(LONGEST_NAME);
        write!(name, "={hash:016x}").expect("writing to a string does not fail");
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_the_broker_takes_and_differ() {
        assert_eq!(token("user"), "user");
        assert_eq!(token("order.placed"), "order_2Eplaced");
        assert_eq!(token("a_b/ü>"), "a_5Fb_2F_C3_BC_3E");
        let name = |service: &str, pattern: &str| Consumer::new(service, pattern, 1, false).name;
        assert_eq!(name("user", "order.*"), "user=order_2E_2A");
        let long = "x".repeat(200);
        let (one, other) = (name(&long, "a"), name(&long, "b"));
        assert!(one.len() < 250 && one != other);
    }

    #[test]
    fn events_are_core_or_jetstream() {
        let wanted = |url: &str| wanted(&url.parse().unwrap()).ok();
        assert_eq!(wanted("nats://one"), Some(false));
        assert_eq!(wanted("nats://one?events=jetstream"), Some(true));
        assert_eq!(wanted("nats://one?events=kafka"), None);
    }
}
