//! Cursors of lists: opaque, and refused when they are not ours.

use std::str::FromStr;

use aws_lc_rs::hmac;
use contracts::{Reason, UserId};
use nestling::RpcError;

/// Bytes of the check that a cursor carries, in hexadecimal digits.
const CHECK_DIGITS: usize = 32;

pub(crate) struct CursorKey(hmac::Key);

impl CursorKey {
    pub(crate) fn new(key: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    /// A cursor that starts behind `last`.
    pub(crate) fn write(&self, last: UserId) -> String {
        let last = last.to_string();
        format!("{last}.{}", self.check(&last))
    }

    pub(crate) fn read(&self, cursor: &str) -> Result<UserId, RpcError> {
        let refuse = || Reason::Validation.error("the cursor is not one of ours");
        let (last, check) = cursor.split_once('.').ok_or_else(refuse)?;
        if self.check(last) != check {
            return Err(refuse());
        }
        UserId::from_str(last).map_err(|_| refuse())
    }

    fn check(&self, text: &str) -> String {
        let tag = hmac::sign(&self.0, text.as_bytes());
        let mut digits: String = tag
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        digits.truncate(CHECK_DIGITS);
        digits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_cursors_are_read() {
        let key = CursorKey::new(b"one");
        let id = UserId::new();
        let cursor = key.write(id);
        assert_eq!(key.read(&cursor), Ok(id));
        assert!(CursorKey::new(b"other").read(&cursor).is_err());
        for bad in [
            "",
            ".",
            &id.to_string(),
            &format!("{id}.00"),
            &format!("{}x", cursor),
        ] {
            assert!(key.read(bad).is_err(), "{bad}");
        }
    }
}
