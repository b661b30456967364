//! Dead letters: a stream for each service, which gets an event in the step that acknowledges it.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use bytestring::ByteString;
use redis::{Cmd, Value};
use tokio::{sync::Mutex as AsyncMutex, time::Instant};

use super::{
    ANSWER, MOST_BYTES, Options,
    link::Link,
    lot::Held,
    sender::kind_of,
    server::Shared,
    wire::{self, CallKey, Entry, Head, Id},
};
use crate::{
    envelope::Envelope,
    transport::{DeadLetter, DeadLetters, Error, ErrorKind, Rejection, clock::Clock},
};

/// Stores a dead letter and acknowledges its event, or neither. What is pending no more has been
/// settled by somebody else, or by an earlier run whose answer was lost. Where Redis has lost the
/// group, this is all there is left of the event.
const BURY: &str = "\
local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1], ARGV[2], ARGV[2], 1)
if not pending.err and #pending == 0 then return 0 end
redis.call('XADD', KEYS[2], '*', 'h', ARGV[3], 'p', ARGV[4], 'pattern', ARGV[5], 'attempts', ARGV[6], 'reason', ARGV[7])
redis.pcall('XACK', KEYS[1], ARGV[1], ARGV[2])
return 1";

/// How many bytes of dead letters may wait for Redis to take them before nothing new is read, and
/// what each counts for at least.
const MOST_WAITING: usize = 64 << 20;
const LEAST_WEIGHT: usize = 64 << 10;
/// The pause after the first refusal, and the longest.
const PAUSE: Duration = Duration::from_millis(250);
const MOST_PAUSE: Duration = Duration::from_secs(30);
/// How many entries one answer brings at most.
const PAGE: usize = 256;

/// An event on its way to the dead letters.
pub(super) struct Burial {
    held: Held,
    attempts: u32,
    pattern: ByteString,
    reason: String,
    head: Vec<u8>,
    payload: Bytes,
    _weight: Weight,
}

/// What waits counts, wherever it waits.
struct Weight {
    shared: Arc<Shared>,
    bytes: usize,
}

impl Drop for Weight {
    fn drop(&mut self) {
        self.shared.dying.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

impl Burial {
    pub(super) fn new(shared: Arc<Shared>, held: Held, rejection: Rejection) -> Self {
        let attempts = rejection.attempts;
        let pattern = rejection.envelope.pattern.clone();
        let reason = rejection.reason.clone();
        let envelope = DeadLetter::new(&*shared.service, rejection).into_envelope();
        let head = Head::encode(&envelope, CallKey::default(), b"");
        let bytes = (head.len() + envelope.payload.len()).max(LEAST_WEIGHT);
        shared.dying.fetch_add(bytes, Ordering::AcqRel);
        Self {
            held,
            attempts,
            pattern,
            reason,
            head,
            payload: envelope.payload,
            _weight: Weight { shared, bytes },
        }
    }

    pub(super) fn size(&self) -> usize {
        self.head.len() + self.payload.len() + self.reason.len()
    }

    pub(super) fn command(&self, shared: &Shared) -> Cmd {
        let mut bury = Cmd::with_capacity(12, self.size() + BURY.len() + 256);
        bury.arg("EVAL").arg(BURY).arg(2);
        bury.arg(&shared.streams[self.held.stream()].key)
            .arg(shared.options.dead_stream(&shared.service));
        bury.arg(&shared.service).arg(self.held.id());
        bury.arg(&self.head[..]).arg(&self.payload[..]);
        bury.arg(&*self.pattern)
            .arg(self.attempts)
            .arg(&self.reason);
        bury
    }
}

/// Whether so much waits that nothing new should be read.
pub(super) fn too_many(shared: &Shared) -> bool {
    shared.dying.load(Ordering::Acquire) >= MOST_WAITING
}

/// Events that are to be stored, which Redis may refuse for a while.
pub(super) struct Burials {
    waiting: VecDeque<Burial>,
    /// How often in a row it has refused one.
    refusals: u32,
    /// When to ask again, if it has.
    again: Instant,
}

impl Burials {
    pub(super) fn new() -> Self {
        Self {
            waiting: VecDeque::new(),
            refusals: 0,
            again: Instant::now(),
        }
    }

    pub(super) fn add(&mut self, burial: Burial) {
        self.waiting.push_back(burial);
    }

    /// Whether some wait for their turn only.
    pub(super) fn may_go(&self) -> bool {
        self.refusals == 0 && !self.waiting.is_empty()
    }

    /// What the next pipeline carries: what fits, or one to find out whether Redis takes it now.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Burial> {
        let count = match self.refusals {
            0 => {
                let mut bytes = 0;
                let fits = self.waiting.iter().take_while(|burial| {
                    let fits = bytes == 0 || bytes + burial.size() <= MOST_BYTES;
                    bytes += burial.size();
                    fits
                });
                fits.count()
            }
            _ if now < self.again => 0,
            _ => self.waiting.len().min(1),
        };
        self.waiting.drain(..count).collect()
    }

    /// Those that were refused wait behind the others.
    pub(super) fn answered(&mut self, asked: Vec<Burial>, answers: Vec<Value>) {
        if asked.is_empty() {
            return;
        }
        let mut refused = None;
        for (burial, answer) in asked.into_iter().zip(answers) {
            match answer.extract_error() {
                Ok(Value::Int(0)) => {
                    let pattern = &*burial.pattern;
                    tracing::debug!(pattern, "an event given up here was settled elsewhere");
                }
                Ok(_) => {}
                Err(error) => {
                    refused = Some(error);
                    self.waiting.push_back(burial);
                }
            }
        }
        let Some(error) = refused else {
            self.refusals = 0;
            return;
        };
        let waiting = self.waiting.len();
        tracing::error!(%error, waiting, "redis refuses dead letters: they wait, with their events");
        let pause = PAUSE * (1 << self.refusals.min(7));
        self.again = Instant::now() + pause.min(MOST_PAUSE);
        self.refusals += 1;
    }

    /// What could not be stored, with how often it has been tried.
    pub(super) fn give_up(&mut self) -> impl Iterator<Item = (Held, u32)> {
        let count = self.waiting.len();
        if count > 0 {
            tracing::error!(
                count,
                "dead letters could not be stored: others get the events"
            );
        }
        let all = self.waiting.drain(..);
        all.map(|burial| (burial.held, burial.attempts))
    }
}

/// What services have given up, as anybody with the URL sees it.
pub(super) struct RedisDeadLetters {
    options: Arc<Options>,
    link: AsyncMutex<Link>,
}

impl RedisDeadLetters {
    pub(super) async fn open(options: Arc<Options>) -> Result<Arc<Self>, Error> {
        let mut link = Link::new(Arc::clone(&options), Clock::new(), ANSWER);
        link.open().await?;
        let link = AsyncMutex::new(link);
        Ok(Arc::new(Self { options, link }))
    }

