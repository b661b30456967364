//! How often an event was tried: what the broker counts are deliveries.

use std::{collections::HashSet, time::Duration};

use async_nats::{Client, Request, Subject, message::OutboundMessage};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{super::super::trials::DEATHS, API, TRIES, TRIES_SUBJECT, api, ask};

/// An event that waits for it waits no longer.
const LOOK_LIMIT: Duration = Duration::from_secs(2);

/// An event of one consumer, as JetStream counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Count {
    /// Its number in the stream.
    pub(super) sequence: u64,
    /// The how-manieth delivery this is, from 1.
    pub(super) delivered: u64,
}

impl Count {
    /// Reads the subject that a delivery is acknowledged on; newer servers put a domain and an
    /// account into it.
    pub(super) fn of(reply: &str) -> Option<Self> {
        let tokens: Vec<_> = reply.strip_prefix("$JS.ACK.")?.split('.').collect();
        let skipped = match tokens.len() {
            7 => 2,
            9.. => 4,
            _ => return None,
        };
        Some(Self {
            delivered: tokens.get(skipped)?.parse().ok()?,
            sequence: tokens.get(skipped + 1)?.parse().ok()?,
        })
    }

    fn subject(self, consumer: &str) -> String {
        format!("{TRIES_SUBJECT}{consumer}.{}", self.sequence)
    }
}

/// What is known of an event when it has been delivered so often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    delivered: u64,
    tries: u32,
}

impl Record {
    pub(super) fn new(count: Count, tries: u32) -> Self {
        let delivered = count.delivered;
        Self { delivered, tries }
    }

    /// How often it was tried in vain, for all that is known.
    pub(super) fn tries(record: Option<Self>) -> u32 {
        record.map_or(0, |record| record.tries)
    }

    /// Whether too many deliveries before this one ended without a word, such as by the death of
    /// their process.
    pub(super) fn is_suspect(record: Option<Self>, count: Count) -> bool {
        let known = record.map_or(0, |record| record.delivered);
        count.delivered.saturating_sub(known) > DEATHS
    }

    /// What is written down before an event on trial is tried again: that try counts, and should it
    /// end without a word too, the next one is a trial again.
    pub(super) fn of_trial(record: Option<Self>, count: Count) -> Self {
        Self {
            delivered: count.delivered.saturating_sub(DEATHS),
            tries: Self::tries(record).saturating_add(1),
        }
    }

    pub(super) fn message(self, count: Count, consumer: &str) -> OutboundMessage {
        OutboundMessage {
            subject: count.subject(consumer).into(),
            reply: None,
            payload: format!("{} {}", self.delivered, self.tries).into(),
            headers: None,
        }
    }

    fn parse(payload: &[u8]) -> Option<Self> {
        let (delivered, tries) = std::str::from_utf8(payload).ok()?.split_once(' ')?;
        Some(Self {
            delivered: delivered.parse().ok()?,
            tries: tries.parse().ok()?,
        })
    }

    /// The events of a consumer about which something is written down, by their numbers.
    pub(super) async fn known(client: &Client, consumer: &str) -> HashSet<u64> {
        let start = format!("{TRIES_SUBJECT}{consumer}.");
        let body = json!({"subjects_filter": format!("{start}>")});
        let found = match api(client, &format!("STREAM.INFO.{TRIES}"), &body).await {
            Ok(found) => found,
            Err(failure) => {
                let error = failure.into_error("look for tries");
                tracing::warn!(%error, consumer, "an event may be tried more often");
                return HashSet::new();
            }
        };
        let subjects = found.pointer("/state/subjects").and_then(Value::as_object);
        let subjects = subjects.into_iter().flat_map(|subjects| subjects.keys());
        let number = |subject: &String| subject.strip_prefix(&start)?.parse().ok();
        subjects.filter_map(number).collect()
    }

    /// What somebody has written down; nothing if it cannot be had in time.
    pub(super) async fn find(client: &Client, count: Count, consumer: &str) -> Option<Self> {
        let body = json!({"last_by_subj": count.subject(consumer)}).to_string();
        let request = Request::new().payload(body.into());
        let subject = format!("{API}DIRECT.GET.{TRIES}");
        match ask(client, subject, request, Instant::now() + LOOK_LIMIT).await {
            Ok(answer) if answer.status.is_some() => None,
            Ok(answer) => Self::parse(&answer.payload),
            Err(failure) => {
                let error = failure.into_error("look up tries");
                tracing::warn!(%error, consumer, "an event may be tried more or less often");
                None
            }
        }
    }
}

/// Removes what is written down about an event; the answer goes where nobody looks at it.
pub(super) fn forget(count: Count, consumer: &str, answer: Subject) -> OutboundMessage {
    OutboundMessage {
        subject: format!("{API}STREAM.PURGE.{TRIES}").into(),
        reply: Some(answer),
        payload: json!({"filter": count.subject(consumer)})
            .to_string()
            .into(),
        headers: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_and_new_acknowledgement_subjects_are_read() {
        let expected = Some(Count {
            sequence: 17,
            delivered: 3,
        });
        assert_eq!(Count::of("$JS.ACK.s.c.3.17.5.1700000000.0"), expected);
        assert_eq!(
            Count::of("$JS.ACK._.hash.s.c.3.17.5.1700000000.0.rnd"),
            expected
        );
        for strange in ["", "_INBOX.x", "$JS.ACK.s.c.3", "$JS.ACK.s.c.x.y.5.1.0"] {
            assert_eq!(Count::of(strange), None, "{strange}");
        }
    }

    #[test]
    fn what_often_ended_without_a_word_is_a_suspect_and_its_trials_count() {
        let count = |delivered| Count {
            sequence: 1,
            delivered,
        };
        let check = |record, delivered, tries, suspect| {
            let count = count(delivered);
            assert_eq!(Record::tries(record), tries, "{record:?} {count:?}");
            assert_eq!(
                Record::is_suspect(record, count),
                suspect,
                "{record:?} {count:?}"
            );
        };
        check(None, 1, 0, false);
        check(None, 2, 0, false);
        check(None, 3, 0, true);
        // Given back on its second delivery, before any try.
        let given_back = Some(Record::new(count(2), 0));
        check(given_back, 4, 0, false);
        check(given_back, 5, 0, true);
        // Tried twice in its first delivery, whose process then died, as did the next ones.
        let tried = Some(Record::new(count(1), 2));
        check(tried, 2, 2, false);
        check(tried, 4, 2, true);
        let on_trial = Some(Record::of_trial(tried, count(4)));
        check(on_trial, 5, 3, true);
        check(Some(Record::of_trial(on_trial, count(5))), 6, 4, true);

        let record = Record::new(count(1), 2);
        let message = record.message(count(1), "c");
        assert_eq!(&*message.subject, "_nestling.tries.c.1");
        assert_eq!(Record::parse(&message.payload), Some(record));
    }
}
