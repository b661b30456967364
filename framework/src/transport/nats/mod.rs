//! NATS: messages and events over core NATS subjects, a queue group per service; events over JetStream
//! where the URL asks for it.
//!
//! `nats://user:password@host:4222,other:4222?events=jetstream`. Both wires are in `docs/wire/nats.md`.

mod client;
mod jetstream;
mod nest;
mod responder;
mod server;
mod source;
mod wire;
mod writer;

use std::{
    error, io,
    sync::Mutex,
    time::{Duration, Instant},
};

use async_nats::{
    Client, ConnectError, ConnectErrorKind, ConnectOptions, Event, PublishError, PublishErrorKind,
    ServerAddr, Subject,
};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::time::{sleep, timeout_at};

use super::{
    Address, Capabilities, Error, ErrorKind, Order, Scheme, Wire, pending::lock, tls::Connector,
};
use crate::{contract::Guarantee, envelope::MAX_HEADER_BYTES};

pub(super) const SCHEME: Scheme = Scheme {
    name: NAME,
    options: &["wire", "mark", EVENTS_OPTION],
    server: |address| Box::pin(server::open(address)),
    client: |address, identity| Box::pin(client::open(address, identity)),
    dead_letters: Some(|address| Box::pin(jetstream::open_dead_letters(address))),
};

const NAME: &str = "nats";
const EVENTS_OPTION: &str = "events";
const PORT: u16 = 4222;
/// How long opening may take, and any other wait that has no deadline of its own.
const PATIENCE: Duration = Duration::from_secs(5);
/// What a message may have in headers, and what it takes to write them: NATS counts them into its
/// largest payload.
const HEADER_ROOM: usize = MAX_HEADER_BYTES + 8 * 1024;
/// How often a silent broker is asked whether it is there. The library gives the connection up when
/// it would ask for a third time without an answer, so after three times as long.
const PING: Duration = Duration::from_secs(3);
/// The longest pause between two attempts to connect again.
const LONGEST_PAUSE_MS: u64 = 2_000;
/// What is wrong with a pattern that the client library refuses.
const NO_SUBJECT: &str = "is no NATS subject: it must not be empty and has no white space and no empty token, not even within the texts of an object";
/// How often the log says that something had to be dropped.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(1);

/// Messages travel over core NATS either way.
fn capabilities(client: &Client, jetstream: bool) -> Capabilities {
    Capabilities {
        events: match jetstream {
            true => Guarantee::AtLeastOnce,
            false => Guarantee::BestEffort,
        },
        replicas_share: true,
        fan_out: true,
        durable: jetstream,
        order: match jetstream {
            true => Order::KeyInReplica,
            false => Order::Subject,
        },
        redelivers: false,
        dead_letters: jetstream,
        cancels: true,
        stream_credit: true,
        detects_absence: true,
        max_payload: max_payload(client),
    }
}

/// The one of two URLs that does what both do, if they name one broker: messages come the same way
/// with durable events and without.
///
/// # Errors
/// When they name one broker and want different things of it.
pub(super) fn joined<'a>(
    one: &'a Address,
    other: &'a Address,
) -> Result<Option<&'a Address>, Error> {
    let broker = |address: &Address| {
        let mut hosts = address.hosts(PORT);
        hosts.sort_unstable();
        (
            hosts,
            address.user().map(str::to_owned),
            address.password().map(str::to_owned),
        )
    };
    if broker(one) != broker(other) {
        return Ok(None);
    }
    let differs = |name: &&str| one.option(name) != other.option(name);
    let mut differing = one.options().chain(other.options()).filter(differs);
    if let Some(name) = differing.find(|name| *name != EVENTS_OPTION) {
        let message = format!(
            "{one} and {other} name one broker, which is listened to once: give both the same {name}"
        );
        return Err(Error::new(ErrorKind::Config, message));
    }
    Ok(Some(match one.option(EVENTS_OPTION) {
        Some(_) => one,
        None => other,
    }))
}

/// The largest payload that fits beside its headers; the broker closes the connection above it.
fn max_payload(client: &Client) -> usize {
    let limit = client.max_payload();
    limit - HEADER_ROOM.min(limit / 2)
}

