//! Where the samples are collected and checked.

use std::fmt::{Debug, Write};

use nestling::{Codec, Event, Message};
use serde::{Serialize, de::DeserializeOwned};

/// The samples of one service, as text.
#[derive(Default)]
pub(crate) struct Shapes(pub(crate) String);

#[expect(
    clippy::needless_pass_by_value,
    reason = "samples are made where they are used"
)]
impl Shapes {
    pub(crate) fn message<M>(&mut self, request: M, reply: M::Reply)
    where
        M: Message<Reply: Debug + PartialEq + Serialize + DeserializeOwned> + Debug + PartialEq,
        M: Serialize + DeserializeOwned,
    {
        let repeatable = if M::IDEMPOTENT { " (idempotent)" } else { "" };
        self.write(&format!("{}{repeatable}", M::PATTERN), &request);
        self.write("->", &reply);
    }

    pub(crate) fn event<E>(&mut self, event: E)
    where
        E: Event + Debug + PartialEq + Serialize + DeserializeOwned,
    {
        self.write(&format!("{} ({:?})", E::PATTERN, E::DELIVERY), &event);
    }

    /// One more form of something shown before.
    pub(crate) fn also<T: Debug + PartialEq + Serialize + DeserializeOwned>(&mut self, value: T) {
        self.write("or", &value);
    }

    pub(crate) fn write<T>(&mut self, title: &str, value: &T)
    where
        T: Debug + PartialEq + Serialize + DeserializeOwned,
    {
        for codec in [Codec::Json, Codec::Bincode] {
            let bytes = codec.encode(value).unwrap();
            assert_eq!(
                &codec.decode::<T>(&bytes).unwrap(),
                value,
                "{title} in {codec:?}"
            );
        }
        let json = serde_json::to_string_pretty(value).unwrap();
        writeln!(self.0, "{title} {json}\n").unwrap();
    }
}
