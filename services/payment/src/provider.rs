//! The card provider as the service sees it: somebody else's system, slow and sometimes silent.

use std::fmt;

use contracts::{Money, PaymentId, Secret, payment::Card};
use nestling::BoxFuture;

/// Keeps cards and moves money.
///
/// Every operation on a charge names it by our payment id and may be repeated: the provider knows
/// the id and gives the answer it gave before. So an answer that was lost on the way is asked for
/// again, and nobody is charged twice.
pub trait Provider: fmt::Debug + Send + Sync + 'static {
    /// Keeps a card and gives a token for it.
    fn tokenize(&self, card: Card) -> Answer<'_, StoredCard>;

    /// Asks the card for a promise of money.
    fn authorize(&self, id: PaymentId, token: Secret, amount: Money) -> Answer<'_, Charge>;

    /// Takes what was promised; any other charge stays as it is.
    fn capture(&self, id: PaymentId) -> Answer<'_, Charge>;

    /// Undoes a promise; a charge not yet known will never be authorised. What was captured stays.
    fn void(&self, id: PaymentId) -> Answer<'_, Charge>;

    /// Gives back what was captured; any other charge stays as it is.
    fn refund(&self, id: PaymentId) -> Answer<'_, Charge>;

    /// How a charge stands.
    fn status(&self, id: PaymentId) -> Answer<'_, Charge>;
}

/// What a [`Provider`] answers, when it does.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, ProviderError>>;

/// A card the provider keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredCard {
    /// Stands for the card.
    pub token: Secret,
    /// `visa`, `mastercard`.
    pub brand: String,
    /// The last four digits.
    pub last4: String,
}

/// A charge at the provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Charge {
    /// How it stands.
    pub state: ChargeState,
    /// The provider's own name for it.
    pub reference: Option<Secret>,
}

/// How a charge stands at the provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChargeState {
    /// It was never heard of.
    Unknown,
    /// Money is promised.
    Authorized,
    /// Money was refused.
    Declined {
        /// Why.
        code: String,
    },
    /// Money was taken.
    Captured,
    /// The promise was undone, or will never be made.
    Voided,
    /// Money was given back.
    Refunded,
}

/// Why the provider did not do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProviderError {
    /// It does not take this card.
    CardRefused,
    /// It did not answer; what was asked for may or may not have happened.
    NoAnswer,
}

impl fmt::Display for ProviderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CardRefused => "the provider does not take this card",
            Self::NoAnswer => "the provider did not answer",
        })
    }
}

impl std::error::Error for ProviderError {}
