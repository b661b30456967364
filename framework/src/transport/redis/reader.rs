//! Reads entries of a group, and takes over those of consumers that have died.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use redis::{Cmd, RedisResult, from_redis_value, streams::StreamPendingCountReply};
use tokio::time::{Instant, timeout};

use super::{
    link::Link,
    server::Shared,
    wire::{self, Id},
};
use crate::transport::{
    Error, ErrorKind,
    trials::{DEATHS, Trial},
};

/// How long a read waits for something to come.
const BLOCK: Duration = Duration::from_secs(1);
/// The least that a read may bring of one stream, where there are many.
const LEAST: usize = 32;

/// An entry that is now ours.
pub(super) struct Got {
    pub(super) stream: usize,
    pub(super) id: Id,
    /// How often Redis says that it was delivered, this time included. For an event it is more, if
    /// tries have failed; see [`attempt_of`].
    pub(super) delivered: u32,
    /// The right to be tried, if it may have ended processes.
    pub(super) trial: Option<Trial>,
    /// Head and payload; none if it is not native.
    pub(super) fields: Option<(Bytes, Bytes)>,
}

/// What Redis is told to count for an event on top of its failed tries, so that a number that only
/// deliveries have made is told from them.
const UNTRIED: u32 = DEATHS as u32;

/// Which try of an event this is, when Redis counts so many deliveries.
pub(super) fn attempt_of(delivered: u32) -> u32 {
    delivered.saturating_sub(UNTRIED).max(1)
}

/// What Redis counts for an event after so many failed tries.
pub(super) fn delivered_after(tries: u32) -> u32 {
    match tries {
        0 => 0,
        tries => tries.saturating_add(UNTRIED),
    }
}

