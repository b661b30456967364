//! The demo catalogue: the same each time, with names made of our own words.

use std::collections::BTreeMap;

use anyhow::Context as _;
use contracts::{
    CategoryId, Currency, Money, TaxRate,
    product::{
        CreateCategory, Fulfilment, ImportProducts, Imported, ImportedProduct, ProductDraft,
        ProductStatus,
    },
};
use fastrand::Rng;

use crate::staff::Staff;

/// A category, what its products are called, and what they cost in minor units.
struct Shelf {
    name: &'static str,
    nouns: [&'static str; 5],
    prices: std::ops::Range<i64>,
    fulfilment: Fulfilment,
}

const fn shelf(
    name: &'static str,
    nouns: [&'static str; 5],
    prices: std::ops::Range<i64>,
) -> Shelf {
    Shelf {
        name,
        nouns,
        prices,
        fulfilment: Fulfilment::Physical,
    }
}

const fn download(
    name: &'static str,
    nouns: [&'static str; 5],
    prices: std::ops::Range<i64>,
) -> Shelf {
    Shelf {
        name,
        nouns,
        prices,
        fulfilment: Fulfilment::Digital,
    }
}

const SHELVES: [Shelf; 12] = [
    shelf(
        "Kitchen",
        ["Kettle", "Skillet", "Whisk", "Colander", "Bread Knife"],
        900..9_000,
    ),
    shelf(
        "Tableware",
        ["Mug", "Plate", "Bowl", "Carafe", "Egg Cup"],
        400..3_500,
    ),
    shelf(
        "Garden",
        [
            "Trowel",
            "Watering Can",
            "Planter",
            "Bird Feeder",
            "Lantern",
        ],
        700..6_000,
    ),
    shelf(
        "Office",
        [
            "Notebook",
            "Fountain Pen",
            "Desk Lamp",
            "Ruler",
            "Letter Tray",
        ],
        300..7_500,
    ),
    shelf(
        "Toys",
        ["Puzzle", "Kite", "Spinning Top", "Train", "Puppet"],
        500..4_500,
    ),
    shelf(
        "Textiles",
        ["Blanket", "Towel", "Apron", "Cushion", "Scarf"],
        900..8_000,
    ),
    shelf(
        "Travel",
        ["Rucksack", "Flask", "Umbrella", "Hammock", "Torch"],
        1_200..12_000,
    ),
    shelf(
        "Games",
        [
            "Card Game",
            "Dice Set",
            "Chess Board",
            "Domino",
            "Marble Run",
        ],
        600..6_500,
    ),
    shelf(
        "Tools",
        ["Hammer", "Spirit Level", "Chisel", "Tape Measure", "Plane"],
        800..9_500,
    ),
    shelf(
        "Bath",
        ["Soap", "Brush", "Sponge", "Bath Salt", "Mirror"],
        250..4_000,
    ),
    download(
        "E-books",
        ["Cookbook", "Field Guide", "Atlas", "Almanac", "Primer"],
        300..2_500,
    ),
    download(
        "Sheet Music",
        ["Sonata", "Waltz", "Étude", "March", "Nocturne"],
        200..1_500,
    ),
];

const MANNERS: [&str; 4] = ["Plain", "Copper", "Nordic", "Little"];
const SUPPLIERS: [&str; 8] = [
    "Aldermann",
    "Brook & Daughters",
    "Casa Lima",
    "Dunlin",
    "Ebert",
    "Fjord Works",
    "Gale",
    "Holm",
];

/// Adds the demo catalogue: 12 categories, 240 products. Repeating it changes nothing.
///
/// # Errors
/// When the product service refuses or cannot be reached.
pub async fn catalogue(product: &Staff) -> anyhow::Result<Imported> {
    let mut rng = Rng::with_seed(7);
    let mut imported = Imported { added: 0, known: 0 };
    for shelf in &SHELVES {
        let name = shelf.name.to_owned();
        let category = product
            .send(CreateCategory { name, parent: None })
            .await
            .with_context(|| format!("add category {}", shelf.name))?;
        let products = shelf.products(category.id, &mut rng);
        let batch = product
            .send(ImportProducts { products })
            .await
            .context("add products")?;
        imported.added += batch.added;
        imported.known += batch.known;
    }
    Ok(imported)
}

impl Shelf {
    fn products(&self, category: CategoryId, rng: &mut Rng) -> Vec<ImportedProduct> {
        let names = self
            .nouns
            .iter()
            .flat_map(|noun| MANNERS.iter().map(move |manner| format!("{manner} {noun}")));
        let numbered = names.enumerate();
        numbered
            .map(|(number, name)| self.product(number, &name, category, rng))
            .collect()
    }

    fn product(
        &self,
        number: usize,
        name: &str,
        category: CategoryId,
        rng: &mut Rng,
    ) -> ImportedProduct {
        let is_digital = self.fulfilment == Fulfilment::Digital;
        let initials: String = self
            .name
            .chars()
            .filter(char::is_ascii_alphabetic)
            .take(3)
            .collect();
        let supplier = SUPPLIERS[rng.usize(..SUPPLIERS.len())];
        let draft = ProductDraft {
            sku: format!("{}-{:03}", initials.to_uppercase(), number + 1),
            name: name.to_owned(),
            description: format!(
                "{name}, chosen for our {} shelf and delivered by {supplier}.",
                self.name
            ),
            supplier: Some(supplier.to_owned()),
            categories: vec![category],
            // Prices that look like prices: full ten cents less one.
            net: Money::new(rng.i64(self.prices.clone()) / 10 * 10 + 9, Currency::EUR),
            tax: TaxRate(if is_digital { 700 } else { 1_900 }),
            fulfilment: self.fulfilment,
            weight_g: if is_digital { 0 } else { rng.u32(50..2_500) },
            attributes: BTreeMap::new(),
            status: ProductStatus::Active,
        };
        let on_hand = if is_digital {
            1_000_000
        } else {
            rng.u32(20..200)
        };
        ImportedProduct { draft, on_hand }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_catalogue_is_the_same_each_time_and_every_sku_is_another() {
        let make = || {
            let mut rng = Rng::with_seed(7);
            let category = CategoryId::derive("x");
            SHELVES
                .iter()
                .flat_map(|shelf| shelf.products(category, &mut rng))
                .collect::<Vec<_>>()
        };
        let products = make();
        assert_eq!(products, make());
        assert_eq!(products.len(), 240);
        let skus: HashSet<_> = products.iter().map(|product| &product.draft.sku).collect();
        assert_eq!(skus.len(), 240);
    }
}
