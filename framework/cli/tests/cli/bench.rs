//! `nestling bench`.

use nestling::{Payload, Router, RpcError};

use super::*;

fn echo() -> Router {
    Router::new()
        .message_with("echo", true, |Payload(value): Payload<Value>| async move {
            Ok::<_, RpcError>(value)
        })
        .event_at("heard", |_: Payload<Value>| async { Ok::<_, RpcError>(()) })
}

fn figures(ended: &Ended) -> Value {
    serde_json::from_str(&ended.out).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_loop_shows_how_many_and_how_long() {
    let running = serve(echo()).await;
    let url = running.address();
    let ended = run([
        "bench",
        url,
        "echo",
        "7",
        "--duration",
        "300ms",
        "--concurrency",
        "8",
        "--json",
    ]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let figures = figures(&ended);
    assert!(figures["messages"].as_u64() > Some(8), "{figures}");
    assert_eq!(figures["errors"], 0);
    let (p50, max) = (&figures["latency"]["p50"], &figures["latency"]["max"]);
    assert!(p50.as_f64() > Some(0.0) && p50.as_f64() <= max.as_f64());

    let shown = run(["bench", url, "echo", "7", "--duration", "100ms"]).out;
    assert!(
        shown.contains(" a second: ") && shown.contains("p99.9 "),
        "{shown}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_loop_begins_so_many_a_second() {
    let running = serve(echo()).await;
    let arguments = ["--rate", "100", "--duration", "500ms", "--json"];
    let [a, b, c, d, e] = arguments;
    let message = run(["bench", running.address(), "echo", "7", a, b, c, d, e]);
    assert_eq!(figures(&message)["messages"], 50, "{message:?}");
    let event = run([
        "bench",
        running.address(),
        "heard",
        "7",
        "--event",
        a,
        b,
        c,
        d,
        e,
    ]);
    assert_eq!(figures(&event)["messages"], 50, "{event:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_failed_is_counted_and_told() {
    let running = serve(echo()).await;
    let ended = run(["bench", running.address(), "nobody", "--duration", "100ms"]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.out.starts_with("0 a second: 0 in "), "{ended:?}");
    let error = ended.error();
    let told = error["message"].as_str().unwrap();
    assert!(told.contains(" failed, the first with: "), "{error}");
}
