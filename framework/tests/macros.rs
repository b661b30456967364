//! What `#[derive(Message)]`, `#[derive(Event)]` and `#[controller]` wrote, at work.
#![cfg(feature = "macros")]

use std::{
    future::IntoFuture,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::join_all;
use nestling::{
    Client, Code, Context, Event, Intercept, Message, Payload, Router, RpcError, Server, Streaming,
    controller, guard, intercept, transport::Memory,
};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Serialize, Deserialize, Debug, PartialEq)]
struct User {
    id: u64,
    name: String,
}

#[derive(Serialize, Deserialize, Message)]
#[message(pattern = "user.get", reply = User, idempotent)]
struct GetUser {
    id: u64,
}

#[derive(Serialize, Deserialize, Message)]
#[message(pattern = "user.list", stream = User)]
struct ListUsers;

#[derive(Serialize, Deserialize, Event)]
#[event(pattern = "user.renamed", key = id)]
struct UserRenamed {
    id: u64,
    name: String,
}

struct NoSuchUser(u64);

impl From<NoSuchUser> for RpcError {
    fn from(NoSuchUser(id): NoSuchUser) -> Self {
        Self::not_found(format!("no user {id}"))
    }
}

#[derive(Default)]
struct Trace(Mutex<Vec<&'static str>>);

impl Trace {
    fn add(&self, step: &'static str) {
        self.0.lock().expect("no step panics").push(step);
    }

    fn take(&self) -> Vec<&'static str> {
        std::mem::take(&mut *self.0.lock().expect("no step panics"))
    }
}

struct Users {
    trace: Arc<Trace>,
    heard: mpsc::UnboundedSender<(&'static str, String)>,
}

#[controller]
#[layer(step(&self.trace, "controller"))]
impl Users {
    #[message_pattern]
    async fn get(&self, GetUser { id }: GetUser, cx: Context) -> Result<User, NoSuchUser> {
        self.trace.add("get");
        if id == 0 {
            return Err(NoSuchUser(id));
        }
        Ok(User {
            id,
            name: cx.pattern().to_owned(),
        })
    }

    #[message_pattern]
    fn list(&self, _: ListUsers) -> Streaming<User> {
        Streaming::of((1..=3).map(|id| User {
            id,
            name: String::new(),
        }))
    }

    #[message_pattern("user.secret")]
    #[layer(step(&self.trace, "outer"))]
    #[layer(step(&self.trace, "inner"))]
    #[layer(guard(signed_in))]
    async fn secret(&self, Payload(text): Payload<String>) -> Result<String, RpcError> {
        self.trace.add("secret");
        Ok(text.to_uppercase())
    }

    #[event_pattern]
    async fn renamed(&self, event: UserRenamed) -> Result<(), RpcError> {
        self.hear("renamed", event)
    }

    #[event_pattern]
    fn renamed_too(&self, event: UserRenamed, _: Context) -> Result<(), RpcError> {
        self.hear("renamed too", event)
    }

    #[event_pattern("user.seen")]
    async fn seen(&self, Payload(name): Payload<String>) -> Result<(), RpcError> {
        self.heard.send(("seen", name)).map_err(RpcError::internal)
    }

