//! Money in integer minor units, and the arithmetic the shop needs.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A three-letter ISO 4217 code.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Currency([u8; 3]);

impl Currency {
    /// The euro.
    pub const EUR: Self = Self(*b"EUR");
    /// The pound sterling.
    pub const GBP: Self = Self(*b"GBP");

    /// The code.
    pub fn code(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("XXX")
    }
}

impl Default for Currency {
    fn default() -> Self {
        Self::EUR
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

impl fmt::Debug for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

impl FromStr for Currency {
    type Err = MoneyError;

    fn from_str(text: &str) -> Result<Self, MoneyError> {
        let code: [u8; 3] = text
            .as_bytes()
            .try_into()
            .map_err(|_| MoneyError::Currency)?;
        let is_code = code.iter().all(u8::is_ascii_uppercase);
        if is_code {
            Ok(Self(code))
        } else {
            Err(MoneyError::Currency)
        }
    }
}

impl Serialize for Currency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.code())
    }
}

impl<'de> Deserialize<'de> for Currency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// Why two amounts cannot be computed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MoneyError {
    /// They are in different currencies.
    #[error("amounts are in different currencies")]
    Mixed,
    /// The result is beyond what 64 bits hold.
    #[error("the amount is too large")]
    Overflow,
    /// It is not a currency.
    #[error("a currency is three capital letters")]
    Currency,
}

/// An amount in minor units (cents) of a currency. Net or gross is said by the field's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Money {
    /// Minor units.
    pub amount: i64,
    /// Of which currency.
    pub currency: Currency,
}

impl Money {
    /// An amount in minor units.
    pub const fn new(amount: i64, currency: Currency) -> Self {
        Self { amount, currency }
    }

    /// Nothing.
    pub const fn zero(currency: Currency) -> Self {
        Self::new(0, currency)
    }

    /// The sum.
    ///
    /// # Errors
    /// Mixed currencies, overflow.
    #[expect(clippy::should_implement_trait, reason = "`Add` cannot fail")]
    pub fn add(self, other: Self) -> Result<Self, MoneyError> {
        self.combine(other, i64::checked_add)
    }

    /// The difference.
    ///
    /// # Errors
    /// Mixed currencies, overflow.
    pub fn subtract(self, other: Self) -> Result<Self, MoneyError> {
        self.combine(other, i64::checked_sub)
    }

    /// So many times.
    ///
    /// # Errors
    /// Overflow.
    pub fn times(self, count: u32) -> Result<Self, MoneyError> {
        let amount = self
            .amount
            .checked_mul(i64::from(count))
            .ok_or(MoneyError::Overflow)?;
        Ok(Self { amount, ..self })
    }

    /// The sum of all; nothing in `currency` when there are none.
    ///
    /// # Errors
    /// Mixed currencies, overflow.
    pub fn sum(
        all: impl IntoIterator<Item = Self>,
        currency: Currency,
    ) -> Result<Self, MoneyError> {
        all.into_iter().try_fold(Self::zero(currency), Self::add)
    }

    fn combine(self, other: Self, with: fn(i64, i64) -> Option<i64>) -> Result<Self, MoneyError> {
        if self.currency != other.currency {
            return Err(MoneyError::Mixed);
        }
        let amount = with(self.amount, other.amount).ok_or(MoneyError::Overflow)?;
        Ok(Self { amount, ..self })
    }
}

impl fmt::Display for Money {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.amount < 0 { "-" } else { "" };
        let units = self.amount.unsigned_abs();
        write!(
            f,
            "{sign}{}.{:02} {}",
            units / 100,
            units % 100,
            self.currency
        )
    }
}

/// A tax rate in basis points: 1900 is 19 %.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TaxRate(pub u32);

impl TaxRate {
    /// The tax on `net`, rounded half to even.
    ///
    /// # Errors
    /// Overflow.
    pub fn of(self, net: Money) -> Result<Money, MoneyError> {
        let exact = i128::from(net.amount) * i128::from(self.0);
        let (quotient, rest) = (exact.div_euclid(10_000), exact.rem_euclid(10_000));
        let up = rest > 5_000 || (rest == 5_000 && quotient % 2 != 0);
        let amount = i64::try_from(quotient + i128::from(up)).map_err(|_| MoneyError::Overflow)?;
        Ok(Money { amount, ..net })
    }
}

/// Splits `total` by `weights` so that the parts add up to it: the largest remainders get the
/// cents left over, earlier parts first. All zero weights count as equal.
pub fn split(total: i64, weights: &[u64]) -> Vec<i64> {
    if weights.is_empty() {
        return Vec::new();
    }
    let all_zero = weights.iter().all(|weight| *weight == 0);
    let weight = |index: usize| {
        if all_zero {
            1
        } else {
            i128::from(weights[index])
        }
    };
    let whole: i128 = (0..weights.len()).map(weight).sum();
    let exact = |index: usize| i128::from(total) * weight(index);
    let mut parts: Vec<i128> = (0..weights.len())
        .map(|i| exact(i).div_euclid(whole))
        .collect();
    let mut by_remainder: Vec<usize> = (0..weights.len()).collect();
    by_remainder.sort_by_key(|index| std::cmp::Reverse(exact(*index).rem_euclid(whole)));
    let left = i128::from(total) - parts.iter().sum::<i128>();
    for index in by_remainder
        .into_iter()
        .take(usize::try_from(left).unwrap_or(0))
    {
        parts[index] += 1;
    }
    // Each part lies between zero and the total, which fits.
    parts
        .into_iter()
        .map(|part| i64::try_from(part).unwrap_or(total))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn euro(amount: i64) -> Money {
        Money::new(amount, Currency::EUR)
    }

    #[test]
    fn tax_is_rounded_half_to_even() {
        for (net, bps, tax) in [
            (1000, 1900, 190),
            (50, 100, 0),
            (150, 100, 2),
            (250, 100, 2),
            (-150, 100, -2),
        ] {
            assert_eq!(TaxRate(bps).of(euro(net)), Ok(euro(tax)), "{net} at {bps}");
        }
        assert_eq!(
            TaxRate(20_000).of(euro(i64::MAX)),
            Err(MoneyError::Overflow)
        );
    }

    #[test]
    fn currencies_do_not_mix_and_sums_do_not_wrap() {
        assert_eq!(
            euro(1).add(Money::new(1, Currency::GBP)),
            Err(MoneyError::Mixed)
        );
        assert_eq!(euro(i64::MAX).add(euro(1)), Err(MoneyError::Overflow));
        assert_eq!(euro(i64::MAX).times(2), Err(MoneyError::Overflow));
        assert_eq!(euro(-5).to_string(), "-0.05 EUR");
    }

    #[test]
    fn parts_add_up_and_are_fair() {
        assert_eq!(split(100, &[1, 1, 1]), [34, 33, 33]);
        assert_eq!(split(-100, &[1, 1, 1]).iter().sum::<i64>(), -100);
        assert_eq!(split(7, &[0, 0]), [4, 3]);
        for total in 0..200 {
            let parts = split(total, &[3, 5, 7, 11]);
            assert_eq!(parts.iter().sum::<i64>(), total);
            assert!(
                parts
                    .iter()
                    .zip([3, 5, 7, 11])
                    .all(|(part, w)| (part * 26 - total * w).abs() < 26)
            );
        }
    }
}
