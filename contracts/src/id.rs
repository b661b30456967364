//! Ids: newtypes over UUIDs, with a text form that says what they are ids of.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::Uuid;

/// Crockford's base 32: no I, L, O, U.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
/// 26 digits of 5 bits hold the 128 bits of a UUID.
const DIGITS: usize = 26;

/// Why a text is not an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// It belongs to something else, or to nothing.
    #[error("an id of this kind starts with {0:?}")]
    Prefix(&'static str),
    /// What follows the prefix is not 26 characters of Crockford's base 32.
    #[error("an id ends with 26 characters of Crockford's base 32")]
    Digits,
}

fn encode(id: Uuid) -> [u8; DIGITS] {
    let mut rest = id.as_u128();
    let mut text = [0; DIGITS];
    for digit in text.iter_mut().rev() {
        *digit = ALPHABET[(rest & 31) as usize];
        rest >>= 5;
    }
    text
}

fn decode(text: &str) -> Option<Uuid> {
    if text.len() != DIGITS {
        return None;
    }
    let mut value: u128 = 0;
    for (position, byte) in text.bytes().enumerate() {
        let upper = byte.to_ascii_uppercase();
        let digit = ALPHABET.iter().position(|known| *known == upper)?;
        // The first digit carries the top three bits only.
        if position == 0 && digit > 7 {
            return None;
        }
        value = (value << 5) | digit as u128;
    }
    Some(Uuid::from_u128(value))
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal;)*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
            pub struct $name(Uuid);

            impl $name {
                /// What its text form starts with.
                pub const PREFIX: &'static str = $prefix;

                /// A new one, ordered by time.
                #[expect(clippy::new_without_default, reason = "each call makes another")]
                pub fn new() -> Self {
                    Self(Uuid::now_v7())
                }

                /// The one that belongs to `name`: the same each time it is asked for.
                pub fn derive(name: &str) -> Self {
                    let namespace = Uuid::new_v5(&Uuid::NAMESPACE_OID, $prefix.as_bytes());
                    Self(Uuid::new_v5(&namespace, name.as_bytes()))
                }
            }

            impl From<Uuid> for $name {
                fn from(id: Uuid) -> Self {
                    Self(id)
                }
            }

            impl From<$name> for Uuid {
                fn from(id: $name) -> Self {
                    id.0
                }
            }

            impl fmt::Display for $name {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str($prefix)?;
                    encode(self.0).iter().try_for_each(|digit| write!(f, "{}", char::from(*digit)))
                }
            }

            impl fmt::Debug for $name {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    fmt::Display::fmt(self, f)
                }
            }

            impl FromStr for $name {
                type Err = IdError;

                fn from_str(text: &str) -> Result<Self, IdError> {
                    let digits = text.strip_prefix($prefix).ok_or(IdError::Prefix($prefix))?;
                    decode(digits).map(Self).ok_or(IdError::Digits)
                }
            }

            /// Text in JSON, 16 bytes in a binary codec.
            impl Serialize for $name {
                fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                    if serializer.is_human_readable() {
                        serializer.collect_str(self)
                    } else {
                        self.0.serialize(serializer)
                    }
                }
            }

            impl<'de> Deserialize<'de> for $name {
                fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                    if deserializer.is_human_readable() {
                        let text = String::deserialize(deserializer)?;
                        text.parse().map_err(de::Error::custom)
                    } else {
                        Uuid::deserialize(deserializer).map(Self)
                    }
                }
            }
        )*
    };
}

ids! {
    /// A user.
    UserId = "usr_";
    /// A session of a user.
    SessionId = "ses_";
    /// A product.
    ProductId = "prd_";
    /// A category of products.
    CategoryId = "cat_";
    /// A quote: prices that hold for ten minutes.
    QuoteId = "quo_";
    /// An order.
    OrderId = "ord_";
    /// A payment for an order.
    PaymentId = "pay_";
    /// A stored payment method.
    MethodId = "mth_";
    /// A review of a product.
    ReviewId = "rev_";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back_is_the_same_id() {
        for _ in 0..1000 {
            let id = OrderId::new();
            let text = id.to_string();
            assert_eq!(text.len(), 30);
            assert_eq!(text.parse(), Ok(id));
            assert_eq!(
                text.replace("ord_", "usr_").parse::<OrderId>(),
                Err(IdError::Prefix("ord_"))
            );
        }
        let most = OrderId(Uuid::max());
        assert_eq!(most.to_string().parse(), Ok(most));
    }

    #[test]
    fn what_is_too_large_or_not_base_32_is_no_id() {
        for digits in [
            "",
            "8ZZZZZZZZZZZZZZZZZZZZZZZZZ",
            "0000000000000000000000000U",
            "ąąąąąąąąąąąąą",
        ] {
            assert_eq!(
                format!("usr_{digits}").parse::<UserId>(),
                Err(IdError::Digits),
                "{digits}"
            );
        }
    }

    #[test]
    fn a_derived_id_repeats_and_differs_by_kind() {
        assert_eq!(ProductId::derive("85123A"), ProductId::derive("85123A"));
        assert_ne!(ProductId::derive("1").0, OrderId::derive("1").0);
    }
}
