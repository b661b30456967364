#![cfg(feature = "nats")]
use std::{time::{Duration, Instant}};
use nestling::*;
use nestling_testkit::{Kind, broker_or_skip, unique};
use futures_util::StreamExt;

async fn echo(Payload(n): Payload<u64>) -> Result<u64, RpcError> { Ok(n) }

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn speed() {
    let url = broker_or_skip(Kind::Nats).unwrap();
    let ours: &'static str = unique("ours").leak();
    let raw: &'static str = unique("raw").leak();
    let server = Server::new("s", Router::new().message_at(ours, echo)).listen(&url).start().await.unwrap();
    let client = Client::connect(&url).await.unwrap();
    let rs = async_nats::connect(&url).await.unwrap();
    let mut sub = rs.queue_subscribe(raw, "q".into()).await.unwrap();
    rs.flush().await.unwrap();
    let rs2 = rs.clone();
    tokio::spawn(async move { while let Some(m) = sub.next().await {
        let n: u64 = serde_json::from_slice(&m.payload).unwrap();
        let body = serde_json::to_vec(&n).unwrap();
        rs2.publish(m.reply.unwrap(), body.into()).await.unwrap(); } });
    let rc = async_nats::connect(&url).await.unwrap();
    let secs: f64 = std::env::var("SECS").ok().and_then(|s| s.parse().ok()).unwrap_or(1.5);
    let mut ratios: std::collections::BTreeMap<usize, Vec<f64>> = Default::default();
    for round in 0..6 { for width in [1_usize, 64] { if std::env::var("WIDTH").is_ok_and(|o| o != width.to_string()) { continue; }
        let mut rates = [0.0; 5];
        for i in 0..5 { let which = (round + i) % 5; if std::env::var("ONLY").is_ok_and(|o| o != which.to_string()) { continue; }
            let began = Instant::now(); let cpu0 = cpu(); let sw0 = switches();
            let until = began + Duration::from_secs_f64(secs);
            let mut tasks = Vec::new();
            for _ in 0..width {
                let (client, rc) = (client.clone(), rc.clone());
                tasks.push(tokio::spawn(async move {
                    let mut n = 0_u64;
                    while Instant::now() < until {
                        if which == 0 {
                            let v: u64 = client.send_at::<u64>(ours, &n).await.unwrap(); assert_eq!(v, n);
                        } else if which == 3 {
                            let v: u64 = client.send_at::<u64>(raw, &n).await.unwrap(); assert_eq!(v, n);
                        } else if which == 4 {
                            let b = serde_json::to_vec(&n).unwrap();
                            let mut h = async_nats::HeaderMap::new();
                            h.insert(async_nats::HeaderName::from_static("nestling"), "1");
                            h.insert(async_nats::HeaderName::from_static("deadline"), "5000");
                            let m = rc.request_with_headers(ours, h, b.into()).await.unwrap();
                            let v: u64 = serde_json::from_slice(&m.payload).unwrap(); assert_eq!(v, n);
                        } else if which == 2 {
                            let b = serde_json::to_vec(&n).unwrap();
                            let mut h = async_nats::HeaderMap::new();
                            h.insert(async_nats::HeaderName::from_static("nestling"), "1");
                            h.insert(async_nats::HeaderName::from_static("deadline"), "5000");
                            let m = rc.request_with_headers(raw, h, b.into()).await.unwrap();
                            let v: u64 = serde_json::from_slice(&m.payload).unwrap(); assert_eq!(v, n);
                        } else {
                            let b = serde_json::to_vec(&n).unwrap();
                            let m = rc.request(raw, b.into()).await.unwrap();
                            let v: u64 = serde_json::from_slice(&m.payload).unwrap(); assert_eq!(v, n);
                        }
                        n += 1;
                    }
                    n
                }));
            }
            let mut total = 0;
            for t in tasks { total += t.await.unwrap(); }
            rates[which] = total as f64 / (cpu() - cpu0); println!("  w{width} kind {which}: {:.2} switches/request, {:.1} us cpu, {:.0}/s wall", (switches() - sw0) as f64 / total as f64, 1e6 / rates[which], total as f64 / began.elapsed().as_secs_f64());
        }
        let ratio = rates[0] / rates[1];
        ratios.entry(width).or_default().push(ratio);
        println!("our client/raw server {:.3}; raw client+headers, our/raw server {:.3}", rates[3] / rates[1], rates[4]/rates[2]); println!("headers {:.3}", rates[2] / rates[1]); println!("width {width}: ours {:.0}/s raw {:.0}/s ratio {ratio:.3}", rates[0], rates[1]);
    } }
    for (w, mut r) in ratios { r.sort_by(f64::total_cmp); println!("median {w}: {:.3}", (r[2] + r[3]) / 2.0); }
    server.shutdown().await;
}

fn cpu() -> f64 { let s = std::fs::read_to_string("/proc/self/stat").unwrap(); let r = s.rsplit(')').next().unwrap(); let f: Vec<&str> = r.split_whitespace().collect(); (f[11].parse::<f64>().unwrap() + f[12].parse::<f64>().unwrap()) / 100.0 }

fn switches() -> u64 { let mut n = 0; for t in std::fs::read_dir("/proc/self/task").unwrap() { let s = std::fs::read_to_string(t.unwrap().path().join("status")).unwrap_or_default(); for l in s.lines() { if l.starts_with("voluntary_ctxt") { n += l.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap(); } } } n }
