//! Guards and interceptors: order, refusal, panics.

use super::*;

/// A layer that logs on the way in and on the way out.
fn around(name: &'static str, log: &Log<String>) -> nestling::Intercept {
    let log = log.clone();
    intercept(move |cx, next| {
        let log = log.clone();
        async move {
            log.push(format!("{name} in"));
            let reply = next.run(cx).await;
            log.push(format!(
                "{name} {}",
                if reply.is_ok() {
                    "out"
                } else {
                    "sees an error"
                }
            ));
            reply
        }
    })
}

fn logged_echo(
    log: &Log<String>,
) -> impl Fn(Payload<u64>) -> nestling::BoxFuture<'static, Result<u64, RpcError>>
+ Clone
+ Send
+ Sync
+ 'static {
    let log = log.clone();
    move |Payload(n)| {
        log.push("handler".to_owned());
        Box::pin(async move { Ok(n) })
    }
}

#[tokio::test(start_paused = true)]
async fn the_layer_added_last_is_the_outermost_and_wraps_only_what_was_there() {
    let (memory, log) = (Memory::new(), Log::new());
    let router = Router::new()
        .message_at("early", logged_echo(&log))
        .layer(around("inner", &log))
        .message_at("late", logged_echo(&log))
        .layer(around("outer", &log));
    let server = Server::new("x", router)
        .listen(&memory)
        .start()
        .await
        .unwrap();
    let client = Client::connect(&memory).await.unwrap();

    client.send_at::<u64>("early", &1).await.unwrap();
    assert_eq!(
        log.all(),
        ["outer in", "inner in", "handler", "inner out", "outer out"]
    );
    client.send_at::<u64>("late", &1).await.unwrap();
    assert_eq!(log.all()[5..], ["outer in", "handler", "outer out"]);
    server.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_guard_refuses_before_the_handler_or_hands_on_what_it_found() {
    struct Actor(String);
    async fn signed_in(mut cx: Context) -> Result<Context, RpcError> {
        let actor = cx
            .header("actor")
            .ok_or_else(|| RpcError::unauthenticated("sign in first"))?;
        let actor = Actor(actor.to_owned());
        cx.insert(actor);
        Ok(cx)
    }
    let (memory, log) = (Memory::new(), Log::new());
    let who = {
        let log = log.clone();
        move |cx: Context| {
            log.push("handler".to_owned());
            async move { Ok::<_, RpcError>(cx.get::<Actor>().map(|actor| actor.0.clone())) }
        }
    };
    let router = Router::new()
        .message_at("who", who)
        .layer(guard(signed_in))
        .layer(around("outer", &log));
    let server = Server::new("x", router)
        .listen(&memory)
        .start()
        .await
        .unwrap();
    let client = Client::connect(&memory).await.unwrap();

    let refused = client.send_at::<Option<String>>("who", &()).await;
    assert_eq!(refused, Err(RpcError::unauthenticated("sign in first")));
    assert_eq!(log.all(), ["outer in", "outer sees an error"]);
    let known = client
        .send_at::<Option<String>>("who", &())
        .header("actor", "ada")
        .await;
    assert_eq!(known, Ok(Some("ada".to_owned())));
    server.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_layer_is_internal_and_the_server_goes_on() {
    let memory = Memory::new();
    let on_call = intercept(|cx: Context, next: nestling::Next| {
        assert!(cx.header("x-panic") != Some("called"), "on purpose");
        async move {
            assert!(cx.header("x-panic") != Some("polled"), "on purpose");
            next.run(cx).await
        }
    });
    let router = Router::new().message_at("echo", echo).layer(on_call);
    let server = Server::new("x", router)
        .listen(&memory)
        .start()
        .await
        .unwrap();
    let client = Client::connect(&memory).await.unwrap();
    for panic in ["called", "polled"] {
        let error = client
            .send_at::<u64>("echo", &1)
            .header("x-panic", panic)
            .await
            .unwrap_err();
        assert_eq!(error.code, Code::Internal);
        assert_eq!(client.send_at::<u64>("echo", &1).await, Ok(1));
    }
    server.shutdown().await;
}
