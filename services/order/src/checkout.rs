//! From the cart to the placed order.

use contracts::{
    Fields, OrderId, QuoteId, Reason, UserId,
    order::{OrderLine, OrderView, Owner, PlaceOrder, Quote, QuoteCart, ShippingOption},
    product::Quantity,
};
use nestling::{Client, Message, RpcError};
use serde_json::json;
use uuid::Uuid;

use crate::{
    cart::{quantities, quote},
    config::{Clock, Config},
    error::Error,
    fact::{Fact, Placed},
    order::{Order, number},
    pricing,
    saga::Wake,
    store::{Once, Store, StoredQuote, cart_name},
};

/// Quotes, and the orders made of them.
#[derive(Clone, Debug)]
pub(crate) struct Checkout {
    pub(crate) store: Store,
    pub(crate) product: Client,
    pub(crate) wake: Wake,
    pub(crate) config: Config,
    pub(crate) clock: Clock,
}

impl Checkout {
    pub(crate) async fn quote(&self, request: &QuoteCart) -> Result<Quote, Error> {
        let cart = cart_name(&request.owner);
        let wanted = quantities(&self.store.cart(&cart).await?);
        if wanted.is_empty() {
            return Err(Error::EmptyCart);
        }
        let lines = self.priced(wanted).await?;
        let quote = self.make_quote(lines, request.shipping_option.as_deref())?;
        let user_id = match request.owner {
            Owner::User(user_id) => Some(user_id),
            Owner::Anon(_) => None,
        };
        self.keep(StoredQuote {
            user_id,
            cart,
            quote,
        })
        .await
    }

    /// Places the order once for each key; a repetition gets the first answer, whatever has become
    /// of the quote since.
    pub(crate) async fn place(&self, request: PlaceOrder, key: &str) -> Result<OrderView, Error> {
        let once = Once {
            user_id: request.user_id,
            pattern: PlaceOrder::PATTERN,
            key,
            request: fingerprint(&request)?,
        };
        if let Some(reply) = self.store.find_reply(&once).await? {
            return Ok(reply);
        }
        let (id, placed) = self.check(request).await?;
        let now = self.clock.now();
        let mut tx = self.store.begin().await?;
        // The same request may have come in between.
        if let Some(reply) = self.store.find_reply_in(&mut tx, &once).await? {
            return Ok(reply);
        }
        let mut order = Order::blank(id);
        let user_id = placed.user_id;
        let facts = [Fact::Placed(Box::new(placed))];
        self.store
            .append(&mut tx, &mut order, &facts, Some(user_id), now)
            .await?;
        let view = order.view();
        self.store.remember(&mut tx, &once, &view, now).await?;
        self.store.commit(tx).await?;
        self.wake.order(id);
        Ok(view)
    }

    /// What is wrong with the request, or the order it makes.
    async fn check(&self, request: PlaceOrder) -> Result<(OrderId, Placed), Error> {
        let PlaceOrder {
            user_id,
            quote_id,
            address,
            shipping_option,
            method_id,
            email,
        } = request;
        let now = self.clock.now();
        let stored = self.usable_quote(quote_id, user_id).await?;
        let quote = &stored.quote;
        if quote.expires_at <= now {
            return Err(Error::QuoteExpired);
        }
        let mut fields = Fields::new();
        let is_email = (3..=254).contains(&email.len()) && email.contains('@');
        fields.check(is_email, "/email", "email", "an address for mail");
        fields.check(
            address.is_some() || !quote.needs_address,
            "/address",
            "required",
            "needed because something is shipped",
        );
        if let Some(address) = &address {
            address.check(&mut fields, "/address");
        }
        fields.finish()?;
        let wanted = shipping_option
            .as_deref()
            .or(quote.shipping_option.as_deref());
        let option = choose(&quote.options, wanted)?;
        let quantity = |line: &OrderLine| Quantity {
            product_id: line.product_id,
            qty: line.qty,
        };
        let lines = self
            .priced(quote.lines.iter().map(quantity).collect())
            .await?;
        if !pricing::is_same_price(&lines, &quote.lines) {
            return Err(self.price_changed(&stored, lines, wanted).await?.into());
        }
        let id = OrderId::new();
        let placed = Placed {
            number: number(id),
            user_id,
            email,
            totals: pricing::totals(&lines, option, self.config.currency)?,
            lines,
            address,
            shipping_option: option.map(|option| option.id.clone()),
            method_id,
            cart: stored.cart,
            reserve_by: now.plus(self.config.reserve_deadline),
        };
        Ok((id, placed))
    }

