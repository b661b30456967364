//! A product and a payment service that keep the promises of their contracts, in memory, and can be
//! told to fail.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex},
};

use contracts::{
    Currency, MethodId, Money, OrderId, PaymentId, ProductId, TaxRate, Timestamp,
    payment::{Authorization, Authorize, Reversal, Reverse},
    product::{
        Fulfilment, Quantity, QuoteLines, QuotedLine, QuotedLines, ReleaseStock, Released,
        Reservation, ReserveStock, ShortLine,
    },
};
use nestling::{Context, Message, Router, RpcError, header};
use tokio::sync::Semaphore;

/// What goes wrong with one call.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// Nobody is there.
    Unavailable,
    /// It is refused for good.
    Refused,
    /// It never arrives.
    LostRequest,
    /// It has its effect, and the reply never arrives.
    LostReply,
    /// It waits before its effect until the gate opens.
    Gate(Arc<Semaphore>),
}

#[derive(Default)]
pub(crate) struct Peers {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    catalogue: HashMap<ProductId, QuotedLine>,
    held: HashMap<OrderId, Vec<Quantity>>,
    released: HashSet<OrderId>,
    payments: HashMap<PaymentId, Money>,
    reversed: HashSet<PaymentId>,
    /// How often money was really promised.
    promises: usize,
    pending: bool,
    calls: HashMap<&'static str, usize>,
    faults: HashMap<&'static str, VecDeque<Fault>>,
    down: HashSet<&'static str>,
    traces: HashMap<&'static str, String>,
}

pub(crate) fn good_card() -> MethodId {
    MethodId::derive("good")
}

pub(crate) fn bad_card() -> MethodId {
    MethodId::derive("bad")
}

impl Peers {
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().unwrap())
    }

    pub(crate) fn add_product(
        &self,
        sku: &str,
        amount: i64,
        stock: u32,
        fulfilment: Fulfilment,
    ) -> ProductId {
        let product_id = ProductId::derive(sku);
        let line = QuotedLine {
            product_id,
            sku: sku.to_owned(),
            name: sku.to_uppercase(),
            unit_net: Money::new(amount, Currency::EUR),
            tax: TaxRate(1900),
            available: stock,
            fulfilment,
            weight_g: 100,
            image: String::new(),
        };
        self.with(|state| state.catalogue.insert(product_id, line));
        product_id
    }

    pub(crate) fn remove_product(&self, product_id: ProductId) {
        self.with(|state| state.catalogue.remove(&product_id));
    }

    pub(crate) fn available(&self, product_id: ProductId) -> u32 {
        self.with(|state| state.catalogue[&product_id].available)
    }

    pub(crate) fn holds(&self, order_id: OrderId) -> bool {
        self.with(|state| state.held.contains_key(&order_id))
    }

    pub(crate) fn is_released(&self, order_id: OrderId) -> bool {
        self.with(|state| state.released.contains(&order_id))
    }

    pub(crate) fn promises(&self) -> usize {
        self.with(|state| state.promises)
    }

    /// Payments that are promised and were not reversed.
    pub(crate) fn open_payments(&self) -> usize {
        self.with(|state| state.payments.len())
    }

    pub(crate) fn is_reversed(&self, payment_id: PaymentId) -> bool {
        self.with(|state| state.reversed.contains(&payment_id))
    }

    pub(crate) fn calls(&self, pattern: &'static str) -> usize {
        self.with(|state| state.calls.get(pattern).copied().unwrap_or_default())
    }

    /// The trace of the latest call that had one.
    pub(crate) fn trace_of(&self, pattern: &'static str) -> Option<String> {
        self.with(|state| state.traces.get(pattern).cloned())
    }

    /// The next call of `pattern` goes wrong.
    pub(crate) fn fail(&self, pattern: &'static str, fault: Fault) {
        self.with(|state| state.faults.entry(pattern).or_default().push_back(fault));
    }

    pub(crate) fn set_down(&self, pattern: &'static str, down: bool) {
        self.with(|state| match down {
            true => state.down.insert(pattern),
            false => state.down.remove(pattern),
        });
    }

    pub(crate) fn set_pending(&self, pending: bool) {
        self.with(|state| state.pending = pending);
    }

    /// The stock of an order is no longer held.
    pub(crate) fn expire(&self, order_id: OrderId) {
        self.with(|state| state.free(order_id));
    }

    pub(crate) fn product(self: &Arc<Self>) -> Router {
        let (quote, reserve, release) = (Arc::clone(self), Arc::clone(self), Arc::clone(self));
        Router::new()
            .message(move |request: QuoteLines| quote.clone().call(request, State::quote))
            .message(move |request: ReserveStock| reserve.clone().call(request, State::reserve))
            .message(move |request: ReleaseStock| release.clone().call(request, State::release))
    }

    pub(crate) fn payment(self: &Arc<Self>) -> Router {
        let (authorize, reverse) = (Arc::clone(self), Arc::clone(self));
        Router::new()
            .message(move |request: Authorize| authorize.clone().call(request, State::authorize))
            .message(move |request: Reverse| reverse.clone().call(request, State::reverse))
    }

    async fn call<M: Message>(
        self: Arc<Self>,
        request: M,
        act: fn(&mut State, &M) -> M::Reply,
    ) -> Result<M::Reply, RpcError> {
        let cx = Context::current().unwrap();
        let trace = cx.header(header::TRACEPARENT);
        let (fault, is_down) = self.with(|state| {
            if let Some(trace) = trace {
                state.traces.insert(M::PATTERN, trace.to_owned());
            }
            *state.calls.entry(M::PATTERN).or_default() += 1;
            let fault = state
                .faults
                .get_mut(M::PATTERN)
                .and_then(VecDeque::pop_front);
            (fault, state.down.contains(M::PATTERN))
        });
        if is_down {
            return Err(RpcError::unavailable("down"));
        }
        let is_reply_lost = match fault {
            None => false,
            Some(Fault::Unavailable) => return Err(RpcError::unavailable("down")),
            Some(Fault::Refused) => return Err(RpcError::not_found("no such thing")),
            Some(Fault::LostRequest) => std::future::pending().await,
            Some(Fault::LostReply) => true,
            Some(Fault::Gate(gate)) => {
                gate.acquire().await.unwrap().forget();
                false
            }
        };
        let reply = self.with(|state| act(state, &request));
        if is_reply_lost {
            std::future::pending::<()>().await;
        }
        Ok(reply)
    }
}

