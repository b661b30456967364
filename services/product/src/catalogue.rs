//! The catalogue's rules.

use contracts::{Money, ProductId, TaxRate};
use nestling::RpcError;

/// A name as it stands in a URL: lower-case letters, digits and single hyphens.
pub fn slug(name: &str) -> String {
    let mut slug = String::with_capacity(name.len());
    for character in name.chars().flat_map(char::to_lowercase) {
        if character.is_ascii_alphanumeric() {
            slug.push(character);
        } else if !slug.is_empty() && !slug.ends_with('-') {
            slug.push('-');
        }
    }
    let slug = slug.trim_end_matches('-');
    if slug.is_empty() {
        "item".to_owned()
    } else {
        slug.to_owned()
    }
}

/// The price with tax.
pub(crate) fn gross(net: Money, tax: TaxRate) -> Result<Money, RpcError> {
    tax.of(net)
        .and_then(|tax| net.add(tax))
        .map_err(RpcError::internal)
}

/// Where a product's picture is.
pub(crate) fn image(product: ProductId) -> String {
    format!("/v1/products/{product}/image")
}

/// What a full-text search looks for: every word of the input, as a prefix.
pub(crate) fn search_terms(q: &str) -> String {
    let words = q.split(|character: char| !character.is_alphanumeric());
    let terms: Vec<_> = words
        .filter(|word| !word.is_empty())
        .map(|w| format!("\"{w}\"*"))
        .collect();
    terms.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slug_has_no_surprises() {
        assert_eq!(slug("  Kaffee & Kuchen, groß! "), "kaffee-kuchen-gro");
        assert_eq!(slug("!?"), "item");
    }

    #[test]
    fn a_search_cannot_break_out_of_its_quotes() {
        assert_eq!(
            search_terms("red \"mug\" OR 1*"),
            "\"red\"* \"mug\"* \"OR\"* \"1\"*"
        );
        assert_eq!(search_terms("  "), "");
    }
}
