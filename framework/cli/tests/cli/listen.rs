//! `nestling listen`.

use std::net::TcpStream;

use bytes::Bytes;
use nestling::{Client, Code};
use serde_json::{json, value::RawValue};
use tokio::{task::JoinSet, time::timeout};

use super::*;

const ANY: &str = "tcp://127.0.0.1:0";

async fn ask(client: &Client, pattern: &'static str, payload: &'static str) -> String {
    let call = client.send_at::<Box<RawValue>>(pattern, &());
    call.payload(payload).await.unwrap().get().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_answered_as_was_asked_for() {
    for (args, answer) in [
        (&["--echo"][..], "{\"n\": 1.50}"),
        (&["--reply", "[2.0]"], "[2.0]"),
        (&[], "null"),
    ] {
        let (mut listening, url) = match args {
            [] => Started::listening(["listen", ANY, "a.b"]),
            [one] => Started::listening(["listen", ANY, "a.b", one]),
            [one, two, ..] => Started::listening(["listen", ANY, "a.b", one, two]),
        };
        let client = Client::connect(&url).await.unwrap();
        assert_eq!(ask(&client, "a.b", "{\"n\": 1.50}").await, answer);
        let heard =
            r#"{"pattern":"a.b","kind":"message","headers":{},"payload":{"n": 1.50},"attempt":1}"#;
        assert_eq!(listening.line(), heard);
        let error = client.send_at::<()>("a.c", &()).await.unwrap_err();
        assert_eq!(error.code, Code::Unimplemented);
        listening.interrupt();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_says_all_that_arrived() {
    let (mut listening, url) = Started::listening(["listen", ANY, "a.b", "a.b", "{\"c\":\"d\"}"]);
    let client = Client::connect(&url).await.unwrap();
    let mut emitted = async |pattern: &'static str, payload: &'static [u8]| {
        let event = client.emit_at(pattern, &()).header("X-One", "1");
        event.payload(Bytes::from_static(payload)).await.unwrap();
        listening.json()
    };
    let heard = |pattern: &str, name: &str, value: Value| {
        json!({
            "pattern": pattern, "kind": "event", "headers": { "x-one": "1" }, "attempt": 1,
            name: value,
        })
    };
    assert_eq!(
        emitted("a.b", b"[\n1]").await,
        heard("a.b", "payload", json!([1]))
    );
    assert_eq!(
        emitted("a.b", b"").await,
        heard("a.b", "payload", Value::Null)
    );
    assert_eq!(
        emitted("a.b", b"hi").await,
        heard("a.b", "text", json!("hi"))
    );
    assert_eq!(
        emitted("a.b", b"\xff\0").await,
        heard("a.b", "base64", json!("/wA="))
    );
    let object = "{\"c\":\"d\"}";
    assert_eq!(
        emitted(object, b"1").await,
        heard(object, "payload", json!(1))
    );
    listening.interrupt().check(0, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn quiet_prints_nothing_and_answers_all_the_same() {
    let (listening, url) = Started::listening(["listen", ANY, "a.b", "--quiet", "--echo"]);
    let client = Client::connect(&url).await.unwrap();
    assert_eq!(ask(&client, "a.b", "7").await, "7");
    listening.interrupt().check(0, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_only_has_nothing_to_say_to_messages() {
    let (mut listening, url) = Started::listening(["listen", ANY, "a.b", "--events"]);
    // On TCP there is nobody else who could answer, so that the call ends at once.
    run(["send", &url, "a.b", "1"]).check(0, "");
    run(["emit", &url, "a.b", "2"]).check(0, "");
    for payload in [1, 2] {
        let heard = listening.json();
        assert_eq!(
            (&heard["kind"], &heard["payload"]),
            (&json!("event"), &json!(payload))
        );
    }
    listening.interrupt().check(0, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_works_with_send_and_emit() {
    let (mut listening, url) = Started::listening(["listen", ANY, "a.b", "--echo"]);
    run(["send", &url, "a.b", "[1.0]", "--header", "actor=ada"]).check(0, "[1.0]\n");
    assert_eq!(listening.json()["headers"], json!({ "actor": "ada" }));
    run(["send", &url, "a.b"]).check(0, "null\n");
    assert_eq!(listening.json()["payload"], Value::Null);
    run(["emit", &url, "a.b", "2"]).check(0, "");
    assert_eq!(listening.json()["payload"], json!(2));
    listening.interrupt().check(0, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_begun_is_finished_when_it_is_to_end() {
    for signal in ["INT", "TERM"] {
        let (mut listening, url) = Started::listening(["listen", ANY, "a.b", "--echo"]);
        let client = Client::connect(&url).await.unwrap();
        // The line does not fit into the pipe, so that the message is in work until it is read.
        let large = format!("\"{}\"", "x".repeat(1 << 20));
        let payload = large.clone();
        let mut asking = JoinSet::new();
        asking.spawn(async move {
            let call = client.send_at::<Box<RawValue>>("a.b", &());
            call.payload(payload).timeout(SOON).await
        });
        // Its beginning can be read, so that it is.
        assert_eq!(listening.out.as_mut().unwrap().fill_buf().unwrap()[0], b'{');
        listening.signal(signal);
        let host = url.strip_prefix("tcp://").unwrap();
        let closed = async {
            while TcpStream::connect(host).is_ok() {
                tokio::time::sleep(POLL).await;
            }
        };
        timeout(SOON, closed).await.unwrap();
        let read = tokio::task::spawn_blocking(move || {
            let line = listening.line();
            (line, listening.end())
        });
        let answer = asking.join_next().await.unwrap().unwrap();
        assert_eq!(answer.unwrap().get(), large);
        let (line, ended) = read.await.unwrap();
        assert!(line.contains(&large));
        ended.check(0, "");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_when_nobody_reads_on() {
    let (mut listening, url) = Started::listening(["listen", ANY, "a.b"]);
    drop(listening.out.take());
    let client = Client::connect(&url).await.unwrap();
    client.emit_at("a.b", &1).await.unwrap();
    assert_eq!(listening.end().code, Some(0));
}

#[test]
fn what_makes_no_sense_is_refused() {
    run(["listen", ANY]).check(64, "");
    run(["listen", ANY, "a b"]).check(64, "");
    run(["listen", ANY, "a.b", "--reply", "nonsense"]).check(64, "");
    run(["listen", ANY, "a.b", "--echo", "--reply", "1"]).check(64, "");
    run(["listen", ANY, "a.b", "--echo", "--events"]).check(64, "");
    run(["listen", "tcp://", "a.b"]).check(64, "");
}

#[test]
fn an_address_in_use_is_no_connection() {
    let (listening, url) = Started::listening(["listen", ANY, "a.b"]);
    let second = run(["listen", &url, "a.b"]);
    second.check(3, "");
    assert_eq!(second.error()["code"], "UNAVAILABLE");
    listening.interrupt().check(0, "");
}
