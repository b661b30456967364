//! [`CallIds`]: the ids of a client's requests, as texts.

use std::{fmt, ops::Deref};

/// How many hexadecimal digits the salt has; NestJS's ids have 21.
const SALT_DIGITS: usize = 5;
const CALL_DIGITS: usize = 16;

/// Between a call's number and the text that is its id: 21 lower-case hexadecimal digits, of which
/// the first five are the client's own, so that replies to another client's calls are told apart.
#[derive(Debug)]
pub(in crate::transport) struct CallIds {
    salt: u32,
}

impl CallIds {
    pub(in crate::transport) fn new() -> Self {
        Self {
            salt: fastrand::u32(..1 << (4 * SALT_DIGITS)),
        }
    }

    /// The id of a call.
    pub(in crate::transport) fn text(&self, call: u64) -> CallId {
        let mut digits = [b'0'; SALT_DIGITS + CALL_DIGITS];
        let (salt, number) = digits.split_at_mut(SALT_DIGITS);
        write_hex(salt, self.salt.into());
        write_hex(number, call);
        CallId(digits)
    }

    /// The call whose id this is, in JSON; `None` if it is none of this client's.
    pub(in crate::transport) fn parse(&self, json: &[u8]) -> Option<u64> {
        self.parse_text(json.strip_prefix(b"\"")?.strip_suffix(b"\"")?)
    }

    /// The same for an id that is not in JSON.
    pub(in crate::transport) fn parse_text(&self, id: &[u8]) -> Option<u64> {
        let canonical = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if id.len() != SALT_DIGITS + CALL_DIGITS || !id.iter().all(canonical) {
            return None;
        }
        let (salt, call) = std::str::from_utf8(id).ok()?.split_at(SALT_DIGITS);
        if u32::from_str_radix(salt, 16) != Ok(self.salt) {
            return None;
        }
        u64::from_str_radix(call, 16).ok()
    }
}

/// The id of one call, where it needs no allocation. It is its text.
#[derive(Clone, Copy, Debug)]
pub(in crate::transport) struct CallId([u8; SALT_DIGITS + CALL_DIGITS]);

impl Deref for CallId {
    type Target = str;

    fn deref(&self) -> &str {
        std::str::from_utf8(&self.0).expect("digits are ASCII")
    }
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

/// Fills `digits` with as many of the number's last ones.
fn write_hex(digits: &mut [u8], mut number: u64) {
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(number & 0xf) as usize];
        number >>= 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_leads_back_to_its_call() {
        let ids = CallIds::new();
        for call in [0, 7, u64::MAX] {
            let text = ids.text(call);
            assert_eq!(text.len(), 21);
            assert_eq!(ids.parse(format!("\"{text}\"").as_bytes()), Some(call));
            assert_eq!(ids.parse_text(text.as_bytes()), Some(call));
        }
        assert_eq!(&*CallIds { salt: 0xab }.text(1), "000ab0000000000000001");
    }

    #[test]
    fn what_is_no_id_of_ours_is_nobodys() {
        let ids = CallIds { salt: 0xabcde };
        for json in [
            "",
            "7",
            "null",
            "\"",
            "\"abcde000000000000001\"",
            "\"abcde00000000000000011\"",
            "\"abcdf0000000000000001\"",
            "\"ABCDE0000000000000001\"",
            "\"+bcde+000000000000001\"",
            "abcde0000000000000001",
        ] {
            assert_eq!(ids.parse(json.as_bytes()), None, "{json}");
        }
    }
}
