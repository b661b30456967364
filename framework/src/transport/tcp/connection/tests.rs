//! A connection as its task sees it.

use std::{future::poll_fn, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{super::Settings, *};
use crate::{
    contract::Guarantee,
    envelope::Envelope,
    transport::{EventPattern, Expect, Kind, Outcome, Subscription},
};

/// A connection with room for 64 envelopes ahead, and its client, which has said nothing yet.
async fn strangers() -> (Connection, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let settings = Settings {
        hosts: vec![address.to_string()],
        max_frame: 1 << 20,
        wire: None,
    };
    let subscription = Subscription {
        service: "s".to_owned(),
        instance: "i".to_owned(),
        messages: Vec::new(),
        events: vec![EventPattern {
            pattern: "p".into(),
            needs: Guarantee::BestEffort,
        }],
        heard: Vec::new(),
        temporary: false,
        max_in_flight: 1,
    };
    let client = TcpStream::connect(address).await.unwrap();
    let (socket, peer) = listener.accept().await.unwrap();
    let shared = Arc::new(Shared::new(&settings, &subscription));
    (Connection::new(Stream::Plain(socket), peer, shared), client)
}

/// The same, and the client has been greeted.
async fn pair() -> (Connection, TcpStream) {
    let (mut server, mut client) = strangers().await;
    client.write_all(&frame::preface(1 << 20)).await.unwrap();
    let mut preface = [0; frame::PREFACE];
    let greeted = async { client.read_exact(&mut preface).await.unwrap() };
    alongside(&mut server, 0, greeted).await;
    (server, client)
}

/// Polls the source, as its task would, until `other` is done.
async fn alongside<T>(
    server: &mut Connection,
    room: usize,
    other: impl Future<Output = T>,
) -> (T, Vec<Delivery>) {
    let mut other = std::pin::pin!(other);
    let mut batch = Vec::new();
    let result = poll_fn(|cx| {
        while let Poll::Ready(Some(_)) = server.poll_deliveries(cx, room, &mut batch) {}
        other.as_mut().poll(cx)
    });
    (result.await, batch)
}

fn requests(calls: std::ops::Range<u64>) -> Vec<u8> {
    let mut out = Outgoing::default();
    for call in calls {
        out.request(
            call,
            Expect::Single,
            &Envelope::new("p", ""),
            Instant::now(),
        );
    }
    out.to_vec()
}

#[tokio::test]
async fn a_cancel_behind_too_many_requests_is_seen_in_the_end() {
    let (mut server, mut client) = pair().await;
    let mut cancel = Outgoing::default();
    cancel.cancel(0);
    let bytes = [requests(0..100), cancel.to_vec()].concat();
    client.write_all(&bytes).await.unwrap();
    poll_fn(|cx| {
        let polled = server.poll_deliveries(cx, 0, &mut Vec::new());
        assert!(polled.is_pending());
        if server.ahead.len() == 64 {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
    server.tick(Instant::now());
    let refused = async {
        let mut calls = Vec::new();
        for _ in 64..100 {
            let length = client.read_u32_le().await.unwrap();
            let mut body = vec![0; length as usize];
            client.read_exact(&mut body).await.unwrap();
            calls.push(u64::from(body[1]));
        }
        calls
    };
    let (refused, _) = alongside(&mut server, 0, refused).await;
    assert_eq!(refused, (64..100).collect::<Vec<_>>());
    let (_, batch) = alongside(&mut server, 64, std::future::ready(())).await;
    assert_eq!(batch.len(), 63, "the cancelled one is not handed out");
    assert!(!server.shedding);
    drop(batch);
    assert!(server.calls.is_empty());
}

#[tokio::test]
async fn what_was_read_outlives_the_connection_if_it_is_an_event() {
    let (mut server, mut client) = pair().await;
    let mut out = Outgoing::default();
    for _ in 0..100 {
        out.event(&Envelope::new("e", ""), Instant::now());
    }
    let bytes = [requests(0..10), out.to_vec()].concat();
    let written = async { client.write_all(&bytes).await.unwrap() };
    alongside(&mut server, 0, written).await;
    drop(client);
    let mut batch = Vec::new();
    while poll_fn(|cx| server.poll_deliveries(cx, 7, &mut batch))
        .await
        .is_some()
    {}
    assert_eq!(
        batch
            .iter()
            .filter(|delivery| delivery.kind == Kind::Event)
            .count(),
        100
    );
}

/// Polls the source for as long as it takes to be given `count` deliveries.
async fn deliveries(server: &mut Connection, count: usize) -> Vec<Delivery> {
    let mut batch = Vec::new();
    while batch.len() < count {
        let polled = poll_fn(|cx| server.poll_deliveries(cx, count - batch.len(), &mut batch));
        polled.await.unwrap();
    }
    batch
}

#[tokio::test]
async fn an_application_that_reads_no_replies_is_not_read_itself() {
    let (mut server, mut client) = strangers().await;
    let unknown = br#"24#{"pattern":"q","id":123}"#.repeat(10_000);
    let (mut written, mut blocked) = (0, 0);
    while blocked < 2000 {
        match client.try_write(&unknown[written % unknown.len()..]) {
            Ok(count) => (written, blocked) = (written + count, 0),
            Err(_) => blocked += 1,
        }
        assert!(written < 64 << 20, "all is read");
        alongside(&mut server, 0, tokio::task::yield_now()).await;
    }
    assert!(server.writing.len() < 2 << 20, "{}", server.writing.len());
    let mut reply = Outgoing::default();
    reply.nest_no_handler(b"123");
    let reply = reply.to_vec();
    let mut replies = vec![0; written / 27 * reply.len()];
    let read = async { client.read_exact(&mut replies).await.unwrap() };
    alongside(&mut server, 0, read).await;
    assert!(replies.chunks(reply.len()).all(|one| one == reply));
}

#[tokio::test(start_paused = true)]
async fn a_packet_that_does_not_end_is_given_up_and_a_silent_application_is_not() {
    // As in the cases incomplete_timeout and incomplete_timeout_len_only, but in 30 s.
    for begun in [&b"50#{\"pattern\""[..], b"5", b"5#", b"\xef\xbb"] {
        let (mut server, mut client) = strangers().await;
        client.write_all(begun).await.unwrap();
        let started = Instant::now();
        let mut end = [0; 1];
        let closed = tokio::time::timeout(Duration::from_secs(60), client.read(&mut end));
        let (read, _) = alongside(&mut server, 1, closed).await;
        // Something that was not read resets the connection.
        assert_eq!(read.expect("closed in time").unwrap_or(0), 0);
        let waited = started.elapsed().as_secs();
        assert!((30..=35).contains(&waited), "{waited}");
    }
    for begun in ["", "\r\n", "15#{\"pattern\":\"?\"}"] {
        let (mut server, mut client) = strangers().await;
        client.write_all(begun.as_bytes()).await.unwrap();
        let hour = tokio::time::sleep(Duration::from_secs(3600));
        alongside(&mut server, 1, hour).await;
        client.write_all(br#"15#{"pattern":"p"}"#).await.unwrap();
        let events = deliveries(&mut server, 1).await;
        assert_eq!(events[0].kind, Kind::Event);
    }
}

#[tokio::test(start_paused = true)]
async fn who_sends_no_more_is_answered_for_a_second() {
    let (mut server, mut client) = strangers().await;
    let request = br#"22#{"pattern":"p","id":1}22#{"pattern":"p","id":2}"#;
    client.write_all(request).await.unwrap();
    client.shutdown().await.unwrap();
    let mut requests = deliveries(&mut server, 2).await;
    let slow = requests.pop().unwrap();
    requests.pop().unwrap().settle(Outcome::Reply("7".into()));
    let mut replies = Vec::new();
    let read = async { client.read_to_end(&mut replies).await.unwrap() };
    let mut batch = Vec::new();
    let ended = async {
        let started = Instant::now();
        let end = poll_fn(|cx| server.poll_deliveries(cx, 1, &mut batch));
        assert_eq!(end.await, None);
        started.elapsed().as_secs()
    };
    let (_, waited) = tokio::join!(read, ended);
    assert_eq!(waited, 1);
    assert_eq!(replies, br#"39#{"response":7,"isDisposed":true,"id":1}"#);
    drop(slow);
    assert!(server.calls.is_empty());
}

/// How many seconds the server goes on until the caller of `call` counts as gone.
async fn gone_after(server: &mut Connection, mut call: Delivery) -> u64 {
    let started = Instant::now();
    let gone = poll_fn(|cx| call.responder().poll_cancelled(cx));
    let gone = tokio::time::timeout(Duration::from_secs(300), gone);
    let (gone, _) = alongside(server, 0, gone).await;
    gone.expect("it is noticed");
    started.elapsed().as_secs()
}

#[tokio::test(start_paused = true)]
async fn a_handler_is_told_when_its_caller_has_fallen_silent() {
    let (mut server, mut client) = pair().await;
    client.write_all(&requests(0..1)).await.unwrap();
    let call = deliveries(&mut server, 1).await.remove(0);
    let waited = gone_after(&mut server, call).await;
    assert!((20..=25).contains(&waited), "{waited}");
    assert!(server.socket.is_none() && server.calls.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_handler_is_told_when_its_caller_reads_nothing() {
    let (mut server, mut client) = strangers().await;
    for call in 10..42 {
        let request = format!(r#"23#{{"pattern":"p","id":{call}}}"#);
        client.write_all(request.as_bytes()).await.unwrap();
    }
    let mut calls = deliveries(&mut server, 32).await;
    let call = calls.pop().unwrap();
    // More than the system keeps for a reader who takes his time.
    let large = Bytes::from(vec![b'1'; 1_000_000]);
    for call in calls {
        call.settle(Outcome::Reply(large.clone()));
    }
    let waited = gone_after(&mut server, call).await;
    assert!((60..=70).contains(&waited), "{waited}");
    assert!(server.socket.is_none() && server.writing.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_application_without_calls_is_let_go_at_once() {
    let (mut server, mut client) = strangers().await;
    client.write_all(br#"15#{"pattern":"p"}"#).await.unwrap();
    drop(deliveries(&mut server, 1).await);
    let started = Instant::now();
    server.stop();
    let mut batch = Vec::new();
    let end = poll_fn(|cx| server.poll_deliveries(cx, 1, &mut batch));
    assert_eq!(end.await, None);
    let closing = async {
        poll_fn(|cx| server.poll_close(cx)).await;
    };
    let leaving = async {
        let mut end = [0];
        assert_eq!(client.read(&mut end).await.unwrap(), 0);
        // What it does by itself when it sees the end.
        client.shutdown().await.unwrap();
    };
    tokio::join!(closing, leaving);
    assert_eq!(started.elapsed().as_millis(), 0);
}