/// Connects, trying again for a while when the broker is away.
async fn connect(address: &Address, name: String) -> Result<Client, Error> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let servers = servers(address)?;
    let tls = Connector::of(address)?;
    let is_plain = tls.is_none();
    let options = options(address, name, tls)?;
    let failed = |kind| Error::new(kind, format!("connect to {address}"));
    let mut attempt = 1;
    loop {
        let connecting = timeout_at(deadline, options.clone().connect(&servers[..]));
        let error = match connecting.await {
            Ok(Ok(client)) => return Ok(client),
            Ok(Err(error)) => error,
            Err(_) => {
                let within = format!("no answer within {} s", PATIENCE.as_secs());
                return Err(failed(ErrorKind::Connect).with_source(within));
            }
        };
        attempt += 1;
        let pause = pause(attempt);
        let hopeless = !matches!(
            error.kind(),
            ConnectErrorKind::Io | ConnectErrorKind::TimedOut | ConnectErrorKind::Dns
        ) || is_of_tls(&error);
        match error.kind() {
            ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
                return Err(failed(ErrorKind::Refused).with_source(error));
            }
            _ if is_plain && is_of_tls(&error) => {
                let what = "the broker wants TLS: ask for it with tls=on";
                return Err(failed(ErrorKind::Config).with_source(what));
            }
            _ => {}
        }
        if hopeless || tokio::time::Instant::now() + pause >= deadline {
            return Err(failed(ErrorKind::Connect).with_source(error));
        }
        sleep(pause).await;
    }
}

/// Whether there was no agreement on certificates, which will be the same the next time.
fn is_of_tls(error: &ConnectError) -> bool {
    let cause = error::Error::source(error).and_then(|it| it.downcast_ref::<io::Error>());
    let is_invalid = cause.is_some_and(|cause| cause.kind() == io::ErrorKind::InvalidData);
    is_invalid || error.kind() == ConnectErrorKind::Tls
}

/// The wire that a client speaks.
fn client_wire(address: &Address) -> Result<Wire, Error> {
    match address.option("wire") {
        None | Some("native") => Ok(Wire::Native),
        Some("nest") => Ok(Wire::Nest),
        Some(other) => Err(unknown_wire(address, other, "native or nest")),
    }
}

/// Whether a server answers NestJS applications too.
fn answers_nest(address: &Address) -> Result<bool, Error> {
    match address.option("wire") {
        None => Ok(true),
        Some("native") => Ok(false),
        Some(other) => {
            let known = "native; without it a server answers both wires";
            Err(unknown_wire(address, other, known))
        }
    }
}

fn unknown_wire(address: &Address, wire: &str, known: &str) -> Error {
    let message = format!("{address}: wire cannot be {wire:?}, only {known}");
    Error::new(ErrorKind::Config, message)
}

fn servers(address: &Address) -> Result<Vec<ServerAddr>, Error> {
    let config = |what: String| Error::new(ErrorKind::Config, what);
    let hosts = address.hosts(PORT);
    if hosts.is_empty() {
        return Err(config(format!("{address} names no host")));
    }
    let parse = |host: &String| {
        let parsed = host.parse::<ServerAddr>();
        parsed.map_err(|error| config(format!("{address}: host {host}")).with_source(error))
    };
    hosts.iter().map(parse).collect()
}

fn options(
    address: &Address,
    name: String,
    tls: Option<Connector>,
) -> Result<ConnectOptions, Error> {
    let complained = std::sync::Arc::new(Mutex::new(None));
    let shown = address.to_string();
    let options = ConnectOptions::new()
        .name(name)
        .connection_timeout(PATIENCE)
        .ping_interval(PING)
        .reconnect_delay_callback(pause)
        .event_callback(move |event| {
            report(&shown, &event, &complained);
            std::future::ready(())
        });
    let options = match (address.user(), address.password()) {
        (Some(user), Some(password)) => {
            options.user_and_password(user.to_owned(), password.to_owned())
        }
        (Some(token), None) => options.token(token.to_owned()),
        (None, _) => options,
    };
    Ok(match tls {
        Some(tls) => options.require_tls(true).tls_client_config(tls.config()),
        None => options.tls_client_config(Connector::distrustful()?.config()),
    })
}

/// Before the first attempt none, then up to two seconds, no two clients the same.
fn pause(attempt: usize) -> Duration {
    if attempt <= 1 {
        return Duration::ZERO;
    }
    let longest = 25_u64 << attempt.min(10);
    let longest = longest.min(LONGEST_PAUSE_MS);
    Duration::from_millis(fastrand::u64(longest / 2..=longest))
}

/// A token of a subject that nobody else has.
fn unique_token() -> String {
    std::iter::repeat_with(fastrand::alphanumeric)
        .take(22)
        .collect()
}

