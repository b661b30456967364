//! A shop of fakes behind the gateway, and requests to it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, atomic::AtomicUsize},
    time::{SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::{rand::SystemRandom, signature::Ed25519KeyPair};
use axum::{
    Router as App,
    body::{Body, to_bytes},
    http::{HeaderMap, Method, Request, StatusCode},
};
use contracts::{
    Role, SessionId, UserId,
    order::{ListOrders, OrderView, PlaceOrder},
    user::{Claims, Key},
};
use gateway::Clients;
use jsonwebtoken::{Algorithm, EncodingKey, Header, jwk};
use nestling::{Client, Introspection, Running, Server, transport::Memory};
use serde_json::Value;
use tower::ServiceExt;

use crate::fakes::{orders, payments, products, recommendations, reviews, sample_order, users};

const SERVICES: [&str; 6] = [
    "user",
    "product",
    "order",
    "payment",
    "review",
    "recommendation",
];

/// A key that tokens are signed with.
pub(crate) struct Signing {
    key: EncodingKey,
    pub(crate) public: Key,
}

impl Signing {
    pub(crate) fn new() -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8v1(&SystemRandom::new()).unwrap();
        let key = EncodingKey::from_ed_der(pkcs8.as_ref());
        let jwk = jwk::Jwk::from_encoding_key(&key, Algorithm::EdDSA).unwrap();
        let jwk::AlgorithmParameters::OctetKeyPair(pair) = jwk.algorithm else {
            panic!("not an Ed25519 key")
        };
        let kid = SessionId::new().to_string();
        Self {
            key,
            public: Key { kid, x: pair.x },
        }
    }

    pub(crate) fn sign(&self, claims: &Claims) -> String {
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(self.public.kid.clone());
        jsonwebtoken::encode(&header, claims, &self.key).unwrap()
    }
}

pub(crate) fn claims(user: UserId, roles: &[Role]) -> Claims {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    Claims {
        sub: user,
        sid: SessionId::new(),
        roles: roles.to_vec(),
        iat: now,
        exp: now + 900,
        iss: "nestling-shop".to_owned(),
    }
}

/// What the fakes share with a test.
pub(crate) struct World {
    pub(crate) user: UserId,
    pub(crate) signing: Mutex<Signing>,
    pub(crate) keys_asked: AtomicUsize,
    pub(crate) registrations: AtomicUsize,
    /// What `order.get` says; `order.place` and `order.pay` say that nothing has happened yet.
    pub(crate) order: Mutex<OrderView>,
    /// The headers of the last call that placed an order.
    pub(crate) placed: Mutex<Option<(PlaceOrder, String, String)>>,
    pub(crate) orders_listed: Mutex<Option<ListOrders>>,
}

pub(crate) struct Shop {
    pub(crate) world: Arc<World>,
    pub(crate) app: App,
    pub(crate) servers: BTreeMap<&'static str, Running>,
    memory: Memory,
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    /// That it is a problem, and the same one in all its places.
    #[track_caller]
    pub(crate) fn is_problem(&self, status: u16, code: &str) {
        assert_eq!(
            (self.status.as_u16(), &self.body["code"]),
            (status, &code.into()),
            "{}",
            self.body
        );
        assert_eq!(self.header("content-type"), "application/problem+json");
        assert_eq!(self.body["type"], format!("/problems/{code}"));
        assert_eq!(self.body["status"], status);
        assert_eq!(self.body["instance"], self.header("x-request-id"));
        assert!(self.body["title"].is_string() && self.body["detail"].is_string());
        assert!(self.body["errors"].is_array());
    }
}

/// A request about to be made.
pub(crate) struct Ask<'a> {
    shop: &'a Shop,
    request: axum::http::request::Builder,
    body: Option<String>,
}

impl Ask<'_> {
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.request = self.request.header(name, value);
        self
    }

    pub(crate) fn bearer(self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    pub(crate) fn signed_in(self, roles: &[Role]) -> Self {
        let token = self.shop.token(roles);
        self.bearer(&token)
    }

    pub(crate) fn json(self, body: &Value) -> Self {
        self.text(body.to_string())
            .header("content-type", "application/json")
    }

    pub(crate) fn text(mut self, body: impl Into<String>) -> Self {
        self.body = Some(body.into());
        self
    }

    pub(crate) async fn answer(self) -> Answer {
        let body = self.body.map_or(Body::empty(), Body::from);
        let response = self
            .shop
            .app
            .clone()
            .oneshot(self.request.body(body).unwrap())
            .await
            .unwrap();
        let (parts, body) = response.into_parts();
        let bytes = to_bytes(body, 1 << 20).await.unwrap();
        let text = || Value::String(String::from_utf8(bytes.to_vec()).unwrap());
        let body = serde_json::from_slice(&bytes).unwrap_or_else(|_| text());
        Answer {
            status: parts.status,
            headers: parts.headers,
            body,
        }
    }
}

impl Shop {
    pub(crate) async fn open() -> Self {
        let memory = Memory::new();
        let user = UserId::new();
        let world = Arc::new(World {
            user,
            signing: Mutex::new(Signing::new()),
            keys_asked: AtomicUsize::new(0),
            registrations: AtomicUsize::new(0),
            order: Mutex::new(sample_order(user)),
            placed: Mutex::default(),
            orders_listed: Mutex::default(),
        });
        let client = Client::builder(&memory).policy(gateway::policy());
        let client = client.build().await.unwrap();
        let app = gateway::app(Clients {
            user: client.clone(),
            product: client.clone(),
            order: client.clone(),
            payment: client.clone(),
            review: client.clone(),
            recommendation: client,
        });
        let mut shop = Self {
            world,
            app,
            servers: BTreeMap::new(),
            memory,
        };
        for name in SERVICES {
            shop.start(name).await;
        }
        shop
    }

    pub(crate) async fn start(&mut self, service: &'static str) {
        let server = self.serve(service).await;
        self.servers.insert(service, server);
    }

    pub(crate) async fn serve(&self, service: &'static str) -> Running {
        let world = &self.world;
        let router = match service {
            "user" => users(world),
            "product" => products(),
            "order" => orders(world),
            "payment" => payments(world.user),
            "review" => reviews(world.user),
            _ => recommendations(),
        };
        let router = router.merge(Introspection::new(service, "1").router());
        let server = Server::new(service, router).listen(&self.memory);
        server.start().await.unwrap()
    }

    pub(crate) async fn stop(&mut self, service: &str) {
        self.servers.remove(service).unwrap().shutdown().await;
    }

    pub(crate) fn token(&self, roles: &[Role]) -> String {
        self.world
            .signing
            .lock()
            .unwrap()
            .sign(&claims(self.world.user, roles))
    }

    pub(crate) fn ask(&self, method: &str, path: &str) -> Ask<'_> {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let request = Request::builder().method(method).uri(path);
        Ask {
            shop: self,
            request,
            body: None,
        }
    }

    pub(crate) fn get(&self, path: &str) -> Ask<'_> {
        self.ask("GET", path)
    }

    pub(crate) fn post(&self, path: &str) -> Ask<'_> {
        self.ask("POST", path)
    }

    pub(crate) fn set_order(&self, change: impl FnOnce(&mut OrderView)) {
        change(&mut self.world.order.lock().unwrap());
    }
}
