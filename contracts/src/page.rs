//! Lists, a page at a time.

use nestling::RpcError;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::error::{Fields, Reason};

/// Which page of a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PageRequest {
    /// How many items, 1 to 100.
    pub limit: u32,
    /// The `next_cursor` of the page before.
    pub cursor: Option<String>,
}

impl PageRequest {
    /// Notes a limit that is out of range.
    pub fn check(&self, fields: &mut Fields) {
        fields.check(
            (1..=100).contains(&self.limit),
            "/limit",
            "range",
            "1 to 100",
        );
    }
}

impl Default for PageRequest {
    fn default() -> Self {
        Self {
            limit: 25,
            cursor: None,
        }
    }
}

/// A page of a list. Following the cursors shows every item that was there all the time once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Where the next page starts; none after the last.
    pub next_cursor: Option<String>,
}

/// Where a page ended: the sort key and id of its last item, as text that means nothing to anybody
/// else. Services bind what it holds as parameters, so a forged one finds another place and no more.
#[derive(Clone, Copy, Debug)]
pub struct Cursor;

impl Cursor {
    /// The text for a position.
    pub fn encode(position: &impl Serialize) -> String {
        let json = serde_json::to_vec(position).unwrap_or_default();
        json.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The position of a text.
    ///
    /// # Errors
    /// `validation` when it is not one of ours.
    pub fn decode<T: DeserializeOwned>(text: &str) -> Result<T, RpcError> {
        let digits: Option<Vec<u32>> = text.chars().map(|digit| digit.to_digit(16)).collect();
        let bytes = digits.filter(|digits| digits.len() % 2 == 0).map(|digits| {
            digits
                .chunks(2)
                .map(|pair| (pair[0] * 16 + pair[1]) as u8)
                .collect::<Vec<_>>()
        });
        let position = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        position.ok_or_else(|| {
            let mut fields = Fields::new();
            fields.check(
                false,
                "/cursor",
                "cursor",
                "the next_cursor of an earlier page",
            );
            let invalid = fields.finish().err();
            invalid.unwrap_or_else(|| Reason::Validation.error("the cursor is not valid"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_survives_and_a_forged_one_is_refused() {
        let text = Cursor::encode(&("näme", 7));
        assert_eq!(
            Cursor::decode::<(String, i64)>(&text),
            Ok(("näme".to_owned(), 7))
        );
        for forged in ["", "7", "zz", "ff", "äö"] {
            let error = Cursor::decode::<(String, i64)>(forged).unwrap_err();
            assert_eq!(Reason::of(&error), Some(Reason::Validation), "{forged}");
        }
    }
}
