//! What is committed beside a position: how often records were tried, and whether anybody who began
//! there has come any further.

use std::{collections::BTreeMap, fmt::Write as _};

/// How many counts go into the metadata of a commit.
pub(super) const MOST_TRIES: usize = 100;
/// What brokers take by default is a little more.
pub(super) const ROOM: usize = 4000;
const TRIES: &str = "tries=";
const BEGUN: &str = "begun=";

/// How often records that are not settled have been tried in vain, by offset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tries(pub(super) BTreeMap<i64, u32>);

/// The metadata of a commit, read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Metadata {
    pub(super) tries: Tries,
    /// How many have begun at this position, none of whom has committed another or handed it over.
    pub(super) begun: u32,
}

impl Metadata {
    /// What somebody else has written there means nothing.
    pub(super) fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for part in text.split(';') {
            if let Some(entries) = part.strip_prefix(TRIES) {
                found.tries = Tries::parse(entries);
            } else if let Some(begun) = part.strip_prefix(BEGUN) {
                found.begun = begun.parse().unwrap_or_default();
            }
        }
        found
    }
}

impl Tries {
    fn parse(entries: &str) -> Self {
        let count = |entry: &str| {
            let (offset, tries) = entry.split_once(':')?;
            Some((offset.parse().ok()?, tries.parse().ok()?))
        };
        Self(
            entries
                .split(',')
                .filter_map(count)
                .take(MOST_TRIES)
                .collect(),
        )
    }

    pub(super) fn of(&self, offset: i64) -> u32 {
        self.0.get(&offset).copied().unwrap_or_default()
    }

    /// The metadata of a commit, of `room` bytes at most: the oldest counts, which whoever reads on
    /// will meet first.
    pub(super) fn metadata(&self, begun: u32, room: usize) -> String {
        let mut metadata = String::new();
        if begun > 0 {
            write!(metadata, "{BEGUN}{begun}").expect("a string takes everything");
        }
        let mut before = match begun {
            0 => TRIES.to_owned(),
            _ => format!(";{TRIES}"),
        };
        let mut fits = metadata.len();
        for (offset, tries) in self.0.iter().take(MOST_TRIES) {
            write!(metadata, "{before}{offset}:{tries}").expect("a string takes everything");
            if metadata.len() > room {
                break;
            }
            fits = metadata.len();
            ",".clone_into(&mut before);
        }
        metadata.truncate(fits);
        match metadata.len() > room {
            true => String::new(),
            false => metadata,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_read_as_it_was_written_and_nonsense_is_left_out() {
        let tries = Tries([(5, 1), (8, 3)].into());
        let check = |text: &str, begun, tries: &Tries| {
            let tries = tries.clone();
            assert_eq!(Metadata::parse(text), Metadata { tries, begun }, "{text:?}");
        };
        assert_eq!(tries.metadata(0, ROOM), "tries=5:1,8:3");
        assert_eq!(tries.metadata(2, ROOM), "begun=2;tries=5:1,8:3");
        check("tries=5:1,8:3", 0, &tries);
        check("begun=2;tries=5:1,8:3", 2, &tries);
        check("more=x;tries=5:1,x:2,7,9:-1,-:,8:3,;begun=-1", 0, &tries);
        for nonsense in ["", "tries=", "5:1", "tries", "begun", ";;"] {
            check(nonsense, 0, &Tries::default());
        }
    }

    #[test]
    fn what_there_is_no_room_for_is_left_out_from_the_end() {
        let tries = Tries([(5, 1), (8, 3)].into());
        assert_eq!(tries.metadata(2, 20), "begun=2;tries=5:1");
        assert_eq!(tries.metadata(2, 16), "begun=2");
        assert_eq!(tries.metadata(0, 12), "tries=5:1");
        for room in 0..7 {
            assert_eq!(tries.metadata(2, room), "");
        }
        let many = (i64::MAX - 500..i64::MAX).map(|offset| (offset, u32::MAX));
        let text = Tries(many.collect()).metadata(u32::MAX, ROOM);
        assert!((3000..=ROOM).contains(&text.len()), "{}", text.len());
        let read = Metadata::parse(&text).tries;
        assert_eq!(read.of(i64::MAX - 500), u32::MAX);
    }
}