fn report(address: &str, event: &Event, complained: &Mutex<Option<Instant>>) {
    match event {
        Event::SlowConsumer(_) => {
            let now = Instant::now();
            let mut last = lock(complained);
            if last.is_none_or(|last| now.duration_since(last) >= COMPLAINT_INTERVAL) {
                *last = Some(now);
                tracing::warn!(address, "messages were dropped: they are read too slowly");
            }
        }
        Event::Disconnected => tracing::warn!(address, "connection lost, connecting again"),
        Event::ServerError(_) | Event::ClientError(_) => tracing::warn!(address, %event, "trouble"),
        _ => tracing::debug!(address, %event),
    }
}

/// Returns when the broker has worked off everything sent before. It does so in order, so a message
/// to ourselves says it; a flush of the library only means that it was written.
async fn round_trip(client: &Client) -> Result<(), Error> {
    let inbox = Subject::from(wire::reply_prefix(&unique_token()) + "echo");
    let mut echo = client.subscribe(inbox.clone()).await.map_err(closed)?;
    client.publish(inbox, Bytes::new()).await.map_err(closed)?;
    match echo.next().await {
        Some(_) => Ok(()),
        None => Err(Error::new(ErrorKind::Closed, "the connection was closed")),
    }
}

/// The connection is gone for good: it was closed, here or by the library.
fn closed(error: impl Into<Box<dyn error::Error + Send + Sync>>) -> Error {
    Error::new(ErrorKind::Closed, "the connection is closed").with_source(error)
}

fn not_published(error: PublishError, length: usize, client: &Client) -> Error {
    match error.kind() {
        PublishErrorKind::MaxPayloadExceeded => {
            Error::too_large(length, max_payload(client)).with_source(error)
        }
        PublishErrorKind::InvalidSubject => {
            Error::new(ErrorKind::Config, format!("the pattern {NO_SUBJECT}")).with_source(error)
        }
        PublishErrorKind::Send => closed(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(url: &str) -> Address {
        url.parse().unwrap()
    }

    #[test]
    fn every_host_is_a_server_and_the_password_is_not_among_them() {
        let servers = servers(&address("nats://ada:secret@one,two:4333,[::1]")).unwrap();
        let hosts: Vec<_> = servers
            .iter()
            .map(|s| (s.host().to_owned(), s.port()))
            .collect();
        let expected = [("one", 4222), ("two", 4333), ("::1", 4222)];
        assert_eq!(hosts, expected.map(|(host, port)| (host.to_owned(), port)));
        assert!(servers.iter().all(|server| !server.has_user_pass()));
        assert!(super::servers(&address("nats:")).is_err());
    }

    #[test]
    fn a_client_speaks_one_wire_and_a_server_both() {
        let wire = |url| client_wire(&address(url)).ok();
        assert_eq!(wire("nats://one"), Some(Wire::Native));
        assert_eq!(wire("nats://one?wire=native"), Some(Wire::Native));
        assert_eq!(wire("nats://one?wire=nest"), Some(Wire::Nest));
        assert_eq!(wire("nats://one?wire=morse"), None);
        let nest = |url| answers_nest(&address(url)).map_err(|error| error.to_string());
        assert_eq!(nest("nats://one"), Ok(true));
        assert_eq!(nest("nats://one?wire=native"), Ok(false));
        let refused = nest("nats://one?wire=nest").unwrap_err();
        assert!(refused.contains("only native"), "{refused}");
    }

    #[test]
    fn two_urls_of_one_broker_are_one_if_they_differ_in_events_only() {
        let check = |one: &str, other: &str, expected: &str| {
            let (one, other) = (address(one), address(other));
            for (one, other) in [(&one, &other), (&other, &one)] {
                let joined = joined(one, other).map(|found| found.map(ToString::to_string));
                let joined = joined.unwrap_or_else(|error| Some(error.to_string()));
                let joined = joined.unwrap_or_else(|| "two".to_owned());
                assert!(joined.contains(expected), "{joined}");
            }
        };
        let durable = "nats://one?events=jetstream";
        check("nats://one", durable, durable);
        check("nats://one:4222", durable, durable);
        check("nats://one,two", "nats://two,one", "nats://");
        check("nats://two", durable, "two");
        check("nats://ada:secret@one", durable, "two");
        check("nats://one?wire=native", durable, "the same wire");
        check(
            "nats://one?wire=native",
            "nats://one?events=jetstream&wire=native",
            durable,
        );
    }

    #[test]
    fn pauses_grow_to_a_limit() {
        assert_eq!(pause(1), Duration::ZERO);
        assert!(pause(2) <= Duration::from_millis(100));
        assert!((1_000..=2_000).contains(&pause(usize::MAX).as_millis()));
    }
}
