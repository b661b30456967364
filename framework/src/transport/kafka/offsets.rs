//! Which records of one partition are in work, and how far it may be committed.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write as _,
};

/// How many counts go into the metadata of a commit, of which brokers take 4096 bytes by default.
const MOST_TRIES: usize = 100;
/// What the metadata of a commit starts with that has counts.
const TRIES: &str = "tries=";

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
}

/// How often records that are not settled have been tried in vain, by offset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tries(BTreeMap<i64, u32>);

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

impl Tries {
    /// Reads the metadata of a commit. What somebody else has written there means nothing.
    pub(super) fn parse(metadata: &str) -> Self {
        let entries = metadata.strip_prefix(TRIES).unwrap_or_default().split(',');
        let count = |entry: &str| {
            let (offset, tries) = entry.split_once(':')?;
            Some((offset.parse().ok()?, tries.parse().ok()?))
        };
        Self(entries.filter_map(count).take(MOST_TRIES).collect())
    }

    fn of(&self, offset: i64) -> u32 {
        self.0.get(&offset).copied().unwrap_or_default()
    }

    /// The metadata of a commit: the oldest of them, which whoever reads on will meet first.
    fn metadata(&self) -> String {
        let mut metadata = String::new();
        for (offset, tries) in self.0.iter().take(MOST_TRIES) {
            let before = if metadata.is_empty() { TRIES } else { "," };
            write!(metadata, "{before}{offset}:{tries}").expect("a string takes everything");
        }
        metadata
    }
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
        }
    }

    /// The same, with what whoever read it before had counted and committed.
    pub(super) fn with_tries(mut self, mut tries: Tries) -> Self {
        self.committed_tries = tries.metadata();
        tries.0 = tries.0.split_off(&self.next);
        self.tries = tries;
        self
    }

    /// A record has arrived: the how-manieth try it is now, or `None` when it is to be skipped
    /// because it is in work or settled already.
    pub(super) fn take(&mut self, offset: i64) -> Option<u32> {
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
        let (position, tries) = (self.position(), self.tries.metadata());
        let is_known = self.committed == Some(position) && self.committed_tries == tries;
        (!is_known).then_some(Commit { position, tries })
    }

    /// The broker has acknowledged this.
    pub(super) fn commit(&mut self, Commit { position, tries }: Commit) {
        self.committed = Some(self.committed.map_or(position, |known| known.max(position)));
        self.committed_tries = tries;
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
        let mut other = Offsets::new(10, true).with_tries(Tries::parse(&commit.tries));
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
    fn counts_that_mean_nothing_are_left_out_and_many_stay_within_the_limit() {
        let parsed = Tries::parse("tries=5:1,x:2,7,9:-1,-:,8:3,");
        assert_eq!(parsed.0.into_iter().collect::<Vec<_>>(), [(5, 1), (8, 3)]);
        for nonsense in ["", "tries=", "5:1", "tries"] {
            assert_eq!(Tries::parse(nonsense), Tries::default(), "{nonsense:?}");
        }
        let mut offsets = Offsets::new(i64::MAX - 2000, true);
        for offset in i64::MAX - 2000..i64::MAX - 1000 {
            offsets.take(offset);
            offsets.tried(offset, u32::MAX);
        }
        let tries = offsets.uncommitted().unwrap().tries;
        assert!(tries.len() < 4000, "{}", tries.len());
        assert_eq!(Tries::parse(&tries).of(i64::MAX - 2000), u32::MAX);
        assert_eq!(offsets.take(i64::MAX - 1000), Some(1));
    }
}
