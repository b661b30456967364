//! TCP.

use std::time::Duration;

use nestling::transport::ErrorKind;
use nestling_testkit::Authority;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::stage::{Files, address, check_answers, connect, failure, no_start, start, within};

const ASK: &str = "tls.ask";

#[tokio::test]
async fn who_cannot_prove_its_name_is_not_called() {
    let (files, ours, others) = (
        Files::new(),
        Authority::new().unwrap(),
        Authority::new().unwrap(),
    );
    let (ca, other_ca) = (files.authority(&ours), files.authority(&others));
    let own = files.own(&ours, "127.0.0.1");
    let good = start(format!("tcp://127.0.0.1:0?{own}"), ASK).await;
    check_answers(&address(&good, &format!("ca={ca}")), ASK).await;

    let (kind, text) = failure(&address(&good, &format!("ca={other_ca}")), ASK).await;
    assert_eq!(kind, ErrorKind::Connect);
    assert!(text.contains("UnknownIssuer"), "{text}");
    let (kind, text) = failure(&address(&good, "tls=on"), ASK).await;
    assert_eq!(kind, ErrorKind::Connect, "{text}");

    let elsewhere = files.own(&ours, "elsewhere.example");
    let impostor = start(format!("tcp://127.0.0.1:0?{elsewhere}"), ASK).await;
    let (kind, text) = failure(&address(&impostor, &format!("ca={ca}")), ASK).await;
    assert_eq!(kind, ErrorKind::Connect);
    assert!(text.contains("not valid for name"), "{text}");
}

#[tokio::test]
async fn who_shows_no_certificate_of_the_right_authority_is_not_answered() {
    let (files, ours, others) = (
        Files::new(),
        Authority::new().unwrap(),
        Authority::new().unwrap(),
    );
    let ca = files.authority(&ours);
    let own = files.own(&ours, "127.0.0.1");
    let server = start(format!("tcp://127.0.0.1:0?client_ca={ca}&{own}"), ASK).await;

    let (kind, text) = failure(&address(&server, &format!("ca={ca}")), ASK).await;
    assert_eq!(kind, ErrorKind::Connect);
    assert!(text.contains("CertificateRequired"), "{text}");
    let foreign = files.own(&others, "127.0.0.1");
    let (kind, text) = failure(&address(&server, &format!("ca={ca}&{foreign}")), ASK).await;
    assert_eq!(kind, ErrorKind::Connect, "{text}");
    let nest = format!("ca={ca}&wire=nest");
    let client = connect(&address(&server, &nest)).await.unwrap();
    let refused = within("a call", client.send_at::<u64>(ASK, &1)).await;
    assert!(refused.is_err(), "{refused:?}");

    check_answers(&address(&server, &format!("ca={ca}&{own}")), ASK).await;
    check_answers(&address(&server, &format!("ca={ca}&{own}&wire=nest")), ASK).await;
}

#[tokio::test]
async fn a_plain_client_is_told_that_the_server_speaks_tls() {
    let (files, ours) = (Files::new(), Authority::new().unwrap());
    let (ca, own) = (files.authority(&ours), files.own(&ours, "127.0.0.1"));
    let server = start(format!("tcp://127.0.0.1:0?{own}"), ASK).await;
    let (kind, text) = failure(&address(&server, ""), ASK).await;
    assert_eq!(kind, ErrorKind::Protocol);
    assert!(text.contains("tls=on"), "{text}");
    check_answers(&address(&server, &format!("ca={ca}")), ASK).await;
}

#[tokio::test]
async fn a_client_with_tls_does_without_rather_than_speak_plainly() {
    let (files, ours) = (Files::new(), Authority::new().unwrap());
    let ca = files.authority(&ours);
    let server = start("tcp://127.0.0.1:0", ASK).await;
    let (kind, text) = failure(&address(&server, &format!("ca={ca}")), ASK).await;
    assert_eq!(kind, ErrorKind::Connect, "{text}");
    check_answers(&address(&server, ""), ASK).await;
}

#[tokio::test]
async fn half_a_handshake_holds_nobody_up() {
    let (files, ours) = (Files::new(), Authority::new().unwrap());
    let (ca, own) = (files.authority(&ours), files.own(&ours, "127.0.0.1"));
    let server = start(format!("tcp://127.0.0.1:0?{own}"), ASK).await;
    let host = server.address().trim_start_matches("tcp://");
    let host = host.split('?').next().unwrap();
    let mut slow = Vec::new();
    for _ in 0..20 {
        let mut socket = TcpStream::connect(host).await.unwrap();
        // A record of a handshake, of which the rest is missing.
        socket.write_all(&[0x16, 3, 1, 2, 0, 1]).await.unwrap();
        slow.push(socket);
    }
    check_answers(&address(&server, &format!("ca={ca}")), ASK).await;

    // They are closed in the end, while the server goes on.
    let mut byte = [0];
    let read = within("the end", slow[0].read(&mut byte)).await;
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    check_answers(&address(&server, &format!("ca={ca}")), ASK).await;
    // Nor does one that has just begun hold up the end.
    let mut late = TcpStream::connect(host).await.unwrap();
    late.write_all(&[0x16]).await.unwrap();
    within("the server to stop", server.shutdown()).await;
    drop(late);
}

#[tokio::test]
async fn what_cannot_be_used_is_refused_at_the_start() {
    let (files, ours) = (Files::new(), Authority::new().unwrap());
    let own = files.own(&ours, "127.0.0.1");
    let other = files.own(&ours, "127.0.0.1");
    let check = async |options: &str, says: &str| {
        let error = no_start(&format!("tcp://127.0.0.1:0?{options}"), ASK).await;
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(error.to_string().contains(says), "{error}");
    };
    check("tls=on", "cert=FILE and key=FILE").await;
    let certificate = own.split('&').next().unwrap();
    check(certificate, "key=FILE").await;
    let key = other.split('&').nth(1).unwrap();
    check(
        &format!("{certificate}&{key}"),
        "cannot be used with the key",
    )
    .await;
    check(&format!("{certificate}&key=/nowhere.pem"), "/nowhere.pem").await;
    let error = connect("tcp://127.0.0.1:1?client_ca=a.pem")
        .await
        .unwrap_err();
    assert!(error.to_string().contains("ca=FILE"), "{error}");
    let error = connect("tcp://ada:pw@127.0.0.1:1").await.unwrap_err();
    assert!(error.to_string().contains("client_ca=FILE"), "{error}");
}

#[tokio::test]
async fn a_restarted_server_is_found_again_by_its_certificate() {
    let (files, ours) = (Files::new(), Authority::new().unwrap());
    let (ca, own) = (files.authority(&ours), files.own(&ours, "127.0.0.1"));
    let first = start(format!("tcp://127.0.0.1:0?{own}"), ASK).await;
    let (again, plain) = (address(&first, &own), address(&first, ""));
    let client = connect(&address(&first, &format!("ca={ca}")))
        .await
        .unwrap();
    assert_eq!(client.send_at::<u64>(ASK, &1).await, Ok(2));
    first.shutdown().await;

    // Somebody else in its place, who does not speak TLS, gets nothing.
    let other = start(plain, ASK).await;
    let asked = client
        .send_at::<u64>(ASK, &1)
        .timeout(Duration::from_secs(5));
    assert!(asked.await.is_err());
    other.shutdown().await;

    let _second = start(again, ASK).await;
    let answered = async {
        while client.send_at::<u64>(ASK, &1).await != Ok(2) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("an answer", answered).await;
}
