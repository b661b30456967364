//! Lines, shipping and sums: pure arithmetic over what the catalogue quoted.

use contracts::{
    Currency, Money, MoneyError, TaxRate,
    order::{LineState, OrderLine, ShippingOption, Totals},
    product::{Fulfilment, Quantity, QuotedLine},
};

/// The lines of an order, from what is wanted and what was quoted for it, in the order wanted.
/// Products that were not quoted are left out.
///
/// # Errors
/// Amounts too large.
pub fn lines(wanted: &[Quantity], quoted: &[QuotedLine]) -> Result<Vec<OrderLine>, MoneyError> {
    let priced = wanted.iter().filter_map(|quantity| {
        let line = quoted
            .iter()
            .find(|line| line.product_id == quantity.product_id)?;
        Some((quantity.qty, line))
    });
    (1..)
        .zip(priced)
        .map(|(line_id, (qty, line))| order_line(line_id, qty, line))
        .collect()
}

fn order_line(line_id: u32, qty: u32, line: &QuotedLine) -> Result<OrderLine, MoneyError> {
    let net = line.unit_net.times(qty)?;
    Ok(OrderLine {
        line_id,
        product_id: line.product_id,
        sku: line.sku.clone(),
        name: line.name.clone(),
        fulfilment: line.fulfilment,
        qty,
        unit_net: line.unit_net,
        net,
        tax_rate: line.tax,
        tax: line.tax.of(net)?,
        state: LineState::Pending,
    })
}

/// Whether anything is shipped.
pub fn needs_shipping(lines: &[OrderLine]) -> bool {
    lines
        .iter()
        .any(|line| line.fulfilment == Fulfilment::Physical)
}

/// The ways to ship these lines.
pub fn shipping_options(lines: &[OrderLine]) -> Vec<ShippingOption> {
    let Some(first) = lines.first().filter(|_| needs_shipping(lines)) else {
        return Vec::new();
    };
    let option = |id: &str, name: &str, amount, days| ShippingOption {
        id: id.to_owned(),
        name: name.to_owned(),
        net: Money::new(amount, first.unit_net.currency),
        days,
    };
    vec![
        option("standard", "Standard", 490, 3),
        option("express", "Express", 990, 1),
    ]
}

/// The sums over the lines and the way to ship them, which is taxed like the line taxed most.
///
/// # Errors
/// Amounts too large, or in different currencies.
pub fn totals(
    lines: &[OrderLine],
    shipping: Option<&ShippingOption>,
    currency: Currency,
) -> Result<Totals, MoneyError> {
    let currency = lines
        .first()
        .map_or(currency, |line| line.unit_net.currency);
    let items_net = Money::sum(lines.iter().map(|line| line.net), currency)?;
    let items_tax = Money::sum(lines.iter().map(|line| line.tax), currency)?;
    let shipping_net = shipping.map_or(Money::zero(currency), |option| option.net);
    let highest = lines
        .iter()
        .map(|line| line.tax_rate.0)
        .max()
        .unwrap_or_default();
    let tax = items_tax.add(TaxRate(highest).of(shipping_net)?)?;
    let gross = items_net.add(shipping_net)?.add(tax)?;
    Ok(Totals {
        items_net,
        shipping_net,
        tax,
        gross,
    })
}

/// Whether both say the same about what is paid.
pub fn is_same_price(one: &[OrderLine], other: &[OrderLine]) -> bool {
    one.len() == other.len()
        && one.iter().zip(other).all(|(one, other)| {
            (
                one.product_id,
                one.qty,
                one.unit_net,
                one.tax_rate,
                one.fulfilment,
            ) == (
                other.product_id,
                other.qty,
                other.unit_net,
                other.tax_rate,
                other.fulfilment,
            )
        })
}

#[cfg(test)]
mod tests {
    use contracts::ProductId;

    use super::*;

    fn quoted(sku: &str, amount: i64, bps: u32, fulfilment: Fulfilment) -> QuotedLine {
        QuotedLine {
            product_id: ProductId::derive(sku),
            sku: sku.to_owned(),
            name: sku.to_owned(),
            unit_net: Money::new(amount, Currency::EUR),
            tax: TaxRate(bps),
            available: 9,
            fulfilment,
            weight_g: 1,
            image: String::new(),
        }
    }

    fn wanted(sku: &str, qty: u32) -> Quantity {
        Quantity {
            product_id: ProductId::derive(sku),
            qty,
        }
    }

    #[test]
    fn totals_are_sums_of_rounded_lines_and_of_shipping_at_the_highest_rate() {
        let quoted = [
            quoted("book", 50, 700, Fulfilment::Physical),
            quoted("lamp", 1999, 1900, Fulfilment::Physical),
        ];
        let lines = lines(&[wanted("lamp", 3), wanted("book", 1)], &quoted).unwrap();
        assert_eq!(
            (lines[0].line_id, lines[0].net.amount, lines[0].tax.amount),
            (1, 5997, 1139)
        );
        // 3.5 cents become 4, the even neighbour.
        assert_eq!((lines[1].line_id, lines[1].tax.amount), (2, 4));
        let express = &shipping_options(&lines)[1];
        let totals = totals(&lines, Some(express), Currency::EUR).unwrap();
        let amounts = [
            totals.items_net,
            totals.shipping_net,
            totals.tax,
            totals.gross,
        ];
        // 19 % of 990 is 188.1.
        assert_eq!(
            amounts.map(|money| money.amount),
            [6047, 990, 1139 + 4 + 188, 8368]
        );
    }

    #[test]
    fn what_is_digital_is_not_shipped() {
        let quoted = [quoted("song", 99, 1900, Fulfilment::Digital)];
        let lines = lines(&[wanted("song", 1)], &quoted).unwrap();
        assert!(!needs_shipping(&lines));
        assert_eq!(shipping_options(&lines), []);
        assert_eq!(
            totals(&lines, None, Currency::EUR).unwrap().gross.amount,
            118
        );
    }

    #[test]
    fn nothing_costs_nothing() {
        let totals = totals(&[], None, Currency::GBP).unwrap();
        assert_eq!(totals.gross, Money::zero(Currency::GBP));
    }
}