    async fn run(&self, command: &Cmd) -> Result<Value, Error> {
        let answer = self.link.lock().await.run(command).await;
        answer.map_err(|error| {
            let message = format!("ask {} for dead letters", self.options.shown);
            Error::new(kind_of(&error), message).with_source(error)
        })
    }

    async fn range(
        &self,
        service: &str,
        from: &str,
        to: &str,
        count: usize,
    ) -> Result<Vec<Entry>, Error> {
        let mut range = redis::cmd("XRANGE");
        range.arg(self.options.dead_stream(service));
        range.arg(from).arg(to).arg("COUNT").arg(count);
        Ok(wire::entries(self.run(&range).await?))
    }
}

#[async_trait]
impl DeadLetters for RedisDeadLetters {
    async fn list(
        &self,
        service: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, DeadLetter)>, Error> {
        let mut from = match after {
            None => "-".to_owned(),
            Some(after) => match Id::parse(after.as_bytes()) {
                Some(id) => format!("({id}"),
                None => {
                    let message = format!("{after:?} is no id of a dead letter");
                    return Err(Error::new(ErrorKind::Config, message));
                }
            },
        };
        let mut found = Vec::new();
        while found.len() < limit {
            let count = (limit - found.len()).min(PAGE);
            let entries = self.range(service, &from, "+", count).await?;
            let Some(last) = entries.last() else { break };
            from = format!("({}", last.id);
            let is_last = entries.len() < count;
            found.extend(entries.into_iter().filter_map(read));
            if is_last {
                break;
            }
        }
        Ok(found)
    }

    async fn find(&self, service: &str, id: &str) -> Result<Option<DeadLetter>, Error> {
        let Some(id) = Id::parse(id.as_bytes()).map(|id| id.to_string()) else {
            return Ok(None);
        };
        let mut entries = self.range(service, &id, &id, 1).await?;
        Ok(entries.pop().and_then(read).map(|(_, letter)| letter))
    }

    async fn discard(&self, service: &str, id: &str) -> Result<bool, Error> {
        let Some(id) = Id::parse(id.as_bytes()) else {
            return Ok(false);
        };
        let mut delete = redis::cmd("XDEL");
        delete.arg(self.options.dead_stream(service)).arg(id);
        Ok(self.run(&delete).await? == Value::Int(1))
    }
}

fn read(entry: Entry) -> Option<(String, DeadLetter)> {
    let Entry { id, fields } = entry;
    let letter = fields.and_then(|(head, payload)| {
        let head = Head::decode(head)?;
        DeadLetter::from_envelope(Envelope {
            pattern: head.pattern,
            headers: head.headers,
            payload,
            deadline: None,
        })
    });
    if letter.is_none() {
        tracing::warn!(%id, "an entry that is no dead letter is passed over");
    }
    Some((id.to_string(), letter?))
}
