//! Writes replies and acknowledgements, in batches, and looks after entries in work.

use std::{
    collections::{HashMap, hash_map::Entry},
    ops::Range,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use redis::{
    Cmd, Pipeline, RedisResult, Value, from_redis_value,
    streams::{StreamInfoGroupsReply, StreamPendingReply},
};
use tokio::time::Instant;

use super::{
    Options,
    dead_letters::{Burial, Burials},
    link::{Link, millis},
    lot::Held,
    reader::delivered_after,
    server::Shared,
    wire::{Id, Reply},
};

/// How long replies wait for a client that is away.
const REPLIES_WAIT_MILLIS: u32 = 60_000;
/// How often entries that nobody needs any more are removed.
const TRIM_SECONDS: Range<u64> = 10..15;

/// Something to write.
pub(super) enum Op {
    /// An item for the list `to` of `client`.
    Reply {
        to: Bytes,
        client: u64,
        reply: Reply,
    },
    /// The entry is done with.
    Settle(Held),
    /// The entry goes back to the group.
    Back {
        held: Held,
        after: Duration,
        /// What Redis counts for an event from here on; it counts a request's deliveries itself.
        delivered: Option<u32>,
    },
    /// The event goes to the dead letters.
    Bury(Box<Burial>),
    /// The blocked read of this connection is to end.
    Unblock(i64),
}

impl Op {
    pub(super) fn size(&self) -> usize {
        match self {
            Self::Reply { reply, .. } => reply.payload.len(),
            Self::Bury(burial) => burial.size(),
            _ => 0,
        }
    }
}

/// All that is to be written.
#[derive(Default)]
pub(super) struct Ops {
    pub(super) list: Vec<Op>,
    /// What Redis counts for events in work, by stream and id. Written before the rest.
    pub(super) tried: HashMap<(usize, Id), u32>,
}

impl Ops {
    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty() && self.tried.is_empty()
    }
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    link: Link,
    /// Entries that go back to the group at a time further away than Redis can be told.
    later: Vec<(Instant, Held, Option<u32>)>,
    burials: Burials,
    trim_at: Instant,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, link: Link) -> Self {
        Self {
            shared,
            link,
            later: Vec::new(),
            burials: Burials::new(),
            trim_at: next_trim(),
        }
    }

    /// How often [`write`](Self::write) is to be called with `tick`.
    pub(super) fn tick(options: &Options) -> Duration {
        options.claim_idle / 3
    }

    /// Writes what has been settled; a `tick` renews our hold on what is in work. Returns when
    /// Redis has it, however long that takes.
    pub(super) async fn write(&mut self, ops: Ops, tick: bool) {
        let now = Instant::now();
        let mut batch = Batch::new(&self.shared);
        for ((stream, id), delivered) in ops.tried {
            batch.tried(stream, id, delivered);
        }
        for op in ops.list {
            match op {
                Op::Reply { to, client, reply } => batch.reply(to, client, &reply),
                Op::Settle(held) => batch.settle(held),
                Op::Back {
                    held,
                    after,
                    delivered,
                } => match after.checked_sub(self.shared.options.claim_idle) {
                    Some(wait) if !wait.is_zero() => {
                        self.later.push((now + wait, held, delivered));
                    }
                    _ => batch.give_back(held, after, delivered),
                },
                Op::Bury(burial) => self.burials.add(*burial),
                Op::Unblock(connection) => batch.unblock(connection),
            }
        }
        if tick {
            let longest = self.shared.options.claim_idle;
            for (_, held, delivered) in self.later.extract_if(.., |(at, ..)| *at <= now) {
                batch.give_back(held, longest, delivered);
            }
            let before = now
                .checked_sub(Self::tick(&self.shared.options))
                .unwrap_or(now);
            batch.renew(before);
        }
        let burials = self.burials.due(now);
        for burial in &burials {
            batch.burials.push(burial.command(&self.shared));
        }
        let (mut pipeline, buried) = batch.finish();
        if tick {
            pipeline.cmd("TIME");
        }
        let (asked, mut answers) = self.run(&pipeline).await;
        if tick
            && let Some(time) = answers.pop()
            && let Ok(time) = from_redis_value(time)
        {
            self.link.clock().showed(millis(time), asked);
        }
        let mut ends = Vec::with_capacity(burials.len());
        for (place, answer) in answers.into_iter().enumerate() {
            if buried.contains(&place) {
                ends.push(answer);
            } else if let Err(error) = answer.extract_error() {
                tracing::warn!(%error, "redis refused a reply or an acknowledgement");
            }
        }
        self.burials.answered(burials, ends);
        drop(batch);
        if tick && now >= self.trim_at {
            self.trim_at = next_trim();
            if let Err(error) = self.trim().await {
                tracing::debug!(%error, "streams are not trimmed this time");
            }
        }
    }

    /// Runs the pipeline until Redis has answered, and returns its answers and when they were asked
    /// for. Repeating is harmless: a reply that comes twice is recognised by its caller, and a dead
    /// letter is stored only while its event is pending.
    async fn run(&mut self, pipeline: &Pipeline) -> (Instant, Vec<Value>) {
        loop {
            let asked = Instant::now();
            match self.link.run_all(pipeline).await {
                Ok(answers) => return (asked, answers),
                Err(error) => self.link.pause(&error).await,
            }
        }
    }

    /// Removes entries that every group has acknowledged.
    async fn trim(&mut self) -> RedisResult<()> {
        let streams = &self.shared.streams;
        let mut ask = redis::pipe();
        for stream in streams {
            ask.cmd("XINFO").arg("GROUPS").arg(&stream.key);
        }
        let mut groups = Vec::new();
        for answer in self.link.run_all(&ask).await? {
            let answer: StreamInfoGroupsReply = from_redis_value(answer.extract_error()?)?;
            groups.push(answer.groups);
        }
        let mut ask = redis::pipe();
        for (stream, groups) in streams.iter().zip(&groups) {
            for group in groups {
                ask.cmd("XPENDING").arg(&stream.key).arg(&group.name);
            }
        }
        let mut pending = self.link.run_all(&ask).await?.into_iter();
        let mut trim = redis::pipe();
        for (stream, groups) in streams.iter().zip(&groups) {
            let mut needed: Option<Id> = None;
            for group in groups {
                let answer = pending.next().unwrap_or_default().extract_error()?;
                let oldest = match from_redis_value(answer)? {
                    StreamPendingReply::Data(pending) => Id::parse(pending.start_id.as_bytes()),
                    // Nothing pending now, so that all it had been given when it was asked first
                    // is done with.
                    StreamPendingReply::Empty => {
                        Id::parse(group.last_delivered_id.as_bytes()).map(Id::next)
                    }
                    _ => None,
                };
                let Some(oldest) = oldest else {
                    needed = None;
                    break;
                };
                needed = Some(needed.map_or(oldest, |needed| needed.min(oldest)));
            }
            if let Some(needed) = needed {
                let command = trim
                    .cmd("XTRIM")
                    .arg(&stream.key)
                    .arg("MINID")
                    .arg("~")
                    .arg(needed);
                command.arg("LIMIT").arg(0);
            }
        }
        for answer in self.link.run_all(&trim).await? {
            answer.extract_error()?;
        }
        Ok(())
    }

    /// After the last write: gives back what still waits, and takes our name off groups in which
    /// nothing is pending under it. The groups of a temporary service go altogether.
    pub(super) async fn leave(&mut self) {
        while self.burials.may_go() {
            self.write(Ops::default(), false).await;
        }
        let mut batch = Batch::new(&self.shared);
        let longest = self.shared.options.claim_idle;
        for (_, held, delivered) in self.later.drain(..) {
            batch.give_back(held, longest, delivered);
        }
        for (held, attempts) in self.burials.give_up() {
            let delivered = delivered_after(attempts);
            batch.give_back(held, Duration::ZERO, Some(delivered));
        }
        let (pipeline, _) = batch.finish();
        let (_, answers) = self.run(&pipeline).await;
        for answer in answers {
            if let Err(error) = answer.extract_error() {
                tracing::warn!(%error, "redis does not take an entry back");
            }
        }
        drop(batch);
        if let Err(error) = self.sign_off().await {
            tracing::debug!(%error, "a consumer stays in its groups");
        }
    }

    async fn sign_off(&mut self) -> RedisResult<()> {
        let Shared {
            streams,
            service,
            instance,
            temporary,
            ..
        } = &*self.shared;
        if *temporary {
            let mut destroy = redis::pipe();
            for stream in streams {
                let group = destroy.cmd("XGROUP").arg("DESTROY");
                group.arg(&stream.key).arg(service);
            }
            self.link.run_all(&destroy).await?;
            return self.trim().await;
        }
        let mut look = redis::pipe();
        for stream in streams {
            let pending = look.cmd("XPENDING").arg(&stream.key).arg(service);
            pending.arg("-").arg("+").arg(1).arg(instance);
        }
        let mut leave = redis::pipe();
        for (stream, answer) in streams.iter().zip(self.link.run_all(&look).await?) {
            // What is pending under a consumer's name is forgotten with it.
            if matches!(answer, Value::Array(pending) if pending.is_empty()) {
                let consumer = leave.cmd("XGROUP").arg("DELCONSUMER").arg(&stream.key);
                consumer.arg(service).arg(instance);
            }
        }
        self.link.run_all(&leave).await?;
        self.trim().await
    }
}

