//! Which records of one partition are in work, and how far it may be committed.

use std::collections::VecDeque;

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
    /// What the broker has acknowledged.
    committed: Option<i64>,
    in_work: usize,
}

#[derive(Clone, Copy, Debug)]
struct Taken {
    offset: i64,
    attempt: u32,
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
            in_work: 0,
        }
    }

    /// A record has arrived: the how-manieth attempt it is, or `None` when it is to be skipped
    /// because it is in work or settled already.
    pub(super) fn take(&mut self, offset: i64) -> Option<u32> {
        if offset >= self.next {
            self.next = offset + 1;
            self.in_work += 1;
            self.taken.push_back(Taken {
                offset,
                attempt: 1,
                state: State::InWork,
            });
            return Some(1);
        }
        let taken = self
            .find(offset)
            .filter(|taken| taken.state == State::GivenBack)?;
        taken.state = State::InWork;
        taken.attempt = taken.attempt.saturating_add(1);
        let attempt = taken.attempt;
        self.in_work += 1;
        Some(attempt)
    }

    /// A record is done.
    pub(super) fn settle(&mut self, offset: i64) {
        if self.leave_work(offset, State::Settled) {
            while self
                .taken
                .front()
                .is_some_and(|taken| taken.state == State::Settled)
            {
                self.taken.pop_front();
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

    /// The position the broker does not know yet.
    pub(super) fn uncommitted(&self) -> Option<i64> {
        let position = self.position();
        (self.committed != Some(position)).then_some(position)
    }

    /// The broker has acknowledged `position`.
    pub(super) fn commit(&mut self, position: i64) {
        self.committed = Some(self.committed.map_or(position, |known| known.max(position)));
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

    #[test]
    fn only_the_settled_prefix_is_committed() {
        let mut offsets = Offsets::new(10, true);
        assert_eq!(offsets.uncommitted(), None);
        for offset in 10..14 {
            assert_eq!(offsets.take(offset), Some(1));
        }
        offsets.settle(11);
        offsets.settle(13);
        assert_eq!(offsets.uncommitted(), None);
        offsets.settle(10);
        assert_eq!(offsets.uncommitted(), Some(12));
        offsets.commit(12);
        assert_eq!(offsets.uncommitted(), None);
        offsets.settle(12);
        assert_eq!(offsets.uncommitted(), Some(14));
        assert_eq!((offsets.in_work(), offsets.span()), (0, 0));
    }

    #[test]
    fn gaps_in_the_log_are_passed_over() {
        let mut offsets = Offsets::new(0, true);
        offsets.take(5);
        offsets.take(9);
        offsets.settle(5);
        assert_eq!(offsets.uncommitted(), Some(9));
        offsets.settle(9);
        assert_eq!(offsets.uncommitted(), Some(10));
    }

    #[test]
    fn a_record_given_back_holds_the_commit_and_is_taken_again() {
        let mut offsets = Offsets::new(0, true);
        offsets.take(0);
        offsets.take(1);
        assert!(offsets.give_back(0));
        assert!(!offsets.give_back(0));
        offsets.settle(1);
        assert_eq!(offsets.uncommitted(), None);
        assert_eq!(offsets.take(0), Some(2));
        assert_eq!(offsets.take(1), None, "it is settled");
        assert_eq!(offsets.take(0), None, "it is in work");
        offsets.settle(0);
        assert_eq!(offsets.uncommitted(), Some(2));
    }

    #[test]
    fn a_first_position_is_committed_before_anything_is_taken() {
        let mut offsets = Offsets::new(7, false);
        assert_eq!(offsets.uncommitted(), Some(7));
        offsets.commit(7);
        assert_eq!(offsets.uncommitted(), None);
        offsets.commit(3);
        assert_eq!(
            offsets.committed(),
            Some(7),
            "acknowledgements may overtake each other"
        );
    }
}