pub(super) struct Reader {
    shared: Arc<Shared>,
    link: Link,
    /// When to look for entries of the dead next.
    claim_at: Instant,
    /// Where, in each stream, to look next for what an earlier process of our name left behind;
    /// empty when all of it has been taken.
    resume: Vec<String>,
    /// Something waits to be tried until something else no longer is.
    suspects: bool,
    /// Redis has lost our groups.
    missing: bool,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, link: Link) -> Self {
        let claim_at = Instant::now() + claim_interval(shared.options.claim_idle);
        let resume = vec!["-".to_owned(); shared.streams.len()];
        Self {
            shared,
            link,
            claim_at,
            resume,
            suspects: false,
            missing: false,
        }
    }

    /// Connects and makes the groups that are not there yet.
    pub(super) async fn open(&mut self) -> Result<(), Error> {
        self.link.open().await?;
        self.create_groups(false).await.map_err(|error| {
            let message = format!("create consumer groups on {}", self.shared.options.shown);
            Error::new(ErrorKind::Connect, message).with_source(error)
        })
    }

    /// A new group gets every request, but only the events from now on; one that Redis has lost
    /// gets everything that is still there.
    async fn create_groups(&mut self, lost: bool) -> RedisResult<()> {
        let mut pipeline = redis::pipe();
        for stream in &self.shared.streams {
            let from = if stream.messages.is_some() || lost {
                "0"
            } else {
                "$"
            };
            let create = pipeline.cmd("XGROUP").arg("CREATE").arg(&stream.key);
            create.arg(&self.shared.service).arg(from).arg("MKSTREAM");
        }
        for answer in self.link.run_all(&pipeline).await? {
            match answer.extract_error() {
                Err(error) if error.code() != Some("BUSYGROUP") => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Waits for entries, about `room` at most; sometimes there are none.
    pub(super) async fn next(&mut self, room: usize) -> Vec<Got> {
        loop {
            if self.shared.stopping.load(Ordering::Acquire) {
                return Vec::new();
            }
            match self.attempt(room).await {
                Ok(got) => return got,
                Err(error) if error.code() == Some("NOGROUP") => {
                    tracing::error!(%error, "redis has lost a consumer group; it is made again");
                    self.missing = true;
                }
                Err(error) => self.link.pause(&error).await,
            }
        }
    }

    async fn attempt(&mut self, room: usize) -> RedisResult<Vec<Got>> {
        if self.missing {
            self.create_groups(true).await?;
            self.missing = false;
        }
        if self.shared.redelivers {
            let claimed = if !self.resume.is_empty() {
                self.take_over(room, Whose::Ours).await?
            } else if self.is_time_to_claim() {
                self.claim_at = Instant::now() + claim_interval(self.shared.options.claim_idle);
                self.take_over(room, Whose::TheDeads).await?
            } else {
                Vec::new()
            };
            if !claimed.is_empty() {
                return Ok(claimed);
            }
            if !self.resume.is_empty() {
                // What is new waits, so that it cannot overtake what is older. The end of the
                // trial is given back at once: the next look takes it.
                let next = self.shared.trials.clone().next();
                drop(timeout(BLOCK, next).await);
                return Ok(Vec::new());
            }
        }
        self.read(room).await
    }

    fn is_time_to_claim(&self) -> bool {
        let suspect = self.suspects && self.shared.trials.is_free();
        suspect || Instant::now() >= self.claim_at
    }

    async fn read(&mut self, room: usize) -> RedisResult<Vec<Got>> {
        self.link.connect().await?;
        self.shared.reading.store(self.link.id(), Ordering::Release);
        let answer = self.link.run(&self.read_command(room)).await?;
        let mut all = Vec::new();
        for (key, entries) in wire::streams(answer) {
            let known = |stream: &super::server::StreamOf| stream.key.as_bytes() == key;
            let Some(stream) = self.shared.streams.iter().position(known) else {
                continue;
            };
            let got = |wire::Entry { id, fields }| Got {
                stream,
                id,
                delivered: 1,
                trial: None,
                fields,
            };
            all.extend(entries.into_iter().map(got));
        }
        Ok(all)
    }

    fn read_command(&self, room: usize) -> Cmd {
        let streams = &self.shared.streams;
        // Redis counts for each stream by itself.
        let count = room.div_ceil(streams.len()).max(LEAST).min(room).max(1);
        let block = match self.shared.redelivers {
            true => self
                .claim_at
                .saturating_duration_since(Instant::now())
                .min(BLOCK),
            false => BLOCK,
        };
        let mut command = redis::cmd("XREADGROUP");
        command
            .arg("GROUP")
            .arg(&self.shared.service)
            .arg(&self.shared.instance);
        // No time at all would mean for ever.
        command
            .arg("COUNT")
            .arg(count)
            .arg("BLOCK")
            .arg(block.as_millis().max(1) as u64);
        if !self.shared.redelivers {
            command.arg("NOACK");
        }
        command.arg("STREAMS");
        for stream in streams {
            command.arg(&stream.key);
        }
        for _ in streams {
            command.arg(">");
        }
        command
    }

    /// Claims pending entries: those of an earlier process with our name, or those that nobody has
    /// given a sign of life for.
    async fn take_over(&mut self, room: usize, whose: Whose) -> RedisResult<Vec<Got>> {
        let shared = Arc::clone(&self.shared);
        let idle = match whose {
            Whose::Ours => 0,
            Whose::TheDeads => shared.options.claim_idle.as_millis() as u64,
        };
        let mut look = redis::pipe();
        for (index, stream) in shared.streams.iter().enumerate() {
            let pending = look.cmd("XPENDING").arg(&stream.key).arg(&shared.service);
            match whose {
                Whose::Ours => pending
                    .arg(&self.resume[index])
                    .arg("+")
                    .arg(room)
                    .arg(&shared.instance),
                Whose::TheDeads => pending.arg("IDLE").arg(idle).arg("-").arg("+").arg(room),
            };
        }
        let mut claim = redis::pipe();
        let mut chosen = Vec::new();
        let mut more = false;
        self.suspects = false;
        for (stream, answer) in self.link.run_all(&look).await?.into_iter().enumerate() {
            let pending: StreamPendingCountReply = from_redis_value(answer.extract_error()?)?;
            more |= !pending.ids.is_empty();
            let choice = self.choose(stream, &pending, whose);
            if let Whose::Ours = whose {
                match choice.upto {
                    Some(id) => self.resume[stream] = format!("({id}"),
                    None if pending.ids.is_empty() => self.resume[stream] = "+".to_owned(),
                    None => {}
                }
            }
            if choice.entries.is_empty() {
                continue;
            }
            let key = &shared.streams[stream].key;
            let command = claim
                .cmd("XCLAIM")
                .arg(key)
                .arg(&shared.service)
                .arg(&shared.instance);
            command.arg(idle);
            for (id, _) in &choice.entries {
                command.arg(id);
            }
            chosen.push((stream, choice));
        }
        let mut all = Vec::new();
        for ((stream, mut choice), answer) in
            chosen.into_iter().zip(self.link.run_all(&claim).await?)
        {
            for wire::Entry { id, fields } in wire::entries(answer.extract_error()?) {
                let entry = choice.entries.iter().find(|(other, _)| *other == id);
                let delivered = entry.map_or(2, |(_, delivered)| *delivered);
                let trial = choice.trial.take_if(|(suspect, _)| *suspect == id);
                all.push(Got {
                    stream,
                    id,
                    delivered,
                    trial: trial.map(|(_, trial)| trial),
                    fields,
                });
            }
        }
        if !more && let Whose::Ours = whose {
            self.resume = Vec::new();
        }
        Ok(all)
    }

    /// Which of the pending entries of a stream to claim: all that may be tried side by side, and
    /// one of the others, if none is tried now.
    fn choose(&mut self, stream: usize, pending: &StreamPendingCountReply, whose: Whose) -> Choice {
        let held = self.shared.lots.held(stream);
        let holds_events = self.shared.streams[stream].messages.is_none();
        let mut choice = Choice::default();
        for pending in &pending.ids {
            let Some(id) = Id::parse(pending.id.as_bytes()) else {
                continue;
            };
            let times = u32::try_from(pending.times_delivered).unwrap_or(u32::MAX);
            if held.contains(&id) {
                choice.upto = Some(id);
                continue;
            }
            if holds_events && u64::from(times) >= DEATHS {
                match self.shared.trials.try_next() {
                    Some(trial) => choice.trial = Some((id, trial)),
                    None => {
                        self.suspects = true;
                        match whose {
                            Whose::Ours => break,
                            Whose::TheDeads => continue,
                        }
                    }
                }
            }
            choice.entries.push((id, times.saturating_add(1)));
            choice.upto = Some(id);
        }
        choice
    }
}

/// What to claim of a stream.
#[derive(Default)]
struct Choice {
    /// How often each will have been delivered.
    entries: Vec<(Id, u32)>,
    /// The one of them that goes on trial.
    trial: Option<(Id, Trial)>,
    /// The last that need not be looked at again.
    upto: Option<Id>,
}

#[derive(Clone, Copy)]
enum Whose {
    Ours,
    TheDeads,
}

/// How often to look for entries of the dead.
fn claim_interval(claim_idle: Duration) -> Duration {
    (claim_idle / 4).clamp(Duration::from_millis(50), Duration::from_secs(1))
}
