//! The membership of a service in its consumer group, on a thread of its own.
//!
//! The thread polls the consumer, which is when the library reports rebalances and commits. The
//! records themselves go to a queue per partition that a [`PartitionSource`] reads, so neither a
//! slow handler nor a full partition ever keeps the consumer from being polled.

mod commits;
mod placing;

use std::{
    collections::HashMap,
    future::Future,
    io,
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use futures_util::task::AtomicWaker;
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, RebalanceProtocol},
    error::{KafkaError, KafkaResult},
    message::Message as _,
    types::RDKafkaRespErr,
};
use tokio::sync::{mpsc, watch};

use self::commits::{Commits, add};
use super::{
    Logged,
    burial::Burial,
    carries::Carries,
    clock,
    mender::Mender,
    metadata::ROOM,
    offsets::Offsets,
    partition::{Partition, PartitionSource},
    patiently,
    record::Foreign,
    replies::ReplyWriter,
};
use crate::transport::{
    Rejection, Source, Subscription, clock::Clock, pending::lock, trials::Trials,
};

/// How long one poll of the consumer waits.
const TICK: Duration = Duration::from_millis(50);
/// How long the library may take to look up committed offsets, in a rebalance.
const LOOKUP: Duration = Duration::from_secs(5);
/// How long work on a partition may go on before it is given to somebody else. What takes longer
/// is handled twice.
const HANDOVER: Duration = Duration::from_secs(1);
/// How long the last replies may take at the end.
const FLUSH: Duration = Duration::from_secs(3);
/// How long to wait before a consumer is replaced, at first and at most.
const PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A consumer that served this long was replaced for a reason of its own.
const STEADY: Duration = Duration::from_secs(60);
/// How long leaving the group may take.
const LEAVE: Duration = Duration::from_secs(2);
const LEAVE_TICK: Duration = Duration::from_millis(5);

pub(super) type GroupContext = Logged<Arc<Group>>;
pub(super) type GroupConsumer = BaseConsumer<GroupContext>;
type Positions = HashMap<(String, i32), i64>;

/// What the thread, the sources and the responders share.
pub(super) struct Group {
    pub(super) replies: ReplyWriter,
    burial: Burial,
    /// What time it is at the brokers.
    pub(super) clock: Arc<Clock>,
    pub(super) mender: Mender,
    /// The name of the group.
    service: String,
    /// What the broker knows this process by, for as long as it runs.
    pub(super) client_id: String,
    /// How many records of a partition may be taken and not settled.
    pub(super) most_taken: usize,
    /// How much metadata the broker takes with a commit.
    metadata_room: AtomicUsize,
    pub(super) trials: Trials,
    carried: HashMap<String, Arc<Carries>>,
    /// Where to begin in partitions that this service has never read.
    begin: OnceLock<Positions>,
    consumer: Mutex<Weak<GroupConsumer>>,
    partitions: Mutex<Vec<Arc<Partition>>>,
    commits: Commits,
    sources: Mutex<Option<mpsc::UnboundedSender<Box<dyn Source>>>>,
    phase: watch::Sender<Phase>,
    closing: AtomicBool,
    open: AtomicUsize,
    foreign: AtomicBool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Joining,
    /// It has partitions, possibly none.
    Assigned,
    /// The broker knows the position in each of them.
    Placed,
    Ended,
}

impl Group {
    pub(super) fn new(
        (replies, burial, mender): (ReplyWriter, Burial, Mender),
        carried: HashMap<String, Carries>,
        subscription: &Subscription,
        sources: mpsc::UnboundedSender<Box<dyn Source>>,
    ) -> Arc<Self> {
        let carried = carried
            .into_iter()
            .map(|(topic, what)| (topic, Arc::new(what)))
            .collect();
        let Subscription {
            service,
            instance,
            max_in_flight,
            ..
        } = subscription;
        Arc::new(Self {
            replies,
            burial,
            clock: clock::agreeing(),
            mender,
            service: service.clone(),
            client_id: format!("{service}.{instance}.{:08x}", fastrand::u32(..)),
            most_taken: max_in_flight.saturating_mul(4).max(1024),
            metadata_room: AtomicUsize::new(ROOM),
            trials: Trials::new(),
            carried,
            begin: OnceLock::new(),
            consumer: Mutex::default(),
            partitions: Mutex::default(),
            commits: Commits::default(),
            sources: Mutex::new(Some(sources)),
            phase: watch::Sender::new(Phase::Joining),
            closing: AtomicBool::new(false),
            open: AtomicUsize::new(0),
            foreign: AtomicBool::new(false),
        })
    }

