//! The service under test, with its database, its peers and somebody who listens to its events.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use contracts::{
    Actor, MethodId, OrderId, ProductId, Reason, Role, SessionId, Timestamp, UserId,
    order::{
        Address, CancelOrder, Cart, GetCart, GetHistory, GetOrder, OrderAwaitingPayment,
        OrderCancelled, OrderConfirmed, OrderImported, OrderPaymentFailed, OrderPlaced,
        OrderRejected, OrderStatus, OrderView, Owner, PayOrder, PlaceOrder, PutCartLine, Quote,
        QuoteCart,
    },
    product::Fulfilment,
};
use nestling::{
    Client, Context, Event, Message, Router, RpcError, Running, Server, Single, header, sqlite,
    transport::Memory,
};
use order::{Background, Clock, Config, Deps};

use crate::peers::{Peers, good_card};

/// Far longer than anything takes, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Shop {
    pub(crate) hub: Memory,
    pub(crate) peers: Arc<Peers>,
    pub(crate) client: Client,
    pub(crate) config: Config,
    heard: Arc<Mutex<Vec<Heard>>>,
    clock: Arc<AtomicI64>,
    /// The database is a file here, or in memory.
    folder: Option<tempfile::TempDir>,
    replicas: Vec<(Running, Background)>,
    _peers: Vec<Running>,
}

/// Quick about everything but deadlines, which the clock decides.
pub(crate) fn config() -> Config {
    Config {
        tick: Duration::from_millis(10),
        first_retry: Duration::from_millis(1),
        steady_retry: Duration::from_millis(10),
        pending_retry: Duration::from_millis(1),
        ..Config::default()
    }
}

pub(crate) fn actor(user_id: UserId, role: Role) -> Actor {
    Actor {
        user_id,
        roles: vec![role],
        session: SessionId::derive("session"),
    }
}

pub(crate) fn ada() -> Actor {
    actor(UserId::derive("ada"), Role::Customer)
}

pub(crate) fn address() -> Address {
    Address {
        name: "Ada".to_owned(),
        street: vec!["Main Street 1".to_owned()],
        postcode: "10115".to_owned(),
        city: "Berlin".to_owned(),
        region: None,
        country: "DE".to_owned(),
        phone: None,
    }
}

pub(crate) fn reason(error: &RpcError) -> Reason {
    Reason::of(error).unwrap_or_else(|| panic!("no reason in {error:?}"))
}

/// An event of an order.
struct Heard {
    order_id: OrderId,
    pattern: &'static str,
    event_id: String,
}

/// Hears each event once, as whoever has an inbox does: after a crash the outbox publishes again
/// what it had not struck out.
fn listen<E: Event>(
    router: Router,
    heard: &Arc<Mutex<Vec<Heard>>>,
    id: fn(&E) -> OrderId,
) -> Router {
    let heard = Arc::clone(heard);
    router.event(move |event: E, cx: Context| {
        let event_id = cx.header(header::EVENT_ID).unwrap().to_owned();
        let mut heard = heard.lock().unwrap();
        if !heard.iter().any(|other| other.event_id == event_id) {
            heard.push(Heard {
                order_id: id(&event),
                pattern: E::PATTERN,
                event_id,
            });
        }
        std::future::ready(Ok::<_, RpcError>(()))
    })
}

impl Shop {
    pub(crate) async fn open() -> Self {
        Self::with(config()).await
    }

    pub(crate) async fn with(config: Config) -> Self {
        Self::build(config, Some(tempfile::tempdir().unwrap())).await
    }

    pub(crate) async fn in_memory() -> Self {
        Self::build(config(), None).await
    }

    async fn build(config: Config, folder: Option<tempfile::TempDir>) -> Self {
        let (hub, peers) = (Memory::new(), Arc::new(Peers::default()));
        let heard = Arc::default();
        let router = listen(Router::new(), &heard, |event: &OrderPlaced| event.order_id);
        let router = listen(router, &heard, |event: &OrderAwaitingPayment| {
            event.order_id
        });
        let router = listen(router, &heard, |event: &OrderPaymentFailed| event.order_id);
        let router = listen(router, &heard, |event: &OrderConfirmed| event.order_id);
        let router = listen(router, &heard, |event: &OrderRejected| event.order_id);
        let router = listen(router, &heard, |event: &OrderCancelled| event.order_id);
        let router = listen(router, &heard, |event: &OrderImported| event.order_id);
        let mut running = Vec::new();
        for (name, router) in [
            ("product", peers.product()),
            ("payment", peers.payment()),
            ("listener", router),
        ] {
            running.push(
                Server::new(name, router)
                    .listen(&hub)
                    .start()
                    .await
                    .unwrap(),
            );
        }
        let client = Client::builder(&hub)
            .timeout(PATIENCE)
            .build()
            .await
            .unwrap();
        let mut shop = Self {
            hub,
            peers,
            client,
            config,
            heard,
            clock: Arc::default(),
            folder,
            replicas: Vec::new(),
            _peers: running,
        };
        shop.add_replica().await;
        shop
    }

    pub(crate) async fn add_replica(&mut self) {
        let client = || async { Client::connect(&self.hub).await.unwrap() };
        let offset = Arc::clone(&self.clock);
        let clock = Clock::new(move || {
            Timestamp::from_millis(Timestamp::now().millis() + offset.load(Ordering::Relaxed))
        });
        let pool = match &self.folder {
            Some(folder) => sqlite::open(folder.path().join("order.db")).await,
            None => sqlite::open_in_memory().await,
        };
        let app = order::start(Deps {
            pool: pool.unwrap(),
            product: client().await,
            payment: client().await,
            bus: client().await,
            config: self.config.clone(),
            clock,
        })
        .await
        .unwrap();
        let server = Server::new("order", app.router)
            .listen(&self.hub)
            .start()
            .await
            .unwrap();
        self.replicas.push((server, app.background));
    }

