#![cfg(feature = "nats")]
use std::{time::Duration, sync::{Arc, atomic::*}};
use nestling::*;
use nestling_testkit::{Kind, broker_or_skip, unique};
use tokio::sync::Semaphore;
#[tokio::test]
async fn dbg() {
    let url = broker_or_skip(Kind::Nats).unwrap();
    let busy: &'static str = unique("busy").leak();
    let gate = Arc::new(Semaphore::new(0));
    let runs = Arc::new(AtomicU32::new(0));
    let (g, r) = (gate.clone(), runs.clone());
    let handler = move || { let g = g.clone(); let r = r.clone(); async move {
        let n = r.fetch_add(1, Ordering::SeqCst);
        eprintln!("run {n}");
        g.acquire().await.unwrap().forget();
        eprintln!("ran {n}");
        Ok::<_, RpcError>(n) } };
    let server = Server::new("busy", Router::new().message_at(busy, handler)).max_in_flight(1).listen(&url).start().await.unwrap();
    let client = Client::connect(&url).await.unwrap();
    let first = async { let x = client.send_at::<u32>(busy, &()).timeout(Duration::from_secs(3)).await; eprintln!("first {x:?}"); };
    let second = async {
        while runs.load(Ordering::SeqCst) == 0 { tokio::task::yield_now().await; }
        eprintln!("sees run");
        for x in futures_util::future::join_all((0..10).map(|_| std::future::IntoFuture::into_future(client.send_at::<u32>(busy, &()).timeout(Duration::from_millis(50))))).await { eprintln!("{x:?}"); }
        eprintln!("permit");
        gate.add_permits(1);
    };
    tokio::join!(first, second);
    server.shutdown().await;
}
