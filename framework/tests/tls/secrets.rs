//! Passwords, tokens and keys are in nothing that is printed, logged or returned, whatever happens.

use std::{
    fmt::{Debug, Display},
    fs,
    future::IntoFuture,
    time::Duration,
};

use nestling::{
    Client, Endpoint, RpcError, Server,
    transport::{Address, Error},
};
use nestling_testkit::{Authority, Broker, Kind};

use crate::{
    captured,
    stage::{
        Files, PASSWORD, WRONG, address, connect, secure_broker, server, start, texts, within,
    },
};

const ASK: &str = "tls.secret";
const HAPPENED: &str = "tls.happened";
const TOKEN: &str = "jT5tokenNats93";
const OPTION: &str = "mB8optionValue27";
/// What ought to end soon because there is nobody there.
const SHORT: Duration = Duration::from_secs(3);

fn look_at(value: &(impl Debug + ?Sized)) {
    captured::search(&format!("{value:?} {value:#?}"));
}

fn read(value: &(impl Display + ?Sized)) {
    captured::search(&value.to_string());
}

fn look_at_error(error: &Error) {
    captured::search(&texts(error));
    captured::search(&texts(&RpcError::new(
        nestling::Code::Internal,
        error.to_string(),
    )));
}

/// All that can be made of a URL without anybody who answers.
async fn go_through(url: &str) {
    match url.parse::<Address>() {
        Ok(address) => {
            look_at(&address);
            read(&address);
        }
        Err(error) => look_at_error(&error),
    }
    let endpoint = Endpoint::from(url);
    look_at(&endpoint);
    read(&endpoint);
    look_at(&Client::builder(url));
    let waiting: Server = server(url, ASK).events(url);
    look_at(&waiting);
    if let Err(error) = within("the dead letters", endpoint.dead_letters()).await {
        look_at_error(&error);
    }
}

/// The same where nobody gets in.
async fn fail(url: &str) {
    go_through(url).await;
    if let Ok(client) = connect(url).await {
        look_at(&client);
        let sent = client.send_at::<u64>(ASK, &1).timeout(SHORT).into_future();
        captured::search(&texts(&sent.await.unwrap_err()));
    }
    let started = within("a start", server(url, ASK).start()).await;
    if let Err(error) = started {
        captured::search(&texts(&error));
    }
}

/// A server and a client that work, then do not, then do again.
async fn live_through_an_outage(mut broker: Broker) {
    let url = broker.url();
    go_through(&url).await;
    let running = start(&url, ASK).await;
    look_at(&running);
    captured::search(running.address());
    let client = connect(&url).await.unwrap();
    look_at(&client);
    assert_eq!(client.send_at::<u64>(ASK, &21).await, Ok(42));
    client.emit_at(HAPPENED, &1).await.unwrap();

    broker.kill();
    let call = client.send_at::<u64>(ASK, &1).timeout(SHORT).into_future();
    captured::search(&texts(&call.await.unwrap_err()));
    fail(&url).await;
    let restarted = tokio::task::spawn_blocking(move || broker.restart().map(|()| broker));
    let _broker = restarted.await.unwrap().unwrap();
    let answered = async {
        let call = || client.send_at::<u64>(ASK, &1).timeout(SHORT).into_future();
        while call().await != Ok(2) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("an answer again", answered).await;
    within("the server to stop", running.shutdown()).await;
}

async fn check_broker(kind: Kind, library: &str) {
    let authority = Authority::new().unwrap();
    let Some(broker) = secure_broker(kind, &authority) else {
        return;
    };
    let key = fs::read_to_string(broker.data_dir().join("key.pem")).unwrap();
    captured::watch_for(&[PASSWORD, WRONG, TOKEN, OPTION, body(&key)]);
    let url = broker.url();
    fail(&url.replace(PASSWORD, WRONG)).await;
    // A token where there are tokens, a name without a password elsewhere.
    fail(&url.replace(&format!("ada:{PASSWORD}"), TOKEN)).await;
    fail(&format!("{url}&password={OPTION}")).await;
    // The key in the place of the certificate, and what is no URL at all.
    let swapped = url.replace("certificate.pem", "key.pem");
    fail(&swapped).await;
    fail(&format!("{kind}://ada:{PASSWORD}/x?y@127.0.0.1")).await;
    live_through_an_outage(broker).await;
    assert!(captured::has_heard(library), "{library} has logged nothing");
    assert_eq!(captured::leaks(), [""; 0]);
}

/// A line of a key.
fn body(pem: &str) -> &str {
    pem.lines().nth(1).expect("a key has lines")
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_tells_nobody() {
    check_broker(Kind::Nats, "async_nats").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_tells_nobody() {
    check_broker(Kind::Redis, "nestling").await;
}

#[cfg(feature = "kafka-tls")]
#[tokio::test(flavor = "multi_thread")]
async fn kafka_tells_nobody() {
    // The library's own lines come through ours.
    check_broker(Kind::Kafka, "nestling").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tcp_tells_nobody() {
    let (files, ours) = (Files::new(), Authority::new().unwrap());
    let ca = files.authority(&ours);
    let own = files.own(&ours, "127.0.0.1");
    let key = own.rsplit_once('=').unwrap().1;
    let text = fs::read_to_string(key).unwrap();
    captured::watch_for(&[PASSWORD, OPTION, body(&text)]);
    let running = start(format!("tcp://127.0.0.1:0?{own}"), ASK).await;
    look_at(&running);
    let good = address(&running, &format!("ca={ca}&{own}"));
    go_through(&good).await;
    let client = connect(&good).await.unwrap();
    assert_eq!(client.send_at::<u64>(ASK, &21).await, Ok(42));
    fail(&good.replace("tcp://", &format!("tcp://ada:{PASSWORD}@"))).await;
    fail(&format!("{good}&password={OPTION}")).await;
    fail(&address(&running, &format!("cert={key}&key={key}"))).await;
    fail(&address(&running, &format!("ca={key}"))).await;
    within("the server to stop", running.shutdown()).await;
    fail(&good).await;
    assert_eq!(captured::leaks(), [""; 0]);
}
