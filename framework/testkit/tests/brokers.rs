//! Brokers start, die and come back, and never outlive their owner.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{
    env,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use nestling_testkit::{Broker, Kind, Options, unique};

/// Tells [`hold_a_broker`], run in a process of its own, that it is to do so.
const HOLD: &str = "NESTLING_TESTKIT_HOLD";

fn start(kind: Kind, options: Options) -> Option<Broker> {
    let missing = kind.missing_programs();
    if !missing.is_empty() {
        let required = env::var("REQUIRE_BROKERS").is_ok_and(|value| value == "1");
        assert!(!required, "REQUIRE_BROKERS=1, but {missing:?} are missing");
        eprintln!("skipped: {missing:?} are missing");
        return None;
    }
    Some(Broker::start(kind, options).unwrap())
}

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

fn accepts(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

fn comes_back(kind: Kind) {
    let Some(mut broker) = start(kind, Options::default()) else {
        return;
    };
    let (url, port) = (broker.url(), broker.port());
    assert_eq!(url, format!("{kind}://127.0.0.1:{port}"));
    let first = broker.pid();
    assert!(broker.is_running());

    broker.kill();
    assert!(!broker.is_running());
    assert_eq!(broker.pid(), None);
    assert!(!accepts(port));

    broker.restart().unwrap();
    assert_eq!(broker.url(), url);
    assert_ne!(broker.pid(), first);
    broker.restart().unwrap();
    broker.stop();
    assert!(!accepts(port));

    let data = broker.data_dir().to_owned();
    assert!(data.exists());
    drop(broker);
    assert!(!data.exists());
}

#[test]
fn nats_comes_back_on_its_port() {
    comes_back(Kind::Nats);
}

#[test]
fn redis_comes_back_on_its_port() {
    comes_back(Kind::Redis);
}

#[test]
fn kafka_comes_back_on_its_port() {
    comes_back(Kind::Kafka);
}

fn ask_redis(port: u16, command: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    stream.write_all(command.as_bytes()).unwrap();
    stream.write_all(b"\r\nQUIT\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn data_outlives_a_kill_and_a_new_start_with_the_same_folder() {
    let folder = env::temp_dir().join(unique("nestling-data"));
    let options = Options {
        data_dir: Some(folder.clone()),
        port: None,
        ..Options::default()
    };
    let Some(mut broker) = start(Kind::Redis, options.clone()) else {
        return;
    };
    assert_eq!(
        ask_redis(broker.port(), "SET bird nestling"),
        "+OK\r\n+OK\r\n"
    );
    broker.kill();
    broker.restart().unwrap();
    assert!(ask_redis(broker.port(), "GET bird").contains("nestling"));
    drop(broker);

    let broker = Broker::start(Kind::Redis, options).unwrap();
    assert!(ask_redis(broker.port(), "GET bird").contains("nestling"));
    drop(broker);
    assert!(folder.exists());
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn kafka_keeps_its_data_on_another_port() {
    let folder = env::temp_dir().join(unique("nestling-data"));
    let options = Options {
        data_dir: Some(folder.clone()),
        port: None,
        ..Options::default()
    };
    let Some(broker) = start(Kind::Kafka, options.clone()) else {
        return;
    };
    drop(broker);
    drop(Broker::start(Kind::Kafka, options).unwrap());
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_taken_port_is_reported_with_the_brokers_own_words() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let options = Options {
        data_dir: None,
        port: Some(taken.local_addr().unwrap().port()),
        ..Options::default()
    };
    if !Kind::Nats.missing_programs().is_empty() {
        return;
    }
    let unavailable = Broker::start(Kind::Nats, options).unwrap_err();
    assert_eq!(unavailable.what, "nats");
    let text = unavailable.to_string();
    assert!(text.contains("address already in use"), "{text}");
    assert!(text.contains("TEST_NATS_URL"), "{text}");
}

/// Not a test by itself: the process that is killed in the next one.
#[test]
fn hold_a_broker() {
    if env::var_os(HOLD).is_none() {
        return;
    }
    let broker = Broker::start(Kind::Redis, Options::default()).unwrap();
    println!(
        "\nholding {} {} {}",
        broker.port(),
        broker.pid().unwrap(),
        broker.data_dir().display()
    );
    // Waits for the end of the input, that is, for the parent.
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

#[test]
fn a_broker_ends_when_its_owner_is_killed() {
    if start(Kind::Redis, Options::default()).is_none() {
        return;
    }
    let mut owner = Command::new(env::current_exe().unwrap())
        .args(["--exact", "hold_a_broker", "--nocapture"])
        .env(HOLD, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let line = BufReader::new(owner.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap)
        .find(|line| line.starts_with("holding "))
        .unwrap();
    let [_, port, pid, data] = line.split(' ').collect::<Vec<_>>()[..] else {
        panic!("{line}");
    };
    let port = port.parse().unwrap();
    assert!(accepts(port));
    assert!(Path::new(data).exists());
    assert!(ask_redis(port, "INFO server").contains(&format!("process_id:{pid}")));

    owner.kill().unwrap();
    owner.wait().unwrap();
    eventually("the broker outlived its owner", || !accepts(port));
    eventually("its data outlived its owner", || !Path::new(data).exists());
}
