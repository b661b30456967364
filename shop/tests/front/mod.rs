//! The shop as browsers see it: readers and buyers at several gateways, by HTTP, and what became of
//! every request.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use contracts::ProductId;
use serde_json::{Value, json};
use tokio::task::{JoinHandle, spawn_blocking};
use ureq::{
    Agent,
    http::{Method, Request},
};

use crate::buyer::{PATIENCE, Unmet, until};

/// The pause of a reader between two requests, and of a buyer between two looks.
const BREATH: Duration = Duration::from_millis(10);
const READERS: usize = 2;
/// How often everything is done between two restarts.
const AGAIN: usize = 3;

/// Gateways of which one is always there.
#[derive(Clone)]
pub(crate) struct Front {
    agent: Agent,
    addresses: Arc<Vec<String>>,
    turn: Arc<AtomicUsize>,
    /// Requests that a gateway did not take, or did not live to answer.
    moved_on: Arc<AtomicUsize>,
    /// The gateways are gone, and nobody waits for an answer.
    gone: Arc<AtomicBool>,
}

impl Front {
    pub(crate) fn new(addresses: Vec<String>) -> Self {
        let agent = Agent::config_builder()
            .timeout_global(Some(PATIENCE))
            .http_status_as_error(false)
            .max_idle_connections(0)
            .build()
            .into();
        Self {
            agent,
            addresses: Arc::new(addresses),
            turn: Arc::default(),
            moved_on: Arc::default(),
            gone: Arc::default(),
        }
    }

    /// Asks one gateway after the other until one answers, as a load balancer does with requests that
    /// may be repeated: all that are made here may.
    fn ask(&self, ask: &Ask) -> (u16, Value) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let turn = self.turn.fetch_add(1, Ordering::Relaxed);
            let address = &self.addresses[turn % self.addresses.len()];
            match self.ask_at(address, ask) {
                Ok(answer) => return answer,
                Err(error) => {
                    let in_vain = self.gone.load(Ordering::Relaxed) || Instant::now() >= deadline;
                    assert!(!in_vain, "no gateway answers: {error}");
                }
            }
            self.moved_on.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn ask_at(&self, address: &str, ask: &Ask) -> Result<(u16, Value), ureq::Error> {
        let mut request = Request::builder()
            .method(ask.method.clone())
            .uri(format!("http://{address}/v1{}", ask.path))
            .header("connection", "close");
        if let Some(token) = &ask.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(key) = &ask.key {
            request = request.header("idempotency-key", key);
        }
        let mut answer = match &ask.body {
            None => self.agent.run(request.body(())?)?,
            Some(body) => {
                let request = request.header("content-type", "application/json");
                self.agent.run(request.body(body.to_string())?)?
            }
        };
        let body = answer.body_mut().read_to_string()?;
        let body = serde_json::from_str(&body).unwrap_or(Value::String(body));
        Ok((answer.status().as_u16(), body))
    }
}

/// A request.
struct Ask {
    method: Method,
    path: String,
    token: Option<String>,
    key: Option<String>,
    body: Option<Value>,
}

impl Ask {
    fn get(path: impl Into<String>) -> Self {
        Self {
            method: Method::GET,
            path: path.into(),
            token: None,
            key: None,
            body: None,
        }
    }

    fn send(method: Method, path: impl Into<String>, body: Value) -> Self {
        Self {
            method,
            body: Some(body),
            ..Self::get(path)
        }
    }

    fn by(mut self, token: &str) -> Self {
        self.token = Some(token.to_owned());
        self
    }

    fn once(mut self, key: String) -> Self {
        self.key = Some(key);
        self
    }
}

/// What readers and buyers share.
struct Shared {
    front: Front,
    lamp: ProductId,
    ending: AtomicBool,
    /// How often each kind of request was answered.
    answered: Mutex<BTreeMap<String, usize>>,
    failures: Mutex<Vec<String>>,
}

