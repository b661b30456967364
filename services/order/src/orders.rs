//! Orders that are there: reading, paying, cancelling, importing, and what payment and stock tell.

use contracts::{
    Actor, Fields, MoneyError, OrderId, Page, Reason, Role, TaxRate, Timestamp, UserId,
    order::{
        CancelOrder, GetHistory, GetOrder, HistoryEntry, ImportOrders, ImportedLine, ImportedOrder,
        LineState, ListOrders, OrderLine, OrderView, PayOrder,
    },
    product::{self, Fulfilment},
};
use nestling::{Context, Message, RpcError, sqlite::Inbox};

use crate::{
    checkout::fingerprint,
    config::Clock,
    error::Error,
    fact::{Fact, Imported},
    order::{Input, Order},
    pricing,
    saga::Wake,
    store::{Filter, Once, Store},
};

/// How often a decision is made anew because somebody else appended first.
const MOST_CONFLICTS: u32 = 5;

/// The orders.
#[derive(Clone, Debug)]
pub(crate) struct Orders {
    pub(crate) store: Store,
    pub(crate) wake: Wake,
    pub(crate) clock: Clock,
}

impl Orders {
    pub(crate) async fn get(&self, request: &GetOrder, actor: &Actor) -> Result<OrderView, Error> {
        let view = self.store.view(request.order_id).await?;
        actor.require_own(view.user_id)?;
        Ok(view)
    }

    pub(crate) async fn list(
        &self,
        request: &ListOrders,
        actor: &Actor,
    ) -> Result<Page<OrderView>, Error> {
        let mut fields = Fields::new();
        request.page.check(&mut fields);
        fields.finish()?;
        let user_id = match request.user_id {
            Some(user_id) => {
                actor.require_own(user_id)?;
                Some(user_id)
            }
            None if actor.is_staff() => None,
            None => Some(actor.user_id),
        };
        let ListOrders {
            status, from, to, ..
        } = *request;
        self.store
            .views(
                &Filter {
                    user_id,
                    status,
                    from,
                    to,
                },
                &request.page,
            )
            .await
    }

    pub(crate) async fn history(
        &self,
        request: &GetHistory,
        actor: &Actor,
    ) -> Result<Vec<HistoryEntry>, Error> {
        let view = self.store.view(request.order_id).await?;
        actor.require_own(view.user_id)?;
        self.store
            .history(request.order_id, request.after_version)
            .await
    }

    pub(crate) async fn pay(
        &self,
        request: &PayOrder,
        actor: &Actor,
        key: &str,
    ) -> Result<OrderView, Error> {
        let view = self.store.view(request.order_id).await?;
        actor.require_own(view.user_id)?;
        let once = Once {
            user_id: view.user_id,
            pattern: PayOrder::PATTERN,
            key,
            request: fingerprint(request)?,
        };
        let now = self.clock.now();
        let mut tx = self.store.begin().await?;
        if let Some(reply) = self.store.find_reply_in(&mut tx, &once).await? {
            return Ok(reply);
        }
        let mut order = self.store.order_in(&mut tx, request.order_id).await?;
        let facts = order.decide(
            &Input::Pay {
                method_id: request.method_id,
            },
            now,
        )?;
        self.store
            .append(&mut tx, &mut order, &facts, Some(actor.user_id), now)
            .await?;
        let view = order.view();
        self.store.remember(&mut tx, &once, &view, now).await?;
        self.store.commit(tx).await?;
        self.wake.order(order.id);
        Ok(view)
    }

    pub(crate) async fn cancel(
        &self,
        request: &CancelOrder,
        actor: &Actor,
    ) -> Result<OrderView, Error> {
        let mut fields = Fields::new();
        fields.length(request.reason.trim(), 1..=500, "/reason");
        fields.finish()?;
        let view = self.store.view(request.order_id).await?;
        actor.require_own(view.user_id)?;
        let input = Input::Cancel {
            reason: request.reason.trim().to_owned(),
        };
        let now = self.clock.now();
        let order = record(
            &self.store,
            request.order_id,
            &input,
            Some(actor.user_id),
            now,
        )
        .await?;
        self.wake.order(order.id);
        Ok(order.view())
    }

    /// What an event from elsewhere means for an order, once. An order that is not ours is none of
    /// our business.
    pub(crate) async fn hear(
        &self,
        handler: &'static str,
        order_id: OrderId,
        input: &Input,
        cx: &Context,
    ) -> Result<(), Error> {
        let now = self.clock.now();
        let mut tx = self.store.begin().await?;
        if !Inbox::is_new(&mut tx, handler, cx).await? {
            return Ok(());
        }
        match self.store.order_in(&mut tx, order_id).await {
            Ok(mut order) => {
                let facts = order.decide(input, now)?;
                if !facts.is_empty() {
                    self.store
                        .append(&mut tx, &mut order, &facts, None, now)
                        .await?;
                }
            }
            Err(Error::NoOrder) => tracing::warn!(%order_id, handler, "an event of no order"),
            Err(error) => return Err(error),
        }
        self.store.commit(tx).await?;
        self.wake.order(order_id);
        Ok(())
    }

