#![allow(clippy::unwrap_used)]
use nestling::*;
use std::time::Instant;
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bench() {
    let yields = std::env::var("YIELD").is_ok();
    let router = Router::new().message_at("echo", move |Payload(n): Payload<u64>| async move {
        if yields { tokio::task::yield_now().await; }
        Ok::<_, RpcError>(n)
    });
    let server = Server::new("t", router).listen("tcp://127.0.0.1:0").start().await.unwrap();
    let url = server.address().to_owned();
    let n: u64 = std::env::var("N").map_or(5000, |n| n.parse().unwrap());
    let flight: u64 = std::env::var("C").map_or(64, |n| n.parse().unwrap());
    let start = Instant::now();
    let mut set = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let client = Client::connect(&*url).await.unwrap();
        for _ in 0..flight {
            let client = client.clone();
            set.spawn(async move {
                for i in 0..n / flight {
                    assert_eq!(client.send_at::<u64>("echo", &i).await.unwrap(), i);
                }
            });
        }
    }
    set.join_all().await;
    let e = start.elapsed();
    println!("{} requests in {e:?}: {:.0}/s", 4 * n, 4.0 * n as f64 / e.as_secs_f64());
    server.shutdown().await;
}
