//! Which records of one partition are in work, and how far it may be committed.

use std::collections::VecDeque;

use super::metadata::{Metadata, ROOM, Tries};
use crate::transport::trials::DEATHS;

/// The records of a partition that were taken, by offset.
///
/// A commit is a position: everything before it is done for ever. Handlers finish in any order, so
/// only the contiguous prefix of settled records is ever committed.
#[derive(Debug)]
pub(super) struct Offsets {
    /// From the first record that is not settled on, in ascending order.
    taken: VecDeque<Taken>,
    /// One past the last record that was taken.
    next: i64,
    /// What the broker has acknowledged, and the counts it was told with that.
    committed: Option<i64>,
    committed_tries: String,
    tries: Tries,
    in_work: usize,
    /// Where this reader began, and the how-manieth it is to begin there; 0 if that is not counted.
    began_at: i64,
    begun: u32,
    /// Whether the broker knows of it.
    announced: bool,
    /// Records before this one may have ended their readers.
    careful_until: i64,
    /// How much metadata the broker takes.
    room: usize,
}

/// What the broker is to be told of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Commit {
    pub(super) position: i64,
    /// The metadata of the commit.
    pub(super) tries: String,
}

#[derive(Clone, Copy, Debug)]
struct Taken {
    offset: i64,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    InWork,
    Settled,
    /// To be read from the broker again.
    GivenBack,
}

impl Offsets {
    /// Nothing taken, reading from `position`; `committed` says whether the broker knows that.
    pub(super) fn new(position: i64, committed: bool) -> Self {
        Self {
            taken: VecDeque::new(),
            next: position,
            committed: committed.then_some(position),
            committed_tries: String::new(),
            tries: Tries::default(),
            in_work: 0,
            began_at: position,
            begun: 0,
            announced: true,
            careful_until: position,
            room: ROOM,
        }
    }

    /// The same, with what whoever read it before had committed with the position. Nothing is
    /// delivered before the broker knows that this reader has begun.
    pub(super) fn began(mut self, Metadata { mut tries, begun }: Metadata) -> Self {
        self.committed_tries = tries.metadata(begun, self.room);
        tries.0 = tries.0.split_off(&self.next);
        self.tries = tries;
        self.begun = begun.saturating_add(1);
        self.announced = false;
        self
    }

    /// Whether those before this reader have died here, too often for chance.
    pub(super) fn is_suspect(&self) -> bool {
        u64::from(self.begun) > DEATHS
    }

    /// Records before `offset` are taken one after the other.
    pub(super) fn be_careful_until(&mut self, offset: i64) {
        self.careful_until = offset;
    }

    pub(super) fn is_careful(&self) -> bool {
        self.next < self.careful_until
    }

    /// Whether records may be delivered.
    pub(super) fn is_announced(&self) -> bool {
        self.announced || self.uncommitted().is_none()
    }

    /// This reader ends in good order: whoever comes next begins anew.
    pub(super) fn hand_over(&mut self) {
        self.begun = 0;
    }

    /// What there is room for in what the broker takes.
    pub(super) fn set_room(&mut self, room: usize) {
        self.room = room;
    }

    /// A record has arrived: the how-manieth try it is now, or `None` when it is to be skipped
    /// because it is in work or settled already.
    pub(super) fn take(&mut self, offset: i64) -> Option<u32> {
        if offset < self.position() {
            // Nobody asks for what lies before the position: the log has begun anew.
            tracing::error!(
                offset,
                position = self.position(),
                "the broker has lost a log"
            );
            let room = self.room;
            *self = Self::new(offset, false);
            self.room = room;
        }
        if offset >= self.next {
            self.next = offset + 1;
            self.in_work += 1;
            self.taken.push_back(Taken {
                offset,
                state: State::InWork,
            });
        } else {
            let taken = self
                .find(offset)
                .filter(|taken| taken.state == State::GivenBack)?;
            taken.state = State::InWork;
            self.in_work += 1;
        }
        Some(self.tries.of(offset).saturating_add(1))
    }

    /// A record in work has been tried in vain, so often by now.
    pub(super) fn tried(&mut self, offset: i64, attempts: u32) {
        let is_in_work = |taken: &mut Taken| taken.state == State::InWork;
        if self.find(offset).is_some_and(is_in_work) {
            let tries = self.tries.0.entry(offset).or_default();
            *tries = attempts.max(*tries);
        }
    }

    /// A record that was said to be tried has not been.
    pub(super) fn untried(&mut self, offset: i64, attempt: u32) {
        if self.tries.of(offset) == attempt {
            match attempt {
                0 | 1 => self.tries.0.remove(&offset),
                _ => self.tries.0.insert(offset, attempt - 1),
            };
        }
    }

