//! The ids of requests: 21 hexadecimal digits, as NestJS's own clients write them.

/// Digits of the salt and of the call.
const SALT: usize = 5;
const CALL: usize = 16;

/// Turns the number of a call into the id of a request, and back.
#[derive(Debug)]
pub(in crate::transport) struct CallIds {
    /// Tells the requests of one client from those of another.
    salt: u32,
}

impl CallIds {
    pub(in crate::transport) fn new() -> Self {
        Self {
            salt: fastrand::u32(..1 << (4 * SALT)),
        }
    }

    /// The id of a call. It needs no escapes in JSON.
    pub(in crate::transport) fn text(&self, call: u64) -> String {
        format!("{:05x}{call:016x}", self.salt)
    }

    /// The call that a reply belongs to, by its id in JSON, if it is one of ours.
    pub(in crate::transport) fn parse(&self, json: &[u8]) -> Option<u64> {
        let id = json.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
        let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if id.len() != SALT + CALL || !id.iter().all(is_digit) {
            return None;
        }
        let (salt, call) = std::str::from_utf8(id).ok()?.split_at(SALT);
        let is_ours = u32::from_str_radix(salt, 16) == Ok(self.salt);
        is_ours.then(|| u64::from_str_radix(call, 16).ok())?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_leads_back_to_its_call_and_no_other_text_does() {
        let ids = CallIds { salt: 0xabc };
        assert_eq!(ids.text(0x1f), "00abc000000000000001f");
        for call in [0, 0x1f, u64::MAX] {
            let json = format!("\"{}\"", ids.text(call));
            assert_eq!(ids.parse(json.as_bytes()), Some(call));
        }
        for json in [
            "",
            "\"",
            "7",
            "\"00abc000000000000001\"",
            "\"00abc0000000000000001f\"",
            "\"00abd000000000000001f\"",
            "\"00ABC000000000000001F\"",
            "\"00abc+00000000000001f\"",
            "\"00ab\u{e9}00000000000001f\"",
        ] {
            assert_eq!(ids.parse(json.as_bytes()), None, "{json}");
        }
    }
}