    fn hear(&self, by: &'static str, event: UserRenamed) -> Result<(), RpcError> {
        self.heard
            .send((by, event.name))
            .map_err(RpcError::internal)
    }
}

async fn signed_in(cx: Context) -> Result<Context, RpcError> {
    match cx.header("actor") {
        Some(_) => Ok(cx),
        None => Err(RpcError::unauthenticated("sign in first")),
    }
}

fn step(trace: &Arc<Trace>, name: &'static str) -> Intercept {
    let trace = Arc::clone(trace);
    intercept(move |cx, next| {
        trace.add(name);
        next.run(cx)
    })
}

fn users() -> (
    Users,
    Arc<Trace>,
    mpsc::UnboundedReceiver<(&'static str, String)>,
) {
    let (heard, hearing) = mpsc::unbounded_channel();
    let trace = Arc::new(Trace::default());
    (
        Users {
            trace: Arc::clone(&trace),
            heard,
        },
        trace,
        hearing,
    )
}

#[tokio::test]
async fn messages_reach_the_methods_through_their_layers() {
    let (users, trace, _hearing) = users();
    let memory = Memory::new();
    let router = Router::new().controller(users);
    let server = Server::new("user", router)
        .listen(&memory)
        .start()
        .await
        .unwrap();
    let client = Client::connect(&memory).await.unwrap();

    let user = client.send(GetUser { id: 7 }).await.unwrap();
    assert_eq!(
        user,
        User {
            id: 7,
            name: "user.get".to_owned()
        }
    );
    assert_eq!(trace.take(), ["controller", "get"]);

    let error = client.send(GetUser { id: 0 }).await.unwrap_err();
    assert_eq!(error, RpcError::not_found("no user 0"));

    let mut users = client.stream(ListUsers).await.unwrap();
    let mut ids = Vec::new();
    while let Some(user) = users.try_next().await.unwrap() {
        ids.push(user.id);
    }
    assert_eq!(ids, [1, 2, 3]);

    trace.take();
    let error = client
        .send_at::<String>("user.secret", "x")
        .await
        .unwrap_err();
    assert_eq!(error.code, Code::Unauthenticated);
    assert_eq!(trace.take(), ["controller", "outer", "inner"]);
    let secret = client
        .send_at::<String>("user.secret", "x")
        .header("actor", "ada")
        .await;
    assert_eq!(secret.unwrap(), "X");
    assert_eq!(trace.take(), ["controller", "outer", "inner", "secret"]);

    server.shutdown().await;
}

#[tokio::test]
async fn an_event_reaches_each_of_its_methods() {
    let (users, _, mut hearing) = users();
    let memory = Memory::new();
    let router = Router::new().controller(users);
    let server = Server::new("user", router)
        .listen(&memory)
        .events(&memory)
        .start()
        .await
        .unwrap();
    let client = Client::connect(&memory).await.unwrap();

    client
        .emit(UserRenamed {
            id: 7,
            name: "ada".to_owned(),
        })
        .await
        .unwrap();
    let mut heard = Vec::new();
    for _ in 0..2 {
        heard.push(
            tokio::time::timeout(PATIENCE, hearing.recv())
                .await
                .unwrap()
                .unwrap(),
        );
    }
    heard.sort();
    assert_eq!(
        heard,
        [
            ("renamed", "ada".to_owned()),
            ("renamed too", "ada".to_owned())
        ]
    );

    client.emit_at("user.seen", "eve").await.unwrap();
    let seen = tokio::time::timeout(PATIENCE, hearing.recv())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(seen, ("seen", "eve".to_owned()));

    server.shutdown().await;
}

#[test]
fn one_message_in_two_controllers_is_refused_at_the_lines_of_both_methods() {
    struct Others;

    const OTHER_LINE: u32 = line!() + 4;
    #[controller]
    impl Others {
        #[message_pattern]
        async fn get(&self, _: GetUser) -> Result<User, RpcError> {
            Err(RpcError::unimplemented("elsewhere"))
        }
    }

    let (users, ..) = users();
    let both = || Router::new().controller(users).controller(Others);
    let panic = catch_unwind(AssertUnwindSafe(both)).unwrap_err();
    let text = panic.downcast_ref::<String>().unwrap();
    assert!(text.contains("\"user.get\" has two handlers"), "{text}");
    assert!(text.contains(&format!("macros.rs:{OTHER_LINE}:")), "{text}");
    assert_eq!(text.matches("macros.rs:").count(), 2, "{text}");
}

/// Works a second on everything, and says what it begins.
struct Slow {
    most: usize,
    begun: mpsc::UnboundedSender<&'static str>,
}

#[controller]
impl Slow {
    #[message_pattern(max_in_flight = self.most)]
    #[layer(guard(signed_in))]
    async fn get(&self, _: GetUser) -> Result<User, RpcError> {
        self.work("get").await;
        Err(RpcError::not_found("nobody"))
    }

    #[message_pattern("user.find", max_in_flight = 1)]
    async fn find(&self) -> Result<(), RpcError> {
        self.work("find").await;
        Ok(())
    }

    #[event_pattern(max_in_flight = 3)]
    async fn renamed(&self, _: UserRenamed) -> Result<(), RpcError> {
        self.work("renamed").await;
        Ok(())
    }

    async fn work(&self, what: &'static str) {
        self.begun.send(what).expect("the test listens");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_method_has_no_more_in_work_than_it_may() {
    let (begun, mut beginnings) = mpsc::unbounded_channel();
    let memory = Memory::new();
    let router = Router::new().controller(Slow { most: 2, begun });
    let server = Server::new("user", router).listen(&memory);
    let server = server.start().await.unwrap();
    let client = Client::builder(&memory).timeout(PATIENCE * 6);
    let client = client.build().await.unwrap();
    for id in 0..5 {
        let name = String::new();
        client.emit(UserRenamed { id, name }).await.unwrap();
    }
    let gets = (0..5).map(|id| {
        client
            .send(GetUser { id })
            .header("actor", "ada")
            .into_future()
    });
    let finds = (0..5).map(|_| client.send_at::<()>("user.find", &()).into_future());
    let watch = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let mut begun: Vec<_> = std::iter::from_fn(|| beginnings.try_recv().ok()).collect();
        begun.sort_unstable();
        assert_eq!(
            begun,
            ["find", "get", "get", "renamed", "renamed", "renamed"]
        );
    };
    let (gets, finds, ()) = tokio::join!(join_all(gets), join_all(finds), watch);
    let codes: Vec<_> = gets.into_iter().map(|get| get.unwrap_err().code).collect();
    assert_eq!(codes, [Code::NotFound; 5]);
    assert_eq!(finds, [const { Ok(()) }; 5]);
    server.shutdown().await;
}
