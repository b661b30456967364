//! What a product's stars add up to, in integers.

use contracts::{ProductId, review::RatingSummary};

/// How many votes of the shop's mean every product starts with.
const PRIOR: u64 = 10;

/// All ratings of the shop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ShopRating {
    pub(crate) count: u64,
    pub(crate) total: u64,
}

/// The summary of a product with so many reviews of 1, 2, 3, 4 and 5 stars.
pub(crate) fn summarize(
    product_id: ProductId,
    histogram: [u32; 5],
    shop: ShopRating,
) -> RatingSummary {
    let count: u64 = histogram.iter().copied().map(u64::from).sum();
    let total: u64 = (1..)
        .zip(histogram)
        .map(|(stars, n)| stars * u64::from(n))
        .sum();
    // (total + 10 × shop.total / shop.count) / (count + 10), over one denominator.
    let weighed = total * shop.count + PRIOR * shop.total;
    RatingSummary {
        product_id,
        count: u32::try_from(count).unwrap_or(u32::MAX),
        mean: hundredths(total, count),
        histogram,
        bayes: hundredths(weighed, shop.count * (count + PRIOR)),
    }
}

/// The quotient times 100, rounded half up; 0 of nothing.
fn hundredths(sum: u64, count: u64) -> u32 {
    if count == 0 {
        return 0;
    }
    u32::try_from((200 * sum + count) / (2 * count)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_hundredths_and_few_ratings_lean_on_the_shop() {
        let id = ProductId::new();
        let shop = ShopRating {
            count: 100,
            total: 400,
        };
        let one = summarize(id, [0, 0, 0, 0, 1], shop);
        assert_eq!((one.count, one.mean, one.bayes), (1, 500, 409));
        let two = summarize(id, [1, 0, 0, 1, 1], shop);
        assert_eq!((two.count, two.mean, two.bayes), (3, 333, 385));
        let none = summarize(id, [0; 5], shop);
        assert_eq!((none.count, none.mean, none.bayes), (0, 0, 400));
        let nothing = summarize(id, [0; 5], ShopRating::default());
        assert_eq!((nothing.mean, nothing.bayes), (0, 0));
    }
}