fn next_trim() -> Instant {
    // Replicas that were started together need not all do it at once.
    Instant::now() + Duration::from_secs(fastrand::u64(TRIM_SECONDS))
}

/// The commands of one pipeline while they are collected: one for each list and stream.
struct Batch {
    shared: Arc<Shared>,
    lists: Vec<(Bytes, Cmd)>,
    /// The place of a client's list among them.
    by_client: HashMap<u64, usize>,
    acknowledge: Vec<Option<Cmd>>,
    delete: Vec<Option<Cmd>>,
    renewals: Vec<Cmd>,
    others: Vec<Cmd>,
    burials: Vec<Cmd>,
    /// Ours until Redis has answered.
    held: Vec<Held>,
}

impl Batch {
    fn new(shared: &Arc<Shared>) -> Self {
        let streams = shared.streams.len();
        Self {
            shared: Arc::clone(shared),
            lists: Vec::new(),
            by_client: HashMap::new(),
            acknowledge: vec![None; streams],
            delete: vec![None; streams],
            renewals: Vec::new(),
            others: Vec::new(),
            burials: Vec::new(),
            held: Vec::new(),
        }
    }

    fn reply(&mut self, to: Bytes, client: u64, reply: &Reply) {
        let list = match self.by_client.entry(client) {
            // The number is only the client's word; the list is where the reply belongs.
            Entry::Occupied(place) if self.lists[*place.get()].0 == to => *place.get(),
            place => {
                let mut push = redis::cmd("RPUSH");
                push.arg(&*to);
                self.lists.push((to, push));
                let new = self.lists.len() - 1;
                place.insert_entry(new);
                new
            }
        };
        self.lists[list].1.arg(reply);
    }

