//! NATS and Redis.

use nestling::transport::{Error, ErrorKind};
use nestling_testkit::{Authority, Broker, Kind};

use crate::stage::{
    Files, PASSWORD, WRONG, check_answers, connect, no_start, secure_broker, start, texts, without,
};

const ASK: &str = "tls.ask";

/// Who cannot connect is told so, on either side, and without the password.
async fn check_refused(url: &str, kind: ErrorKind, says: &str) {
    let check = |error: &Error| {
        let text = texts(error);
        assert_eq!(error.kind(), kind, "{text}");
        assert!(text.contains(says), "{text}");
        assert!(!text.contains(PASSWORD) && !text.contains(WRONG), "{text}");
    };
    check(&connect(url).await.unwrap_err());
    check(&no_start(url, ASK).await);
}

async fn check_strangers(broker: &Broker, authority: &Authority) {
    let url = broker.url();
    let _server = start(&url, ASK).await;
    check_answers(&url, ASK).await;

    let files = Files::new();
    let other = files.authority(&Authority::new().unwrap());
    let unknown = format!("{}&ca={other}", without(&url, "ca"));
    check_refused(&unknown, ErrorKind::Connect, "UnknownIssuer").await;
    check_refused(&url.replace(PASSWORD, WRONG), ErrorKind::Refused, "").await;
    // Without a certificate of our own.
    let bare = without(&without(&url, "cert"), "key");
    let error = connect(&bare).await.unwrap_err();
    assert!(!texts(&error).contains(PASSWORD));
    let own = files.own(authority, "127.0.0.1");
    check_answers(&format!("{bare}&{own}"), ASK).await;
}

#[tokio::test]
async fn nats_lets_in_who_has_certificate_and_password() {
    let authority = Authority::new().unwrap();
    let Some(broker) = secure_broker(Kind::Nats, &authority) else {
        return;
    };
    check_strangers(&broker, &authority).await;
    let plain = broker.url();
    let plain = plain.split('?').next().unwrap();
    check_refused(plain, ErrorKind::Config, "tls=on").await;
}

#[tokio::test]
async fn redis_lets_in_who_has_certificate_and_password() {
    let authority = Authority::new().unwrap();
    let Some(broker) = secure_broker(Kind::Redis, &authority) else {
        return;
    };
    check_strangers(&broker, &authority).await;
    let alias = broker.url().replace("redis://", "rediss://");
    let _server = start(&alias, "tls.alias").await;
    check_answers(&alias, "tls.alias").await;
    let plain = broker.url();
    let plain = plain.split('?').next().unwrap();
    let error = connect(plain).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect, "{error}");
}
