//! Reads entries of a group, and takes over those of consumers that have died.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use redis::{Cmd, RedisResult, from_redis_value, streams::StreamPendingCountReply};
use tokio::time::Instant;

use super::{
    link::Link,
    server::Shared,
    wire::{self, Id},
};
use crate::transport::{Error, ErrorKind};

/// How long a read waits for something to come.
const BLOCK: Duration = Duration::from_secs(1);
/// The least that a read may bring of one stream, where there are many.
const LEAST: usize = 32;

/// An entry that is now ours.
pub(super) struct Got {
    pub(super) stream: usize,
    pub(super) id: Id,
    /// How many times it has been tried, this time included: an event as Redis was told, a request
    /// as often as it was delivered.
    pub(super) attempt: u32,
    /// Head and payload; none if it is not native.
    pub(super) fields: Option<(Bytes, Bytes)>,
}

pub(super) struct Reader {
    shared: Arc<Shared>,
    link: Link,
    /// When to look for entries of the dead next.
    claim_at: Instant,
    /// Where, in each stream, to look next for what an earlier process of our name left behind;
    /// empty when all of it has been taken.
    resume: Vec<String>,
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
                    tracing::warn!(%error, "redis has lost a consumer group; it is made again");
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
            } else if Instant::now() >= self.claim_at {
                self.claim_at = Instant::now() + claim_interval(self.shared.options.claim_idle);
                self.take_over(room, Whose::TheDeads).await?
            } else {
                Vec::new()
            };
            if !claimed.is_empty() {
                return Ok(claimed);
            }
        }
        self.read(room).await
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
                attempt: 1,
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
        let mut claimed = Vec::new();
        let mut resume = Vec::new();
        let mut more = false;
        for (stream, answer) in self.link.run_all(&look).await?.into_iter().enumerate() {
            let pending: StreamPendingCountReply = from_redis_value(answer.extract_error()?)?;
            let last = pending.ids.last().map(|pending| format!("({}", pending.id));
            more |= last.is_some();
            resume.push(last.unwrap_or_else(|| "+".to_owned()));
            if pending.ids.is_empty() {
                continue;
            }
            let held = shared.lots.held(stream);
            let mut deliveries: Vec<(Id, u32)> = Vec::new();
            for pending in pending.ids {
                if let Some(id) = Id::parse(pending.id.as_bytes()).filter(|id| !held.contains(id)) {
                    let times = u32::try_from(pending.times_delivered).unwrap_or(u32::MAX);
                    deliveries.push((id, times.saturating_add(1)));
                }
            }
            if deliveries.is_empty() {
                continue;
            }
            let key = &shared.streams[stream].key;
            let command = claim
                .cmd("XCLAIM")
                .arg(key)
                .arg(&shared.service)
                .arg(&shared.instance);
            command.arg(idle);
            for (id, _) in &deliveries {
                command.arg(id);
            }
            claimed.push((stream, deliveries));
        }
        let mut all = Vec::new();
        for ((stream, deliveries), answer) in
            claimed.into_iter().zip(self.link.run_all(&claim).await?)
        {
            for wire::Entry { id, fields } in wire::entries(answer.extract_error()?) {
                let attempt = deliveries.iter().find(|(other, _)| *other == id);
                let attempt = attempt.map_or(2, |(_, attempt)| *attempt);
                all.push(Got {
                    stream,
                    id,
                    attempt,
                    fields,
                });
            }
        }
        if let Whose::Ours = whose {
            self.resume = if more { resume } else { Vec::new() };
        }
        Ok(all)
    }
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
