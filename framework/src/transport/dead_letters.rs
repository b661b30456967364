//! Dead letters: events that a service could not handle, kept until somebody looks at them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;

use super::{ClientTransport, Error, Rejection};
use crate::envelope::{Envelope, Headers, header};

/// Headers of the envelope that a dead letter is stored as, beside those of the event.
mod mark {
    pub(super) const SERVICE: &str = "dead-service";
    pub(super) const REASON: &str = "dead-reason";
    pub(super) const ATTEMPTS: &str = "dead-attempts";
    pub(super) const HANDLERS: &str = "dead-handlers";
    pub(super) const AT: &str = "dead-at";
}

/// An event that one service gave up on, with everything it was sent with.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// The service that gave up.
    pub service: String,
    /// When it did.
    pub at: SystemTime,
    /// Why, how often it was tried, which handlers failed, and the event itself.
    pub rejection: Rejection,
}

impl DeadLetter {
    /// What `service` gave up on just now.
    pub fn new(service: impl Into<String>, rejection: Rejection) -> Self {
        Self {
            service: service.into(),
            at: SystemTime::now(),
            rejection,
        }
    }

    /// The envelope it is stored as: the event's own, with headers that say what became of it.
    pub fn into_envelope(self) -> Envelope {
        let Self {
            service,
            at,
            rejection,
        } = self;
        let Rejection {
            reason,
            attempts,
            handlers,
            mut envelope,
        } = rejection;
        let millis = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let headers = &mut envelope.headers;
        headers.set(header::PATTERN, envelope.pattern.clone());
        headers.set(mark::SERVICE, service);
        headers.set(mark::REASON, one_line(&reason));
        headers.set(mark::ATTEMPTS, attempts.to_string());
        headers.set(mark::HANDLERS, places(&handlers));
        headers.set(mark::AT, millis.as_millis().to_string());
        envelope.deadline = None;
        envelope
    }

    /// Reads what [`into_envelope`](Self::into_envelope) made; `None` if it is something else.
    pub fn from_envelope(mut envelope: Envelope) -> Option<Self> {
        let headers = &mut envelope.headers;
        let service = headers.remove(mark::SERVICE)?;
        let reason = headers.remove(mark::REASON)?;
        let attempts = headers.remove(mark::ATTEMPTS)?.parse().ok()?;
        let handlers = parse_places(&headers.remove(mark::HANDLERS)?)?;
        let millis = headers.remove(mark::AT)?.parse().ok()?;
        if let Some(pattern) = headers.remove(header::PATTERN) {
            envelope.pattern = pattern;
        }
        Some(Self {
            service: service.into(),
            at: UNIX_EPOCH.checked_add(Duration::from_millis(millis))?,
            rejection: Rejection {
                reason: reason.into(),
                attempts,
                handlers,
                envelope,
            },
        })
    }

    /// The event once more, for the handlers that failed and for nobody else.
    fn into_replay(self) -> Envelope {
        let Rejection {
            handlers,
            mut envelope,
            ..
        } = self.rejection;
        let only = format!("{}/{}", self.service, places(&handlers));
        envelope.headers.set(header::ONLY, only);
        envelope
    }
}

/// Headers are lines on some brokers.
fn one_line(reason: &str) -> String {
    reason.replace(['\r', '\n', '\0'], " ")
}

fn places(handlers: &[usize]) -> String {
    let places: Vec<_> = handlers.iter().map(usize::to_string).collect();
    places.join(",")
}

fn parse_places(text: &str) -> Option<Vec<usize>> {
    text.split(',')
        .filter(|place| !place.is_empty())
        .map(|place| place.parse().ok())
        .collect()
}

/// Which of a service's handlers a replayed event is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Only {
    /// It is no replay: all of them.
    All,
    /// It is for another service.
    None,
    /// Those at these places.
    Some(Vec<usize>),
}