    /// A quote made for nobody in particular may be used by whoever knows its id: carts are filled
    /// before their owner signs in.
    async fn usable_quote(&self, id: QuoteId, user_id: UserId) -> Result<StoredQuote, Error> {
        let stored = self.store.quote(id).await?.ok_or(Error::NoQuote)?;
        let is_usable = stored.user_id.is_none_or(|owner| owner == user_id);
        if is_usable {
            Ok(stored)
        } else {
            Err(Error::NoQuote)
        }
    }

    async fn price_changed(
        &self,
        old: &StoredQuote,
        lines: Vec<OrderLine>,
        shipping_option: Option<&str>,
    ) -> Result<RpcError, Error> {
        let quote = self.make_quote(lines, shipping_option)?;
        let cart = old.cart.clone();
        let quote = self
            .keep(StoredQuote {
                user_id: old.user_id,
                cart,
                quote,
            })
            .await?;
        Ok(Reason::PriceChanged.error_with("prices have changed", "quote", json!(quote)))
    }

    async fn priced(&self, wanted: Vec<Quantity>) -> Result<Vec<OrderLine>, Error> {
        let quoted = quote(&self.product, wanted.clone()).await?;
        let lines = pricing::lines(&wanted, &quoted.lines)?;
        if lines.len() < wanted.len() {
            let is_missing = |id: &_| !quoted.lines.iter().any(|line| line.product_id == *id);
            let missing = wanted
                .into_iter()
                .map(|line| line.product_id)
                .filter(is_missing);
            return Err(Error::NotSold(missing.collect()));
        }
        Ok(lines)
    }

    fn make_quote(&self, lines: Vec<OrderLine>, wanted: Option<&str>) -> Result<Quote, Error> {
        let options = pricing::shipping_options(&lines);
        let option = choose(&options, wanted)?;
        Ok(Quote {
            id: QuoteId::new(),
            totals: pricing::totals(&lines, option, self.config.currency)?,
            shipping_option: option.map(|option| option.id.clone()),
            needs_address: !options.is_empty(),
            expires_at: self.clock.now().plus(self.config.quote_ttl),
            lines,
            options,
        })
    }

    async fn keep(&self, stored: StoredQuote) -> Result<Quote, Error> {
        self.store.add_quote(&stored, self.clock.now()).await?;
        Ok(stored.quote)
    }
}

/// The option asked for, or the first; none where nothing is shipped, whatever was asked for.
fn choose<'a>(
    options: &'a [ShippingOption],
    wanted: Option<&str>,
) -> Result<Option<&'a ShippingOption>, Error> {
    let Some(wanted) = wanted.filter(|_| !options.is_empty()) else {
        return Ok(options.first());
    };
    let option = options.iter().find(|option| option.id == wanted);
    let mut fields = Fields::new();
    let known = options
        .iter()
        .map(|option| option.id.as_str())
        .collect::<Vec<_>>()
        .join(", ");
    fields.check(
        option.is_some(),
        "/shipping_option",
        "unknown",
        &format!("one of {known}"),
    );
    fields.finish()?;
    Ok(option)
}

/// Tells two requests under one key apart.
pub(crate) fn fingerprint<M: Message>(request: &M) -> Result<Uuid, Error> {
    Ok(Uuid::new_v5(
        &Uuid::NAMESPACE_OID,
        &serde_json::to_vec(request)?,
    ))
}
