//! Lists, a page at a time.

use serde::{Deserialize, Serialize};

use crate::error::Fields;

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
        fields.check((1..=100).contains(&self.limit), "/limit", "range", "1 to 100");
    }
}

impl Default for PageRequest {
    fn default() -> Self {
        Self { limit: 25, cursor: None }
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
