//! [`CallIds`]: the ids of a client's requests.

/// Ids as NestJS makes them: 21 hexadecimal digits. Five say which client it is, where replies to
/// several clients come the same way; the others are the call.
#[derive(Debug)]
pub(in crate::transport) struct CallIds {
    salt: u32,
}

impl CallIds {
    pub(in crate::transport) fn new() -> Self {
        Self {
            salt: fastrand::u32(..1 << 20),
        }
    }

    /// The id of a call.
    pub(in crate::transport) fn text(&self, call: u64) -> String {
        format!("{:05x}{call:016x}", self.salt)
    }

    /// The call that an id in JSON names, if it is one of ours.
    pub(in crate::transport) fn parse(&self, json: &[u8]) -> Option<u64> {
        let digits = json.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
        let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if digits.len() != 21 || !digits.iter().all(is_digit) {
            return None;
        }
        let (salt, call) = std::str::from_utf8(digits).ok()?.split_at(5);
        let is_ours = u32::from_str_radix(salt, 16) == Ok(self.salt);
        u64::from_str_radix(call, 16).ok().filter(|_| is_ours)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_knows_its_own_ids() {
        let (ours, theirs) = (CallIds { salt: 1 }, CallIds { salt: 0xfffff });
        for call in [0, 7, u64::MAX] {
            let json = format!("\"{}\"", ours.text(call));
            assert_eq!(json.len(), 23);
            assert_eq!(ours.parse(json.as_bytes()), Some(call));
            assert_eq!(theirs.parse(json.as_bytes()), None);
        }
        for odd in [
            "",
            "\"",
            "7",
            "\"7\"",
            "\"00001+00000000000001a\"",
            "\"00001000000000000000G\"",
        ] {
            assert_eq!(ours.parse(odd.as_bytes()), None, "{odd}");
        }
    }
}