impl Shared {
    /// Asks, and notes what came of it under `what`. Only a whole answer is a good one.
    fn ask(&self, what: &str, ask: &Ask) -> Option<Value> {
        let (status, body) = self.front.ask(ask);
        let partial = body["partial"].as_array();
        // There is nothing to tell of a payment that has not reached its service yet.
        let is_missing = |part: &Value| part != "payment_detail" || body["payment"] != "pending";
        if status >= 300 || partial.is_some_and(|parts| parts.iter().any(is_missing)) {
            let failure = format!("{what}: {status} {body}");
            self.failures.lock().unwrap().push(failure);
            return None;
        }
        *self
            .answered
            .lock()
            .unwrap()
            .entry(what.to_owned())
            .or_default() += 1;
        Some(body)
    }

    fn is_over(&self) -> bool {
        self.ending.load(Ordering::Relaxed) || self.front.gone.load(Ordering::Relaxed)
    }

    /// Reads one page of every kind after the other.
    fn read(&self, token: &str) {
        let lamp = self.lamp;
        let pages = [
            Ask::get("/products"),
            Ask::get("/categories"),
            Ask::get(format!("/products/{lamp}")),
            Ask::get(format!("/products/{lamp}/reviews")),
            Ask::get(format!("/recommendations?for=product&id={lamp}")),
            Ask::get("/me").by(token),
            Ask::get("/me/payment-methods").by(token),
            Ask::get("/cart").by(token),
            Ask::get("/orders").by(token),
        ];
        for page in pages.iter().cycle() {
            if self.is_over() {
                return;
            }
            self.ask(&format!("GET {}", page.path), page);
            thread::sleep(BREATH);
        }
    }

    /// Buys a lamp, and another, and waits each time until it is paid for. Returns the orders as they
    /// are at the end, and how many the shop says there are.
    fn buy(&self, customer: &Customer) -> (Vec<Value>, usize) {
        let token = &customer.token;
        let mut orders = Vec::new();
        for number in 0.. {
            if self.is_over() {
                break;
            }
            // A failure is noted.
            orders.extend(self.buy_one(customer, number));
        }
        let mut listed = 0;
        let mut cursor = String::new();
        loop {
            let page = Ask::get(format!("/orders?limit=100{cursor}")).by(token);
            let Some(page) = self.ask("GET /orders at the end", &page) else {
                return (orders, listed);
            };
            listed += page["items"].as_array().map_or(0, Vec::len);
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return (orders, listed),
            }
        }
    }

    fn buy_one(&self, customer: &Customer, number: usize) -> Option<Value> {
        let Customer { token, card } = customer;
        let line = format!("/cart/lines/{}", self.lamp);
        let line = Ask::send(Method::PUT, line, json!({"qty": 1})).by(token);
        self.ask("PUT /cart/lines", &line)?;
        let ship_to = json!({"ship_to": {"country": "DE", "postcode": "10115"}});
        let quote = Ask::send(Method::POST, "/checkout/quote", ship_to).by(token);
        let quote = self.ask("POST /checkout/quote", &quote)?;
        let form = json!({
            "quote_id": quote["id"],
            "address": {
                "name": "Ada", "street": ["Lane 1"], "postcode": "10115", "city": "Berlin",
                "country": "DE",
            },
            "shipping_option": quote["options"][0]["id"],
            "method_id": card,
            "email": "ada@example.org",
        });
        let place = Ask::send(Method::POST, "/orders", form).by(token);
        let placed = self.ask("POST /orders", &place.once(format!("order-{number}")))?;
        let look = format!("/orders/{}", placed["id"].as_str().unwrap_or_default());
        let look = Ask::get(look).by(token);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let order = self.ask("GET /orders/{id}", &look)?;
            if order["payment"] == "captured" || Instant::now() >= deadline {
                return Some(order);
            }
            if self.front.gone.load(Ordering::Relaxed) {
                return None;
            }
            thread::sleep(BREATH);
        }
    }
}

/// Somebody who is signed in and has a card.
struct Customer {
    token: String,
    card: Value,
}