    /// Makes the consumer. It does not join before [`start`](Self::start).
    pub(super) fn connect(
        self: &Arc<Self>,
        config: &ClientConfig,
    ) -> KafkaResult<Arc<GroupConsumer>> {
        let context = Logged::new(Arc::clone(self));
        let consumer = Arc::new(GroupConsumer::from_config_and_context(config, context)?);
        // Before it is polled first, so that the callbacks find it.
        *lock(&self.consumer) = Arc::downgrade(&consumer);
        Ok(consumer)
    }

    /// Finds out where to begin in topics that this service has never read: most at their end, as it
    /// is now. Blocks.
    pub(super) fn find_ends(
        &self,
        consumer: &GroupConsumer,
        partitions: &HashMap<String, i32>,
    ) -> KafkaResult<()> {
        let mut all = TopicPartitionList::new();
        for (topic, count) in partitions {
            let carries = self.carried.get(topic);
            if carries.is_some_and(|carries| carries.begins_at_end()) {
                all.add_partition_range(topic, 0, count - 1);
            }
        }
        let mut ends = Positions::new();
        if all.count() > 0 {
            let committed = patiently(|| consumer.committed_offsets(all.clone(), LOOKUP))?;
            let mut never_read = TopicPartitionList::new();
            for topic in partitions.keys() {
                let elements = committed.elements_for_topic(topic);
                // A partition that was added to a topic is read from its beginning.
                if elements
                    .iter()
                    .all(|element| position(element.offset()).is_none())
                {
                    for element in &elements {
                        never_read.add_partition_offset(topic, element.partition(), Offset::End)?;
                    }
                }
            }
            if never_read.count() > 0 {
                let found = patiently(|| consumer.offsets_for_times(never_read.clone(), LOOKUP))?;
                for element in found.elements() {
                    if let Some(end) = position(element.offset()) {
                        ends.insert((element.topic().to_owned(), element.partition()), end);
                    }
                }
            }
        }
        if self.begin.set(ends).is_err() {
            tracing::error!("a Kafka group has been started twice");
        }
        Ok(())
    }

    /// Joins the group and polls until [`close`](Self::close).
    pub(super) fn start(
        self: Arc<Self>,
        consumer: Arc<GroupConsumer>,
        config: ClientConfig,
    ) -> io::Result<()> {
        let work = move || self.run(consumer, &config);
        thread::Builder::new()
            .name("kafka-group".to_owned())
            .spawn(work)
            .map(drop)
    }

    /// Serves with one consumer after the other: the library gives one up for good when the broker
    /// takes it for another with its instance name, as it does its own rejoining after an outage.
    fn run(self: Arc<Self>, mut consumer: Arc<GroupConsumer>, config: &ClientConfig) {
        let mut pause = PAUSE;
        loop {
            let began = Instant::now();
            self.serve(&consumer);
            if self.is_finished() {
                break;
            }
            self.retire(consumer);
            if began.elapsed() > STEADY {
                pause = PAUSE;
            }
            consumer = loop {
                self.rest(pause.mul_f64(0.5 + fastrand::f64() / 2.0));
                pause = (pause * 2).min(LONGEST_PAUSE);
                if self.is_finished() {
                    return self.end();
                }
                match self.connect(config) {
                    Ok(consumer) => break consumer,
                    Err(error) => tracing::error!(%error, "make a Kafka consumer"),
                }
            };
        }
        self.replies.flush(FLUSH);
        // What is in work once all sources have closed are dead letters that are being stored.
        let deadline = Instant::now() + FLUSH;
        let partitions = lock(&self.partitions).clone();
        for partition in partitions {
            partition.wait_idle(deadline);
        }
        self.retire(consumer);
        self.end();
    }

    fn is_finished(&self) -> bool {
        self.closing.load(Ordering::Acquire) && self.open.load(Ordering::Acquire) == 0
    }

    fn rest(&self, pause: Duration) {
        let deadline = Instant::now() + pause;
        while !self.is_finished() && Instant::now() < deadline {
            thread::sleep(TICK);
        }
    }

    /// Joins and polls until the service closes or the consumer fails for good.
    fn serve(self: &Arc<Self>, consumer: &Arc<GroupConsumer>) {
        let topics: Vec<&str> = self.carried.keys().map(String::as_str).collect();
        if topics.is_empty() {
            self.reach(Phase::Placed);
        } else if let Err(error) = consumer.subscribe(&topics) {
            return tracing::error!(%error, "subscribe to Kafka topics");
        }
        lock(&self.commits.wanted).ended = false;
        let committer = {
            let (group, consumer) = (Arc::clone(self), Arc::clone(consumer));
            let work = move || group.commit_settled(&consumer);
            thread::Builder::new()
                .name("kafka-commit".to_owned())
                .spawn(work)
        };
        let committer = match committer {
            Ok(committer) => committer,
            Err(error) => return tracing::error!(%error, "start a thread"),
        };
        self.poll(consumer);
        lock(&self.commits.wanted).ended = true;
        self.commits.signal.notify_one();
        if committer.join().is_err() {
            tracing::error!("the thread that commits to Kafka has panicked");
        }
    }