impl Only {
    /// What the headers of an event say to `service`.
    pub(crate) fn of(headers: &Headers, service: &str) -> Self {
        let Some(only) = headers.get(header::ONLY) else {
            return Self::All;
        };
        match only.rsplit_once('/') {
            Some((name, places)) if name == service => {
                parse_places(places).map_or(Self::None, Self::Some)
            }
            _ => Self::None,
        }
    }

    /// Whether the handler at `place` is meant.
    pub(crate) fn means(&self, place: usize) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Some(places) => places.contains(&place),
        }
    }
}

/// The dead letters that a transport keeps, by service.
///
/// Ids are the transport's own and sort from old to new.
#[async_trait]
pub trait DeadLetters: Send + Sync + 'static {
    /// Up to `limit` dead letters of `service` with their ids, oldest first, those behind `after`.
    ///
    /// # Errors
    /// When the broker cannot be asked.
    async fn list(
        &self,
        service: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, DeadLetter)>, Error>;

    /// One of them.
    ///
    /// # Errors
    /// When the broker cannot be asked.
    async fn find(&self, service: &str, id: &str) -> Result<Option<DeadLetter>, Error>;

    /// Removes one; false if there was none.
    ///
    /// # Errors
    /// When the broker cannot be asked, or does not confirm.
    async fn discard(&self, service: &str, id: &str) -> Result<bool, Error>;
}

/// A place for dead letters that is no transport's: events go there that were given up and arrived by
/// a transport that keeps none.
#[async_trait]
pub trait DeadLetterStore: DeadLetters {
    /// Keeps one; returns when it is safe.
    ///
    /// # Errors
    /// When it is not stored, or may not be.
    async fn keep(&self, dead_letter: DeadLetter) -> Result<(), Error>;
}

/// Gives a dead letter to the handlers that failed once more, and removes it; false if there was none.
///
/// It is published first: a crash in between leaves it where it is, and handlers of such events
/// expect to see one twice.
///
/// # Errors
/// When the broker cannot be asked, or does not confirm.
pub async fn replay(
    dead_letters: &dyn DeadLetters,
    client: &dyn ClientTransport,
    service: &str,
    id: &str,
) -> Result<bool, Error> {
    let Some(found) = dead_letters.find(service, id).await? else {
        return Ok(false);
    };
    client.publish(found.into_replay()).await?;
    dead_letters.discard(service, id).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dead_letter() -> DeadLetter {
        let mut envelope = Envelope::new("order.placed", "{}");
        envelope.headers.set("x-own", "kept");
        let rejection = Rejection {
            reason: "INTERNAL: two\nlines".to_owned(),
            attempts: 6,
            handlers: vec![0, 2],
            envelope,
        };
        DeadLetter {
            at: UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
            ..DeadLetter::new("user", rejection)
        }
    }

    #[test]
    fn a_dead_letter_is_stored_as_an_envelope() {
        let stored = dead_letter().into_envelope();
        assert_eq!(stored.headers.get("x-own"), Some("kept"));
        let back = DeadLetter::from_envelope(stored).unwrap();
        assert_eq!((&*back.service, back.at), ("user", dead_letter().at));
        let Rejection {
            reason,
            attempts,
            handlers,
            envelope,
        } = back.rejection;
        assert_eq!((&*reason, attempts), ("INTERNAL: two lines", 6));
        assert_eq!(handlers, [0, 2]);
        assert_eq!(
            (&*envelope.pattern, envelope.headers.len()),
            ("order.placed", 1)
        );
        assert!(DeadLetter::from_envelope(Envelope::new("order.placed", "{}")).is_none());
    }

    #[test]
    fn a_replay_is_for_the_handlers_that_failed() {
        let replay = dead_letter().into_replay();
        let only = Only::of(&replay.headers, "user");
        assert_eq!(only, Only::Some(vec![0, 2]));
        assert!(only.means(2) && !only.means(1));
        assert_eq!(Only::of(&replay.headers, "review"), Only::None);
        assert!(Only::of(&Headers::new(), "user").means(7));
    }
}