impl State {
    fn quote(&mut self, request: &QuoteLines) -> QuotedLines {
        let (mut lines, mut missing) = (vec![], vec![]);
        for &Quantity { product_id, .. } in &request.lines {
            match self.catalogue.get(&product_id) {
                Some(line) => lines.push(line.clone()),
                None => missing.push(product_id),
            }
        }
        QuotedLines { lines, missing }
    }

    fn reserve(&mut self, request: &ReserveStock) -> Reservation {
        let ReserveStock {
            order_id,
            lines,
            ttl_s,
        } = request;
        if self.released.contains(order_id) {
            return Reservation::Released;
        }
        let expires_at = Timestamp::now().plus(std::time::Duration::from_secs(u64::from(*ttl_s)));
        if self.held.contains_key(order_id) {
            return Reservation::Reserved { expires_at };
        }
        let available = |id: &ProductId| self.catalogue.get(id).map_or(0, |line| line.available);
        let short: Vec<_> = lines
            .iter()
            .map(|line| ShortLine {
                product_id: line.product_id,
                requested: line.qty,
                available: available(&line.product_id),
            })
            .filter(|line| line.available < line.requested)
            .collect();
        if !short.is_empty() {
            return Reservation::Short { lines: short };
        }
        for line in lines {
            self.catalogue.get_mut(&line.product_id).unwrap().available -= line.qty;
        }
        self.held.insert(*order_id, lines.clone());
        Reservation::Reserved { expires_at }
    }

    fn free(&mut self, order_id: OrderId) {
        for line in self.held.remove(&order_id).unwrap_or_default() {
            self.catalogue.get_mut(&line.product_id).unwrap().available += line.qty;
        }
    }

    fn release(&mut self, request: &ReleaseStock) -> Released {
        let released = self.held.get(&request.order_id).map_or(0, Vec::len);
        self.free(request.order_id);
        self.released.insert(request.order_id);
        Released {
            released: released.try_into().unwrap(),
        }
    }

    fn authorize(&mut self, request: &Authorize) -> Authorization {
        let declined = |code: &str| Authorization::Declined {
            code: code.to_owned(),
            message: "no".to_owned(),
            retryable: true,
        };
        if self.reversed.contains(&request.payment_id) {
            return declined("reversed");
        }
        if self.payments.contains_key(&request.payment_id) {
            return Authorization::Authorized;
        }
        if self.pending {
            return Authorization::Pending;
        }
        if request.method_id == Some(bad_card()) {
            return declined("card_declined");
        }
        self.promises += 1;
        self.payments.insert(request.payment_id, request.amount);
        Authorization::Authorized
    }

    fn reverse(&mut self, request: &Reverse) -> Reversal {
        self.reversed.insert(request.payment_id);
        match self.payments.remove(&request.payment_id) {
            Some(_) => Reversal::Voided,
            None => Reversal::Nothing,
        }
    }
}