    /// Payment has news: its answer need not be waited for.
    pub(crate) async fn hurry(&self, order_id: OrderId) -> Result<(), Error> {
        self.store.hurry(order_id, self.clock.now()).await?;
        self.wake.order(order_id);
        Ok(())
    }

    pub(crate) async fn import(
        &self,
        request: &ImportOrders,
        actor: &Actor,
    ) -> Result<product::Imported, Error> {
        actor.require(&[Role::Manager, Role::Admin])?;
        check_import(&request.orders)?;
        let now = self.clock.now();
        let mut done = product::Imported { added: 0, known: 0 };
        let mut tx = self.store.begin().await?;
        for order in &request.orders {
            let id = OrderId::derive(&order.number);
            if self.store.has_order(&mut tx, id).await? {
                done.known += 1;
                continue;
            }
            let facts = [Fact::Imported(Box::new(imported(order)?))];
            let mut order = Order::blank(id);
            self.store
                .append(&mut tx, &mut order, &facts, Some(actor.user_id), now)
                .await?;
            done.added += 1;
        }
        self.store.commit(tx).await?;
        Ok(done)
    }
}

/// Decides on the order as it is and appends what follows. The loser of a race decides again.
pub(crate) async fn record(
    store: &Store,
    order_id: OrderId,
    input: &Input,
    actor: Option<UserId>,
    now: Timestamp,
) -> Result<Order, Error> {
    for _ in 0..MOST_CONFLICTS {
        let mut tx = store.begin().await?;
        let mut order = store.order_in(&mut tx, order_id).await?;
        let facts = order.decide(input, now)?;
        if facts.is_empty() {
            return Ok(order);
        }
        match store.append(&mut tx, &mut order, &facts, actor, now).await {
            Ok(()) => {
                store.commit(tx).await?;
                return Ok(order);
            }
            Err(Error::Conflict) => tracing::debug!(%order_id, "lost a race, deciding again"),
            Err(error) => return Err(error),
        }
    }
    Err(Error::Conflict)
}

fn check_import(orders: &[ImportedOrder]) -> Result<(), RpcError> {
    let mut fields = Fields::new();
    fields.check(
        (1..=200).contains(&orders.len()),
        "/orders",
        "length",
        "1 to 200 orders",
    );
    for (index, order) in orders.iter().enumerate() {
        let pointer = format!("/orders/{index}");
        fields.length(&order.number, 1..=64, &format!("{pointer}/number"));
        let lines = format!("{pointer}/lines");
        fields.check(
            (1..=2000).contains(&order.lines.len()),
            &lines,
            "length",
            "1 to 2000 lines",
        );
        for (index, line) in order.lines.iter().enumerate() {
            let is_sane = line.qty >= 1 && line.returned <= line.qty && line.unit_net >= 0;
            let message = "at least one, no more returned than bought, no negative price";
            fields.check(is_sane, &format!("{lines}/{index}"), "range", message);
        }
    }
    fields.finish()
}

fn imported(order: &ImportedOrder) -> Result<Imported, Error> {
    let too_large = |error: MoneyError| Reason::Validation.error(error.to_string());
    let line = |(line_id, line)| imported_line(line_id, line, order);
    let lines = (1..).zip(&order.lines).map(line);
    let lines = lines.collect::<Result<Vec<_>, _>>().map_err(too_large)?;
    Ok(Imported {
        number: order.number.clone(),
        user_id: order.user_id,
        totals: pricing::totals(&lines, None, order.currency).map_err(too_large)?,
        lines,
        placed_at: order.placed_at,
    })
}

/// Histories do not say what was taxed and how: their prices stand as they are.
fn imported_line(
    line_id: u32,
    line: &ImportedLine,
    order: &ImportedOrder,
) -> Result<OrderLine, MoneyError> {
    let unit_net = contracts::Money::new(line.unit_net, order.currency);
    let is_kept = line.qty > line.returned;
    Ok(OrderLine {
        line_id,
        product_id: line.product_id,
        sku: line.sku.clone(),
        name: line.name.clone(),
        fulfilment: Fulfilment::Physical,
        qty: line.qty,
        unit_net,
        net: unit_net.times(line.qty)?,
        tax_rate: TaxRate(0),
        tax: contracts::Money::zero(order.currency),
        state: if is_kept {
            LineState::Delivered
        } else {
            LineState::Returned
        },
    })
}
