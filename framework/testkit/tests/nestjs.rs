//! NestJS applications start, talk, and never outlive their owner.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{
    env,
    io::{BufRead, BufReader, Read},
    net::TcpStream,
    process::{Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use nestling_testkit::{
    nestjs::{self, App},
    or_skip,
};

/// Tells [`hold_an_application`], run in a process of its own, that it is to do so.
const HOLD: &str = "NESTLING_TESTKIT_HOLD_NESTJS";
const SERVER: [&str; 3] = ["tcp://127.0.0.1:0", "--run", "testkit-1"];

/// The URL in `{"ready":true,"url":"tcp://127.0.0.1:7000"}`.
fn url(server: &App) -> String {
    let (_, url) = server.ready().split_once("tcp://").unwrap();
    format!("tcp://{}", url.trim_end_matches("\"}"))
}

fn accepts(url: &str) -> bool {
    TcpStream::connect(url.strip_prefix("tcp://").unwrap()).is_ok()
}

#[test]
fn two_applications_talk_until_they_are_stopped() {
    if or_skip(nestjs::modules()).is_none() {
        return;
    }
    let mut server = App::start("server.mjs", &SERVER, drop).unwrap();
    let url = url(&server);
    let (line, lines) = mpsc::channel();
    let on_line = move |text| line.send(text).unwrap();
    let mut client = App::start("client.mjs", &[&url, "--run", "testkit-1"], on_line).unwrap();
    let next = || lines.recv_timeout(Duration::from_secs(20)).unwrap();

    client
        .say(r#"{"id":1,"do":"send","pattern":"testkit-1.echo","data":"ż"}"#)
        .unwrap();
    assert_eq!(next(), r#"{"id":1,"is":"value","what":"ż"}"#);
    assert_eq!(next(), r#"{"id":1,"is":"complete"}"#);

    assert!(
        server.log().contains("successfully started"),
        "{}",
        server.log()
    );
    assert!(server.stop(Duration::from_secs(20)));
    assert!(!accepts(&url));
    client.kill();
    assert!(client.say("{}").is_err());
}

#[test]
fn an_application_that_does_not_start_is_explained() {
    if or_skip(nestjs::modules()).is_none() {
        return;
    }
    let refused = App::start(
        "client.mjs",
        &["tcp://127.0.0.1:1", "--run", "testkit-1"],
        drop,
    );
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("ECONNREFUSED"), "{text}");
}

/// Not a test by itself: the process that is killed in the next one.
#[test]
fn hold_an_application() {
    if env::var_os(HOLD).is_none() {
        return;
    }
    let server = App::start("server.mjs", &SERVER, drop).unwrap();
    println!("\nholding {}", url(&server));
    // Waits for the end of the input, that is, for the parent.
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

#[test]
fn an_application_ends_when_its_owner_is_killed() {
    if or_skip(nestjs::modules()).is_none() {
        return;
    }
    let mut owner = Command::new(env::current_exe().unwrap())
        .args(["--exact", "hold_an_application", "--nocapture"])
        .env(HOLD, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let url = BufReader::new(owner.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap)
        .find_map(|line| line.strip_prefix("holding ").map(str::to_owned))
        .unwrap();
    assert!(accepts(&url));

    owner.kill().unwrap();
    owner.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while accepts(&url) {
        assert!(
            Instant::now() < deadline,
            "the application outlived its owner"
        );
        std::thread::yield_now();
    }
}