    /// A record is done.
    pub(super) fn settle(&mut self, offset: i64) {
        if self.leave_work(offset, State::Settled) {
            self.tries.0.remove(&offset);
            while self
                .taken
                .front()
                .is_some_and(|taken| taken.state == State::Settled)
            {
                self.taken.pop_front();
            }
            // Those of records that are not in the log any more were never taken.
            let position = self.position();
            while self
                .tries
                .0
                .first_entry()
                .is_some_and(|entry| *entry.key() < position)
            {
                self.tries.0.pop_first();
            }
        }
    }

    /// A record is not done and has to be read again; true when it was in work.
    pub(super) fn give_back(&mut self, offset: i64) -> bool {
        self.leave_work(offset, State::GivenBack)
    }

    fn leave_work(&mut self, offset: i64, state: State) -> bool {
        match self.find(offset) {
            Some(taken) if taken.state == State::InWork => {
                taken.state = state;
                self.in_work -= 1;
                true
            }
            _ => false,
        }
    }

    fn find(&mut self, offset: i64) -> Option<&mut Taken> {
        let index = self
            .taken
            .binary_search_by_key(&offset, |taken| taken.offset)
            .ok()?;
        self.taken.get_mut(index)
    }

    /// The end of the settled prefix.
    pub(super) fn position(&self) -> i64 {
        self.taken.front().map_or(self.next, |taken| taken.offset)
    }

    /// What the broker does not know yet.
    pub(super) fn uncommitted(&self) -> Option<Commit> {
        let position = self.position();
        // Whoever has to be careful after us learns it by this, however far we have come.
        let is_of_use = position == self.began_at || position < self.careful_until;
        let begun = if is_of_use { self.begun } else { 0 };
        let tries = self.tries.metadata(begun, self.room);
        let is_known = self.committed == Some(position) && self.committed_tries == tries;
        (!is_known).then_some(Commit { position, tries })
    }

    /// The broker has acknowledged this.
    pub(super) fn commit(&mut self, Commit { position, tries }: Commit) {
        self.committed = Some(self.committed.map_or(position, |known| known.max(position)));
        self.committed_tries = tries;
        self.announced = true;
    }

    /// How far the broker has acknowledged, if at all.
    pub(super) fn committed(&self) -> Option<i64> {
        self.committed
    }

    /// How many records are handed out.
    pub(super) fn in_work(&self) -> usize {
        self.in_work
    }