    /// Everything in memory is gone at once.
    pub(crate) fn crash(&mut self) {
        self.replicas.clear();
    }

    pub(crate) fn advance(&self, by: Duration) {
        self.clock
            .fetch_add(by.as_millis().try_into().unwrap(), Ordering::Relaxed);
    }

    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::from_millis(Timestamp::now().millis() + self.clock.load(Ordering::Relaxed))
    }

    pub(crate) fn add_product(&self, sku: &str, stock: u32) -> ProductId {
        self.peers
            .add_product(sku, 1000, stock, Fulfilment::Physical)
    }

    pub(crate) async fn send<M>(&self, actor: &Actor, message: M) -> Result<M::Reply, RpcError>
    where
        M: Message<Shape = Single>,
    {
        self.client
            .send(message)
            .header(header::ACTOR, actor.to_header())
            .await
    }

    pub(crate) async fn send_keyed<M>(
        &self,
        actor: &Actor,
        key: &str,
        message: M,
    ) -> Result<M::Reply, RpcError>
    where
        M: Message<Shape = Single>,
    {
        let call = self
            .client
            .send(message)
            .header(header::ACTOR, actor.to_header());
        call.header(header::IDEMPOTENCY_KEY, key.to_owned()).await
    }

    pub(crate) async fn put(&self, actor: &Actor, product_id: ProductId, qty: u32) -> Cart {
        let owner = Owner::User(actor.user_id);
        self.send(
            actor,
            PutCartLine {
                owner,
                product_id,
                qty,
            },
        )
        .await
        .unwrap()
    }

    pub(crate) async fn cart(&self, actor: &Actor) -> Cart {
        self.send(
            actor,
            GetCart {
                owner: Owner::User(actor.user_id),
            },
        )
        .await
        .unwrap()
    }

    pub(crate) async fn quote(&self, actor: &Actor) -> Quote {
        let owner = Owner::User(actor.user_id);
        self.send(
            actor,
            QuoteCart {
                owner,
                ship_to: None,
                shipping_option: None,
            },
        )
        .await
        .unwrap()
    }

    pub(crate) fn place_request(actor: &Actor, quote: &Quote, method_id: MethodId) -> PlaceOrder {
        PlaceOrder {
            user_id: actor.user_id,
            quote_id: quote.id,
            address: Some(address()),
            shipping_option: None,
            method_id: Some(method_id),
            email: "ada@example.org".to_owned(),
        }
    }

    /// Puts it into the cart, quotes it and places the order.
    pub(crate) async fn order(
        &self,
        product_id: ProductId,
        qty: u32,
        method_id: MethodId,
    ) -> OrderView {
        let actor = ada();
        self.put(&actor, product_id, qty).await;
        let quote = self.quote(&actor).await;
        let request = Self::place_request(&actor, &quote, method_id);
        self.send_keyed(&actor, &quote.id.to_string(), request)
            .await
            .unwrap()
    }

    /// An order of something that is there, with a good card.
    pub(crate) async fn simple_order(&self) -> OrderView {
        let lamp = self.add_product("lamp", 10);
        self.order(lamp, 1, good_card()).await
    }

    pub(crate) async fn pay(
        &self,
        order_id: OrderId,
        method_id: MethodId,
        key: &str,
    ) -> Result<OrderView, RpcError> {
        self.send_keyed(
            &ada(),
            key,
            PayOrder {
                order_id,
                method_id,
            },
        )
        .await
    }

    pub(crate) async fn cancel(&self, order_id: OrderId) -> Result<OrderView, RpcError> {
        self.send(
            &ada(),
            CancelOrder {
                order_id,
                reason: "changed my mind".to_owned(),
            },
        )
        .await
    }

    pub(crate) async fn view(&self, order_id: OrderId) -> OrderView {
        self.send(&ada(), GetOrder { order_id }).await.unwrap()
    }

    pub(crate) async fn kinds(&self, order_id: OrderId) -> Vec<String> {
        let request = GetHistory {
            order_id,
            after_version: 0,
        };
        let history = self.send(&ada(), request).await.unwrap();
        assert!(
            (1..)
                .zip(&history)
                .all(|(version, entry)| entry.version == version)
        );
        history.into_iter().map(|entry| entry.kind).collect()
    }

    pub(crate) async fn until_status(&self, order_id: OrderId, status: OrderStatus) -> OrderView {
        self.until(order_id, |view| view.status == status).await
    }

    pub(crate) async fn until(
        &self,
        order_id: OrderId,
        is_it: impl Fn(&OrderView) -> bool,
    ) -> OrderView {
        let mut last = None;
        wait_until(async || {
            let view = self.view(order_id).await;
            let done = is_it(&view);
            last = Some(view);
            done
        })
        .await;
        last.unwrap()
    }

    /// What was published about the order, in order, once `last` was.
    pub(crate) async fn events(&self, order_id: OrderId, last: &str) -> Vec<&'static str> {
        let mut seen = Vec::new();
        wait_until(async || {
            let heard = self.heard.lock().unwrap();
            seen = heard
                .iter()
                .filter(|event| event.order_id == order_id)
                .map(|event| event.pattern)
                .collect();
            seen.last() == Some(&last)
        })
        .await;
        seen
    }
}

/// Looks again and again until it is so.
pub(crate) async fn wait_until(mut is_so: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .expect("it never became so");
}
