//! The ledger: every movement of money is a balanced set of entries.

use contracts::Money;

/// Money that moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Movement {
    /// From a buyer's card to us.
    Capture,
    /// From us back to the card.
    Refund,
}

impl Movement {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Capture => "capture",
            Self::Refund => "refund",
        }
    }
}

/// Where money is booked; balances are sums of entries and are never stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Account {
    /// What the provider owes us.
    ProviderClearing,
    /// What we sold, gross.
    Revenue,
    /// What we gave back.
    Refunds,
}

impl Account {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::ProviderClearing => "provider_clearing",
            Self::Revenue => "revenue",
            Self::Refunds => "refunds",
        }
    }
}

/// A line of the ledger: one of the two amounts is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) account: Account,
    pub(crate) debit: i64,
    pub(crate) credit: i64,
}

/// The entries of a movement; none when nothing moves.
pub(crate) fn entries(movement: Movement, amount: Money) -> Vec<Entry> {
    let amount = amount.amount;
    let (debited, credited) = match movement {
        Movement::Capture => (Account::ProviderClearing, Account::Revenue),
        Movement::Refund => (Account::Refunds, Account::ProviderClearing),
    };
    if amount == 0 {
        return Vec::new();
    }
    vec![
        Entry {
            account: debited,
            debit: amount,
            credit: 0,
        },
        Entry {
            account: credited,
            debit: 0,
            credit: amount,
        },
    ]
}

#[cfg(test)]
mod tests {
    use contracts::Currency;

    use super::*;

    #[test]
    fn every_movement_is_balanced() {
        for movement in [Movement::Capture, Movement::Refund] {
            for amount in [0, 1, 11_900] {
                let entries = entries(movement, Money::new(amount, Currency::EUR));
                let debit: i64 = entries.iter().map(|entry| entry.debit).sum();
                let credit: i64 = entries.iter().map(|entry| entry.credit).sum();
                assert_eq!((debit, credit), (amount, amount));
            }
        }
    }

    #[test]
    fn a_refund_takes_back_what_the_provider_owes() {
        let amount = Money::new(500, Currency::EUR);
        let all = [
            entries(Movement::Capture, amount),
            entries(Movement::Refund, amount),
        ]
        .concat();
        let owed = all
            .iter()
            .filter(|entry| entry.account == Account::ProviderClearing);
        assert_eq!(owed.map(|entry| entry.debit - entry.credit).sum::<i64>(), 0);
    }
}