    fn settle(&mut self, held: Held) {
        let Shared {
            streams,
            service,
            redelivers,
            ..
        } = &*self.shared;
        let stream = &streams[held.stream()];
        if *redelivers {
            let acknowledge = self.acknowledge[held.stream()].get_or_insert_with(|| {
                let mut command = redis::cmd("XACK");
                command.arg(&stream.key).arg(service);
                command
            });
            acknowledge.arg(held.id());
        }
        if stream.messages.is_some() {
            let delete = self.delete[held.stream()].get_or_insert_with(|| {
                let mut command = redis::cmd("XDEL");
                command.arg(&stream.key);
                command
            });
            delete.arg(held.id());
        }
        self.held.push(held);
    }

    /// Whoever takes the entry over counts on from here.
    fn tried(&mut self, stream: usize, id: Id, delivered: u32) {
        let mut command = self.claim(stream);
        command.arg(id).arg("RETRYCOUNT").arg(delivered);
        command.arg("JUSTID");
        self.renewals.push(command);
    }

    /// Somebody may claim the entry after this time.
    fn give_back(&mut self, held: Held, after: Duration, delivered: Option<u32>) {
        let idle = self.shared.options.claim_idle.saturating_sub(after);
        let mut command = self.claim(held.stream());
        command
            .arg(held.id())
            .arg("IDLE")
            .arg(idle.as_millis() as u64);
        if let Some(delivered) = delivered {
            command.arg("RETRYCOUNT").arg(delivered);
        }
        command.arg("JUSTID");
        self.others.push(command);
        self.held.push(held);
    }

    /// What has been in work since `before` or longer does not count as idle.
    fn renew(&mut self, before: Instant) {
        let older = self.shared.lots.older(before, self.shared.streams.len());
        for (stream, ids) in older
            .into_iter()
            .enumerate()
            .filter(|(_, ids)| !ids.is_empty())
        {
            let mut command = self.claim(stream);
            for id in ids {
                command.arg(id);
            }
            command.arg("JUSTID");
            self.renewals.push(command);
        }
    }

    fn claim(&self, stream: usize) -> Cmd {
        let Shared {
            streams,
            service,
            instance,
            ..
        } = &*self.shared;
        let mut command = redis::cmd("XCLAIM");
        command
            .arg(&streams[stream].key)
            .arg(service)
            .arg(instance)
            .arg(0);
        command
    }

    fn unblock(&mut self, connection: i64) {
        let mut command = redis::cmd("CLIENT");
        command.arg("UNBLOCK").arg(connection);
        self.others.push(command);
    }

    /// Renewals first: what is given back or settled in the same batch must not become ours again.
    /// Replies before acknowledgements: a request is done when its reply is there. Also says where
    /// among the commands the burials are.
    fn finish(&mut self) -> (Pipeline, Range<usize>) {
        let mut pipeline = redis::pipe();
        for command in self.renewals.drain(..).chain(self.others.drain(..)) {
            pipeline.add_command(command);
        }
        let start = pipeline.len();
        for command in self.burials.drain(..) {
            pipeline.add_command(command);
        }
        let buried = start..pipeline.len();
        for (to, push) in self.lists.drain(..) {
            pipeline.add_command(push);
            pipeline.cmd("PEXPIRE").arg(&*to).arg(REPLIES_WAIT_MILLIS);
        }
        let acknowledge = self.acknowledge.iter_mut().filter_map(Option::take);
        let delete = self.delete.iter_mut().filter_map(Option::take);
        for command in acknowledge.chain(delete) {
            pipeline.add_command(command);
        }
        (pipeline, buried)
    }
}
