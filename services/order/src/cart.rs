//! Carts: what somebody may buy, at today's prices.

use contracts::{
    Currency, Fields, Money, ProductId,
    order::{Cart, CartLine, Owner, PutCartLine},
    product::{Quantity, QuoteLines, QuotedLine, QuotedLines},
};
use nestling::Client;

use crate::{
    error::Error,
    pricing,
    store::{Store, StoredCart, StoredLine, cart_name},
};

/// How many lines a cart may have.
const MOST_LINES: usize = 100;

/// The carts.
#[derive(Clone, Debug)]
pub(crate) struct Carts {
    pub(crate) store: Store,
    pub(crate) product: Client,
    /// Of a cart without lines.
    pub(crate) currency: Currency,
}

impl Carts {
    pub(crate) async fn get(&self, owner: &Owner) -> Result<Cart, Error> {
        let stored = self.store.cart(&cart_name(owner)).await?;
        let quoted = quote(&self.product, quantities(&stored)).await?;
        priced(&stored, &quoted.lines, self.currency)
    }

    pub(crate) async fn put(&self, request: &PutCartLine) -> Result<Cart, Error> {
        request.validate()?;
        let cart = cart_name(&request.owner);
        let product_id = request.product_id;
        if request.qty == 0 {
            let mut tx = self.store.begin().await?;
            self.store.drop_line(&mut tx, &cart, product_id).await?;
            self.store.commit(tx).await?;
        } else {
            let wanted = vec![Quantity {
                product_id,
                qty: request.qty,
            }];
            let quoted = quote(&self.product, wanted).await?.lines.into_iter().next();
            let line = quoted.ok_or_else(|| Error::NotSold(vec![product_id]))?;
            self.put_line(&cart, request.qty, line).await?;
        }
        self.get(&request.owner).await
    }

    async fn put_line(&self, cart: &str, qty: u32, line: QuotedLine) -> Result<(), Error> {
        let QuotedLine {
            product_id,
            name,
            unit_net,
            ..
        } = line;
        let mut tx = self.store.begin().await?;
        let stored = self.store.cart_in(&mut tx, cart).await?;
        let others: Vec<_> = stored
            .lines
            .iter()
            .filter(|line| line.product_id != product_id)
            .collect();
        let mut fields = Fields::new();
        fields.check(
            others.len() < MOST_LINES,
            "/product_id",
            "too_many",
            "at most 100 lines",
        );
        let is_same = others
            .iter()
            .all(|line| line.unit_net.currency == unit_net.currency);
        fields.check(
            is_same,
            "/product_id",
            "currency",
            "priced in another currency than the cart",
        );
        fields.finish()?;
        self.store
            .put_line(
                &mut tx,
                cart,
                &StoredLine {
                    product_id,
                    qty,
                    name,
                    unit_net,
                },
            )
            .await?;
        self.store.commit(tx).await
    }

    pub(crate) async fn clear(&self, owner: &Owner) -> Result<Cart, Error> {
        let cart = cart_name(owner);
        let mut tx = self.store.begin().await?;
        self.store.clear_cart(&mut tx, &cart).await?;
        self.store.commit(tx).await?;
        self.get(owner).await
    }
}

/// Asks for prices; nothing costs no call.
pub(crate) async fn quote(product: &Client, lines: Vec<Quantity>) -> Result<QuotedLines, Error> {
    if lines.is_empty() {
        return Ok(QuotedLines {
            lines: Vec::new(),
            missing: Vec::new(),
        });
    }
    Ok(product.send(QuoteLines { lines }).await?)
}

pub(crate) fn quantities(cart: &StoredCart) -> Vec<Quantity> {
    let quantity = |line: &StoredLine| Quantity {
        product_id: line.product_id,
        qty: line.qty,
    };
    cart.lines.iter().map(quantity).collect()
}

/// A cart with what its lines cost now. What is not sold any more stays to be seen, and costs
/// nothing.
fn priced(stored: &StoredCart, quoted: &[QuotedLine], currency: Currency) -> Result<Cart, Error> {
    let priced = pricing::lines(&quantities(stored), quoted)?;
    let totals = pricing::totals(&priced, None, currency)?;
    let find = |id: ProductId| {
        let line = priced.iter().find(|line| line.product_id == id)?;
        Some((
            line,
            quoted.iter().find(|line| line.product_id == id)?.available,
        ))
    };
    let lines = stored.lines.iter().map(|line| match find(line.product_id) {
        Some((now, available)) => CartLine {
            product_id: line.product_id,
            name: now.name.clone(),
            qty: line.qty,
            unit_net: now.unit_net,
            line_net: now.net,
            available,
            price_changed: now.unit_net != line.unit_net,
        },
        None => CartLine {
            product_id: line.product_id,
            name: line.name.clone(),
            qty: line.qty,
            unit_net: line.unit_net,
            line_net: Money::zero(line.unit_net.currency),
            available: 0,
            price_changed: false,
        },
    });
    Ok(Cart {
        lines: lines.collect(),
        items_net: totals.items_net,
        tax: totals.tax,
        gross: totals.gross,
        version: stored.version,
    })
}
