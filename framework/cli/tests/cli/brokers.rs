//! The same on every broker: what is sent from one terminal arrives at the other.

use nestling_testkit::{Kind, broker_or_skip, unique};
use serde_json::json;

use super::*;

/// One pattern as message and event on one URL, headers, absence, and who sees what.
fn commands_meet_on(kind: Kind) {
    let Some(url) = broker_or_skip(kind) else {
        return;
    };
    let name = unique("cli");
    let pattern = &*format!("{name}.both");
    let absent = &*format!("{name}.nobody");
    let ended = run(["send", &url, absent, "1"]);
    ended.check(3, "");
    assert_eq!(ended.error()["code"], "UNAVAILABLE");

    let (mut answering, _) = Started::listening(["listen", &url, pattern, "--echo"]);
    let (mut watching, _) = Started::listening(["listen", &url, pattern, "--events"]);
    for n in ["1.50", "2.50"] {
        run([
            "send",
            &url,
            pattern,
            n,
            "--header",
            "actor=ada",
            "--timeout",
            "1m",
        ])
        .check(0, &format!("{n}\n"));
        let line = answering.line();
        assert!(line.contains(&format!("\"payload\":{n},")), "{line}");
        let heard: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            (&heard["pattern"], &heard["kind"]),
            (&json!(pattern), &json!("message"))
        );
        assert_eq!(heard["headers"]["actor"], "ada");
        assert_eq!(heard["attempt"], 1);
    }
    run([
        "emit",
        &url,
        pattern,
        "{}",
        "--key",
        "k",
        "--header",
        "actor=ada",
    ])
    .check(0, "");
    // Each is a service of its own, so that both see it. On NATS whoever takes events hears the
    // messages as well, and answers nothing.
    if kind == Kind::Nats {
        for n in [1.5, 2.5] {
            assert_eq!(watching.json()["payload"], n);
        }
    }
    for listening in [&mut answering, &mut watching] {
        let heard = listening.json();
        assert_eq!(
            (&heard["pattern"], &heard["kind"]),
            (&json!(pattern), &json!("event"))
        );
        assert_eq!(heard["headers"]["actor"], "ada");
        assert_eq!(heard["headers"]["key"], "k");
        // By this an inbox knows it again, where it may come twice.
        assert_eq!(
            heard["headers"].get("event-id").is_some(),
            kind != Kind::Nats
        );
    }
    answering.interrupt().check(0, "");
    watching.interrupt().check(0, "");
}

#[test]
fn commands_meet_on_nats() {
    commands_meet_on(Kind::Nats);
}

#[test]
fn commands_meet_on_redis() {
    commands_meet_on(Kind::Redis);
}

#[test]
fn commands_meet_on_kafka() {
    commands_meet_on(Kind::Kafka);
}

/// The same in the words of NestJS applications, which every listener understands.
fn nest_is_spoken_on(url: &str) {
    let pattern = &*format!("{}.nest", unique("cli"));
    let (mut listening, address) = Started::listening(["listen", url, pattern, "--echo"]);
    let url = if url.starts_with("tcp:") {
        &address
    } else {
        url
    };
    let payload = "{\"n\":1.50}";
    let mut heard = |kind: &str| {
        let line = listening.line();
        assert!(line.contains("\"payload\":{\"n\":1.50},"), "{line}");
        let heard: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            (&heard["pattern"], &heard["kind"]),
            (&json!(pattern), &json!(kind))
        );
        assert_eq!(heard["headers"]["actor"], "ada");
    };
    let args = [
        url,
        pattern,
        payload,
        "--header",
        "actor=ada",
        "--wire",
        "nest",
    ];
    let [a, b, c, d, e, f, g] = args;
    let sent = run(["send", a, b, c, d, e, f, g, "--timeout", "1m"]);
    sent.check(0, &format!("{payload}\n"));
    heard("message");
    run(["emit", a, b, c, d, e, f, g]).check(0, "");
    heard("event");
    listening.interrupt().check(0, "");
}

#[test]
fn nest_is_spoken_on_tcp() {
    nest_is_spoken_on("tcp://127.0.0.1:0");
}

#[test]
fn nest_is_spoken_on_every_broker() {
    for kind in Kind::ALL {
        if let Some(url) = broker_or_skip(kind) {
            nest_is_spoken_on(&url);
        }
    }
}

#[test]
fn a_wildcard_hears_every_concrete_pattern() {
    let Some(url) = broker_or_skip(Kind::Nats) else {
        return;
    };
    let name = unique("cli");
    let (mut listening, _) = Started::listening(["listen", &url, &format!("{name}.*")]);
    for verb in ["get", "put"] {
        let pattern = format!("{name}.{verb}");
        run(["send", &url, &pattern]).check(0, "null\n");
        assert_eq!(listening.json()["pattern"], *pattern);
    }
    listening.interrupt().check(0, "");
}

#[test]
fn listeners_of_one_service_share_its_work() {
    let Some(url) = broker_or_skip(Kind::Redis) else {
        return;
    };
    let name = unique("cli");
    let pattern = &*format!("{name}.happened");
    let listen = ["listen", &url, pattern, "--service", &name];
    let ((one, _), (other, _)) = (Started::listening(listen), Started::listening(listen));
    for n in 0..10 {
        run(["emit", &url, pattern, &n.to_string()]).check(0, "");
    }
    // What was not printed before the end would be there for whoever comes next.
    let (one, other) = (one.interrupt(), other.interrupt());
    let (mut next, _) = Started::listening(listen);
    run(["emit", &url, pattern, "10"]).check(0, "");
    let mut heard: Vec<Value> = Vec::new();
    for line in one.out.lines().chain(other.out.lines()) {
        heard.push(serde_json::from_str(line).unwrap());
    }
    while heard.len() < 11 {
        heard.push(next.json());
    }
    let mut numbers: Vec<_> = heard
        .iter()
        .filter_map(|heard| heard["payload"].as_u64())
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..=10).collect::<Vec<_>>());
    next.interrupt().check(0, "");
}