    fn poll(&self, consumer: &GroupConsumer) {
        while !self.is_finished() {
            match consumer.poll(TICK) {
                None => {}
                Some(Ok(message)) => {
                    // It was fetched before its queue was set apart. Read it again.
                    let (topic, partition) = (message.topic(), message.partition());
                    seek(consumer, topic, partition, message.offset());
                }
                Some(Err(error @ KafkaError::MessageConsumptionFatal(_))) => {
                    return tracing::warn!(%error, "the Kafka consumer has failed for good and is replaced");
                }
                // The context has logged it.
                Some(Err(error)) => self.mender.hear(&error),
            }
            if self.mender.has_mended() {
                return tracing::warn!("the Kafka consumer is replaced: topics were made again");
            }
            let now = Instant::now();
            for partition in lock(&self.partitions).iter() {
                if let Some(offset) = partition.take_again(now) {
                    seek(consumer, &partition.topic, partition.number, offset);
                }
            }
            self.replies.send_late();
        }
    }

    fn end(&self) {
        lock(&self.sources).take();
        self.reach(Phase::Ended);
    }

    /// Leaves the group and closes the consumer.
    fn retire(&self, consumer: Arc<GroupConsumer>) {
        // A static member that only closed would leave its partitions unread until its session
        // ends; one that was killed comes back under its name at once.
        consumer.unsubscribe();
        let deadline = Instant::now() + LEAVE;
        let remains = || {
            // The library does not leave any more once it is being closed, so it is waited for.
            !lock(&self.partitions).is_empty() || self.is_member(&consumer)
        };
        while consumer.client().fatal_error().is_none() && Instant::now() < deadline && remains() {
            // Whatever is read now is somebody else's.
            drop(consumer.poll(LEAVE_TICK));
        }
        let left = std::mem::take(&mut *lock(&self.partitions));
        for partition in left {
            partition.revoke();
        }
        drop(consumer);
    }

    /// Whether the broker counts this consumer among the group.
    fn is_member(&self, consumer: &GroupConsumer) -> bool {
        match consumer.fetch_group_list(Some(&self.service), LEAVE) {
            Ok(list) => list.groups().iter().any(|group| {
                group
                    .members()
                    .iter()
                    .any(|member| member.client_id() == self.client_id)
            }),
            Err(error) => {
                tracing::debug!(%error, "ask Kafka for a group's members");
                false
            }
        }
    }