    /// How many records lie between the first unsettled one and the last taken.
    pub(super) fn span(&self) -> usize {
        self.taken.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The position that is not committed.
    fn uncommitted(offsets: &Offsets) -> Option<i64> {
        offsets.uncommitted().map(|commit| commit.position)
    }

    fn commit(offsets: &mut Offsets, position: i64) {
        let tries = String::new();
        offsets.commit(Commit { position, tries });
    }

    #[test]
    fn only_the_settled_prefix_is_committed() {
        let mut offsets = Offsets::new(10, true);
        assert_eq!(uncommitted(&offsets), None);
        for offset in 10..14 {
            assert_eq!(offsets.take(offset), Some(1));
        }
        offsets.settle(11);
        offsets.settle(13);
        assert_eq!(uncommitted(&offsets), None);
        offsets.settle(10);
        assert_eq!(uncommitted(&offsets), Some(12));
        commit(&mut offsets, 12);
        assert_eq!(uncommitted(&offsets), None);
        offsets.settle(12);
        assert_eq!(uncommitted(&offsets), Some(14));
        assert_eq!((offsets.in_work(), offsets.span()), (0, 0));
    }

    #[test]
    fn gaps_in_the_log_are_passed_over() {
        let mut offsets = Offsets::new(0, true);
        offsets.take(5);
        offsets.take(9);
        offsets.settle(5);
        assert_eq!(uncommitted(&offsets), Some(9));
        offsets.settle(9);
        assert_eq!(uncommitted(&offsets), Some(10));
    }

    #[test]
    fn a_record_given_back_holds_the_commit_and_is_taken_again() {
        let mut offsets = Offsets::new(0, true);
        offsets.take(0);
        offsets.take(1);
        assert!(offsets.give_back(0));
        assert!(!offsets.give_back(0));
        offsets.settle(1);
        assert_eq!(uncommitted(&offsets), None);
        assert_eq!(offsets.take(0), Some(1), "nobody has said it was tried");
        assert_eq!(offsets.take(1), None, "it is settled");
        assert_eq!(offsets.take(0), None, "it is in work");
        offsets.settle(0);
        assert_eq!(uncommitted(&offsets), Some(2));
    }

    #[test]
    fn a_first_position_is_committed_before_anything_is_taken() {
        let mut offsets = Offsets::new(7, false);
        assert_eq!(uncommitted(&offsets), Some(7));
        commit(&mut offsets, 7);
        assert_eq!(uncommitted(&offsets), None);
        commit(&mut offsets, 3);
        assert_eq!(
            offsets.committed(),
            Some(7),
            "acknowledgements may overtake each other"
        );
    }

    #[test]
    fn failed_tries_are_counted_and_committed_with_the_position() {
        let mut offsets = Offsets::new(10, true);
        for offset in 10..13 {
            offsets.take(offset);
        }
        offsets.tried(12, 1);
        offsets.tried(10, 2);
        offsets.tried(10, 1);
        let commit = offsets.uncommitted().unwrap();
        assert_eq!((commit.position, &*commit.tries), (10, "tries=10:2,12:1"));
        offsets.commit(commit.clone());
        assert_eq!(offsets.uncommitted(), None);
        assert!(offsets.give_back(10));
        assert_eq!(offsets.take(10), Some(3));

        // Somebody else goes on.
        let mut other = Offsets::new(10, true).began(Metadata::parse(&commit.tries));
        let announcement = other.uncommitted().unwrap();
        assert_eq!(announcement.tries, "begun=1;tries=10:2,12:1");
        other.commit(announcement);
        assert_eq!(other.uncommitted(), None);
        assert_eq!(other.take(10), Some(3));
        assert_eq!(other.take(11), Some(1));
        other.settle(10);
        let commit = other.uncommitted().unwrap();
        assert_eq!((commit.position, &*commit.tries), (11, "tries=12:1"));
        assert_eq!(other.take(13), Some(1), "12 is gone from the log");
        other.settle(11);
        let commit = other.uncommitted().unwrap();
        assert_eq!((commit.position, &*commit.tries), (13, ""));
        other.tried(9, 1);
        other.tried(20, 1);
        assert!(other.uncommitted().unwrap().tries.is_empty());
    }

    #[test]
    fn many_counts_stay_within_the_limit() {
        let mut offsets = Offsets::new(i64::MAX - 2000, true);
        for offset in i64::MAX - 2000..i64::MAX - 1000 {
            offsets.take(offset);
            offsets.tried(offset, u32::MAX);
        }
        let tries = offsets.uncommitted().unwrap().tries;
        assert!(tries.len() <= ROOM, "{}", tries.len());
        let read = Metadata::parse(&tries).tries;
        assert_eq!(read.of(i64::MAX - 2000), u32::MAX);
        assert_eq!(offsets.take(i64::MAX - 1000), Some(1));
        offsets.set_room(0);
        assert_eq!(offsets.uncommitted(), None, "there is nothing to be said");
    }

    /// One reader after the other begins at 10 and dies, or comes further first.
    #[test]
    fn readers_that_die_where_they_began_are_counted() {
        let begin = |metadata: &str| Offsets::new(10, true).began(Metadata::parse(metadata));
        let mut metadata = String::new();
        for reader in 1..=3 {
            let mut offsets = begin(&metadata);
            assert!(!offsets.is_announced());
            assert_eq!(offsets.is_suspect(), reader == 3);
            let commit = offsets.uncommitted().unwrap();
            metadata = commit.tries.clone();
            assert_eq!(metadata, format!("begun={reader}"));
            offsets.commit(commit);
            assert!(offsets.is_announced());
            assert_eq!(offsets.uncommitted(), None);
            offsets.take(10);
        }
        let mut careful = begin(&metadata);
        careful.be_careful_until(12);
        for (offset, metadata) in [(10, "begun=4"), (11, "")] {
            careful.take(offset);
            careful.settle(offset);
            let commit = careful.uncommitted().unwrap();
            assert_eq!((commit.position, &*commit.tries), (offset + 1, metadata));
        }
        let mut further = begin(&metadata);
        further.take(10);
        further.settle(10);
        let commit = further.uncommitted().unwrap();
        assert_eq!((commit.position, &*commit.tries), (11, ""));
        let mut orderly = begin(&metadata);
        orderly.commit(orderly.uncommitted().unwrap());
        orderly.hand_over();
        let commit = orderly.uncommitted().unwrap();
        assert_eq!((commit.position, &*commit.tries), (10, ""));
    }

    #[test]
    fn a_log_that_was_lost_is_read_from_where_it_begins_anew() {
        let mut offsets = Offsets::new(100, true);
        offsets.take(100);
        assert_eq!(offsets.take(3), Some(1));
        assert_eq!(uncommitted(&offsets), Some(3));
        assert_eq!(offsets.take(4), Some(1));
        offsets.settle(100);
        offsets.settle(3);
        assert_eq!(uncommitted(&offsets), Some(4));
    }

    #[test]
    fn a_try_that_is_noted_and_does_not_begin_does_not_count() {
        let mut offsets = Offsets::new(10, true);
        offsets.be_careful_until(11);
        assert!(offsets.is_careful());
        let attempt = offsets.take(10).unwrap();
        assert!(!offsets.is_careful());
        offsets.tried(10, attempt);
        assert_eq!(offsets.uncommitted().unwrap().tries, "tries=10:1");
        offsets.untried(10, attempt);
        assert_eq!(offsets.uncommitted(), None);
        offsets.tried(10, 5);
        offsets.untried(10, 5);
        assert_eq!(offsets.uncommitted().unwrap().tries, "tries=10:4");
    }
}
