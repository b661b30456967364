//! What goes with what: a model is fitted on baskets and then only read.

use std::{cmp::Ordering, collections::HashMap, fmt};

use contracts::ProductId;

use crate::baskets::Snapshot;

/// Keeps a similarity of few baskets small.
const SHRINK: f32 = 10.0;
/// How many neighbours of a product are kept: what may be asked for.
pub(crate) const MOST: usize = 50;

/// A product and how well it fits.
pub(crate) type Scored = (ProductId, f32);

/// What has been learned, as of one state of the baskets.
pub(crate) trait Model: fmt::Debug + Send + Sync {
    /// Which state.
    fn version(&self) -> u64;

    /// What is bought together with a product, best first; nothing when that is not known.
    fn together(&self, product: ProductId, limit: usize) -> Vec<Scored>;

    /// What is bought most, without one product.
    fn popular(&self, without: ProductId, limit: usize) -> Vec<Scored>;
}

/// Item to item: the cosine of two products is the number of baskets with both over the geometric
/// mean of the numbers with each.
pub(crate) struct Cosine {
    version: u64,
    products: Vec<ProductId>,
    numbers: HashMap<ProductId, usize>,
    /// By number, best first.
    neighbours: Vec<Vec<(u32, f32)>>,
    /// All that was ever bought, most bought first.
    popular: Vec<(u32, f32)>,
}

impl Cosine {
    /// Counts, for each product, the other products of the baskets it is in. Takes about the sum of
    /// the squares of the basket sizes: keep it off the async threads.
    pub(crate) fn fit(snapshot: Snapshot) -> Self {
        let Snapshot {
            version,
            products,
            baskets,
        } = snapshot;
        let mut baskets_of: Vec<Vec<u32>> = vec![Vec::new(); products.len()];
        for (basket, items) in (0_u32..).zip(&baskets) {
            for item in items.iter() {
                baskets_of[*item as usize].push(basket);
            }
        }
        let mut together = vec![0_u32; products.len()];
        let mut touched = Vec::new();
        let mut neighbours = Vec::with_capacity(products.len());
        for (item, in_baskets) in (0_u32..).zip(&baskets_of) {
            for basket in in_baskets {
                for other in baskets[*basket as usize]
                    .iter()
                    .filter(|other| **other != item)
                {
                    let count = &mut together[*other as usize];
                    if *count == 0 {
                        touched.push(*other);
                    }
                    *count += 1;
                }
            }
            let mut scored: Vec<_> = touched
                .drain(..)
                .map(|other| {
                    let both = std::mem::take(&mut together[other as usize]) as f32;
                    let each = in_baskets.len() as f32 * baskets_of[other as usize].len() as f32;
                    (other, both / (each.sqrt() + SHRINK))
                })
                .collect();
            keep_best(&mut scored, MOST);
            neighbours.push(scored);
        }
        let mut popular: Vec<_> = (0_u32..)
            .zip(&baskets_of)
            .filter(|(_, in_baskets)| !in_baskets.is_empty())
            .map(|(item, in_baskets)| (item, in_baskets.len() as f32 / baskets.len() as f32))
            .collect();
        // One more than may be asked for, because one may be left out.
        keep_best(&mut popular, MOST + 1);
        let numbers = products.iter().copied().zip(0..).collect();
        Self {
            version,
            products,
            numbers,
            neighbours,
            popular,
        }
    }

    fn name(&self, (item, score): &(u32, f32)) -> Scored {
        (self.products[*item as usize], *score)
    }
}

impl Model for Cosine {
    fn version(&self) -> u64 {
        self.version
    }

    fn together(&self, product: ProductId, limit: usize) -> Vec<Scored> {
        let Some(number) = self.numbers.get(&product) else {
            return Vec::new();
        };
        self.neighbours[*number]
            .iter()
            .take(limit)
            .map(|scored| self.name(scored))
            .collect()
    }

    fn popular(&self, without: ProductId, limit: usize) -> Vec<Scored> {
        let named = self.popular.iter().map(|scored| self.name(scored));
        named
            .filter(|(product, _)| *product != without)
            .take(limit)
            .collect()
    }
}

impl fmt::Debug for Cosine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cosine")
            .field("version", &self.version)
            .field("products", &self.products.len())
            .finish_non_exhaustive()
    }
}

/// The best `count`, best first; equals in the order of their numbers.
fn keep_best(scored: &mut Vec<(u32, f32)>, count: usize) {
    let by_score = |a: &(u32, f32), b: &(u32, f32)| match b.1.total_cmp(&a.1) {
        Ordering::Equal => a.0.cmp(&b.0),
        unequal => unequal,
    };
    if scored.len() > count {
        scored.select_nth_unstable_by(count, by_score);
        scored.truncate(count);
    }
    scored.sort_unstable_by(by_score);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn fit(products: usize, baskets: &[&[u32]]) -> (Vec<ProductId>, Cosine) {
        let products: Vec<_> = (0..products)
            .map(|n| ProductId::derive(&n.to_string()))
            .collect();
        let baskets = baskets.iter().map(|items| Arc::from(*items)).collect();
        (
            products.clone(),
            Cosine::fit(Snapshot {
                version: 7,
                products,
                baskets,
            }),
        )
    }

    #[test]
    fn what_is_bought_together_more_often_comes_first() {
        let (products, model) = fit(4, &[&[0, 1], &[0, 1], &[0, 2], &[2, 3], &[2], &[2]]);
        let together: Vec<_> = model
            .together(products[0], 10)
            .into_iter()
            .map(|(product, _)| product)
            .collect();
        assert_eq!(together, [products[1], products[2]]);
        let (_, score) = model.together(products[0], 1)[0];
        assert!((score - 2.0 / (6.0_f32.sqrt() + 10.0)).abs() < 1e-6);
        assert!(model.together(ProductId::new(), 10).is_empty());
        assert_eq!(model.version(), 7);
    }

    #[test]
    fn popular_is_what_is_in_most_baskets_and_never_the_product_itself() {
        let (products, model) = fit(5, &[&[0, 1], &[0, 1], &[0, 2]]);
        let popular = |without, limit| {
            model
                .popular(without, limit)
                .into_iter()
                .map(|(p, _)| p)
                .collect::<Vec<_>>()
        };
        assert_eq!(popular(products[4], 2), [products[0], products[1]]);
        assert_eq!(popular(products[0], 10), [products[1], products[2]]);
    }

    #[test]
    fn only_as_many_neighbours_are_kept_as_may_be_asked_for() {
        let all: Vec<u32> = (0..200).collect();
        let (products, model) = fit(200, &[&all]);
        assert_eq!(model.together(products[0], 1000).len(), MOST);
        assert_eq!(model.popular(products[0], MOST).len(), MOST);
    }
}