    /// Takes over partitions. Runs on the thread, inside a poll.
    fn assign(self: &Arc<Self>, consumer: &GroupConsumer, list: &mut TopicPartitionList) {
        let committed = Self::look_up(consumer, list);
        let mut taken = Vec::new();
        for mut element in list.elements() {
            let key = (element.topic().to_owned(), element.partition());
            let offsets = self.place(consumer, &key, &committed);
            let from = match committed.get(&key) {
                Some(_) => Offset::Offset(offsets.position()),
                None => Offset::Stored,
            };
            if let Err(error) = element.set_offset(from) {
                tracing::error!(%error, "place a Kafka consumer");
            }
            taken.extend(self.take_over(key, offsets));
        }
        let assigned = match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_assign(list),
            _ => consumer.assign(list),
        };
        if let Err(error) = assigned {
            tracing::error!(%error, "assign Kafka partitions");
        }
        tracing::debug!(partitions = taken.len(), "assigned");
        lock(&self.partitions).extend(taken.iter().cloned());
        if let Some(sources) = &*lock(&self.sources) {
            for partition in taken {
                let source = PartitionSource::new(Arc::clone(self), partition);
                // Nobody listens any more: the server is being torn down.
                sources.send(Box::new(source)).unwrap_or_default();
            }
        }
        self.reach(Phase::Assigned);
        self.note_placed();
        self.commit_soon();
    }

    /// Sets a queue apart for a partition, before anything can be fetched for it.
    fn take_over(
        &self,
        (topic, number): (String, i32),
        offsets: Offsets,
    ) -> Option<Arc<Partition>> {
        let carries = Arc::clone(self.carried.get(&topic)?);
        let consumer = lock(&self.consumer).upgrade()?;
        let waker = Arc::new(AtomicWaker::new());
        let mut queue = consumer.split_partition_queue(&topic, number)?;
        let wake = Arc::clone(&waker);
        queue.set_nonempty_callback(move || wake.wake());
        Some(Arc::new(Partition::new(
            topic,
            number,
            carries,
            offsets,
            Some(queue),
            waker,
        )))
    }

    /// Hands partitions over. Runs on the thread, inside a poll.
    fn revoke(&self, consumer: &GroupConsumer, list: &TopicPartitionList) {
        let mut revoked = Vec::new();
        lock(&self.partitions).retain(|partition| {
            let gone = list
                .find_partition(&partition.topic, partition.number)
                .is_some();
            if gone {
                revoked.push(Arc::clone(partition));
            }
            !gone
        });
        // Once the commit that is under way has ended it is known what is committed.
        drop(lock(&self.commits.under_way));
        for partition in &revoked {
            partition.revoke();
        }
        if !consumer.assignment_lost() {
            let deadline = Instant::now() + HANDOVER;
            let mut settled = TopicPartitionList::new();
            for partition in revoked
                .iter()
                .filter(|partition| !partition.commits_first())
            {
                partition.wait_idle(deadline);
                partition.hand_over();
                if let Some(commit) = partition.uncommitted(self.metadata_room()) {
                    add(&mut settled, partition, &commit);
                }
            }
            if settled.count() > 0
                && let Err(error) = consumer.commit(&settled, CommitMode::Sync)
            {
                tracing::warn!(%error, "some records will be handled again");
            }
        }
        let unassigned = match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_unassign(list),
            _ => consumer.unassign(),
        };
        if let Err(error) = unassigned {
            tracing::warn!(%error, "give Kafka partitions back");
        }
        tracing::debug!(partitions = revoked.len(), "revoked");
    }

    fn reach(&self, phase: Phase) {
        self.phase.send_if_modified(|current| {
            let later = *current < phase;
            *current = phase.max(*current);
            later
        });
    }

    fn note_placed(&self) {
        if lock(&self.partitions)
            .iter()
            .all(|partition| partition.is_placed())
        {
            self.reach(Phase::Placed);
        }
    }

    /// Waits until the group has come this far.
    pub(super) async fn reached(&self, phase: Phase) -> Phase {
        let mut phases = self.phase.subscribe();
        match phases.wait_for(|current| *current >= phase).await {
            Ok(current) => *current,
            Err(_) => Phase::Ended,
        }
    }

    /// Once every source has closed the thread ends.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
    }

    /// Waits until the consumer is closed, if that has been asked for.
    pub(super) fn closed(self: &Arc<Self>) -> impl Future<Output = ()> + Send + use<> {
        let group = Arc::clone(self);
        async move {
            if group.closing.load(Ordering::Acquire) {
                group.reached(Phase::Ended).await;
            }
        }
    }

    /// Whether no source is open.
    pub(super) fn is_idle(&self) -> bool {
        self.open.load(Ordering::Acquire) == 0
    }

    pub(super) fn source_opened(&self) {
        self.open.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn source_closed(&self) {
        self.open.fetch_sub(1, Ordering::AcqRel);
    }

    /// An event that is given up: stored, and settled then.
    pub(super) fn bury(&self, partition: &Arc<Partition>, offset: i64, rejection: Rejection) {
        partition.end_trial(offset, None);
        self.burial
            .bury(&self.service, partition, offset, rejection);
    }

    /// A record that is read by nobody here.
    pub(super) fn skip(&self, topic: &str, offset: i64, foreign: Foreign) {
        if self.foreign.swap(true, Ordering::Relaxed) {
            tracing::debug!(topic, offset, ?foreign, "record skipped");
        } else {
            tracing::warn!(
                topic,
                offset,
                ?foreign,
                "a record is for nobody here; such are skipped"
            );
        }
    }
}

impl ConsumerContext for GroupContext {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        event: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        match event {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                self.owner.assign(consumer, list)
            }
            _ => self.owner.revoke(consumer, list),
        }
    }
}

fn position(offset: Offset) -> Option<i64> {
    match offset {
        Offset::Offset(position) => Some(position),
        _ => None,
    }
}

/// Reads a partition again from `offset`, without waiting.
fn seek(consumer: &GroupConsumer, topic: &str, partition: i32, offset: i64) {
    if let Err(error) = consumer.seek(topic, partition, Offset::Offset(offset), Duration::ZERO) {
        tracing::warn!(topic, partition, offset, %error, "read again from Kafka");
    }
}
