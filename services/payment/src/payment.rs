//! The rules of a payment: where it may go from where it stands, and what is said about it.

use contracts::payment::{Authorization, PaymentState};

use crate::provider::ChargeState;

/// Why a payment is declined that was reversed before it was authorised.
pub(crate) const REVERSED: &str = "reversed";
/// Why a payment is declined whose card is not the buyer's.
pub(crate) const UNKNOWN_METHOD: &str = "unknown_method";

/// A change of a payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Authorize,
    Decline { code: String },
    Capture,
    Void,
    Refund,
}

impl Step {
    /// Where it leads.
    pub(crate) fn state(&self) -> PaymentState {
        match self {
            Self::Authorize => PaymentState::Authorized,
            Self::Decline { .. } => PaymentState::Declined,
            Self::Capture => PaymentState::Captured,
            Self::Void => PaymentState::Voided,
            Self::Refund => PaymentState::Refunded,
        }
    }
}

/// What has to happen to a payment to stand where its charge stands. Nothing when the news is old:
/// answers of the provider may arrive in another order than they were given.
pub(crate) fn catch_up(from: PaymentState, charge: &ChargeState) -> Vec<Step> {
    use PaymentState::{Authorized, Captured, Declined, Pending, Refunded, Voided};
    let done = match from {
        Pending => 0,
        Authorized => 1,
        Captured => 2,
        Refunded | Declined | Voided => 3,
    };
    let reached = match charge {
        ChargeState::Declined { code } if done == 0 => {
            return vec![Step::Decline { code: code.clone() }];
        }
        ChargeState::Voided if done < 2 => return vec![Step::Void],
        ChargeState::Unknown | ChargeState::Declined { .. } | ChargeState::Voided => 0,
        ChargeState::Authorized => 1,
        ChargeState::Captured => 2,
        ChargeState::Refunded => 3,
    };
    let forward = [Step::Authorize, Step::Capture, Step::Refund];
    forward.into_iter().take(reached).skip(done).collect()
}

/// What a payment in this state says to whoever asks to authorise it.
pub(crate) fn authorization(state: PaymentState, code: Option<&str>) -> Authorization {
    match state {
        PaymentState::Pending => Authorization::Pending,
        PaymentState::Authorized | PaymentState::Captured | PaymentState::Refunded => {
            Authorization::Authorized
        }
        PaymentState::Declined => declined(code.unwrap_or("card_declined")),
        PaymentState::Voided => declined(REVERSED),
    }
}

/// A refusal, in words.
pub(crate) fn declined(code: &str) -> Authorization {
    let message = match code {
        "insufficient_funds" => "the card has too little money on it",
        "expired_card" => "the card has expired",
        "incorrect_cvc" => "the security code is not right",
        UNKNOWN_METHOD => "choose one of your cards",
        REVERSED => "the payment was reversed",
        _ => "the card was declined",
    };
    let retryable = code != REVERSED;
    Authorization::Declined {
        code: code.to_owned(),
        message: message.to_owned(),
        retryable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payment_catches_up_with_its_charge_and_never_goes_back() {
        use PaymentState::*;
        let declined = || ChargeState::Declined {
            code: "x".to_owned(),
        };
        let cases = [
            (Pending, ChargeState::Unknown, vec![]),
            (Pending, ChargeState::Authorized, vec![Authorized]),
            (Pending, declined(), vec![Declined]),
            (Pending, ChargeState::Captured, vec![Authorized, Captured]),
            (Pending, ChargeState::Voided, vec![Voided]),
            (Authorized, ChargeState::Authorized, vec![]),
            (Authorized, ChargeState::Captured, vec![Captured]),
            (Authorized, ChargeState::Voided, vec![Voided]),
            (Authorized, ChargeState::Refunded, vec![Captured, Refunded]),
            (Authorized, declined(), vec![]),
            (Captured, ChargeState::Authorized, vec![]),
            (Captured, ChargeState::Voided, vec![]),
            (Captured, ChargeState::Refunded, vec![Refunded]),
            (Refunded, ChargeState::Captured, vec![]),
            (Voided, ChargeState::Authorized, vec![]),
            (Declined, ChargeState::Captured, vec![]),
        ];
        for (from, charge, expected) in cases {
            let states: Vec<_> = catch_up(from, &charge).iter().map(Step::state).collect();
            assert_eq!(states, expected, "{from:?} to {charge:?}");
        }
    }

    #[test]
    fn only_a_reversed_payment_is_beyond_another_card() {
        for (code, expected) in [
            ("card_declined", true),
            (UNKNOWN_METHOD, true),
            (REVERSED, false),
        ] {
            let Authorization::Declined { retryable, .. } = declined(code) else {
                unreachable!()
            };
            assert_eq!(retryable, expected, "{code}");
        }
    }
}
