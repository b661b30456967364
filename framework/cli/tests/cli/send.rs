//! `nestling send`.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::stream;
use nestling::{Context, Router, RpcError, Streaming};
use nestling_testkit::Proxy;
use serde_json::{json, value::RawValue};
use tokio::{sync::mpsc, time::timeout};

use super::*;

/// Answers with the payload as it arrived, and counts.
fn echo(count: &Arc<AtomicUsize>) -> Router {
    let count = Arc::clone(count);
    Router::new().message_at("echo", move |payload: Bytes| {
        count.fetch_add(1, Ordering::Relaxed);
        async move {
            let text = String::from_utf8(payload.to_vec()).unwrap_or_default();
            RawValue::from_string(text).map_err(RpcError::internal)
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn json_goes_there_and_back_as_it_is_written() {
    let server = serve(echo(&Arc::default())).await;
    let url = server.address();
    for payload in ["1.50", "{\"b\":1e2, \"a\":[]}", "\"ü\"", "-7", "null"] {
        run(["send", url, "echo", payload]).check(0, &format!("{payload}\n"));
    }
    run_with(" [1,\n 2.0]\n", ["send", url, "echo", "-"]).check(0, "[1, 2.0]\n");
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_json_there_is_no_payload() {
    let length = |payload: Bytes| async move { Ok::<_, RpcError>(payload.len()) };
    let server = serve(Router::new().message_at("length", length)).await;
    run(["send", server.address(), "length"]).check(0, "0\n");
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_and_object_patterns_arrive() {
    let tell = |cx: Context| async move {
        let value = |name| cx.header(name).map(str::to_owned);
        Ok::<_, RpcError>((cx.pattern().to_owned(), value("actor"), value("x-own")))
    };
    let pattern = r#"{"cmd":"tell"}"#;
    let server = serve(Router::new().message_at(pattern, tell)).await;
    let url = server.address();
    let ended = run([
        "send",
        url,
        r#"{ "cmd": "tell" }"#,
        "--header",
        "Actor=ada",
        "--header",
        "x-own=a=b",
    ]);
    let expected = json!([pattern, "ada", "a=b"]);
    ended.check(0, &format!("{expected}\n"));
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_value_of_a_stream_is_printed_when_it_arrives() {
    let (next, values) = mpsc::unbounded_channel::<Result<u64, RpcError>>();
    let values = Arc::new(tokio::sync::Mutex::new(values));
    let count = move || {
        let values = Arc::clone(&values);
        async move {
            Streaming::new(stream::unfold(values, |values| async {
                let value = values.lock().await.recv().await?;
                Some((value, values))
            }))
        }
    };
    let server = serve(Router::new().message_at("count", count)).await;
    let mut sending = Started::new(["send", server.address(), "count", "--timeout", "1m"]);
    for value in 0..3 {
        next.send(Ok(value)).unwrap();
        assert_eq!(sending.line(), value.to_string());
    }
    next.send(Err(RpcError::aborted("enough"))).unwrap();
    let ended = sending.end();
    ended.check(1, "");
    assert_eq!(
        ended.error(),
        json!({ "code": "ABORTED", "message": "enough" })
    );
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_of_the_service_is_on_standard_error() {
    let refuse = || async {
        let error = RpcError::not_found("no such user").with_details(json!({ "id": 7 }));
        Err::<(), _>(error)
    };
    let late = || async { Err::<(), _>(RpcError::deadline_exceeded("the bank is slow")) };
    let away = || async { Err::<(), _>(RpcError::unavailable("the bank is closed")) };
    let router = Router::new()
        .message_at("refuse", refuse)
        .message_at("late", late)
        .message_at("away", away);
    let server = serve(router).await;
    let url = server.address();
    let ended = run(["send", url, "refuse"]);
    ended.check(1, "");
    let expected =
        json!({ "code": "NOT_FOUND", "message": "no such user", "details": { "id": 7 } });
    assert_eq!(ended.error(), expected);
    // What sounds like ours is the service's all the same.
    for (pattern, code) in [
        ("late", "DEADLINE_EXCEEDED"),
        ("away", "UNAVAILABLE"),
        ("nothing", "UNIMPLEMENTED"),
    ] {
        let ended = run(["send", url, pattern]);
        ended.check(1, "");
        assert_eq!(ended.error()["code"], code);
    }
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_ends_with_a_code_of_its_own() {
    let ticks = || async {
        Streaming::new(stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            Some((Ok(()), ()))
        }))
    };
    let router = Router::new()
        .message_at("hang", pending::<Result<(), RpcError>>)
        .message_at("ticks", ticks);
    let server = serve(router).await;
    let url = server.address();
    let ended = run(["send", url, "hang", "--timeout", "50ms"]);
    ended.check(2, "");
    assert_eq!(ended.error()["code"], "DEADLINE_EXCEEDED");
    let ended = run(["send", url, "ticks", "--max-time", "200ms"]);
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert_eq!(
        ended.error()["message"],
        "the reply did not end within 200ms"
    );
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_is_there_is_no_connection() {
    let ended = run(["send", "tcp://127.0.0.1:1", "any"]);
    ended.check(3, "");
    assert_eq!(ended.error()["code"], "UNAVAILABLE");

    let (begin, mut begun) = mpsc::unbounded_channel();
    let hang = move || {
        begin.send(()).unwrap();
        pending::<Result<(), RpcError>>()
    };
    let server = serve(Router::new().message_at("hang", hang)).await;
    let (_, port) = server.address().rsplit_once(':').unwrap();
    let link = Proxy::start().await.unwrap();
    link.forward_to(port.parse().unwrap());
    let url = format!("tcp://127.0.0.1:{}", link.port());
    let sending = Started::new(["send", &url, "hang", "--timeout", "1m"]);
    timeout(SOON, begun.recv()).await.unwrap();
    link.cut();
    sending.end().check(3, "");
    drop(server);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_not_sent() {
    let count = Arc::default();
    let server = serve(echo(&count)).await;
    let url = server.address();
    let check = |ended: Ended| {
        ended.check(64, "");
        assert!(ended.err.starts_with("error: "), "{ended:?}");
    };
    check(run(["send", url, "echo", "{"]));
    check(run(["send", url, "echo", "1 2"]));
    check(run(["send", url, "echo", ""]));
    check(run_with("nonsense", ["send", url, "echo", "-"]));
    check(run(["send", url, "ec ho", "1"]));
    check(run(["send", url, "{echo}", "1"]));
    check(run(["send", url, "echo", "1", "--header", "actor"]));
    check(run(["send", url, "echo", "1", "--header", "a b=c"]));
    check(run(["send", url, "echo", "1", "--header", "a=b\r\nc: d"]));
    check(run(["send", url, "echo", "1", "--header", "deadline=1"]));
    check(run(["send", url, "echo", "1", "--timeout", "soon"]));
    check(run(["send", url, "echo", "1", "--wire", "morse"]));
    check(run(["send", "echo", "1"]));
    check(run(["send", "carrier-pigeon://x", "echo", "1"]));
    check(run(["send", "memory:", "echo", "1"]));
    check(run(["send", &format!("{url}?colour=red"), "echo", "1"]));
    check(run(["send", url]));
    check(run(["transmit", url, "echo"]));
    assert_eq!(count.load(Ordering::Relaxed), 0);
    server.shutdown().await;
}

#[test]
fn secrets_in_a_url_are_not_printed() {
    for url in [
        "tcp://ada:s3cret@127.0.0.1:1",
        "nats://s3cret@127.0.0.1:1?wire=morse",
        "redis://ada:s3cret@127.0.0.1:x",
        "kafka://ada:s3cret@127.0.0.1:1",
        "pigeon://ada:s3cret@127.0.0.1:1",
    ] {
        for ended in [
            run(["send", url, "any"]),
            run(["emit", url, "any"]),
            run(["send", "any", url, "--header", url]),
            run([url, "any"]),
        ] {
            assert!(matches!(ended.code, Some(3 | 64)), "{ended:?}");
            assert!(!ended.err.contains("s3cret"), "{ended:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_asked_for_is_on_standard_error() {
    let server = serve(echo(&Arc::default())).await;
    let sending = Started::with_log(Some("trace"), ["send", server.address(), "echo", "1"]);
    let ended = sending.end();
    ended.check(0, "1\n");
    assert!(!ended.err.is_empty());
    server.shutdown().await;
}

/// Values without end, and word of when nobody wants any more.
async fn endless() -> (Running, mpsc::UnboundedReceiver<()>) {
    struct Dropped(mpsc::UnboundedSender<()>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            self.0.send(()).ok();
        }
    }
    let (drop, dropped) = mpsc::unbounded_channel();
    let count = move || {
        let dropped = Dropped(drop.clone());
        async move {
            Streaming::new(stream::unfold(
                (0_u64, dropped),
                |(n, dropped)| async move { Some((Ok(n), (n + 1, dropped))) },
            ))
        }
    };
    (
        serve(Router::new().message_at("count", count)).await,
        dropped,
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_call_is_cancelled() {
    let (server, mut dropped) = endless().await;
    let mut sending = Started::new(["send", server.address(), "count"]);
    assert_eq!(sending.line(), "0");
    sending.signal("INT");
    assert_eq!(sending.end().code, Some(130));
    timeout(SOON, dropped.recv()).await.unwrap();
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_stops_when_nobody_reads_on() {
    let (server, mut dropped) = endless().await;
    let mut sending = Started::new(["send", server.address(), "count"]);
    assert_eq!(sending.line(), "0");
    drop(sending.out.take());
    let ended = sending.end();
    assert_eq!((ended.code, &*ended.err), (Some(0), ""));
    timeout(SOON, dropped.recv()).await.unwrap();
    server.shutdown().await;
}