impl Customer {
    fn register(front: &Front, number: usize) -> Self {
        let email = format!("buyer-{number}@example.org");
        let password = "correct horse battery";
        let good = |ask: &Ask| {
            let (status, body) = front.ask(ask);
            assert!(status < 300, "{}: {status} {body}", ask.path);
            body
        };
        let account = json!({"email": email, "password": password, "name": "Ada", "locale": "en"});
        good(&Ask::send(Method::POST, "/auth/register", account));
        let login = json!({"email": email, "password": password, "device": "test"});
        let tokens = good(&Ask::send(Method::POST, "/auth/login", login));
        let token = tokens["access"].as_str().expect("a token").to_owned();
        let card =
            json!({"pan": "4242424242424242", "exp": "12/99", "cvc": "123", "holder": "Ada"});
        let add = Ask::send(Method::POST, "/me/payment-methods", card).by(&token);
        let card = good(&add)["id"].clone();
        Self { token, card }
    }
}

/// Readers and buyers at work.
pub(crate) struct Load {
    shared: Arc<Shared>,
    readers: Vec<JoinHandle<()>>,
    buyers: Vec<JoinHandle<(Vec<Value>, usize)>>,
    _leash: Leash,
}

/// Nobody goes on asking when the test has failed.
struct Leash(Front);

impl Drop for Leash {
    fn drop(&mut self) {
        self.0.gone.store(true, Ordering::Relaxed);
    }
}

impl Load {
    /// Registers customers and lets them go.
    pub(crate) async fn start(front: &Front, lamp: ProductId, buyers: usize) -> Self {
        let registering = (0..buyers).map(|number| {
            let front = front.clone();
            spawn_blocking(move || Customer::register(&front, number))
        });
        let mut customers = Vec::new();
        for customer in registering.collect::<Vec<_>>() {
            customers.push(customer.await.unwrap());
        }
        let shared = Arc::new(Shared {
            front: front.clone(),
            lamp,
            ending: AtomicBool::new(false),
            answered: Mutex::default(),
            failures: Mutex::default(),
        });
        let token = &customers[0].token;
        let readers = (0..READERS).map(|_| {
            let (shared, token) = (Arc::clone(&shared), token.clone());
            spawn_blocking(move || shared.read(&token))
        });
        let readers = readers.collect();
        let buyers = customers.into_iter().map(|customer| {
            let shared = Arc::clone(&shared);
            spawn_blocking(move || shared.buy(&customer))
        });
        Self {
            readers,
            buyers: buyers.collect(),
            _leash: Leash(front.clone()),
            shared,
        }
    }

    /// Waits until every kind of request was answered some more times.
    pub(crate) async fn until_everything_was_done_again(&self) {
        // Those of a visit, and one for each page.
        const KINDS: usize = 4 + 9;
        let answered = || self.shared.answered.lock().unwrap().clone();
        let before = answered();
        until(async || {
            let failures = self.shared.failures.lock().unwrap().clone();
            assert_eq!(failures, [""; 0]);
            let now = answered();
            let is_done =
                |what: &String| now[what] >= before.get(what).copied().unwrap_or_default() + AGAIN;
            if now.len() == KINDS && now.keys().all(is_done) {
                Ok(())
            } else {
                Err(Unmet::new(format_args!("{before:?}, then {now:?}")))
            }
        })
        .await;
    }

    /// Lets what has begun come to its end.
    pub(crate) async fn stop(self) -> Done {
        self.shared.ending.store(true, Ordering::Relaxed);
        for reader in self.readers {
            reader.await.unwrap();
        }
        let (mut orders, mut listed) = (Vec::new(), 0);
        for buyer in self.buyers {
            let (bought, found) = buyer.await.unwrap();
            orders.extend(bought);
            listed += found;
        }
        Done {
            orders,
            listed,
            answered: self.shared.answered.lock().unwrap().clone(),
            failures: self.shared.failures.lock().unwrap().clone(),
            moved_on: self.shared.front.moved_on.load(Ordering::Relaxed),
        }
    }
}

/// What was done.
pub(crate) struct Done {
    /// The orders, as they were last seen.
    pub(crate) orders: Vec<Value>,
    /// How many orders the shop knows of these buyers.
    pub(crate) listed: usize,
    /// Requests that were not answered well.
    pub(crate) failures: Vec<String>,
    answered: BTreeMap<String, usize>,
    moved_on: usize,
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let requests: usize = self.answered.values().sum();
        write!(
            f,
            "{requests} requests answered, {} failed, {} went to the other gateway, {} orders",
            self.failures.len(),
            self.moved_on,
            self.orders.len()
        )
    }
}
