//! `nestling emit`.

use bytes::Bytes;
use nestling::{Context, Router, RpcError};
use tokio::{sync::mpsc, time::timeout};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn an_event_arrives_with_key_and_headers() {
    let (heard, mut hearing) = mpsc::unbounded_channel();
    let hear = move |payload: Bytes, cx: Context| {
        let value = |name| cx.header(name).map(str::to_owned);
        let told = heard.send((payload, value("key"), value("actor"), value("event-id")));
        async move { told.map_err(RpcError::internal) }
    };
    let server = serve(Router::new().event_at("order.placed", hear)).await;
    let url = server.address();
    let mut emitted = async |ended: Ended| {
        ended.check(0, "");
        timeout(SOON, hearing.recv()).await.unwrap().unwrap()
    };
    let some = |text: &str| Some(text.to_owned());
    let args = [
        "emit",
        url,
        "order.placed",
        "{\"order\":7.0}",
        "--key",
        "7",
        "--header",
        "actor=ada",
    ];
    let expected = (Bytes::from("{\"order\":7.0}"), some("7"), some("ada"), None);
    assert_eq!(emitted(run(args)).await, expected);
    let none = (Bytes::new(), None, None, None);
    assert_eq!(emitted(run(["emit", url, "order.placed"])).await, none);
    let read = run_with("[1]", ["emit", url, "order.placed", "-"]);
    assert_eq!(emitted(read).await.0, Bytes::from("[1]"));
    server.shutdown().await;
}

#[test]
fn what_cannot_be_emitted_has_the_codes_of_a_message() {
    run(["emit", "tcp://127.0.0.1:1", "order.placed"]).check(3, "");
    run(["emit", "tcp://127.0.0.1:1", "order.placed", "nonsense"]).check(64, "");
    run(["emit", "tcp://127.0.0.1:1", "order.placed", "--key", "a\nb"]).check(64, "");
}
