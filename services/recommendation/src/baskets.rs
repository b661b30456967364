//! Who bought what, in memory: small numbers for products, one list per order.

use std::{collections::HashMap, sync::Arc};

use contracts::{OrderId, ProductId};

/// What the model is fitted on.
#[derive(Debug, Default)]
pub(crate) struct Baskets {
    version: u64,
    products: Vec<ProductId>,
    numbers: HashMap<ProductId, u32>,
    /// None for an order that was undone, whose confirmation may still be on its way here.
    baskets: HashMap<OrderId, Option<Arc<[u32]>>>,
}

/// The baskets at one moment; cheap to take.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) version: u64,
    /// By number.
    pub(crate) products: Vec<ProductId>,
    /// Numbers of products; none twice.
    pub(crate) baskets: Vec<Arc<[u32]>>,
}

impl Baskets {
    /// An order was made; a second time, or after it was undone, this changes nothing.
    pub(crate) fn add(&mut self, order: OrderId, products: &[ProductId]) {
        if self.baskets.contains_key(&order) {
            return;
        }
        let mut items: Vec<u32> = products
            .iter()
            .map(|product| self.number(*product))
            .collect();
        items.sort_unstable();
        items.dedup();
        self.baskets.insert(order, Some(items.into()));
        self.version += 1;
    }

    /// It was undone.
    pub(crate) fn remove(&mut self, order: OrderId) {
        self.baskets.insert(order, None);
        self.version += 1;
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot {
            version: self.version,
            products: self.products.clone(),
            baskets: self.baskets.values().flatten().cloned().collect(),
        }
    }

    fn number(&mut self, product: ProductId) -> u32 {
        let next = u32::try_from(self.products.len()).unwrap_or(u32::MAX);
        let number = *self.numbers.entry(product).or_insert(next);
        if number == next {
            self.products.push(product);
        }
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_basket_holds_each_product_once_and_can_be_taken_back() {
        let mut baskets = Baskets::default();
        let (first, second) = (ProductId::new(), ProductId::new());
        let (kept, undone) = (OrderId::new(), OrderId::new());
        baskets.add(kept, &[second, first, second]);
        baskets.add(undone, &[first]);
        baskets.remove(undone);
        baskets.add(undone, &[first]);
        let snapshot = baskets.snapshot();
        assert_eq!(snapshot.version, 3);
        assert_eq!(snapshot.products, [second, first]);
        assert_eq!(snapshot.baskets.len(), 1);
        assert_eq!(*snapshot.baskets[0], [0, 1]);
    }
}
