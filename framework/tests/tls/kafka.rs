//! Kafka, in a build that has TLS for it.

use nestling::transport::ErrorKind;
use nestling_testkit::{Authority, Kind};

use crate::stage::{
    Files, PASSWORD, WRONG, check_answers, connect, secure_broker, start, texts, without,
};

const ASK: &str = "tls.ask";

#[tokio::test]
async fn kafka_lets_in_who_has_certificate_and_password() {
    let authority = Authority::new().unwrap();
    let Some(broker) = secure_broker(Kind::Kafka, &authority) else {
        return;
    };
    let url = broker.url();
    let _server = start(&url, ASK).await;
    for mechanism in ["scram-sha-512", "scram-sha-256", "plain"] {
        check_answers(&format!("{url}&sasl={mechanism}"), ASK).await;
    }

    let wrong = url.replace(PASSWORD, WRONG);
    for mechanism in ["scram-sha-512", "plain"] {
        let error = connect(&format!("{wrong}&sasl={mechanism}")).await;
        let error = error.unwrap_err();
        let text = texts(&error);
        assert_eq!(error.kind(), ErrorKind::Refused, "{text}");
        assert!(!text.contains(WRONG), "{text}");
    }
    let files = Files::new();
    let other = files.authority(&Authority::new().unwrap());
    let unknown = format!("{}&ca={other}", without(&url, "ca"));
    let error = connect(&unknown).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect);
    assert!(texts(&error).contains("certificate"), "{error}");
    let plain = url.split('?').next().unwrap();
    let error = connect(plain).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect, "{error}");
}
